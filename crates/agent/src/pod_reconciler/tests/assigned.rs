//! Tests of the roles of service accounts: when their sessions are leased and dropped.

use rolegate_authorizer::pod::AssignedLookup;
use rolegate_core::service_account::ServiceAccount;
use rolegate_rules::service_accounts::ServiceAccountStore;
use rolegate_rules::store::Report;

use super::*;

struct Accounts {
    fixture: Fixture,
    store: ServiceAccountStore,
}

impl Accounts {
    /// Everything is loaded, and namespace `default` allows role `reader`.
    fn new() -> Self {
        let mut fixture = synced();
        let store = ServiceAccountStore::default();
        fixture.pod_reconciler.authorizer = fixture
            .authorizer
            .clone()
            .with_service_accounts(Some(store.clone()));
        let mut accounts = Self { fixture, store };
        accounts.change(Change::Snapshot(vec![test_util::service_account(None)]));
        accounts
    }

    /// Applies a change as the watch does, and decides again for the affected pods.
    fn change(&mut self, change: Change<ServiceAccount>) {
        let report = Report::ServiceAccounts(self.store.apply(change));
        self.fixture.pod_reconciler.report(report);
        self.fixture.pod_reconciler.reconcile_batch(BATCH_SIZE);
    }

    fn annotate(&mut self, role: Option<&str>) {
        self.change(Change::Apply(test_util::service_account(role)));
    }

    /// Returns the role that the reconciler has already leased a session of, without deciding.
    fn leased(&self, uid: &str) -> Option<String> {
        let entry = self.fixture.pod_table.pod(uid)?;
        let roles = entry.assigned.load_full()?;
        let AssignedLookup::Role(role) = roles.find(None) else {
            return None;
        };
        let decided = role.decided.load();
        let lease = decided.lease()?;
        Some(lease.cell().key().role.name().to_owned())
    }
}

fn pending(uid: &str) -> Workload {
    Workload {
        uid: uid.into(),
        phase: Phase::Pending,
        addresses: Vec::new(),
        ..test_util::pod(None)
    }
}

#[test]
fn a_pending_pod_is_warm() {
    let mut accounts = Accounts::new();
    accounts.annotate(Some("reader"));
    accounts.fixture.apply(pending("a"));
    assert_eq!(accounts.leased("a").as_deref(), Some("reader"));
    let host = Workload {
        host_network: true,
        ..pending("b")
    };
    accounts.fixture.apply(host);
    assert_eq!(accounts.leased("b").as_deref(), Some("reader"));
}

#[test]
fn an_annotation_after_the_pod_warms_it() {
    let mut accounts = Accounts::new();
    accounts.fixture.apply(pending("a"));
    assert_eq!(accounts.leased("a"), None);
    let mut changes = accounts.fixture.pod_table.changes();
    accounts.annotate(Some("reader"));
    assert_eq!(accounts.leased("a").as_deref(), Some("reader"));
    let woken = futures::FutureExt::now_or_never(changes.next()).is_some();
    assert!(woken, "a waiting request tries again");
    // Another role, which the namespace does not allow.
    accounts.annotate(Some("writer"));
    assert_eq!(accounts.leased("a"), None);
    accounts.annotate(Some("reader"));
    assert_eq!(accounts.leased("a").as_deref(), Some("reader"));
}

#[test]
fn a_deleted_account_or_pod_drops_the_session() {
    let mut accounts = Accounts::new();
    accounts.annotate(Some("reader"));
    accounts.fixture.apply(pending("a"));
    let entry = accounts.fixture.pod_table.pod("a").unwrap();
    let roles = entry.assigned.load_full().unwrap();
    let weak = Arc::downgrade(&roles.entries()[0]);
    drop((entry, roles));
    assert!(weak.upgrade().is_some());
    accounts.change(Change::Delete(test_util::service_account(Some("reader"))));
    assert_eq!(accounts.leased("a"), None);
    assert!(weak.upgrade().is_none(), "something still holds the lease");
    accounts.annotate(Some("reader"));
    assert_eq!(accounts.leased("a").as_deref(), Some("reader"));
    accounts.fixture.delete(pending("a"));
    assert!(accounts.fixture.pod_table.pod("a").is_none());
}

#[test]
fn other_accounts_and_rules_change_nothing() {
    let mut accounts = Accounts::new();
    accounts.annotate(Some("reader"));
    accounts.fixture.apply(pending("a"));
    let generation = accounts.fixture.authorizer.clone();
    let entry = accounts.fixture.pod_table.pod("a").unwrap();
    let own = generation
        .authorization(&entry, generation.now())
        .generation;
    let other = ServiceAccount {
        name: "other".into(),
        ..test_util::service_account(Some("reader"))
    };
    accounts.change(Change::Apply(other));
    let after = generation
        .authorization(&entry, generation.now())
        .generation;
    assert_eq!(
        own, after,
        "a tenant's account starts no new generation of the rules"
    );
    assert_eq!(accounts.leased("a").as_deref(), Some("reader"));
}
