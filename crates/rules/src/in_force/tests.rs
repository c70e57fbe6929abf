use rolegate_core::config::RuleConfig;
use rolegate_core::layer::Mode;
use rolegate_core::rulebook::{ClusterConfig, Facts, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_runtime::readiness::Readiness;
use std::sync::Arc;

use super::*;
use crate::keeper::{Keeper, Point, Report};

fn base(path: &str) -> BaseArn {
    BaseArn::parse(&format!("arn:aws:iam::123456789012:role/{path}")).unwrap()
}

fn modes(namespace: Mode) -> Modes {
    Modes {
        namespace,
        grants: Mode::Off,
        rego: Mode::Off,
    }
}

/// A keeper that has seen no namespaces, with a base ARN of flags.
fn keeper() -> Keeper {
    let flags = RuleConfig {
        base: Some(base("flags/")),
        modes: modes(Mode::Off),
        ..RuleConfig::default()
    };
    let mut keeper = Keeper::new(flags, Point::Door, SessionScope::Workload, 3600);
    keeper.learn(Facts {
        own_roles: vec![OwnRole::parse("arn:aws:iam::123456789012:role/node").unwrap()],
        ..Facts::default()
    });
    let none = Report::Rules(RuleUpdate::Namespaces(Change::Snapshot(Vec::new())));
    keeper.apply(none);
    keeper
}

fn set(keeper: &mut Keeper, config: ClusterConfig) -> RulesInForce {
    keeper.apply(Report::Rules(RuleUpdate::Config(config)));
    keeper.rules().load().in_force.clone()
}

fn config(generation: i64, base: Option<BaseArn>, namespace: Mode) -> ClusterConfig {
    ClusterConfig::Is(Arc::new(RuleConfig {
        generation: Some(generation),
        base,
        modes: modes(namespace),
        ..RuleConfig::default()
    }))
}

#[test]
fn source_and_generation_follow_the_configuration() {
    let mut keeper = keeper();
    let flags = keeper.rules().load().in_force.clone();
    assert_eq!(flags.source, RuleSource::Flags);
    assert_eq!(
        (flags.generation(), flags.base),
        (None, Some(base("flags/")))
    );
    assert!(flags.is_loaded);

    let two = set(&mut keeper, config(2, None, Mode::Enforce));
    assert_eq!(two.generation(), Some(2));
    assert_eq!(two.base, Some(base("flags/")), "left open, so the flag's");
    // The same content under a new generation is a change too, by which a lagging process is seen.
    let three = set(&mut keeper, config(3, None, Mode::Enforce));
    assert_eq!(three.generation(), Some(3));
    // One that cannot be used leaves the one before in force.
    let broken = set(&mut keeper, ClusterConfig::Broken("x".into()));
    assert_eq!(broken.generation(), Some(3));
    let missing = set(&mut keeper, ClusterConfig::Missing);
    assert_eq!(missing.source, RuleSource::Missing);
    assert_eq!(missing.generation(), None);
    let broken = set(&mut keeper, ClusterConfig::Broken("x".into()));
    assert_eq!(broken.source, RuleSource::Invalid, "it was deleted before");
}

#[test]
fn flags_beside_a_configuration_are_ignored_unless_it_leaves_them_open() {
    let given = GivenRuleFlags {
        base: vec!["--base-role-arn".into()],
        default_role: vec!["ROLEGATE_DEFAULT_ROLE".into()],
        others: vec!["--layer".into()],
    };
    let mut keeper = keeper();
    let flags = keeper.rules().load().in_force.clone();
    assert!(given.ignored(&flags).is_empty());
    let open = set(&mut keeper, config(1, None, Mode::Enforce));
    assert_eq!(given.ignored(&open), ["--layer"]);
    let with_base = set(&mut keeper, config(2, Some(base("")), Mode::Enforce));
    assert_eq!(given.ignored(&with_base), ["--base-role-arn", "--layer"]);
    assert_eq!(with_base.base, Some(base("")));
}

#[test]
fn rules_are_open_while_no_layer_is_enforced() {
    let mut keeper = keeper();
    let flags = keeper.rules().load().in_force.clone();
    let warning = flags.warning().unwrap();
    assert!(
        warning.contains("trusts role node of account 123456789012; set --namespace-restrictions"),
        "{warning}"
    );
    let audit = set(&mut keeper, config(1, None, Mode::Audit));
    assert!(audit.warning().unwrap().contains("spec.layers"));
    let enforced = set(&mut keeper, config(2, None, Mode::Enforce));
    assert_eq!(enforced.warning(), None);
    // Everything is refused, so nothing is open.
    let missing = set(&mut keeper, ClusterConfig::Missing);
    assert_eq!(missing.warning(), None);
}

#[tokio::test(start_paused = true)]
async fn open_rules_are_a_note_of_the_readiness() {
    let mut keeper = keeper();
    let readiness = Readiness::new();
    let layers = readiness.condition("layers");
    let reporting = report(keeper.rules(), GivenRuleFlags::default(), Some(layers));
    let reporting = tokio::spawn(reporting);
    let noted = async |expected: bool| {
        while readiness.report().noted.contains_key("layers") != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(readiness.is_ready());
    };
    noted(true).await;
    set(&mut keeper, config(1, None, Mode::Enforce));
    noted(false).await;
    set(&mut keeper, config(2, None, Mode::Off));
    noted(true).await;
    reporting.abort();
}
