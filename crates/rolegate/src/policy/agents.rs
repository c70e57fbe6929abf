//! The flags of the processes that decide in a cluster: those of the agents' DaemonSets or, if
//! agents use a broker, of the brokers' Deployments.

mod workload;

use clap::Args;
use http::Uri;
use rolegate_core::names;
use rolegate_core::text::plain;
use rolegate_inventory::basis::WorkloadRef;
use rolegate_inventory::cluster::Cluster;
use rolegate_inventory::in_force::{AgentFlags, UnknownFlag};
use serde_json::Value;

use crate::cli::Command;
use crate::flags::container;
use crate::flags::deciding::DecidingFlags;
use crate::flags::name;

use workload::{AGENTS, BROKERS, Kind, doubts, reference, workloads};

const HEADING: &str = "Agents";

/// Flags about the location of agents and brokers in a cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct AgentsAt {
    /// Namespace of the agents whose flags are read
    #[arg(long, value_name = "NAME", default_value = names::NAMESPACE, value_parser = name, help_heading = HEADING)]
    agent_namespace: String,
    /// DaemonSet of the agents [default: those named rolegate-agent or labelled app.kubernetes.io/name=rolegate-agent]
    #[arg(long, value_name = "NAME", value_parser = name, help_heading = HEADING)]
    agent_daemonset: Option<String>,
    /// Deployment of the brokers [default: those named rolegate-broker or labelled app.kubernetes.io/name=rolegate-broker]
    #[arg(long, value_name = "NAME", value_parser = name, help_heading = HEADING)]
    broker_deployment: Option<String>,
}

/// The flags of the processes that decide, and their origin.
#[derive(Debug, Clone)]
pub(super) struct ProcessFlags {
    /// The flags.
    pub(super) flags: DecidingFlags,
    /// The workloads with these flags.
    pub(super) origin: AgentFlags,
}

impl ProcessFlags {
    /// Returns the flags of one workload.
    fn of(
        reference: WorkloadRef,
        workload: &Value,
        flags: anyhow::Result<DecidingFlags>,
        unknown: Vec<UnknownFlag>,
    ) -> Result<Self, String> {
        Ok(Self {
            flags: flags.map_err(|error| format!("{reference}: {error}"))?,
            origin: AgentFlags {
                unknown,
                doubts: doubts(&reference, workload),
                workloads: vec![reference],
            },
        })
    }
}

impl AgentsAt {
    /// Returns the namespace of the agents.
    pub(crate) fn namespace(&self) -> &str {
        &self.agent_namespace
    }

    /// Reads the flags from the cluster.
    ///
    /// # Errors
    /// Returns the reason why they are unknown.
    pub(super) async fn read(&self, cluster: &Cluster) -> Result<Box<ProcessFlags>, String> {
        let read = self.agents(cluster).await.map(Box::new);
        // The reason contains the values of the pod template.
        read.map_err(|why| plain(&why))
    }

    async fn agents(&self, cluster: &Cluster) -> Result<ProcessFlags, String> {
        let namespace = &self.agent_namespace;
        let wanted = self.agent_daemonset.as_deref();
        let mut found = Vec::new();
        for workload in workloads(cluster, &AGENTS, namespace, wanted).await? {
            let reference = reference(&AGENTS, &workload);
            let started =
                container::started(&workload).map_err(|error| format!("{reference}: {error}"))?;
            let Command::Agent(flags) = started.command else {
                return Err(format!("{reference} does not run an agent"));
            };
            if flags.workloads.is_some() {
                return Err(format!(
                    "{reference} reads pods from a file (--workloads) instead of the cluster"
                ));
            }
            let unknown: Vec<_> = started.unknown.into_iter().collect();
            if let Some(one) = unknown.iter().find(|one| one.id == "broker") {
                let from = &one.from;
                return Err(format!("{reference}: --broker comes from {from}"));
            }
            match &flags.broker {
                None => found.push(ProcessFlags::of(
                    reference,
                    &workload,
                    flags.deciding(),
                    unknown,
                )?),
                Some(url) => {
                    let namespace = namespace_of(url).unwrap_or_else(|| namespace.clone());
                    found.push(self.brokers(cluster, &namespace).await?);
                }
            }
        }
        agreed(found, &AGENTS)
    }

    async fn brokers(&self, cluster: &Cluster, namespace: &str) -> Result<ProcessFlags, String> {
        let wanted = self.broker_deployment.as_deref();
        let mut found = Vec::new();
        for workload in workloads(cluster, &BROKERS, namespace, wanted).await? {
            let reference = reference(&BROKERS, &workload);
            let started =
                container::started(&workload).map_err(|error| format!("{reference}: {error}"))?;
            let Command::Broker(flags) = started.command else {
                return Err(format!("{reference} does not run a broker"));
            };
            let unknown = started.unknown.into_iter().collect();
            found.push(ProcessFlags::of(
                reference,
                &workload,
                flags.deciding(),
                unknown,
            )?);
        }
        agreed(found, &BROKERS)
    }
}

/// Returns the flags of all workloads if they agree.
fn agreed(found: Vec<ProcessFlags>, kind: &Kind) -> Result<ProcessFlags, String> {
    let mut found = found.into_iter();
    let Some(mut one) = found.next() else {
        return Err(format!("found no {}", kind.kind));
    };
    let validated = |one: &ProcessFlags| {
        let names: Vec<_> = one
            .origin
            .workloads
            .iter()
            .map(ToString::to_string)
            .collect();
        let validated = one.flags.validated();
        validated.map_err(|error| format!("{}: {error}", names.join(", ")))
    };
    let first = validated(&one)?;
    for other in found {
        if validated(&other)? != first || other.origin.unknown != one.origin.unknown {
            let names: Vec<_> = one
                .origin
                .workloads
                .iter()
                .chain(&other.origin.workloads)
                .map(ToString::to_string)
                .collect();
            let flag = kind.flag;
            return Err(format!(
                "{} have different flags: select one with {flag}",
                names.join(" and ")
            ));
        }
        one.origin.doubts.extend(other.origin.doubts);
        let known = other.origin.workloads.into_iter();
        let news: Vec<_> = known
            .filter(|other| !one.origin.workloads.contains(other))
            .collect();
        one.origin.workloads.extend(news);
    }
    Ok(one)
}

/// Returns the namespace of the Service in a broker's URL.
fn namespace_of(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let mut parts = uri.host()?.split('.');
    let (_service, namespace, svc) = (parts.next()?, parts.next()?, parts.next()?);
    (svc == "svc").then(|| plain(namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_of_a_broker_is_in_its_name() {
        for (url, expected) in [
            (
                "https://rolegate-broker.rolegate-system.svc:9443",
                Some(names::NAMESPACE),
            ),
            ("https://b.two.svc.cluster.local:1", Some("two")),
            ("https://localhost:9443", None),
            ("https://b.example.org:9443", None),
        ] {
            assert_eq!(namespace_of(url).as_deref(), expected, "{url}");
        }
    }
}
