//! A proxy before moto. It records the sessions and their requests, shortens lifetimes, for which
//! moto, like AWS, has a minimum of 15 minutes, and rejects expired sessions, which moto does not.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rolegate_testkit::Moto;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// One successful `AssumeRole`.
#[derive(Debug, Clone)]
pub(crate) struct Assumed {
    /// The parameters of the request: `RoleArn`, `RoleSessionName`, `ExternalId`…
    pub(crate) asked: BTreeMap<String, String>,
    /// The access key of the session.
    pub(crate) access_key: String,
    end: Timestamp,
}

/// An STS on this host's loopback, which stops when dropped.
pub(crate) struct Sts {
    port: u16,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

struct State {
    moto: AtomicU16,
    client: Client<HttpConnector, Full<Bytes>>,
    life: Mutex<Option<Duration>>,
    assumed: Mutex<Vec<Assumed>>,
}

/// The moto that all tests share. It stores nothing that tests could see of each other.
async fn moto() -> anyhow::Result<&'static Moto> {
    static MOTO: OnceCell<Moto> = OnceCell::const_new();
    MOTO.get_or_try_init(Moto::start).await
}

impl Sts {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::before(moto().await?).await
    }

    /// Starts a proxy before a separate moto, which the test may stop.
    pub(crate) async fn before(moto: &Moto) -> anyhow::Result<Self> {
        let state = Arc::new(State {
            moto: moto.port().into(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            life: Mutex::default(),
            assumed: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(Self {
            port: listener.local_addr()?.port(),
            _task: AbortOnDropHandle::new(tokio::spawn(accept(listener, state.clone()))),
            state,
        })
    }

    /// Returns the port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL, in any namespace to which the port is forwarded.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Forwards requests to this moto from now on.
    pub(crate) fn lead_to(&self, moto: &Moto) {
        self.state.moto.store(moto.port(), Ordering::SeqCst);
    }

    /// Sets the lifetime of sessions.
    pub(crate) fn set_life(&self, life: Duration) {
        *self.state.life.lock() = Some(life);
    }

    /// Returns all sessions so far.
    pub(crate) fn assumed(&self) -> Vec<Assumed> {
        self.state.assumed.lock().clone()
    }

    /// Returns the role of the session with an access key.
    pub(crate) fn role_of(&self, access_key: &str) -> anyhow::Result<String> {
        self.assumed()
            .into_iter()
            .find(|session| session.access_key == access_key)
            .and_then(|session| session.asked.get("RoleArn").cloned())
            .with_context(|| format!("STS never gave {access_key}"))
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| {
            let state = state.clone();
            async move {
                Ok::<_, Infallible>(state.pass(request).await.unwrap_or_else(|error| {
                    let mut failed = Response::new(Full::from(format!("{error:#}")));
                    *failed.status_mut() = StatusCode::BAD_GATEWAY;
                    failed
                }))
            }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl State {
    /// Returns true if a request is signed with the key of an expired session.
    fn is_over(&self, headers: &HeaderMap) -> bool {
        let signed = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let key = signed.and_then(|value| value.split_once("Credential=")?.1.split('/').next());
        let assumed = self.assumed.lock();
        assumed
            .iter()
            .any(|session| Some(&*session.access_key) == key && session.end <= Timestamp::now())
    }

    async fn pass(&self, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
        let (mut parts, body) = request.into_parts();
        if self.is_over(&parts.headers) {
            return Ok(expired());
        }
        let body = body.collect().await?.to_bytes();
        let asked: BTreeMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
        parts.uri = format!("http://127.0.0.1:{}/", self.moto.load(Ordering::SeqCst)).parse()?;
        let answer = self
            .client
            .request(Request::from_parts(parts, Full::from(body)))
            .await?;
        let (mut parts, body) = answer.into_parts();
        let mut text = String::from_utf8(body.collect().await?.to_bytes().to_vec())?;
        let is_session = asked
            .get("Action")
            .is_some_and(|action| action == "AssumeRole");
        if is_session && parts.status == StatusCode::OK {
            let end = element(&text, "Expiration")?.to_owned();
            let mut session = Assumed {
                asked,
                access_key: element(&text, "AccessKeyId")?.to_owned(),
                end: end.parse()?,
            };
            if let Some(life) = *self.life.lock() {
                session.end = Timestamp::now() + SignedDuration::try_from(life)?;
                let sooner = session.end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                text = text.replace(&end, &sooner);
            }
            self.assumed.lock().push(session);
        }
        parts.headers.remove(CONTENT_LENGTH);
        Ok(Response::from_parts(parts, Full::from(text)))
    }
}

fn expired() -> Response<Full<Bytes>> {
    let error = "<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredToken</Code><Message>The \
        security token included in the request is expired</Message></Error></ErrorResponse>";
    let mut response = Response::new(Full::from(error));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

/// Returns the text of an XML element without child elements.
fn element<'a>(xml: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let (_, rest) = xml
        .split_once(&format!("<{name}>"))
        .with_context(|| format!("no {name} in {xml}"))?;
    Ok(rest.split('<').next().unwrap_or_default())
}
