//! The baseline for the agent: hyper's HTTP/1 server with one fixed response.

use std::convert::Infallible;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::child::{Helper, write_line};

/// The fixed response, captured from the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fixed {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// A running baseline server.
#[derive(Debug)]
pub(crate) struct Baseline {
    pub(crate) helper: Helper,
    pub(crate) addr: SocketAddr,
}

impl Baseline {
    /// Starts it with as many worker threads as the agent has.
    pub(crate) fn start(answer: &Fixed, threads: usize) -> anyhow::Result<Self> {
        let mut helper = Helper::start(&["baseline", &threads.to_string()])?;
        let addr = helper.ask(answer)?;
        Ok(Self { helper, addr })
    }
}

/// Serves until standard input is closed.
pub(crate) fn run(threads: usize) -> anyhow::Result<()> {
    let mut line = String::new();
    let mut input = std::io::stdin();
    input.read_line(&mut line)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    let addr = runtime.block_on(listen(serde_json::from_str(&line)?))?;
    write_line(&mut std::io::stdout(), &addr)?;
    input
        .read_to_end(&mut Vec::new())
        .context("standard input")?;
    Ok(())
}

/// Serves in the background, and returns the address.
pub(crate) async fn listen(answer: Fixed) -> anyhow::Result<SocketAddr> {
    let status = StatusCode::from_u16(answer.status)?;
    let headers = answer
        .headers
        .iter()
        // hyper adds these headers itself.
        .filter(|(name, _)| {
            !matches!(
                name.to_ascii_lowercase().as_str(),
                "date" | "content-length"
            )
        })
        .map(|(name, value)| Ok((name.parse()?, value.parse()?)))
        .collect::<anyhow::Result<HeaderMap>>()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(serve(listener, status, headers, Bytes::from(answer.body)));
    Ok(addr)
}

async fn serve(
    listener: TcpListener,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (headers, body) = (headers.clone(), body.clone());
        let service = service_fn(move |_| {
            let mut answer = Response::new(Full::new(body.clone()));
            *answer.status_mut() = status;
            let into = answer.headers_mut();
            for (name, value) in &headers {
                into.insert(name.clone(), value.clone());
            }
            async { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // The load generator reports broken connections.
            let _ = connection.await;
        });
    }
}
