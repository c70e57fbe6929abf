//! Decides which identity a pod gets, and waits for one that is about to exist.
//!
//! A pod is often created together with its service account, whose watch event, annotation or
//! association arrives a moment later. A pod waits for it, woken by the watches: as long as its
//! service account is unknown, or was created within the bound. Pods of older service accounts
//! without a role, which are most pods, never wait.

pub mod accounts;
mod missed;
#[cfg(test)]
mod tests;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use rolegate_core::service_account::ServiceAccountAnnotations;
use rolegate_review::ServiceAccounts;
use rolegate_review::mutation::config_map::PodIdentityConfig;
use rolegate_review::mutation::source::ContainerIdentities;
use rolegate_review::mutation::{
    Identity, InjectionSettings, Mutation, PodChange, Resolved, Sources, inject,
};
use rolegate_rules::rules::RuleStore;
use rolegate_rules::service_accounts::AccountLookup;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::metrics::injection::{InjectionMetrics, Missed};
use accounts::Accounts;
use missed::RecentPods;
use waiting::WaitingPods;

/// The inputs of [`Injection`].
pub struct InjectionInputs {
    /// The settings of the injection.
    pub settings: InjectionSettings,
    /// Time for which a pod waits.
    pub wait: Duration,
    /// The rules, for associations and the base ARN.
    pub rules: RuleStore,
    /// The service accounts.
    pub accounts: Accounts,
    /// The ConfigMap of the EKS webhook. `None` until it is loaded.
    pub config_map: watch::Receiver<Option<Arc<PodIdentityConfig>>>,
    /// The file of the EKS webhook. `None` until it is loaded.
    pub identities: watch::Receiver<Option<Arc<ContainerIdentities>>>,
    /// The metrics.
    pub metrics: InjectionMetrics,
    /// Receives reports about pods without the role of their service account.
    pub reporter: Reporter,
}

/// Receives reports for the service account's users.
pub type Reporter = Arc<dyn Fn(&Report) + Send + Sync>;

/// A report about a service account whose pods run without its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The service account's namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub account: Arc<str>,
    /// Its UID. Empty if the service account is unknown or old.
    pub uid: Arc<str>,
    /// One sentence.
    pub message: String,
}

/// Decides about the injection.
pub struct Injection {
    inputs: InjectionInputs,
    waiting: WaitingPods,
    recent: RecentPods,
}

impl std::fmt::Debug for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Injection").finish_non_exhaustive()
    }
}

/// The pod of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestedPod<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) account: &'a str,
    /// `metadata.name`. Empty if it will be generated.
    pub(crate) name: &'a str,
}

/// A look-up of one service account.
enum LookUp {
    /// Decided.
    Resolved(Resolved),
    /// There is no role, but one may come until this time.
    Pending(Instant, Missed),
    /// The caches are not loaded.
    NotSynced,
}

/// The caches are not loaded, so nothing can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotSynced;

impl Injection {
    /// Creates the injection.
    pub fn new(inputs: InjectionInputs) -> Arc<Self> {
        Arc::new(Self {
            inputs,
            waiting: WaitingPods::default(),
            recent: RecentPods::default(),
        })
    }

    /// Returns the settings.
    pub(crate) fn settings(&self) -> &InjectionSettings {
        &self.inputs.settings
    }

    /// Returns the identity of a pod's service account now, without waiting.
    pub(crate) fn identity(&self, namespace: &str, account: &str) -> Option<Identity> {
        let deadline = Instant::now();
        match self.look_up(namespace, account, deadline) {
            LookUp::Resolved(resolved) => resolved.identity,
            LookUp::Pending(..) | LookUp::NotSynced => None,
        }
    }

    /// Returns the additions to a pod. Waits for a role that may come.
    pub(crate) async fn mutate(
        &self,
        pod: RequestedPod<'_>,
        change: &PodChange<'_>,
    ) -> Result<Result<Mutation, String>, NotSynced> {
        let resolved = self.resolve(pod).await?;
        let metrics = &self.inputs.metrics;
        let mut mutation = Mutation::default();
        if let Some(warning) = &resolved.warning {
            mutation.warn(warning);
        }
        let Some(identity) = &resolved.identity else {
            metrics.none();
            return Ok(Ok(mutation));
        };
        let injected = inject(change, identity, self.settings());
        metrics.injected(&identity.method);
        Ok(injected.map(|mut injected| {
            for warning in &mutation.warnings {
                injected.warn(warning);
            }
            injected
        }))
    }

    async fn resolve(&self, pod: RequestedPod<'_>) -> Result<Resolved, NotSynced> {
        let inputs = &self.inputs;
        let bound = Instant::now() + inputs.wait;
        // Subscribed before the first look, so that no change is missed.
        let mut accounts = inputs.accounts.changes();
        let mut rules = inputs.rules.changes();
        let mut config_map = inputs.config_map.clone();
        let mut identities = inputs.identities.clone();
        let mut place = None;
        loop {
            accounts.mark_unchanged();
            rules.mark_unchanged();
            config_map.mark_unchanged();
            identities.mark_unchanged();
            let (deadline, missed) = match self.look_up(pod.namespace, pod.account, bound) {
                LookUp::Resolved(resolved) => {
                    if resolved.warning.is_some() {
                        inputs.metrics.missed(Missed::InvalidRole);
                    }
                    return Ok(resolved);
                }
                LookUp::Pending(deadline, missed) => (deadline.min(bound), Some(missed)),
                LookUp::NotSynced => (bound, None),
            };
            if place.is_none() {
                let Some(entered) = self.waiting.enter(pod.namespace) else {
                    return self.given_up(pod, missed.map(|_| Missed::TooManyWaiting));
                };
                place = Some((entered, inputs.metrics.waiting()));
            }
            let change = async {
                tokio::select! {
                    Ok(()) = accounts.changed() => {}
                    Ok(()) = rules.changed() => {}
                    Ok(()) = config_map.changed() => {}
                    Ok(()) = identities.changed() => {}
                    else => std::future::pending().await,
                }
            };
            if timeout_at(deadline, change).await.is_err() {
                return self.given_up(pod, missed);
            }
        }
    }

    /// Ends a wait without a role.
    fn given_up(
        &self,
        pod: RequestedPod<'_>,
        missed: Option<Missed>,
    ) -> Result<Resolved, NotSynced> {
        let missed = missed.ok_or(NotSynced)?;
        let name = if pod.name.is_empty() { "*" } else { pod.name };
        self.recent.push(pod.namespace, pod.account, name);
        let warning = match missed {
            // Usual: a new service account without a role.
            Missed::NoRole => None,
            Missed::UnknownAccount => Some(format!(
                "service account {} is not known yet, so the pod gets no AWS role; restart the pod \
                 if it needs one",
                pod.account
            )),
            _ => Some(
                "too many pods wait for new service accounts, so the pod gets no AWS role; restart \
                 the pod if it needs one"
                    .to_owned(),
            ),
        };
        if let Some(warning) = &warning {
            self.inputs.metrics.missed(missed);
            warn!(
                namespace = pod.namespace,
                service_account = pod.account,
                pod = pod.name,
                reason = warning,
                "pod admitted without injection"
            );
            self.report(pod.namespace, pod.account, warning);
        }
        Ok(Resolved {
            identity: None,
            warning,
        })
    }

    fn look_up(&self, namespace: &str, account: &str, bound: Instant) -> LookUp {
        let inputs = &self.inputs;
        let (Some(config_map), Some(identities)) = (
            inputs.config_map.borrow().clone(),
            inputs.identities.borrow().clone(),
        ) else {
            return LookUp::NotSynced;
        };
        let snapshot = inputs.rules.load();
        let rules = &snapshot.admission;
        let known = inputs.accounts.lookup(namespace, account);
        if known == AccountLookup::NotSynced || rules.not_synced.is_some() {
            return LookUp::NotSynced;
        }
        let annotations = match &known {
            AccountLookup::Present(known) => known.annotations(),
            AccountLookup::Absent | AccountLookup::NotSynced => Default::default(),
        };
        let assignment = rules.assigned_role(namespace, account, &annotations, None);
        let sources = Sources {
            annotations: &annotations,
            assignment: &assignment,
            container_identities: &identities,
            config_map: &config_map,
            base: rules.base.as_ref(),
        };
        let resolved = sources.resolve(namespace, account, self.settings());
        if resolved != Resolved::default() {
            return LookUp::Resolved(resolved);
        }
        if known == AccountLookup::Absent {
            return LookUp::Pending(bound, Missed::UnknownAccount);
        }
        let left = inputs
            .accounts
            .may_change_for(namespace, account, inputs.wait);
        // An empty annotation declines a role.
        if annotations.role.is_some() || left.is_zero() {
            return LookUp::Resolved(resolved);
        }
        LookUp::Pending(Instant::now() + left, Missed::NoRole)
    }

    /// Reports pods that were admitted before their service accounts got a role. Call it after each
    /// change of service accounts and rules.
    pub fn report_late_roles(&self) {
        for (namespace, account) in self.recent.accounts() {
            if self.identity(&namespace, &account).is_none() {
                continue;
            }
            let Some(late) = self.recent.take(&namespace, &account) else {
                continue;
            };
            for _ in 0..late.count {
                self.inputs.metrics.missed(Missed::LateRole);
            }
            let message = format!(
                "{} pods were created before this service account had a role, and run without it \
                 until they are restarted: {}",
                late.count,
                late.names.join(", ")
            );
            warn!(
                namespace = &*namespace,
                service_account = &*account,
                reason = message,
                "pods admitted before their service account had a role"
            );
            self.report(&namespace, &account, &message);
        }
    }

    fn report(&self, namespace: &str, account: &str, message: &str) {
        (self.inputs.reporter)(&Report {
            namespace: namespace.into(),
            account: account.into(),
            uid: self.inputs.accounts.uid(namespace, account),
            message: message.to_owned(),
        });
    }

    /// Calls [`Self::report_late_roles`] after each change. Never returns.
    pub async fn follow_changes(self: Arc<Self>) {
        let mut accounts = self.inputs.accounts.changes();
        let mut rules = self.inputs.rules.changes();
        let mut config_map = self.inputs.config_map.clone();
        loop {
            tokio::select! {
                Ok(()) = accounts.changed() => {}
                Ok(()) = rules.changed() => {}
                Ok(()) = config_map.changed() => {}
                else => std::future::pending().await,
            }
            self.report_late_roles();
        }
    }
}

impl ServiceAccounts for Injection {
    fn annotations(&self, namespace: &str, name: &str) -> ServiceAccountAnnotations {
        match self.inputs.accounts.lookup(namespace, name) {
            AccountLookup::Present(account) => account.annotations(),
            AccountLookup::Absent | AccountLookup::NotSynced => Default::default(),
        }
    }
}
