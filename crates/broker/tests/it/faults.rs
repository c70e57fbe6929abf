//! Faults while pods send requests, each with the promised behaviour.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rolegate_agent::broker::ClientAuth;
use rolegate_broker::app::Broker;
use rolegate_devkit::{KubeApi, KubeApiOptions, Namespace, Pod, StsFailure};
use rolegate_runtime::clock::Clock;
use tonic::Code;

use crate::harness::{
    CREDENTIALS, LOOPBACK, TestBrokers, address, furnish, get, measure, metric, pod, until,
};
use crate::net::{Load, Network};
use crate::raw::{Raw, eventually};
use crate::serving::key_id;
use crate::tokens::{AgentPod, minutes, reviewed_again, reviews};

pub(crate) const READER: &str = "/latest/meta-data/iam/security-credentials/reader";
pub(crate) const SERVING: &str = "rolegate_broker_streams{use=\"serving\"}";
pub(crate) const ENDED: &str = "rolegate_broker_refused_total{reason=\"ended\"}";
pub(crate) const WARM: &str = "rolegate_broker_streams{use=\"warm\"}";

/// Starts two brokers behind one address and returns the one that serves first.
async fn two_brokers(harness: &TestBrokers) -> (Network, [Broker; 2]) {
    let brokers = [
        harness.broker("broker-a").await,
        harness.broker("broker-b").await,
    ];
    let addresses: Vec<SocketAddr> = brokers.iter().map(|it| it.addresses().agents).collect();
    (Network::to(&addresses).await, brokers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_brokers_agents_move_to_another_and_no_request_fails() {
    let harness = TestBrokers::new().await;
    let (network, brokers) = two_brokers(&harness).await;
    let agent = harness.agent_at(network.address, "node-1").await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    let [first, second] = &brokers;
    let is = async |broker: &Broker, name: &str| metric(broker, name).await == Some(1);
    eventually("a stream to each broker", || async {
        (is(first, SERVING).await && is(second, WARM).await)
            || (is(second, SERVING).await && is(first, WARM).await)
    })
    .await;
    let [first, second] = brokers;
    let (killed, left) = if is(&first, SERVING).await {
        (first, second)
    } else {
        (second, first)
    };
    network.lose(killed.addresses().agents);
    drop(killed);
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    assert_eq!(metric(&left, SERVING).await, Some(1));
    load.succeeded().await;

    // A broker that shuts down announces it, and the agent connects to the next one.
    let third = harness.broker("broker-c").await;
    let load = Load::start(&agent, address(1, 1), READER);
    network.lead_to(&[third.addresses().agents]);
    left.stop(Duration::from_secs(5)).await;
    eventually("the third serves", || async {
        metric(&third, SERVING).await == Some(1)
    })
    .await;
    harness.kube.put_pod(pod("newer", 1, 3, "writer"));
    until(&agent, address(1, 3), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test]
async fn a_stopping_broker_tells_agents_to_reconnect() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let tls = harness.tls(Some(harness.node_pair("node-1")));
    let agent = Raw::serving(&tls, broker.addresses().agents, "node-1").await;
    let (status, ()) = tokio::join!(agent.end(), broker.stop(Duration::from_secs(5)));
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "this broker is shutting down");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_keep_their_sessions_while_sts_is_away_for_long() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock).await;
    let broker = harness.broker("broker-a").await;
    let agent = harness.agent(&broker, "node-1").await;
    let before = key_id(&get(&agent, address(1, 1), READER).await);
    let load = Load::start(&agent, address(1, 1), READER);
    let calls = harness.sts.count();
    let away = StsFailure::new(503, "ServiceUnavailable", "away");
    harness.sts.fail_with(Some(away));
    // Past the time of the refresh.
    hand.send_replace(Duration::from_secs(35 * 60));
    eventually("a refresh that fails", || async {
        harness.sts.count() > calls
    })
    .await;
    // A pod without credentials learns that STS is the cause.
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    let path = format!("{CREDENTIALS}writer");
    until(&agent, address(1, 2), &path, |it| {
        it.0 == 503 && it.1.contains("STS cannot issue a session")
    })
    .await;
    hand.send_replace(Duration::from_secs(45 * 60));
    assert_eq!(key_id(&get(&agent, address(1, 1), READER).await), before);

    harness.sts.fail_with(None);
    eventually("a new session", || async {
        hand.send_modify(|by| *by += Duration::from_secs(1));
        key_id(&get(&agent, address(1, 1), READER).await) != before
    })
    .await;
    until(&agent, address(1, 2), &path, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_come_and_go_while_the_api_server_is_away() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let agent = harness.agent(&broker, "node-1").await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    harness.kube.fail_with(Some(503));
    harness.kube.drop_watches();
    eventually("the broker outcomes", || async {
        let report = broker.readiness().report().to_text(true);
        report.contains("503")
    })
    .await;
    // The broker still serves its sessions, also to new agents.
    let other = harness.agent(&broker, "node-2").await;
    let writer = format!("{CREDENTIALS}writer");
    assert_eq!(get(&other, address(2, 1), &writer).await.0, 200);
    harness.kube.fail_with(None);
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), &writer, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_agents_are_served_during_a_long_api_server_outage() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock.clone()).await;
    let broker = harness.broker("broker-a").await;
    let agents = AgentPod::new(&harness);
    let file = harness.path("token");
    std::fs::write(&file, agents.token(clock.now() + minutes(60))).unwrap();
    let mut reach = harness.reach(
        broker.addresses().agents,
        "node-1",
        harness.node_pair("none"),
    );
    reach.proof = ClientAuth::Token(file);
    let agent = harness.agent_of(reach, clock).await;
    let before = key_id(&get(&agent, address(1, 1), READER).await);
    let load = Load::start(&agent, address(1, 1), READER);
    let is = async |name: &str, number| metric(&broker, name).await == Some(number);
    eventually("both streams", || is(WARM, 1)).await;

    harness.kube.fail_with(Some(503));
    harness.kube.drop_watches();
    // Both streams must reauthenticate.
    let asked = reviews(&harness);
    hand.send_replace(minutes(6));
    reviewed_again(&harness, asked + 1).await;
    // Past that time, and to where sessions are refreshed: the broker cannot review tokens.
    for minute in [12, 18, 24, 30, 36] {
        let asked = reviews(&harness);
        hand.send_replace(minutes(minute));
        reviewed_again(&harness, asked + 1).await;
    }
    eventually("a new session", || async {
        key_id(&get(&agent, address(1, 1), READER).await) != before
    })
    .await;
    let both = async || is(SERVING, 1).await && is(WARM, 1).await;
    eventually("both streams", both).await;
    assert_eq!(metric(&broker, ENDED).await, Some(0));

    harness.kube.fail_with(None);
    let asked = reviews(&harness);
    hand.send_replace(minutes(37));
    reviewed_again(&harness, asked + 1).await;
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    eventually("both streams", both).await;
    assert_eq!(metric(&broker, ENDED).await, Some(0));
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_leave_a_broker_without_api_server() {
    let harness = TestBrokers::new().await;
    // The second broker uses another connection to the cluster.
    let kube = KubeApi::start(LOOPBACK, KubeApiOptions::default())
        .await
        .unwrap();
    furnish(&kube);
    let first = harness.broker("broker-a").await;
    let mut options = harness.broker_options("broker-b");
    options.client.api_server = Some(kube.url());
    let second = harness.start(options).await;
    // Connections alternate, starting with the last target.
    let turns = [second.addresses().agents, first.addresses().agents];
    let network = Network::to(&turns).await;
    let mut reach = harness.reach(network.address, "node-1", harness.node_pair("node-1"));
    reach.stale = Duration::from_secs(3);
    let agent = harness.agent_of(reach, Clock::system()).await;
    eventually("a stream to each broker", || async {
        metric(&first, SERVING).await == Some(1) && metric(&second, WARM).await == Some(1)
    })
    .await;
    let load = Load::start(&agent, address(1, 1), READER);
    harness.kube.fail_with(Some(503));
    harness.kube.drop_watches();
    // Only the second broker observes this: a new pod, and later a revocation.
    kube.put_pod(pod("three", 1, 3, "writer"));
    let count = AtomicU32::new(0);
    eventually("the second broker serves", || async {
        // Changes of other pods keep its watches fresh.
        let n = count.fetch_add(1, Ordering::Relaxed);
        kube.put_namespace(Namespace::new(&format!("other-{n}")));
        kube.put_pod(Pod::new(&format!("other-{n}"), "other").node("node-9"));
        metric(&second, SERVING).await == Some(1)
    })
    .await;
    until(&agent, address(1, 3), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
    kube.put_pod(pod("one", 1, 1, "admin"));
    until(&agent, address(1, 1), CREDENTIALS, |it| it.0 == 403).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_network_is_noticed_and_pods_are_served_on() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let network = Network::to(&[broker.addresses().agents]).await;
    let agent = harness.agent_at(network.address, "node-1").await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    let told = || {
        let report = agent.readiness().report().to_text(true);
        let broker = report.lines().find(|line| line.contains("broker"));
        broker.map(str::to_owned)
    };
    let before = told();
    network.stall(true);
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    // The connection is not closed: the agent has to detect the stall.
    eventually("the agent outcomes", || async { told() != before }).await;
    assert!(agent.readiness().is_ready());
    assert_eq!(get(&agent, address(1, 2), CREDENTIALS).await.0, 404);
    network.stall(false);
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_slows_new_sessions_down_and_loses_none() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock).await;
    let broker = harness.broker("broker-a").await;
    let agent = harness.agent(&broker, "node-1").await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    let admin = broker.addresses().admin;
    let limit = || measure(admin, "rolegate_sts_rate_limit");
    assert_eq!(limit().await, Some(200.0));
    let throttled = StsFailure::new(400, "Throttling", "Rate exceeded").times(20);
    harness.sts.fail_with(Some(throttled));
    for n in 2..32 {
        harness
            .kube
            .put_pod(pod(&format!("pod-{n}"), 1, n, &format!("reader-{n}")));
    }
    // Only calls in flight continue, or 5 per second.
    eventually("calls slow down", || async {
        limit().await.is_some_and(|limit| limit < 100.0)
    })
    .await;
    eventually("all sessions", || async {
        hand.send_modify(|by| *by += Duration::from_secs(1));
        let mut served = 0;
        for n in 2..32 {
            let path = format!("{CREDENTIALS}reader-{n}");
            served += u32::from(get(&agent, address(1, n), &path).await.0 == 200);
        }
        served == 30
    })
    .await;
    load.succeeded().await;
}
