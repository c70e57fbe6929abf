//! Connections over pipes, on paused time.

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;
use crate::drain::Outcome;

/// Responds with an endless body at `/open`, and with an empty one elsewhere.
async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let body = match request.uri().path() {
        "/open" => {
            StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>()).boxed()
        }
        _ => Empty::new().boxed(),
    };
    Ok(Response::new(body))
}

const LIMITS: Limits = Limits {
    connections: 1,
    per_peer: 1,
    streams: 8,
    unused: Duration::from_secs(45),
};

/// Returns the client's end of a connection that is being served.
fn serving(drain: &Drain) -> (DuplexStream, JoinHandle<()>) {
    serving_within(LIMITS, drain)
}

fn serving_within(limits: Limits, drain: &Drain) -> (DuplexStream, JoinHandle<()>) {
    let (theirs, ours) = duplex(64 << 10);
    let closing = CancellationToken::new();
    let talk = converse(ours, limits, drain.clone(), closing, service_fn(answer));
    let served = drain.spawn(talk);
    (theirs, served)
}

async fn client(
    stream: DuplexStream,
) -> (
    client::SendRequest<Empty<Bytes>>,
    JoinHandle<Result<(), hyper::Error>>,
) {
    let (requests, connection) = connect(stream).await.unwrap();
    (requests, tokio::spawn(connection))
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("https://broker{path}"))
        .body(Empty::new())
        .unwrap()
}

const LONG: Duration = Duration::from_secs(3600);

async fn ended(task: JoinHandle<()>) {
    let ended = tokio::time::timeout(LONG, task).await;
    ended.expect("the connection is not closed").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_disconnected() {
    let (stream, served) = serving(&Drain::new());
    ended(served).await;
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_let_go() {
    let (mut near, served) = serving(&Drain::new());
    let (stream, mut far) = duplex(64 << 10);
    let cut = Arc::new(tokio::sync::Notify::new());
    let network = tokio::spawn({
        let cut = cut.clone();
        async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut far, &mut near) => {}
                () = cut.notified() => std::future::pending().await,
            }
        }
    });
    let (mut requests, connection) = client(stream).await;
    let _open = requests.send_request(get("/open")).await.unwrap();
    cut.notify_one();
    // Both ends notice, whatever is open.
    ended(served).await;
    assert!(connection.await.unwrap().is_err());
    network.abort();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_given_up() {
    let (theirs, ours) = duplex(64 << 10);
    let (_requests, connection) = client(theirs).await;
    let ended = tokio::time::timeout(LONG, connection)
        .await
        .unwrap()
        .unwrap();
    assert!(ended.is_err());
    drop(ours);
}

#[tokio::test(start_paused = true)]
async fn unused_connections_are_closed() {
    let drain = Drain::new();
    let (unused, served_unused) = serving(&drain);
    let (mut idle, _unused) = client(unused).await;
    idle.send_request(get("/")).await.unwrap();
    let (used, served_used) = serving(&drain);
    let (mut requests, _used) = client(used).await;
    let open = requests.send_request(get("/open")).await.unwrap();
    ended(served_unused).await;
    tokio::time::sleep(LONG).await;
    assert!(!served_used.is_finished());
    drop(open);
    ended(served_used).await;
}

/// Expects no peer.
struct NoPeers;

impl Peers for NoPeers {
    fn is_expected(&self, _: std::net::IpAddr) -> bool {
        false
    }

    fn closed(&self, _: Limit) {}

    fn usage(&self, _: Usage) {}
}

/// Returns an accepted connection, which is served until it must be closed.
fn accepted(connections: &Arc<Connections>) -> (DuplexStream, Authentication, JoinHandle<()>) {
    let (theirs, ours) = duplex(64 << 10);
    let accepted = Arc::new(connections.accept([192, 0, 2, 1].into()).unwrap());
    let shown = Authentication::of(&accepted);
    let served = tokio::spawn(async move {
        let closing = accepted.closing().clone();
        let talk = converse(ours, LIMITS, Drain::new(), closing, service_fn(answer));
        hold(talk, &accepted).await;
    });
    (theirs, shown, served)
}

#[tokio::test(start_paused = true)]
async fn unauthenticated_connections_end_despite_requests() {
    let limits = Limits {
        connections: 16,
        per_peer: 2,
        ..LIMITS
    };
    let connections = Connections::new(limits, Arc::new(NoPeers));
    let (stream, shown, served) = accepted(&connections);
    let (mut requests, _connection) = client(stream).await;
    let _open = requests.send_request(get("/open")).await.unwrap();
    let (stream, _, unknown_peer) = accepted(&connections);
    let (mut busy, _busy) = client(stream).await;
    assert!(shown.succeed());
    // One stream after the other, without a gap.
    let start = tokio::time::Instant::now();
    let mut open = Vec::new();
    while let Ok(answer) = busy.send_request(get("/open")).await {
        assert!(start.elapsed() < LONG);
        open.push(answer);
        tokio::time::sleep(Duration::from_secs(5)).await;
        if open.len() > 1 {
            open.remove(0);
        }
    }
    ended(unknown_peer).await;
    tokio::time::sleep(LONG).await;
    assert!(!served.is_finished());
    // A connection whose slot another one needs is closed at once.
    let (stream, _, first) = accepted(&connections);
    let _rest = [accepted(&connections), accepted(&connections)];
    ended(first).await;
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn closing_connections_finish_their_requests() {
    let limits = Limits {
        connections: 16,
        per_peer: 2,
        ..LIMITS
    };
    let connections = Connections::new(limits, Arc::new(NoPeers));
    let (stream, shown, served) = accepted(&connections);
    let (mut requests, _connection) = client(stream).await;
    let open = requests.send_request(get("/open")).await.unwrap();
    assert!(shown.succeed());
    shown.close();
    // It is closed although its open stream never ends.
    ended(served).await;
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn occasionally_used_connections_stay_open() {
    let unused = Duration::from_secs(10_000);
    let limits = Limits { unused, ..LIMITS };
    let (stream, served) = serving_within(limits, &Drain::new());
    let (mut requests, _connection) = client(stream).await;
    for _ in 0..10 {
        requests.ready().await.unwrap();
        requests.send_request(get("/")).await.unwrap();
        tokio::time::sleep(LONG).await;
    }
    assert!(!served.is_finished());
    let ended = tokio::time::timeout(unused + LONG, served).await;
    ended.expect("the connection is not closed").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_what_is_open_finish_and_cuts_the_rest_off() {
    let drain = Drain::new();
    let (stream, served) = serving(&drain);
    let (mut requests, _connection) = client(stream).await;
    let open = requests.send_request(get("/open")).await.unwrap();
    let ending = tokio::spawn({
        let drain = drain.clone();
        async move { drain.drain(LONG).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    // No new streams, and the open one continues.
    assert!(requests.send_request(get("/")).await.is_err());
    assert!(!served.is_finished());
    drop(open);
    assert_eq!(ending.await.unwrap(), Outcome::Graceful);

    let drain = Drain::new();
    let (stream, served) = serving(&drain);
    let (mut requests, _connection) = client(stream).await;
    let _open = requests.send_request(get("/open")).await.unwrap();
    let outcome = drain.drain(Duration::from_secs(5)).await;
    assert_eq!(outcome, Outcome::Forced(1));
    ended(served).await;
}

#[test]
fn a_held_body_ends_where_its_body_does() {
    let held = |body: BoxBody<Bytes, Infallible>| Held {
        body,
        _held: Arc::default(),
    };
    let full = held(http_body_util::Full::new(Bytes::from_static(b"four")).boxed());
    assert!(!full.is_end_stream());
    assert_eq!(full.size_hint().exact(), Some(4));
    let empty = held(Empty::new().boxed());
    assert!(empty.is_end_stream());
    assert_eq!(empty.size_hint().exact(), Some(0));
}
