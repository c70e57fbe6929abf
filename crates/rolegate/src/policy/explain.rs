//! `rolegate policy explain`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::workload::Workload;
use rolegate_policy::check::{Creator, completed, creation_of, namespace_of};
use rolegate_policy::explain::{
    AskedPolicy, Explained, ExplainedPods, Outcome, Question, Refusal, explain, explain_pods,
};
use rolegate_review::ViolationSource;
use serde::Serialize;
use serde_json::{Value, json};

use super::flags::{ReadFlags, RulesFrom, name};
use super::in_force::refuse_idle;
use super::kinds::Kind;
use super::load::{Current, Loaded};
use super::{REFUSED, files};
use crate::flags::invalid;
use crate::output::{self, OutputFlags, Shown};

/// The name of a hypothetical pod.
const HYPOTHETICAL: &str = "hypothetical";

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Explain why a pod may or may not have its role, and what would change that.\n\n\
Shows each layer's result with the rule that decided, the session that would be requested from STS, the \
Rego policies that are evaluated and, for a denial by grants, the minimal missing grant, ready to \
apply. The output ends with the rules in force: without a RolegateConfig these are the flags of \
the agents' DaemonSet, or of the brokers' Deployment. For a Deployment or similar kind, it explains the pods of its template. With --role and without \
an object, the flags describe a hypothetical pod. -A explains all pods and --denied \
all denied pods, one line each.";

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
    /// Pod, or object that creates pods, in kubectl's syntax: NAME, pod/NAME, pod NAME, deploy/NAME; or pods for all pods of the namespace
    #[arg(value_name = "OBJECT", num_args = 0..=2, conflicts_with_all = ["role", "service_account", "label", "external_id", "session_name"])]
    object: Vec<String>,
    /// Namespace of the pod [default: that of the kubeconfig's context, or default without a cluster]
    #[arg(short, long, value_name = "NAME", value_parser = name, conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Explain the pods of all namespaces
    #[arg(short = 'A', long, conflicts_with = "role")]
    all_namespaces: bool,
    /// Explain only pods that are denied their role
    #[arg(long, conflicts_with = "role")]
    denied: bool,
    /// Role that the pod would request, as a name or an ARN
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Service account that the pod would have
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = name)]
    service_account: String,
    /// Label that the pod would have. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// External ID that the pod would request
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Session name that the pod would request
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

/// Runs the command.
pub(super) async fn run(arguments: ExplainArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    let asked = Target::of(&arguments)?;
    files::validate(&arguments.from.rules)?;
    match asked {
        Target::Pods => pods(&arguments).await,
        Target::One(object) => one(&arguments, Some(&object)).await,
        Target::Hypothetical => one(&arguments, None).await,
    }
}

/// Explains the pods of a namespace or of all namespaces.
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

/// Explains one pod, or the pods of a template.
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
    // An existing pod has passed admission.
    let fine = has_role && (asked.exists || explained.admission.is_none());
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
    /// The name of the object; `None` for a hypothetical pod.
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

/// The parts of an explanation that must not depend on an unknown base ARN.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    decision: Outcome,
    role_arn: Option<String>,
    /// The layers that deny: at agents, at admission, and for each web identity role.
    refusals: Vec<Option<ViolationSource>>,
    /// The layers, and whether they allow.
    layers: Vec<(LayerId, bool)>,
}

impl From<&Explained> for Verdict {
    fn from(explained: &Explained) -> Self {
        let tokens = explained.web_identity.iter().map(|one| &one.refusal);
        let refusals = [&explained.denial, &explained.admission]
            .into_iter()
            .chain(tokens);
        let layers = explained.layers.iter();
        Self {
            decision: explained.decision,
            role_arn: explained.session.as_ref().map(|one| one.role_arn.clone()),
            refusals: refusals
                .map(|refusal| refusal.as_ref().map(|one| one.denied_by))
                .collect(),
            layers: layers.map(|one| (one.layer, one.allows)).collect(),
        }
    }
}

/// The requested pod among the objects.
struct RequestedPod {
    /// The pod as it is or would be.
    object: Value,
    namespace: String,
    name: String,
    /// True if it exists, rather than being hypothetical.
    exists: bool,
}

impl RequestedPod {
    fn explained(&self, loaded: &Loaded, now: Timestamp) -> anyhow::Result<Explained> {
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
        let (policies, gate) = evaluated_policies(loaded, &workload, &self.object, now);
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
            admission: gate.as_ref(),
            now,
        }))
    }
}

/// The object that the command explains.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    /// All pods of a namespace or of the cluster.
    Pods,
    /// One object.
    One(Object<'a>),
    /// A hypothetical pod that flags describe.
    Hypothetical,
}

/// The named object.
#[derive(Debug, PartialEq, Eq)]
struct Object<'a> {
    kind: &'static Kind,
    name: &'a str,
}

impl<'a> Target<'a> {
    fn of(arguments: &'a ExplainArguments) -> anyhow::Result<Self> {
        let lists = arguments.all_namespaces || arguments.denied;
        let texts: Vec<_> = arguments.object.iter().map(String::as_str).collect();
        let asked = match Self::parse(&texts)? {
            Some(asked) => asked,
            None if arguments.role.is_some() => Self::Hypothetical,
            None if lists => Self::Pods,
            None => {
                return Err(invalid(
                    "an object is required, such as pod/NAME or deploy/NAME; or --role for a hypothetical pod\
                     , -A for all pods, --denied for denied pods",
                ));
            }
        };
        match &asked {
            Self::One(object) if lists => {
                let object = object.shown();
                Err(invalid(format!(
                    "-A and --denied select all pods: omit them or {object}"
                )))
            }
            _ => Ok(asked),
        }
    }

    /// Parses the words. Returns `None` if there are none.
    fn parse(words: &[&'a str]) -> anyhow::Result<Option<Self>> {
        let (kind, name) = match words {
            [] => return Ok(None),
            [word] => match (word.split_once('/'), Kind::named(word)) {
                (Some(parts), _) => parts,
                (None, Some(kind)) if kind.is_pod() => return Ok(Some(Self::Pods)),
                (None, Some(kind)) => {
                    let kind = kind.kind.to_lowercase();
                    let why =
                        format!("{word} is a kind: write {kind}/NAME, or pod/{word} for a pod");
                    return Err(invalid(why));
                }
                (None, None) => ("pod", *word),
            },
            [kind, name, ..] => (*kind, *name),
        };
        let kind = Kind::named(kind).ok_or_else(|| {
            let names = Kind::names();
            invalid(format!("{kind} does not create pods: use one of {names}"))
        })?;
        super::flags::name(name).map_err(|error| invalid(format!("NAME: {error}")))?;
        Ok(Some(Self::One(Object { kind, name })))
    }
}

impl Object<'_> {
    /// Formats the object in kubectl's syntax.
    fn shown(&self) -> String {
        let kind = self.kind.kind.to_lowercase();
        match self.kind.group {
            "" => format!("{kind}/{}", self.name),
            group => format!("{kind}.{group}/{}", self.name),
        }
    }
}

/// Loads the rules and the requested pod.
async fn load(
    arguments: &ExplainArguments,
    asked: Option<&Object<'_>>,
) -> anyhow::Result<(Current, RequestedPod)> {
    let mut current = Current::laid_over(&arguments.read, &arguments.from).await?;
    let objects = &mut current.objects;
    let namespace = objects.namespace(arguments.namespace.as_deref());
    let object = match asked {
        None => hypothetical(arguments, &namespace, &current.sources.deciding()?.keys),
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
                    bail!("cannot find {kind} {name} of namespace {namespace} in --rules");
                }
            };
            match kind.is_pod() {
                true => completed(&found, &namespace),
                false => completed(&kind.pod_of(&found, HYPOTHETICAL, &namespace), &namespace),
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
    let labels = arguments.label.iter().cloned();
    let labels: serde_json::Map<_, _> = labels.map(|(key, value)| (key, value.into())).collect();
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
            match Target::parse(words).unwrap() {
                Some(Target::One(object)) => assert_eq!(object.shown(), expected),
                other => panic!("{words:?}: {other:?}"),
            }
        }
        assert_eq!(Target::parse(&["pods"]).unwrap(), Some(Target::Pods));
        assert_eq!(Target::parse(&[]).unwrap(), None);
        for wrong in [&["deploy"][..], &["service/x"], &["pod", "a/b"], &["pod/"]] {
            assert!(Target::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
