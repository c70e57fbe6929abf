use std::net::SocketAddr;

use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::layer::LayerId;
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::{AwsEnvironment, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_review::Violation;
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::listen;
use rolegate_runtime::test_util::Exposition;
use rolegate_runtime::tls::CertificateStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

/// Returns a webhook that evaluates `rules`.
fn webhook(rules: RuleStore) -> Arc<Webhook> {
    let metrics = AdmissionMetrics::register(&mut prometheus_client::registry::Registry::default());
    let keys = AnnotationKeys::default();
    Webhook::new(rules, keys, Clock::system(), metrics, None)
}

/// Starts the webhook without TLS.
fn start() -> SocketAddr {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let webhook = webhook(RuleStore::default());
    tokio::spawn(serve::serve_evictable(
        listener,
        webhook.limits(),
        Drain::new(),
        move |peer, _| Some(webhook.clone().connect(peer)),
    ));
    address
}

/// Opens a connection from the peer 127.0.0.`peer`.
async fn connect(address: SocketAddr, peer: u8) -> TcpStream {
    connect_from(address, [127, 0, 0, peer]).await
}

async fn connect_from(address: SocketAddr, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(address).await.unwrap()
}

/// Opens silent connections, each from an address of its own.
async fn unknown_peers(address: SocketAddr, count: u16) -> Vec<TcpStream> {
    // Both ends are open files of this process.
    rolegate_runtime::process::raise_open_files();
    let mut open = Vec::new();
    for n in 0..count {
        let [high, low] = n.to_be_bytes();
        open.push(connect_from(address, [127, 66, high, low]).await);
    }
    open
}

/// Sends a review and returns `true` if it is allowed.
async fn reviews(stream: &mut TcpStream) -> bool {
    let review = widget(0);
    send(stream, review.len(), &review).await;
    let answer = answer(stream).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 200"),
        "{answer}"
    );
    !answer.is_empty()
}

async fn send(stream: &mut TcpStream, length: usize, body: &str) {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
}

/// Reads the first bytes of a response.
async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let count = stream.read(&mut bytes).await.unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

fn widget(size: usize) -> String {
    let review = serde_json::json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "operation": "CREATE", "name": "app", "namespace": "shop",
            "kind": {"group": "example.com", "version": "v1", "kind": "Widget"},
            "object": {"data": "x".repeat(size)}, "userInfo": {"username": "jane"}},
    });
    review.to_string()
}

#[tokio::test]
async fn stalled_bodies_delay_no_other_request() {
    let address = start();
    let mut stalled = Vec::new();
    for peer in [2, 3] {
        for _ in 0..100 {
            let mut stream = connect(address, peer).await;
            send(&mut stream, MAX_BODY_BYTES, "{").await;
            stalled.push(stream);
        }
    }
    let mut first = connect(address, 2).await;
    send(&mut first, MAX_BODY_BYTES, "{").await;
    for size in [0, 1024 * 1024] {
        let review = widget(size);
        let mut api_server = connect(address, 4).await;
        send(&mut api_server, review.len(), &review).await;
        tokio::select! {
            answer = answer(&mut api_server) => {
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
            answer = answer(&mut first) => panic!("only after those that stall: {answer}"),
        }
    }
    // Small bodies do not wait for large ones of the same peer.
    let review = widget(0);
    let mut same = connect(address, 3).await;
    send(&mut same, review.len(), &review).await;
    assert!(answer(&mut same).await.starts_with("HTTP/1.1 200"));
}

/// Returns the review of a pod with a role in namespace `shop`.
fn pod() -> String {
    let review = serde_json::json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "operation": "CREATE", "name": "app", "namespace": "shop",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "object": {"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "app", "annotations": {"iam.amazonaws.com/role": "reader"}},
                "spec": {"containers": []}},
            "userInfo": {"username": "jane"}},
    });
    review.to_string()
}

#[tokio::test]
async fn pods_are_denied_before_their_namespace_is_known() {
    let review = pod();
    let mut stream = connect(start(), 2).await;
    send(&mut stream, review.len(), &review).await;
    let answer = answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(r#""allowed":false"#), "{answer}");
    assert!(answer.contains("namespace shop is not known"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn reviews_wait_for_a_new_namespace() {
    let base = BaseArn::parse("arn:aws:iam::123456789012:role/").ok();
    let config = RuleConfig {
        base,
        ..RuleConfig::default()
    };
    let point = EnforcementPoint::Admission;
    let mut writer = RuleStoreWriter::new(config, point, SessionScope::Workload, 3600);
    writer.set_aws_environment(AwsEnvironment::default());
    writer.apply(namespaces(Vec::new()));
    let webhook = webhook(writer.rules());
    let body = pod();
    let review = Review::parse(body.as_bytes()).unwrap();
    let creating = async {
        tokio::time::sleep(SYNC_TIMEOUT / 2).await;
        writer.apply(namespaces(vec![Namespace {
            name: "shop".into(),
            allowed_roles: Some(r#"["reader"]"#.into()),
            ..Namespace::default()
        }]));
    };
    let (outcome, ()) = tokio::join!(webhook.validate(&review), creating);
    assert!(outcome.is_allowed(), "{outcome:?}");
}

fn namespaces(all: Vec<Namespace>) -> Report {
    Report::Rules(RuleUpdate::Namespaces(Change::Snapshot(all)))
}

#[tokio::test]
async fn one_peer_takes_its_part_of_the_connections_only() {
    let address = start();
    let mut open = Vec::new();
    for _ in 0..600 {
        open.push(connect(address, 2).await);
    }
    let mut api_server = connect(address, 4).await;
    assert!(reviews(&mut api_server).await);
    // The peer's oldest connection made room for its newest.
    assert!(!reviews(&mut open[0]).await);
    assert!(reviews(&mut open[599]).await);
}

#[tokio::test]
async fn an_idle_connection_makes_room_before_a_busy_one() {
    let address = start();
    // A peer that has sent a review may have more connections.
    let mut busy = connect(address, 2).await;
    assert!(reviews(&mut busy).await);
    let mut idle = connect(address, 2).await;
    let mut unused = Vec::new();
    for _ in 2..peers::PEER_CONNECTIONS {
        unused.push(connect(address, 2).await);
    }
    send(&mut busy, MAX_BODY_BYTES, "{").await;
    assert!(reviews(&mut idle).await);
    let mut next = connect(address, 2).await;
    assert!(reviews(&mut next).await);
    assert!(!reviews(&mut idle).await);
}

#[tokio::test]
async fn unknown_peers_evict_no_connection_of_an_api_server() {
    let address = start();
    let mut api_server = Vec::new();
    for _ in 0..40 {
        let mut stream = connect(address, 4).await;
        assert!(reviews(&mut stream).await);
        api_server.push(stream);
    }
    // More than the maximum number of connections; the API server has the most, some of them idle.
    let _strangers = unknown_peers(address, 1200).await;
    for stream in &mut api_server {
        assert!(
            reviews(stream).await,
            "a connection of the API server was evicted"
        );
    }
}

#[tokio::test]
async fn an_unknown_api_server_evicts_an_unknown_peer() {
    let address = start();
    let _strangers = unknown_peers(address, 600).await;
    let mut api_server = connect(address, 4).await;
    assert!(reviews(&mut api_server).await);
    // It is known by now, so later unknown peers do not affect it.
    let _more = unknown_peers(address, 600).await;
    assert!(reviews(&mut api_server).await);
    assert!(reviews(&mut connect(address, 4).await).await);
}

#[tokio::test]
async fn many_known_peers_leave_an_api_server_its_share() {
    let address = start();
    rolegate_runtime::process::raise_open_files();
    let mut api_server = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(address, 4).await;
        assert!(reviews(&mut stream).await);
        api_server.push(stream);
    }
    // More than fit, of fewer peers than may be known.
    let mut thieves = Vec::new();
    for n in 0..30 {
        for _ in 0..30 {
            let mut stream = connect_from(address, [127, 66, 1, n]).await;
            assert!(reviews(&mut stream).await);
            thieves.push(stream);
        }
    }
    for stream in &mut api_server {
        assert!(
            reviews(stream).await,
            "a connection of the API server was evicted"
        );
    }
}

#[tokio::test]
async fn invalid_reviews_close_their_connection() {
    let address = start();
    let mut stream = connect(address, 2).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        .await
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 404"), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_large_review_leaves_its_thread_to_others() {
    let address = start();
    let review = widget(2 * 1024 * 1024);
    let mut stream = connect(address, 2).await;
    send(&mut stream, review.len(), &review).await;
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_its_limit() {
    let address = start();
    let refused = |all: &str| all.starts_with("HTTP/1.1 413") && all.contains("more than 8388608");
    // A Content-Length above the limit is refused before the body is read.
    let mut stream = connect(address, 2).await;
    send(&mut stream, MAX_BODY_BYTES + 1, "").await;
    let told = answer(&mut stream).await;
    assert!(refused(&told), "{told}");
    // Without a Content-Length, the bytes that arrive are counted.
    let stream = connect(address, 3).await;
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        write.write_all(head.as_bytes()).await?;
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        for _ in 0..=MAX_BODY_BYTES / 0x10000 {
            write.write_all(chunk.as_bytes()).await?;
        }
        write.write_all(b"0\r\n\r\n").await
    };
    let reading = async {
        let mut bytes = [0; 4096];
        let count = read.read(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    // The answer may come, and the connection go, while the rest is being sent.
    let (_, told) = tokio::join!(sending, reading);
    assert!(refused(&told), "{told}");
}

#[test]
fn refusals_and_warnings_are_counted_by_layer() {
    let mut registry = prometheus_client::registry::Registry::default();
    let webhook = Webhook::new(
        RuleStore::default(),
        AnnotationKeys::default(),
        Clock::system(),
        AdmissionMetrics::register(&mut registry),
        None,
    );
    let body = widget(0);
    let review = Review::parse(body.as_bytes()).unwrap();
    let mut outcome = Outcome::default();
    outcome
        .violations
        .push(Violation::new("", LayerId::Grants, "a rule", "a reason"));
    outcome
        .warnings
        .push(Violation::new("", LayerId::Rego, "a rule", "a reason"));
    webhook.log_outcome(&outcome, &review);
    let text = Exposition::encode(&registry);
    for counted in [
        r#"layer="grants",mode="enforce",result="denied"} 1"#,
        r#"layer="rego",mode="audit",result="denied"} 1"#,
    ] {
        assert!(text.contains(counted), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_webhook_serves_until_the_drain_begins() {
    let webhook = webhook(RuleStore::default());
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let condition = Readiness::new().condition("certificate");
    let store = CertificateStore::new("webhook", Clock::system(), condition);
    let tls = ServerTls::new(Arc::new(store)).unwrap();
    let drain = Drain::new();
    let serving = tokio::spawn(webhook.serve(listener, tls, drain.clone()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!serving.is_finished());
    drain.drain(Duration::from_secs(1)).await;
    serving.await.unwrap();
}

/// A subscriber that keeps the messages of events.
#[derive(Clone, Default)]
struct Log(Arc<parking_lot::Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                if field.name() == "message" {
                    self.0.lock().push(format!("{value:?}"));
                }
            },
        );
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn denied_requests_are_logged() {
    let webhook = webhook(RuleStore::default());
    let body = widget(0);
    let review = Review::parse(body.as_bytes()).unwrap();
    let violation = || Violation::new("", LayerId::Grants, "a rule", "a reason");
    let mut denied = Outcome::default();
    denied.violations.push(violation());
    let mut warned = Outcome::default();
    warned.warnings.push(violation());
    for (outcome, expected) in [
        (Outcome::default(), None),
        (denied, Some("request denied")),
        (warned, Some("request would be denied")),
    ] {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || webhook.log_outcome(&outcome, &review));
        assert_eq!(log.0.lock().first().map(String::as_str), expected);
    }
}

#[tokio::test]
async fn a_broken_body_is_refused_as_incomplete() {
    let mut stream = connect(start(), 2).await;
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\nno size\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let response = answer(&mut stream).await;
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    assert!(response.contains("the review is incomplete"), "{response}");
}
