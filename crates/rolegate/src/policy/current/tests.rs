use rolegate_core::layer::LayerId;
use rolegate_inventory::basis::Source;
use rolegate_inventory::in_force::{AgentFlags, ConfigNeed, InForce, PlacedConfig, UnknownFlag};
use serde_json::json;

use super::super::errors::{of_in_force, refuse_idle};
use super::*;

type Processes = Result<Box<ProcessFlags>, String>;

fn known(flags: &[&str], unknown: &[&str]) -> Processes {
    Ok(Box::new(ProcessFlags {
        flags: OwnFlags::parse(flags).flags,
        origin: AgentFlags {
            unknown: unknown
                .iter()
                .map(|id| UnknownFlag {
                    id: (*id).to_owned(),
                    flag: format!("--{}", id.replace('_', "-")),
                    from: "Secret x".into(),
                })
                .collect(),
            workloads: Vec::new(),
            doubts: Vec::new(),
        },
    }))
}

struct Sources(FlagSources);

fn sources(own_flags: &[&str], agents: Option<Processes>) -> Sources {
    Sources(flag_sources(&OwnFlags::parse(own_flags), agents).unwrap())
}

impl Sources {
    /// Returns the configuration in force, or the error with its advice.
    fn in_force(
        &self,
        config: Option<PlacedConfig<'_>>,
        need: ConfigNeed,
    ) -> anyhow::Result<InForce> {
        self.0.in_force(config, need).map_err(of_in_force)
    }
}

const BASE: &str = "--base-role-arn=arn:aws:iam::123456789012:role/";

#[test]
fn agent_flags_apply_without_a_config() {
    let agents = known(
        &[BASE, "--namespace-restrictions", "--reserved-role=node"],
        &[],
    );
    let more = ["--reserved-role=other", "--layer=grants=audit"];
    let found = sources(&more, Some(agents.clone()))
        .in_force(None, ConfigNeed::None)
        .unwrap();
    let config = &found.deciding.flags;
    assert_eq!(config.modes[LayerId::Namespace].as_str(), "enforce");
    assert_eq!(config.modes[LayerId::Grants].as_str(), "audit");
    assert_eq!(
        (config.base.is_some(), config.reserved_roles.len()),
        (true, 2)
    );
    assert_eq!(found.flags, ["--layer", "--reserved-role"]);
    assert!(matches!(found.source, Source::Workloads { .. }));
    // If the kind is installed and the object is missing, agents deny everything,
    let found = sources(&[], Some(agents.clone()))
        .in_force(None, ConfigNeed::KindInstalled)
        .unwrap();
    assert_eq!(found.source, Source::Missing);
    assert!(found.unknown[0].contains("for up to 10 minutes"));
    // unless they ignore it.
    let off = known(&["--cluster-config=off", "--layer=rego=audit"], &[]);
    let object = json!({"spec": {}});
    let config = PlacedConfig {
        object: &object,
        place: None,
    };
    let found = sources(&[], Some(off))
        .in_force(Some(config), ConfigNeed::KindInstalled)
        .unwrap();
    assert_eq!(found.deciding.flags.modes[LayerId::Rego].as_str(), "audit");
    assert!(matches!(found.source, Source::Workloads { .. }));
}

#[test]
fn what_is_not_known_is_not_guessed() {
    let lost = || Some(Err("it is lost".into()));
    let error = sources(&[BASE], lost())
        .in_force(None, ConfigNeed::None)
        .unwrap_err();
    assert!(error.to_string().contains("it is lost"), "{error}");
    assert!(!error.is::<crate::flags::Invalid>());
    let in_sources = sources(&["--layer=namespace=off"], lost())
        .in_force(None, ConfigNeed::None)
        .unwrap();
    assert_eq!(in_sources.source, Source::Flags);
    let object = json!({"spec": {}, "metadata": {"generation": 4}});
    let config = PlacedConfig {
        object: &object,
        place: None,
    };
    let found = sources(&[], lost())
        .in_force(Some(config), ConfigNeed::KindInstalled)
        .unwrap();
    assert!(found.unknown[0].contains("it is lost"), "{found:?}");
    assert!(found.source.to_string().ends_with("generation 4"));
    let error = sources(&[BASE], None)
        .in_force(None, ConfigNeed::None)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("add the RolegateConfig to --rules")
    );
    // A flag with an unknown value matters if it applies.
    for (id, config, is_fine) in [
        ("default_role", None, false),
        (
            "default_role",
            Some(json!({"spec": {"defaultRole": "x"}})),
            true,
        ),
        ("default_role", Some(json!({"spec": {}})), false),
        ("layer", None, false),
        ("layer", Some(json!({"spec": {}})), true),
        ("reserved_role", Some(json!({"spec": {}})), false),
        ("iam_role_key", Some(json!({"spec": {}})), false),
        ("base_role_arn", None, true),
        ("session_duration", None, true),
        ("host_ip", None, true),
    ] {
        let config = config.as_ref().map(|object| PlacedConfig {
            object,
            place: None,
        });
        let found = sources(&[], Some(known(&[], &[id]))).in_force(config, ConfigNeed::None);
        assert_eq!(found.is_ok(), is_fine, "{id} {config:?}");
    }
    let in_sources = sources(&["--default-role=x"], Some(known(&[], &["default_role"])));
    assert!(in_sources.in_force(None, ConfigNeed::None).is_ok());
}

#[test]
fn flags_that_do_not_count_are_wrong_usage() {
    let object = json!({"spec": {"baseRoleArn": "arn:aws:iam::123456789012:role/"}});
    let config = PlacedConfig {
        object: &object,
        place: Some("a.yaml:1"),
    };
    for (flag, is_fine) in [
        (BASE, false),
        ("--default-role=x", true),
        ("--layer=grants=audit", false),
        ("--namespace-restrictions", false),
        ("--namespace-restrictions-default=allow", false),
        ("--namespace-restriction-format=regexp", false),
        ("--policy-label=", false),
        ("--policy-namespaces=x", false),
        ("--replicate=v1/services", false),
        ("--reserved-role=x", true),
        ("--session-scope=pod", true),
        ("--agent-namespace=x", false),
    ] {
        let found = sources(&[flag], None)
            .in_force(Some(config), ConfigNeed::KindInstalled)
            .unwrap();
        let error = refuse_idle(&[&found.idle]);
        assert_eq!(error.is_ok(), is_fine, "{flag}");
        if let Err(error) = error {
            assert!(error.is::<crate::flags::Invalid>(), "{flag}");
            // A flag that applies to one of both configurations has an effect.
            assert!(refuse_idle(&[&[], &found.idle]).is_ok(), "{flag}");
            assert!(refuse_idle(&[&found.idle, &found.idle]).is_err(), "{flag}");
        }
    }
}
