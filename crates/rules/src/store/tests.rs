use jiff::Timestamp;
use rolegate_core::config::Modes;
use rolegate_core::decision::{Decision, NotSynced};
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::labels::Labels;
use rolegate_core::namespace::Namespace;
use rolegate_core::needs::{Keys, Needs};
use rolegate_core::rule_set_builder::ClusterConfig;
use rolegate_core::test_util;
use rolegate_core::workload::Workload;
use serde_json::json;

use super::*;

const DENY_ALL: &str = "package kubernetes.admission\ndeny[msg] { msg := \"denied\" }\n";
const NEEDS_A_TEAM: &str = "package kubernetes.admission\nimport data.kubernetes.namespaces\n\
    deny[msg] { not namespaces[input.request.namespace].metadata.labels.team; msg := \"no team\" }\n";
const DENY_NONE: &str = "package kubernetes.admission\ndeny[msg] { false; msg := \"\" }\n";

fn config(rego: RegoConfig) -> RuleConfig {
    RuleConfig {
        modes: Modes::OFF.with(LayerId::Rego, Mode::Enforce),
        rego,
        ..RuleConfig::default()
    }
}

fn writer(rego: RegoConfig) -> RuleStoreWriter {
    let mut writer = RuleStoreWriter::new(
        config(rego),
        EnforcementPoint::Agent,
        SessionScope::Workload,
        3600,
    );
    writer.set_aws_environment(AwsEnvironment::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    let namespaces = Change::Snapshot(vec![default]);
    writer.apply(Report::Rules(RuleUpdate::Namespaces(namespaces)));
    writer
}

fn map(name: &str, points: &str, text: &str) -> ConfigMap {
    ConfigMap {
        namespace: "opa".into(),
        name: name.into(),
        labels: [("openpolicyagent.org/policy", "rego")]
            .into_iter()
            .collect(),
        annotations: [("rolegate.dev/enforcement-points", points)]
            .into_iter()
            .collect(),
        data: [("main.rego".to_owned(), text.to_owned())].into(),
        ..ConfigMap::default()
    }
}

fn maps(all: Vec<ConfigMap>) -> Report {
    Report::ConfigMaps("opa".into(), Change::Snapshot(all))
}

fn namespaces(all: Vec<Replicated>) -> Report {
    Report::Replicated(ResourceKind::namespaces(), Change::Snapshot(all))
}

fn pod() -> Workload {
    test_util::pod(Some("arn:aws:iam::123456789012:role/reader"))
}

fn decide(writer: &RuleStoreWriter) -> Decision {
    writer
        .rules()
        .load()
        .rules
        .decide(&pod(), Timestamp::UNIX_EPOCH)
}

fn allows(writer: &RuleStoreWriter) -> bool {
    matches!(decide(writer), Decision::Allow { .. })
}

fn namespace(labels: serde_json::Value) -> Replicated {
    let object = json!({"metadata": {"name": "default", "labels": labels}});
    Replicated {
        resource: ResourceKind::namespaces(),
        namespace: None,
        name: "default".into(),
        object: object.to_string().into(),
        left_out: 0,
    }
}

#[test]
fn nothing_is_decided_before_all_that_policies_need_is_there() {
    let mut writer = writer(RegoConfig::default());
    assert_eq!(writer.not_synced(), Some(NotSynced::Policies));
    assert_eq!(decide(&writer), Decision::Pending);
    writer.apply(maps(vec![map("teams", "agent", NEEDS_A_TEAM)]));
    // An agent's policy reads namespaces, so they are needed too.
    let needs = writer.rules().load().needs.clone();
    assert_eq!(needs.replicated, [ResourceKind::namespaces()].into());
    assert_eq!(decide(&writer), Decision::Pending);
    writer.apply(namespaces(vec![namespace(json!({"team": "a"}))]));
    assert!(allows(&writer));
}

#[test]
fn unread_resources_are_not_watched_and_dropped() {
    let mut writer = writer(RegoConfig::default());
    let watch = Watch::Replicated(ResourceKind::namespaces());
    writer.apply(maps(vec![map("teams", "agent", NEEDS_A_TEAM)]));
    writer.apply(namespaces(vec![namespace(json!({"team": "a"}))]));
    assert!(allows(&writer));
    writer.apply(maps(vec![map("open", "agent", DENY_NONE)]));
    assert!(writer.rules().load().needs.replicated.is_empty());
    writer.apply(Report::Unwatched(watch));
    assert!(allows(&writer));
    // A source that reads them again waits for their current state.
    writer.apply(maps(vec![map("teams", "agent", NEEDS_A_TEAM)]));
    assert_eq!(decide(&writer), Decision::Pending);
    writer.apply(namespaces(vec![namespace(json!({}))]));
    assert!(!allows(&writer));
    writer.apply(Report::Unwatched(Watch::ConfigMaps("opa".into())));
    assert_eq!(decide(&writer), Decision::Pending);
}

#[test]
fn policies_are_evaluated_at_their_enforcement_points() {
    let mut writer = writer(RegoConfig::default());
    writer.apply(maps(vec![map("admission", "admission", DENY_ALL)]));
    assert!(writer.rules().load().needs.replicated.is_empty());
    assert!(allows(&writer));
    writer.apply(maps(vec![map("both", "admission,agent", DENY_ALL)]));
    writer.apply(namespaces(Vec::new()));
    assert!(!allows(&writer));
    // An invalid annotation enforces the policy everywhere rather than nowhere.
    writer.apply(maps(vec![map("typo", "webhooks", DENY_ALL)]));
    assert!(!allows(&writer));
    assert_eq!(writer.invalid_points().len(), 1);
}

#[test]
fn threat_10_a_required_policy_that_is_gone_refuses_everything() {
    let required = RegoConfig {
        required: [("opa".into(), "must".into())].into(),
        ..RegoConfig::default()
    };
    let mut writer = writer(required);
    writer.apply(namespaces(Vec::new()));
    writer.apply(maps(vec![map("must", "admission,agent", DENY_NONE)]));
    assert!(allows(&writer) && writer.missing().is_none());
    writer.apply(maps(Vec::new()));
    assert!(!allows(&writer));
    assert!(writer.missing().unwrap().contains("opa/must"));
}

#[test]
fn a_broken_policy_keeps_its_last_valid_version() {
    let mut writer = writer(RegoConfig::default());
    writer.apply(namespaces(Vec::new()));
    writer.apply(maps(vec![map("one", "agent", DENY_ALL)]));
    assert!(!allows(&writer));
    let broken = map("one", "agent", "package kubernetes.admission\ndeny[");
    let change = Report::ConfigMaps("opa".into(), Change::Apply(broken.clone()));
    assert_eq!(writer.apply(change), Invalidated::All);
    assert!(!allows(&writer), "the last good one denies");
    let status = writer.policy_statuses().values().next().unwrap().to_json();
    assert_eq!(status["status"], json!("error"));
    let counts = writer.rules().load().in_force.policies;
    assert_eq!((counts.ok, counts.outdated, counts.unusable), (0, 1, 0));
    let mut annotated = broken;
    annotated.annotations = [
        ("rolegate.dev/enforcement-points", "agent"),
        ("openpolicyagent.org/kube-mgmt-status", "{}"),
    ]
    .into_iter()
    .collect();
    let change = Report::ConfigMaps("opa".into(), Change::Apply(annotated));
    assert_eq!(writer.apply(change), Invalidated::Nothing);
}

#[test]
fn policies_read_replicated_objects_as_they_change() {
    let mut writer = writer(RegoConfig::default());
    writer.apply(maps(vec![map("teams", "agent", NEEDS_A_TEAM)]));
    writer.apply(namespaces(vec![namespace(json!({}))]));
    assert!(!allows(&writer));
    let labelled = Change::Apply(namespace(json!({"team": "a"})));
    writer.apply(Report::Replicated(ResourceKind::namespaces(), labelled));
    assert!(allows(&writer));
}

#[test]
fn a_policy_that_reads_names_is_evaluated_for_each_pod() {
    let text = "package kubernetes.admission\n\
                deny[msg] { input.request.object.metadata.name == \"bad\"; msg := \"bad\" }\n";
    let mut writer = writer(RegoConfig::default());
    writer.apply(maps(vec![map("names", "agent", text)]));
    writer.apply(namespaces(Vec::new()));
    let snapshot = writer.rules().load().clone();
    let decision_cache = rolegate_core::decision_cache::DecisionCache::default();
    let allowed = |name: &str| {
        let pod = Workload {
            name: name.into(),
            ..pod()
        };
        let decision = decision_cache.decide(&snapshot.rules, &pod, Timestamp::UNIX_EPOCH);
        matches!(decision, Decision::Allow { .. })
    };
    assert!(allowed("good") && !allowed("bad"));
}

#[test]
fn without_a_label_other_config_maps_are_ignored() {
    let mut writer = writer(RegoConfig {
        label: None,
        ..RegoConfig::default()
    });
    writer.apply(namespaces(Vec::new()));
    let other = |text: &str| ConfigMap {
        data: [("settings".to_owned(), text.to_owned())].into(),
        ..map("other", "admission,agent", "")
    };
    writer.apply(maps(vec![
        other("level: debug"),
        map("open", "agent", DENY_NONE),
    ]));
    assert!(allows(&writer));
    let status = |writer: &RuleStoreWriter| {
        writer.policy_statuses()["opa/other"].to_json()["status"].clone()
    };
    assert_eq!(status(&writer), "ignored");
    // It becomes a policy, and remains one whatever its content.
    for text in [DENY_ALL, "level: debug"] {
        writer.apply(Report::ConfigMaps("opa".into(), Change::Apply(other(text))));
        assert!(!allows(&writer), "{text}");
    }
    assert_eq!(status(&writer), "error");
    // A broken ConfigMap that resembles Rego denies requests.
    writer.apply(maps(vec![other("package kubernetes.admission\ndeny[")]));
    assert!(!allows(&writer));
}

#[test]
fn another_label_reads_the_config_maps_anew() {
    let mut writer = writer(RegoConfig::default());
    writer.apply(namespaces(Vec::new()));
    let mut unlabelled = map("one", "agent", DENY_ALL);
    unlabelled.labels = Labels::default();
    writer.apply(maps(vec![unlabelled]));
    assert!(allows(&writer));
    let all = config(RegoConfig {
        label: None,
        ..RegoConfig::default()
    });
    let all = RuleUpdate::Config(ClusterConfig::Valid(Arc::new(all)));
    writer.apply(Report::Rules(all));
    assert!(!allows(&writer));
}

#[test]
fn threat_28_objects_that_were_left_out_deny_and_are_followed_anew_once_there_is_room() {
    let watch = Watch::Replicated(ResourceKind::namespaces());
    let mut writer = writer(RegoConfig::default());
    let reads = "package kubernetes.admission\ndeny[msg] { data.kubernetes.namespaces[_].metadata.labels.bad; msg := \"bad\" }";
    writer.apply(maps(vec![map("reads", "agent", reads)]));
    let follows = |writer: &RuleStoreWriter| {
        let snapshot = writer.rules().load().needs.replicated.clone();
        snapshot.contains(&ResourceKind::namespaces())
    };
    assert!(follows(&writer));
    writer.apply(namespaces(vec![namespace(json!({}))]));
    assert!(allows(&writer));
    let huge = |left_out| Replicated {
        name: "huge".into(),
        object: Box::default(),
        left_out,
        ..namespace(json!({}))
    };
    writer.apply(namespaces(vec![namespace(json!({})), huge(usize::MAX / 2)]));
    assert!(!allows(&writer) && follows(&writer));
    // It shrinks while others disappear: everything would fit, and is reloaded.
    writer.apply(namespaces(vec![namespace(json!({})), huge(10)]));
    assert!(!allows(&writer) && !follows(&writer));
    writer.apply(Report::Unwatched(watch));
    assert!(follows(&writer));
    writer.apply(namespaces(vec![namespace(json!({}))]));
    assert!(allows(&writer));
}

#[test]
fn threat_28_what_rules_read_is_told_and_not_taken_back_while_they_are_loaded_anew() {
    let mut writer = writer(RegoConfig::default());
    let needs = writer.rules().needs();
    assert!(needs.borrow().is_none(), "policies are not loaded");
    writer.apply(maps(Vec::new()));
    assert_eq!(*needs.borrow(), Some(Needs::default()));
    let any = "package kubernetes.admission\ndeny[msg] { false; msg := 1 }";
    writer.apply(maps(vec![map("any", "agent", any)]));
    let read = needs.borrow().clone().unwrap();
    assert_eq!(
        (read.pod_labels, read.pod_annotations),
        (Keys::All, Keys::All)
    );
    writer.apply(Report::Unwatched(Watch::ConfigMaps("opa".into())));
    assert!(needs.borrow().is_some());
}
