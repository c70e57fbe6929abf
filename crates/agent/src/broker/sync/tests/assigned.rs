//! Tests of the roles of service accounts that a broker sends.

use super::*;
use rolegate_authorizer::pod::AssignedLookup;

fn role(audience: Option<&str>, session: u64) -> v1::AssignedRole {
    let allowed = v1::Allowed {
        session,
        ..v1::Allowed::default()
    };
    v1::AssignedRole {
        audience: audience.map(str::to_owned),
        authorization: Some(v1::assigned_role::Authorization::Allowed(allowed)),
    }
}

fn with_roles(n: u8, roles: Vec<v1::AssignedRole>) -> v1::Pod {
    v1::Pod {
        authorization: Some(pod::Authorization::NoRole(v1::Empty {})),
        addresses: Vec::new(),
        assigned_roles: roles,
        ..pod(n, 0)
    }
}

impl Fixture {
    /// Returns the access key of a role, or the reason that the pod does not get one.
    fn assigned(&self, uid: &str, audience: Option<&str>) -> String {
        let entry = self.pod_table.pod(uid).unwrap();
        let roles = entry.assigned.load_full().unwrap();
        match roles.find(audience) {
            AssignedLookup::NoRole => "none".into(),
            AssignedLookup::Unknown => "unknown".into(),
            AssignedLookup::Role(entry) => match &entry.decided.load().authorization {
                Authorization::Allowed(allowed) => {
                    match allowed.lease.cell().state(jiff::Timestamp::now()) {
                        SessionState::Valid(session) => {
                            session.credentials.access_key_id.to_string()
                        }
                        other => format!("{other:?}"),
                    }
                }
                other => format!("{other:?}"),
            },
        }
    }
}

#[test]
fn a_pod_without_address_has_the_roles_of_its_service_account() {
    let mut fixture = fixture();
    let sessions = vec![session(1, "a", "ASIA1"), session(2, "b", "ASIA2")];
    let roles = vec![role(None, 1), role(Some("two.example"), 2)];
    fixture
        .update(update(sessions, vec![with_roles(1, roles)]))
        .unwrap();
    fixture.update(complete()).unwrap();
    assert_eq!(fixture.assigned("uid-1", None), "ASIA1");
    assert_eq!(fixture.assigned("uid-1", Some("two.example")), "ASIA2");
    assert_eq!(fixture.assigned("uid-1", Some("other.example")), "none");
    // The next message about the pod replaces its roles.
    fixture
        .update(update(Vec::new(), vec![with_roles(1, Vec::new())]))
        .unwrap();
    assert_eq!(fixture.assigned("uid-1", None), "none");
}

#[test]
fn a_pod_of_an_older_broker_has_no_assigned_role() {
    let mut fixture = fixture();
    fixture
        .update(update(vec![session(1, "a", "ASIA1")], vec![pod(1, 1)]))
        .unwrap();
    assert_eq!(fixture.assigned("uid-1", None), "none");
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
}

#[test]
fn an_unknown_service_account_keeps_its_roles_only_during_a_change_of_brokers() {
    let mut fixture = fixture();
    let sessions = || vec![session(1, "a", "ASIA1")];
    let roles = || vec![with_roles(1, vec![role(None, 1)])];
    fixture.update(update(sessions(), roles())).unwrap();
    fixture.update(complete()).unwrap();
    let unknown = || v1::Pod {
        unknown_service_account: true,
        ..with_roles(1, Vec::new())
    };
    fixture.receive(PairEvent::Activated).unwrap();
    fixture.update(update(Vec::new(), vec![unknown()])).unwrap();
    assert_eq!(fixture.assigned("uid-1", None), "ASIA1");
    fixture.update(complete()).unwrap();
    // The service account was deleted.
    fixture.update(update(Vec::new(), vec![unknown()])).unwrap();
    assert_eq!(fixture.assigned("uid-1", None), "unknown");
}

#[test]
fn malformed_roles_end_the_stream() {
    let many = vec![role(None, 1); MAX_ASSIGNED_ROLES + 1];
    for roles in [vec![role(None, 7)], vec![role(Some(""), 1)], many] {
        let mut fixture = fixture();
        let sessions = vec![session(1, "a", "ASIA1")];
        let result = fixture.update(update(sessions, vec![with_roles(1, roles)]));
        assert!(result.is_err());
    }
    // A kind of authorization that this version does not know allows nothing.
    let mut fixture = fixture();
    let unknown = v1::AssignedRole::default();
    fixture
        .update(update(Vec::new(), vec![with_roles(1, vec![unknown])]))
        .unwrap();
    assert_eq!(fixture.assigned("uid-1", None), "Pending");
}
