//! `rolegate policy explain`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::layer::Mode;
use rolegate_core::workload::Workload;
use rolegate_policy::check::{Creator, completed, creation_of, namespace_of};
use rolegate_policy::explain::{
    AskedPolicy, Explained, ExplainedPods, Outcome, Question, Refusal, explain, explain_pods,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::flags::{ReadFlags, RulesFrom, name};
use super::in_force::refuse_idle;
use super::kinds::Kind;
use super::load::{Current, Loaded};
use super::{REFUSED, files};
use crate::flags::invalid;
use crate::output::{self, OutputFlags, Shown};

/// The name of a pod that is only thought of.
const IMAGINED: &str = "imagined";

/// What `--help` says first.
pub(super) const LONG_ABOUT: &str = "Tell why a pod may have its role, or may not, and what would change that.\n\n\
Shows what each layer said with the rule that decided, the session that would be asked of STS, which \
Rego policies are asked, and for a refusal by grants the smallest grant that is missing, ready to \
apply. The answer ends with the rules in force: without a RolegateConfig these are the flags of \
the agents' DaemonSet, or of the brokers' Deployment. For a Deployment and its like the pods of its template are explained. With --role and without \
an object, the flags describe a pod that is only thought of. With -A or --denied all pods are explained, \
or those that are refused, a line each.";

/// Arguments of `rolegate policy explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy explain pod/api-0 -n shop
  rolegate policy explain deploy/api
  rolegate policy explain -A --denied
  rolegate policy explain --role reader -n shop --service-account api --label app=api
  rolegate policy explain pod/api-0 -n shop --rules dump.yaml --offline -o json

Exit codes: 0 allowed, 1 failed, 3 no credentials, or with several pods one that is refused, 64 wrong usage.")]
pub(super) struct ExplainArguments {
    /// The pod, or what makes pods, as kubectl takes it: NAME, pod/NAME, pod NAME, deploy/NAME; or pods for all of the namespace
    #[arg(value_name = "OBJECT", num_args = 0..=2, conflicts_with_all = ["role", "service_account", "label", "external_id", "session_name"])]
    object: Vec<String>,
    /// Namespace of the pod; by default that of the kubeconfig's context, and default without a cluster
    #[arg(short, long, value_name = "NAME", value_parser = name, conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Explain the pods of all namespaces
    #[arg(short = 'A', long, conflicts_with = "role")]
    all_namespaces: bool,
    /// Explain the pods that are refused their role, and no others
    #[arg(long, conflicts_with = "role")]
    denied: bool,
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
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    read: ReadFlags,
}

#[cfg(test)]
impl ExplainArguments {
    pub(super) fn rules(&self) -> anyhow::Result<rolegate_core::config::RuleConfig> {
        Ok(self.read.own()?.flags.validated()?.flags)
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
    arguments.read.own()?;
    let asked = Asked::of(&arguments)?;
    files::validate(&arguments.from.rules)?;
    match asked {
        Asked::Pods => pods(&arguments).await,
        Asked::One(object) => one(&arguments, Some(&object)).await,
        Asked::Imagined => one(&arguments, None).await,
    }
}

/// Explains the pods of a namespace or of all.
async fn pods(arguments: &ExplainArguments) -> anyhow::Result<ExitCode> {
    let mut current = Current::laid_over(&arguments.read, &arguments.from).await?;
    let namespace = match arguments.all_namespaces {
        true => None,
        false => Some(current.objects.namespace(arguments.namespace.as_deref())),
    };
    current.add_users(false, namespace.as_deref()).await?;
    let loaded = current.objects.load(&current.sources)?;
    refuse_idle(&[&loaded.idle])?;
    let now = Timestamp::now();
    let explain = |loaded: &Loaded| {
        let rules = &loaded.snapshot;
        let (all, denied) = (&loaded.workloads, arguments.denied);
        explain_pods(&rules.rules, &rules.grants, all, denied, now)
    };
    let verdicts = |explained: &ExplainedPods| -> Vec<_> {
        let items = explained.items.iter();
        items
            .map(|one| (Verdict::from(one), one.workload.clone()))
            .collect()
    };
    let explained = explain(&loaded);
    current.demand_base(&loaded, &verdicts(&explained), |loaded| {
        Ok(verdicts(&explain(loaded)))
    })?;
    for note in &loaded.notes {
        output::note(note);
    }
    output::answer(arguments.output.output, &explained, &loaded.basis)?;
    Ok(match explained.counts.denied {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(REFUSED),
    })
}

/// Explains one pod, or those of a template.
async fn one(
    arguments: &ExplainArguments,
    object: Option<&Object<'_>>,
) -> anyhow::Result<ExitCode> {
    let (current, asked) = load(arguments, object).await?;
    let loaded = current.objects.load(&current.sources)?;
    refuse_idle(&[&loaded.idle])?;
    let now = Timestamp::now();
    let explained = asked.explained(&loaded, now)?;
    current.demand_base(&loaded, &Verdict::from(&explained), |loaded| {
        Ok(Verdict::from(&asked.explained(loaded, now)?))
    })?;
    for note in &loaded.notes {
        output::note(note);
    }
    let answer = Answer {
        explained,
        name: object.map(Object::shown),
    };
    output::answer(arguments.output.output, &answer, &loaded.basis)?;
    let explained = &answer.explained;
    let by_token = || {
        let mut roles = explained.web_identity.iter();
        explained.decision == Outcome::NoRole && roles.any(|one| one.role.is_some())
    };
    let has_role = explained.decision == Outcome::Allowed || by_token();
    // A pod that is there is past the gate.
    let fine = has_role && (asked.is_there || explained.gate.is_none());
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

/// The explanation of one object.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    explained: Explained,
    /// Of the object; none of a pod that is only thought of.
    #[serde(skip)]
    name: Option<String>,
}

impl Shown for Answer {
    fn text(&self, _is_wide: bool) -> String {
        self.explained.text()
    }

    fn names(&self) -> Vec<String> {
        self.name.iter().cloned().collect()
    }
}

impl Shown for ExplainedPods {
    fn text(&self, is_wide: bool) -> String {
        Self::text(self, is_wide)
    }

    fn names(&self) -> Vec<String> {
        let pods = self.items.iter().map(|one| &one.workload.name);
        pods.map(|name| format!("pod/{name}")).collect()
    }
}

/// What of an explanation must not depend on a base ARN that is not known.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    decision: Outcome,
    role_arn: Option<String>,
    /// The layers that refuse: for doors, at the gate, and of each role of web identity.
    refusals: Vec<Option<String>>,
    /// The layers, and whether they allow.
    layers: Vec<(String, bool)>,
}

impl From<&Explained> for Verdict {
    fn from(explained: &Explained) -> Self {
        let tokens = explained.web_identity.iter().map(|one| &one.refusal);
        let refusals = [&explained.denial, &explained.gate]
            .into_iter()
            .chain(tokens);
        let layers = explained.layers.iter();
        Self {
            decision: explained.decision,
            role_arn: explained.session.as_ref().map(|one| one.role_arn.clone()),
            refusals: refusals
                .map(|refusal| refusal.as_ref().map(|one| one.layer.clone()))
                .collect(),
            layers: layers.map(|one| (one.layer.clone(), one.allows)).collect(),
        }
    }
}

/// The pod that is asked about among the objects.
struct AskedPod {
    /// As it is or would be.
    object: Value,
    namespace: String,
    name: String,
    /// Whether it is there, and not only thought of.
    is_there: bool,
}

impl AskedPod {
    fn explained(&self, loaded: &Loaded, now: Timestamp) -> anyhow::Result<Explained> {
        let (name, namespace) = (&self.name, &self.namespace);
        let mut workloads = loaded.workloads.iter();
        let found = workloads.find(|one| *one.name == **name && *one.namespace == **namespace);
        let mut workload = found
            .cloned()
            .ok_or_else(|| anyhow!("there is no pod {name} in namespace {namespace}"))?;
        let web_identity = loaded.web_identity.iter().find(|one| {
            let unnamed = one.unnamed.iter().map(|unnamed| &unnamed.pod);
            let pod = one.asking.iter().chain(unnamed).next();
            pod.is_some_and(|pod| pod.name == workload.name && pod.namespace == workload.namespace)
        });
        let (policies, gate) = asked_policies(loaded, &workload, &self.object, now);
        if !self.is_there {
            // Told as what it is.
            workload.name = "".into();
        }
        Ok(explain(&Question {
            rules: &loaded.snapshot.rules,
            grants: &loaded.snapshot.grants,
            policies: &policies,
            workload: &workload,
            web_identity,
            gate: gate.as_ref(),
            now,
        }))
    }
}

/// What is asked about.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    /// All pods of a namespace or of the cluster.
    Pods,
    /// One object.
    One(Object<'a>),
    /// A pod that flags describe.
    Imagined,
}

/// An object that is asked about.
#[derive(Debug, PartialEq, Eq)]
struct Object<'a> {
    kind: &'static Kind,
    name: &'a str,
}

impl<'a> Asked<'a> {
    fn of(arguments: &'a ExplainArguments) -> anyhow::Result<Self> {
        let lists = arguments.all_namespaces || arguments.denied;
        let texts: Vec<_> = arguments.object.iter().map(String::as_str).collect();
        let asked = match Self::parse(&texts)? {
            Some(asked) => asked,
            None if arguments.role.is_some() => Self::Imagined,
            None if lists => Self::Pods,
            None => {
                return Err(invalid(
                    "an object is required, such as pod/NAME or deploy/NAME; or --role for a pod \
                     that is only thought of, -A for all pods, --denied for those that are refused",
                ));
            }
        };
        match &asked {
            Self::One(object) if lists => {
                let object = object.shown();
                Err(invalid(format!(
                    "-A and --denied are for all pods: leave them or {object} out"
                )))
            }
            _ => Ok(asked),
        }
    }

    /// What words say; nothing where there are none.
    fn parse(words: &[&'a str]) -> anyhow::Result<Option<Self>> {
        let (kind, name) = match words {
            [] => return Ok(None),
            [word] => match (word.split_once('/'), Kind::named(word)) {
                (Some(parts), _) => parts,
                (None, Some(kind)) if kind.is_pod() => return Ok(Some(Self::Pods)),
                (None, Some(kind)) => {
                    let kind = kind.kind.to_lowercase();
                    let why =
                        format!("{word} is a kind: name one as {kind}/NAME, a pod as pod/{word}");
                    return Err(invalid(why));
                }
                (None, None) => ("pod", *word),
            },
            [kind, name, ..] => (*kind, *name),
        };
        let kind = Kind::named(kind).ok_or_else(|| {
            let names = Kind::names();
            invalid(format!(
                "{kind} makes no pods that could be explained: name one of {names}"
            ))
        })?;
        super::flags::name(name).map_err(|error| invalid(format!("NAME: {error}")))?;
        Ok(Some(Self::One(Object { kind, name })))
    }
}

impl Object<'_> {
    /// As kubectl writes it.
    fn shown(&self) -> String {
        let kind = self.kind.kind.to_lowercase();
        match self.kind.group {
            "" => format!("{kind}/{}", self.name),
            group => format!("{kind}.{group}/{}", self.name),
        }
    }
}

/// The rules with the pod that is asked about among them.
async fn load(
    arguments: &ExplainArguments,
    asked: Option<&Object<'_>>,
) -> anyhow::Result<(Current, AskedPod)> {
    let mut current = Current::laid_over(&arguments.read, &arguments.from).await?;
    let objects = &mut current.objects;
    let namespace = objects.namespace(arguments.namespace.as_deref());
    let object = match asked {
        None => imagined(arguments, &namespace, &current.sources.deciding()?.keys),
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
                (None, Some(cluster)) => cluster.object(kind, &namespace, name).await?,
                (None, None) => {
                    let kind = kind.kind.to_lowercase();
                    bail!("there is no {kind} {name} of namespace {namespace} in --rules");
                }
            };
            match kind.is_pod() {
                true => completed(&found, &namespace),
                false => completed(&kind.pod_of(&found, IMAGINED, &namespace), &namespace),
            }
        }
    };
    current.objects.push(with_uid(object.clone()));
    let pod = asked.filter(|asked| asked.kind.is_pod());
    let asked = AskedPod {
        object,
        namespace,
        name: pod.map_or(IMAGINED, |pod| pod.name).to_owned(),
        is_there: pod.is_some(),
    };
    Ok((current, asked))
}

/// A pod of a manifest has no UID, and pods that exist have.
fn with_uid(mut object: Value) -> Value {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.entry("uid").or_insert_with(|| IMAGINED.into());
    }
    object
}

/// The pod that the flags describe.
fn imagined(arguments: &ExplainArguments, namespace: &str, keys: &AnnotationKeys) -> Value {
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
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {"serviceAccountName": arguments.service_account, "containers": []},
    })
}

/// What Rego policies say at the gate and at doors, and what refuses at the gate.
fn asked_policies(
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
                name: loaded.names.shown(id).to_owned(),
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
        rule: loaded.names.in_sentence(&gate.rule()),
        reason: loaded.names.in_sentence(&gate.reason()),
    });
    (all.into_values().collect(), refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_for_kubectl() {
        for (words, expected) in [
            (&["x"][..], "pod/x"),
            (&["pod/x"], "pod/x"),
            (&["po", "x"], "pod/x"),
            (&["deploy/x"], "deployment.apps/x"),
            (&["deployments", "x"], "deployment.apps/x"),
            (&["sts/x"], "statefulset.apps/x"),
            (&["ds/x"], "daemonset.apps/x"),
            (&["job/x"], "job.batch/x"),
            (&["cronjob/x"], "cronjob.batch/x"),
        ] {
            match Asked::parse(words).unwrap() {
                Some(Asked::One(object)) => assert_eq!(object.shown(), expected),
                other => panic!("{words:?}: {other:?}"),
            }
        }
        assert_eq!(Asked::parse(&["pods"]).unwrap(), Some(Asked::Pods));
        assert_eq!(Asked::parse(&[]).unwrap(), None);
        for wrong in [&["deploy"][..], &["service/x"], &["pod", "a/b"], &["pod/"]] {
            assert!(Asked::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
