//! Service while no broker is reachable, and its time limit.

use std::time::Duration;

use rolegate_agent::app::Agent;
use rolegate_runtime::clock::Clock;

use crate::harness::{CREDENTIALS, TestBrokers, address, get, metric_at, pod, until};
use crate::net::Network;
use crate::raw::eventually;
use crate::serving::key_id;

const READER: &str = "/latest/meta-data/iam/security-credentials/reader";

fn report(agent: &Agent) -> String {
    agent.readiness().report().to_text(true)
}

#[tokio::test]
async fn pods_are_served_until_their_credentials_expire() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock).await;
    let first = harness.broker("broker-a").await;
    let network = Network::to(&[first.addresses().agents]).await;
    let agent = harness.agent_at(network.address, "node-1").await;
    let before = key_id(&get(&agent, address(1, 1), READER).await);
    network.lose(first.addresses().agents);
    drop(first);
    hand.send_replace(Duration::from_secs(50 * 60));
    let answer = get(&agent, address(1, 1), READER).await;
    assert_eq!(key_id(&answer), before);
    hand.send_replace(Duration::from_secs(61 * 60));
    let (status, _) = get(&agent, address(1, 1), READER).await;
    assert_eq!(status, 503);
    // The role is still known.
    assert_eq!(get(&agent, address(1, 1), CREDENTIALS).await.0, 200);

    // STS does not notice that its clock is slow.
    harness
        .sts
        .set_lifetime(Some(Duration::from_secs(3 * 3600)));
    let second = harness.broker("broker-b").await;
    network.lead_to(&[second.addresses().agents]);
    let answer = until(&agent, address(1, 1), READER, |it| it.0 == 200).await;
    assert_ne!(key_id(&answer), before);
}

#[tokio::test]
async fn threat_02_an_agent_that_is_cut_off_says_so_and_serves_no_old_picture() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let network = Network::to(&[broker.addresses().agents]).await;
    let reach = harness.reach(network.address, "node-1", harness.node_pair("node-1"));
    let mut options = harness.agent_options(reach, Clock::system());
    // Heartbeats arrive every 5 s.
    let most = 8.0;
    options.max_staleness = Duration::from_secs_f64(most);
    let agent = Agent::start(options).await.unwrap();
    let admin = agent.addresses().admin;
    let age = async || {
        let age = metric_at::<f64>(admin, "rolegate_watch_staleness_seconds").await;
        age.unwrap()
    };
    until(&agent, address(1, 1), READER, |it| it.0 == 200).await;
    network.stall(true);
    // The agent does not receive this.
    harness.kube.delete_pod("default", "one");
    harness.kube.put_pod(pod("next", 1, 1, "writer"));
    let (_, body) = until(&agent, address(1, 1), READER, |it| it.0 == 503).await;
    assert!(body.contains("no update from the cluster"), "{body}");
    eventually("the age as a metric", async || age().await > most).await;
    eventually("the agent says that it is not ready", || async {
        report(&agent).contains("[-] watch-freshness: last update from the cluster")
    })
    .await;

    network.stall(false);
    let answer = until(&agent, address(1, 1), CREDENTIALS, |it| it.0 == 200).await;
    assert_eq!(answer.1, "writer");
    assert!(age().await < most);
    eventually("the agent is ready", || async {
        agent.readiness().is_ready()
    })
    .await;
}

#[tokio::test]
async fn denials_without_a_broker_are_reported_to_the_next() {
    let harness = TestBrokers::new().await;
    harness.kube.put_pod(pod("one", 1, 1, "admin"));
    let first = harness.broker("broker-a").await;
    let network = Network::to(&[first.addresses().agents]).await;
    let agent = harness.agent_at(network.address, "node-1").await;
    network.lose(first.addresses().agents);
    drop(first);
    eventually("the agent outcomes", || async {
        report(&agent).contains("[!] broker: ")
    })
    .await;
    // Repeated outcomes are throttled.
    let (status, _) = get(&agent, address(1, 1), CREDENTIALS).await;
    assert_eq!(status, 403);
    assert_eq!(harness.kube.events().len(), 0);
    let second = harness.broker("broker-b").await;
    network.lead_to(&[second.addresses().agents]);
    eventually("the pod's Event", || async {
        let events = harness.kube.events();
        events.iter().any(|it| it["reason"] == "RoleForbidden")
    })
    .await;
}
