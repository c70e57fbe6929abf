//! A small HTTP/1 server: bounded in connections, header sizes and time, and ended by a [`Drain`].

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::shares::{Evicted, Eviction};
use crate::tls::ServerTls;

/// How many connections may wait to be accepted: more than a port takes at once, so that those who
/// come together with many others need not try again. The kernel lowers it to its own limit.
const BACKLOG: i32 = 4096;
/// How long to wait after the kernel refused to hand out a connection, as when all file
/// descriptors are in use.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a new connection may take for its first request while everything ends.
pub(crate) const FIRST_REQUEST: Duration = Duration::from_millis(500);
/// How long an evicted connection may take for the request that it has.
const EVICTED_REQUEST: Duration = Duration::from_secs(2);
/// How long sent bytes may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Why a port couldn't be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(.source))]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another process has this port, choose a different one",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; no interface of this host has this address",
        _ => "",
    }
}

/// Opens a listening port. `[::]` takes IPv4 too, and becomes `0.0.0.0` on a host without IPv6.
/// Port 0 lets the kernel choose: `local_addr()` tells. Needs a Tokio runtime.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listener = match open(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && lacks_ipv6(&error) => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        other => other,
    };
    listener.map_err(|source| ListenError { address, source })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    let absent = [
        rustix::io::Errno::AFNOSUPPORT,
        rustix::io::Errno::ADDRNOTAVAIL,
    ];
    absent
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}

/// The bounds of one port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a connection may take for its first request, where that is less than what comes
    /// next.
    pub first_request: Duration,
    /// How long a client may stay without a request at the least, idle or sending one slowly; twice
    /// of it at the most.
    pub header_time: Duration,
    /// How many bytes a request's head may have, 8,192 and more.
    pub header_bytes: usize,
    /// How long a connection may last, so that a client that doesn't read can't keep it.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            first_request: Duration::from_secs(10),
            header_time: Duration::from_secs(10),
            header_bytes: 16 * 1024,
            lifetime: Duration::from_secs(300),
        }
    }
}

/// Answers connections on `listener` until the drain begins; open requests are then finished, and
/// cut off when it is forced. `connect` is asked for the service of each connection, with the
/// peer's address and ours, and may refuse it with `None`.
pub async fn serve<C, S, B>(listener: TcpListener, limits: Limits, drain: Drain, connect: C)
where
    C: Fn(SocketAddr, SocketAddr) -> Option<S>,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connect = |peer, own| connect(peer, own).map(|service| (service, Eviction::never()));
    accept(listener, limits, drain, Plain, connect).await;
}

/// As [`serve`], for connections that others evict, as those of [`crate::shares`] are.
pub async fn serve_evictable<C, S, B>(
    listener: TcpListener,
    limits: Limits,
    drain: Drain,
    connect: C,
) where
    C: Fn(SocketAddr, SocketAddr) -> Option<(S, Eviction)>,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    accept(listener, limits, drain, Plain, connect).await;
}

/// As [`serve`], over TLS. A connection counts from the moment it is accepted; its handshake is
/// bounded in time, and nobody else waits for it.
pub async fn serve_tls<C, S, B>(
    listener: TcpListener,
    limits: Limits,
    drain: Drain,
    tls: ServerTls,
    connect: C,
) where
    C: Fn(SocketAddr, SocketAddr) -> Option<S>,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connect = |peer, own| connect(peer, own).map(|service| (service, Eviction::never()));
    accept(listener, limits, drain, tls, connect).await;
}

/// What lies between TCP and HTTP.
pub(crate) trait Transport: Clone + Send + 'static {
    /// What HTTP is spoken on.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// Opens it; `None` if that fails, takes too long or everything ends.
    fn open(
        self,
        stream: TcpStream,
        drain: &Drain,
    ) -> impl Future<Output = Option<Self::Stream>> + Send;
}

/// Nothing.
#[derive(Clone)]
struct Plain;

impl Transport for Plain {
    type Stream = TcpStream;

    async fn open(self, stream: TcpStream, _: &Drain) -> Option<TcpStream> {
        Some(stream)
    }
}

async fn accept<C, T, S, B>(
    listener: TcpListener,
    limits: Limits,
    drain: Drain,
    transport: T,
    connect: C,
) where
    C: Fn(SocketAddr, SocketAddr) -> Option<(S, Eviction)>,
    T: Transport,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut begun = pin!(drain.begun());
    let mut accepts = true;
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut begun => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                accepts = true;
                // Without its own address the connection is over already.
                let connected = stream.local_addr().ok().and_then(|own| connect(peer, own));
                let Some((service, eviction)) = connected else {
                    continue;
                };
                let (transport, ending) = (transport.clone(), drain.clone());
                drain.spawn(async move {
                    prepare(&stream);
                    if let Some(stream) = transport.open(stream, &ending).await {
                        converse(stream, limits, ending, service, eviction).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                if std::mem::take(&mut accepts) {
                    tracing::warn!(%error, "cannot accept connections, trying on");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

pub(crate) fn prepare(stream: &TcpStream) {
    // Answers are small and whole: waiting to fill a packet only costs time.
    let _ = stream.set_nodelay(true);
    // What a client does not acknowledge is not sent for long: its address may be another's soon.
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
}

async fn converse<T, S, B>(
    stream: T,
    limits: Limits,
    drain: Drain,
    service: S,
    eviction: Eviction,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let requests = Arc::new(AtomicU64::new(0));
    let counted = requests.clone();
    let service = service_fn(move |request| {
        counted.fetch_add(1, Relaxed);
        service.call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .max_buf_size(limits.header_bytes)
            // A client that has sent all that it wants to send still waits for its answer.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    // Polled only when one of them is woken, and not with each request.
    let mut control: FuturesUnordered<Pin<Box<dyn Future<Output = Control> + Send>>> =
        FuturesUnordered::new();
    let idle = |time| Box::pin(after(time, Control::Idle));
    control.push(idle(limits.first_request.min(limits.header_time)));
    control.push(Box::pin(after(limits.lifetime, Control::Drain)));
    let grace = limits.lifetime + limits.header_time;
    control.push(Box::pin(after(grace, Control::Over)));
    control.push(Box::pin(drain.forced().map(|()| Control::Over)));
    control.push(Box::pin(drain.begun().map(|()| Control::Drain)));
    let evict = |mut eviction: Eviction| {
        Box::pin(async move { Control::Evicted(eviction.next().await, eviction) })
    };
    if eviction.can_come() {
        control.push(evict(eviction));
    }
    let mut seen = 0;
    let outcome = loop {
        let next = tokio::select! {
            // First what has come in: a connection is not ended over a request that is here.
            biased;
            outcome = connection.as_mut() => break Some(outcome),
            Some(next) = control.next() => next,
        };
        match next {
            Control::Over | Control::Evicted(Evicted::Cut, _) => break None,
            Control::Evicted(Evicted::Finish, eviction) => {
                connection.as_mut().graceful_shutdown();
                control.push(Box::pin(after(EVICTED_REQUEST, Control::Over)));
                control.push(evict(eviction));
            }
            // No request has come in a whole period: the client is idle, or sends slowly, or does
            // not read. One timer for each connection, since one for each request costs more than
            // the request.
            Control::Idle => {
                let now = requests.load(Relaxed);
                if std::mem::replace(&mut seen, now) == now {
                    break None;
                }
                control.push(idle(limits.header_time));
            }
            // A connection that nothing was read from yet would be closed at once, though its
            // request may be waiting in the kernel: that one is let in.
            Control::Drain if requests.load(Relaxed) == 0 => {
                control.push(Box::pin(after(FIRST_REQUEST, Control::Finish)));
            }
            Control::Drain | Control::Finish => connection.as_mut().graceful_shutdown(),
        }
    };
    if let Some(Err(error)) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

/// What happens to a connection besides its requests.
enum Control {
    /// A period without a look at the client is over.
    Idle,
    /// It has to end now.
    Over,
    /// It has to end soon.
    Drain,
    /// It has to end with what is open.
    Finish,
    /// Another connection takes its place.
    Evicted(Evicted, Eviction),
}

async fn after(time: Duration, control: Control) -> Control {
    tokio::time::sleep(time).await;
    control
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::drain::Outcome;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";

    /// A server that answers each request once the gate lets it.
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

        /// A connection with a request that the server works on.
        async fn request(&self) -> TcpStream {
            let mut stream = self.connect().await;
            stream.write_all(REQUEST).await.unwrap();
            self.arrived.acquire().await.unwrap().forget();
            stream
        }
    }

    async fn read_some(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).await.unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// What comes until the server closes the connection, which it must.
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
    async fn what_does_not_finish_is_cut_off() {
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
        let mut second = server.connect().await;
        second.write_all(REQUEST).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(100), read_some(&mut second)).await;
        assert!(waited.is_err(), "served beyond the limit");
        drop(first);
        assert!(read_some(&mut second).await.contains("hello"));
    }

    #[tokio::test]
    async fn an_address_in_use_is_told() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = listen(listener.local_addr().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("another process has this port"), "{error}");
    }
}
