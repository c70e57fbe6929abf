//! A stolen node gets the sessions of its own pods and nothing of another node.

use std::time::Duration;

use crate::harness::{CREDENTIALS, TestBrokers, address, get};

#[tokio::test]
async fn rule_08_a_certificate_of_one_node_opens_no_stream_of_another() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let pair = harness.node_pair("node-1");
    let thief = harness
        .unready_agent(harness.reach(broker.addresses().agents, "node-2", pair))
        .await;
    let ready = thief.readiness().ready();
    let never = tokio::time::timeout(Duration::from_secs(2), ready).await;
    assert!(never.is_err());
    let report = thief.readiness().report().to_text(true);
    assert!(report.contains("rejected this agent"), "{report}");
    let (status, _) = get(&thief, address(2, 1), CREDENTIALS).await;
    assert_ne!(status, 200);
    // No sessions were fetched.
    let calls = harness.sts.calls();
    assert!(
        calls.iter().all(|call| call.action != "AssumeRole"),
        "{calls:?}"
    );
}

#[tokio::test]
async fn rule_08_a_certificate_of_another_authority_opens_no_stream() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    // The cluster's own authority signs every approved request.
    let pair = TestBrokers::new().await.node_pair("node-1");
    let thief = harness
        .unready_agent(harness.reach(broker.addresses().agents, "node-1", pair))
        .await;
    let ready = thief.readiness().ready();
    let never = tokio::time::timeout(Duration::from_secs(2), ready).await;
    assert!(never.is_err());
    let (status, _) = get(&thief, address(1, 1), CREDENTIALS).await;
    assert_ne!(status, 200);
    let calls = harness.sts.calls();
    assert!(
        calls.iter().all(|call| call.action != "AssumeRole"),
        "{calls:?}"
    );
}
