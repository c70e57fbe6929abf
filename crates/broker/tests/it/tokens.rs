//! Agents that authenticate with a token of their pod.

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rolegate_devkit::Pod;
use rolegate_proto::v1::{self, from_agent, to_agent};
use rolegate_runtime::clock::Clock;
use serde_json::json;
use tonic::Code;

use crate::harness::{TestBrokers, pod};
use crate::raw::{Raw, connect, eventually};

/// The agent of node 1 as a pod that has tokens.
pub(crate) struct AgentPod<'a> {
    harness: &'a TestBrokers,
    uid: String,
}

impl<'a> AgentPod<'a> {
    pub(crate) fn new(harness: &'a TestBrokers) -> Self {
        let agent = Pod::new("rolegate-system", "agent")
            .node("node-1")
            .ip("127.0.0.1")
            .service_account("rolegate-agent");
        let agent = harness.kube.put_pod(agent);
        let uid = agent["metadata"]["uid"].as_str().unwrap().to_owned();
        Self { harness, uid }
    }

    /// Returns a token that expires at this time.
    pub(crate) fn token(&self, until: Timestamp) -> String {
        let token = self.unknown_token(until, "c2ln");
        let user = json!({
            "username": "system:serviceaccount:rolegate-system:rolegate-agent",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["agent"],
                "authentication.kubernetes.io/pod-uid": [self.uid],
                "authentication.kubernetes.io/node-name": ["node-1"],
            },
        });
        self.harness.kube.put_token(&token, "rolegate", user);
        token
    }

    /// Returns a token with a signature that the API server did not make.
    pub(crate) fn unknown_token(&self, until: Timestamp, signature: &str) -> String {
        let claims = json!({
            "aud": ["rolegate"],
            "exp": until.as_second(),
            "kubernetes.io": {
                "namespace": "rolegate-system",
                "node": { "name": "node-1" },
                "pod": { "name": "agent", "uid": self.uid },
            },
            "sub": "system:serviceaccount:rolegate-system:rolegate-agent",
        });
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("e30.{claims}.{signature}")
    }
}

pub(crate) fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// Presents a token on a stream.
async fn show(raw: &Raw, token: String) {
    raw.say(from_agent::Body::Reauthenticate(v1::Reauthenticate {
        token,
    }))
    .await;
}

/// Waits until the API server has reviewed more tokens than `before`.
pub(crate) async fn reviewed_again(harness: &TestBrokers, before: u64) {
    eventually("a question about a token", || async {
        reviews(harness) > before
    })
    .await;
}

/// Returns the number of token reviews.
pub(crate) fn reviews(harness: &TestBrokers) -> u64 {
    harness.kube.count("create", "tokenreviews")
}

/// Waits until a stream carries a pod of its node.
async fn hears_of(raw: &mut Raw, name: &str) {
    while !raw.update().await.pods.iter().any(|it| it.name == name) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_09_a_stream_does_not_outlive_its_token() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock.clone()).await;
    let broker = harness.broker("broker-a").await;
    let (tls, to) = (harness.tls(None), broker.addresses().agents);
    let agent = AgentPod::new(&harness);
    let start = clock.now();

    let token = agent.token(start + minutes(5));
    let mut raw = Raw::serving_by(&tls, to, "node-1", &token).await;
    hears_of(&mut raw, "one").await;
    let longer = agent.token(start + minutes(60));
    let mut renewed = Raw::serving_by(&tls, to, "node-1", &longer).await;
    hand.send_replace(minutes(4));
    harness.kube.put_pod(pod("late", 1, 2, "reader"));
    hears_of(&mut raw, "late").await;
    // The token expires long before the stream must reauthenticate.
    hand.send_replace(minutes(6));
    let ended = raw.end().await;
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("token"), "{ended:?}");

    // The latest token counts.
    harness.kube.put_pod(pod("later", 1, 3, "reader"));
    hears_of(&mut renewed, "later").await;
    let token = agent.token(start + minutes(20));
    show(&renewed, token).await;
    hand.send_replace(minutes(30));
    assert_eq!(renewed.end().await.code(), Code::Unauthenticated);
}

// One thread, so that the broker reads messages in the order in which they are sent.
#[tokio::test]
async fn an_agent_may_start_before_the_broker_knows_its_address() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let (tls, to) = (harness.tls(None), broker.addresses().agents);
    let agent = AgentPod::new(&harness);
    let pod = |address: &str| {
        Pod::new("rolegate-system", "agent")
            .node("node-1")
            .ip(address)
            .service_account("rolegate-agent")
    };
    harness.kube.put_pod(pod("127.0.0.9"));
    let token = agent.token(Clock::system().now() + minutes(5));
    let mut raw = Raw::open(&tls, to).await;
    let hello = v1::Hello {
        node: "node-1".into(),
        token,
        version: "0".into(),
    };
    raw.say(from_agent::Body::Hello(hello)).await;
    // The broker has read the first message of a later stream, so also that of this one.
    let certificate = harness.tls(Some(harness.node_pair("node-2")));
    let _later = Raw::serving(&certificate, to, "node-2").await;
    harness.kube.put_pod(pod("127.0.0.1"));
    let welcome = raw.hear().await.unwrap();
    assert!(matches!(welcome, Some(to_agent::Body::Welcome(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_09_a_token_that_is_not_shown_again_ends_its_stream() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock.clone()).await;
    let broker = harness.broker("broker-a").await;
    let (tls, to) = (harness.tls(None), broker.addresses().agents);
    let agent = AgentPod::new(&harness);
    let token = agent.token(clock.now() + minutes(60));
    let mut raw = Raw::serving_by(&tls, to, "node-1", &token).await;
    hand.send_replace(minutes(9));
    harness.kube.put_pod(pod("late", 1, 2, "reader"));
    hears_of(&mut raw, "late").await;
    // This holds whether or not the API server is available.
    harness.kube.fail_with(Some(503));
    hand.send_replace(minutes(11));
    assert_eq!(raw.end().await.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_token_reviews_end_no_stream_and_authenticate_none() {
    let (clock, hand) = Clock::ahead();
    let harness = TestBrokers::with_clock(clock.clone()).await;
    let broker = harness.broker("broker-a").await;
    let (tls, to) = (harness.tls(None), broker.addresses().agents);
    let agent = AgentPod::new(&harness);
    let start = clock.now();
    let token = agent.token(start + minutes(30));
    let mut honest = Raw::serving_by(&tls, to, "node-1", &token).await;
    let ending = Raw::serving_by(&tls, to, "node-1", &token).await;
    let lying = Raw::serving_by(&tls, to, "node-1", &token).await;
    hears_of(&mut honest, "one").await;

    harness.kube.fail_resource("tokenreviews", Some(503));
    let before = reviews(&harness);
    show(&honest, agent.token(start + minutes(90))).await;
    show(&ending, agent.token(start + minutes(91))).await;
    show(&lying, agent.unknown_token(start + minutes(90), "bWFkZQ")).await;
    reviewed_again(&harness, before + 2).await;
    // Past the time to reauthenticate, the same node is still served.
    hand.send_replace(minutes(15));
    harness.kube.put_pod(pod("late", 1, 2, "reader"));
    hears_of(&mut honest, "late").await;
    // New peers are not authenticated.
    let unknown_peer = Raw::open(&tls, to).await;
    let hello = v1::Hello {
        node: "node-1".into(),
        token: token.clone(),
        version: "0".into(),
    };
    unknown_peer.say(from_agent::Body::Hello(hello)).await;
    assert_eq!(unknown_peer.end().await.code(), Code::Unavailable);

    // The newer token is reviewed once possible, without being presented again.
    harness.kube.fail_resource("tokenreviews", None);
    let before = reviews(&harness);
    hand.send_replace(minutes(20));
    let refused = lying.end().await;
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(
        refused.message().contains("not issued by this cluster"),
        "{refused:?}"
    );
    reviewed_again(&harness, before + 2).await;
    show(&honest, agent.token(start + minutes(90))).await;
    reviewed_again(&harness, before + 3).await;

    // A token counts at most until its own expiry.
    harness.kube.fail_resource("tokenreviews", Some(503));
    hand.send_replace(minutes(25));
    let before = reviews(&harness);
    show(&honest, agent.token(start + minutes(200))).await;
    show(&ending, agent.token(start + minutes(200))).await;
    reviewed_again(&harness, before + 1).await;
    hand.send_replace(minutes(35));
    harness.kube.put_pod(pod("later", 1, 3, "reader"));
    hears_of(&mut honest, "later").await;
    hand.send_replace(minutes(92));
    for raw in [honest, ending] {
        assert_eq!(raw.end().await.code(), Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_08_a_token_that_names_no_agents_pod_is_refused_without_asking_the_api_server() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let (tls, to) = (harness.tls(None), broker.addresses().agents);
    let agent = AgentPod::new(&harness);
    let good = agent.token(harness.clock().now() + minutes(60));
    let claims = |uid: &str| {
        let other = AgentPod {
            harness: &harness,
            uid: uid.into(),
        };
        other.unknown_token(harness.clock().now() + minutes(60), "c2ln")
    };
    let ended = agent.unknown_token(harness.clock().now() - minutes(1), "c2ln");
    let node_2 = v1::Hello {
        node: "node-2".into(),
        token: good.clone(),
        version: "0".into(),
    };
    let hello = |token: &str| v1::Hello {
        node: "node-1".into(),
        token: token.into(),
        version: "0".into(),
    };
    let refuse = async |from: Ipv4Addr, hello: v1::Hello| {
        let (requests, connection) = connect(&tls, from, to).await.unwrap();
        let raw = Raw::on(requests, connection).await.unwrap();
        raw.say(from_agent::Body::Hello(hello)).await;
        assert_eq!(raw.end().await.code(), Code::Unauthenticated);
    };
    let here = Ipv4Addr::LOCALHOST;
    let before = reviews(&harness);
    tokio::join!(
        refuse(here, hello("made up")),
        refuse(here, hello("e30.eyJleHAiOjF9.c2ln")),
        refuse(Ipv4Addr::new(127, 0, 0, 2), hello(&claims("of no pod"))),
        refuse(Ipv4Addr::new(127, 0, 0, 3), hello(&ended)),
        refuse(Ipv4Addr::new(127, 0, 0, 4), node_2),
        // A valid token, from an address that the agent's pod does not have.
        refuse(Ipv4Addr::new(127, 0, 0, 5), hello(&good)),
    );
    assert_eq!(reviews(&harness), before, "the API server was asked");
    let mut raw = Raw::serving_by(&tls, to, "node-1", &good).await;
    hears_of(&mut raw, "one").await;
    assert_eq!(reviews(&harness), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_08_made_up_tokens_of_one_address_cost_the_api_server_little() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let (tls, to) = (harness.tls(None), broker.addresses().agents);
    let agent = AgentPod::new(&harness);
    let token = agent.token(harness.clock().now() + minutes(60));
    let mut raw = Raw::serving_by(&tls, to, "node-1", &token).await;
    hears_of(&mut raw, "one").await;
    // An authenticated peer that knows the pod keeps sending forged tokens.
    let before = reviews(&harness);
    let until = harness.clock().now() + minutes(60);
    for n in 0..64 {
        let made_up = agent.unknown_token(until, &format!("bWFkZQ{n}"));
        let other = Raw::open(&tls, to).await;
        let hello = v1::Hello {
            node: "node-1".into(),
            token: made_up,
            version: "0".into(),
        };
        other.say(from_agent::Body::Hello(hello)).await;
        let code = other.end().await.code();
        assert!(
            matches!(code, Code::Unauthenticated | Code::Unavailable),
            "{code:?}"
        );
        if code == Code::Unavailable {
            assert!(reviews(&harness) < before + 64);
            return;
        }
    }
    panic!("64 made-up tokens were asked about");
}
