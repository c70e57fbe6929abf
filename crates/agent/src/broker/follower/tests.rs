//! The follower on its own: a broker's messages in, the picture out.

use futures::FutureExt;
use prometheus_client::registry::Registry;
use rolegate_aws::sessions::Current;
use rolegate_core::session::Life;

use super::*;
use crate::guard::Guard;
use crate::metrics::AgentMetrics;
use crate::picture::Owner;

struct Bench {
    follower: Follower,
    fed: Fed,
    picture: Arc<Picture>,
    readiness: Readiness,
}

fn bench() -> Bench {
    let (sessions, fed) = Sessions::fed();
    let picture = Arc::new(Picture::default());
    let readiness = Readiness::new();
    let metrics = AgentMetrics::register(&mut Registry::default());
    let mut bench = Bench {
        follower: Follower {
            picture: picture.clone(),
            roster: Roster::new(picture.clone(), Guard::default(), metrics),
            sessions,
            age: BrokerAge::new(),
            clock: Clock::system(),
            node: "node-1".into(),
            table: HashMap::new(),
            numbers: HashMap::new(),
            shown: None,
            workloads: Some(readiness.block("no pods yet")),
            condition: readiness.condition("broker"),
        },
        fed,
        picture,
        readiness,
    };
    bench.hear(Heard::Begun).unwrap();
    bench
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
    let until = from + std::time::Duration::from_secs(3600);
    v1::Credentials::new(access_key_id, b"{}", Life { from, until })
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

fn pod(n: u8, session: u64) -> v1::Resident {
    v1::Resident {
        uid: format!("uid-{n}"),
        namespace: "default".into(),
        name: format!("pod-{n}"),
        service_account: "default".into(),
        addresses: vec![wire::address_bytes(address(n))],
        standing: Some(resident::Standing::Allowed(v1::Allowed {
            session,
            listed: "reader".into(),
            rules: [].into(),
            audited: Vec::new(),
        })),
    }
}

fn update(sessions: Vec<v1::Session>, residents: Vec<v1::Resident>) -> v1::Update {
    v1::Update {
        sessions,
        residents,
        ..v1::Update::default()
    }
}

fn complete() -> v1::Update {
    v1::Update {
        complete: true,
        ..v1::Update::default()
    }
}

impl Bench {
    fn hear(&mut self, heard: Heard) -> Result<(), Malformed> {
        self.follower.take(heard, &self.fed)
    }

    fn update(&mut self, update: v1::Update) -> Result<(), Malformed> {
        self.hear(Heard::Update(update))
    }

    /// The key that a pod is handed.
    fn key(&self, n: u8) -> Option<String> {
        let Some(Owner::Pod(resident)) = self.picture.owner(address(n)) else {
            return None;
        };
        let decided = resident.decided.load_full();
        let Standing::Allowed(allowed) = &decided.standing else {
            return None;
        };
        match allowed.lease.cell().current(jiff::Timestamp::now()) {
            Current::Live(session) => Some(session.access_key_id.clone()),
            _ => None,
        }
    }
}

#[test]
fn the_picture_is_what_the_broker_says() {
    let mut bench = bench();
    let sessions = vec![session(1, "a", "ASIA1"), session(2, "b", "ASIA2")];
    bench
        .update(update(sessions, vec![pod(1, 1), pod(2, 2)]))
        .unwrap();
    assert!(!bench.picture.is_settled() && !bench.readiness.is_ready());
    bench.update(complete()).unwrap();
    assert!(bench.picture.is_settled() && bench.readiness.is_ready());
    assert_eq!(bench.key(1).as_deref(), Some("ASIA1"));
    // A refresh, and one that failed: what there was is served on.
    let refreshed = v1::Session {
        key: None,
        ..session(1, "a", "ASIA3")
    };
    bench.update(update(vec![refreshed], Vec::new())).unwrap();
    let failed = v1::Session {
        number: 1,
        failure: Some(failure()),
        ..v1::Session::default()
    };
    bench.update(update(vec![failed], Vec::new())).unwrap();
    assert_eq!(bench.key(1).as_deref(), Some("ASIA3"));
    bench
        .update(v1::Update {
            gone: vec!["uid-1".into(), "uid-of-nobody".into()],
            ended: vec![1, 77],
            ..v1::Update::default()
        })
        .unwrap();
    assert_eq!(bench.key(1), None);
    assert_eq!(bench.key(2).as_deref(), Some("ASIA2"));
    assert_eq!(bench.follower.table.len(), 1);
}

#[test]
fn what_a_new_stream_does_not_show_is_gone_once_it_is_complete() {
    let mut bench = bench();
    let sessions = vec![session(1, "a", "ASIA1"), session(2, "b", "ASIA2")];
    let mut first = update(sessions, vec![pod(1, 1), pod(2, 2)]);
    first.complete = true;
    bench.update(first).unwrap();
    bench.hear(Heard::Lost("it went away".into())).unwrap();
    // It is served on meanwhile, and ready.
    assert_eq!(bench.key(1).as_deref(), Some("ASIA1"));
    assert!(bench.readiness.is_ready());

    bench.hear(Heard::Begun).unwrap();
    // Another broker has other numbers, and hasn't fetched this session yet: the first one's
    // credentials live on.
    let mut unfetched = session(7, "a", "x");
    unfetched.credentials = None;
    bench
        .update(update(vec![unfetched], vec![pod(1, 7)]))
        .unwrap();
    assert_eq!(bench.key(1).as_deref(), Some("ASIA1"));
    assert_eq!(bench.key(2).as_deref(), Some("ASIA2"));
    bench.update(complete()).unwrap();
    assert_eq!(bench.key(1).as_deref(), Some("ASIA1"));
    assert_eq!(bench.key(2), None);
}

#[tokio::test(start_paused = true)]
async fn the_picture_is_as_old_as_it_is_until_the_next_stream_is_complete() {
    let mut bench = bench();
    let minutes = |n: u64| std::time::Duration::from_secs(60 * n);
    bench.update(complete()).unwrap();
    tokio::time::advance(minutes(5)).await;
    assert_eq!(bench.follower.age.age(), minutes(5));
    bench.hear(Heard::Pulse(1000)).unwrap();
    assert_eq!(bench.follower.age.age().as_secs(), 1);

    bench.hear(Heard::Begun).unwrap();
    tokio::time::advance(minutes(10)).await;
    for said in [0, u64::MAX] {
        // The broker has not heard of any pod yet, or it never sends one.
        bench.hear(Heard::Pulse(said)).unwrap();
        assert_eq!(bench.follower.age.age().as_secs(), 601, "{said}");
    }
    bench.update(complete()).unwrap();
    bench.hear(Heard::Pulse(0)).unwrap();
    assert_eq!(bench.follower.age.age(), minutes(0));
}

#[test]
fn a_right_that_is_taken_away_counts_though_the_rest_makes_no_sense() {
    let mut bench = bench();
    let sessions = vec![session(1, "a", "ASIA1"), session(2, "b", "ASIA2")];
    let pods = vec![pod(1, 1), pod(2, 2), pod(3, 2)];
    bench.update(update(sessions, pods)).unwrap();
    let denied = v1::Resident {
        standing: Some(resident::Standing::Denied(v1::Denial::default())),
        ..pod(1, 0)
    };
    let mut malformed = update(Vec::new(), vec![denied, pod(3, 77)]);
    malformed.gone = vec!["uid-2".into()];
    assert!(bench.update(malformed).is_err());
    assert_eq!([bench.key(1), bench.key(2)], [None, None]);
    assert_eq!(bench.key(3).as_deref(), Some("ASIA2"));
}

#[test]
fn a_broker_that_has_not_decided_yet_takes_nothing_away() {
    let undecided = |n| v1::Resident {
        standing: Some(resident::Standing::Undecided(v1::Nothing {})),
        ..pod(n, 0)
    };
    let mut bench = bench();
    let pods = vec![pod(1, 1), pod(2, 1), pod(3, 1)];
    let mut first = update(vec![session(1, "a", "ASIA1")], pods);
    first.complete = true;
    bench.update(first).unwrap();

    bench.hear(Heard::Begun).unwrap();
    // One of them has moved: what was decided for it counts for the address that it had.
    let moved = v1::Resident {
        addresses: vec![wire::address_bytes(address(9))],
        ..undecided(2)
    };
    let pods = vec![undecided(1), moved, undecided(4)];
    bench.update(update(Vec::new(), pods)).unwrap();
    bench.update(complete()).unwrap();
    assert_eq!(bench.key(1).as_deref(), Some("ASIA1"));
    assert!([2, 3, 4, 9].iter().all(|n| bench.key(*n).is_none()));
    assert!(bench.picture.owner(address(9)).is_some() && bench.picture.owner(address(2)).is_none());
    // A broker that knew the rules, and waits for new ones, has its reasons.
    bench
        .update(update(Vec::new(), vec![undecided(1)]))
        .unwrap();
    assert_eq!(bench.key(1), None);
}

#[test]
fn what_a_pod_waits_for_is_asked_of_the_next_broker_too() {
    let mut bench = bench();
    let unfetched = |number| v1::Session {
        credentials: None,
        ..session(number, "a", "")
    };
    let mut first = update(vec![unfetched(1)], vec![pod(1, 1)]);
    first.complete = true;
    bench.update(first).unwrap();
    assert_eq!(bench.fed.asked().now_or_never(), None, "nobody waits");
    bench.follower.table.get(&1).unwrap().ask();
    let asked = |bench: &mut Bench| {
        let key = bench.fed.asked().now_or_never()??;
        bench.follower.numbers.get(&key).copied()
    };
    assert_eq!(asked(&mut bench), Some(1));

    bench.hear(Heard::Begun).unwrap();
    bench
        .update(update(vec![unfetched(5)], vec![pod(1, 5)]))
        .unwrap();
    assert_eq!(asked(&mut bench), Some(5));
    bench.hear(Heard::Begun).unwrap();
    let fetched = session(6, "a", "ASIA1");
    bench
        .update(update(vec![fetched], vec![pod(1, 6)]))
        .unwrap();
    assert_eq!(asked(&mut bench), None, "there it is");
}

#[test]
fn the_session_that_lives_longest_is_served_whoever_brings_it() {
    let hours_ago =
        |hours: u64| jiff::Timestamp::now() - std::time::Duration::from_secs(3600 * hours);
    let mut bench = bench();
    bench
        .update(update(vec![session(1, "a", "ASIA1")], vec![pod(1, 1)]))
        .unwrap();
    bench.hear(Heard::Begun).unwrap();
    // A broker that has not reached STS for long still holds what it had.
    let old = v1::Session {
        credentials: Some(credentials_since("ASIA0", hours_ago(2))),
        failure: Some(failure()),
        ..session(1, "a", "")
    };
    bench.update(update(vec![old], vec![pod(1, 1)])).unwrap();
    assert_eq!(bench.key(1).as_deref(), Some("ASIA1"));
    let new = v1::Session {
        key: None,
        ..session(1, "a", "ASIA2")
    };
    bench.update(update(vec![new], Vec::new())).unwrap();
    assert_eq!(bench.key(1).as_deref(), Some("ASIA2"));
}

#[test]
fn a_session_that_came_back_under_another_number_can_be_asked_for() {
    let mut bench = bench();
    let first = update(vec![session(1, "a", "ASIA1")], vec![pod(1, 1)]);
    bench.update(first).unwrap();
    let mut second = update(vec![session(2, "a", "ASIA1")], vec![pod(1, 2)]);
    second.ended = vec![1];
    bench.update(second).unwrap();
    let key = SessionKey::try_from(key("a")).unwrap();
    assert_eq!(bench.follower.numbers.get(&key), Some(&2));
    assert_eq!(bench.key(1).as_deref(), Some("ASIA1"));
}

#[test]
fn a_message_that_makes_no_sense_ends_the_stream() {
    let resident = |change: &dyn Fn(&mut v1::Resident)| {
        let mut resident = pod(1, 1);
        change(&mut resident);
        update(vec![session(1, "a", "ASIA1")], vec![resident])
    };
    let with = |change: &dyn Fn(&mut v1::Session)| {
        let mut session = session(1, "a", "ASIA1");
        change(&mut session);
        update(vec![session], Vec::new())
    };
    for malformed in [
        update(Vec::new(), vec![pod(1, 1)]),
        resident(&|it| it.standing = None),
        resident(&|it| it.uid.clear()),
        resident(&|it| it.namespace = "a\nb".into()),
        resident(&|it| it.name = "x".repeat(1000)),
        resident(&|it| it.addresses = vec![vec![1, 2, 3]]),
        with(&|it| it.key = None),
        with(&|it| it.key.as_mut().unwrap().role = "no ARN".into()),
        with(&|it| it.credentials.as_mut().unwrap().document.clear()),
        with(&|it| it.credentials.as_mut().unwrap().until_ms = i64::MAX),
        with(&|it| it.failure = Some(v1::Failure::default())),
    ] {
        let mut bench = bench();
        let text = format!("{malformed:?}");
        assert!(bench.update(malformed).is_err(), "{text}");
        // Nothing of it is shown.
        assert_eq!(bench.key(1), None, "{text}");
    }
}

#[test]
fn a_broker_cannot_fill_the_agent() {
    let mut bench = bench();
    let sessions = |from: u64| (from..).map(|n| session(n, &format!("role-{n}"), "ASIA"));
    let most = u64::try_from(MOST).unwrap();
    let all = sessions(0).take(MOST).collect();
    bench.update(update(all, Vec::new())).unwrap();
    assert!(
        bench
            .update(update(sessions(most).take(1).collect(), Vec::new()))
            .is_err()
    );
    let pods = |from: usize, count: usize| {
        let named = |n: usize| v1::Resident {
            uid: format!("uid-{n}"),
            addresses: Vec::new(),
            ..pod(1, 1)
        };
        update(Vec::new(), (from..from + count).map(named).collect())
    };
    // While all is shown, and after it.
    bench.update(pods(0, MOST)).unwrap();
    assert!(bench.update(pods(MOST, 2)).is_err());
    bench.hear(Heard::Begun).unwrap();
    let mut first = update(vec![session(1, "a", "ASIA1")], Vec::new());
    first.complete = true;
    bench.update(first).unwrap();
    bench.update(pods(0, MOST)).unwrap();
    assert!(bench.update(pods(MOST, 2)).is_err());
}
