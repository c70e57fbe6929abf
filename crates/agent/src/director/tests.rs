//! The director on its own: reports in, picture out.

use prometheus_client::registry::Registry;
use rolegate_aws::sessions::Sessions;
use rolegate_aws::sessions::{AssumeRole, SessionMetrics};
use rolegate_core::config::RuleConfig;
use rolegate_core::decision::OwnRole;
use rolegate_core::engine::EngineOptions;
use rolegate_core::key_values::KeyValues;
use rolegate_core::namespace::Namespace;
use rolegate_core::session::{Credentials, Failure, SessionKey};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Phase;
use rolegate_core::workload::Wish;
use rolegate_rules::keeper::Point;
use rolegate_runtime::clock::Clock;

use super::*;
use crate::picture::Owner;
use rolegate_standing::resident::Decided;

/// Nobody is asked in these tests: the driver is not run.
struct Nobody;

impl AssumeRole for Nobody {
    async fn assume_role(&self, _: &SessionKey) -> Result<Credentials, Failure> {
        std::future::pending().await
    }
}

struct Stage {
    director: Director,
    decider: Decider,
    picture: Arc<Picture>,
    readiness: Readiness,
}

fn stage() -> Stage {
    let registry = &mut Registry::default();
    let (sessions, _) = Sessions::new(
        Nobody,
        EngineOptions::default(),
        Clock::system(),
        SessionMetrics::register(registry),
    );
    let keeper = Keeper::new(
        RuleConfig::default(),
        Point::Door,
        SessionScope::Workload,
        3600,
    );
    let decider = Decider::new(keeper.rules(), sessions, Clock::system());
    let picture = Arc::new(Picture::default());
    let readiness = Readiness::new();
    let parts = DirectorParts {
        picture: picture.clone(),
        decider: decider.clone(),
        metrics: AgentMetrics::register(registry),
        guard: Guard::default(),
        keeper,
    };
    let director = Director::new(parts, &readiness);
    Stage {
        director,
        decider,
        picture,
        readiness,
    }
}

/// Everything loaded; namespace `default` allows role `reader`.
fn settled() -> Stage {
    let mut stage = stage();
    stage
        .director
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    stage.director.update(namespaces("[\"reader\"]"));
    stage.director.learn(Facts {
        base: Some(BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()),
        ..Facts::default()
    });
    stage
}

fn namespaces(allowed: &str) -> Update {
    Update::Namespaces(Change::Snapshot(vec![Namespace {
        name: "default".into(),
        allowed_roles: Some(allowed.into()),
        ..Namespace::default()
    }]))
}

fn pod(uid: &str, role: &str) -> Workload {
    Workload {
        namespace: "default".into(),
        name: format!("pod-{uid}").into(),
        uid: uid.into(),
        node: None,
        service_account: "default".into(),
        addresses: vec![ADDRESS],
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        wish: Wish {
            role: Some(role.into()),
            ..Wish::default()
        },
        labels: KeyValues::default(),
        annotations: KeyValues::default(),
    }
}

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

impl Stage {
    fn apply(&mut self, pod: Workload) {
        self.director.update(Update::Workloads(Change::Apply(pod)));
    }

    fn delete(&mut self, pod: Workload) {
        self.director.update(Update::Workloads(Change::Delete(pod)));
    }

    fn standing(&self, resident: &Resident) -> arc_swap::Guard<Arc<Decided>> {
        self.decider.standing(resident, self.decider.now())
    }

    /// What the address stands for, in a word.
    fn seen(&self) -> String {
        match self.picture.owner(ADDRESS) {
            None => "nobody".into(),
            Some(Owner::Disputed) => "disputed".into(),
            Some(Owner::Pod(resident)) => match &self.standing(&resident).standing {
                Standing::Allowed(allowed) => {
                    format!("{} {}", resident.workload.uid, allowed.role.name())
                }
                Standing::NoRole => format!("{} none", resident.workload.uid),
                Standing::Denied { .. } => format!("{} denied", resident.workload.uid),
                Standing::Undecided => format!("{} undecided", resident.workload.uid),
            },
        }
    }
}

#[test]
fn nothing_is_settled_before_everything_is_loaded() {
    let mut stage = stage();
    for step in 0..3 {
        assert!(
            !stage.picture.is_settled() && !stage.readiness.is_ready(),
            "{step}"
        );
        match step {
            0 => stage
                .director
                .update(Update::Workloads(Change::Snapshot(vec![pod(
                    "a", "reader",
                )]))),
            1 => stage.director.update(namespaces("[\"reader\"]")),
            _ => stage.director.learn(Facts::default()),
        }
    }
    assert!(stage.picture.is_settled() && stage.readiness.is_ready());
    // Without a base ARN a bare name is a denial that says so.
    assert_eq!(stage.seen(), "a denied");
}

#[test]
fn pain_02_an_address_is_its_living_owners_alone() {
    let mut stage = settled();
    let first = pod("a", "reader");
    stage.apply(first.clone());
    assert_eq!(stage.seen(), "a reader");
    // A job's pod ends, and the next one gets its address before it is deleted.
    stage.apply(Workload {
        phase: Phase::Succeeded,
        ..first.clone()
    });
    assert_eq!(stage.seen(), "nobody");
    stage.apply(pod("b", "other"));
    assert_eq!(stage.seen(), "b denied");
    stage.delete(Workload {
        phase: Phase::Succeeded,
        ..first
    });
    assert_eq!(stage.seen(), "b denied");
}

#[test]
fn rule_01_two_live_pods_with_one_address_get_nothing() {
    let mut stage = settled();
    stage.apply(pod("a", "reader"));
    stage.apply(pod("b", "reader"));
    assert_eq!(stage.seen(), "disputed");
    stage.delete(pod("a", "reader"));
    assert_eq!(stage.seen(), "b reader");
}

#[test]
fn threat_01_mirror_and_host_network_pods_own_no_address() {
    let mut stage = settled();
    stage.apply(Workload {
        mirror: true,
        ..pod("a", "reader")
    });
    assert_eq!(stage.seen(), "nobody");
    stage.apply(Workload {
        host_network: true,
        ..pod("b", "reader")
    });
    assert_eq!(stage.seen(), "nobody");
    stage.apply(pod("c", "reader"));
    assert_eq!(stage.seen(), "c reader");
}

#[test]
fn rule_04_a_right_taken_away_is_gone_at_once() {
    let mut stage = settled();
    stage.apply(pod("a", "reader"));
    assert_eq!(stage.seen(), "a reader");
    stage.director.update(namespaces("[]"));
    assert_eq!(stage.seen(), "a denied");
    stage.director.update(namespaces("[\"reader\"]"));
    assert_eq!(stage.seen(), "a reader");
    let own = OwnRole {
        account: None,
        name: "reader".into(),
    };
    stage.director.learn(Facts {
        own_roles: vec![own],
        ..Facts::default()
    });
    assert_eq!(stage.seen(), "a denied");
}

#[test]
fn a_session_is_kept_across_changes_that_do_not_shape_it() {
    let mut stage = settled();
    let lease = |stage: &Stage| match stage.picture.owner(ADDRESS) {
        Some(Owner::Pod(resident)) => match &stage.standing(&resident).standing {
            Standing::Allowed(allowed) => Arc::as_ptr(&allowed.lease),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    stage.apply(Workload {
        addresses: Vec::new(),
        phase: Phase::Pending,
        ..pod("a", "reader")
    });
    stage.apply(pod("a", "reader"));
    let first = lease(&stage);
    stage.director.update(namespaces("[\"*\"]"));
    assert_eq!(lease(&stage), first);
    let mut changed = pod("a", "reader");
    changed.wish.external_id = Some("id-b".into());
    stage.apply(changed);
    assert_ne!(lease(&stage), first);
}

#[test]
fn a_namespace_that_comes_later_decides_then() {
    let mut stage = settled();
    let mut early = pod("a", "reader");
    early.namespace = "new".into();
    stage.apply(early);
    assert_eq!(stage.seen(), "a undecided");
    stage
        .director
        .update(Update::Namespaces(Change::Apply(Namespace {
            name: "new".into(),
            permitted: Some(".*".into()),
            ..Namespace::default()
        })));
    assert_eq!(stage.seen(), "a reader");
}

#[test]
fn a_snapshot_removes_what_is_not_in_it() {
    let mut stage = settled();
    stage.apply(pod("a", "reader"));
    stage
        .director
        .update(Update::Workloads(Change::Snapshot(vec![pod(
            "b", "reader",
        )])));
    assert_eq!(stage.seen(), "b reader");
    stage
        .director
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    assert_eq!(stage.seen(), "nobody");
    assert!(stage.director.roster.is_empty());
}

#[test]
fn a_rule_change_counts_before_any_pod_is_decided_again_and_each_is_touched_once() {
    let mut stage = settled();
    stage.apply(pod("a", "reader"));
    assert_eq!(stage.seen(), "a reader");
    for _ in 0..3 {
        stage.director.update(namespaces("[]"));
        stage.director.update(namespaces("[\"reader\"]"));
    }
    stage.director.update(namespaces("[]"));
    assert_eq!(stage.director.touched.len(), 1);
    let decided = |stage: &Stage| match stage.picture.owner(ADDRESS) {
        Some(Owner::Pod(resident)) => resident.decided.load().generation,
        other => panic!("{other:?}"),
    };
    let before = decided(&stage);
    assert_eq!(stage.seen(), "a denied");
    assert!(decided(&stage) > before, "it was decided when it asked");
    stage.director.catch_up();
    assert!(stage.director.touched.is_empty());
}
