//! Tests of a subscription alone: changes from the index in, messages out.

mod assigned;

use std::collections::HashSet;

use rolegate_authorizer::ledger::Ledger;
use rolegate_authorizer::pod::Allowed;
use rolegate_authorizer::pod::RoleOf;
use rolegate_core::decision::{Denial, RequestField};
use rolegate_core::engine::Cause;
use rolegate_core::layer::LayerId;
use rolegate_core::session::Credentials;
use rolegate_core::test_util::{self, session_key};
use rolegate_runtime::keyed_limit::KeyedLimiter;
use rolegate_sessions::{RemoteSessions, Sessions};

use super::*;

struct Fixture {
    ledger: Ledger,
    subscription: Subscription,
    sessions: Sessions,
    fed: RemoteSessions,
}

fn fixture() -> Fixture {
    let (sessions, fed) = Sessions::remote();
    Fixture {
        subscription: subscription(),
        ledger: Ledger::new(10),
        sessions,
        fed,
    }
}

fn subscription() -> Subscription {
    Subscription::new(
        KeyedLimiter::new(MAX_PER_NODE)
            .take("node-1".into())
            .unwrap(),
        None,
    )
}

fn pod(uid: &str) -> Arc<Workload> {
    Arc::new(Workload {
        name: format!("pod-{uid}").into(),
        uid: uid.into(),
        ..test_util::pod(None)
    })
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn decided(authorization: Authorization) -> DecisionRecord {
    DecisionRecord {
        generation: 1,
        expires_at: None,
        authorization,
    }
}

fn denied() -> DecisionRecord {
    decided(Authorization::Denied {
        denial: Denial {
            role: "reader".into(),
            denied_by: LayerId::Namespace.into(),
            rule: "annotation".into(),
            field: RequestField::default(),
            reason: "it does not allow it".into(),
            transient: false,
        },
        body: "no\n".into(),
    })
}

impl Fixture {
    fn allowed(&self, role: &str) -> DecisionRecord {
        let key = session_key(role);
        decided(Authorization::Allowed(Allowed {
            role: key.role.clone(),
            role_name: role.to_owned().into(),
            since: at(0),
            rules: ["a-rule".into()].into(),
            audited: Vec::new(),
            lease: Arc::new(self.sessions.lease(key, "default".into(), Cause::New)),
        }))
    }

    /// Stores credentials that STS issued.
    fn fetched(&self, role: &str, access_key_id: &str) {
        let validity = Validity {
            not_before: at(0),
            not_after: at(3600),
        };
        let credentials = Credentials::new(access_key_id, "secret", "token", validity);
        self.fed.store(&session_key(role), Some(credentials), None);
        self.subscription.session_changed(&session_key(role));
    }

    fn put(&self, uid: &str, role: &str) -> SessionChanges {
        self.subscription.put(pod(uid), self.allowed(role), None)
    }

    /// Returns all that is left to send.
    fn drain(&self) -> Vec<v1::Update> {
        std::iter::from_fn(|| self.subscription.take(&self.ledger, at(0))).collect()
    }
}

fn uids(updates: &[v1::Update]) -> Vec<&str> {
    let pods = updates.iter().flat_map(|update| &update.pods);
    pods.map(|entry| &*entry.uid).collect()
}

fn removed_pod_uids(updates: &[v1::Update]) -> Vec<&str> {
    let removed_pod_uids = updates.iter().flat_map(|update| &update.removed_pod_uids);
    removed_pod_uids.map(String::as_str).collect()
}

fn session(entry: &v1::Pod) -> u64 {
    match &entry.authorization {
        Some(v1::pod::Authorization::Allowed(allowed)) => allowed.session,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bounded_messages_send_sessions_before_their_pods() {
    let fixture = fixture();
    for number in 0..300 {
        // Two pods share each session.
        fixture.put(&format!("uid-{number}"), &format!("role-{}", number / 2));
    }
    fixture.subscription.complete();
    let updates = fixture.drain();
    assert!(updates.len() >= 300 / BATCH_SIZE);
    let mut introduced = HashSet::new();
    for update in &updates {
        assert!(update.pods.len() <= BATCH_SIZE && update.sessions.len() <= BATCH_SIZE);
        for session in &update.sessions {
            assert!(session.key.is_some() && introduced.insert(session.number));
        }
        let mut used = update.pods.iter().map(session);
        assert!(used.all(|number| introduced.contains(&number)));
    }
    assert_eq!((introduced.len(), uids(&updates).len()), (150, 300));
    // Only the last message is complete.
    let complete: Vec<_> = updates.iter().map(|update| update.complete).collect();
    assert_eq!(complete.iter().filter(|it| **it).count(), 1);
    assert_eq!(complete.last(), Some(&true));
    fixture.subscription.complete();
    assert!(!fixture.subscription.has_changes());
}

#[test]
fn frequent_changes_are_sent_once() {
    let fixture = fixture();
    for role in ["a", "b", "a", "c"] {
        fixture.put("uid-1", role);
    }
    for key in ["ASIA1", "ASIA2", "ASIA3"] {
        fixture.fetched("c", key);
    }
    let updates = fixture.drain();
    assert_eq!((updates.len(), uids(&updates)), (1, vec!["uid-1"]));
    let [only] = &*updates[0].sessions else {
        panic!("{updates:?}")
    };
    assert_eq!(
        only.key.as_ref().unwrap().role,
        session_key("c").role.as_str()
    );
    assert_eq!(only.credentials.as_ref().unwrap().access_key_id, "ASIA3");
    // Sessions that were never sent are not removed either.
    assert!(updates[0].removed_sessions.is_empty());

    fixture.fetched("c", "ASIA4");
    fixture.fetched("c", "ASIA5");
    let updates = fixture.drain();
    assert_eq!((updates.len(), updates[0].sessions.len()), (1, 1));
    assert!(updates[0].sessions[0].key.is_none());
    // Repeating the same state sends nothing.
    fixture.put("uid-1", "c");
    assert!(fixture.subscription.take(&fixture.ledger, at(0)).is_none());
}

#[test]
fn a_stream_that_is_not_read_costs_what_its_pods_cost() {
    let fixture = fixture();
    fixture.put("stays", "stays");
    fixture.put("known", "known");
    fixture.drain();
    for number in 0..5000 {
        let uid = format!("uid-{number}");
        fixture.put(&uid, &format!("role-{number}"));
        fixture.fetched(&format!("role-{number}"), "ASIA");
        fixture.subscription.remove(&uid);
        fixture.subscription.remove("known");
        fixture.put("known", "known");
    }
    let state = fixture.subscription.state();
    assert_eq!((state.pods.len(), state.new_pods.len()), (2, 1));
    assert_eq!((state.slots.len(), state.keys.len()), (2, 2));
    assert_eq!(
        (state.removed_pod_uids.len(), state.new_sessions.len()),
        (0, 0)
    );
    // One removal of the one session that the agent knows.
    assert_eq!(state.removed_sessions.len(), 1);
    drop(state);
    let updates = fixture.drain();
    assert_eq!((updates.len(), uids(&updates)), (1, vec!["known"]));
}

#[test]
fn removals_are_sent_only_for_known_entries() {
    let fixture = fixture();
    fixture.put("sent", "a");
    fixture.drain();
    fixture.put("unsent", "b");
    fixture.subscription.remove("unsent");
    fixture.subscription.remove("sent");
    let updates = fixture.drain();
    assert_eq!(removed_pod_uids(&updates), ["sent"]);
    assert_eq!(updates[0].removed_sessions.len(), 1);
    assert!(fixture.subscription.remove("sent").is_empty());
}

#[test]
fn a_pod_that_comes_back_is_not_gone() {
    let fixture = fixture();
    fixture.put("uid-1", "a");
    let first = session(&fixture.drain()[0].pods[0]);
    fixture.subscription.remove("uid-1");
    fixture.put("uid-1", "a");
    let updates = fixture.drain();
    assert_eq!(
        (uids(&updates), removed_pod_uids(&updates)),
        (vec!["uid-1"], Vec::<&str>::new())
    );
    let [update] = &*updates else {
        panic!("{updates:?}")
    };
    // The session was released in between, so it gets a new number.
    assert_ne!(session(&update.pods[0]), first);
    assert_eq!(update.removed_sessions, [first]);
    fixture.subscription.remove("uid-1");
    assert_eq!(removed_pod_uids(&fixture.drain()), ["uid-1"]);
}

#[test]
fn a_shared_session_keeps_its_number_until_its_last_user_leaves() {
    let fixture = fixture();
    assert_eq!(
        fixture.put("uid-1", "a").begun.first().map(|key| &**key),
        Some(&session_key("a"))
    );
    assert!(fixture.put("uid-2", "a").begun.is_empty());
    let updates = fixture.drain();
    let numbers: HashSet<_> = updates[0].pods.iter().map(session).collect();
    assert_eq!((numbers.len(), updates[0].sessions.len()), (1, 1));

    assert!(fixture.subscription.remove("uid-1").is_empty());
    assert_eq!(fixture.subscription.sessions().len(), 1);
    let put = fixture.subscription.put(pod("uid-2"), denied(), None);
    assert_eq!(*put.removed_sessions[0], session_key("a"));
    let updates = fixture.drain();
    assert_eq!(
        updates[0].removed_sessions,
        numbers.into_iter().collect::<Vec<_>>()
    );
    assert!(fixture.subscription.sessions().is_empty());
}

#[test]
fn sessions_end_with_their_pods_and_the_subscription() {
    let fixture = fixture();
    let Authorization::Allowed(allowed) = fixture.allowed("a").authorization else {
        panic!("not allowed");
    };
    let lease = Arc::downgrade(&allowed.lease);
    fixture
        .subscription
        .put(pod("uid-1"), decided(Authorization::Allowed(allowed)), None);
    assert!(lease.upgrade().is_some());
    drop(fixture.subscription);
    assert!(lease.upgrade().is_none());
}

#[test]
fn threat_20_what_an_agent_says_counts_only_for_pods_and_keys_that_it_was_sent() {
    let fixture = fixture();
    let recorder = OutcomeRecorder::new(None, fixture.ledger.clone());
    // Returns outcomes of served pods and the number of ledger entries.
    let served = |uid: &str, key: &str| {
        let access_key_id = key.into();
        let outcome = RequestOutcome::Served { access_key_id };
        fixture
            .subscription
            .record(uid, (&RoleOf::Pod, &outcome), &recorder, at(1));
        let records = fixture.ledger.records(None);
        let served = records.iter().filter(|record| record.served.is_some());
        (served.count(), records.len())
    };
    fixture.put("uid-1", "a");
    fixture.put("uid-2", "b");
    fixture.fetched("a", "ASIA1");
    fixture.fetched("b", "ASIAB");
    assert_eq!(served("uid-1", "ASIA1"), (0, 0), "it was not sent yet");
    fixture.drain();
    assert_eq!(served("uid-of-others", "ASIA1"), (0, 2));
    assert_eq!(served("uid-1", "ASIAOTHER"), (0, 2));
    assert_eq!(served("uid-1", "ASIAB"), (0, 2), "that is the other pod's");
    assert_eq!(served("uid-1", "ASIA1"), (1, 2));
    assert_eq!(
        served("uid-1", "ASIA1"),
        (1, 2),
        "once for each pod and key"
    );
    // After one refresh the previous key may still be reported; after two it may not.
    fixture.fetched("a", "ASIA2");
    assert_eq!(served("uid-1", "ASIA2"), (1, 2), "it was not sent yet");
    fixture.drain();
    fixture.fetched("a", "ASIA3");
    fixture.drain();
    assert_eq!(served("uid-1", "ASIA2"), (2, 4));
    assert_eq!(served("uid-1", "ASIA1"), (2, 4));
    let record = &fixture.ledger.records(Some("ASIA1"))[0];
    assert_eq!(
        (&*record.pod, &*record.role),
        ("pod-uid-1", session_key("a").role.as_str())
    );
    // Outcomes of deleted pods are ignored.
    fixture.subscription.remove("uid-1");
    assert_eq!(served("uid-1", "ASIA3"), (2, 4));
}

#[test]
fn threat_20_what_is_sent_is_written_whatever_the_agent_says() {
    let fixture = fixture();
    let written = || {
        let records = fixture.ledger.records(None);
        let named = records
            .iter()
            .rev()
            .map(|record| format!("{} {}", record.pod_uid, record.access_key_id));
        named.collect::<Vec<_>>()
    };
    // Two pods share one session, which is fetched after the first and before the second.
    fixture.put("uid-1", "a");
    fixture.drain();
    assert!(written().is_empty());
    fixture.fetched("a", "ASIA1");
    assert!(written().is_empty(), "not before it is sent");
    fixture.drain();
    fixture.put("uid-2", "a");
    fixture.drain();
    let both = ["uid-1 ASIA1", "uid-2 ASIA1"];
    assert_eq!(written(), both);
    fixture.fetched("a", "ASIA2");
    fixture.drain();
    let all = [both, ["uid-1 ASIA2", "uid-2 ASIA2"]].concat();
    let mut sorted = written();
    sorted.sort_by_key(|entry| entry.split(' ').next_back().map(str::to_owned));
    sorted[2..].sort();
    assert_eq!(sorted, all);
    // A stream that is reopened adds no duplicate entries.
    for _ in 0..3 {
        let again = subscription();
        again.put(pod("uid-1"), fixture.allowed("a"), None);
        again.take(&fixture.ledger, at(2));
    }
    assert_eq!(written().len(), 4);
}

#[test]
fn removals_alone_are_sent() {
    // The other pod keeps the session in use.
    let fixture = fixture();
    fixture.put("uid-1", "a");
    fixture.put("uid-2", "a");
    fixture.drain();
    fixture.subscription.remove("uid-1");
    assert!(fixture.subscription.has_changes());
    let updates = fixture.drain();
    assert_eq!(removed_pod_uids(&updates), ["uid-1"]);
    assert!(updates[0].removed_sessions.is_empty());
    // If a pod is now denied, its session's end is sent alongside the pod.
    fixture.subscription.put(pod("uid-2"), denied(), None);
    let update = fixture.subscription.take(&fixture.ledger, at(0)).unwrap();
    assert_eq!((update.pods.len(), update.removed_sessions.len()), (1, 1));
    assert!(!fixture.subscription.has_changes());
}

#[test]
fn removals_are_sent_before_completion() {
    let fixture = fixture();
    let many = 2 * MAX_REMOVALS + 1;
    for number in 0..many {
        fixture
            .subscription
            .put(pod(&format!("uid-{number}")), denied(), None);
    }
    fixture.drain();
    for number in 0..many {
        fixture.subscription.remove(&format!("uid-{number}"));
    }
    fixture.subscription.complete();
    let updates = fixture.drain();
    let told: Vec<_> = updates
        .iter()
        .map(|it| (it.removed_pod_uids.len(), it.complete))
        .collect();
    assert_eq!(
        told,
        [(MAX_REMOVALS, false), (MAX_REMOVALS, false), (1, true)]
    );

    // The same holds for sessions with one pod each.
    let fixture = self::fixture();
    for number in 0..MAX_REMOVALS + 1 {
        fixture.put(&format!("uid-{number}"), &format!("role-{number}"));
    }
    fixture.drain();
    for number in 0..MAX_REMOVALS + 1 {
        fixture
            .subscription
            .put(pod(&format!("uid-{number}")), denied(), None);
    }
    fixture.subscription.complete();
    let updates = fixture.drain();
    let complete: Vec<_> = updates.iter().filter(|it| it.complete).collect();
    assert_eq!(complete.len(), 1);
    assert!(updates.last().unwrap().complete);
    let removed_sessions: usize = updates.iter().map(|it| it.removed_sessions.len()).sum();
    assert_eq!(removed_sessions, MAX_REMOVALS + 1);
}

#[test]
fn audited_denials_are_recorded_when_the_agent_reports_them() {
    let fixture = fixture();
    let recorder = OutcomeRecorder::new(None, fixture.ledger.clone());
    let Authorization::Allowed(allowed) = fixture.allowed("a").authorization else {
        panic!("not allowed");
    };
    let Authorization::Denied { denial, .. } = denied().authorization else {
        panic!("not denied");
    };
    let audited = Allowed {
        audited: vec![denial],
        ..allowed
    };
    fixture
        .subscription
        .put(pod("uid-1"), decided(Authorization::Allowed(audited)), None);
    fixture.drain();
    let told = || {
        let entry = fixture.subscription.entry("uid-1").unwrap();
        // Keeps entries that were not reported recently.
        !entry
            .report_throttle
            .allows(at(2), std::time::Duration::from_secs(3600))
    };
    fixture.subscription.record(
        "uid-1",
        (&RoleOf::Pod, &RequestOutcome::Audited),
        &recorder,
        at(1),
    );
    assert!(told(), "the outcome was not recorded");
}
