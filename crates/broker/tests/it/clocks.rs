//! Clocks that are wrong: an agent's, a broker's, each against the other and against STS.

use std::time::Duration;

use rolegate_devkit::StsFailure;
use rolegate_runtime::clock::Clock;

use crate::faults::READER;
use crate::net::Load;
use crate::raw::eventually;
use crate::serving::key_id;
use crate::stage::{CREDENTIALS, Stage, address, get, pod, until};

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_do_no_harm() {
    let (clock, hand) = Clock::ahead();
    let stage = Stage::new().await;
    let broker = stage.broker("broker-a").await;
    hand.send_replace(Duration::from_secs(600));
    let reach = stage.reach(
        broker.addresses().agents,
        "node-1",
        stage.node_pair("node-1"),
    );
    let agent = stage.agent_of(reach, clock).await;
    assert_eq!(get(&agent, address(1, 1), READER).await.0, 200);
    let load = Load::start(&agent, address(1, 1), READER);
    stage.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_clock_is_behind_says_that_a_certificate_has_not_begun() {
    let stage = Stage::new().await;
    let options = stage.broker_options("broker-a");
    // By the agent's clock its broker's certificate begins in half an hour.
    let life = (minutes(30), minutes(90));
    stage.broker_pair_of(stage.authority(), "broker-a", life);
    let broker = stage.start(options).await;
    let (clock, hand) = Clock::ahead();
    let to = broker.addresses().agents;
    let reach = stage.reach(to, "node-1", stage.node_pair("node-1"));
    let agent = stage.unready_agent_with(reach, clock).await;
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
    // The nodes' clocks are ten minutes from the broker's.
    let set = |minute: u64| {
        slower.send_replace(minutes(minute));
        hand.send_replace(minutes(minute + 10));
        faster.send_replace(minutes(minute + 20));
    };
    set(0);
    let stage = Stage::with_clock(clock).await;
    // An hour, by the broker's clock.
    stage.sts.set_lifetime(Some(minutes(70)));
    let broker = stage.broker("broker-a").await;
    let agent = async |node: &str, clock| {
        let to = broker.addresses().agents;
        let reach = stage.reach(to, node, stage.node_pair(node));
        stage.agent_of(reach, clock).await
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
    stage.sts.fail_with(Some(away));
    set(49);
    assert_eq!(ask().await, (200, 200));
    // Ten minutes before its end, for a node that is ahead.
    set(51);
    assert_eq!(ask().await, (503, 200));
    // Ten minutes after it, for one that is behind, and no longer.
    set(69);
    assert_eq!(ask().await, (503, 200));
    set(71);
    assert_eq!(ask().await, (503, 503));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_clock_is_ahead_of_sts_renews_sooner_and_no_pod_goes_without() {
    let (clock, hand) = Clock::ahead();
    // What STS gives for an hour seems to end in ten minutes.
    hand.send_replace(minutes(50));
    let stage = Stage::with_clock(clock).await;
    let broker = stage.broker("broker-a").await;
    let to = broker.addresses().agents;
    let reach = stage.reach(to, "node-1", stage.node_pair("node-1"));
    let agent = stage.agent_of(reach, Clock::system()).await;
    let before = key_id(&get(&agent, address(1, 1), READER).await);
    let load = Load::start(&agent, address(1, 1), READER);
    let renewed = async |before: &str| {
        let is = |it: &(u16, String)| it.0 == 200 && !it.1.contains(before);
        key_id(&until(&agent, address(1, 1), READER, is).await)
    };
    hand.send_replace(minutes(55));
    let before = renewed(&before).await;
    // What it fetches now seems to be over at once. It is passed on: the node's clock is right.
    hand.send_replace(minutes(100));
    let before = renewed(&before).await;
    renewed(&before).await;
    stage.kube.put_pod(pod("new", 1, 2, "writer"));
    until(&agent, address(1, 2), CREDENTIALS, |it| it.0 == 200).await;
    load.succeeded().await;
}
