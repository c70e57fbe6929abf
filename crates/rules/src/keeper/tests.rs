use jiff::Timestamp;
use rolegate_core::config::Modes;
use rolegate_core::decision::Decision;
use rolegate_core::key_values::KeyValues;
use rolegate_core::namespace::Namespace;
use rolegate_core::needs::{Keys, Needs};
use rolegate_core::rulebook::ClusterConfig;
use rolegate_core::workload::{Phase, Wish, Workload};
use serde_json::json;

use super::*;

const DENY_ALL: &str = "package kubernetes.admission\ndeny[msg] { msg := \"nobody\" }\n";
const NEEDS_A_TEAM: &str = "package kubernetes.admission\nimport data.kubernetes.namespaces\n\
    deny[msg] { not namespaces[input.request.namespace].metadata.labels.team; msg := \"no team\" }\n";
const DENY_NONE: &str = "package kubernetes.admission\ndeny[msg] { false; msg := \"\" }\n";

fn config(rego: RegoConfig) -> RuleConfig {
    RuleConfig {
        modes: Modes {
            namespace: Mode::Off,
            grants: Mode::Off,
            rego: Mode::Enforce,
        },
        rego,
        ..RuleConfig::default()
    }
}

fn keeper(rego: RegoConfig) -> Keeper {
    let mut keeper = Keeper::new(config(rego), Point::Door, SessionScope::Workload, 3600);
    keeper.learn(Facts::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    let namespaces = Change::Snapshot(vec![default]);
    keeper.apply(Report::Rules(RuleUpdate::Namespaces(namespaces)));
    keeper
}

fn map(name: &str, points: &str, text: &str) -> ConfigMap {
    ConfigMap {
        namespace: "opa".into(),
        name: name.into(),
        labels: [("openpolicyagent.org/policy", "rego")]
            .into_iter()
            .collect(),
        annotations: [("rolegate.dev/points", points)].into_iter().collect(),
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
    Workload {
        namespace: "default".into(),
        name: "app".into(),
        uid: "1".into(),
        node: None,
        service_account: "default".into(),
        addresses: Vec::new(),
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        wish: Wish {
            role: Some("arn:aws:iam::123456789012:role/reader".into()),
            ..Wish::default()
        },
        labels: KeyValues::default(),
        annotations: KeyValues::default(),
    }
}

fn decide(keeper: &Keeper) -> Decision {
    keeper
        .rules()
        .load()
        .rules
        .decide(&pod(), Timestamp::UNIX_EPOCH)
}

fn allows(keeper: &Keeper) -> bool {
    matches!(decide(keeper), Decision::Allow { .. })
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
    let mut keeper = keeper(RegoConfig::default());
    assert_eq!(keeper.unseen(), Some("policies are not loaded"));
    assert_eq!(decide(&keeper), Decision::Undecided);
    keeper.apply(maps(vec![map("teams", "door", NEEDS_A_TEAM)]));
    // A door's policy reads namespaces, so they are needed too.
    let needs = keeper.rules().load().needs.clone();
    assert_eq!(needs.replicated, [ResourceKind::namespaces()].into());
    assert_eq!(decide(&keeper), Decision::Undecided);
    keeper.apply(namespaces(vec![namespace(json!({"team": "a"}))]));
    assert!(allows(&keeper));
}

#[test]
fn what_no_policy_reads_is_not_followed_and_what_is_not_followed_is_forgotten() {
    let mut keeper = keeper(RegoConfig::default());
    let watch = Watch::Replicated(ResourceKind::namespaces());
    keeper.apply(maps(vec![map("teams", "door", NEEDS_A_TEAM)]));
    keeper.apply(namespaces(vec![namespace(json!({"team": "a"}))]));
    assert!(allows(&keeper));
    keeper.apply(maps(vec![map("open", "door", DENY_NONE)]));
    assert!(keeper.rules().load().needs.replicated.is_empty());
    keeper.apply(Report::Unfollowed(watch));
    assert!(allows(&keeper));
    // Whoever reads them again waits for what they are by now.
    keeper.apply(maps(vec![map("teams", "door", NEEDS_A_TEAM)]));
    assert_eq!(decide(&keeper), Decision::Undecided);
    keeper.apply(namespaces(vec![namespace(json!({}))]));
    assert!(!allows(&keeper));
    keeper.apply(Report::Unfollowed(Watch::ConfigMaps("opa".into())));
    assert_eq!(decide(&keeper), Decision::Undecided);
}

#[test]
fn policies_of_the_gate_are_not_asked_at_doors_and_those_of_both_are() {
    let mut keeper = keeper(RegoConfig::default());
    keeper.apply(maps(vec![map("gate", "gate", DENY_ALL)]));
    assert!(keeper.rules().load().needs.replicated.is_empty());
    assert!(allows(&keeper));
    keeper.apply(maps(vec![map("both", "gate,door", DENY_ALL)]));
    keeper.apply(namespaces(Vec::new()));
    assert!(!allows(&keeper));
    // What cannot be read is asked everywhere rather than nowhere.
    keeper.apply(maps(vec![map("typo", "gates", DENY_ALL)]));
    assert!(!allows(&keeper));
    assert_eq!(keeper.misplaced().len(), 1);
}

#[test]
fn threat_10_a_required_policy_that_is_gone_refuses_everything() {
    let required = RegoConfig {
        required: [("opa".into(), "must".into())].into(),
        ..RegoConfig::default()
    };
    let mut keeper = keeper(required);
    keeper.apply(namespaces(Vec::new()));
    keeper.apply(maps(vec![map("must", "gate,door", DENY_NONE)]));
    assert!(allows(&keeper) && keeper.missing().is_none());
    keeper.apply(maps(Vec::new()));
    assert!(!allows(&keeper));
    assert!(keeper.missing().unwrap().contains("opa/must"));
}

#[test]
fn a_broken_policy_keeps_its_last_good_one_and_a_status_is_no_change() {
    let mut keeper = keeper(RegoConfig::default());
    keeper.apply(namespaces(Vec::new()));
    keeper.apply(maps(vec![map("one", "door", DENY_ALL)]));
    assert!(!allows(&keeper));
    let broken = map("one", "door", "package kubernetes.admission\ndeny[");
    let change = Report::ConfigMaps("opa".into(), Change::Apply(broken.clone()));
    assert_eq!(keeper.apply(change), Touched::All);
    assert!(!allows(&keeper), "the last good one denies");
    let status = keeper.policy_statuses();
    let status = status.values().next().unwrap().to_json();
    assert_eq!(status["status"], json!("error"));
    let counts = keeper.rules().load().in_force.policies;
    assert_eq!((counts.ok, counts.outdated, counts.unusable), (0, 1, 0));
    let mut told = broken;
    told.annotations = [
        ("rolegate.dev/points", "door"),
        ("openpolicyagent.org/kube-mgmt-status", "{}"),
    ]
    .into_iter()
    .collect();
    let change = Report::ConfigMaps("opa".into(), Change::Apply(told));
    assert_eq!(keeper.apply(change), Touched::Nothing);
}

#[test]
fn policies_read_replicated_objects_as_they_change() {
    let mut keeper = keeper(RegoConfig::default());
    keeper.apply(maps(vec![map("teams", "door", NEEDS_A_TEAM)]));
    keeper.apply(namespaces(vec![namespace(json!({}))]));
    assert!(!allows(&keeper));
    let labelled = Change::Apply(namespace(json!({"team": "a"})));
    keeper.apply(Report::Replicated(ResourceKind::namespaces(), labelled));
    assert!(allows(&keeper));
}

#[test]
fn a_policy_that_looks_at_names_is_asked_for_each_pod() {
    let text = "package kubernetes.admission\n\
                deny[msg] { input.request.object.metadata.name == \"bad\"; msg := \"bad\" }\n";
    let mut keeper = keeper(RegoConfig::default());
    keeper.apply(maps(vec![map("names", "door", text)]));
    keeper.apply(namespaces(Vec::new()));
    let snapshot = keeper.rules().load().clone();
    let memo = rolegate_core::memo::Memo::default();
    let allowed = |name: &str| {
        let pod = Workload {
            name: name.into(),
            ..pod()
        };
        let decision = memo.decide(&snapshot.rules, &pod, Timestamp::UNIX_EPOCH);
        matches!(decision, Decision::Allow { .. })
    };
    assert!(allowed("good") && !allowed("bad"));
}

#[test]
fn without_a_label_what_is_no_rego_is_told_and_refuses_nothing() {
    let mut keeper = keeper(RegoConfig {
        label: None,
        ..RegoConfig::default()
    });
    keeper.apply(namespaces(Vec::new()));
    let other = |text: &str| ConfigMap {
        data: [("settings".to_owned(), text.to_owned())].into(),
        ..map("other", "gate,door", "")
    };
    keeper.apply(maps(vec![
        other("level: debug"),
        map("open", "door", DENY_NONE),
    ]));
    assert!(allows(&keeper));
    let status =
        |keeper: &Keeper| keeper.policy_statuses()["opa/other"].to_json()["status"].clone();
    assert_eq!(status(&keeper), "ignored");
    // It becomes one, and stays one whatever it says.
    for text in [DENY_ALL, "level: debug"] {
        keeper.apply(Report::ConfigMaps("opa".into(), Change::Apply(other(text))));
        assert!(!allows(&keeper), "{text}");
    }
    assert_eq!(status(&keeper), "error");
    // A broken one that looks like Rego refuses.
    keeper.apply(maps(vec![other("package kubernetes.admission\ndeny[")]));
    assert!(!allows(&keeper));
}

#[test]
fn another_label_reads_the_config_maps_anew() {
    let mut keeper = keeper(RegoConfig::default());
    keeper.apply(namespaces(Vec::new()));
    let mut unlabelled = map("one", "door", DENY_ALL);
    unlabelled.labels = KeyValues::default();
    keeper.apply(maps(vec![unlabelled]));
    assert!(allows(&keeper));
    let all = config(RegoConfig {
        label: None,
        ..RegoConfig::default()
    });
    let all = RuleUpdate::Config(ClusterConfig::Is(Arc::new(all)));
    keeper.apply(Report::Rules(all));
    assert!(!allows(&keeper));
}

#[test]
fn threat_28_objects_that_were_left_out_deny_and_are_followed_anew_once_there_is_room() {
    let watch = Watch::Replicated(ResourceKind::namespaces());
    let mut keeper = keeper(RegoConfig::default());
    let reads = "package kubernetes.admission\ndeny[msg] { data.kubernetes.namespaces[_].metadata.labels.bad; msg := \"bad\" }";
    keeper.apply(maps(vec![map("reads", "door", reads)]));
    let follows = |keeper: &Keeper| {
        let snapshot = keeper.rules().load().needs.replicated.clone();
        snapshot.contains(&ResourceKind::namespaces())
    };
    assert!(follows(&keeper));
    keeper.apply(namespaces(vec![namespace(json!({}))]));
    assert!(allows(&keeper));
    let huge = |left_out| Replicated {
        name: "huge".into(),
        object: Box::default(),
        left_out,
        ..namespace(json!({}))
    };
    keeper.apply(namespaces(vec![namespace(json!({})), huge(usize::MAX / 2)]));
    assert!(!allows(&keeper) && follows(&keeper));
    // It shrinks while others go: everything would fit, and is read anew.
    keeper.apply(namespaces(vec![namespace(json!({})), huge(10)]));
    assert!(!allows(&keeper) && !follows(&keeper));
    keeper.apply(Report::Unfollowed(watch));
    assert!(follows(&keeper));
    keeper.apply(namespaces(vec![namespace(json!({}))]));
    assert!(allows(&keeper));
}

#[test]
fn threat_28_what_rules_read_is_told_and_not_taken_back_while_they_are_loaded_anew() {
    let mut keeper = keeper(RegoConfig::default());
    let needs = keeper.rules().needs();
    assert!(needs.borrow().is_none(), "policies are not loaded");
    keeper.apply(maps(Vec::new()));
    assert_eq!(*needs.borrow(), Some(Needs::default()));
    let any = "package kubernetes.admission\ndeny[msg] { false; msg := 1 }";
    keeper.apply(maps(vec![map("any", "door", any)]));
    let read = needs.borrow().clone().unwrap();
    assert_eq!(
        (read.pod_labels, read.pod_annotations),
        (Keys::All, Keys::All)
    );
    keeper.apply(Report::Unfollowed(Watch::ConfigMaps("opa".into())));
    assert!(needs.borrow().is_some());
}
