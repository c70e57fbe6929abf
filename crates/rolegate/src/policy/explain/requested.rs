//! The pod that `rolegate policy explain` explains: an existing one, that of a template, or a
//! hypothetical one.

use std::sync::Arc;

use anyhow::{anyhow, bail};
use jiff::Timestamp;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::workload::Workload;
use rolegate_inventory::load::Loaded;
use rolegate_policy::check::{Creator, completed, creation_of, namespace_of};
use rolegate_policy::explain::{AskedPolicy, Explained, Question, Refusal, explain};
use serde_json::{Value, json};

use super::super::current::Current;
use super::super::errors::of_cluster;
use super::ExplainArguments;
use super::target::Object;

/// The name of a hypothetical pod.
const HYPOTHETICAL: &str = "hypothetical";

/// The requested pod among the objects.
pub(super) struct RequestedPod {
    /// The pod as it is or would be.
    object: Value,
    namespace: String,
    name: String,
    /// True if it exists, rather than being hypothetical.
    pub(super) exists: bool,
}

impl RequestedPod {
    /// Explains the pod.
    ///
    /// # Errors
    /// Returns an error if the pod is not among the objects.
    pub(super) fn explained(&self, loaded: &Loaded, now: Timestamp) -> anyhow::Result<Explained> {
        let (name, namespace) = (&self.name, &self.namespace);
        let mut workloads = loaded.workloads.iter();
        let found = workloads.find(|one| *one.name == **name && *one.namespace == **namespace);
        let mut workload = found
            .cloned()
            .ok_or_else(|| anyhow!("cannot find pod {name} in namespace {namespace}"))?;
        let web_identity = loaded.web_identity.iter().find(|one| {
            let unnamed = one.unnamed.iter().map(|unnamed| &unnamed.pod);
            let pod = one.asking.iter().chain(unnamed).next();
            pod.is_some_and(|pod| pod.name == workload.name && pod.namespace == workload.namespace)
        });
        let (policies, webhook) = evaluated_policies(loaded, &workload, &self.object, now);
        if !self.exists {
            // A hypothetical pod is shown without a name.
            workload.name = "".into();
        }
        Ok(explain(&Question {
            rules: &loaded.snapshot.rules,
            grants: &loaded.snapshot.grants,
            policies: &policies,
            workload: &workload,
            web_identity,
            admission: webhook.as_ref(),
            now,
        }))
    }
}

/// Loads the rules and the requested pod.
///
/// # Errors
/// Returns an error for rules or a pod that cannot be read.
pub(super) async fn load(
    arguments: &ExplainArguments,
    asked: Option<&Object<'_>>,
) -> anyhow::Result<(Current, RequestedPod)> {
    let mut current = Current::laid_over(&arguments.read, &arguments.from).await?;
    let objects = &mut current.objects;
    let namespace = objects.namespace(arguments.namespace.as_deref());
    let object = match asked {
        None => hypothetical(arguments, &namespace, &current.sources.deciding.keys),
        Some(asked) => {
            let Object { kind, name } = asked;
            let found = objects.take(|value| {
                let found = value.pointer("/metadata/name").and_then(Value::as_str);
                kind.is_of(value)
                    && found == Some(*name)
                    && namespace_of(value, "default") == namespace
            });
            let found = match (found, &current.cluster) {
                (Some(found), _) => found,
                (None, Some(cluster)) => {
                    let object = cluster.object(kind, &namespace, name).await;
                    object.map_err(of_cluster)?
                }
                (None, None) => {
                    let kind = kind.kind.to_lowercase();
                    bail!("cannot find {kind} {name} of namespace {namespace} in --rules");
                }
            };
            if kind.is_pod() {
                completed(&found, &namespace)
            } else {
                completed(&kind.pod_of(&found, HYPOTHETICAL, &namespace), &namespace)
            }
        }
    };
    current.objects.push(with_uid(object.clone()));
    let pod = asked.filter(|asked| asked.kind.is_pod());
    let asked = RequestedPod {
        object,
        namespace,
        name: pod.map_or(HYPOTHETICAL, |pod| pod.name).to_owned(),
        exists: pod.is_some(),
    };
    Ok((current, asked))
}

/// Adds a UID to a pod of a manifest, as existing pods have one.
fn with_uid(mut object: Value) -> Value {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.entry("uid").or_insert_with(|| HYPOTHETICAL.into());
    }
    object
}

/// Returns the hypothetical pod that the flags describe.
fn hypothetical(arguments: &ExplainArguments, namespace: &str, keys: &AnnotationKeys) -> Value {
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
    let labels: serde_json::Map<_, _> = arguments
        .label
        .iter()
        .cloned()
        .map(|(key, value)| (key, value.into()))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": HYPOTHETICAL,
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {"serviceAccountName": arguments.service_account, "containers": []},
    })
}

/// Evaluates Rego policies for admission and agents, and returns the denials at admission.
fn evaluated_policies(
    loaded: &Loaded,
    workload: &Workload,
    object: &Value,
    now: Timestamp,
) -> (Vec<AskedPolicy>, Option<Refusal>) {
    let mode = loaded.snapshot.config.modes[LayerId::Rego];
    if mode == Mode::Off {
        return (Vec::new(), None);
    }
    let policies = &loaded.snapshot.policies;
    let creator = Creator {
        user: String::new(),
        groups: Vec::new(),
    };
    let review = creation_of(object, &creator, &workload.namespace);
    let admission = policies.evaluate_review(&review, now);
    let agent = policies.evaluate_pod(workload, now);
    let mut all: std::collections::BTreeMap<Arc<str>, AskedPolicy> = Default::default();
    for (findings, is_gate) in [(&admission, true), (&agent, false)] {
        let denying = findings.denials.iter().map(|one| &one.policy);
        for id in findings.evaluated.iter().chain(denying) {
            let policy = all.entry(id.clone()).or_insert_with(|| AskedPolicy {
                name: loaded.names.shown(id).to_owned(),
                admission: false,
                agent: false,
                denials: Vec::new(),
            });
            if is_gate {
                policy.admission = true;
            } else {
                policy.agent = true;
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
    let refuses = mode == Mode::Enforce && !admission.is_allowed();
    let refusal = refuses.then(|| Refusal {
        denied_by: LayerId::Rego.into(),
        rule: loaded.names.in_sentence(&admission.rule()),
        reason: loaded.names.in_sentence(&admission.reason()),
    });
    (all.into_values().collect(), refusal)
}
