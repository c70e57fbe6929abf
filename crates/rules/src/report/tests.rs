use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::decision::ReservedRole;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::rule_set_builder::{AwsEnvironment, ClusterConfig, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_runtime::readiness::Readiness;
use std::sync::Arc;

use super::*;
use crate::in_force::RuleSource;
use crate::store::{Report, RuleStoreWriter};

fn base(path: &str) -> BaseArn {
    BaseArn::parse(&format!("arn:aws:iam::123456789012:role/{path}")).unwrap()
}

fn modes(namespace: Mode) -> Modes {
    Modes::OFF.with(LayerId::Namespace, namespace)
}

/// Returns a writer without namespaces, with a base ARN from flags.
fn writer() -> RuleStoreWriter {
    let flags = RuleConfig {
        base: Some(base("flags/")),
        modes: modes(Mode::Off),
        ..RuleConfig::default()
    };
    let mut writer =
        RuleStoreWriter::new(flags, EnforcementPoint::Agent, SessionScope::Workload, 3600);
    writer.set_aws_environment(AwsEnvironment {
        reserved_roles: vec![ReservedRole::parse("arn:aws:iam::123456789012:role/node").unwrap()],
        ..AwsEnvironment::default()
    });
    let none = Report::Rules(RuleUpdate::Namespaces(Change::Snapshot(Vec::new())));
    writer.apply(none);
    writer
}

fn set(writer: &mut RuleStoreWriter, config: ClusterConfig) -> RulesInForce {
    writer.apply(Report::Rules(RuleUpdate::Config(config)));
    writer.rules().load().in_force.clone()
}

fn config(generation: i64, base: Option<BaseArn>, namespace: Mode) -> ClusterConfig {
    ClusterConfig::Valid(Arc::new(RuleConfig {
        generation: Some(generation),
        base,
        modes: modes(namespace),
        ..RuleConfig::default()
    }))
}

#[test]
fn source_and_generation_follow_the_configuration() {
    let mut writer = writer();
    let flags = writer.rules().load().in_force.clone();
    assert_eq!(flags.source, RuleSource::Flags);
    assert_eq!(
        (flags.generation(), flags.base),
        (None, Some(base("flags/")))
    );
    assert!(flags.has_synced);

    let two = set(&mut writer, config(2, None, Mode::Enforce));
    assert_eq!(two.generation(), Some(2));
    assert_eq!(two.base, Some(base("flags/")), "left open, so the flag's");
    // A new generation is a change even with the same content, so that a lagging process can be
    // detected.
    let three = set(&mut writer, config(3, None, Mode::Enforce));
    assert_eq!(three.generation(), Some(3));
    // An invalid configuration leaves the previous one in force.
    let broken = set(&mut writer, ClusterConfig::Invalid("x".into()));
    assert_eq!(broken.generation(), Some(3));
    let missing = set(&mut writer, ClusterConfig::Missing);
    assert_eq!(missing.source, RuleSource::Missing);
    assert_eq!(missing.generation(), None);
    let broken = set(&mut writer, ClusterConfig::Invalid("x".into()));
    assert_eq!(broken.source, RuleSource::Invalid, "it was deleted before");
}

#[test]
fn flags_apply_only_where_the_configuration_is_unset() {
    let given = GivenRuleFlags {
        base: vec!["--base-role-arn".into()],
        default_role: vec!["ROLEGATE_DEFAULT_ROLE".into()],
        others: vec!["--layer".into()],
    };
    let mut writer = writer();
    let flags = writer.rules().load().in_force.clone();
    assert!(given.ignored(&flags).is_empty());
    let open = set(&mut writer, config(1, None, Mode::Enforce));
    assert_eq!(given.ignored(&open), ["--layer"]);
    let with_base = set(&mut writer, config(2, Some(base("")), Mode::Enforce));
    assert_eq!(given.ignored(&with_base), ["--base-role-arn", "--layer"]);
    assert_eq!(with_base.base, Some(base("")));
}

#[test]
fn rules_are_open_while_no_layer_is_enforced() {
    let mut writer = writer();
    let flags = writer.rules().load().in_force.clone();
    let warning = flags.warning().unwrap();
    assert!(
        warning.contains("trusts role node of account 123456789012; set --namespace-restrictions"),
        "{warning}"
    );
    let audit = set(&mut writer, config(1, None, Mode::Audit));
    assert!(audit.warning().unwrap().contains("spec.layers"));
    let enforced = set(&mut writer, config(2, None, Mode::Enforce));
    assert_eq!(enforced.warning(), None);
    // Every request is denied, so the rules are not open.
    let missing = set(&mut writer, ClusterConfig::Missing);
    assert_eq!(missing.warning(), None);
}

#[tokio::test(start_paused = true)]
async fn open_rules_are_a_note_of_the_readiness() {
    let mut writer = writer();
    let readiness = Readiness::new();
    let layers = readiness.condition("layers");
    let reporting = report(writer.rules(), GivenRuleFlags::default(), Some(layers));
    let reporting = tokio::spawn(reporting);
    let noted = async |expected: bool| {
        while readiness.report().noted.contains_key("layers") != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(readiness.is_ready());
    };
    noted(true).await;
    set(&mut writer, config(1, None, Mode::Enforce));
    noted(false).await;
    set(&mut writer, config(2, None, Mode::Off));
    noted(true).await;
    reporting.abort();
}
