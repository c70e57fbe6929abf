use std::net::SocketAddr;

use rolegate_runtime::serve::{self, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

/// The webhook without TLS.
fn start() -> SocketAddr {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let webhook = Webhook::new(
        Rules::default(),
        AnnotationKeys::default(),
        Clock::system(),
        AdmissionMetrics::register(&mut prometheus_client::registry::Registry::default()),
    );
    tokio::spawn(serve::serve(
        listener,
        LIMITS,
        Drain::new(),
        move |peer, _| webhook.clone().connect(peer),
    ));
    address
}

/// A connection of the peer 127.0.0.`peer`.
async fn connect(address: SocketAddr, peer: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::from(([127, 0, 0, peer], 0)))
        .unwrap();
    socket.connect(address).await.unwrap()
}

async fn send(stream: &mut TcpStream, length: usize, body: &str) {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
}

/// The first bytes of an answer.
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
async fn bodies_that_do_not_arrive_keep_nobody_waiting() {
    let address = start();
    let mut stalled = Vec::new();
    for peer in [2, 3] {
        for _ in 0..100 {
            let mut stream = connect(address, peer).await;
            send(&mut stream, BODY, "{").await;
            stalled.push(stream);
        }
    }
    let mut first = connect(address, 2).await;
    send(&mut first, BODY, "{").await;
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
    // A peer's own small ones don't wait for its large ones either.
    let review = widget(0);
    let mut same = connect(address, 3).await;
    send(&mut same, review.len(), &review).await;
    assert!(answer(&mut same).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn one_peer_takes_its_part_of_the_connections_only() {
    let address = start();
    let mut open = Vec::new();
    for _ in 0..600 {
        open.push(connect(address, 2).await);
    }
    let review = widget(0);
    let mut one_more = connect(address, 2).await;
    let _ = one_more
        .write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        .await;
    assert_eq!(answer(&mut one_more).await, "", "one more than its part");
    let mut api_server = connect(address, 4).await;
    send(&mut api_server, review.len(), &review).await;
    assert!(answer(&mut api_server).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_is_no_review_ends_its_connection() {
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
