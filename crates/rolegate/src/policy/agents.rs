//! The flags of the processes that decide in a cluster: those of the agents' DaemonSets or, if
//! agents use a broker, of the brokers' Deployments.

use clap::Args;
use http::Uri;
use rolegate_core::text::plain;
use rolegate_inventory::basis::WorkloadRef;
use rolegate_inventory::cluster::Cluster;
use rolegate_inventory::in_force::{AgentFlags, UnknownFlag};
use serde_json::Value;

use super::errors::of_cluster;
use super::flags::name;
use crate::cli::Command;
use crate::flags::container;
use crate::flags::deciding::DecidingFlags;

const HEADING: &str = "Agents";
/// The label that identifies a workload's program.
const LABEL: &str = "/metadata/labels/app.kubernetes.io~1name";

/// Flags about the location of agents and brokers in a cluster.
#[derive(Debug, Clone, Args)]
pub(super) struct AgentsAt {
    /// Namespace of the agents whose flags are read
    #[arg(long, value_name = "NAME", default_value = "rolegate-system", value_parser = name, help_heading = HEADING)]
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

/// A kind of workload whose processes decide.
struct Kind {
    kind: &'static str,
    plural: &'static str,
    /// The default name and the value of the label.
    name: &'static str,
    /// The flag that selects a workload.
    flag: &'static str,
}

const AGENTS: Kind = Kind {
    kind: "DaemonSet",
    plural: "daemonsets",
    name: "rolegate-agent",
    flag: "--agent-daemonset",
};

const BROKERS: Kind = Kind {
    kind: "Deployment",
    plural: "deployments",
    name: "rolegate-broker",
    flag: "--broker-deployment",
};

impl AgentsAt {
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
            let started = container::started(&workload);
            let started = started.map_err(|error| format!("{reference}: {error}"))?;
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
            let started = container::started(&workload);
            let started = started.map_err(|error| format!("{reference}: {error}"))?;
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

/// Returns the workloads of a kind: the selected one, or all with the default name or label.
async fn workloads(
    cluster: &Cluster,
    kind: &Kind,
    namespace: &str,
    wanted: Option<&str>,
) -> Result<Vec<Value>, String> {
    let Kind {
        kind: what, name, ..
    } = kind;
    let all = cluster.workloads(what, kind.plural, namespace).await;
    let mut all = all.map_err(|error| of_cluster(error).to_string())?;
    all.retain(|workload| {
        let is_at = |path, name| workload.pointer(path).and_then(Value::as_str) == Some(name);
        match wanted {
            Some(wanted) => is_at("/metadata/name", wanted),
            None => is_at("/metadata/name", name) || is_at(LABEL, name),
        }
    });
    if all.is_empty() {
        let name = wanted.unwrap_or(name);
        let flag = kind.flag;
        return Err(format!(
            "cannot find {what} {name} in namespace {namespace}: set --agent-namespace and {flag}"
        ));
    }
    Ok(all)
}

fn reference(kind: &Kind, workload: &Value) -> WorkloadRef {
    let text = |path| workload.pointer(path).and_then(Value::as_str);
    let generation = workload.pointer("/metadata/generation");
    WorkloadRef {
        kind: kind.kind,
        namespace: text("/metadata/namespace").unwrap_or_default().to_owned(),
        name: text("/metadata/name").unwrap_or_default().to_owned(),
        generation: generation.and_then(Value::as_i64),
    }
}

/// Returns a sentence if pods may have other flags than the template, since they precede its last
/// change.
fn doubts(reference: &WorkloadRef, workload: &Value) -> Vec<String> {
    let number = |path| workload.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let all = number("/status/desiredNumberScheduled").max(number("/status/replicas"));
    let new = number("/status/updatedNumberScheduled").max(number("/status/updatedReplicas"));
    let seen = workload.pointer("/status/observedGeneration");
    let is_seen = seen.is_none() || seen.and_then(Value::as_i64) >= reference.generation;
    if all == 0 || (is_seen && new >= all) {
        return Vec::new();
    }
    let old = if is_seen { all - new } else { all };
    vec![format!(
        "{old} of {all} pods of {reference} precede its last change and may have other flags"
    )]
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
            let names = one.origin.workloads.iter().chain(&other.origin.workloads);
            let names: Vec<_> = names.map(ToString::to_string).collect();
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
    use serde_json::json;

    use super::*;

    #[test]
    fn the_namespace_of_a_broker_is_in_its_name() {
        for (url, expected) in [
            (
                "https://rolegate-broker.rolegate-system.svc:9443",
                Some("rolegate-system"),
            ),
            ("https://b.two.svc.cluster.local:1", Some("two")),
            ("https://localhost:9443", None),
            ("https://b.example.org:9443", None),
        ] {
            assert_eq!(namespace_of(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn pods_from_before_a_change_are_doubted() {
        let doubted = |generation: i64, status: Value| {
            let workload = json!({"metadata": {"name": "a", "namespace": "n", "generation": generation},
                "status": status});
            doubts(&reference(&AGENTS, &workload), &workload).len()
        };
        let status = |seen: i64, all: i64, new: i64| {
            json!({"observedGeneration": seen, "desiredNumberScheduled": all,
                "updatedNumberScheduled": new})
        };
        assert_eq!(doubted(2, status(2, 3, 3)), 0);
        assert_eq!(doubted(2, status(2, 3, 2)), 1);
        assert_eq!(doubted(2, status(1, 3, 3)), 1);
        assert_eq!(doubted(1, json!({})), 0);
        assert_eq!(doubted(1, json!({"replicas": 2, "updatedReplicas": 1})), 1);
    }
}
