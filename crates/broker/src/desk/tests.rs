//! The desk on its own: what sources and streams say in, feeds out.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rolegate_aws::sessions::{Fed, Sessions};
use rolegate_core::annotation::POINTS;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, POLICY_LABEL, RuleConfig};
use rolegate_core::key_values::KeyValues;
use rolegate_core::layer::Mode;
use rolegate_core::namespace::Namespace;
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::{Phase, Wish};
use rolegate_kube::config_maps::ConfigMap;
use rolegate_rules::keeper::Point;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::places::Places;
use rolegate_standing::ledger::Ledger;

mod begin;

use super::*;
use crate::identity::AgentAccount;

struct Bench {
    desk: Desk,
    registry: Registry,
    readiness: Readiness,
    _fed: Fed,
}

/// Nothing is known.
fn empty() -> Bench {
    empty_by(RuleConfig::default())
}

fn empty_by(config: RuleConfig) -> Bench {
    let (sessions, fed) = Sessions::fed();
    let keeper = Keeper::new(config, Point::Door, SessionScope::Workload, 3600);
    let mut registry = Registry::default();
    let readiness = Readiness::new();
    let parts = DeskParts {
        decider: Decider::new(keeper.rules(), sessions, Clock::system()),
        keeper,
        agents: Agents::new(AgentAccount {
            namespace: "rolegate".into(),
            name: "agent".into(),
            audience: "rolegate".into(),
            check_address: true,
        }),
        hosts: None,
        metrics: BrokerMetrics::register(&mut registry),
    };
    Bench {
        desk: Desk::new(parts, &readiness),
        registry,
        readiness,
        _fed: fed,
    }
}

/// No pods; namespace `default` allows `reader`.
fn settled() -> Bench {
    settle(empty())
}

fn settle(mut bench: Bench) -> Bench {
    bench
        .desk
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    bench.allow(r#"["reader"]"#);
    bench.learn();
    bench
}

fn pod(uid: &str, node: &str) -> Workload {
    Workload {
        namespace: "default".into(),
        name: format!("pod-{uid}").into(),
        uid: uid.into(),
        node: Some(node.into()),
        service_account: "default".into(),
        addresses: vec![[10, 0, 0, 1].into()],
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        wish: Wish {
            role: Some("reader".into()),
            ..Wish::default()
        },
        labels: KeyValues::default(),
        annotations: KeyValues::default(),
    }
}

fn agent(node: &str) -> Workload {
    Workload {
        namespace: "rolegate".into(),
        service_account: "agent".into(),
        host_network: true,
        wish: Wish::default(),
        ..pod("uid-agent", node)
    }
}

fn feed(node: &str, pod_uid: Option<&str>) -> Arc<Feed> {
    let place = Places::new(1).take(node.into()).unwrap();
    Arc::new(Feed::new(place, pod_uid.map(Into::into)))
}

fn namespace(roles: &str) -> Update {
    Update::Namespaces(Change::Snapshot(vec![Namespace {
        name: "default".into(),
        allowed_roles: Some(roles.into()),
        ..Namespace::default()
    }]))
}

impl Bench {
    fn apply(&mut self, pod: Workload) {
        self.desk.update(Update::Workloads(Change::Apply(pod)));
    }

    fn allow(&mut self, roles: &str) {
        self.desk.update(namespace(roles));
        self.desk.catch_up(PORTION);
    }

    fn learn(&mut self) {
        self.desk.learn(Facts {
            base: Some(BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()),
            ..Facts::default()
        });
        self.desk.catch_up(PORTION);
    }

    /// A stream of `node` that serves.
    fn serving(&mut self, node: &str, pod_uid: Option<&str>) -> Arc<Feed> {
        let feed = self.begins(node, pod_uid);
        self.catch_up_with_all();
        feed
    }

    /// A stream of `node` by which no pod was decided yet.
    fn begins(&mut self, node: &str, pod_uid: Option<&str>) -> Arc<Feed> {
        let feed = feed(node, pod_uid);
        self.desk.order(Order::Join(feed.clone()));
        self.desk.order(Order::Begin(feed.clone()));
        feed
    }

    fn catch_up_with_all(&mut self) {
        while !self.desk.pending.is_empty() {
            self.desk.catch_up(PORTION);
        }
    }

    fn metric(&self, line: &str) -> bool {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text.lines().any(|it| it == line)
    }

    fn leased(&self) -> usize {
        self.desk.users.len()
    }
}

fn standing(feed: &Feed, uid: &str) -> &'static str {
    let resident = feed.resident(uid);
    match resident.map(|it| it.decided.load_full()).as_deref() {
        None => "unknown",
        Some(decided) => match &decided.standing {
            Standing::Allowed(_) => "allowed",
            Standing::NoRole => "no role",
            Standing::Denied { .. } => "denied",
            Standing::Undecided => "undecided",
        },
    }
}

/// All that is sent from here on.
fn sent(feed: &Feed) -> (Vec<String>, Vec<String>, bool) {
    let updates: Vec<_> =
        std::iter::from_fn(|| feed.take(&Ledger::default(), jiff::Timestamp::UNIX_EPOCH)).collect();
    let residents = updates.iter().flat_map(|it| &it.residents);
    (
        residents.map(|it| it.uid.clone()).collect(),
        updates.iter().flat_map(|it| it.gone.clone()).collect(),
        updates.iter().any(|it| it.complete),
    )
}

#[test]
fn sessions_are_held_for_pods_of_served_nodes_alone() {
    let mut bench = settled();
    bench.apply(pod("uid-1", "node-1"));
    bench.apply(pod("uid-2", "node-2"));
    assert_eq!(bench.leased(), 0);
    // A stream that is kept warm gets nothing, and nothing is held for it.
    let warm = feed("node-2", None);
    bench.desk.order(Order::Join(warm.clone()));
    assert!(!warm.has_news() && bench.leased() == 0);
    let feed = bench.serving("node-1", None);
    assert_eq!(bench.leased(), 1);
    assert_eq!(sent(&feed), (vec!["uid-1".into()], vec![], true));
    assert!(bench.metric("broker_streams{use=\"serving\"} 1"));
    assert!(bench.metric("broker_streams{use=\"warm\"} 1"));

    bench.desk.order(Order::Leave(feed.clone()));
    assert_eq!(bench.leased(), 0);
    drop(feed);
    bench.desk.order(Order::Leave(warm));
    assert!(bench.metric("broker_streams{use=\"warm\"} 0"));
}

#[test]
fn nothing_is_complete_before_pods_and_rules_are_known() {
    let mut bench = empty();
    bench
        .desk
        .update(Update::Workloads(Change::Snapshot(vec![pod(
            "uid-1", "node-1",
        )])));
    let feed = bench.serving("node-1", None);
    let (_, _, complete) = sent(&feed);
    assert!(!complete && standing(&feed, "uid-1") == "undecided");
    assert!(!bench.readiness.is_ready());
    bench.allow(r#"["reader"]"#);
    bench.learn();
    assert!(bench.readiness.is_ready());
    assert_eq!(sent(&feed), (vec!["uid-1".into()], vec![], true));
    assert_eq!(standing(&feed, "uid-1"), "allowed");
}

#[test]
fn a_change_of_the_rules_reaches_all_pods_that_it_touches() {
    let mut bench = settled();
    for number in 0..300 {
        bench.apply(pod(&format!("uid-{number}"), "node-1"));
    }
    let feed = bench.serving("node-1", None);
    assert_eq!(sent(&feed).0.len(), 300);
    bench.allow(r#"["writer"]"#);
    // Not all at once, so that sources are listened to between.
    assert!(!bench.desk.pending.is_empty());
    bench.catch_up_with_all();
    assert_eq!(sent(&feed).0.len(), 300);
    assert_eq!(standing(&feed, "uid-299"), "denied");
    assert_eq!(bench.leased(), 0);
}

#[test]
fn every_pod_is_decided_again_though_rules_change_faster_than_all_of_them_can_be() {
    let mut bench = settled();
    for number in 0..300 {
        bench.apply(pod(&format!("uid-{number}"), "node-1"));
    }
    let feed = bench.serving("node-1", None);
    let mut denied = HashSet::new();
    for round in 0..3 {
        // Each time all are touched, and there is time for a portion.
        bench.allow(&format!(r#"["writer-{round}"]"#));
        let pods = (0..300).map(|number| format!("uid-{number}"));
        denied.extend(pods.filter(|uid| standing(&feed, uid) == "denied"));
        assert_eq!(denied.len(), 300.min((round + 1) * PORTION));
    }
}

/// The only policy there is.
fn policy(text: &str) -> Report {
    let map = ConfigMap {
        namespace: "opa".into(),
        name: "policy".into(),
        labels: [POLICY_LABEL].into_iter().collect(),
        annotations: [(POINTS, "door")].into_iter().collect(),
        data: [("main.rego".to_owned(), text.to_owned())].into(),
        ..ConfigMap::default()
    };
    Report::ConfigMaps("opa".into(), Change::Snapshot(vec![map]))
}

#[test]
fn a_policy_that_was_not_done_in_time_is_asked_again_and_holds_up_nobody() {
    let mut bench = empty_by(RuleConfig {
        modes: Modes {
            rego: Mode::Enforce,
            ..Modes::default()
        },
        ..RuleConfig::default()
    });
    let endless = "package kubernetes.admission\ndeny[msg] { r := numbers.range(1, 2000); x := r[_]; y := r[_]; \
                   z := r[_]; x + y + z < 0; msg := 1 }";
    bench.desk.report(policy(endless));
    let mut bench = settle(bench);
    for number in 0..3 {
        bench.apply(pod(&format!("uid-{number}"), "node-1"));
    }
    let feed = bench.serving("node-1", None);
    assert_eq!(standing(&feed, "uid-0"), "denied");
    assert!(bench.desk.pending.is_empty());
    bench.desk.time_went_by();
    assert!(!bench.desk.pending.is_empty());
    // One question takes as long as one go may, so sources are listened to after each.
    bench.desk.catch_up(PORTION);
    assert!(!bench.desk.pending.is_empty());
    bench.catch_up_with_all();
    assert_eq!(standing(&feed, "uid-0"), "denied");
    // The next time it is done, though nothing was said to have changed.
    bench.desk.keeper.apply(policy(
        "package kubernetes.admission\ndeny[msg] { false; msg := 1 }",
    ));
    bench.desk.time_went_by();
    bench.desk.catch_up(PORTION);
    for number in 0..3 {
        assert_eq!(standing(&feed, &format!("uid-{number}")), "allowed");
    }
    // Which counts until something changes.
    bench.desk.time_went_by();
    assert!(bench.desk.pending.is_empty());
}

#[test]
fn a_pod_belongs_to_the_node_that_it_is_on() {
    let mut bench = settled();
    let (one, two) = (bench.serving("node-1", None), bench.serving("node-2", None));
    bench.apply(pod("uid-1", "node-1"));
    sent(&one);
    sent(&two);
    bench.apply(pod("uid-1", "node-2"));
    assert_eq!(sent(&one), (vec![], vec!["uid-1".into()], false));
    assert_eq!(sent(&two), (vec!["uid-1".into()], vec![], false));
    bench
        .desk
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    assert_eq!(sent(&two), (vec![], vec!["uid-1".into()], false));
    assert_eq!(bench.leased(), 0);
}

#[test]
fn threat_09_a_stream_ends_with_its_agents_pod() {
    type Fate = fn(&mut Bench);
    let fates: [(&str, Fate); 4] = [
        ("is deleted", |bench| {
            let agent = agent("node-1");
            bench.desk.update(Update::Workloads(Change::Delete(agent)));
        }),
        ("is over", |bench| {
            bench.apply(Workload {
                phase: Phase::Failed,
                ..agent("node-1")
            });
        }),
        ("is on another node", |bench| bench.apply(agent("node-2"))),
        ("is missing in a snapshot", |bench| {
            let none = Change::Snapshot(Vec::new());
            bench.desk.update(Update::Workloads(none));
        }),
    ];
    for (what, happens) in fates {
        let mut bench = settled();
        bench.apply(agent("node-1"));
        let feed = bench.serving("node-1", Some("uid-agent"));
        let by_certificate = bench.serving("node-1", None);
        // Something else about it changes.
        bench.apply(Workload {
            labels: [("a", "b")].into_iter().collect(),
            ..agent("node-1")
        });
        assert!(!feed.closed.is_cancelled(), "{what}");
        happens(&mut bench);
        assert!(feed.closed.is_cancelled(), "{what}");
        assert!(!by_certificate.closed.is_cancelled(), "{what}");
    }
    // It went between the proof and the stream's beginning.
    let mut bench = settled();
    let feed = bench.serving("node-1", Some("uid-agent"));
    assert!(feed.closed.is_cancelled());
}

#[test]
fn threat_01_an_address_that_pods_of_two_nodes_claim_is_an_alarm_and_no_denial() {
    let mut bench = settled();
    let (one, two) = (bench.serving("node-1", None), bench.serving("node-2", None));
    bench.apply(pod("victim", "node-1"));
    // Those own no address: a kubelet writes into a mirror what it likes.
    bench.apply(Workload {
        mirror: true,
        ..pod("mirror", "node-2")
    });
    bench.apply(Workload {
        host_network: true,
        ..pod("host", "node-2")
    });
    assert!(bench.metric("broker_address_claimed_twice_total 0"));
    // Two of one node are that node's agent's to judge.
    bench.apply(pod("neighbour", "node-1"));
    assert!(bench.metric("broker_address_claimed_twice_total 0"));
    bench.apply(pod("thief", "node-2"));
    assert!(bench.metric("broker_address_claimed_twice_total 1"));
    assert_eq!(standing(&one, "victim"), "allowed");
    assert_eq!(standing(&two, "thief"), "allowed");
    assert_eq!(standing(&one, "thief"), "unknown");
    assert_eq!(standing(&two, "victim"), "unknown");
    // It is told once, whatever else about them changes.
    for (uid, node) in [("victim", "node-1"), ("thief", "node-2")] {
        bench.apply(Workload {
            labels: [("a", "b")].into_iter().collect(),
            ..pod(uid, node)
        });
    }
    assert!(bench.metric("broker_address_claimed_twice_total 1"));
    // Whoever claimed it first goes, and the address is the next one's.
    for uid in ["victim", "neighbour"] {
        let gone = Change::Delete(pod(uid, "node-1"));
        bench.desk.update(Update::Workloads(gone));
    }
    bench.apply(pod("next", "node-1"));
    assert!(bench.metric("broker_address_claimed_twice_total 2"));
    // Nobody claims it any more.
    for (uid, node) in [("next", "node-1"), ("thief", "node-2")] {
        let gone = Change::Delete(pod(uid, node));
        bench.desk.update(Update::Workloads(gone));
    }
    bench.apply(pod("new", "node-1"));
    assert!(bench.metric("broker_address_claimed_twice_total 2"));
}

#[test]
fn a_pod_that_comes_after_the_last_one_left_reaches_the_nodes_stream() {
    let mut bench = settled();
    let feed = bench.serving("node-1", None);
    bench.apply(pod("uid-1", "node-1"));
    let gone = Change::Delete(pod("uid-1", "node-1"));
    bench.desk.update(Update::Workloads(gone));
    bench.apply(pod("uid-2", "node-1"));
    assert_eq!(standing(&feed, "uid-2"), "allowed");
    // Once its streams have ended too, no trace of the node is left.
    bench.desk.order(Order::Leave(feed));
    let gone = Change::Delete(pod("uid-2", "node-1"));
    bench.desk.update(Update::Workloads(gone));
    assert!(bench.desk.nodes.is_empty());
}

#[test]
fn threat_09_a_stream_ends_with_its_agents_pod_though_another_stream_ended_before() {
    let mut bench = settled();
    bench.apply(agent("node-1"));
    let other = bench.serving("node-2", None);
    let feed = bench.serving("node-1", Some("uid-agent"));
    bench.desk.order(Order::Leave(other));
    let gone = Change::Delete(agent("node-1"));
    bench.desk.update(Update::Workloads(gone));
    assert!(feed.closed.is_cancelled());
}

#[test]
fn a_change_of_the_rules_touches_no_pod_of_a_node_that_is_not_served() {
    let mut bench = settled();
    bench.apply(pod("uid-1", "node-1"));
    bench.apply(pod("uid-2", "node-2"));
    let _feed = bench.serving("node-1", None);
    bench.desk.update(namespace(r#"["writer"]"#));
    let touched: Vec<_> = std::iter::from_fn(|| bench.desk.pending.take()).collect();
    assert_eq!(touched, [("uid-1".into(), Reason::Retry)]);
    assert_eq!(bench.leased(), 1);
    // Rules that touch one namespace touch no pod of another.
    let elsewhere = Namespace {
        name: "elsewhere".into(),
        ..Namespace::default()
    };
    let change = Update::Namespaces(Change::Apply(elsewhere));
    bench.desk.update(change);
    assert!(bench.desk.pending.is_empty());
}

#[test]
fn what_is_worth_another_try_stays_so_until_it_is_tried() {
    let mut pending = Pending::default();
    for reason in [Reason::Changed, Reason::Retry, Reason::Begun] {
        pending.touch("uid-1".into(), reason);
    }
    assert_eq!(pending.take(), Some(("uid-1".into(), Reason::Retry)));
    pending.touch("uid-1".into(), Reason::Changed);
    assert_eq!(pending.take(), Some(("uid-1".into(), Reason::Changed)));
    assert_eq!(pending.take(), None);
}

#[test]
fn a_feed_is_complete_only_where_both_pods_and_rules_are_known() {
    // Rules without pods, and pods without rules.
    let mut bench = empty();
    let feed = bench.serving("node-1", None);
    bench.allow(r#"["reader"]"#);
    bench.learn();
    assert!(!sent(&feed).2, "pods are not known");
    let late = bench.serving("node-1", None);
    assert!(!sent(&late).2);
    let none = Change::Snapshot(Vec::new());
    bench.desk.update(Update::Workloads(none));
    assert!(sent(&feed).2 && sent(&late).2);
    // It is said once.
    bench.allow(r#"["writer"]"#);
    assert!(!sent(&feed).2);
}

#[test]
fn threat_01_an_address_or_a_node_that_changes_is_an_alarm_of_its_own() {
    let mut bench = settled();
    let address = |last: u8| vec![[10, 0, 0, last].into()];
    let at = |uid: &str, node: &str, last: u8| Workload {
        addresses: address(last),
        ..pod(uid, node)
    };
    bench.apply(at("victim", "node-1", 1));
    bench.apply(at("thief", "node-2", 2));
    assert!(bench.metric("broker_address_claimed_twice_total 0"));
    // Only its address changes.
    bench.apply(at("thief", "node-2", 1));
    assert!(bench.metric("broker_address_claimed_twice_total 1"));
    bench.apply(at("thief", "node-1", 1));
    assert!(bench.metric("broker_address_claimed_twice_total 1"));
    // Only its node does.
    bench.apply(at("thief", "node-2", 1));
    assert!(bench.metric("broker_address_claimed_twice_total 2"));
}

#[test]
fn pods_that_a_list_does_not_have_are_gone() {
    let mut bench = settled();
    let feed = bench.serving("node-1", None);
    bench.apply(pod("uid-1", "node-1"));
    bench.apply(pod("uid-2", "node-1"));
    sent(&feed);
    let uids = ["uid-2".into(), "uid-3".into()].into();
    bench.desk.update(Update::RetainWorkloads(uids));
    assert_eq!(sent(&feed), (vec![], vec!["uid-1".into()], false));
    assert!(bench.metric("pods 1"));
    let update = Update::RetainNamespaces(HashSet::new());
    bench.desk.update(update);
    bench.desk.catch_up(PORTION);
    assert_eq!(standing(&feed, "uid-2"), "undecided");
}

#[test]
fn labels_that_change_nothing_are_those_that_the_next_rule_reads() {
    let mut bench = settled();
    let feed = bench.serving("node-1", None);
    bench.apply(pod("uid-1", "node-1"));
    sent(&feed);
    bench.apply(Workload {
        labels: [("team", "shop")].into_iter().collect(),
        ..pod("uid-1", "node-1")
    });
    assert!(!feed.has_news());
    let resident = feed.resident("uid-1").unwrap();
    assert_eq!(resident.workload.labels.get("team"), Some("shop"));
}
