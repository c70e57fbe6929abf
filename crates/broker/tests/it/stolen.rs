//! A stolen node gets the sessions of its own pods and nothing of another node.

use rolegate_runtime::supervisor::Service as _;
use std::time::Duration;

use crate::stage::{CREDENTIALS, Stage, address, get};

#[tokio::test]
async fn rule_08_a_certificate_of_one_node_opens_no_stream_of_another() {
    let stage = Stage::new().await;
    let broker = stage.broker("broker-a").await;
    let pair = stage.node_pair("node-1");
    let thief = stage
        .unready_agent(stage.reach(broker.addresses().agents, "node-2", pair))
        .await;
    let ready = thief.readiness().ready();
    let never = tokio::time::timeout(Duration::from_secs(2), ready).await;
    assert!(never.is_err());
    let report = thief.readiness().report().to_text(true);
    assert!(report.contains("rejected this agent"), "{report}");
    let (status, _) = get(&thief, address(2, 1), CREDENTIALS).await;
    assert_ne!(status, 200);
    // No sessions were fetched.
    let calls = stage.sts.calls();
    assert!(
        calls.iter().all(|call| call.action != "AssumeRole"),
        "{calls:?}"
    );
}

#[tokio::test]
async fn rule_08_a_certificate_of_another_authority_opens_no_stream() {
    let stage = Stage::new().await;
    let broker = stage.broker("broker-a").await;
    // The cluster's own authority signs every approved request.
    let pair = Stage::new().await.node_pair("node-1");
    let thief = stage
        .unready_agent(stage.reach(broker.addresses().agents, "node-1", pair))
        .await;
    let ready = thief.readiness().ready();
    let never = tokio::time::timeout(Duration::from_secs(2), ready).await;
    assert!(never.is_err());
    let (status, _) = get(&thief, address(1, 1), CREDENTIALS).await;
    assert_ne!(status, 200);
    let calls = stage.sts.calls();
    assert!(
        calls.iter().all(|call| call.action != "AssumeRole"),
        "{calls:?}"
    );
}
