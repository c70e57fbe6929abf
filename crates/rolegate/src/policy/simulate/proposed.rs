//! A proposed change of the rules, as configured and with its layers enforced.

use jiff::Timestamp;
use rolegate_core::annotation::PERMITTED;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::Modes;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_inventory::any_base;
use rolegate_inventory::basis::Source;
use rolegate_inventory::load::{Assumed, Loaded};
use rolegate_inventory::object::{is_core, is_ours};
use rolegate_inventory::objects::Objects;
use rolegate_policy::simulate::{IfEnforced, Simulated, Simulation, simulate};
use serde_json::Value;

use super::super::current::{Current, load};

/// A change, and the state to compare it with.
pub(super) struct Proposed<'a> {
    /// The state before the change.
    pub(super) current: &'a Current,
    /// The objects after the change.
    pub(super) after: Objects,
    /// The modes if layers in audit mode, or with proposed rules, were enforced.
    pub(super) enforced: Enforced,
    /// The time of the simulation.
    pub(super) now: Timestamp,
}

/// Modes of layers, and the layers whose mode differs from the configured one.
pub(super) struct Enforced {
    /// The modes.
    pub(super) modes: Modes,
    layers: Vec<LayerId>,
}

impl Proposed<'_> {
    /// Simulates the change, with a base ARN if it is unknown.
    ///
    /// # Errors
    /// Returns an error for rules that cannot be loaded.
    pub(super) fn simulated(&self, base: Option<&BaseArn>) -> anyhow::Result<Simulated> {
        let sources = &self.current.sources;
        let objects = &self.current.objects;
        let assumed = |modes| Assumed {
            base: base.cloned(),
            modes,
            is_webhook: false,
        };
        let before = load(objects, sources, &assumed(None))?;
        let webhook_before = load(
            objects,
            sources,
            &Assumed {
                // Agents complete names now, and no webhook refuses what they cannot complete.
                base: if before.lacks_base(sources) {
                    base.cloned().or_else(any_base)
                } else {
                    base.cloned()
                },
                modes: None,
                is_webhook: true,
            },
        )?;
        let simulation = |modes| -> anyhow::Result<Simulation> {
            let after = load(&self.after, sources, &assumed(modes))?;
            let (rules, then) = (&before.snapshot.rules, &after.snapshot.rules);
            let mut simulation = simulate(rules, then, &before.workloads, self.now);
            let webhook = Assumed {
                is_webhook: true,
                ..assumed(modes)
            };
            let webhook_after = load(&self.after, sources, &webhook)?;
            let pods = objects
                .values()
                .iter()
                .filter(|value| is_core(value, "Pod"));
            let (now, then) = (
                webhook_before.validation_rules(),
                webhook_after.validation_rules(),
            );
            simulation.add_recreated(&now, &then, pods, self.now);
            Ok(simulation)
        };
        let as_configured = simulation(None)?;
        let if_enforced = if self.enforced.layers.is_empty() {
            None
        } else {
            Some(IfEnforced {
                layers: self.enforced.layers.clone(),
                simulation: simulation(Some(self.enforced.modes))?,
            })
        };
        Ok(Simulated {
            as_configured,
            if_enforced,
        })
    }
}

/// Returns the modes if the layers of the proposed rules were enforced: those in audit mode, and
/// those that are off although the change contains rules for them.
pub(super) fn enforced(after: &Loaded, change: &Objects) -> Enforced {
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

#[cfg(test)]
mod tests {
    use rolegate_inventory::in_force::AgentFlags;
    use serde_json::json;

    use super::super::super::agents::ProcessFlags;
    use super::super::super::current::flag_sources;
    use super::super::super::flags::OwnFlags;
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
        let agents = Box::new(ProcessFlags {
            flags: OwnFlags::parse(&["--namespace-restrictions"]).flags,
            origin: AgentFlags {
                unknown: Vec::new(),
                workloads: Vec::new(),
                doubts: Vec::new(),
            },
        });
        let current = Current {
            objects: Objects::of_values(objects),
            sources: flag_sources(&OwnFlags::parse(&[]), Some(Ok(agents))).unwrap(),
            cluster: None,
        };
        let change = Objects::of_values(vec![json!({"apiVersion": "rolegate.dev/v1alpha1",
            "kind": "RolegateConfig", "metadata": {"name": "cluster"}, "spec": spec})]);
        let after = current.objects.overlaid(&change, false);
        let loaded = load(&after, &current.sources, &Assumed::default()).unwrap();
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
