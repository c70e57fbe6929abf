//! The roles of service accounts: changes of accounts and rules reach the streams of their pods.

use rolegate_core::service_account::ServiceAccount;
use rolegate_proto::v1;
use rolegate_rules::service_accounts::ServiceAccountStore;

use super::*;

/// Returns what the next messages say about the role of the service account of `uid`.
fn told(subscription: &Subscription, uid: &str) -> Option<String> {
    use v1::assigned_role::Authorization as Said;
    let mut told = None;
    while let Some(update) = subscription.take(&Ledger::default(), jiff::Timestamp::UNIX_EPOCH) {
        for pod in update.pods.iter().filter(|pod| pod.uid == uid) {
            let role = pod.assigned_roles.first();
            told = Some(match role.and_then(|role| role.authorization.as_ref()) {
                Some(Said::Allowed(allowed)) => allowed.role_name.clone(),
                Some(Said::Denied(denial)) => format!("denied by {}", denial.layer),
                Some(Said::Pending(_)) => "pending".into(),
                None if pod.unknown_service_account => "unknown".into(),
                None => "none".into(),
            });
        }
    }
    told
}

#[test]
fn changes_of_service_accounts_and_rules_are_sent() {
    let mut fixture = synced();
    let store = ServiceAccountStore::default();
    let authorizer = fixture.index.authorizer.clone();
    fixture.index.authorizer = authorizer.with_service_accounts(Some(store.clone()));
    let change = |fixture: &mut Fixture, change| {
        let report = Report::ServiceAccounts(store.apply(change));
        fixture.index.report(report);
        fixture.reconcile_all();
    };
    let without_role = |uid: &str| Workload {
        role_request: RoleRequest::default(),
        host_network: true,
        addresses: Vec::new(),
        phase: Phase::Pending,
        ..pod(uid, "node-1")
    };
    fixture.apply(without_role("a"));
    let subscription = fixture.serving("node-1", None);
    let told = || told(&subscription, "a");
    assert_eq!(told().as_deref(), Some("unknown"));
    change(
        &mut fixture,
        Change::Snapshot(vec![test_util::service_account(Some("reader"))]),
    );
    assert_eq!(told().as_deref(), Some("reader"));
    assert_eq!(fixture.leased(), 1);
    // The same again, and another account, are nothing to send.
    change(
        &mut fixture,
        Change::Apply(test_util::service_account(Some("reader"))),
    );
    let other = ServiceAccount {
        name: "other".into(),
        ..test_util::service_account(Some("reader"))
    };
    change(&mut fixture, Change::Apply(other));
    assert_eq!(told(), None);
    fixture.allow("[]");
    assert_eq!(told().as_deref(), Some("denied by namespace"));
    assert_eq!(fixture.leased(), 0, "the session ends with the right to it");
    fixture.allow(r#"["reader"]"#);
    assert_eq!(told().as_deref(), Some("reader"));
    change(
        &mut fixture,
        Change::Apply(test_util::service_account(None)),
    );
    assert_eq!(told().as_deref(), Some("none"));
    change(
        &mut fixture,
        Change::Apply(test_util::service_account(Some("reader"))),
    );
    assert_eq!(told().as_deref(), Some("reader"));
    change(
        &mut fixture,
        Change::Delete(test_util::service_account(None)),
    );
    assert_eq!(told().as_deref(), Some("unknown"));
    assert_eq!(fixture.leased(), 0);
}
