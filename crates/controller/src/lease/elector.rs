//! Reads and writes the Lease.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{ObjectMeta, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use rolegate_runtime::clock::Clock;
use tokio::time::Instant;

use super::LeaseOptions;
use super::record::{Seen, Step, held, released, step};
use crate::owner::Owner;

/// One candidate's view of the Lease.
pub(super) struct Elector {
    api: Api<Lease>,
    roles: Api<PartialObjectMeta<Role>>,
    options: LeaseOptions,
    clock: Clock,
    seen: Option<Seen>,
}

impl Elector {
    pub(super) fn new(client: &Client, options: LeaseOptions, clock: Clock) -> Self {
        Self {
            api: Api::namespaced(client.clone(), &options.namespace),
            roles: Api::namespaced(client.clone(), &options.namespace),
            options,
            clock,
            seen: None,
        }
    }

    /// Takes or renews the Lease if possible. Returns `true` if this candidate holds it.
    pub(super) async fn attempt(&mut self) -> kube::Result<bool> {
        let lease = self.api.get_opt(&self.options.name).await?;
        self.observe(lease);
        let step = step(&self.options.identity, self.seen.as_ref(), Instant::now());
        let before = self.seen.as_ref().map(|seen| &seen.spec);
        let spec = held(
            &self.options.identity,
            before,
            self.options.timing.duration,
            self.clock.now(),
        );
        let written = match step {
            Step::Wait => return Ok(false),
            Step::Create => {
                let name = Some(self.options.name.clone());
                let lease = Lease {
                    metadata: ObjectMeta {
                        name,
                        owner_references: self.owner().await?.references(),
                        ..ObjectMeta::default()
                    },
                    spec: Some(spec),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Take | Step::Renew => self.replace(spec).await,
        };
        match written {
            Ok(lease) => {
                self.observe(Some(lease));
                Ok(true)
            }
            // Another candidate was faster: the next attempt shows which.
            Err(kube::Error::Api(status)) if status.code == 409 && step != Step::Renew => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the Role with the Lease's name, which our manifests install, as the Lease's owner.
    async fn owner(&self) -> kube::Result<Owner> {
        Owner::find(&self.roles, &self.options.name).await
    }

    /// Releases the Lease if this candidate holds it.
    pub(super) async fn release(&mut self) -> kube::Result<()> {
        let lease = self.api.get_opt(&self.options.name).await?;
        self.observe(lease);
        let Some(seen) = &self.seen else {
            return Ok(());
        };
        if seen.spec.holder_identity.as_deref() != Some(&self.options.identity) {
            return Ok(());
        }
        let spec = released(&seen.spec, self.clock.now());
        self.replace(spec).await.map(drop)
    }

    async fn replace(&self, spec: LeaseSpec) -> kube::Result<Lease> {
        let metadata = self.seen.as_ref().map(|seen| seen.metadata.clone());
        let lease = Lease {
            metadata: metadata.unwrap_or_default(),
            spec: Some(spec),
        };
        let params = PostParams::default();
        self.api.replace(&self.options.name, &params, &lease).await
    }

    fn observe(&mut self, lease: Option<Lease>) {
        self.seen = lease.map(|lease| {
            let spec = lease.spec.unwrap_or_default();
            let since = match &self.seen {
                Some(seen) if seen.spec == spec => seen.since,
                _ => Instant::now(),
            };
            Seen {
                metadata: lease.metadata,
                spec,
                since,
            }
        });
    }
}
