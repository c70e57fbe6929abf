//! HTTP/2 over TLS between processes of ours, for streams that stay open: bounded in connections
//! and buffers, kept alive, and ended by a [`Drain`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::serve::{ACCEPT_PAUSE, prepare};
use crate::tls::{ClientNames, MutualTls};

/// How often a side that hears nothing asks whether the other is there, and how long it waits for
/// the answer. The client's is the shorter: it is the one that can go elsewhere.
const SERVER_PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
const CLIENT_PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));
/// Bytes of a stream that may be on their way.
const WINDOW: u32 = 64 << 10;
/// Bytes of a stream that wait to be sent.
const SEND_BUFFER: usize = 64 << 10;
/// Streams of one connection.
const STREAMS: u32 = 8;
/// Bytes of headers.
const HEADERS: u32 = 16 << 10;

/// Answers connections on `listener` until the drain begins; what is open is then asked to end, and
/// cut off when it is forced. `connect` is asked for the service of each connection, with the
/// peer's address and what its certificate says.
pub async fn serve<C, S, B>(
    listener: TcpListener,
    tls: MutualTls,
    connections: usize,
    drain: Drain,
    connect: C,
) where
    C: Fn(SocketAddr, ClientNames) -> S + Clone + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(connections));
    let mut begun = pin!(drain.begun());
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
                let (tls, ending, connect) = (tls.clone(), drain.clone(), connect.clone());
                drain.spawn(async move {
                    prepare(&stream);
                    if let Some((stream, names)) = tls.accept(stream).await {
                        let service = connect(peer, names);
                        converse(stream, ending, service).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept connections, trying on");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse<T, S, B>(stream: T, drain: Drain, service: S)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (interval, patience) = SERVER_PING;
    let mut connection = pin!(
        server::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(interval)
            .keep_alive_timeout(patience)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADERS)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut asked = false;
    let mut begun = pin!(drain.begun());
    let mut forced = pin!(drain.forced());
    let outcome = loop {
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            () = &mut begun, if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut forced => return,
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

/// Speaks HTTP/2 on `stream`: requests are made with what is returned, and the connection lives as
/// long as the future beside it is polled.
///
/// # Errors
/// When the connection breaks at once.
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
    let (interval, patience) = CLIENT_PING;
    client::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(interval)
        .keep_alive_timeout(patience)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADERS)
        .handshake(TokioIo::new(stream))
        .await
}
