//! A stand-in for the EC2 instance metadata service, versions 1 and 2.
//!
//! It differs from the real service in two respects. It parses paths as leniently as any
//! implementation might (percent-encoding, double slashes, dot segments), so that any path that a
//! proxy lets through reaches a secret. And every secret contains [`NODE_SECRET_MARKER`], so that a
//! leak is visible in any response.

mod tree;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, HeaderMap, HeaderName, HeaderValue, SERVER};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::http::{Answer, Server, answer, status};
use crate::ids;
use crate::recent::{Recent, lock};
use crate::sts::AccessKey;
use tree::{Found, Tree};

/// A marker in every secret of this service. No response to a pod may contain it.
pub const NODE_SECRET_MARKER: &str = "NODE-SECRET-MUST-NOT-LEAK";
/// The access key of the node's role. It must not reach a pod either.
pub const NODE_ACCESS_KEY_ID: &str = "ASIANODEROLEDEVKIT22";
/// The secret access key of the node's role; contains [`NODE_SECRET_MARKER`].
pub const NODE_SECRET_ACCESS_KEY: &str = "NODE-SECRET-MUST-NOT-LEAK/secretaccesske";
/// The session token of the node's role; contains [`NODE_SECRET_MARKER`].
pub const NODE_SESSION_TOKEN: &str = "IQoJb3JpZ2luX2VjNODE-SECRET-MUST-NOT-LEAK/sessiontoken==";

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const MAX_TOKEN_TTL: u32 = 21_600;
/// Maximum number of tokens. Beyond it, the oldest becomes invalid.
const MAX_TOKENS: usize = 1024;

/// The instance that the service describes, and its initial behavior.
#[derive(Clone, Debug)]
pub struct ImdsOptions {
    /// Name of the role in the instance profile. `None`: there is no profile.
    pub node_role: Option<String>,
    /// Account number, twelve digits.
    pub account: String,
    /// Region, such as `eu-west-1`.
    pub region: String,
    /// Partition of the Region, such as `aws-cn`. It determines `services/domain`.
    pub partition: String,
    /// True if requests without a token are refused (IMDSv2 required).
    pub v2_only: bool,
    /// The latency of each response.
    pub latency: Duration,
}

impl Default for ImdsOptions {
    fn default() -> Self {
        Self {
            node_role: Some("node".into()),
            account: "123456789012".into(),
            region: "eu-west-1".into(),
            partition: "aws".into(),
            v2_only: false,
            latency: Duration::ZERO,
        }
    }
}

/// A received request.
#[derive(Clone, Debug)]
pub struct ImdsRequest {
    /// The method.
    pub method: Method,
    /// The request target exactly as sent, query included.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
}

/// A running instance metadata service. It stops when dropped.
#[derive(Debug)]
pub struct Imds {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    node: (String, AccessKey),
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    v2_only: bool,
    latency: Duration,
    failing: Option<u16>,
    tokens: VecDeque<(String, Instant)>,
    requests: Recent<ImdsRequest>,
}

impl Imds {
    /// Starts the service on `bind`.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound.
    pub async fn start(bind: SocketAddr, options: ImdsOptions) -> io::Result<Self> {
        let state = Arc::new(State {
            tree: Tree::new(&options),
            node: (NODE_ACCESS_KEY_ID.into(), node_key(&options)),
            inner: Mutex::new(Inner {
                v2_only: options.v2_only,
                latency: options.latency,
                failing: None,
                tokens: VecDeque::new(),
                requests: Recent::default(),
            }),
        });
        let served = state.clone();
        let server = Server::start(bind, move |request| {
            let state = served.clone();
            async move { state.answer(&request).await }
        })
        .await?;
        Ok(Self { server, state })
    }

    /// Returns the bound address.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Returns `http://` and the address, without a trailing slash.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Stops the service and waits until its port is free.
    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// Returns the node role's credentials, for [`StsOptions::keys`](crate::StsOptions).
    pub fn node_key(&self) -> (String, AccessKey) {
        self.state.node.clone()
    }

    /// Sets whether later requests without a token are refused.
    pub fn set_v2_only(&self, v2_only: bool) {
        lock(&self.state.inner).v2_only = v2_only;
    }

    /// Sets the latency of later responses.
    pub fn set_latency(&self, latency: Duration) {
        lock(&self.state.inner).latency = latency;
    }

    /// Responds to later requests with this HTTP status. `None` resets it.
    pub fn fail_with(&self, status: Option<u16>) {
        lock(&self.state.inner).failing = status;
    }

    /// Invalidates all tokens issued so far.
    pub fn revoke_tokens(&self) {
        lock(&self.state.inner).tokens.clear();
    }

    /// Returns the last 10,000 requests, oldest first.
    pub fn requests(&self) -> Vec<ImdsRequest> {
        lock(&self.state.inner).requests.to_vec()
    }
}

fn node_key(options: &ImdsOptions) -> AccessKey {
    let ImdsOptions {
        partition, account, ..
    } = options;
    let role = options.node_role.as_deref().unwrap_or("none");
    let instance = tree::INSTANCE_ID;
    AccessKey {
        secret_access_key: NODE_SECRET_ACCESS_KEY.into(),
        session_token: Some(NODE_SESSION_TOKEN.into()),
        caller_arn: format!("arn:{partition}:sts::{account}:assumed-role/{role}/{instance}"),
    }
}

impl State {
    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        let (latency, failing) = {
            let mut inner = lock(&self.inner);
            inner.requests.push(ImdsRequest {
                method: request.method().clone(),
                path: request.uri().to_string(),
                headers: request.headers().clone(),
            });
            (inner.latency, inner.failing)
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mut answer = match failing {
            Some(number) => refusal(status(number)),
            None => self.route(request),
        };
        answer
            .headers_mut()
            .insert(SERVER, HeaderValue::from_static("EC2ws"));
        answer
    }

    fn route(&self, request: &Request<Incoming>) -> Answer {
        let path = tree::segments(request.uri().path());
        if path == ["latest", "api", "token"] {
            return self.issue_token(request.method(), request.headers());
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed("OPTIONS, GET, HEAD");
        }
        let remaining = match request.headers().get(TOKEN) {
            Some(token) => match self.remaining_lifetime(token.as_bytes()) {
                Some(seconds) => Some(seconds),
                None => return refusal(StatusCode::UNAUTHORIZED),
            },
            None if lock(&self.inner).v2_only => return refusal(StatusCode::UNAUTHORIZED),
            None => None,
        };
        let mut answer = match self.tree.find(&path) {
            Found::Text(text) => answer(StatusCode::OK, "text/plain", text),
            Found::Nothing => refusal(StatusCode::NOT_FOUND),
        };
        if let Some(seconds) = remaining {
            answer.headers_mut().insert(TOKEN_TTL, seconds.into());
        }
        answer
    }

    fn issue_token(&self, method: &Method, headers: &HeaderMap) -> Answer {
        if method != Method::PUT {
            return not_allowed("OPTIONS, PUT");
        }
        if headers.contains_key("x-forwarded-for") {
            return refusal(StatusCode::FORBIDDEN);
        }
        let ttl = headers
            .get(TOKEN_TTL)
            .and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TOKEN_TTL).contains(ttl)) else {
            return refusal(StatusCode::BAD_REQUEST);
        };
        let token = ids::metadata_token();
        let mut inner = lock(&self.inner);
        if inner.tokens.len() >= MAX_TOKENS {
            inner.tokens.pop_front();
        }
        let end = Instant::now() + Duration::from_secs(ttl.into());
        inner.tokens.push_back((token.clone(), end));
        let mut answer = answer(StatusCode::OK, "text/plain", token);
        answer.headers_mut().insert(TOKEN_TTL, ttl.into());
        answer
    }

    /// Returns a token's remaining seconds, or `None` if it is invalid.
    fn remaining_lifetime(&self, token: &[u8]) -> Option<u64> {
        let inner = lock(&self.inner);
        let (_, end) = inner
            .tokens
            .iter()
            .rev()
            .find(|(known, _)| known.as_bytes() == token)?;
        let left = end.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left.as_secs())
    }
}

fn not_allowed(allow: &'static str) -> Answer {
    let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED);
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

/// Returns the error page of the real service.
fn refusal(status: StatusCode) -> Answer {
    let title = format!(
        "{} - {}",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Unknown Status")
    );
    let page = format!(
        r#"<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
	"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{title}</title>
 </head>
 <body>
  <h1>{title}</h1>
 </body>
</html>
"#
    );
    answer(status, "text/html", page)
}
