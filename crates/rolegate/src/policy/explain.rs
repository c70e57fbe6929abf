//! `rolegate policy explain`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use rolegate_core::layer::Mode;
use rolegate_core::workload::Workload;
use rolegate_policy::check::{Creator, creation_of};
use rolegate_policy::explain::{AskedPolicy, Outcome, Question, Refusal, explain};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::flags::{ReadFlags, Reading, RulesFrom, name};
use super::load::{Loaded, Objects};
use super::output::{self, Format};
use super::{REFUSED, files};
use crate::flags::invalid;

/// The name of a pod that is only thought of.
const IMAGINED: &str = "imagined";

/// What `--help` says first.
pub(super) const LONG_ABOUT: &str = "Tell why a pod may have its role, or may not, and what would change that.\n\n\
Shows what each layer said with the rule that decided, the session that would be asked of STS, which \
Rego policies are asked, and for a refusal by grants the smallest grant that is missing, ready to \
apply. Without a pod, the flags describe one that is only thought of.";

/// Arguments of `rolegate policy explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy explain pod/api-0 -n shop
  rolegate policy explain --role reader -n shop --service-account api --label app=api
  rolegate policy explain pod/api-0 -n shop --rules dump.yaml -o json

Exit codes: 0 allowed, 1 failed, 3 no credentials, 64 wrong usage.")]
pub(super) struct ExplainArguments {
    /// The pod, as pod/NAME
    #[arg(value_name = "pod/NAME", required_unless_present = "role", conflicts_with_all = ["role", "service_account", "label", "external_id", "session_name"])]
    pod: Option<String>,
    /// Namespace of the pod
    #[arg(short, long, value_name = "NAME", default_value = "default", value_parser = name)]
    namespace: String,
    /// Role that the pod would name: a name or an ARN
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Service account that the pod would have
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = name)]
    service_account: String,
    /// Label that the pod would have; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// External ID that the pod would name
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Session name that the pod would ask for
    #[arg(long, value_name = "NAME")]
    session_name: Option<String>,
    #[command(flatten)]
    from: RulesFrom,
    /// How the answer is written
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    read: ReadFlags,
}

#[cfg(test)]
impl ExplainArguments {
    pub(super) fn rules(&self) -> anyhow::Result<rolegate_core::config::RuleConfig> {
        self.read.reading().map(|reading| reading.flags)
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.is_empty() {
        return Err("write KEY=VALUE".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Explains.
pub(super) async fn run(arguments: ExplainArguments) -> anyhow::Result<ExitCode> {
    let reading = arguments.read.reading()?;
    let pod = arguments.pod.as_deref().map(pod_name).transpose()?;
    files::validate(&arguments.from.rules)?;
    let (loaded, object) = load(&arguments, pod, &reading).await?;
    for assumed in &loaded.assumed {
        output::note(assumed);
    }
    let name = pod.unwrap_or(IMAGINED);
    let mut workloads = loaded.workloads.iter();
    let found = workloads.find(|one| *one.name == *name && *one.namespace == *arguments.namespace);
    let mut workload = found.cloned().ok_or_else(|| {
        anyhow!(
            "there is no pod {name} in namespace {}",
            arguments.namespace
        )
    })?;
    let now = Timestamp::now();
    let web_identity = loaded.web_identity.iter().find(|one| {
        let unnamed = one.unnamed.iter().map(|unnamed| &unnamed.pod);
        let pod = one.asking.iter().chain(unnamed).next();
        pod.is_some_and(|pod| pod.name == workload.name && pod.namespace == workload.namespace)
    });
    let (policies, gate) = asked(&loaded, &workload, &object, now);
    if pod.is_none() {
        // Told as what it is.
        workload.name = "".into();
    }
    let explained = explain(&Question {
        rules: &loaded.snapshot.rules,
        grants: &loaded.snapshot.grants,
        policies: &policies,
        workload: &workload,
        web_identity,
        gate: gate.as_ref(),
        now,
    });
    output::answer(arguments.output, &explained, || explained.text())?;
    let by_token = || {
        let mut roles = explained.web_identity.iter();
        explained.decision == Outcome::NoRole && roles.any(|one| one.role.is_some())
    };
    let has_role = explained.decision == Outcome::Allowed || by_token();
    // A pod that is there is past the gate.
    let fine = has_role && (pod.is_some() || gate.is_none());
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

fn pod_name(text: &str) -> anyhow::Result<&str> {
    let name = match text.split_once('/') {
        None => text,
        Some(("pod" | "pods" | "po", name)) => name,
        Some((kind, _)) => {
            return Err(invalid(format!(
                "{kind} is not explained: name a pod, as pod/NAME"
            )));
        }
    };
    super::flags::name(name).map_err(|error| invalid(format!("pod/NAME: {error}")))?;
    Ok(name)
}

async fn load(
    arguments: &ExplainArguments,
    pod: Option<&str>,
    reading: &Reading,
) -> anyhow::Result<(Loaded, Value)> {
    let client = arguments.read.client();
    let namespace = &arguments.namespace;
    let mut objects = Objects::from(&arguments.from.rules, &client, reading).await?;
    let object = match pod {
        None => imagined(arguments, reading),
        Some(name) if arguments.from.rules.is_empty() => {
            let cluster = Cluster::connect(&client).await?;
            cluster.pod(namespace, name).await?
        }
        Some(name) => {
            let found = objects.take(|value| {
                let text = |pointer| value.pointer(pointer).and_then(Value::as_str);
                text("/kind") == Some("Pod")
                    && text("/metadata/name") == Some(name)
                    && text("/metadata/namespace").unwrap_or("default") == namespace
            });
            let Some(found) = found else {
                bail!("there is no pod {name} of namespace {namespace} in --rules");
            };
            found
        }
    };
    objects.push(with_uid(object.clone(), namespace));
    Ok((objects.load(reading)?, object))
}

/// A pod of a manifest has no UID, and pods that exist have.
fn with_uid(mut object: Value, namespace: &str) -> Value {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.entry("uid").or_insert_with(|| IMAGINED.into());
        metadata
            .entry("namespace")
            .or_insert_with(|| namespace.into());
    }
    object
}

/// The pod that the flags describe.
fn imagined(arguments: &ExplainArguments, reading: &Reading) -> Value {
    let keys = &reading.keys;
    let annotations = [
        (keys.role.as_str(), &arguments.role),
        (keys.external_id.as_str(), &arguments.external_id),
        (
            rolegate_core::annotation::SESSION_NAME,
            &arguments.session_name,
        ),
    ];
    let annotations: serde_json::Map<_, _> = annotations
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.as_deref()?.into())))
        .collect();
    let labels = arguments.label.iter().cloned();
    let labels: serde_json::Map<_, _> = labels.map(|(key, value)| (key, value.into())).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": IMAGINED,
            "namespace": arguments.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {"serviceAccountName": arguments.service_account, "containers": []},
    })
}

/// What Rego policies say at the gate and at doors, and what refuses at the gate.
fn asked(
    loaded: &Loaded,
    workload: &Workload,
    object: &Value,
    now: Timestamp,
) -> (Vec<AskedPolicy>, Option<Refusal>) {
    let mode = loaded.snapshot.config.modes.rego;
    if mode == Mode::Off {
        return (Vec::new(), None);
    }
    let policies = &loaded.snapshot.policies;
    let creator = Creator {
        user: String::new(),
        groups: Vec::new(),
    };
    let review = creation_of(object, &creator, &workload.namespace);
    let gate = policies.judge_review(&review, now);
    let door = policies.judge_pod(workload, now);
    let mut all: std::collections::BTreeMap<Arc<str>, AskedPolicy> = Default::default();
    for (findings, is_gate) in [(&gate, true), (&door, false)] {
        let denying = findings.denials.iter().map(|one| &one.policy);
        for id in findings.asked.iter().chain(denying) {
            let policy = all.entry(id.clone()).or_insert_with(|| AskedPolicy {
                name: id.to_string(),
                gate: false,
                door: false,
                denials: Vec::new(),
            });
            if is_gate {
                policy.gate = true;
            } else {
                policy.door = true;
            }
        }
        for denial in &findings.denials {
            if let Some(policy) = all.get_mut(&denial.policy)
                && !policy.denials.contains(&denial.message)
            {
                policy.denials.push(denial.message.clone());
            }
        }
    }
    let refuses = mode == Mode::Enforce && !gate.is_allowed();
    let refusal = refuses.then(|| Refusal {
        layer: "rego".into(),
        rule: gate.rule(),
        reason: gate.reason(),
    });
    (all.into_values().collect(), refusal)
}
