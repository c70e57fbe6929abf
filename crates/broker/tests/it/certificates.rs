//! Certificates and authorities that end, with streams that stay open and pods that ask. Agents and
//! brokers have one clock, which is moved past each life.

use std::time::Duration;

use rolegate_broker::app::Broker;
use rolegate_runtime::clock::Clock;

use crate::faults::{READER, SERVING, WARM};
use crate::net::Load;
use crate::raw::eventually;
use crate::stage::{Authority, CREDENTIALS, Stage, address, get, left, metric, pod, until};

const ENDED: &str = "rolegate_broker_refused_total{reason=\"ended\"}";

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// Waits until the broker has read a certificate that is good for longer than this.
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
async fn a_certificate_that_ends_is_no_outage_where_its_file_is_renewed() {
    let stage = Stage::new().await;
    let broker = stage.broker("broker-a").await;
    let pair = stage.node_pair_for("node-1", Duration::from_secs(6));
    let reach = stage.reach(broker.addresses().agents, "node-1", pair);
    let agent = stage.agent_of(reach, Clock::system()).await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    eventually("both streams", || async {
        metric(&broker, WARM).await == Some(1)
    })
    .await;
    stage.node_pair("node-1");
    let ended = "rolegate_broker_refused_total{reason=\"ended\"}";
    eventually("the end of both streams", || async {
        metric(&broker, ended).await == Some(2)
    })
    .await;
    stage.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_outlive_a_brokers_certificate_that_was_renewed_in_its_files() {
    let (clock, hand) = Clock::ahead();
    let stage = Stage::with_clock(clock).await;
    let options = stage.broker_options("broker-a");
    let certificate = |until| {
        let life = (Duration::ZERO, until);
        stage.broker_pair_of(stage.authority(), "broker-a", life)
    };
    certificate(minutes(20));
    let broker = stage.start(options).await;
    let agent = stage.agent(&broker, "node-1").await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    has_both_streams(&broker).await;
    let load = Load::start(&agent, address(1, 1), READER);
    certificate(minutes(60));
    serves_longer_than(&broker, minutes(30)).await;

    hand.send_replace(minutes(21));
    stage.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    has_both_streams(&broker).await;
    assert_eq!(metric(&broker, ENDED).await, None);
    // And there are new ones.
    let other = stage.agent(&broker, "node-2").await;
    let writer = format!("{CREDENTIALS}writer");
    assert_eq!(get(&other, address(2, 1), &writer).await.0, 200);
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_ends_is_no_outage_where_the_next_one_was_trusted_before() {
    let (clock, hand) = Clock::ahead();
    let stage = Stage::with_clock(clock.clone()).await;
    let (old, new) = (stage.authority(), Authority::new());
    let options = stage.broker_options("broker-a");
    // Nothing that the old one signed is good for longer.
    let certificate = |authority: &Authority, end: u64| {
        stage.broker_pair_of(authority, "broker-a", (Duration::ZERO, minutes(end)))
    };
    certificate(old, 20);
    let pair = stage.node_pair_of(old, "node-1", minutes(20));
    let broker = stage.start(options).await;
    let reach = stage.reach(broker.addresses().agents, "node-1", pair);
    let agent = stage.agent_of(reach, clock.clone()).await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    has_both_streams(&broker).await;
    let load = Load::start(&agent, address(1, 1), READER);

    stage.trust(&[old, &new]);
    certificate(&new, 60);
    stage.node_pair_of(&new, "node-1", minutes(60));
    serves_longer_than(&broker, minutes(30)).await;
    assert_eq!(metric(&broker, ENDED).await, None);
    hand.send_replace(minutes(21));
    eventually("the end of both streams", || async {
        metric(&broker, ENDED).await == Some(2)
    })
    .await;
    stage.trust(&[&new]);
    stage.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    has_both_streams(&broker).await;

    // What the old one signs is worth nothing any more.
    let pair = stage.node_pair_of(&new, "node-2", minutes(60));
    let reach = || stage.reach(broker.addresses().agents, "node-2", pair.clone());
    let other = stage.agent_of(reach(), clock).await;
    let writer = format!("{CREDENTIALS}writer");
    assert_eq!(get(&other, address(2, 1), &writer).await.0, 200);
    drop(other);
    certificate(old, 120);
    serves_longer_than(&broker, minutes(70)).await;
    let other = stage.unready_agent(reach()).await;
    eventually("a refusal", || async {
        let report = other.readiness().report().to_text(true);
        report.contains("TLS handshake failed")
    })
    .await;
    load.succeeded().await;
}
