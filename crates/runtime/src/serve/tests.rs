use bytes::Bytes;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::*;
use crate::drain::Outcome;
use crate::shares::{Holder, ShareLimits, Shares};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";

/// A server that answers each request once the test permits it.
struct Gated {
    address: SocketAddr,
    drain: Drain,
    arrived: Arc<Semaphore>,
    gate: Arc<Semaphore>,
}

fn start(limits: Limits, open: usize) -> Gated {
    let listener = listen("[::]:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let gated = Gated {
        address: (Ipv4Addr::LOCALHOST, port).into(),
        drain: Drain::new(),
        arrived: Arc::new(Semaphore::new(0)),
        gate: Arc::new(Semaphore::new(open)),
    };
    let (arrived, gate) = (Arc::clone(&gated.arrived), Arc::clone(&gated.gate));
    tokio::spawn(serve(listener, limits, gated.drain.clone(), move |_, _| {
        let (arrived, gate) = (Arc::clone(&arrived), Arc::clone(&gate));
        Some(service_fn(move |_| {
            arrived.add_permits(1);
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire_owned().await.unwrap().forget();
                Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
            }
        }))
    }));
    gated
}

impl Gated {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Returns a connection with a request in progress.
    async fn request(&self) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(REQUEST).await.unwrap();
        self.arrived.acquire().await.unwrap().forget();
        stream
    }
}

async fn read_some(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 1024];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut bytes)).await;
    let count = read.expect("no response arrives").unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// Reads until the server closes the connection, which it must.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let end = stream.read_to_string(&mut text);
    let end = tokio::time::timeout(Duration::from_secs(20), end).await;
    let _ = end.expect("the connection stays open");
    text
}

#[tokio::test]
async fn the_unspecified_address_takes_ipv4_and_the_end_is_orderly() {
    let limits = Limits {
        header_time: Duration::from_secs(3600),
        ..Limits::default()
    };
    let server = start(limits, 0);
    let open = server.request().await;
    let drain = server.drain.clone();
    let ending = tokio::spawn(async move { drain.drain(Duration::from_secs(60)).await });
    server.drain.begun().await;
    server.gate.add_permits(1);
    let answer = rest(open).await;
    assert!(answer.ends_with("hello"), "{answer}");
    assert_eq!(ending.await.unwrap(), Outcome::Graceful);
    let refused = TcpStream::connect(server.address).await;
    assert!(refused.is_err(), "still listens");
}

#[tokio::test]
async fn unfinished_requests_are_aborted() {
    let server = start(Limits::default(), 0);
    let open = server.request().await;
    let outcome = server.drain.drain(Duration::from_millis(20)).await;
    assert_eq!(outcome, Outcome::Forced(1));
    assert_eq!(rest(open).await, "");
}

#[tokio::test]
async fn slow_senders_and_huge_heads_are_cut_off() {
    let limits = Limits {
        header_time: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = start(limits, 9);
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    assert!(!rest(slow).await.contains("hello"));

    let silent = Limits {
        first_request: Duration::from_millis(50),
        header_time: Duration::from_secs(3600),
        ..limits
    };
    let silent = start(silent, 9).connect().await;
    assert_eq!(rest(silent).await, "");

    let mut huge = server.connect().await;
    let head = format!(
        "GET / HTTP/1.1\r\nx: {}\r\n\r\n",
        "a".repeat(limits.header_bytes)
    );
    let _ = huge.write_all(head.as_bytes()).await;
    assert!(!rest(huge).await.contains("hello"));
}

#[tokio::test]
async fn a_client_that_does_not_read_on_is_cut_off() {
    let limits = Limits {
        lifetime: Duration::from_millis(50),
        ..Limits::default()
    };
    let open = start(limits, 0).request().await;
    assert_eq!(rest(open).await, "");
}

#[tokio::test]
async fn connections_are_bounded() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let server = start(limits, 9);
    let mut first = server.request().await;
    assert!(read_some(&mut first).await.contains("hello"));
    // A further connection gets the slot of the idle one.
    let mut second = server.connect().await;
    second.write_all(REQUEST).await.unwrap();
    assert!(read_some(&mut second).await.contains("hello"));
    assert_eq!(rest(first).await, "");
}

#[tokio::test]
async fn rule_09_silent_connections_keep_nobody_out() {
    let limits = Limits {
        connections: 8,
        first_request: Duration::from_secs(3600),
        header_time: Duration::from_secs(3600),
        ..Limits::default()
    };
    let server = start(limits, 9);
    let from = async |last: u8| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        socket.connect(server.address).await.unwrap()
    };
    let mut prober = from(9).await;
    prober.write_all(REQUEST).await.unwrap();
    assert!(read_some(&mut prober).await.contains("hello"));
    let mut silent = Vec::new();
    for _ in 0..4 {
        for last in 2..5 {
            silent.push(from(last).await);
        }
    }
    // The existing connection stays, and a new one is served.
    prober.write_all(REQUEST).await.unwrap();
    assert!(read_some(&mut prober).await.contains("hello"));
    let mut other = from(10).await;
    other.write_all(REQUEST).await.unwrap();
    assert!(read_some(&mut other).await.contains("hello"));
}

#[tokio::test]
async fn an_address_in_use_is_an_error() {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = listen(listener.local_addr().unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("another process has this port"), "{error}");
}

#[test]
fn a_foreign_address_is_an_error() {
    for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
        let opened = std::cell::RefCell::new(Vec::new());
        let address: SocketAddr = address.parse().unwrap();
        let error = listen_by(address, |address| {
            opened.borrow_mut().push(address);
            open(address).map(|_| ())
        });
        let told = error.unwrap_err().to_string();
        assert!(told.contains("no interface of this host"), "{told}");
        assert_eq!(opened.into_inner(), [address]);
    }
}

#[test]
fn without_ipv6_only_the_unspecified_address_falls_back() {
    use rustix::io::Errno;
    let all: SocketAddr = "[::]:8181".parse().unwrap();
    let without_ipv6 = |errno: Errno| {
        move |address: SocketAddr| match address {
            SocketAddr::V4(address) => Ok(address.to_string()),
            SocketAddr::V6(_) => Err(io::Error::from(errno)),
        }
    };
    for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
        assert_eq!(listen_by(all, without_ipv6(errno)).unwrap(), "0.0.0.0:8181");
        let one = "[::1]:8181".parse().unwrap();
        assert!(listen_by(one, without_ipv6(errno)).is_err());
    }
    for errno in [Errno::ADDRINUSE, Errno::ACCESS] {
        assert!(listen_by(all, without_ipv6(errno)).is_err());
    }
}

/// Starts a server whose connections all count for one holder.
fn start_evictable(limits: ShareLimits) -> Gated {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let gated = Gated {
        address: listener.local_addr().unwrap(),
        drain: Drain::new(),
        arrived: Arc::new(Semaphore::new(0)),
        gate: Arc::new(Semaphore::new(0)),
    };
    let (arrived, gate) = (Arc::clone(&gated.arrived), Arc::clone(&gated.gate));
    let shares = Shares::<_, ()>::new(limits);
    let bounds = Limits {
        connections: shares.most(),
        header_time: Duration::from_secs(3600),
        ..Limits::default()
    };
    let connect = move |_, _| {
        let admitted = shares.admit(Holder {
            key: "pod",
            known: true,
        });
        let slot = Arc::new(admitted.slot);
        let (arrived, gate) = (Arc::clone(&arrived), Arc::clone(&gate));
        let service = service_fn(move |_| {
            slot.begin(Instant::now());
            arrived.add_permits(1);
            let (gate, slot) = (Arc::clone(&gate), Arc::clone(&slot));
            async move {
                gate.acquire_owned().await.unwrap().forget();
                slot.end(Instant::now());
                Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
            }
        });
        Some((service, admitted.eviction))
    };
    tokio::spawn(serve_evictable(
        listener,
        bounds,
        gated.drain.clone(),
        connect,
    ));
    gated
}

#[tokio::test]
async fn evictions_prefer_idle_connections_and_let_requests_finish() {
    let server = start_evictable(ShareLimits {
        total: 8,
        each: 2,
        known: 8,
        unknown_peers: 8,
    });
    server.gate.add_permits(1);
    let mut idle = server.request().await;
    assert!(read_some(&mut idle).await.contains("hello"));
    let busy = server.request().await;
    let third = server.request().await;
    // It closes gracefully: nothing was lost.
    assert_eq!(rest(idle).await, "");
    // Both are busy now; the one that has been busy longer finishes its last request.
    let fourth = server.request().await;
    server.gate.add_permits(3);
    let answer = rest(busy).await;
    assert!(
        answer.contains("connection: close") && answer.ends_with("hello"),
        "{answer}"
    );
    for mut other in [third, fourth] {
        assert!(read_some(&mut other).await.contains("hello"));
    }
}

#[tokio::test]
async fn a_client_that_ended_its_side_is_answered() {
    let server = start(Limits::default(), 0);
    let mut half = server.request().await;
    half.shutdown().await.unwrap();
    // The client closes before the response is sent.
    let other = server.request().await;
    server.gate.add_permits(2);
    assert!(rest(half).await.ends_with("hello"));
    drop(other);
}

#[tokio::test]
async fn a_request_that_is_still_in_the_kernel_is_answered_at_the_end() {
    use std::io::Write;
    let server = start(Limits::default(), 9);
    let late = server.connect().await;
    let silent = server.connect().await;
    // A third is served, so the two before it were accepted.
    let mut served = server.request().await;
    assert!(read_some(&mut served).await.contains("hello"));
    // The server does not run until the test waits.
    let mut late = late.into_std().unwrap();
    late.write_all(REQUEST).unwrap();
    let drain = server.drain.clone();
    let ending = tokio::spawn(async move { drain.drain(Duration::from_secs(60)).await });
    server.drain.begun().await;
    let late = TcpStream::from_std(late).unwrap();
    assert!(rest(late).await.ends_with("hello"));
    assert_eq!((rest(silent).await, rest(served).await), Default::default());
    assert_eq!(ending.await.unwrap(), Outcome::Graceful);
}
