//! A small HTTP/1 server: bounded in connections, header sizes and time, and ended by a [`Drain`].

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::accept;
use crate::drain::Drain;
use crate::peer::PeerKey;
use crate::shares::{Evicted, Eviction, Holder, ShareLimits, Shares};
use crate::tls::ServerTls;
use crate::transport::{FIRST_REQUEST_TIMEOUT, Plain, Transport};

/// The number of connections that may wait to be accepted: more than a port holds, so that clients
/// that arrive together need not retry. The kernel caps it at its own limit.
const BACKLOG: i32 = 4096;
/// The time in which an evicted connection has to finish its current request.
const EVICTED_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// An error that prevents listening on a port.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(.source))]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// The kernel's error.
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

/// Opens a listening port. `[::]` accepts IPv4 too, and becomes `0.0.0.0` on a host without IPv6.
/// With port 0 the kernel chooses a port, see `local_addr()`. Needs a Tokio runtime.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    listen_by(address, open)
}

fn listen_by<T>(
    address: SocketAddr,
    open: impl Fn(SocketAddr) -> io::Result<T>,
) -> Result<T, ListenError> {
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

/// Limits of a port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of connections. More wait in the kernel's queue.
    pub connections: usize,
    /// Time limit for the first request of a connection, if shorter than `header_time`.
    pub first_request: Duration,
    /// Idle timeout. A connection without a complete request is closed after one to two such
    /// periods.
    pub header_time: Duration,
    /// Maximum size of a request's head, in bytes; at least 8,192.
    pub header_bytes: usize,
    /// Maximum lifetime of a connection, so that a client that does not read cannot keep it.
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

/// Serves connections on `listener` until the drain begins; open requests are then finished, or
/// aborted when it is forced. `connect` returns the service for each connection, given the peer's
/// address and ours, or `None` to refuse it. When there are too many, the longest idle connection
/// of the peer that has the most is closed, so silent peers cannot lock others out.
pub async fn serve<C, S, B>(listener: TcpListener, limits: Limits, drain: Drain, connect: C)
where
    C: Fn(SocketAddr, SocketAddr) -> Option<S>,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (limits, peers) = shared_by_peers(limits);
    let connect = |peer, own| Some(placed(&peers, peer, connect(peer, own)?));
    serve_over(listener, limits, drain, Plain, connect).await;
}

/// The connections of a port, by peer.
type Peers = Shares<PeerKey, ()>;

/// Shares the connections of a port fairly among peers.
fn shared_by_peers(limits: Limits) -> (Limits, Peers) {
    let peers = Peers::new(ShareLimits {
        total: limits.connections,
        each: limits.connections,
        known: limits.connections,
        unknown_peers: limits.connections,
    });
    let limits = Limits {
        connections: peers.most(),
        ..limits
    };
    (limits, peers)
}

/// Wraps a service whose connection has a slot among those of all peers.
fn placed<S, B>(
    peers: &Peers,
    peer: SocketAddr,
    service: S,
) -> (
    impl Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
    + Send
    + 'static,
    Eviction,
)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + 'static,
{
    let admitted = peers.admit(Holder {
        key: PeerKey::of(peer.ip()),
        known: true,
    });
    let slot = Arc::new(admitted.slot);
    let service = service_fn(move |request| {
        slot.begin(Instant::now());
        let (slot, answer) = (slot.clone(), service.call(request));
        async move {
            let answer = answer.await;
            slot.end(Instant::now());
            answer
        }
    });
    (service, admitted.eviction)
}

/// Like [`serve`], for connections that can be evicted, as those of [`crate::shares`] can.
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
    serve_over(listener, limits, drain, Plain, connect).await;
}

/// Like [`serve_evictable`], over TLS. A connection counts from the moment it is accepted. Its
/// handshake is limited in time and delays no other connection.
pub async fn serve_tls<C, S, B>(
    listener: TcpListener,
    limits: Limits,
    drain: Drain,
    tls: ServerTls,
    connect: C,
) where
    C: Fn(SocketAddr, SocketAddr) -> Option<(S, Eviction)>,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    serve_over(listener, limits, drain, tls, connect).await;
}

async fn serve_over<C, T, S, B>(
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
    let admit = |stream: &TcpStream, peer| {
        // A connection without a local address is closed already.
        let (service, mut eviction) = connect(peer, stream.local_addr().ok()?)?;
        let (transport, drain) = (transport.clone(), drain.clone());
        Some(async move |stream| {
            let opened = tokio::select! {
                opened = transport.open(stream, &drain) => opened,
                _ = eviction.next() => None,
            };
            if let Some(stream) = opened {
                converse(stream, limits, drain, service, eviction).await;
            }
        })
    };
    accept::accept(listener, limits.connections, &drain, admit).await;
}

async fn converse<T, S, B>(stream: T, limits: Limits, drain: Drain, service: S, eviction: Eviction)
where
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
            // A client that has closed its sending side still waits for its response.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    // Polled only when one of them is woken, not with each request.
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
            // Requests first: a connection is not closed while a request is waiting on it.
            biased;
            outcome = connection.as_mut() => break Some(outcome),
            Some(next) = control.next() => next,
        };
        match next {
            Control::Over | Control::Evicted(Evicted::Cut, _) => break None,
            Control::Evicted(Evicted::Finish, eviction) => {
                // As in a drain, a first request that waits in the kernel is still accepted.
                if requests.load(Relaxed) == 0 {
                    control.push(Box::pin(after(FIRST_REQUEST_TIMEOUT, Control::Finish)));
                } else {
                    connection.as_mut().graceful_shutdown();
                }
                control.push(Box::pin(after(EVICTED_REQUEST_TIMEOUT, Control::Over)));
                control.push(evict(eviction));
            }
            // No request has arrived for a whole period: the client is idle, sends slowly or does
            // not read. There is one timer per connection, since a timer per request costs more
            // than the request.
            Control::Idle => {
                let now = requests.load(Relaxed);
                if std::mem::replace(&mut seen, now) == now {
                    break None;
                }
                control.push(idle(limits.header_time));
            }
            // A connection without any read would be closed at once, although its request may be
            // waiting in the kernel, so that one is accepted.
            Control::Drain if requests.load(Relaxed) == 0 => {
                control.push(Box::pin(after(FIRST_REQUEST_TIMEOUT, Control::Finish)));
            }
            Control::Drain | Control::Finish => connection.as_mut().graceful_shutdown(),
        }
    };
    if let Some(Err(error)) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

/// Events of a connection other than requests.
enum Control {
    /// An idle period has passed.
    Idle,
    /// The connection must close now.
    Over,
    /// The connection must close soon.
    Drain,
    /// The connection must close after its current request.
    Finish,
    /// Another connection takes its slot.
    Evicted(Evicted, Eviction),
}

async fn after(time: Duration, control: Control) -> Control {
    tokio::time::sleep(time).await;
    control
}

#[cfg(test)]
mod tests;
