//! What the agent is compared with: hyper's HTTP/1 server that does nothing but send one answer.

use std::convert::Infallible;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::child::{Helper, write_line};

/// The answer to give, as it was captured from the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fixed {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// A running bare server.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) helper: Helper,
    pub(crate) addr: SocketAddr,
}

impl Bare {
    /// Starts it with as many worker threads as the agent has.
    pub(crate) fn start(answer: &Fixed, threads: usize) -> anyhow::Result<Self> {
        let mut helper = Helper::start(&["bare", &threads.to_string()])?;
        let addr = helper.ask(answer)?;
        Ok(Self { helper, addr })
    }
}

/// Serves until standard input ends.
pub(crate) fn run(threads: usize) -> anyhow::Result<()> {
    let mut line = String::new();
    let mut input = std::io::stdin();
    input.read_line(&mut line)?;
    let Fixed {
        status,
        headers,
        body,
    } = serde_json::from_str(&line)?;
    let status = StatusCode::from_u16(status)?;
    let headers = headers
        .iter()
        // hyper adds these by itself.
        .filter(|(name, _)| {
            !matches!(
                name.to_ascii_lowercase().as_str(),
                "date" | "content-length"
            )
        })
        .map(|(name, value)| Ok((name.parse()?, value.parse()?)))
        .collect::<anyhow::Result<Vec<(HeaderName, HeaderValue)>>>()?;
    let body = Bytes::from(body);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    write_line(&mut std::io::stdout(), &listener.local_addr()?)?;
    runtime.spawn(serve(listener, status, headers, body));
    input
        .read_to_end(&mut Vec::new())
        .context("standard input")?;
    Ok(())
}

async fn serve(
    listener: TcpListener,
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (headers, body) = (headers.clone(), body.clone());
        let service = service_fn(move |_| {
            let mut answer = Response::new(Full::new(body.clone()));
            *answer.status_mut() = status;
            *answer.headers_mut() = headers.iter().cloned().collect::<HeaderMap>();
            async { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A connection that broke off shows in the load generator.
            let _ = connection.await;
        });
    }
}
