//! Tests of the pod reconciler: events in, pod table out.

mod assigned;

use std::net::IpAddr;

use prometheus_client::registry::Registry;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::decision::ReservedRole;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::engine::EngineOptions;
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::AwsEnvironment;
use rolegate_core::session::{Credentials, Failure, SessionKey};
use rolegate_core::session_name::SessionScope;
use rolegate_core::test_util;
use rolegate_core::workload::{Change, Phase, Update};
use rolegate_runtime::clock::Clock;
use rolegate_sessions::{AssumeRole, SessionMetrics, Sessions};

use super::*;
use crate::pod_table::Owner;
use rolegate_authorizer::pod::DecisionRecord;

/// An STS client that is never called, since the driver does not run.
struct PendingSts;

impl AssumeRole for PendingSts {
    async fn assume_role(&self, _: &SessionKey) -> Result<Credentials, Failure> {
        std::future::pending().await
    }
}

struct Fixture {
    pod_reconciler: PodReconciler,
    authorizer: Authorizer,
    pod_table: Arc<PodTable>,
    readiness: Readiness,
}

fn fixture() -> Fixture {
    let registry = &mut Registry::default();
    let (sessions, _) = Sessions::new(
        PendingSts,
        EngineOptions::default(),
        Clock::system(),
        SessionMetrics::register(registry),
    );
    let writer = RuleStoreWriter::new(
        RuleConfig::default(),
        EnforcementPoint::Agent,
        SessionScope::Workload,
        3600,
    );
    let authorizer = Authorizer::new(writer.rules(), sessions, Clock::system());
    let pod_table = Arc::new(PodTable::default());
    let readiness = Readiness::new();
    let parts = PodReconcilerParts {
        pod_table: pod_table.clone(),
        authorizer: authorizer.clone(),
        metrics: AgentMetrics::register(registry),
        verifier: AddressVerifier::default(),
        writer,
    };
    let pod_reconciler = PodReconciler::new(parts, &readiness);
    Fixture {
        pod_reconciler,
        authorizer,
        pod_table,
        readiness,
    }
}

/// Everything is loaded, and namespace `default` allows role `reader`.
fn synced() -> Fixture {
    let mut fixture = fixture();
    fixture
        .pod_reconciler
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    fixture.pod_reconciler.update(namespaces("[\"reader\"]"));
    fixture.pod_reconciler.set_aws_environment(AwsEnvironment {
        base: Some(BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()),
        ..AwsEnvironment::default()
    });
    fixture
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
        name: format!("pod-{uid}").into(),
        uid: uid.into(),
        ..test_util::pod(Some(role))
    }
}

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

impl Fixture {
    fn apply(&mut self, pod: Workload) {
        self.pod_reconciler
            .update(Update::Workloads(Change::Apply(pod)));
    }

    fn delete(&mut self, pod: Workload) {
        self.pod_reconciler
            .update(Update::Workloads(Change::Delete(pod)));
    }

    fn authorization(&self, entry: &PodEntry) -> arc_swap::Guard<Arc<DecisionRecord>> {
        self.authorizer.authorization(entry, self.authorizer.now())
    }

    /// Returns the state of the address in a few words.
    fn seen(&self) -> String {
        match self.pod_table.owner(ADDRESS) {
            None => "no pod".into(),
            Some(Owner::Disputed) => "disputed".into(),
            Some(Owner::Pod(entry)) => match &self.authorization(&entry).authorization {
                Authorization::Allowed(allowed) => {
                    format!("{} {}", entry.workload.uid, allowed.role.name())
                }
                Authorization::NoRole => format!("{} none", entry.workload.uid),
                Authorization::Denied { .. } => format!("{} denied", entry.workload.uid),
                Authorization::Pending => format!("{} undecided", entry.workload.uid),
            },
        }
    }
}

#[test]
fn nothing_is_settled_before_everything_is_loaded() {
    let mut fixture = fixture();
    for step in 0..3 {
        assert!(
            !fixture.pod_table.has_synced() && !fixture.readiness.is_ready(),
            "{step}"
        );
        match step {
            0 => fixture
                .pod_reconciler
                .update(Update::Workloads(Change::Snapshot(vec![pod(
                    "a", "reader",
                )]))),
            1 => fixture.pod_reconciler.update(namespaces("[\"reader\"]")),
            _ => fixture
                .pod_reconciler
                .set_aws_environment(AwsEnvironment::default()),
        }
    }
    assert!(fixture.pod_table.has_synced() && fixture.readiness.is_ready());
    // Without a base ARN, a bare name is denied with that reason.
    assert_eq!(fixture.seen(), "a denied");
}

#[test]
fn pain_02_an_address_is_its_living_owners_alone() {
    let mut fixture = synced();
    let first = pod("a", "reader");
    fixture.apply(first.clone());
    assert_eq!(fixture.seen(), "a reader");
    // A job's pod finishes, and the next one gets its address before it is deleted.
    fixture.apply(Workload {
        phase: Phase::Succeeded,
        ..first.clone()
    });
    assert_eq!(fixture.seen(), "no pod");
    fixture.apply(pod("b", "other"));
    assert_eq!(fixture.seen(), "b denied");
    fixture.delete(Workload {
        phase: Phase::Succeeded,
        ..first
    });
    assert_eq!(fixture.seen(), "b denied");
}

#[test]
fn rule_01_two_live_pods_with_one_address_get_nothing() {
    let mut fixture = synced();
    fixture.apply(pod("a", "reader"));
    fixture.apply(pod("b", "reader"));
    assert_eq!(fixture.seen(), "disputed");
    fixture.delete(pod("a", "reader"));
    assert_eq!(fixture.seen(), "b reader");
}

#[test]
fn threat_01_mirror_and_host_network_pods_own_no_address() {
    let mut fixture = synced();
    fixture.apply(Workload {
        mirror: true,
        ..pod("a", "reader")
    });
    assert_eq!(fixture.seen(), "no pod");
    fixture.apply(Workload {
        host_network: true,
        ..pod("b", "reader")
    });
    assert_eq!(fixture.seen(), "no pod");
    fixture.apply(pod("c", "reader"));
    assert_eq!(fixture.seen(), "c reader");
}

#[test]
fn rule_04_a_right_taken_away_is_gone_at_once() {
    let mut fixture = synced();
    fixture.apply(pod("a", "reader"));
    assert_eq!(fixture.seen(), "a reader");
    fixture.pod_reconciler.update(namespaces("[]"));
    assert_eq!(fixture.seen(), "a denied");
    fixture.pod_reconciler.update(namespaces("[\"reader\"]"));
    assert_eq!(fixture.seen(), "a reader");
    let own = ReservedRole {
        account: None,
        name: "reader".into(),
    };
    fixture.pod_reconciler.set_aws_environment(AwsEnvironment {
        reserved_roles: vec![own],
        ..AwsEnvironment::default()
    });
    assert_eq!(fixture.seen(), "a denied");
}

#[test]
fn a_session_is_kept_across_changes_that_do_not_shape_it() {
    let mut fixture = synced();
    let lease = |fixture: &Fixture| match fixture.pod_table.owner(ADDRESS) {
        Some(Owner::Pod(entry)) => match &fixture.authorization(&entry).authorization {
            Authorization::Allowed(allowed) => Arc::as_ptr(&allowed.lease),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    fixture.apply(Workload {
        addresses: Vec::new(),
        phase: Phase::Pending,
        ..pod("a", "reader")
    });
    fixture.apply(pod("a", "reader"));
    let first = lease(&fixture);
    fixture.pod_reconciler.update(namespaces("[\"*\"]"));
    assert_eq!(lease(&fixture), first);
    let mut changed = pod("a", "reader");
    changed.role_request.external_id = Some("id-b".into());
    fixture.apply(changed);
    assert_ne!(lease(&fixture), first);
}

#[test]
fn a_namespace_that_comes_later_decides_then() {
    let mut fixture = synced();
    let mut early = pod("a", "reader");
    early.namespace = "new".into();
    fixture.apply(early);
    assert_eq!(fixture.seen(), "a undecided");
    fixture
        .pod_reconciler
        .update(Update::Namespaces(Change::Apply(Namespace {
            name: "new".into(),
            permitted: Some(".*".into()),
            ..Namespace::default()
        })));
    assert_eq!(fixture.seen(), "a reader");
}

#[test]
fn a_snapshot_removes_what_is_not_in_it() {
    let mut fixture = synced();
    fixture.apply(pod("a", "reader"));
    fixture
        .pod_reconciler
        .update(Update::Workloads(Change::Snapshot(vec![pod(
            "b", "reader",
        )])));
    assert_eq!(fixture.seen(), "b reader");
    fixture
        .pod_reconciler
        .update(Update::Workloads(Change::Snapshot(Vec::new())));
    assert_eq!(fixture.seen(), "no pod");
    assert!(fixture.pod_reconciler.pods.is_empty());
}

#[test]
fn rule_changes_apply_before_pods_are_decided_again_once() {
    let mut fixture = synced();
    fixture.apply(pod("a", "reader"));
    assert_eq!(fixture.seen(), "a reader");
    for _ in 0..3 {
        fixture.pod_reconciler.update(namespaces("[]"));
        fixture.pod_reconciler.update(namespaces("[\"reader\"]"));
    }
    fixture.pod_reconciler.update(namespaces("[]"));
    assert!(!fixture.pod_reconciler.state.is_idle());
    let decided = |fixture: &Fixture| match fixture.pod_table.owner(ADDRESS) {
        Some(Owner::Pod(entry)) => entry.decided.load().generation,
        other => panic!("{other:?}"),
    };
    let before = decided(&fixture);
    assert_eq!(fixture.seen(), "a denied");
    assert!(decided(&fixture) > before, "the request decides again");
    // One pod was queued, however many changes there were.
    fixture.pod_reconciler.reconcile_batch(1);
    assert!(fixture.pod_reconciler.state.is_idle());
}
