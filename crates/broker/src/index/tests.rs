//! Tests of the index alone: sources and commands in, subscriptions out.

use prometheus_client::registry::Registry;
use rolegate_authorizer::ledger::Ledger;
use rolegate_authorizer::pod::Authorization;
use rolegate_authorizer::work_queue::WorkQueue;
use rolegate_core::annotation::ENFORCEMENT_POINTS;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, POLICY_LABEL, RuleConfig};
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::AwsEnvironment;
use rolegate_core::session_name::SessionScope;
use rolegate_core::test_util;
use rolegate_core::workload::{Change, Phase, RoleRequest, Update};
use rolegate_kube::config_maps::ConfigMap;
use rolegate_rules::store::Report;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::keyed_limit::KeyedLimiter;
use rolegate_runtime::test_util::Exposition;
use rolegate_sessions::{RemoteSessions, Sessions};

mod activate;
mod assigned;

use super::*;
use crate::identity::AgentAccount;

struct Fixture {
    index: Index,
    registry: Registry,
    readiness: Readiness,
    _fed: RemoteSessions,
}

fn empty() -> Fixture {
    empty_by(RuleConfig::default())
}

fn empty_by(config: RuleConfig) -> Fixture {
    let (sessions, fed) = Sessions::remote();
    let writer = RuleStoreWriter::new(
        config,
        EnforcementPoint::Agent,
        SessionScope::Workload,
        3600,
    );
    let mut registry = Registry::default();
    let readiness = Readiness::new();
    let parts = IndexParts {
        authorizer: Authorizer::new(writer.rules(), sessions, Clock::system()),
        writer,
        agents: Agents::new(AgentAccount {
            namespace: "rolegate".into(),
            name: "agent".into(),
            audience: "rolegate".into(),
            check_address: true,
        }),
        node_addresses: None,
        metrics: BrokerMetrics::register(&mut registry),
    };
    Fixture {
        index: Index::new(parts, &readiness),
        registry,
        readiness,
        _fed: fed,
    }
}

/// Returns an index without pods where namespace `default` allows `reader`.
fn synced() -> Fixture {
    settle(empty())
}

fn settle(mut fixture: Fixture) -> Fixture {
    fixture
        .index
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    fixture.allow(r#"["reader"]"#);
    fixture.set_aws_environment();
    fixture
}

fn pod(uid: &str, node: &str) -> Workload {
    Workload {
        name: format!("pod-{uid}").into(),
        uid: uid.into(),
        node: Some(node.into()),
        ..test_util::pod(Some("reader"))
    }
}

fn agent(node: &str) -> Workload {
    Workload {
        namespace: "rolegate".into(),
        service_account: "agent".into(),
        host_network: true,
        role_request: RoleRequest::default(),
        ..pod("uid-agent", node)
    }
}

fn subscription(node: &str, pod_uid: Option<&str>) -> Arc<Subscription> {
    let permit = KeyedLimiter::new(1).take(node.into()).unwrap();
    Arc::new(Subscription::new(permit, pod_uid.map(Into::into)))
}

fn namespace(roles: &str) -> Update {
    Update::Namespaces(Change::Snapshot(vec![Namespace {
        name: "default".into(),
        allowed_roles: Some(roles.into()),
        ..Namespace::default()
    }]))
}

impl Fixture {
    fn apply(&mut self, pod: Workload) {
        self.index.update(Update::Workloads(Change::Apply(pod)));
    }

    fn allow(&mut self, roles: &str) {
        self.index.update(namespace(roles));
        self.index.reconcile_batch(BATCH_SIZE);
    }

    fn set_aws_environment(&mut self) {
        self.index.set_aws_environment(AwsEnvironment {
            base: Some(BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()),
            ..AwsEnvironment::default()
        });
        self.index.reconcile_batch(BATCH_SIZE);
    }

    /// Opens an active stream of `node`.
    fn serving(&mut self, node: &str, pod_uid: Option<&str>) -> Arc<Subscription> {
        let subscription = self.begins(node, pod_uid);
        self.reconcile_all();
        subscription
    }

    /// Activates a stream of `node` for which no pod is decided yet.
    fn begins(&mut self, node: &str, pod_uid: Option<&str>) -> Arc<Subscription> {
        let subscription = subscription(node, pod_uid);
        self.index
            .command(StreamCommand::Join(subscription.clone()));
        self.index
            .command(StreamCommand::Activate(subscription.clone()));
        subscription
    }

    fn reconcile_all(&mut self) {
        while !self.index.state.is_idle() {
            self.index.reconcile_batch(BATCH_SIZE);
        }
    }

    fn metric(&self, line: &str) -> bool {
        Exposition::encode(&self.registry).has_line(line)
    }

    fn leased(&self) -> usize {
        self.index.users.len()
    }
}

fn authorization(subscription: &Subscription, uid: &str) -> &'static str {
    let entry = subscription.entry(uid);
    match entry.map(|it| it.decided.load_full()).as_deref() {
        None => "unknown",
        Some(decided) => match &decided.authorization {
            Authorization::Allowed(_) => "allowed",
            Authorization::NoRole => "no role",
            Authorization::Denied { .. } => "denied",
            Authorization::Pending => "undecided",
        },
    }
}

/// Returns everything that is left to send.
fn sent(subscription: &Subscription) -> (Vec<String>, Vec<String>, bool) {
    let updates: Vec<_> =
        std::iter::from_fn(|| subscription.take(&Ledger::default(), jiff::Timestamp::UNIX_EPOCH))
            .collect();
    let pods = updates.iter().flat_map(|it| &it.pods);
    (
        pods.map(|it| it.uid.clone()).collect(),
        updates
            .iter()
            .flat_map(|it| it.removed_pod_uids.clone())
            .collect(),
        updates.iter().any(|it| it.complete),
    )
}

#[test]
fn sessions_are_held_for_pods_of_served_nodes_alone() {
    let mut fixture = synced();
    fixture.apply(pod("uid-1", "node-1"));
    fixture.apply(pod("uid-2", "node-2"));
    assert_eq!(fixture.leased(), 0);
    // A standby stream receives nothing, and no sessions are held for it.
    let warm = subscription("node-2", None);
    fixture.index.command(StreamCommand::Join(warm.clone()));
    assert!(!warm.has_changes() && fixture.leased() == 0);
    let subscription = fixture.serving("node-1", None);
    assert_eq!(fixture.leased(), 1);
    assert_eq!(sent(&subscription), (vec!["uid-1".into()], vec![], true));
    assert!(fixture.metric("broker_streams{use=\"serving\"} 1"));
    assert!(fixture.metric("broker_streams{use=\"warm\"} 1"));

    fixture
        .index
        .command(StreamCommand::Leave(subscription.clone()));
    assert_eq!(fixture.leased(), 0);
    drop(subscription);
    fixture.index.command(StreamCommand::Leave(warm));
    assert!(fixture.metric("broker_streams{use=\"warm\"} 0"));
}

#[test]
fn nothing_is_complete_before_pods_and_rules_are_known() {
    let mut fixture = empty();
    fixture
        .index
        .update(Update::Workloads(Change::Snapshot(vec![pod(
            "uid-1", "node-1",
        )])));
    let subscription = fixture.serving("node-1", None);
    let (_, _, complete) = sent(&subscription);
    assert!(!complete && authorization(&subscription, "uid-1") == "undecided");
    assert!(!fixture.readiness.is_ready());
    fixture.allow(r#"["reader"]"#);
    fixture.set_aws_environment();
    assert!(fixture.readiness.is_ready());
    assert_eq!(sent(&subscription), (vec!["uid-1".into()], vec![], true));
    assert_eq!(authorization(&subscription, "uid-1"), "allowed");
}

#[test]
fn a_change_of_the_rules_reaches_all_pods_that_it_touches() {
    let mut fixture = synced();
    for number in 0..300 {
        fixture.apply(pod(&format!("uid-{number}"), "node-1"));
    }
    let subscription = fixture.serving("node-1", None);
    assert_eq!(sent(&subscription).0.len(), 300);
    fixture.allow(r#"["writer"]"#);
    // The work is batched, so sources are read in between.
    assert!(!fixture.index.state.is_idle());
    fixture.reconcile_all();
    assert_eq!(sent(&subscription).0.len(), 300);
    assert_eq!(authorization(&subscription, "uid-299"), "denied");
    assert_eq!(fixture.leased(), 0);
}

#[test]
fn frequent_rule_changes_starve_no_pod() {
    let mut fixture = synced();
    for number in 0..300 {
        fixture.apply(pod(&format!("uid-{number}"), "node-1"));
    }
    let subscription = fixture.serving("node-1", None);
    // Each change queues all pods, and there is time for one batch only. A slow machine ends a batch
    // early.
    let mut denied = 0;
    for round in 0.. {
        fixture.allow(&format!(r#"["writer-{round}"]"#));
        let pods = (0..300).map(|number| format!("uid-{number}"));
        let now = pods.filter(|uid| authorization(&subscription, uid) == "denied");
        let before = std::mem::replace(&mut denied, now.count());
        assert!(denied > before, "{denied} of 300 pods are reached");
        if denied == 300 {
            break;
        }
    }
}

/// Returns an update that sets the only policy.
fn policy(text: &str) -> Report {
    let map = ConfigMap {
        namespace: "opa".into(),
        name: "policy".into(),
        labels: [POLICY_LABEL].into_iter().collect(),
        annotations: [(ENFORCEMENT_POINTS, "agent")].into_iter().collect(),
        data: [("main.rego".to_owned(), text.to_owned())].into(),
        ..ConfigMap::default()
    };
    Report::ConfigMaps("opa".into(), Change::Snapshot(vec![map]))
}

#[test]
fn a_slow_policy_is_evaluated_again_and_delays_no_source() {
    let mut fixture = empty_by(RuleConfig {
        modes: Modes::default().with(LayerId::Rego, Mode::Enforce),
        ..RuleConfig::default()
    });
    let endless = "package kubernetes.admission\ndeny[msg] { r := numbers.range(1, 2000); x := r[_]; y := r[_]; \
                   z := r[_]; x + y + z < 0; msg := 1 }";
    fixture.index.report(policy(endless));
    let mut fixture = settle(fixture);
    for number in 0..3 {
        fixture.apply(pod(&format!("uid-{number}"), "node-1"));
    }
    let subscription = fixture.serving("node-1", None);
    assert_eq!(authorization(&subscription, "uid-0"), "denied");
    assert!(fixture.index.state.is_idle());
    fixture.index.recheck_timely();
    assert!(!fixture.index.state.is_idle());
    // One evaluation uses up the time of a batch, so the sources are read after each.
    fixture.index.reconcile_batch(BATCH_SIZE);
    assert!(!fixture.index.state.is_idle());
    fixture.reconcile_all();
    assert_eq!(authorization(&subscription, "uid-0"), "denied");
    // The policy finishes the next time, although no change was reported.
    fixture.index.state.writer().apply(policy(
        "package kubernetes.admission\ndeny[msg] { false; msg := 1 }",
    ));
    fixture.index.recheck_timely();
    fixture.index.reconcile_batch(BATCH_SIZE);
    for number in 0..3 {
        assert_eq!(
            authorization(&subscription, &format!("uid-{number}")),
            "allowed"
        );
    }
    // The decision is kept until something changes.
    fixture.index.recheck_timely();
    assert!(fixture.index.state.is_idle());
}

#[test]
fn a_pod_belongs_to_the_node_that_it_is_on() {
    let mut fixture = synced();
    let (one, two) = (
        fixture.serving("node-1", None),
        fixture.serving("node-2", None),
    );
    fixture.apply(pod("uid-1", "node-1"));
    sent(&one);
    sent(&two);
    fixture.apply(pod("uid-1", "node-2"));
    assert_eq!(sent(&one), (vec![], vec!["uid-1".into()], false));
    assert_eq!(sent(&two), (vec!["uid-1".into()], vec![], false));
    fixture
        .index
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    assert_eq!(sent(&two), (vec![], vec!["uid-1".into()], false));
    assert_eq!(fixture.leased(), 0);
}

#[test]
fn threat_09_a_stream_ends_with_its_agents_pod() {
    type Fate = fn(&mut Fixture);
    let fates: [(&str, Fate); 4] = [
        ("is deleted", |fixture| {
            let agent = agent("node-1");
            fixture
                .index
                .update(Update::Workloads(Change::Delete(agent)));
        }),
        ("is over", |fixture| {
            fixture.apply(Workload {
                phase: Phase::Failed,
                ..agent("node-1")
            });
        }),
        ("is on another node", |fixture| {
            fixture.apply(agent("node-2"))
        }),
        ("is missing in a snapshot", |fixture| {
            let none = Change::Snapshot(Vec::new());
            fixture.index.update(Update::Workloads(none));
        }),
    ];
    for (what, happens) in fates {
        let mut fixture = synced();
        fixture.apply(agent("node-1"));
        let subscription = fixture.serving("node-1", Some("uid-agent"));
        let by_certificate = fixture.serving("node-1", None);
        fixture.apply(Workload {
            labels: [("a", "b")].into_iter().collect(),
            ..agent("node-1")
        });
        assert!(!subscription.closed.is_cancelled(), "{what}");
        happens(&mut fixture);
        assert!(subscription.closed.is_cancelled(), "{what}");
        assert!(!by_certificate.closed.is_cancelled(), "{what}");
    }
    // The pod was deleted between authentication and activation.
    let mut fixture = synced();
    let subscription = fixture.serving("node-1", Some("uid-agent"));
    assert!(subscription.closed.is_cancelled());
}

#[test]
fn threat_01_an_address_that_pods_of_two_nodes_claim_is_an_alarm_and_no_denial() {
    let mut fixture = synced();
    let (one, two) = (
        fixture.serving("node-1", None),
        fixture.serving("node-2", None),
    );
    fixture.apply(pod("victim", "node-1"));
    // Mirror pods own no address: a kubelet controls their content.
    fixture.apply(Workload {
        mirror: true,
        ..pod("mirror", "node-2")
    });
    fixture.apply(Workload {
        host_network: true,
        ..pod("host", "node-2")
    });
    assert!(fixture.metric("broker_address_claimed_twice_total 0"));
    // The node's own agent handles conflicts between its pods.
    fixture.apply(pod("neighbour", "node-1"));
    assert!(fixture.metric("broker_address_claimed_twice_total 0"));
    fixture.apply(pod("thief", "node-2"));
    assert!(fixture.metric("broker_address_claimed_twice_total 1"));
    assert_eq!(authorization(&one, "victim"), "allowed");
    assert_eq!(authorization(&two, "thief"), "allowed");
    assert_eq!(authorization(&one, "thief"), "unknown");
    assert_eq!(authorization(&two, "victim"), "unknown");
    // The conflict is reported once, whatever else changes in the pods.
    for (uid, node) in [("victim", "node-1"), ("thief", "node-2")] {
        fixture.apply(Workload {
            labels: [("a", "b")].into_iter().collect(),
            ..pod(uid, node)
        });
    }
    assert!(fixture.metric("broker_address_claimed_twice_total 1"));
    // The first claimant is deleted, and the address passes to the next.
    for uid in ["victim", "neighbour"] {
        let removed_pod_uids = Change::Delete(pod(uid, "node-1"));
        fixture.index.update(Update::Workloads(removed_pod_uids));
    }
    fixture.apply(pod("next", "node-1"));
    assert!(fixture.metric("broker_address_claimed_twice_total 2"));
    for (uid, node) in [("next", "node-1"), ("thief", "node-2")] {
        let removed_pod_uids = Change::Delete(pod(uid, node));
        fixture.index.update(Update::Workloads(removed_pod_uids));
    }
    fixture.apply(pod("new", "node-1"));
    assert!(fixture.metric("broker_address_claimed_twice_total 2"));
}

#[test]
fn a_new_pod_on_an_emptied_node_reaches_its_stream() {
    let mut fixture = synced();
    let subscription = fixture.serving("node-1", None);
    fixture.apply(pod("uid-1", "node-1"));
    let removed_pod_uids = Change::Delete(pod("uid-1", "node-1"));
    fixture.index.update(Update::Workloads(removed_pod_uids));
    fixture.apply(pod("uid-2", "node-1"));
    assert_eq!(authorization(&subscription, "uid-2"), "allowed");
    // Once the node has neither pods nor streams, the index drops it.
    fixture.index.command(StreamCommand::Leave(subscription));
    let removed_pod_uids = Change::Delete(pod("uid-2", "node-1"));
    fixture.index.update(Update::Workloads(removed_pod_uids));
    assert!(fixture.index.nodes.is_empty());
}

#[test]
fn threat_09_a_stream_ends_with_its_agents_pod_though_another_stream_ended_before() {
    let mut fixture = synced();
    fixture.apply(agent("node-1"));
    let other = fixture.serving("node-2", None);
    let subscription = fixture.serving("node-1", Some("uid-agent"));
    fixture.index.command(StreamCommand::Leave(other));
    let removed_pod_uids = Change::Delete(agent("node-1"));
    fixture.index.update(Update::Workloads(removed_pod_uids));
    assert!(subscription.closed.is_cancelled());
}

#[test]
fn rule_changes_skip_pods_of_unserved_nodes() {
    let mut fixture = synced();
    fixture.apply(pod("uid-1", "node-1"));
    fixture.apply(pod("uid-2", "node-2"));
    let _feed = fixture.serving("node-1", None);
    fixture.index.update(namespace(r#"["writer"]"#));
    let touched: Vec<_> = std::iter::from_fn(|| fixture.index.state.next_queued()).collect();
    assert_eq!(touched, [("uid-1".into(), Reason::Retry)]);
    assert_eq!(fixture.leased(), 1);
    // Rules that affect one namespace do not affect pods of another.
    let elsewhere = Namespace {
        name: "elsewhere".into(),
        ..Namespace::default()
    };
    let change = Update::Namespaces(Change::Apply(elsewhere));
    fixture.index.update(change);
    assert!(fixture.index.state.is_idle());
}

#[test]
fn retries_stay_queued_until_they_are_made() {
    let mut queue = WorkQueue::default();
    for reason in [Reason::Changed, Reason::Retry, Reason::Missing] {
        queue.add("uid-1".into(), reason);
    }
    assert_eq!(queue.take(), Some(("uid-1".into(), Reason::Retry)));
    queue.add("uid-1".into(), Reason::Changed);
    assert_eq!(queue.take(), Some(("uid-1".into(), Reason::Changed)));
    assert_eq!(queue.take(), None);
}

#[test]
fn subscriptions_complete_once_pods_and_rules_are_known() {
    // Rules without pods, and pods without rules.
    let mut fixture = empty();
    let subscription = fixture.serving("node-1", None);
    fixture.allow(r#"["reader"]"#);
    fixture.set_aws_environment();
    assert!(!sent(&subscription).2, "pods are not known");
    let late = fixture.serving("node-1", None);
    assert!(!sent(&late).2);
    let none = Change::Snapshot(Vec::new());
    fixture.index.update(Update::Workloads(none));
    assert!(sent(&subscription).2 && sent(&late).2);
    // The subscription becomes complete once.
    fixture.allow(r#"["writer"]"#);
    assert!(!sent(&subscription).2);
}

#[test]
fn threat_01_an_address_or_a_node_that_changes_is_an_alarm_of_its_own() {
    let mut fixture = synced();
    let address = |last: u8| vec![[10, 0, 0, last].into()];
    let at = |uid: &str, node: &str, last: u8| Workload {
        addresses: address(last),
        ..pod(uid, node)
    };
    fixture.apply(at("victim", "node-1", 1));
    fixture.apply(at("thief", "node-2", 2));
    assert!(fixture.metric("broker_address_claimed_twice_total 0"));
    // Only the address changes.
    fixture.apply(at("thief", "node-2", 1));
    assert!(fixture.metric("broker_address_claimed_twice_total 1"));
    fixture.apply(at("thief", "node-1", 1));
    assert!(fixture.metric("broker_address_claimed_twice_total 1"));
    // Only the node changes.
    fixture.apply(at("thief", "node-2", 1));
    assert!(fixture.metric("broker_address_claimed_twice_total 2"));
}

#[test]
fn pods_that_a_list_does_not_have_are_gone() {
    let mut fixture = synced();
    let subscription = fixture.serving("node-1", None);
    fixture.apply(pod("uid-1", "node-1"));
    fixture.apply(pod("uid-2", "node-1"));
    sent(&subscription);
    let uids = ["uid-2".into(), "uid-3".into()].into();
    fixture.index.update(Update::RetainWorkloads(uids));
    assert_eq!(sent(&subscription), (vec![], vec!["uid-1".into()], false));
    assert!(fixture.metric("pods 1"));
    let update = Update::RetainNamespaces(HashSet::new());
    fixture.index.update(update);
    fixture.index.reconcile_batch(BATCH_SIZE);
    assert_eq!(authorization(&subscription, "uid-2"), "undecided");
}

#[test]
fn label_changes_are_kept_for_later_rules() {
    let mut fixture = synced();
    let subscription = fixture.serving("node-1", None);
    fixture.apply(pod("uid-1", "node-1"));
    sent(&subscription);
    fixture.apply(Workload {
        labels: [("team", "shop")].into_iter().collect(),
        ..pod("uid-1", "node-1")
    });
    assert!(!subscription.has_changes());
    let entry = subscription.entry("uid-1").unwrap();
    assert_eq!(entry.workload.labels.get("team"), Some("shop"));
}
