//! `rolegate policy simulate`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use rolegate_core::annotation::PERMITTED;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::Modes;
use rolegate_core::layer::Mode;
use rolegate_policy::basis::{Basis, Source};
use rolegate_policy::overlay::is_core;
use rolegate_policy::simulate::{IfEnforced, Simulated, Simulation, simulate};
use serde::Serialize;
use serde_json::Value;

use super::cluster::is_ours;
use super::flags::{ReadFlags, ScopeFlags};
use super::in_force::refuse_idle;
use super::load::{Assumed, Current, Loaded, Objects};
use super::{REFUSED, files};
use crate::output::{self, OutputFlags, RestsOn, Shown};

/// What `--help` says first.
pub(super) const LONG_ABOUT: &str = "Tell which running pods a change of the rules cuts off, lets in or gives another \
session, and which the webhook would refuse when they are made again, before it is applied.\n\n\
The objects of --rules (grants, configuration, namespaces, ConfigMaps of policies) are laid over those \
that are there: one of the same name is replaced, others stay. Pods and current rules are those of the \
cluster, or of manifests with -f, such as `kubectl get \
pods,namespaces,rolegrants,rolegateconfigs -A -o yaml`.\n\n\
The change is judged twice: as configured, and as if those layers were enforced that are in audit mode, \
or off while --rules has rules of them. Whoever would lose a role in either case is told.";

/// Arguments of `rolegate policy simulate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy simulate --rules grants.yaml
  rolegate policy simulate --rules rules/ --replace -o json
  rolegate policy simulate --rules grants.yaml -f dump.yaml

Exit codes: 0 no running pod loses its role, 1 failed, 3 a pod loses it or is refused when made again, as \
configured or if the layers were enforced, 64 wrong usage.")]
pub(super) struct SimulateArguments {
    /// Manifest, folder or - with the rules as they would be; may be repeated
    #[arg(long, value_name = "PATH", required = true)]
    rules: Vec<PathBuf>,
    /// Current rules and pods from this manifest or folder instead of the cluster; may be repeated
    #[arg(short, long, value_name = "PATH")]
    filename: Vec<PathBuf>,
    /// Take grants, configuration and ConfigMaps away that --rules does not name
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    output: OutputFlags,
    #[command(flatten)]
    read: ReadFlags,
}

/// Simulates.
pub(super) async fn run(arguments: SimulateArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    files::validate(arguments.rules.iter().chain(&arguments.filename))?;
    let change = Objects::of_files(&arguments.rules)?;
    let mut current = Current::read(&arguments.read, &arguments.filename, &change).await?;
    let overlaid = |current: &Current| current.objects.overlaid(&change, arguments.replace);
    let now_and_then = |current: &Current| -> anyhow::Result<(Loaded, Loaded)> {
        let after = overlaid(current).load(&current.sources);
        let before = current.objects.load(&current.sources);
        // A mistake in the change is told before what is missing now.
        let after = after?;
        Ok((before?, after))
    };
    let (before, after) = now_and_then(&current)?;
    refuse_idle(&[&before.idle, &after.idle])?;
    // Policies may ask about everything of a pod.
    let whole = before.asks_at_gate() || after.asks_at_gate();
    current
        .add_users(whole, arguments.scope.namespace.as_deref())
        .await?;
    let (before, after) = now_and_then(&current)?;
    for (when, notes) in [("now", &before.notes), ("then", &after.notes)] {
        for note in notes {
            output::note(&format!("{when}: {note}"));
        }
    }
    if after.asks_at_gate() {
        output::note(
            "policies of the gate are asked about the pods alone here: ask about Deployments and \
             their like with `rolegate policy check`",
        );
    }
    let proposed = Proposed {
        current: &current,
        after: overlaid(&current),
        enforced: enforced(&after, &change),
        now: Timestamp::now(),
    };
    let simulated = proposed.simulated(None)?;
    let sources = &current.sources;
    // Both sides are judged with each base ARN, so one comparison is enough.
    let sides = [&before, &after];
    if let Some(loaded) = sides.iter().find(|loaded| loaded.lacks_base(sources)) {
        loaded.demand_base(sources, proposed.after.values(), &simulated, |base| {
            proposed.simulated(Some(&base))
        })?;
    }
    let rules = NowAndThen {
        now: before.basis,
        then: after.basis,
    };
    output::answer(arguments.output.output, &simulated, &rules)?;
    Ok(match simulated.takes_away() {
        false => ExitCode::SUCCESS,
        true => ExitCode::from(REFUSED),
    })
}

impl Shown for Simulated {
    fn text(&self, _is_wide: bool) -> String {
        Self::text(self)
    }

    /// The pods that lose something, as configured or with layers enforced.
    fn names(&self) -> Vec<String> {
        let enforced = self.if_enforced.iter().map(|one| &one.simulation);
        let all = enforced.chain([&self.as_configured]);
        let lost = all.flat_map(|one| one.cut_off.iter().chain(&one.refused_when_made_again));
        let pods = lost.flat_map(|one| one.pods.iter().map(|pod| (&one.namespace, pod)));
        let pods: BTreeSet<_> = pods.collect();
        pods.into_iter()
            .map(|(_, pod)| format!("pod/{pod}"))
            .collect()
    }
}

/// A change, and what it is compared with.
struct Proposed<'a> {
    current: &'a Current,
    /// The objects as they would be.
    after: Objects,
    /// The modes if the layers were enforced that are tried out or proposed.
    enforced: Enforced,
    now: Timestamp,
}

/// Modes of layers, and the layers that have another mode in them than is configured.
struct Enforced {
    modes: Modes,
    layers: Vec<&'static str>,
}

impl Proposed<'_> {
    fn simulated(&self, base: Option<&BaseArn>) -> anyhow::Result<Simulated> {
        let sources = &self.current.sources;
        let assumed = |modes| Assumed {
            base: base.cloned(),
            modes,
        };
        let before = self.current.objects.load_as(sources, &assumed(None))?;
        let simulation = |modes| -> anyhow::Result<Simulation> {
            let after = self.after.load_as(sources, &assumed(modes))?;
            let (rules, then) = (&before.snapshot.rules, &after.snapshot.rules);
            let mut simulation = simulate(rules, then, &before.workloads, self.now);
            let pods = self.current.objects.values().iter();
            let pods = pods.filter(|value| is_core(value, "Pod"));
            simulation.add_made_again(&before.gate(), &after.gate(), pods, self.now);
            Ok(simulation)
        };
        let as_configured = simulation(None)?;
        let if_enforced = match self.enforced.layers.is_empty() {
            true => None,
            false => Some(IfEnforced {
                layers: self.enforced.layers.clone(),
                simulation: simulation(Some(self.enforced.modes))?,
            }),
        };
        Ok(Simulated {
            as_configured,
            if_enforced,
        })
    }
}

/// The modes if the layers of the proposed rules were enforced: those in audit mode, and those that are
/// off and that the change has rules of.
fn enforced(after: &Loaded, change: &Objects) -> Enforced {
    let modes = after.snapshot.config.modes;
    if after.basis.source == Source::Missing {
        return Enforced {
            modes,
            layers: Vec::new(),
        };
    }
    let keys = &after.deciding.keys;
    let has = |is_wanted: &dyn Fn(&Value) -> bool| change.values().iter().any(is_wanted);
    let annotated = |value: &Value| {
        let annotations = value.pointer("/metadata/annotations");
        let names = [keys.allowed_roles.as_str(), PERMITTED];
        let mut found = names.iter().filter_map(|name| annotations?.get(name));
        is_core(value, "Namespace") && found.next().is_some()
    };
    let proposes_policies = change.has_modules()
        || has(&|value: &Value| {
            let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
            let namespaces = &after.snapshot.config.rego.namespaces;
            is_core(value, "ConfigMap") && namespace.is_some_and(|name| namespaces.contains(name))
        });
    let mut layers = Vec::new();
    let mut enforced = |layer, mode, is_proposed: bool| match mode {
        Mode::Enforce => Mode::Enforce,
        Mode::Off if !is_proposed => Mode::Off,
        Mode::Audit | Mode::Off => {
            layers.push(layer);
            Mode::Enforce
        }
    };
    let modes = Modes {
        namespace: enforced("namespace", modes.namespace, has(&annotated)),
        grants: enforced(
            "grants",
            modes.grants,
            has(&|value: &Value| is_ours(value, "RoleGrant")),
        ),
        rego: enforced("rego", modes.rego, proposes_policies),
    };
    Enforced { modes, layers }
}

/// What both sides of a simulation rest on.
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
        serde_json::to_value(self).context("the rules in force are not JSON")
    }
}
