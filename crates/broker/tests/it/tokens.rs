//! Agents that prove their node by a token of their pod.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rolegate_devkit::Pod;
use rolegate_proto::v1::{self, from_agent};
use rolegate_runtime::clock::Clock;
use serde_json::json;
use tonic::Code;

use crate::raw::Raw;
use crate::stage::{Stage, pod};

/// The agent of node 1 as a pod, which has tokens.
struct AgentPod<'a> {
    stage: &'a Stage,
    uid: String,
}

impl<'a> AgentPod<'a> {
    fn new(stage: &'a Stage) -> Self {
        let agent = Pod::new("rolegate-system", "agent")
            .node("node-1")
            .ip("127.0.0.1")
            .service_account("rolegate-agent");
        let agent = stage.kube.put_pod(agent);
        let uid = agent["metadata"]["uid"].as_str().unwrap().to_owned();
        Self { stage, uid }
    }

    /// A token that ends at this time.
    fn token(&self, until: Timestamp) -> String {
        let claims = json!({ "exp": until.as_second() }).to_string();
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let user = json!({
            "username": "system:serviceaccount:rolegate-system:rolegate-agent",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["agent"],
                "authentication.kubernetes.io/pod-uid": [self.uid],
                "authentication.kubernetes.io/node-name": ["node-1"],
            },
        });
        self.stage.kube.put_token(&token, "rolegate", user);
        token
    }
}

/// Waits until a stream hears of a pod of its node.
async fn hears_of(raw: &mut Raw, name: &str) {
    while !raw
        .update()
        .await
        .residents
        .iter()
        .any(|it| it.name == name)
    {}
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_09_a_stream_does_not_outlive_its_token() {
    let (clock, hand) = Clock::ahead();
    let stage = Stage::with_clock(clock.clone()).await;
    let broker = stage.broker("broker-a").await;
    let (tls, to) = (stage.tls(None), broker.addresses().agents);
    let agent = AgentPod::new(&stage);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let start = clock.now();

    let token = agent.token(start + minutes(5));
    let mut raw = Raw::serving_by(&tls, to, "node-1", &token).await;
    hears_of(&mut raw, "one").await;
    let longer = agent.token(start + minutes(60));
    let mut renewed = Raw::serving_by(&tls, to, "node-1", &longer).await;
    hand.send_replace(minutes(4));
    stage.kube.put_pod(pod("late", 1, 2, "reader"));
    hears_of(&mut raw, "late").await;
    // The token's end, long before the stream must be proven again.
    hand.send_replace(minutes(6));
    let ended = raw.end().await;
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("token"), "{ended:?}");

    // What was shown last counts.
    stage.kube.put_pod(pod("later", 1, 3, "reader"));
    hears_of(&mut renewed, "later").await;
    let token = agent.token(start + minutes(20));
    renewed
        .say(from_agent::Body::Proof(v1::Proof { token }))
        .await;
    hand.send_replace(minutes(30));
    assert_eq!(renewed.end().await.code(), Code::Unauthenticated);
}
