//! Wrong clocks: of an agent, a broker or STS, against each other.

use std::time::Duration;

use rolegate_devkit::StsFailure;
use rolegate_runtime::clock::Clock;

use crate::faults::READER;
use crate::harness::{CREDENTIALS, TestBrokers, address, get, pod, until};
use crate::net::Load;
use crate::raw::eventually;
use crate::serving::key_id;

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_do_no_harm() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    hand.send_replace(Duration::from_secs(600));
    let reach = harness.reach(
        broker.addresses().agents,
        "node-1",
        harness.node_pair("node-1"),
    );
    let agent = harness.agent_of(reach, clock).await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_agent_clock_is_reported_as_not_yet_valid() {
    let harness = TestBrokers::new().await;
    let options = harness.broker_options("broker-a");
    // By the agent's clock, the broker's certificate is not valid for another half an hour.
    let life = (minutes(30), minutes(90));
    harness.broker_pair_of(harness.authority(), "broker-a", life);
    let broker = harness.start(options).await;
    let (clock, hand) = Clock::ahead();
    let to = broker.addresses().agents;
    let reach = harness.reach(to, "node-1", harness.node_pair("node-1"));
    let agent = harness.unready_agent_with(reach, clock).await;
    eventually("the reason", || async {
        let report = agent.readiness().report().to_text(true);
        report.contains("TLS handshake failed") && report.contains("not valid yet")
    })
    .await;
    hand.send_replace(minutes(31));
    until(&agent, address(1, 1), READER, |it| it.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_served_until_it_ends_by_the_clock_of_its_node() {
    let (clock, hand) = Clock::ahead();
    let (fast, faster) = Clock::ahead();
    let (slow, slower) = Clock::ahead();
    // The nodes' clocks differ from the broker's by ten minutes.
    let set = |minute: u64| {
        slower.send_replace(minutes(minute));
        hand.send_replace(minutes(minute + 10));
        faster.send_replace(minutes(minute + 20));
    };
    set(0);
    let harness = TestBrokers::with_clock(clock).await;
    // One hour by the broker's clock.
    harness.sts.set_lifetime(Some(minutes(70)));
    let broker = harness.broker("broker-a").await;
    let agent = async |node: &str, clock| {
        let to = broker.addresses().agents;
        let reach = harness.reach(to, node, harness.node_pair(node));
        harness.agent_of(reach, clock).await
    };
    let (fast, slow) = (agent("node-1", fast).await, agent("node-2", slow).await);
    let ask = async || {
        let writer = format!("{CREDENTIALS}writer");
        let answers = (
            get(&fast, address(1, 1), READER).await,
            get(&slow, address(2, 1), &writer).await,
        );
        (answers.0.0, answers.1.0)
    };
    assert_eq!(ask().await, (200, 200));
    let away = StsFailure::new(503, "ServiceUnavailable", "away");
    harness.sts.fail_with(Some(away));
    set(49);
    assert_eq!(ask().await, (200, 200));
    // Ten minutes before expiry, for a node whose clock is fast.
    set(51);
    assert_eq!(ask().await, (503, 200));
    // Ten minutes after expiry, for a node whose clock is slow, and no longer.
    set(69);
    assert_eq!(ask().await, (503, 200));
    set(71);
    assert_eq!(ask().await, (503, 503));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_broker_clock_refreshes_sooner_without_an_outage() {
    let (clock, hand) = Clock::ahead();
    // A one-hour session seems to expire in ten minutes.
    hand.send_replace(minutes(50));
    let harness = TestBrokers::with_clock(clock).await;
    let broker = harness.broker("broker-a").await;
    let to = broker.addresses().agents;
    let reach = harness.reach(to, "node-1", harness.node_pair("node-1"));
    let agent = harness.agent_of(reach, Clock::system()).await;
    let before = key_id(&get(&agent, address(1, 1), READER).await);
    let load = Load::start(&agent, address(1, 1), READER);
    let renewed = async |before: &str| {
        let is = |it: &(u16, String)| it.0 == 200 && !it.1.contains(before);
        key_id(&until(&agent, address(1, 1), READER, is).await)
    };
    hand.send_replace(minutes(55));
    let before = renewed(&before).await;
    // New credentials seem to be expired. They are passed on: the node's clock is right.
    hand.send_replace(minutes(100));
    let before = renewed(&before).await;
    renewed(&before).await;
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}
