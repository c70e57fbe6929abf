//! Tests of the broker sync: messages in, pod table out.

mod assigned;

use std::net::IpAddr;

use futures::FutureExt;
use prometheus_client::registry::Registry;
use rolegate_core::session::Validity;
use rolegate_sessions::SessionState;

use super::*;
use crate::address_verifier::AddressVerifier;
use crate::metrics::AgentMetrics;
use crate::pod_table::Owner;

struct Fixture {
    sync: BrokerSync,
    fed: RemoteSessions,
    pod_table: Arc<PodTable>,
    readiness: Readiness,
}

fn fixture() -> Fixture {
    let (sessions, fed) = Sessions::remote();
    let pod_table = Arc::new(PodTable::default());
    let readiness = Readiness::new();
    let metrics = AgentMetrics::register(&mut Registry::default());
    let mut fixture = Fixture {
        sync: BrokerSync {
            pod_table: pod_table.clone(),
            writer: PodTableWriter::new(pod_table.clone(), AddressVerifier::default(), metrics),
            sessions,
            staleness: Arc::new(Staleness::from_now()),
            clock: Clock::system(),
            node: "node-1".into(),
            table: HashMap::new(),
            numbers: HashMap::new(),
            shown: None,
            workloads: Some(readiness.block("no pods yet")),
            condition: readiness.condition("broker"),
        },
        fed,
        pod_table,
        readiness,
    };
    fixture.receive(PairEvent::Activated).unwrap();
    fixture
}

fn address(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

fn key(role: &str) -> v1::SessionKey {
    v1::SessionKey {
        role: format!("arn:aws:iam::123456789012:role/{role}"),
        name: "default.default".into(),
        duration_seconds: 3600,
        ..v1::SessionKey::default()
    }
}

fn credentials(access_key_id: &str) -> v1::Credentials {
    credentials_since(access_key_id, jiff::Timestamp::now())
}

fn credentials_since(access_key_id: &str, from: jiff::Timestamp) -> v1::Credentials {
    let until = from + Duration::from_secs(3600);
    let validity = Validity {
        not_before: from,
        not_after: until,
    };
    (&Credentials::new(access_key_id, "secret", "token", validity)).into()
}

fn failure() -> v1::Failure {
    v1::Failure {
        kind: v1::failure::Kind::Temporary.into(),
        code: "NoAnswer".into(),
        ..v1::Failure::default()
    }
}

fn session(number: u64, role: &str, access_key_id: &str) -> v1::Session {
    v1::Session {
        number,
        key: Some(key(role)),
        credentials: Some(credentials(access_key_id)),
        failure: None,
    }
}

fn pod(n: u8, session: u64) -> v1::Pod {
    v1::Pod {
        uid: format!("uid-{n}"),
        namespace: "default".into(),
        name: format!("pod-{n}"),
        service_account: "default".into(),
        addresses: vec![wire::address_bytes(address(n))],
        authorization: Some(pod::Authorization::Allowed(v1::Allowed {
            session,
            role_name: "reader".into(),
            rules: [].into(),
            audited: Vec::new(),
        })),
        assigned_roles: Vec::new(),
        unknown_service_account: false,
    }
}

fn update(sessions: Vec<v1::Session>, pods: Vec<v1::Pod>) -> v1::Update {
    v1::Update {
        sessions,
        pods,
        ..v1::Update::default()
    }
}

fn complete() -> v1::Update {
    v1::Update {
        complete: true,
        ..v1::Update::default()
    }
}

impl Fixture {
    fn age(&self) -> Duration {
        self.sync.staleness.age().unwrap()
    }

    fn receive(&mut self, event: PairEvent) -> Result<(), Malformed> {
        self.sync.take(event, &self.fed)
    }

    fn update(&mut self, update: v1::Update) -> Result<(), Malformed> {
        self.receive(PairEvent::Update(update))
    }

    /// Returns the access key that a pod gets.
    fn key(&self, n: u8) -> Option<String> {
        let Some(Owner::Pod(entry)) = self.pod_table.owner(address(n)) else {
            return None;
        };
        let decided = entry.decided.load_full();
        let Authorization::Allowed(allowed) = &decided.authorization else {
            return None;
        };
        match allowed.lease.cell().state(jiff::Timestamp::now()) {
            SessionState::Valid(session) => Some(session.credentials.access_key_id.to_string()),
            _ => None,
        }
    }
}

#[test]
fn the_picture_is_what_the_broker_says() {
    let mut fixture = fixture();
    let sessions = vec![session(1, "a", "ASIA1"), session(2, "b", "ASIA2")];
    fixture
        .update(update(sessions, vec![pod(1, 1), pod(2, 2)]))
        .unwrap();
    assert!(!fixture.pod_table.has_synced() && !fixture.readiness.is_ready());
    fixture.update(complete()).unwrap();
    assert!(fixture.pod_table.has_synced() && fixture.readiness.is_ready());
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
    // A refresh, and one that failed: the existing session is still served.
    let refreshed = v1::Session {
        key: None,
        ..session(1, "a", "ASIA3")
    };
    fixture.update(update(vec![refreshed], Vec::new())).unwrap();
    let failed = v1::Session {
        number: 1,
        failure: Some(failure()),
        ..v1::Session::default()
    };
    fixture.update(update(vec![failed], Vec::new())).unwrap();
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA3"));
    fixture
        .update(v1::Update {
            removed_pod_uids: vec!["uid-1".into(), "uid-of-nobody".into()],
            removed_sessions: vec![1, 77],
            ..v1::Update::default()
        })
        .unwrap();
    assert_eq!(fixture.key(1), None);
    assert_eq!(fixture.key(2).as_deref(), Some("ASIA2"));
    assert_eq!(fixture.sync.table.len(), 1);
}

#[test]
fn missing_pods_are_removed_once_a_new_stream_is_complete() {
    let mut fixture = fixture();
    let sessions = vec![session(1, "a", "ASIA1"), session(2, "b", "ASIA2")];
    let mut first = update(sessions, vec![pod(1, 1), pod(2, 2)]);
    first.complete = true;
    fixture.update(first).unwrap();
    fixture
        .receive(PairEvent::Lost("it went away".into()))
        .unwrap();
    // It is served meanwhile, and ready.
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
    assert!(fixture.readiness.is_ready());

    fixture.receive(PairEvent::Activated).unwrap();
    // Another broker has other numbers, and has not fetched this session yet: the first one's
    // credentials stay.
    let mut unfetched = session(7, "a", "x");
    unfetched.credentials = None;
    fixture
        .update(update(vec![unfetched], vec![pod(1, 7)]))
        .unwrap();
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
    assert_eq!(fixture.key(2).as_deref(), Some("ASIA2"));
    fixture.update(complete()).unwrap();
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
    assert_eq!(fixture.key(2), None);
}

#[tokio::test(start_paused = true)]
async fn staleness_grows_until_the_next_stream_is_complete() {
    let mut fixture = fixture();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    fixture.update(complete()).unwrap();
    tokio::time::advance(minutes(5)).await;
    assert_eq!(fixture.age(), minutes(5));
    fixture.receive(PairEvent::Heartbeat(1000)).unwrap();
    assert_eq!(fixture.age().as_secs(), 1);

    fixture.receive(PairEvent::Activated).unwrap();
    tokio::time::advance(minutes(10)).await;
    for said in [0, u64::MAX] {
        // The broker has not received any pod yet, or never sends one.
        fixture.receive(PairEvent::Heartbeat(said)).unwrap();
        assert_eq!(fixture.age().as_secs(), 601, "{said}");
    }
    fixture.update(complete()).unwrap();
    fixture.receive(PairEvent::Heartbeat(0)).unwrap();
    assert_eq!(fixture.age(), minutes(0));
}

#[test]
fn revocations_before_a_malformed_part_apply() {
    let mut fixture = fixture();
    let sessions = vec![session(1, "a", "ASIA1"), session(2, "b", "ASIA2")];
    let pods = vec![pod(1, 1), pod(2, 2), pod(3, 2)];
    fixture.update(update(sessions, pods)).unwrap();
    let denied = v1::Pod {
        authorization: Some(pod::Authorization::Denied(v1::Denial::default())),
        ..pod(1, 0)
    };
    let mut malformed = update(Vec::new(), vec![denied, pod(3, 77)]);
    malformed.removed_pod_uids = vec!["uid-2".into()];
    assert!(fixture.update(malformed).is_err());
    assert_eq!([fixture.key(1), fixture.key(2)], [None, None]);
    assert_eq!(fixture.key(3).as_deref(), Some("ASIA2"));
}

#[test]
fn a_broker_that_has_not_decided_yet_takes_nothing_away() {
    let pending = |n| v1::Pod {
        authorization: Some(pod::Authorization::Pending(v1::Empty {})),
        ..pod(n, 0)
    };
    let mut fixture = fixture();
    let pods = vec![pod(1, 1), pod(2, 1), pod(3, 1)];
    let mut first = update(vec![session(1, "a", "ASIA1")], pods);
    first.complete = true;
    fixture.update(first).unwrap();

    fixture.receive(PairEvent::Activated).unwrap();
    // One of them has moved: its decision applied to its previous address.
    let moved = v1::Pod {
        addresses: vec![wire::address_bytes(address(9))],
        ..pending(2)
    };
    let pods = vec![pending(1), moved, pending(4)];
    fixture.update(update(Vec::new(), pods)).unwrap();
    fixture.update(complete()).unwrap();
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
    assert!([2, 3, 4, 9].iter().all(|n| fixture.key(*n).is_none()));
    assert!(
        fixture.pod_table.owner(address(9)).is_some()
            && fixture.pod_table.owner(address(2)).is_none()
    );
    // A broker that knew the rules, and waits for new ones, is authoritative.
    fixture
        .update(update(Vec::new(), vec![pending(1)]))
        .unwrap();
    assert_eq!(fixture.key(1), None);
}

#[test]
fn pending_requests_are_repeated_to_the_next_broker() {
    let mut fixture = fixture();
    let unfetched = |number| v1::Session {
        credentials: None,
        ..session(number, "a", "")
    };
    let mut first = update(vec![unfetched(1)], vec![pod(1, 1)]);
    first.complete = true;
    fixture.update(first).unwrap();
    assert_eq!(
        fixture.fed.next_requested().now_or_never(),
        None,
        "no request waits for the session yet"
    );
    fixture.sync.table.get(&1).unwrap().prioritize();
    let asked = |fixture: &mut Fixture| {
        let key = fixture.fed.next_requested().now_or_never()??;
        fixture.sync.numbers.get(&key).copied()
    };
    assert_eq!(asked(&mut fixture), Some(1));

    fixture.receive(PairEvent::Activated).unwrap();
    fixture
        .update(update(vec![unfetched(5)], vec![pod(1, 5)]))
        .unwrap();
    assert_eq!(asked(&mut fixture), Some(5));
    fixture.receive(PairEvent::Activated).unwrap();
    let fetched = session(6, "a", "ASIA1");
    fixture
        .update(update(vec![fetched], vec![pod(1, 6)]))
        .unwrap();
    assert_eq!(asked(&mut fixture), None, "there it is");
}

#[test]
fn the_session_that_expires_last_is_served() {
    let hours_ago = |hours: u64| jiff::Timestamp::now() - Duration::from_secs(3600 * hours);
    let mut fixture = fixture();
    fixture
        .update(update(vec![session(1, "a", "ASIA1")], vec![pod(1, 1)]))
        .unwrap();
    fixture.receive(PairEvent::Activated).unwrap();
    // A broker that has not reached STS for long still has its old session.
    let old = v1::Session {
        credentials: Some(credentials_since("ASIA0", hours_ago(2))),
        failure: Some(failure()),
        ..session(1, "a", "")
    };
    fixture.update(update(vec![old], vec![pod(1, 1)])).unwrap();
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
    let new = v1::Session {
        key: None,
        ..session(1, "a", "ASIA2")
    };
    fixture.update(update(vec![new], Vec::new())).unwrap();
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA2"));
}

#[test]
fn sessions_with_a_new_number_can_be_requested() {
    let mut fixture = fixture();
    let first = update(vec![session(1, "a", "ASIA1")], vec![pod(1, 1)]);
    fixture.update(first).unwrap();
    let mut second = update(vec![session(2, "a", "ASIA1")], vec![pod(1, 2)]);
    second.removed_sessions = vec![1];
    fixture.update(second).unwrap();
    let key = SessionKey::try_from(key("a")).unwrap();
    assert_eq!(fixture.sync.numbers.get(&key), Some(&2));
    assert_eq!(fixture.key(1).as_deref(), Some("ASIA1"));
}

#[test]
fn a_message_that_makes_no_sense_ends_the_stream() {
    let entry = |change: &dyn Fn(&mut v1::Pod)| {
        let mut entry = pod(1, 1);
        change(&mut entry);
        update(vec![session(1, "a", "ASIA1")], vec![entry])
    };
    let with = |change: &dyn Fn(&mut v1::Session)| {
        let mut session = session(1, "a", "ASIA1");
        change(&mut session);
        update(vec![session], Vec::new())
    };
    for malformed in [
        update(Vec::new(), vec![pod(1, 1)]),
        entry(&|it| it.authorization = None),
        entry(&|it| it.uid.clear()),
        entry(&|it| it.namespace = "a\nb".into()),
        entry(&|it| it.name = "x".repeat(1000)),
        entry(&|it| it.addresses = vec![vec![1, 2, 3]]),
        with(&|it| it.key = None),
        with(&|it| it.key.as_mut().unwrap().role = "no ARN".into()),
        with(&|it| it.credentials.as_mut().unwrap().access_key_id.clear()),
        with(&|it| it.credentials.as_mut().unwrap().secret_access_key.clear()),
        with(&|it| it.credentials.as_mut().unwrap().expires_at_ms = i64::MAX),
        with(&|it| it.failure = Some(v1::Failure::default())),
    ] {
        let mut fixture = fixture();
        let text = format!("{malformed:?}");
        assert!(fixture.update(malformed).is_err(), "{text}");
        // Nothing of it is shown.
        assert_eq!(fixture.key(1), None, "{text}");
    }
}

#[test]
fn a_broker_cannot_fill_the_agent() {
    let mut fixture = fixture();
    let sessions = |from: u64| (from..).map(|n| session(n, &format!("role-{n}"), "ASIA"));
    let most = u64::try_from(MAX_ENTRIES).unwrap();
    let all = sessions(0).take(MAX_ENTRIES).collect();
    fixture.update(update(all, Vec::new())).unwrap();
    assert!(
        fixture
            .update(update(sessions(most).take(1).collect(), Vec::new()))
            .is_err()
    );
    let pods = |from: usize, count: usize| {
        let named = |n: usize| v1::Pod {
            uid: format!("uid-{n}"),
            addresses: Vec::new(),
            ..pod(1, 1)
        };
        update(Vec::new(), (from..from + count).map(named).collect())
    };
    // While the complete state is sent, and afterwards.
    fixture.update(pods(0, MAX_ENTRIES)).unwrap();
    assert!(fixture.update(pods(MAX_ENTRIES, 2)).is_err());
    fixture.receive(PairEvent::Activated).unwrap();
    let mut first = update(vec![session(1, "a", "ASIA1")], Vec::new());
    first.complete = true;
    fixture.update(first).unwrap();
    fixture.update(pods(0, MAX_ENTRIES)).unwrap();
    assert!(fixture.update(pods(MAX_ENTRIES, 2)).is_err());
}
