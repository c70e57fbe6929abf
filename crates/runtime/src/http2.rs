//! HTTP/2 over TLS between rolegate processes, for long-lived streams: bounded in connections and
//! buffers, kept alive, and ended by a [`Drain`].

mod connections;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::accept::{UNLIMITED, accept};
use crate::drain::Drain;
use crate::tls::{ClientNames, MutualTls};
use connections::{Accepted, Connections};
pub use connections::{Authentication, Limit, Peers, Usage};

/// Interval between keep-alive pings, and the time limit for the response. The client's are
/// shorter, since it can connect elsewhere.
const SERVER_PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
const CLIENT_PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));
/// Flow-control window of a stream, in bytes.
const WINDOW_BYTES: u32 = 64 << 10;
/// Send buffer of a stream, in bytes.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Interval at which unused connections are detected.
const UNUSED_CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// The time for which a connection may stay unauthenticated: enough for a handshake, a first
/// message and a token review, with a margin.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(30);
/// The time in which a connection being closed has to answer its requests in progress.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval at which the number of connections is reported, even if none was opened or closed.
const USAGE_INTERVAL: Duration = Duration::from_secs(15);
/// Maximum size of headers, in bytes.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Limits of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connections. An eighth of them may be unauthenticated, and another eighth
    /// those of peers that are expected.
    pub connections: usize,
    /// Maximum number of unauthenticated connections of one peer: an IPv4 address, the /64 of an
    /// IPv6 address, or the address of an expected peer.
    pub per_peer: usize,
    /// Maximum number of streams of one connection.
    pub streams: u32,
    /// Time after which a connection without requests is closed, with a granularity of a quarter of
    /// a minute.
    pub unused: Duration,
}

/// Serves connections on `listener` until the drain begins; open ones are then asked to close, and
/// aborted when it is forced. Every connection is accepted; when there are too many, an
/// unauthenticated one is closed. `connect` returns the service for each connection, given the
/// peer's address, its certificate's claims, and a handle to report authentication; without a
/// service the connection is closed.
pub async fn serve<C, S, B>(
    listener: TcpListener,
    tls: MutualTls,
    limits: Limits,
    drain: Drain,
    peers: Arc<dyn Peers>,
    connect: C,
) where
    C: Fn(SocketAddr, ClientNames, Authentication) -> Option<S> + Clone + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connections = Connections::new(limits, peers);
    let admit = |_: &TcpStream, peer: SocketAddr| {
        let Some(accepted) = connections.accept(peer.ip()) else {
            tracing::debug!(%peer, "too many new connections of one peer, closing");
            return None;
        };
        let accepted = Arc::new(accepted);
        let (tls, drain, connect) = (tls.clone(), drain.clone(), connect.clone());
        Some(async move |stream| {
            let shown = Authentication::of(&accepted);
            let closing = accepted.closing().clone();
            // Boxed, because the handshake and the connection are large, and moving them would
            // copy them.
            let talk = Box::pin(async move {
                if let Some((stream, names)) = Box::pin(tls.accept(stream)).await
                    && let Some(service) = connect(peer, names, shown)
                {
                    converse(stream, limits, drain, closing, service).await;
                }
            });
            hold(talk, &accepted).await;
        })
    };
    tokio::select! {
        () = accept(listener, UNLIMITED, &drain, admit) => {}
        () = report_usage(&connections) => {}
    }
}

/// Reports the number of connections at intervals. Never returns.
async fn report_usage(connections: &Connections) {
    let mut interval = tokio::time::interval(USAGE_INTERVAL);
    loop {
        interval.tick().await;
        connections.report_usage();
    }
}

/// Polls a connection until it ends or has to be closed.
async fn hold(talk: impl Future<Output = ()>, accepted: &Accepted) {
    tokio::select! {
        () = talk => {}
        why = accepted.cut(AUTHENTICATION_TIMEOUT) => tracing::debug!("closing a connection: {why}"),
    }
}

async fn converse<T, S, B>(
    stream: T,
    limits: Limits,
    drain: Drain,
    closing: CancellationToken,
    service: S,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (service, mut uses) = tracked(service);
    let mut connection = pin!(builder(limits).serve_connection(TokioIo::new(stream), service));
    let mut asked = false;
    let mut looks = tokio::time::interval(UNUSED_CHECK_INTERVAL);
    looks.reset();
    let mut begun = pin!(drain.begun());
    let mut forced = pin!(drain.forced());
    let mut refused = pin!(closing.cancelled());
    let mut cut = pin!(async {
        closing.cancelled().await;
        tokio::time::sleep(CLOSE_TIMEOUT).await;
    });
    let mut closes = false;
    let outcome = loop {
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            () = &mut refused, if !closes => {
                closes = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut cut => return,
            () = &mut begun, if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut forced => return,
            _ = looks.tick() => {
                let unused = uses.unused();
                if unused >= limits.unused + UNUSED_CHECK_INTERVAL {
                    // The client does not respond to that either, or never sent its preface.
                    return;
                }
                if unused >= limits.unused {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

/// Returns the configuration of a server's connection.
fn builder(limits: Limits) -> server::Builder<TokioExecutor> {
    let (interval, timeout) = SERVER_PING;
    let mut builder = server::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(MAX_HEADER_BYTES);
    builder
}

/// The use of one connection.
struct Uses {
    /// Set by each request. The service holds one reference, each request and response another.
    held: Arc<AtomicBool>,
    unused: Duration,
}

impl Uses {
    /// Returns the time for which the connection has been unused. It is called at each interval.
    fn unused(&mut self) -> Duration {
        let asked = self.held.swap(false, Ordering::Relaxed);
        // The service's own reference and this one.
        self.unused = if asked || Arc::strong_count(&self.held) > 2 {
            Duration::ZERO
        } else {
            self.unused + UNUSED_CHECK_INTERVAL
        };
        self.unused
    }
}

/// Wraps the service of a connection so that its use is known.
fn tracked<S, B>(
    service: S,
) -> (
    impl Service<Request<Incoming>, Response = Response<Held<B>>, Error = Infallible, Future: Send>
    + Send
    + 'static,
    Uses,
)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Unpin + Send + 'static,
{
    let held = Arc::new(AtomicBool::new(false));
    let uses = Uses {
        held: held.clone(),
        unused: Duration::ZERO,
    };
    let service = service_fn(move |request| {
        held.store(true, Ordering::Relaxed);
        let (held, answer) = (held.clone(), service.call(request));
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Held { body, _held: held }))
        }
    });
    (service, uses)
}

/// A body that marks its connection as used.
struct Held<B> {
    body: B,
    _held: Arc<AtomicBool>,
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Opens an HTTP/2 connection on `stream`. Returns a sender of requests, and the future that drives
/// the connection.
///
/// # Errors
/// Returns an error if the connection breaks at once.
pub async fn connect<T, B>(
    stream: T,
) -> Result<
    (
        client::SendRequest<B>,
        impl Future<Output = Result<(), hyper::Error>> + Send,
    ),
    hyper::Error,
>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (interval, timeout) = CLIENT_PING;
    client::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
}

#[cfg(test)]
mod tests;
