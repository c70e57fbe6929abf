//! `rolegate policy explain`.

mod requested;
mod target;
mod verdict;

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use rolegate_inventory::load::Loaded;
use rolegate_policy::explain::{Explained, ExplainedPods, Outcome, explain_pods};
use rolegate_report::EXIT_FINDINGS;
use serde::Serialize;

use super::current::Current;
use super::errors::refuse_idle;
use super::files;
use super::flags::{ReadFlags, RulesFrom};
use crate::flags::name;
use crate::output::{self, Format, OutputFlags, Shown};

use requested::{RequestedPod, load};
use target::{Object, Target};
use verdict::Verdict;

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

Exit codes: 0 allowed, 1 failed, 3 no credentials, or at least one of several pods is denied, 64 invalid usage.")]
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
    let namespace = if arguments.all_namespaces {
        None
    } else {
        Some(current.objects.namespace(arguments.namespace.as_deref()))
    };
    current.add_users(false, namespace.as_deref()).await?;
    let loaded = current.load()?;
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
    current.require_base(&loaded, &verdicts(&explained), |loaded| {
        Ok(verdicts(&explain(loaded)))
    })?;
    for note in &loaded.notes {
        output::note(note);
    }
    output::answer(arguments.output.output, &explained, &loaded.basis)?;
    Ok(match explained.counts.denied {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_FINDINGS),
    })
}

/// Explains one pod, or the pods of a template.
async fn one(
    arguments: &ExplainArguments,
    object: Option<&Object<'_>>,
) -> anyhow::Result<ExitCode> {
    let Explanation {
        explained,
        loaded,
        asked,
    } = explanation(arguments, object).await?;
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
        ExitCode::from(EXIT_FINDINGS)
    })
}

/// An explanation, with the rules and the pod that it is about.
struct Explanation {
    explained: Explained,
    loaded: Loaded,
    asked: RequestedPod,
}

/// Loads the rules and the requested pod, and explains the decision.
async fn explanation(
    arguments: &ExplainArguments,
    object: Option<&Object<'_>>,
) -> anyhow::Result<Explanation> {
    let (current, asked) = load(arguments, object).await?;
    let loaded = current.load()?;
    refuse_idle(&[&loaded.idle])?;
    let now = Timestamp::now();
    let explained = asked.explained(&loaded, now)?;
    current.require_base(&loaded, &Verdict::from(&explained), |loaded| {
        Ok(Verdict::from(&asked.explained(loaded, now)?))
    })?;
    Ok(Explanation {
        explained,
        loaded,
        asked,
    })
}

/// Explains the decision about a pod of the cluster, for other commands.
///
/// # Errors
/// Returns an error for rules or a pod that cannot be read, or if the answer is not known.
pub(crate) async fn explain_pod(
    read: ReadFlags,
    namespace: String,
    name: &str,
) -> anyhow::Result<Explained> {
    let arguments = ExplainArguments {
        object: vec![format!("pod/{name}")],
        namespace: Some(namespace),
        all_namespaces: false,
        denied: false,
        role: None,
        service_account: String::new(),
        label: Vec::new(),
        external_id: None,
        session_name: None,
        from: RulesFrom {
            rules: Vec::new(),
            offline: false,
        },
        output: OutputFlags {
            output: Format::Text,
        },
        read,
    };
    let Target::One(pod) = Target::of(&arguments)? else {
        anyhow::bail!("{name} is not the name of a pod");
    };
    Ok(explanation(&arguments, Some(&pod)).await?.explained)
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
