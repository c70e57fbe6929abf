//! Tests of the roles of service accounts on a stream.

use rolegate_authorizer::pod::RoleOf;

use super::*;

impl Fixture {
    /// Puts a pod without a role of its own, whose service account has these roles by audience.
    fn assign(&self, uid: &str, roles: &[(Option<&str>, &str)]) -> SessionChanges {
        let pod = pod(uid);
        let entry = |(audience, role): &(Option<&str>, &str)| {
            let entry = PodEntry::new(pod.clone(), self.allowed(role));
            Arc::new(entry.for_service_account(audience.map(Into::into)))
        };
        let roles = roles.iter().map(entry).collect();
        let assigned = AssignedRoles::received(Some(roles));
        let none = decided(Authorization::NoRole);
        self.subscription.put(pod, none, Some(assigned))
    }
}

fn assigned(entry: &v1::Pod) -> Vec<(Option<&str>, u64)> {
    let roles = entry.assigned_roles.iter();
    roles
        .map(|role| match &role.authorization {
            Some(v1::assigned_role::Authorization::Allowed(allowed)) => {
                (role.audience.as_deref(), allowed.session)
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn roles_of_the_service_account_have_sessions_of_their_own() {
    let fixture = fixture();
    let put = fixture.assign("uid-1", &[(None, "a"), (Some("two.example"), "b")]);
    assert_eq!(put.begun.len(), 2);
    fixture.fetched("a", "ASIA1");
    let updates = fixture.drain();
    let [first] = &*updates else {
        panic!("{updates:?}")
    };
    let sessions: Vec<_> = first
        .sessions
        .iter()
        .map(|session| session.number)
        .collect();
    assert_eq!(sessions, [1, 2]);
    assert_eq!(
        assigned(&first.pods[0]),
        [(None, 1), (Some("two.example"), 2)]
    );
    assert!(matches!(
        first.pods[0].authorization,
        Some(v1::pod::Authorization::NoRole(_))
    ));
    assert_eq!(fixture.ledger.records(None).len(), 1, "sent for the pod");
    // The same state again is nothing to send.
    let again = fixture.assign("uid-1", &[(None, "a"), (Some("two.example"), "b")]);
    assert!(again.begun.is_empty() && again.removed_sessions.is_empty());
    assert!(fixture.drain().is_empty());
    // Refreshed credentials reach the pod, and the ledger.
    fixture.fetched("b", "ASIA2");
    assert_eq!(fixture.drain()[0].sessions[0].number, 2);
    assert_eq!(fixture.ledger.records(None).len(), 2);
    // A role that is gone is revoked at once, and its session ends.
    let put = fixture.assign("uid-1", &[(None, "a")]);
    assert_eq!(*put.removed_sessions[0], session_key("b"));
    let updates = fixture.drain();
    assert_eq!(assigned(&updates[0].pods[0]), [(None, 1)]);
    assert_eq!(updates[0].removed_sessions, [2]);
    let removed = fixture.subscription.remove("uid-1");
    assert_eq!(*removed[0], session_key("a"));
    assert!(fixture.subscription.sessions().is_empty());
}

#[test]
fn one_session_serves_both_of_a_pods_roles() {
    let fixture = fixture();
    let pod = pod("uid-1");
    let entry = PodEntry::new(pod.clone(), fixture.allowed("a")).for_service_account(None);
    let assigned = || AssignedRoles::received(Some(vec![Arc::new(entry)]));
    let put = fixture
        .subscription
        .put(pod, fixture.allowed("a"), Some(assigned()));
    assert_eq!(put.begun.len(), 1);
    assert_eq!(fixture.drain()[0].sessions.len(), 1);
    let put = fixture.put("uid-1", "a");
    assert!(
        put.removed_sessions.is_empty(),
        "the pod's own role still uses it"
    );
    assert_eq!(fixture.subscription.remove("uid-1").len(), 1);
}

#[test]
fn an_unknown_service_account_is_told() {
    let fixture = fixture();
    let none = || decided(Authorization::NoRole);
    let unknown = AssignedRoles::received(None);
    fixture
        .subscription
        .put(pod("uid-1"), none(), Some(unknown));
    // As by a broker whose endpoints do not need service accounts.
    fixture.subscription.put(pod("uid-2"), none(), None);
    let updates = fixture.drain();
    let unknown: Vec<_> = updates[0]
        .pods
        .iter()
        .map(|pod| pod.unknown_service_account)
        .collect();
    assert_eq!(unknown, [true, false]);
}

#[test]
fn an_outcome_names_the_role_that_was_requested() {
    let fixture = fixture();
    fixture.assign("uid-1", &[(None, "a"), (Some("two.example"), "b")]);
    fixture.fetched("b", "ASIA2");
    fixture.drain();
    let recorder = OutcomeRecorder::new(None, fixture.ledger.clone());
    let served = |role_of: RoleOf| {
        let outcome = RequestOutcome::Served {
            access_key_id: "ASIA2".into(),
        };
        fixture
            .subscription
            .record("uid-1", (&role_of, &outcome), &recorder, at(1));
        let records = fixture.ledger.records(None);
        records
            .iter()
            .filter(|record| record.served.is_some())
            .count()
    };
    let of = |audience: Option<&str>| RoleOf::ServiceAccount {
        audience: audience.map(Into::into),
    };
    assert_eq!(served(RoleOf::Pod), 0);
    assert_eq!(served(of(None)), 0);
    assert_eq!(served(of(Some("other.example"))), 0);
    assert_eq!(served(of(Some("two.example"))), 1);
}
