//! A client of the node's instance metadata service (IMDS), for our own queries and for requests
//! forwarded for pods.
//!
//! It uses IMDSv2 with its own token, and IMDSv1 if the service has no tokens. Only the method and
//! path of a pod's request are forwarded, and our token is never exposed.

mod body;
mod token;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName, SET_COOKIE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

pub use body::MetadataBody;
use token::{Access, Tokens};

/// Maximum size of a response to [`Imds::get_text`], in bytes.
const MAX_TEXT_BYTES: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of response headers, in bytes. The metadata service sends a few hundred.
const MAX_HEADER_BYTES: usize = 16 * 1024;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_IDLE: usize = 32;

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// Response headers about the connection to the service, or between the service and us alone.
const NOT_FORWARDED: [HeaderName; 15] = [
    // It may contain the address that we connect to.
    http::header::CONTENT_LOCATION,
    http::header::LINK,
    http::header::REFRESH,
    http::header::ALT_SVC,
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::PROXY_AUTHENTICATE,
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
    SET_COOKIE,
    TOKEN,
    TOKEN_TTL,
];

/// The reason why the node's metadata service gave no response to forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImdsError {
    /// The address is malformed.
    #[error("{0:?} is not a metadata address: use HOST:PORT, such as 169.254.169.254:80")]
    BadAddress(String),
    /// The request is not a GET or HEAD of an absolute path.
    #[error("only GET and HEAD of a path can be forwarded to the node's metadata service")]
    BadRequest,
    /// The connection failed or broke.
    #[error("cannot reach the node's metadata service: {0}")]
    Unreachable(String),
    /// The service did not respond in time.
    #[error(
        "the node's metadata service does not respond: from a separate network namespace it \
         needs a higher hop limit"
    )]
    TimedOut,
    /// The service rejects a token that it has just issued.
    #[error("the node's metadata service rejects its own token")]
    TokenRefused,
    /// An unexpected status.
    #[error("the node's metadata service responded {0}")]
    Status(StatusCode),
    /// The response is too long, or not text.
    #[error("the response of the node's metadata service is not {0}")]
    Malformed(&'static str),
}

impl ImdsError {
    /// Returns the value of the metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadAddress(_) => "bad_address",
            Self::BadRequest => "bad_request",
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut => "timeout",
            Self::TokenRefused => "token_refused",
            Self::Status(_) => "status",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// A client of the metadata service. Cloning is cheap; clones share a connection pool and a token.
#[derive(Clone)]
pub struct Imds {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client<HttpConnector, Empty<Bytes>>,
    authority: Authority,
    tokens: Tokens,
}

impl std::fmt::Debug for Imds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Imds")
            .field("authority", &self.inner.authority)
            .finish_non_exhaustive()
    }
}

impl Imds {
    /// Creates a client. `address` is `HOST[:PORT]` or, as in `AWS_EC2_METADATA_SERVICE_ENDPOINT`,
    /// `http://HOST[:PORT]/`. Does no I/O.
    ///
    /// # Errors
    /// Returns [`ImdsError::BadAddress`] if the address is malformed.
    pub fn new(address: &str) -> Result<Self, ImdsError> {
        let host = address.strip_prefix("http://").unwrap_or(address);
        let authority = host
            .strip_suffix('/')
            .unwrap_or(host)
            .parse::<Authority>()
            .ok()
            .filter(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
            .ok_or_else(|| ImdsError::BadAddress(crate::error::bounded(address, 80)))?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEADER_BYTES)
            .build(connector);
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                authority,
                tokens: Tokens::default(),
            }),
        })
    }

    /// Returns `true` if `authority` is the address of this service.
    pub fn is_at(&self, authority: &Authority) -> bool {
        let own = &self.inner.authority;
        let port = |authority: &Authority| authority.port_u16().unwrap_or(80);
        own.host() == authority.host() && port(own) == port(authority)
    }

    /// Returns the text at `path`, at most 64 KiB of UTF-8.
    ///
    /// # Errors
    /// Returns [`ImdsError::Status`] for any status but 200, or the error of the request.
    pub async fn get_text(&self, path: &str) -> Result<String, ImdsError> {
        let answer = self.inner.request(&Method::GET, path).await?;
        if answer.status() != StatusCode::OK {
            return Err(ImdsError::Status(answer.status()));
        }
        text(answer.into_body(), MAX_TEXT_BYTES).await
    }

    /// Forwards a GET or HEAD of `path`, which the caller has checked to be canonical and allowed.
    /// Returns the response with any status, streamed, without hop-by-hop headers.
    ///
    /// # Errors
    /// Returns [`ImdsError::BadRequest`] for other methods, or the error of the request.
    pub async fn forward(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<Response<MetadataBody>, ImdsError> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(ImdsError::BadRequest);
        }
        let mut answer = self.inner.request(method, path).await?;
        strip(answer.headers_mut());
        Ok(answer.map(|body| MetadataBody::new(body, BODY_TIMEOUT)))
    }
}

impl Inner {
    async fn request(&self, method: &Method, path: &str) -> Result<Response<Incoming>, ImdsError> {
        // The rare case is boxed, to keep the future of each request small.
        let access = match self.tokens.fresh() {
            Some(access) => access,
            None => Box::pin(self.tokens.get(self)).await?,
        };
        let answer = self.send(method, path, &access).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        Box::pin(self.request_anew(method, path, &access)).await
    }

    /// Repeats a request with another token: `refused` was revoked early, or tokens have become
    /// required.
    async fn request_anew(
        &self,
        method: &Method,
        path: &str,
        refused: &Arc<Access>,
    ) -> Result<Response<Incoming>, ImdsError> {
        let access = self.tokens.replace(self, refused).await?;
        let answer = self.send(method, path, &access).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            // If forwarded, this would make the pod's SDK discard the token that we issued.
            return Err(ImdsError::TokenRefused);
        }
        Ok(answer)
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        access: &Access,
    ) -> Result<Response<Incoming>, ImdsError> {
        let mut request = self.prepare(method.clone(), path)?;
        if let Some(token) = access.token() {
            request.headers_mut().insert(TOKEN, token.clone());
        }
        self.exchange(request).await
    }

    fn prepare(&self, method: Method, path: &str) -> Result<Request<Empty<Bytes>>, ImdsError> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(
            PathAndQuery::try_from(path)
                .ok()
                .filter(|path| path.as_str().starts_with('/'))
                .ok_or(ImdsError::BadRequest)?,
        );
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| ImdsError::BadRequest)?;
        Ok(request)
    }

    async fn exchange(
        &self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, ImdsError> {
        timeout(HEADER_TIMEOUT, self.client.request(request))
            .await
            .map_err(|_| ImdsError::TimedOut)?
            .map_err(|error| unreachable(&error))
    }
}

fn unreachable(error: &(dyn std::error::Error + 'static)) -> ImdsError {
    ImdsError::Unreachable(crate::error::bounded(&crate::error::chain(error), 200))
}

async fn text(body: Incoming, limit: usize) -> Result<String, ImdsError> {
    let body = timeout(HEADER_TIMEOUT, Limited::new(body, limit).collect())
        .await
        .map_err(|_| ImdsError::TimedOut)?
        .map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => ImdsError::Malformed("a short text"),
            None => unreachable(error.as_ref()),
        })?
        .to_bytes();
    String::from_utf8(body.into()).map_err(|_| ImdsError::Malformed("text"))
}

fn strip(headers: &mut HeaderMap) {
    // Rare, so avoid an allocation in the common case.
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &NOT_FORWARDED {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_their_spellings() {
        for (address, authority) in [
            ("169.254.169.254:80", "169.254.169.254:80"),
            ("169.254.169.254", "169.254.169.254"),
            ("http://[fd00:ec2::254]/", "[fd00:ec2::254]"),
            ("[fd00:ec2::254]:80", "[fd00:ec2::254]:80"),
            ("http://127.0.0.1:1338", "127.0.0.1:1338"),
        ] {
            let imds = Imds::new(address).unwrap();
            assert_eq!(imds.inner.authority.as_str(), authority);
        }
        for address in ["", "http://", "https://x", "a/b", "user@host", "a b", ":80"] {
            assert!(
                matches!(Imds::new(address), Err(ImdsError::BadAddress(_))),
                "{address:?}"
            );
        }
    }

    #[test]
    fn only_absolute_paths_are_forwarded() {
        let inner = Imds::new("127.0.0.1:1").unwrap().inner;
        for path in [
            "",
            "latest",
            "http://elsewhere/latest",
            "/a b",
            "/\u{0}",
            "*",
        ] {
            assert_eq!(
                inner.prepare(Method::GET, path).err(),
                Some(ImdsError::BadRequest),
                "{path:?}"
            );
        }
        let request = inner.prepare(Method::GET, "//elsewhere/latest").unwrap();
        assert_eq!(request.uri().host(), Some("127.0.0.1"));
    }
}
