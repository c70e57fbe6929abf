//! One request of a pod, its response, and printable forms of both.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use http::header::HOST;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rolegate_devkit::{NODE_ACCESS_KEY_ID, NODE_SECRET_MARKER};
use rolegate_redirect::rules::METADATA_V4;
use rolegate_runtime::logging::escape;
use serde::Deserialize;
use tokio::net::TcpSocket;

/// Timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response body, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Maximum length of a printed response, in characters.
const MAX_SHOWN: usize = 200;
/// The header of a metadata token.
pub(super) const TOKEN: &str = "x-aws-ec2-metadata-token";

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    absolute: bool,
}

impl Ask {
    /// Creates a `GET` of a path, which is sent unchanged.
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: Vec::new(),
            absolute: false,
        }
    }

    /// Creates a `PUT` for a metadata token that is valid for one minute.
    pub(super) fn token() -> Self {
        let mut ask = Self::get("/latest/api/token");
        ask.method = Method::PUT;
        ask.with("x-aws-ec2-metadata-token-ttl-seconds", "60")
    }

    /// Adds a header.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Uses the absolute URL in the request line, as for a proxy.
    pub(super) fn absolute(mut self) -> Self {
        self.absolute = true;
        self
    }

    /// Formats the request as arguments of curl, without secrets.
    pub(super) fn curl(&self, at: SocketAddr) -> String {
        let mut words = String::new();
        if self.method != Method::GET {
            words += &format!("-X {} ", self.method);
        }
        for (name, value) in &self.headers {
            let value = if *name == TOKEN {
                short(value)
            } else {
                value.clone()
            };
            words += &format!("-H '{name}: {value}' ");
        }
        if self.absolute {
            return format!(
                "{words}--request-target {} http://{}/",
                self.target(),
                host(at)
            );
        }
        if self.path.contains("%2e") {
            words += "--path-as-is ";
        }
        format!("{words}http://{}{}", host(at), self.path)
    }

    fn target(&self) -> String {
        if self.absolute {
            format!("http://{METADATA_V4}{}", self.path)
        } else {
            self.path.clone()
        }
    }

    /// Sends the request. An error becomes a response without a status.
    pub(super) async fn send(&self, socket: std::io::Result<TcpSocket>, at: SocketAddr) -> Reply {
        let sent = async { self.exchange(socket?, at).await };
        let mut reply = match tokio::time::timeout(REQUEST_TIMEOUT, sent).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => Reply::none(format!("no response: {error:#}")),
            Err(_) => Reply::none(format!("no response within {REQUEST_TIMEOUT:?}")),
        };
        reply.is_token = self.method == Method::PUT;
        reply
    }

    async fn exchange(&self, socket: TcpSocket, at: SocketAddr) -> anyhow::Result<Reply> {
        let stream = socket.connect(at).await.context("cannot connect")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(&self.method)
            .uri(self.target())
            .header(HOST, host(at));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await;
        connection.abort();
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok(Reply {
            status: Some(parts.status.as_u16()),
            headers: format!("{:?}", parts.headers),
            body: String::from_utf8_lossy(&body).into_owned(),
            is_token: false,
        })
    }
}

/// Returns the authority of a URL.
pub(super) fn host(at: SocketAddr) -> String {
    if at.port() == 80 {
        at.ip().to_string()
    } else {
        at.to_string()
    }
}

/// A response, or the reason for its absence.
#[derive(Debug)]
pub(super) struct Reply {
    /// The status; `None` without a response.
    pub(super) status: Option<u16>,
    headers: String,
    /// The body, or the reason for its absence.
    pub(super) body: String,
    is_token: bool,
}

/// The credentials document.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: String,
}

/// The fields that identify a session, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    /// The access key ID.
    pub(super) access_key_id: String,
    /// The expiry.
    pub(super) expiration: Timestamp,
}

impl Reply {
    fn none(why: String) -> Self {
        Self {
            status: None,
            headers: String::new(),
            body: why,
            is_token: false,
        }
    }

    /// Returns whether it contains a secret of the node.
    pub(super) fn leaks(&self) -> bool {
        [NODE_SECRET_MARKER, NODE_ACCESS_KEY_ID]
            .iter()
            .any(|secret| self.body.contains(secret) || self.headers.contains(secret))
    }

    /// Returns its session, which must be valid and not the node's.
    pub(super) fn session(&self) -> anyhow::Result<Session> {
        let now = Timestamp::now();
        anyhow::ensure!(
            self.status == Some(200),
            "the response contains no credentials"
        );
        let document: Document = serde_json::from_str(&self.body)
            .context("the response is not a credentials document")?;
        anyhow::ensure!(!self.leaks(), "these are the node's credentials");
        let expiration = document.expiration.parse().context("invalid expiration")?;
        anyhow::ensure!(now < expiration, "the session expired at {expiration}");
        Ok(Session {
            access_key_id: document.access_key_id,
            expiration,
        })
    }

    /// Formats the first line, with secrets shortened.
    pub(super) fn shown(&self) -> String {
        if let Ok(document) = serde_json::from_str::<Document>(&self.body) {
            return format!(
                "AccessKeyId {}, SecretAccessKey {}, Token {}, Expiration {}",
                document.access_key_id,
                short(&document.secret_access_key),
                short(&document.token),
                document.expiration,
            );
        }
        if self.is_token && self.status == Some(200) {
            return short(&self.body);
        }
        let line = self.body.lines().next().unwrap_or_default();
        escape(&line.chars().take(MAX_SHOWN).collect::<String>())
    }
}

/// Returns the first four characters of a secret.
fn short(secret: &str) -> String {
    secret.chars().take(4).chain(['…']).collect()
}
