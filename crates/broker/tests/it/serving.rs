//! Agents without any permissions serve their nodes.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use rolegate_broker::app::KiamOptions;
use rolegate_devkit::Pod;
use rolegate_proto::v1;
use serde_json::Value;

use crate::harness::{CREDENTIALS, LOOPBACK, TestBrokers, address, ask, get, left, pod, until};
use crate::raw::{Raw, eventually};

pub(crate) fn key_id(answer: &(u16, String)) -> String {
    assert_eq!(answer.0, 200, "{answer:?}");
    let document: Value = serde_json::from_str(&answer.1).unwrap();
    document["AccessKeyId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_broker_does_not_end_by_itself() {
    let harness = TestBrokers::new().await;
    let mut broker = harness.broker("broker-a").await;
    let ended = tokio::time::timeout(Duration::from_millis(200), broker.ended()).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn an_agent_serves_what_its_broker_sends() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let agent = harness.agent(&broker, "node-1").await;
    let one = address(1, 1);
    let answer = get(&agent, one, CREDENTIALS).await;
    assert_eq!(answer, (200, "reader".into()));
    let path = format!("{CREDENTIALS}reader");
    let first = key_id(&get(&agent, one, &path).await);

    // A pod of another node is unknown here.
    let (status, _) = get(&agent, address(2, 1), CREDENTIALS).await;
    assert_eq!(status, 404);

    // One role that the namespace denies and one that it allows.
    harness.kube.put_pod(pod("one", 1, 1, "admin"));
    let (_, body) = until(&agent, one, CREDENTIALS, |(status, _)| *status == 403).await;
    assert!(body.contains("is refused by namespace"), "{body}");
    harness.kube.put_pod(pod("one", 1, 1, "reader-2"));
    let second = until(&agent, one, &format!("{CREDENTIALS}reader-2"), |it| {
        it.0 == 200
    })
    .await;
    assert_ne!(key_id(&second), first);

    // One pod is added and one is deleted.
    harness.kube.put_pod(pod("three", 1, 3, "writer"));
    until(&agent, address(1, 3), CREDENTIALS, |it| it.0 == 200).await;
    harness.kube.delete_pod("default", "one");
    until(&agent, one, CREDENTIALS, |it| it.0 == 404).await;
}

#[tokio::test]
async fn waiting_pods_take_precedence() {
    let harness = TestBrokers::new().await;
    let mut options = harness.broker_options("broker-a");
    options.decisions.engine.in_flight = 1;
    options.decisions.engine.ahead = 1;
    let broker = harness.start(options).await;
    let agent = harness.agent(&broker, "node-1").await;
    until(&agent, address(1, 1), CREDENTIALS, |it| it.0 == 200).await;
    harness.sts.set_latency(Duration::from_millis(300));
    for n in 10..30 {
        let role = format!("reader-{n}");
        harness.kube.put_pod(pod(&format!("pod-{n}"), 1, n, &role));
    }
    // The last in the queue.
    let path = format!("{CREDENTIALS}reader-29");
    until(&agent, address(1, 29), &path, |it| it.0 == 200).await;
    let mut fetched = harness.sts.calls();
    fetched.retain(|call| call.role_arn.contains("role/reader-"));
    let asked = fetched.iter().position(|it| it.role_arn.ends_with("-29"));
    assert!(asked < Some(10), "{asked:?} of {}", fetched.len());
}

#[tokio::test]
async fn the_ledger_maps_keys_to_pods() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let agent = harness.agent(&broker, "node-1").await;
    let key = key_id(&get(&agent, address(1, 1), &format!("{CREDENTIALS}reader")).await);
    let request = format!("GET /ledger?key={key} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let page = loop {
        let to = broker.addresses().ledger;
        let (status, body) = ask(Ipv4Addr::LOCALHOST, to, &request).await;
        assert_eq!(status, 200);
        if body != "[]" {
            break body;
        }
        tokio::task::yield_now().await;
    };
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page[0]["pod"], "one");
    assert_eq!(page[0]["node"], "node-1");
    assert_eq!(page[0]["role"], "arn:aws:iam::123456789012:role/reader");
    assert_eq!(page.as_array().unwrap().len(), 1);
    assert!(!page.to_string().contains("Secret"), "{page}");
}

#[tokio::test]
async fn pods_are_served_while_brokers_are_replaced() {
    let harness = TestBrokers::new().await;
    let first = harness.broker("broker-a").await;
    let agent = harness.agent(&first, "node-1").await;
    let one = address(1, 1);
    let path = format!("{CREDENTIALS}reader");
    let before = key_id(&get(&agent, one, &path).await);
    drop(first);
    for _ in 0..20 {
        let answer = get(&agent, one, &path).await;
        assert_eq!(key_id(&answer), before);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn credentials_reach_the_node_before_containers_start() {
    let harness = TestBrokers::new().await;
    let broker = harness.broker("broker-a").await;
    let tls = harness.tls(Some(harness.node_pair("node-1")));
    let mut raw = Raw::serving(&tls, broker.addresses().agents, "node-1").await;
    // Bound to the node, but without an address: its image is being pulled.
    let new = Pod::new("default", "new")
        .node("node-1")
        .phase("Pending")
        .annotation("iam.amazonaws.com/role", "writer-new");
    harness.kube.put_pod(new);
    let (mut number, mut sessions) = (None, HashMap::new());
    // Nothing is requested.
    let key = loop {
        let update = raw.update().await;
        for entry in update.pods.iter().filter(|it| it.name == "new") {
            assert!(entry.addresses.is_empty());
            number = session(entry);
        }
        let fetched = update.sessions.into_iter();
        sessions.extend(fetched.filter_map(|it| Some((it.number, it.credentials?))));
        if let Some(key) = number.and_then(|number| sessions.get(&number)) {
            break key.access_key_id.clone();
        }
    };
    let calls = || {
        let calls = harness.sts.calls().into_iter();
        calls
            .filter(|call| call.role_arn.ends_with("/writer-new"))
            .count()
    };
    assert_eq!(calls(), 1);
    // Its container starts, with an address, and the session is reused.
    harness.kube.put_pod(pod("new", 1, 9, "writer-new"));
    let started = loop {
        let update = raw.update().await;
        let mut pods = update.pods.into_iter();
        if let Some(entry) = pods.find(|it| !it.addresses.is_empty() && it.name == "new") {
            break entry;
        }
    };
    assert_eq!(session(&started), number);
    let agent = harness.agent(&broker, "node-1").await;
    let answer = get(&agent, address(1, 9), &format!("{CREDENTIALS}writer-new")).await;
    assert_eq!((key_id(&answer), calls()), (key, 1));
}

/// Returns the number of a pod's session.
fn session(entry: &v1::Pod) -> Option<u64> {
    match &entry.authorization {
        Some(v1::pod::Authorization::Allowed(allowed)) => Some(allowed.session),
        _ => None,
    }
}

#[tokio::test]
async fn missing_permissions_reach_the_pods_owner() {
    let harness = TestBrokers::new().await;
    let mut options = harness.broker_options("broker-a");
    // Adds a tag to sessions.
    options.decisions.rules.cluster = Some("prod-1".into());
    harness
        .sts
        .deny_tagging("arn:aws:iam::123456789012:role/reader", true);
    let broker = harness.start(options).await;
    let agent = harness.agent(&broker, "node-1").await;
    let (status, body) = get(&agent, address(1, 1), &format!("{CREDENTIALS}reader")).await;
    let told = "(AccessDenied): the session has tags, so the trust policy of role reader must \
                allow rolegate sts:TagSession in addition to sts:AssumeRole\n";
    assert_eq!(status, 403);
    assert!(body.ends_with(told), "{body}");
    // AWS's own message is for the broker's log only.
    assert!(!body.contains("assumed-role"), "{body}");
    eventually("the Event", || async { !harness.kube.events().is_empty() }).await;
    let events = harness.kube.events();
    assert_eq!(events[0]["reason"], "CredentialError");
    let note = events[0]["note"].as_str().unwrap();
    assert!(
        note.contains("must allow rolegate sts:TagSession"),
        "{note}"
    );
    assert!(!note.contains("assumed-role"), "{note}");
}

#[tokio::test]
async fn certificate_expirations_are_metrics() {
    let harness = TestBrokers::new().await;
    let mut options = harness.broker_options("broker-a");
    options.kiam = Some(KiamOptions {
        listen: LOOPBACK,
        client_ca: harness.path("ca.pem"),
        max_staleness: Duration::from_secs(3600),
    });
    let broker = harness.start(options).await;
    for certificate in ["broker", "client-ca", "kiam-client-ca"] {
        eventually(certificate, || async {
            let left = left(broker.addresses().admin, certificate).await;
            left.is_some_and(|left| left > 86_400.0)
        })
        .await;
    }
    let day = Duration::from_secs(86_400);
    let reach = harness.reach(
        broker.addresses().agents,
        "node-1",
        harness.node_pair_for("node-1", day),
    );
    let agent = harness.unready_agent(reach).await;
    let admin = agent.addresses().admin;
    eventually("the client's certificate", || async {
        let left = left(admin, "agent").await;
        left.is_some_and(|left| left > 0.0 && left <= 86_400.0)
    })
    .await;
    eventually("the authorities", || async {
        left(admin, "broker-ca")
            .await
            .is_some_and(|left| left > 86_400.0)
    })
    .await;
}
