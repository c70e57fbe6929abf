//! Plain HTTP requests from inside a namespace, each over a new connection.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use rolegate_redirect::rules::{METADATA_V4, METADATA_V6};
use rolegate_testkit::lab::Namespace;

/// Timeout for a connection: a dropped packet gets no response.
const CONNECT: Duration = Duration::from_secs(2);
/// Timeout for a response, on a busy machine.
const ANSWER: Duration = Duration::from_secs(20);

/// The path where SDKs request credentials.
pub(crate) const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";

/// The IPv4 metadata address, to which pods send their requests.
pub(crate) const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(METADATA_V4), 80);
/// The IPv6 metadata address.
pub(crate) const METADATA_6: SocketAddr = SocketAddr::new(IpAddr::V6(METADATA_V6), 80);
/// The default address of the operators' port, on the node's loopback.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    /// The body as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {self:?}"))
    }
}

/// Sends `GET path` to the metadata address.
pub(crate) fn get(netns: &Namespace, path: &str) -> anyhow::Result<Reply> {
    get_at(netns, METADATA, path)
}

/// Sends `GET path` to `target`.
pub(crate) fn get_at(netns: &Namespace, target: SocketAddr, path: &str) -> anyhow::Result<Reply> {
    request(netns, target, "GET", path, &[])
}

/// Requests a metadata token of version 2.
pub(crate) fn token(netns: &Namespace) -> anyhow::Result<String> {
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
    let reply = request(netns, METADATA, "PUT", "/latest/api/token", &ttl)?;
    anyhow::ensure!(reply.status == 200, "{reply:?}");
    Ok(reply.body)
}

/// Sends one request, with its path exactly as given.
pub(crate) fn request(
    netns: &Namespace,
    target: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> anyhow::Result<Reply> {
    let host = match target {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    };
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    let mut stream = netns.run(|| TcpStream::connect_timeout(&target, CONNECT))??;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> anyhow::Result<Reply> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head.split(' ').nth(1).context("no status")?;
    Ok(Reply {
        status: status.parse()?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
