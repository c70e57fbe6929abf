//! `rolegate policy simulate`.

mod proposed;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_inventory::basis::{Basis, Source};
use rolegate_inventory::load::{Assumed, Loaded};
use rolegate_policy::simulate::Simulated;
use rolegate_report::EXIT_FINDINGS;
use serde::Serialize;
use serde_json::Value;

use super::current::{Current, load, require_base};
use super::errors::refuse_idle;
use super::files;
use super::flags::{ReadFlags, ScopeFlags};
use crate::output::{self, OutputFlags, RestsOn, Shown};

use proposed::{Proposed, enforced};

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Show which running pods a rule change denies, allows or gives another session, and which \
the webhook would deny when they are re-created, before the change is applied.\n\n\
The objects of --rules (grants, configuration, namespaces, ConfigMaps of policies) are overlaid on \
the existing ones: an object with the same name is replaced, others stay. Pods and current rules are those of the \
cluster, or of manifests with -f, such as `kubectl get \
pods,namespaces,rolegrants,rolegateconfigs -A -o yaml`.\n\n\
The change is evaluated twice: as configured, and as if layers were enforced that are in audit mode, \
or off although --rules contains rules for them. Pods that lose a role in either case are reported.";

/// Arguments of `rolegate policy simulate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy simulate --rules grants.yaml
  rolegate policy simulate --rules rules/ --replace -o json
  rolegate policy simulate --rules grants.yaml -f dump.yaml

Exit codes: 0 no running pod loses its role, 1 failed, 3 a pod loses it or is denied when re-created, as \
configured or if the layers were enforced, 64 invalid usage.")]
pub(super) struct SimulateArguments {
    /// Manifest, directory or - with the changed rules. May be repeated
    #[arg(long, value_name = "PATH", required = true)]
    rules: Vec<PathBuf>,
    /// Manifest or directory with the current rules and pods to use instead of the cluster. May be repeated
    #[arg(short, long, value_name = "PATH")]
    filename: Vec<PathBuf>,
    /// Remove grants, configuration and ConfigMaps that --rules does not contain
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    read: ReadFlags,
}

/// Runs the command.
pub(super) async fn run(arguments: SimulateArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    files::validate(arguments.rules.iter().chain(&arguments.filename))?;
    let change = files::objects(&arguments.rules)?;
    let mut current = Current::read(&arguments.read, &arguments.filename, &change).await?;
    let overlaid = |current: &Current| current.objects.overlaid(&change, arguments.replace);
    let now_and_then = |current: &Current| -> anyhow::Result<(Loaded, Loaded)> {
        let after = load(&overlaid(current), &current.sources, &Assumed::default());
        let before = current.load();
        // An error in the change is reported before missing current rules.
        let after = after?;
        Ok((before?, after))
    };
    let (before, after) = now_and_then(&current)?;
    refuse_idle(&[&before.idle, &after.idle])?;
    // Policies may ask about everything of a pod.
    let enforced = enforced(&after, &change);
    let whole = before.has_admission_policies()
        || after.has_admission_policies()
        || enforced.modes[LayerId::Rego] != Mode::Off;
    current
        .add_users(whole, arguments.scope.namespace.as_deref())
        .await?;
    let (before, after) = now_and_then(&current)?;
    for (when, notes) in [("now", &before.notes), ("then", &after.notes)] {
        for note in notes {
            output::note(&format!("{when}: {note}"));
        }
    }
    if after.has_admission_policies() {
        output::note(
            "policies for admission are evaluated for pods only: check Deployments and similar \
             kinds with `rolegate policy check`",
        );
    }
    let proposed = Proposed {
        current: &current,
        after: overlaid(&current),
        enforced,
        now: Timestamp::now(),
    };
    let simulated = proposed.simulated(None)?;
    let sources = &current.sources;
    if after.lacks_base(sources) && matches!(after.basis.source, Source::RolegateConfig { .. }) {
        output::note(
            "then: the RolegateConfig has no baseRoleArn, so the webhook refuses every role that is \
             written as a name",
        );
    }
    // Both sides are judged with each base ARN, so one comparison is enough.
    let sides = [&before, &after];
    if let Some(loaded) = sides.iter().find(|loaded| loaded.lacks_base(sources)) {
        let judged = proposed.after.values();
        require_base(loaded, sources, judged, &simulated, |base| {
            proposed.simulated(Some(&base))
        })?;
    }
    let rules = NowAndThen {
        now: before.basis,
        then: after.basis,
    };
    output::answer(arguments.output.output, &simulated, &rules)?;
    Ok(if simulated.takes_away() {
        ExitCode::from(EXIT_FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}

impl Shown for Simulated {
    fn text(&self, _is_wide: bool) -> String {
        Self::text(self)
    }

    /// Returns the pods that lose something, as configured or with layers enforced.
    fn names(&self) -> Vec<String> {
        let enforced = self.if_enforced.iter().map(|one| &one.simulation);
        let all = enforced.chain([&self.as_configured]);
        let lost = all.flat_map(|one| one.newly_denied.iter().chain(&one.denied_on_recreate));
        let pods: BTreeSet<_> = lost
            .flat_map(|one| one.pods.iter().map(|pod| (&one.namespace, pod)))
            .collect();
        pods.into_iter()
            .map(|(_, pod)| format!("pod/{pod}"))
            .collect()
    }
}

/// The rules on both sides of a simulation.
#[derive(Debug, Serialize)]
struct NowAndThen {
    now: Basis,
    then: Basis,
}

impl RestsOn for NowAndThen {
    fn text(&self) -> String {
        self.now.text("rules in force now") + &self.then.text("rules then")
    }

    fn value(&self) -> anyhow::Result<Value> {
        serde_json::to_value(self).context("cannot serialize the rules in force")
    }
}
