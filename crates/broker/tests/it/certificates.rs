//! Expiry of certificates and authorities while streams stay open and pods send requests. Agents
//! and brokers share one clock, which the tests move past each validity period.

use std::time::Duration;

use rolegate_broker::app::Broker;
use rolegate_runtime::clock::Clock;

use crate::faults::{READER, SERVING, WARM};
use crate::harness::{Authority, CREDENTIALS, TestBrokers, address, get, left, metric, pod, until};
use crate::net::Load;
use crate::raw::eventually;

const ENDED: &str = "rolegate_broker_refused_total{reason=\"ended\"}";

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// Waits until the broker has loaded a certificate that is valid for longer than this.
async fn serves_longer_than(broker: &Broker, time: Duration) {
    eventually("the renewed certificate", || async {
        let left = left(broker.addresses().admin, "broker").await;
        left.is_some_and(|left| left > time.as_secs_f64())
    })
    .await;
}

async fn has_both_streams(broker: &Broker) {
    eventually("both streams", || async {
        metric(broker, SERVING).await == Some(1) && metric(broker, WARM).await == Some(1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_of_a_renewed_client_certificate_causes_no_outage() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let pair = harness.node_pair_for("node-1", Duration::from_secs(6));
    let reach = harness.reach(broker.addresses().agents, "node-1", pair);
    let agent = harness.agent_of(reach, Clock::system()).await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    eventually("both streams", || async {
        metric(&broker, WARM).await == Some(1)
    })
    .await;
    harness.node_pair("node-1");
    let ended = "rolegate_broker_refused_total{reason=\"ended\"}";
    eventually("the end of both streams", || async {
        metric(&broker, ended).await == Some(2)
    })
    .await;
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_survive_renewal_of_the_brokers_certificate() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock).await;
    let options = harness.broker_options("broker-a");
    let certificate = |until| {
        let life = (Duration::ZERO, until);
        harness.broker_pair_of(harness.authority(), "broker-a", life)
    };
    certificate(minutes(20));
    let broker = harness.start(options).await;
    let agent = harness.agent(&broker, "node-1").await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    has_both_streams(&broker).await;
    let load = Load::start(&agent, address(1, 1), READER);
    certificate(minutes(60));
    serves_longer_than(&broker, minutes(30)).await;

    hand.send_replace(minutes(21));
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    has_both_streams(&broker).await;
    assert_eq!(metric(&broker, ENDED).await, Some(0));
    // New streams work too.
    let other = harness.agent(&broker, "node-2").await;
    let writer = format!("{CREDENTIALS}writer");
    assert_eq!(get(&other, address(2, 1), &writer).await.0, 200);
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_of_the_authority_causes_no_outage() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock.clone()).await;
    let (old, new) = (harness.authority(), Authority::new());
    let options = harness.broker_options("broker-a");
    // Everything that the old authority signed expires with it.
    let certificate = |authority: &Authority, end: u64| {
        harness.broker_pair_of(authority, "broker-a", (Duration::ZERO, minutes(end)))
    };
    certificate(old, 20);
    let pair = harness.node_pair_of(old, "node-1", minutes(20));
    let broker = harness.start(options).await;
    let reach = harness.reach(broker.addresses().agents, "node-1", pair);
    let agent = harness.agent_of(reach, clock.clone()).await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    has_both_streams(&broker).await;
    let load = Load::start(&agent, address(1, 1), READER);

    harness.trust(&[old, &new]);
    certificate(&new, 60);
    harness.node_pair_of(&new, "node-1", minutes(60));
    serves_longer_than(&broker, minutes(30)).await;
    assert_eq!(metric(&broker, ENDED).await, Some(0));
    hand.send_replace(minutes(21));
    eventually("the end of both streams", || async {
        metric(&broker, ENDED).await == Some(2)
    })
    .await;
    harness.trust(&[&new]);
    harness.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    has_both_streams(&broker).await;

    // The old authority is no longer trusted.
    let pair = harness.node_pair_of(&new, "node-2", minutes(60));
    let reach = || harness.reach(broker.addresses().agents, "node-2", pair.clone());
    let other = harness.agent_of(reach(), clock).await;
    let writer = format!("{CREDENTIALS}writer");
    assert_eq!(get(&other, address(2, 1), &writer).await.0, 200);
    drop(other);
    certificate(old, 120);
    serves_longer_than(&broker, minutes(70)).await;
    let other = harness.unready_agent(reach()).await;
    eventually("a refusal", || async {
        let report = other.readiness().report().to_text(true);
        report.contains("TLS handshake failed")
    })
    .await;
    load.succeeded().await;
}
