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
use rolegate_core::layer::{LayerId, Mode};
use rolegate_policy::basis::{Basis, Source};
use rolegate_policy::overlay::is_core;
use rolegate_policy::simulate::{IfEnforced, Simulated, Simulation, simulate};
use serde::Serialize;
use serde_json::Value;

use super::cluster::is_ours;
use super::flags::{ReadFlags, ScopeFlags};
use super::in_force::refuse_idle;
use super::load::{Assumed, Current, Loaded, Objects, any_base};
use super::{REFUSED, files};
use crate::output::{self, OutputFlags, RestsOn, Shown};

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
configured or if the layers were enforced, 64 wrong usage.")]
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
    let change = Objects::of_files(&arguments.rules)?;
    let mut current = Current::read(&arguments.read, &arguments.filename, &change).await?;
    let overlaid = |current: &Current| current.objects.overlaid(&change, arguments.replace);
    let now_and_then = |current: &Current| -> anyhow::Result<(Loaded, Loaded)> {
        let after = overlaid(current).load(&current.sources);
        let before = current.objects.load(&current.sources);
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

    /// Returns the pods that lose something, as configured or with layers enforced.
    fn names(&self) -> Vec<String> {
        let enforced = self.if_enforced.iter().map(|one| &one.simulation);
        let all = enforced.chain([&self.as_configured]);
        let lost = all.flat_map(|one| one.newly_denied.iter().chain(&one.denied_on_recreate));
        let pods = lost.flat_map(|one| one.pods.iter().map(|pod| (&one.namespace, pod)));
        let pods: BTreeSet<_> = pods.collect();
        pods.into_iter()
            .map(|(_, pod)| format!("pod/{pod}"))
            .collect()
    }
}

/// A change, and the state to compare it with.
struct Proposed<'a> {
    current: &'a Current,
    /// The objects after the change.
    after: Objects,
    /// The modes if layers in audit mode, or with proposed rules, were enforced.
    enforced: Enforced,
    now: Timestamp,
}

/// Modes of layers, and the layers whose mode differs from the configured one.
struct Enforced {
    modes: Modes,
    layers: Vec<LayerId>,
}

impl Proposed<'_> {
    fn simulated(&self, base: Option<&BaseArn>) -> anyhow::Result<Simulated> {
        let sources = &self.current.sources;
        let objects = &self.current.objects;
        let assumed = |modes| Assumed {
            base: base.cloned(),
            modes,
            is_webhook: false,
        };
        let before = objects.load_as(sources, &assumed(None))?;
        let webhook_before = objects.load_as(
            sources,
            &Assumed {
                // Agents complete names now, and no webhook refuses what they cannot complete.
                base: match before.lacks_base(sources) {
                    true => base.cloned().or_else(any_base),
                    false => base.cloned(),
                },
                modes: None,
                is_webhook: true,
            },
        )?;
        let simulation = |modes| -> anyhow::Result<Simulation> {
            let after = self.after.load_as(sources, &assumed(modes))?;
            let (rules, then) = (&before.snapshot.rules, &after.snapshot.rules);
            let mut simulation = simulate(rules, then, &before.workloads, self.now);
            let webhook = Assumed {
                is_webhook: true,
                ..assumed(modes)
            };
            let webhook_after = self.after.load_as(sources, &webhook)?;
            let pods = objects.values().iter();
            let pods = pods.filter(|value| is_core(value, "Pod"));
            let (now, then) = (webhook_before.gate(), webhook_after.gate());
            simulation.add_made_again(&now, &then, pods, self.now);
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

/// Returns the modes if the layers of the proposed rules were enforced: those in audit mode, and
/// those that are off although the change contains rules for them.
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
    let namespaces = &after.snapshot.config.rego.namespaces;
    let proposes_policies = change.has_policies(|namespace| namespaces.contains(namespace));
    let mut layers = Vec::new();
    let mut enforced = |layer, mode, is_proposed: bool| match mode {
        Mode::Enforce => Mode::Enforce,
        Mode::Off if !is_proposed => Mode::Off,
        Mode::Audit | Mode::Off => {
            layers.push(layer);
            Mode::Enforce
        }
    };
    let modes = Modes::from_fn(|layer| {
        let is_proposed = match layer {
            LayerId::Namespace => has(&annotated),
            LayerId::Grants => has(&|value: &Value| is_ours(value, "RoleGrant")),
            LayerId::Rego => proposes_policies,
        };
        enforced(layer, modes[layer], is_proposed)
    });
    Enforced { modes, layers }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::agents::{AgentFlags, Agents};
    use super::super::flags::OwnFlags;
    use super::super::in_force::FlagSources;
    use super::*;

    /// Simulates that a cluster whose agents find out the base ARN gets a RolegateConfig.
    fn with_config(spec: &Value) -> Simulated {
        let pod = |name: &str, role: &str| {
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "shop", "uid": name,
                    "annotations": {"iam.amazonaws.com/role": role}},
                "spec": {"containers": []}, "status": {"phase": "Running"}})
        };
        let objects = vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
                "annotations": {"iam.amazonaws.com/allowed-roles": "[\"reader\"]"}}}),
            pod("by-name", "reader"),
            pod("refused", "admin"),
        ];
        let current = Current {
            objects: Objects::of_values(objects),
            sources: FlagSources {
                own: OwnFlags::parse(&[]),
                agents: Some(Agents::Known(Box::new(AgentFlags {
                    flags: OwnFlags::parse(&["--namespace-restrictions"]).flags,
                    unknown: Vec::new(),
                    workloads: Vec::new(),
                    doubts: Vec::new(),
                }))),
                guesses: false,
            },
            cluster: None,
        };
        let change = Objects::of_values(vec![json!({"apiVersion": "rolegate.dev/v1alpha1",
            "kind": "RolegateConfig", "metadata": {"name": "cluster"}, "spec": spec})]);
        let after = current.objects.overlaid(&change, false);
        let loaded = after.load(&current.sources).unwrap();
        let proposed = Proposed {
            enforced: enforced(&loaded, &change),
            current: &current,
            after,
            now: Timestamp::now(),
        };
        let simulated = proposed.simulated(None).unwrap();
        for base in [
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::210987654321:role/k8s/",
        ] {
            let base = BaseArn::parse(base).unwrap();
            assert_eq!(proposed.simulated(Some(&base)).unwrap(), simulated);
        }
        simulated
    }

    #[test]
    fn names_without_a_base_arn_are_refused_when_pods_are_recreated() {
        let layers = json!({"namespace": "enforce"});
        let found = with_config(&json!({"layers": layers}));
        assert!(found.takes_away());
        let found = found.as_configured;
        assert_eq!((found.pods, found.unchanged), (2, 1), "{found:?}");
        let [refused] = &found.denied_on_recreate[..] else {
            panic!("{found:?}");
        };
        assert_eq!(
            (&*refused.role, &*refused.pods),
            ("reader", &["by-name".to_owned()][..])
        );
        assert!(
            refused.reason.contains("no base ARN is known"),
            "{refused:?}"
        );
    }
}
