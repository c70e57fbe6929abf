//! Hostile agents and peers: nothing else is affected.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use rolegate_broker::app::Broker;
use rolegate_broker::subscription::MAX_PER_NODE;
use rolegate_proto::v1::{self, from_agent, outcome, to_agent};
use rolegate_runtime::clock::Clock;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::harness::{CREDENTIALS, TestBrokers, address, get, ledger, metric, pod, until};
use crate::net::Load;
use crate::raw::{Raw, connect, dial, eventually};
use crate::tokens::AgentPod;

const UNAUTHENTICATED: &str =
    r#"rolegate_broker_connections{port="agents",state="unauthenticated"}"#;
const AUTHENTICATED: &str = r#"rolegate_broker_connections{port="agents",state="authenticated"}"#;
const WRITER: &str = "/latest/meta-data/iam/security-credentials/writer";

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_delays_no_agent_and_gets_the_latest_state() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let other = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&other, address(2, 1), WRITER).await.0, 200);
    let load = Load::start(&other, address(2, 1), WRITER);
    let tls = harness.tls(Some(harness.node_pair("node-1")));
    let mut raw = Raw::serving(&tls, broker.addresses().agents, "node-1").await;
    for round in 0..50 {
        for n in 0..100 {
            harness
                .kube
                .put_pod(pod(&format!("churn-{n}"), 1, n + 2, "reader"));
        }
        for n in 0..100 {
            harness.kube.delete_pod("default", &format!("churn-{n}"));
        }
        // Other pods are still processed in between.
        let name = format!("other-{}", round % 5);
        harness.kube.put_pod(pod(&name, 2, 10 + round, "reader-2"));
        until(&other, address(2, 10 + round), CREDENTIALS, |it| {
            it.0 == 200
        })
        .await;
    }
    load.succeeded().await;
    harness.kube.put_pod(pod("last", 1, 250, "reader"));
    let mut known = HashSet::new();
    let (mut messages, mut pods) = (0, 0);
    loop {
        let update = raw.update().await;
        messages += 1;
        pods += update.pods.len();
        let mut named = update.pods.iter();
        let last = named.any(|it| it.name == "last");
        known.extend(update.pods.into_iter().map(|it| it.uid));
        for uid in update.removed_pod_uids {
            assert!(known.remove(&uid));
        }
        if last {
            break;
        }
    }
    // Most intermediate states were never sent.
    assert!(pods < 4000, "{pods} pods in {messages} messages");
    // Only removals are left to send.
    while known.len() > 2 {
        for uid in raw.update().await.removed_pod_uids {
            assert!(known.remove(&uid));
        }
    }
}

#[tokio::test]
async fn threat_20_what_a_stolen_agent_says_of_others_is_written_nowhere() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let victim = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&victim, address(2, 1), WRITER).await.0, 200);
    let served = async || {
        let entries = ledger(&broker).await;
        entries
            .into_iter()
            .find(|entry| entry["served"] != Value::Null)
    };
    eventually("the victim's entry", async || served().await.is_some()).await;
    let victims = served().await.unwrap();
    harness.kube.put_pod(pod("denied", 2, 2, "admin"));
    until(&victim, address(2, 2), CREDENTIALS, |it| it.0 == 403).await;
    eventually("the victim's Event", || async {
        harness.kube.events().len() == 1
    })
    .await;

    let tls = harness.tls(Some(harness.node_pair("node-1")));
    let mut raw = Raw::serving(&tls, broker.addresses().agents, "node-1").await;
    let (mut own, mut key) = (None, None);
    while key.is_none() {
        let update = raw.update().await;
        // The stream never carries pods of other nodes.
        for entry in update.pods {
            assert_eq!(entry.name, "one");
            own = Some(entry.uid);
        }
        let credentials = update.sessions.into_iter().filter_map(|it| it.credentials);
        key = credentials
            .map(|it| it.access_key_id.clone())
            .next_back()
            .or(key);
    }
    let (own, key) = (own.unwrap(), key.unwrap());
    let notice = |uid: &str, outcome| v1::Outcome {
        pod_uid: uid.into(),
        result: Some(outcome),
        service_account: None,
    };
    let theirs = victims["podUid"].as_str().unwrap();
    let their_key = victims["accessKeyId"].as_str().unwrap();
    let served = |key: &str| outcome::Result::Served(key.into());
    let outcomes = vec![
        notice(theirs, served(their_key)),
        notice(theirs, served(&key)),
        notice(theirs, outcome::Result::Denied(v1::Empty {})),
        notice(theirs, outcome::Result::Failing(v1::Empty {})),
        notice(&own, served(their_key)),
        notice(&own, served("ASIAMADEUP")),
        notice(&own, outcome::Result::Denied(v1::Empty {})),
        notice(&own, outcome::Result::Failing(v1::Empty {})),
        notice("no pod at all", served(&key)),
        // The only valid outcome.
        notice(&own, served(&key)),
        notice(&own, served(&key)),
    ];
    // The ledger records sessions before the agent reports anything.
    let ours = async || {
        let entries = ledger(&broker).await;
        let ours = |entry: &&Value| entry["podUid"] == *own;
        let entry = entries.iter().find(ours).cloned();
        (entry.unwrap(), entries)
    };
    let (entry, before) = ours().await;
    assert_eq!(
        (&entry["pod"], &entry["accessKeyId"], &entry["served"]),
        (&"one".into(), &key.as_str().into(), &Value::Null)
    );
    raw.say(from_agent::Body::Outcomes(v1::Outcomes { outcomes }))
        .await;
    eventually("the true entry", async || {
        ours().await.0["served"] != Value::Null
    })
    .await;
    let (_, entries) = ours().await;
    assert_eq!(entries.len(), before.len(), "{entries:?}");
    assert!(entries.contains(&victims), "{entries:?}");
    assert_eq!(harness.kube.events().len(), 1);

    let many = vec![notice(&own, outcome::Result::Denied(v1::Empty {})); 257];
    raw.say(from_agent::Body::Outcomes(v1::Outcomes { outcomes: many }))
        .await;
    assert_eq!(raw.end().await.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_09_a_stream_does_not_outlive_its_certificate() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock).await;
    let broker = harness.broker("broker-a").await;
    let pair = harness.node_pair_for("node-1", Duration::from_secs(86_400));
    let tls = harness.tls(Some(pair));
    let raw = Raw::serving(&tls, broker.addresses().agents, "node-1").await;
    hand.send_replace(Duration::from_secs(86_300));
    let again = Raw::serving(&tls, broker.addresses().agents, "node-1").await;
    let connected = connect(&tls, Ipv4Addr::LOCALHOST, broker.addresses().agents).await;
    let (requests, connection) = connected.unwrap();
    // A first stream is refused: the broker accepted the connection while it had room.
    let early = Raw::on(requests.clone(), connection.clone()).await.unwrap();
    hand.send_replace(Duration::from_secs(86_500));
    for stream in [raw, again] {
        assert_eq!(stream.end().await.code(), Code::Unauthenticated);
    }
    // The earlier connection cannot open a new stream either.
    let mut late = Raw::on(requests, connection).await.unwrap();
    late.hello("node-1").await;
    assert_eq!(late.hear().await.unwrap_err().code(), Code::Unauthenticated);
    drop(early);
    assert!(
        connect(&tls, Ipv4Addr::LOCALHOST, broker.addresses().agents)
            .await
            .is_err()
            || {
                // In TLS 1.3 a client learns of the rejection when it reads.
                let opened = connect(&tls, Ipv4Addr::LOCALHOST, broker.addresses().agents).await;
                let (requests, connection) = opened.unwrap();
                Raw::on(requests, connection).await.is_err()
            }
    );
}

/// Sends bytes on a TCP connection and waits until the broker closes it.
async fn bytes(broker: &Broker, bytes: &[u8]) {
    let mut stream = dial(Ipv4Addr::new(127, 0, 0, 66), broker.addresses().agents).await;
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let closed = stream.read_to_end(&mut answer);
    let closed = tokio::time::timeout(crate::harness::TEST_TIMEOUT, closed).await;
    assert!(closed.is_ok(), "the broker keeps a connection of garbage");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_and_streams_affect_no_other_peer() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let to = broker.addresses().agents;
    let agent = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&agent, address(2, 1), WRITER).await.0, 200);
    let load = Load::start(&agent, address(2, 1), WRITER);

    bytes(&broker, b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n").await;
    bytes(&broker, &[0xff; 100_000]).await;
    // Half a handshake, then silence.
    bytes(&broker, &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await;
    let tls = harness.tls(None);
    let stream = dial(Ipv4Addr::LOCALHOST, to).await;
    let mut stream = tls.connect(stream, "localhost").await.unwrap();
    stream.write_all(&[0xff; 1000]).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;

    // Messages that are not allowed at this point.
    let begin = || from_agent::Body::Activate(v1::Activate {});
    let unknown_peer = Raw::open(&tls, to).await;
    unknown_peer.say(begin()).await;
    assert_eq!(unknown_peer.end().await.code(), Code::InvalidArgument);
    for node in ["", "node-1\n", "node-1"] {
        let unknown_peer = Raw::open(&tls, to).await;
        unknown_peer.hello(node).await;
        let code = unknown_peer.end().await.code();
        assert!(
            matches!(code, Code::InvalidArgument | Code::Unauthenticated),
            "{code}"
        );
    }
    let known = harness.tls(Some(harness.node_pair("node-1")));
    for version in ["1\n2".to_owned(), "1".repeat(300)] {
        let odd = Raw::open(&known, to).await;
        let hello = v1::Hello {
            node: "node-1".into(),
            version,
            token: String::new(),
        };
        odd.say(from_agent::Body::Hello(hello)).await;
        assert_eq!(odd.end().await.code(), Code::InvalidArgument);
    }
    let twice = Raw::serving(&known, to, "node-1").await;
    twice.say(begin()).await;
    assert_eq!(twice.end().await.code(), Code::InvalidArgument);
    let twice = Raw::serving(&known, to, "node-1").await;
    twice.hello("node-1").await;
    assert_eq!(twice.end().await.code(), Code::InvalidArgument);
    let certified = Raw::serving(&known, to, "node-1").await;
    let token = "x".to_owned();
    certified
        .say(from_agent::Body::Reauthenticate(v1::Reauthenticate {
            token,
        }))
        .await;
    assert_eq!(certified.end().await.code(), Code::InvalidArgument);
    let huge = Raw::serving(&known, to, "node-1").await;
    let token = "x".repeat(128 << 10);
    huge.say(from_agent::Body::Reauthenticate(v1::Reauthenticate {
        token,
    }))
    .await;
    assert_eq!(huge.end().await.code(), Code::OutOfRange);

    // A thousand unauthenticated streams on one connection.
    let (requests, connection) = connect(&tls, Ipv4Addr::LOCALHOST, to).await.unwrap();
    let opening = (0..1000).map(|_| Raw::on(requests.clone(), connection.clone()));
    let opening = tokio::spawn(futures::future::join_all(opening.collect::<Vec<_>>()));
    harness.kube.put_pod(pod("new", 2, 2, "reader"));
    until(&agent, address(2, 2), CREDENTIALS, |it| it.0 == 200).await;
    assert_eq!(
        metric(&broker, "rolegate_broker_streams{use=\"serving\"}").await,
        Some(1)
    );
    opening.abort();
    connection.abort();
    load.succeeded().await;
}

#[tokio::test]
async fn unauthenticated_peers_send_no_large_messages() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let unknown_peer = Raw::open(&harness.tls(None), broker.addresses().agents).await;
    // The smallest encoding that needs the most memory.
    let notice = v1::Outcome {
        pod_uid: String::new(),
        result: None,
        service_account: None,
    };
    let outcomes = vec![notice; 64 << 10];
    unknown_peer
        .say(from_agent::Body::Outcomes(v1::Outcomes { outcomes }))
        .await;
    assert_eq!(unknown_peer.end().await.code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_peers_are_limited_and_the_oldest_is_closed() {
    let harness = TestBrokers::new().await;
    let mut options = harness.broker_options("broker-a");
    options.connections = 16;
    let broker = harness.start(options).await;
    let to = broker.addresses().agents;
    let pairs = ["node-1", "node-2", "node-3"].map(|node| (node, harness.node_pair(node)));
    let mut held = Vec::new();
    for (node, pair) in pairs {
        held.push(Raw::serving(&harness.tls(Some(pair)), to, node).await);
    }
    // None of them waits for a permit, whatever the others do.
    let tls = harness.tls(None);
    let mut unknown_peers = Vec::new();
    for n in 66..90 {
        let from = Ipv4Addr::new(127, 0, 0, n);
        unknown_peers.push(connect(&tls, from, to).await.unwrap());
    }
    eventually("two unknown_peers", || async {
        metric(&broker, UNAUTHENTICATED).await == Some(2)
    })
    .await;
    assert_eq!(metric(&broker, AUTHENTICATED).await, Some(3));
    let report = broker.readiness().report();
    assert!(report.ready && report.noted.contains_key("agent connections"));
    // Existing and new agents are still served.
    harness.kube.put_pod(pod("new", 1, 2, "reader"));
    while held[0]
        .update()
        .await
        .pods
        .iter()
        .all(|it| it.name != "new")
    {}
    let agent = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&agent, address(2, 1), WRITER).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_27_an_agent_needs_no_strangers_connection_to_end() {
    let harness = TestBrokers::new().await;
    let mut options = harness.broker_options("broker-a");
    options.connections = 16;
    let broker = harness.start(options).await;
    let to = broker.addresses().agents;
    // The agent's pod has the address that the connection comes from.
    let _agent_pod = AgentPod::new(&harness);
    let tls = harness.tls(None);
    let mut held = Vec::new();
    for n in [66, 67] {
        let from = Ipv4Addr::new(127, 0, 0, n);
        held.push(connect(&tls, from, to).await.unwrap());
    }
    eventually("two unknown_peers", || async {
        metric(&broker, UNAUTHENTICATED).await == Some(2)
    })
    .await;
    let agent = harness.agent(&broker, "node-1").await;
    assert_eq!(get(&agent, address(1, 1), CREDENTIALS).await.0, 200);
    assert!(
        held.iter().all(|(_, connection)| !connection.is_finished()),
        "it was served once an unknown peer had gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_few_unauthenticated_connections() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let to = broker.addresses().agents;
    let tls = harness.tls(None);
    let thief = Ipv4Addr::new(127, 0, 0, 66);
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(connect(&tls, thief, to).await.unwrap());
    }
    eventually("four connections", || async {
        metric(&broker, UNAUTHENTICATED).await == Some(4)
    })
    .await;
    // Other nodes are unaffected.
    let agent = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&agent, address(2, 1), WRITER).await.0, 200);
    for (_, connection) in held.drain(..) {
        connection.abort();
    }
    eventually("no connection", || async {
        metric(&broker, UNAUTHENTICATED).await == Some(0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_certificate_gets_one_nodes_connection_limit() {
    let harness = TestBrokers::new().await;
    let mut options = harness.broker_options("broker-a");
    options.connections = 32;
    let broker = harness.start(options).await;
    let to = broker.addresses().agents;
    let tls = harness.tls(Some(harness.node_pair("node-1")));
    let mut held = Vec::new();
    for n in 1..60 {
        let from = Ipv4Addr::new(127, 0, 2, n);
        let Ok((requests, connection)) = connect(&tls, from, to).await else {
            continue;
        };
        let Ok(mut raw) = Raw::on(requests, connection).await else {
            continue;
        };
        raw.hello("node-1").await;
        // Rejected connections are closed; the others stay open.
        if raw.hear().await.is_ok() {
            held.push(raw);
        }
    }
    assert_eq!(held.len(), MAX_PER_NODE);
    eventually("no more than the node's", || async {
        metric(&broker, AUTHENTICATED).await == Some(u64::try_from(MAX_PER_NODE).unwrap())
    })
    .await;
    let agent = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&agent, address(2, 1), WRITER).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_streams_begin_no_faster_than_they_may() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let to = broker.addresses().agents;
    let tls = harness.tls(Some(harness.node_pair("node-1")));
    let (requests, connection) = connect(&tls, Ipv4Addr::LOCALHOST, to).await.unwrap();
    let serving = "rolegate_broker_streams{use=\"serving\"}";
    let mut begun = 0;
    let refused = loop {
        // All share one connection.
        let lives = tokio::spawn(async {}).abort_handle();
        let mut raw = Raw::on(requests.clone(), lives).await.unwrap();
        raw.hello("node-1").await;
        let welcome = raw.hear().await.unwrap();
        assert!(matches!(welcome, Some(to_agent::Body::Welcome(_))));
        raw.say(from_agent::Body::Activate(v1::Activate {})).await;
        let refused = loop {
            match raw.hear().await {
                Ok(Some(to_agent::Body::Update(_))) => break None,
                Ok(_) => {}
                Err(status) => break Some(status),
            }
        };
        if let Some(refused) = refused {
            break refused;
        }
        begun += 1;
        assert!(begun < 200, "no stream was refused");
        drop(raw);
        eventually("the end of the stream", || async {
            metric(&broker, serving).await == Some(0)
        })
        .await;
    };
    assert!(begun >= 16, "only {begun} streams began");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("too many"), "{refused:?}");
    let reason = "rolegate_broker_refused_total{reason=\"begins\"}";
    assert_eq!(metric(&broker, reason).await, Some(1));
    // Another node's streams are counted separately.
    let agent = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&agent, address(2, 1), WRITER).await.0, 200);
    connection.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_room_for_so_many_streams() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let to = broker.addresses().agents;
    let tls = harness.tls(Some(harness.node_pair("node-1")));
    let mut held = Vec::new();
    for _ in 0..MAX_PER_NODE {
        held.push(Raw::serving(&tls, to, "node-1").await);
    }
    let from = Ipv4Addr::LOCALHOST;
    let (requests, connection) = connect(&tls, from, to).await.unwrap();
    let mut crowded = Raw::on(requests, connection.clone()).await.unwrap();
    crowded.hello("node-1").await;
    let refused = crowded.hear().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // The connection no longer holds a permit.
    eventually("the end of the connection", || async {
        connection.is_finished()
    })
    .await;
    drop(crowded);
    assert_eq!(
        metric(&broker, "rolegate_broker_refused_total{reason=\"crowded\"}").await,
        Some(1)
    );
    // Other nodes keep their limits, and permits are released with the streams.
    let agent = harness.agent(&broker, "node-2").await;
    assert_eq!(get(&agent, address(2, 1), WRITER).await.0, 200);
    held.clear();
    eventually("room", || async {
        let mut raw = Raw::open(&tls, to).await;
        raw.hello("node-1").await;
        raw.hear().await.is_ok()
    })
    .await;
}
