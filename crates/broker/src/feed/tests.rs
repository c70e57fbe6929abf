//! A feed on its own: what the desk says in, messages out.

use std::collections::HashSet;

use rolegate_aws::sessions::{Document, Fed, Session, Sessions};
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::engine::Cause;
use rolegate_core::key_values::KeyValues;
use rolegate_core::workload::{Phase, Wish};
use rolegate_runtime::places::Places;
use rolegate_standing::ledger::Ledger;
use rolegate_standing::resident::Allowed;

use super::*;

struct Bench {
    ledger: Ledger,
    feed: Feed,
    sessions: Sessions,
    fed: Fed,
}

fn bench() -> Bench {
    let (sessions, fed) = Sessions::fed();
    Bench {
        feed: feed(),
        ledger: Ledger::new(10),
        sessions,
        fed,
    }
}

fn feed() -> Feed {
    Feed::new(Places::new(PER_NODE).take("node-1".into()).unwrap(), None)
}

fn pod(uid: &str) -> Arc<Workload> {
    Arc::new(Workload {
        namespace: "default".into(),
        name: format!("pod-{uid}").into(),
        uid: uid.into(),
        node: Some("node-1".into()),
        service_account: "default".into(),
        addresses: vec![[10, 0, 0, 1].into()],
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        wish: Wish::default(),
        labels: KeyValues::default(),
        annotations: KeyValues::default(),
    })
}

fn key(role: &str) -> SessionKey {
    SessionKey {
        role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{role}")).unwrap(),
        name: "default.default".into(),
        external_id: None,
        duration_seconds: 3600,
        limits: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn decided(standing: Standing) -> Decided {
    Decided {
        generation: 1,
        until: None,
        standing,
    }
}

fn denied() -> Decided {
    decided(Standing::Denied {
        denial: Denial {
            role: "reader".into(),
            layer: "namespace",
            rule: "annotation".into(),
            reason: "it does not allow it".into(),
            passing: false,
        },
        body: "no\n".into(),
    })
}

impl Bench {
    fn allowed(&self, role: &str) -> Decided {
        let key = key(role);
        decided(Standing::Allowed(Allowed {
            role: key.role.clone(),
            listed: role.to_owned().into(),
            since: at(0),
            rules: ["a-rule".into()].into(),
            audited: Vec::new(),
            lease: Arc::new(self.sessions.lease(key, "default".into(), Cause::New)),
        }))
    }

    /// STS gave this session.
    fn fetched(&self, role: &str, access_key_id: &str) {
        let session = Session {
            access_key_id: access_key_id.into(),
            life: Life {
                from: at(0),
                until: at(3600),
            },
            document: Document::new("{}".into()),
        };
        self.fed.bring(&key(role), Some(session), None);
        self.feed.session_changed(&key(role));
    }

    fn put(&self, uid: &str, role: &str) -> Put {
        self.feed.put(pod(uid), self.allowed(role))
    }

    /// All that is to be sent.
    fn drain(&self) -> Vec<v1::Update> {
        std::iter::from_fn(|| self.feed.take(&self.ledger, at(0))).collect()
    }
}

fn uids(updates: &[v1::Update]) -> Vec<&str> {
    let residents = updates.iter().flat_map(|update| &update.residents);
    residents.map(|resident| &*resident.uid).collect()
}

fn gone(updates: &[v1::Update]) -> Vec<&str> {
    let gone = updates.iter().flat_map(|update| &update.gone);
    gone.map(String::as_str).collect()
}

fn session(resident: &v1::Resident) -> u64 {
    match &resident.standing {
        Some(v1::resident::Standing::Allowed(allowed)) => allowed.session,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sessions_are_sent_before_the_pods_that_use_them_in_messages_of_bounded_size() {
    let bench = bench();
    for number in 0..300 {
        // Each session is shared by two.
        bench.put(&format!("uid-{number}"), &format!("role-{}", number / 2));
    }
    bench.feed.complete();
    let updates = bench.drain();
    assert!(updates.len() >= 300 / PORTION);
    let mut introduced = HashSet::new();
    for update in &updates {
        assert!(update.residents.len() <= PORTION && update.sessions.len() <= PORTION);
        for session in &update.sessions {
            assert!(session.key.is_some() && introduced.insert(session.number));
        }
        let mut used = update.residents.iter().map(session);
        assert!(used.all(|number| introduced.contains(&number)));
    }
    assert_eq!((introduced.len(), uids(&updates).len()), (150, 300));
    // Only the last says that this is all, and it is said once.
    let complete: Vec<_> = updates.iter().map(|update| update.complete).collect();
    assert_eq!(complete.iter().filter(|it| **it).count(), 1);
    assert_eq!(complete.last(), Some(&true));
    bench.feed.complete();
    assert!(!bench.feed.has_news());
}

#[test]
fn what_changes_often_is_sent_once_as_it_is_then() {
    let bench = bench();
    for role in ["a", "b", "a", "c"] {
        bench.put("uid-1", role);
    }
    for key in ["ASIA1", "ASIA2", "ASIA3"] {
        bench.fetched("c", key);
    }
    let updates = bench.drain();
    assert_eq!((updates.len(), uids(&updates)), (1, vec!["uid-1"]));
    let [only] = &*updates[0].sessions else {
        panic!("{updates:?}")
    };
    assert_eq!(only.key.as_ref().unwrap().role, key("c").role.as_str());
    assert_eq!(only.credentials.as_ref().unwrap().access_key_id, "ASIA3");
    // The sessions that nobody heard of aren't ended either.
    assert!(updates[0].ended.is_empty());

    bench.fetched("c", "ASIA4");
    bench.fetched("c", "ASIA5");
    let updates = bench.drain();
    assert_eq!((updates.len(), updates[0].sessions.len()), (1, 1));
    assert!(updates[0].sessions[0].key.is_none());
    // The same once more is no news.
    bench.put("uid-1", "c");
    assert!(bench.feed.take(&bench.ledger, at(0)).is_none());
}

#[test]
fn a_stream_that_is_not_read_costs_what_its_pods_cost() {
    let bench = bench();
    bench.put("stays", "stays");
    bench.put("known", "known");
    bench.drain();
    for number in 0..5000 {
        let uid = format!("uid-{number}");
        bench.put(&uid, &format!("role-{number}"));
        bench.fetched(&format!("role-{number}"), "ASIA");
        bench.feed.remove(&uid);
        bench.feed.remove("known");
        bench.put("known", "known");
    }
    let state = bench.feed.state();
    assert_eq!((state.pods.len(), state.new_pods.len()), (2, 1));
    assert_eq!((state.slots.len(), state.keys.len()), (2, 2));
    assert_eq!((state.gone.len(), state.new_sessions.len()), (0, 0));
    // One number for the one session that the agent was told of.
    assert_eq!(state.ended.len(), 1);
    drop(state);
    let updates = bench.drain();
    assert_eq!((updates.len(), uids(&updates)), (1, vec!["known"]));
}

#[test]
fn only_what_was_sent_is_told_to_be_gone() {
    let bench = bench();
    bench.put("sent", "a");
    bench.drain();
    bench.put("unsent", "b");
    bench.feed.remove("unsent");
    bench.feed.remove("sent");
    let updates = bench.drain();
    assert_eq!(gone(&updates), ["sent"]);
    assert_eq!(updates[0].ended.len(), 1);
    assert!(bench.feed.remove("sent").is_none());
}

#[test]
fn a_pod_that_comes_back_is_not_gone() {
    let bench = bench();
    bench.put("uid-1", "a");
    let first = session(&bench.drain()[0].residents[0]);
    bench.feed.remove("uid-1");
    bench.put("uid-1", "a");
    let updates = bench.drain();
    assert_eq!(
        (uids(&updates), gone(&updates)),
        (vec!["uid-1"], Vec::<&str>::new())
    );
    let [update] = &*updates else {
        panic!("{updates:?}")
    };
    // The session was let go between, so it is a new one on the stream.
    assert_ne!(session(&update.residents[0]), first);
    assert_eq!(update.ended, [first]);
    bench.feed.remove("uid-1");
    assert_eq!(gone(&bench.drain()), ["uid-1"]);
}

#[test]
fn a_session_that_pods_share_has_one_number_until_the_last_leaves() {
    let bench = bench();
    assert_eq!(bench.put("uid-1", "a").begun.as_deref(), Some(&key("a")));
    assert!(bench.put("uid-2", "a").begun.is_none());
    let updates = bench.drain();
    let numbers: HashSet<_> = updates[0].residents.iter().map(session).collect();
    assert_eq!((numbers.len(), updates[0].sessions.len()), (1, 1));

    assert!(bench.feed.remove("uid-1").is_none());
    assert_eq!(bench.feed.sessions().len(), 1);
    let put = bench.feed.put(pod("uid-2"), denied());
    assert_eq!(put.ended.as_deref(), Some(&key("a")));
    let updates = bench.drain();
    assert_eq!(updates[0].ended, numbers.into_iter().collect::<Vec<_>>());
    assert!(bench.feed.sessions().is_empty());
}

#[test]
fn nobody_needs_a_session_when_its_pods_and_the_feed_are_gone() {
    let bench = bench();
    let Standing::Allowed(allowed) = bench.allowed("a").standing else {
        panic!("not allowed");
    };
    let lease = Arc::downgrade(&allowed.lease);
    bench
        .feed
        .put(pod("uid-1"), decided(Standing::Allowed(allowed)));
    assert!(lease.upgrade().is_some());
    drop(bench.feed);
    assert!(lease.upgrade().is_none());
}

#[test]
fn threat_20_what_an_agent_says_counts_only_for_pods_and_keys_that_it_was_sent() {
    let bench = bench();
    let tell = Tell::new(None, bench.ledger.clone());
    // Pods that have got what they were sent, and how many entries there are.
    let served = |uid: &str, key: &str| {
        let access_key_id = key.into();
        let outcome = NoticeOutcome::Served { access_key_id };
        bench.feed.notice(uid, &outcome, &tell, at(1));
        let records = bench.ledger.records(None);
        let served = records.iter().filter(|record| record.served.is_some());
        (served.count(), records.len())
    };
    bench.put("uid-1", "a");
    bench.put("uid-2", "b");
    bench.fetched("a", "ASIA1");
    bench.fetched("b", "ASIAB");
    assert_eq!(served("uid-1", "ASIA1"), (0, 0), "it was not sent yet");
    bench.drain();
    assert_eq!(served("uid-of-others", "ASIA1"), (0, 2));
    assert_eq!(served("uid-1", "ASIAOTHER"), (0, 2));
    assert_eq!(served("uid-1", "ASIAB"), (0, 2), "that is the other pod's");
    assert_eq!(served("uid-1", "ASIA1"), (1, 2));
    assert_eq!(
        served("uid-1", "ASIA1"),
        (1, 2),
        "once for each pod and key"
    );
    // One refresh later the key before may still be reported; two later not.
    bench.fetched("a", "ASIA2");
    assert_eq!(served("uid-1", "ASIA2"), (1, 2), "it was not sent yet");
    bench.drain();
    bench.fetched("a", "ASIA3");
    bench.drain();
    assert_eq!(served("uid-1", "ASIA2"), (2, 4));
    assert_eq!(served("uid-1", "ASIA1"), (2, 4));
    let record = &bench.ledger.records(Some("ASIA1"))[0];
    assert_eq!(
        (&*record.pod, &*record.role),
        ("pod-uid-1", key("a").role.as_str())
    );
    // A pod that went is nobody's to speak of.
    bench.feed.remove("uid-1");
    assert_eq!(served("uid-1", "ASIA3"), (2, 4));
}

#[test]
fn threat_20_what_is_sent_is_written_whatever_the_agent_says() {
    let bench = bench();
    let written = || {
        let records = bench.ledger.records(None);
        let named = records.iter().rev();
        let named = named.map(|record| format!("{} {}", record.pod_uid, record.access_key_id));
        named.collect::<Vec<_>>()
    };
    // One session for two pods, which is there after the first and before the second.
    bench.put("uid-1", "a");
    bench.drain();
    assert!(written().is_empty());
    bench.fetched("a", "ASIA1");
    assert!(written().is_empty(), "not before it is sent");
    bench.drain();
    bench.put("uid-2", "a");
    bench.drain();
    let both = ["uid-1 ASIA1", "uid-2 ASIA1"];
    assert_eq!(written(), both);
    bench.fetched("a", "ASIA2");
    bench.drain();
    let all = [both, ["uid-1 ASIA2", "uid-2 ASIA2"]].concat();
    let mut sorted = written();
    sorted.sort_by_key(|entry| entry.split(' ').next_back().map(str::to_owned));
    sorted[2..].sort();
    assert_eq!(sorted, all);
    // A stream that is opened again and again writes nothing twice.
    for _ in 0..3 {
        let again = feed();
        again.put(pod("uid-1"), bench.allowed("a"));
        again.take(&bench.ledger, at(2));
    }
    assert_eq!(written().len(), 4);
}

#[test]
fn what_is_gone_alone_is_news() {
    // Its session lives on for the other pod.
    let bench = bench();
    bench.put("uid-1", "a");
    bench.put("uid-2", "a");
    bench.drain();
    bench.feed.remove("uid-1");
    assert!(bench.feed.has_news());
    let updates = bench.drain();
    assert_eq!(gone(&updates), ["uid-1"]);
    assert!(updates[0].ended.is_empty());
    // If a pod is now denied, its session's end is sent alongside the pod.
    bench.feed.put(pod("uid-2"), denied());
    let update = bench.feed.take(&bench.ledger, at(0)).unwrap();
    assert_eq!((update.residents.len(), update.ended.len()), (1, 1));
    assert!(!bench.feed.has_news());
}

#[test]
fn nothing_is_complete_before_all_that_is_gone_was_told() {
    let bench = bench();
    let many = 2 * GONE + 1;
    for number in 0..many {
        bench.feed.put(pod(&format!("uid-{number}")), denied());
    }
    bench.drain();
    for number in 0..many {
        bench.feed.remove(&format!("uid-{number}"));
    }
    bench.feed.complete();
    let updates = bench.drain();
    let told: Vec<_> = updates
        .iter()
        .map(|it| (it.gone.len(), it.complete))
        .collect();
    assert_eq!(told, [(GONE, false), (GONE, false), (1, true)]);

    // So it is with sessions, each of which was its pod's own.
    let bench = self::bench();
    for number in 0..GONE + 1 {
        bench.put(&format!("uid-{number}"), &format!("role-{number}"));
    }
    bench.drain();
    for number in 0..GONE + 1 {
        bench.feed.put(pod(&format!("uid-{number}")), denied());
    }
    bench.feed.complete();
    let updates = bench.drain();
    let complete: Vec<_> = updates.iter().filter(|it| it.complete).collect();
    assert_eq!(complete.len(), 1);
    assert!(updates.last().unwrap().complete);
    let ended: usize = updates.iter().map(|it| it.ended.len()).sum();
    assert_eq!(ended, GONE + 1);
}

#[test]
fn what_layers_in_audit_mode_would_refuse_is_told_when_the_agent_says_so() {
    let bench = bench();
    let tell = Tell::new(None, bench.ledger.clone());
    let Standing::Allowed(allowed) = bench.allowed("a").standing else {
        panic!("not allowed");
    };
    let Standing::Denied { denial, .. } = denied().standing else {
        panic!("not denied");
    };
    let audited = Allowed {
        audited: vec![denial],
        ..allowed
    };
    bench
        .feed
        .put(pod("uid-1"), decided(Standing::Allowed(audited)));
    bench.drain();
    let told = || {
        let resident = bench.feed.resident("uid-1").unwrap();
        // One that was told a moment ago is not told again.
        !resident
            .told
            .allows(at(2), std::time::Duration::from_secs(3600))
    };
    bench
        .feed
        .notice("uid-1", &NoticeOutcome::Audited, &tell, at(1));
    assert!(told(), "nothing was told");
}
