//! The flags of the processes that decide in a cluster: those of the agents' DaemonSets or, if
//! agents use a broker, of the brokers' Deployments.

use clap::Args;
use http::Uri;
use rolegate_core::text::plain;
use rolegate_policy::basis::WorkloadRef;
use serde_json::Value;

use super::cluster::Cluster;
use super::flags::name;
use crate::cli::Command;
use crate::container_flags::{self, UnknownFlag};
use crate::deciding_flags::DecidingFlags;

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

/// The flags of the processes that decide, if known.
#[derive(Debug, Clone)]
pub(super) enum Agents {
    /// The flags.
    Known(Box<AgentFlags>),
    /// The flags are unknown, for the given reason.
    Unknown(String),
}

/// The flags of the processes that decide.
#[derive(Debug, Clone)]
pub(super) struct AgentFlags {
    /// The flags.
    pub(super) flags: DecidingFlags,
    /// The flags whose values are from other objects.
    pub(super) unknown: Vec<UnknownFlag>,
    /// The workloads with these flags.
    pub(super) workloads: Vec<WorkloadRef>,
    /// Sentences about reasons to doubt the flags.
    pub(super) doubts: Vec<String>,
}

impl AgentFlags {
    /// Returns the flags of one workload.
    fn of(
        reference: WorkloadRef,
        workload: &Value,
        flags: anyhow::Result<DecidingFlags>,
        unknown: Vec<UnknownFlag>,
    ) -> Result<Self, String> {
        Ok(Self {
            flags: flags.map_err(|error| format!("{reference}: {error}"))?,
            unknown,
            doubts: doubts(&reference, workload),
            workloads: vec![reference],
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
    pub(super) async fn read(&self, cluster: &Cluster) -> Agents {
        match self.agents(cluster).await {
            Ok(flags) => Agents::Known(Box::new(flags)),
            // The list contains the values of the pod template.
            Err(why) => Agents::Unknown(plain(&why)),
        }
    }

    async fn agents(&self, cluster: &Cluster) -> Result<AgentFlags, String> {
        let namespace = &self.agent_namespace;
        let wanted = self.agent_daemonset.as_deref();
        let mut found = Vec::new();
        for workload in workloads(cluster, &AGENTS, namespace, wanted).await? {
            let reference = reference(&AGENTS, &workload);
            let started = container_flags::started(&workload);
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
                None => found.push(AgentFlags::of(
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

    async fn brokers(&self, cluster: &Cluster, namespace: &str) -> Result<AgentFlags, String> {
        let wanted = self.broker_deployment.as_deref();
        let mut found = Vec::new();
        for workload in workloads(cluster, &BROKERS, namespace, wanted).await? {
            let reference = reference(&BROKERS, &workload);
            let started = container_flags::started(&workload);
            let started = started.map_err(|error| format!("{reference}: {error}"))?;
            let Command::Broker(flags) = started.command else {
                return Err(format!("{reference} does not run a broker"));
            };
            let unknown = started.unknown.into_iter().collect();
            found.push(AgentFlags::of(
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
    let mut all = all.map_err(|error| error.to_string())?;
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
fn agreed(found: Vec<AgentFlags>, kind: &Kind) -> Result<AgentFlags, String> {
    let mut found = found.into_iter();
    let Some(mut one) = found.next() else {
        return Err(format!("found no {}", kind.kind));
    };
    let validated = |one: &AgentFlags| {
        let names: Vec<_> = one.workloads.iter().map(ToString::to_string).collect();
        let validated = one.flags.validated();
        validated.map_err(|error| format!("{}: {error}", names.join(", ")))
    };
    let first = validated(&one)?;
    for other in found {
        if validated(&other)? != first || other.unknown != one.unknown {
            let names = one.workloads.iter().chain(&other.workloads);
            let names: Vec<_> = names.map(ToString::to_string).collect();
            let flag = kind.flag;
            return Err(format!(
                "{} have different flags: select one with {flag}",
                names.join(" and ")
            ));
        }
        one.doubts.extend(other.doubts);
        let known = other.workloads.into_iter();
        let news: Vec<_> = known
            .filter(|other| !one.workloads.contains(other))
            .collect();
        one.workloads.extend(news);
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
