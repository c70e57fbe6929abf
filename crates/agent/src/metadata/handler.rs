//! Routing and handling of requests.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use rolegate_authorizer::pod::{Allowed, PodEntry};
use rolegate_core::document;
use rolegate_core::metadata::{CanonicalPath, RequestedRole, Route, TREES, VERSIONS};
use rolegate_core::session::FailureKind;

use super::credentials::CredentialsDocument;
use super::reply::{Reply, ReplyBody};
use super::validate::{ValidRequest, validate_request};
use super::{ImdsV2, MetadataServer, forward};
use crate::address_verifier::VerifiedAt;
use crate::attachment::Verdict;
use crate::credentials::{Attempt, CredentialSource, Refusal};
use crate::host::FORWARDED_FOR;
use crate::limits::Connection;
use crate::metrics::{Handler, Outcome};
use crate::pod_table::Owner;
use crate::token::{MAX_TTL_SECONDS, TokenKeys};

// Names rather than text, so that no request parses them.
static TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
static TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// A connection of a pod.
#[derive(Debug)]
pub(super) struct RequestHandler {
    server: Arc<MetadataServer>,
    connection: Connection,
    /// The pod's address. Headers never override it.
    peer: IpAddr,
    own: IpAddr,
    last_look: VerifiedAt,
    /// The UID of the pod that first used the connection. Another pod that gets the address needs
    /// its own connection.
    uid: OnceLock<Arc<str>>,
}

impl RequestHandler {
    pub(super) fn new(
        server: Arc<MetadataServer>,
        connection: Connection,
        peer: IpAddr,
        own: IpAddr,
    ) -> Arc<Self> {
        let last_look = server.credentials.verifier.opened(peer);
        // Checked at the start of the connection: a neighbor that opened it while it held the
        // address must not be able to wait until the address is back at its pod.
        if let Some(Owner::Pod(entry)) = server.credentials.pod_table.owner(peer) {
            let _ = server
                .credentials
                .verifier
                .check(&entry.workload.uid, peer, &last_look);
        }
        Arc::new(Self {
            server,
            connection,
            peer,
            own,
            last_look,
            uid: OnceLock::new(),
        })
    }

    /// Responds to one request, and counts it.
    pub(super) async fn respond<B>(self: Arc<Self>, request: Request<B>) -> Response<ReplyBody> {
        let begun = Instant::now();
        self.connection.begin(begun);
        let (handler, mut reply) = match validate_request(&request, self.peer, self.own) {
            Ok(ValidRequest::Path(path)) => self.route(&request, &path).await,
            Ok(ValidRequest::Health) => (Handler::Health, self.server.health.page()),
            Err(refused) => refused,
        };
        let took = begun.elapsed();
        if self.connection.end(begun + took) {
            reply = reply.and_close();
        }
        let metrics = &self.server.credentials.metrics;
        metrics.request(handler, reply.outcome, took);
        if let Some(kube2iam) = metrics.kube2iam() {
            let status = reply.response.status();
            kube2iam.request(handler, reply.outcome, request.method(), status, took);
        }
        tracing::debug!(
            peer = %self.peer,
            method = %request.method(),
            path = request.uri().path(),
            status = reply.response.status().as_u16(),
            outcome = reply.outcome.as_str(),
            ?took,
            "request"
        );
        reply.response
    }

    async fn route<B>(&self, request: &Request<B>, path: &CanonicalPath<'_>) -> (Handler, Reply) {
        let route = path.route();
        let handler = match route {
            Route::Token => Handler::Token,
            Route::RoleName => Handler::RoleName,
            Route::Credentials(_) => Handler::Credentials,
            Route::Info => Handler::Info,
            Route::Versions | Route::Trees => Handler::Root,
            Route::Other | Route::Closed => Handler::Forward,
        };
        let method = request.method();
        let served = match route {
            Route::Token => *method == Method::PUT,
            _ => matches!(*method, Method::GET | Method::HEAD),
        };
        if !served {
            let allowed = if handler == Handler::Token {
                "PUT"
            } else {
                "GET, HEAD"
            };
            let reply = Reply::refuse(
                Outcome::BadRequest,
                "this path does not support the method\n",
            )
            .with_status(StatusCode::METHOD_NOT_ALLOWED)
            .with_header(ALLOW, HeaderValue::from_static(allowed));
            return (handler, reply);
        }
        let headers = request.headers();
        let reply = match route {
            Route::Token => self.token(headers).await,
            Route::RoleName => {
                self.with_pod(headers, |entry, now| {
                    self.server.credentials.allowed(entry, now, |allowed| {
                        Attempt::Done(Reply::ok(allowed.role_name.clone()))
                    })
                })
                .await
            }
            Route::Info => {
                self.with_pod(headers, |entry, now| {
                    self.server.credentials.allowed(entry, now, |allowed| {
                        Attempt::Done(Reply::ok(document::info(&allowed.role, allowed.since)))
                    })
                })
                .await
            }
            Route::Credentials(name) => {
                self.with_pod(headers, |entry, now| {
                    self.server.credentials.allowed(entry, now, |allowed| {
                        self.credentials(entry, allowed, name, now)
                    })
                })
                .await
            }
            Route::Versions => self.static_list(headers, VERSIONS).await,
            Route::Trees => self.static_list(headers, TREES).await,
            Route::Closed => Reply::refuse(Outcome::ClosedPath, "pods may not read this path\n"),
            Route::Other => self.forward_path(headers, method, path).await,
        };
        (handler, reply)
    }

    /// Responds with a list that is not specific to a pod. Clients use it to discover the service,
    /// and send an invalid token to find out whether tokens are checked.
    async fn static_list(&self, headers: &HeaderMap, list: &'static str) -> Reply {
        let done = || Reply::ok(Bytes::from_static(list.as_bytes()));
        if headers.contains_key(&TOKEN) {
            return self.with_pod(headers, |_, _| Attempt::Done(done())).await;
        }
        self.without_token().unwrap_or_else(done)
    }

    /// Forwards the request of a known pod. Until pods are known, every client may read the safe
    /// paths, so that a node can start without its API server.
    async fn forward_path(
        &self,
        headers: &HeaderMap,
        method: &Method,
        path: &CanonicalPath<'_>,
    ) -> Reply {
        let refused =
            if self.server.credentials.pod_table.has_synced() || headers.contains_key(&TOKEN) {
                let pass = |_: &Arc<PodEntry>, _| Attempt::Done(Reply::ok(Bytes::new()));
                let identified = self.with_pod(headers, pass).await;
                (identified.outcome != Outcome::Ok).then_some(identified)
            } else {
                self.without_token()
            };
        match refused {
            Some(refused) => refused,
            None => {
                let uid = self.uid.get();
                let forwarded = forward::forward(&self.server, &self.connection, uid, method, path);
                // Boxed like everything that waits: a response without waiting should not move a
                // large future.
                Box::pin(forwarded).await
            }
        }
    }

    async fn token(&self, headers: &HeaderMap) -> Reply {
        if headers.contains_key(&FORWARDED_FOR) {
            return Reply::refuse(
                Outcome::BadRequest,
                "tokens are not available through proxies\n",
            )
            .with_status(StatusCode::FORBIDDEN);
        }
        let ttl = headers
            .get(&TOKEN_TTL)
            .and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok())
            .filter(|ttl| (1..=MAX_TTL_SECONDS).contains(ttl));
        let Some(ttl) = ttl else {
            let sentence = "X-aws-ec2-metadata-token-ttl-seconds must be between 1 and 21600\n";
            return Reply::refuse(Outcome::BadRequest, sentence);
        };
        self.try_respond(|now| match self.identify(now) {
            Ok(entry) => {
                let uid = &entry.workload.uid;
                let token = self.server.tokens.issue(uid, self.peer, ttl, now);
                Attempt::Done(Reply::ok(token.into()).with_header(TOKEN_TTL.clone(), ttl.into()))
            }
            // Not 404, which makes clients assume for their whole lifetime that there are no
            // tokens.
            Err(refused) => refused.map(|reply| {
                if reply.outcome == Outcome::UnknownPod {
                    reply.with_status(StatusCode::SERVICE_UNAVAILABLE)
                } else {
                    reply
                }
            }),
        })
        .await
    }

    /// Returns the denial of a request without a required token.
    fn without_token(&self) -> Option<Reply> {
        let sentence = "a metadata token is required: get one with PUT /latest/api/token\n";
        match self.server.options.imds_v2 {
            ImdsV2::Optional => None,
            ImdsV2::Required => Some(Reply::refuse(Outcome::BadToken, sentence)),
        }
    }

    /// Responds for an identified pod whose token, if sent or required, is its own.
    async fn with_pod(
        &self,
        headers: &HeaderMap,
        mut attempt: impl FnMut(&Arc<PodEntry>, Timestamp) -> Attempt<Reply>,
    ) -> Reply {
        let wrong = || {
            let sentence = "the metadata token is invalid or belongs to another pod\n";
            Reply::refuse(Outcome::BadToken, sentence)
        };
        let token = headers.get(&TOKEN).map(HeaderValue::as_bytes);
        // Checked before the client is identified: waiting cannot fix a missing or malformed token.
        match token {
            None => {
                if let Some(refused) = self.without_token() {
                    return refused;
                }
            }
            Some(token) if !TokenKeys::is_shaped(token) => return wrong(),
            Some(_) => {}
        }
        self.try_respond(|now| {
            let entry = match self.identify(now) {
                Ok(entry) => entry,
                Err(wait) => return wait,
            };
            let uid = &entry.workload.uid;
            let is_good = |token| self.server.tokens.verify(token, uid, self.peer, now);
            if token.is_none_or(is_good) {
                attempt(&entry, now)
            } else {
                Attempt::Done(wrong())
            }
        })
        .await
    }

    /// Tries to respond until the deadline. A response that is available at once needs no future
    /// and no wait permit.
    async fn try_respond(&self, mut attempt: impl FnMut(Timestamp) -> Attempt<Reply>) -> Reply {
        match attempt(self.server.credentials.clock.now()) {
            Attempt::Done(reply) => reply,
            Attempt::Wait(reply) | Attempt::WaitForSession(_, reply) => {
                Box::pin(self.retry_on_change(reply, attempt)).await
            }
        }
    }

    /// Retries on each relevant change, up to the deadline.
    async fn retry_on_change(
        &self,
        last: Reply,
        attempt: impl FnMut(Timestamp) -> Attempt<Reply>,
    ) -> Reply {
        let Some(_waiter) = self.connection.wait(self.server.credentials.clock.now()) else {
            return Reply::refuse(Outcome::Limited, "this pod has too many waiting requests\n");
        };
        self.server.credentials.retry_on_change(last, attempt).await
    }

    /// Returns the pod that positively owns the peer's address.
    fn identify(&self, now: Timestamp) -> Result<Arc<PodEntry>, Attempt<Reply>> {
        self.server
            .credentials
            .check_ready(now)
            .map_err(|refusal| Attempt::Wait(refusal.into()))?;
        let refusal = |why: &str| {
            let sentence = format!(
                "no pod on this node is known to have the address {}{why}\n",
                self.peer
            );
            Reply::refuse(Outcome::UnknownPod, sentence)
        };
        let unknown = |why: &str| Err(Attempt::Wait(refusal(why)));
        let CredentialSource {
            pod_table,
            verifier,
            ..
        } = &self.server.credentials;
        let entry = match pod_table.owner(self.peer) {
            Some(Owner::Pod(entry)) => entry,
            Some(Owner::Disputed) => return unknown(": several live pods claim it"),
            None => match verifier.recorded(self.peer, pod_table) {
                Some(entry) => entry,
                None => return unknown(""),
            },
        };
        match verifier.check(&entry.workload.uid, self.peer, &self.last_look) {
            Verdict::Same => {}
            Verdict::Changed => {
                let why = ": the address is not attached to its pod, or was attached only just now";
                return Err(Attempt::Wait(refusal(why).and_close()));
            }
            Verdict::EventsLost => {
                let sentence = "the kernel dropped events about this network, so rolegate cannot \
                                identify the client of this connection: open a new one\n";
                let reply = Reply::refuse(Outcome::NotReady, sentence);
                return Err(Attempt::Done(reply.and_close()));
            }
            Verdict::Unrecorded => {
                return unknown(": the container runtime has not recorded it for a pod");
            }
            Verdict::Unknown => return unknown(": the kernel cannot locate it"),
        }
        let uid = &entry.workload.uid;
        if self.uid.get_or_init(|| uid.clone()) != uid {
            let sentence = "this connection belonged to another pod: open a new one\n";
            let reply = Reply::refuse(Outcome::UnknownPod, sentence);
            return Err(Attempt::Done(reply.and_close()));
        }
        Ok(entry)
    }

    fn credentials(
        &self,
        entry: &PodEntry,
        allowed: &Allowed,
        name: RequestedRole<'_>,
        now: Timestamp,
    ) -> Attempt<Reply> {
        if !name.is(&allowed.role_name) && !name.is(allowed.role.as_str().as_bytes()) {
            let sentence = format!("Invalid role {name}\n");
            return Attempt::Done(Reply::refuse(Outcome::WrongRole, sentence));
        }
        let credentials = &self.server.credentials;
        credentials.session(entry, allowed, now, |session| {
            Reply::ok(session.document::<CredentialsDocument>())
        })
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotSynced => Self::refuse(
                Outcome::NotReady,
                "rolegate has not loaded its rules and workloads yet\n",
            ),
            Refusal::Stale => Self::refuse(
                Outcome::NotReady,
                "rolegate has received no update from the cluster for too long\n",
            ),
            Refusal::UnknownPod => {
                Self::refuse(Outcome::UnknownPod, "no pod on this node has this UID\n")
            }
            Refusal::NamespaceNotSynced => Self::refuse(
                Outcome::UnknownPod,
                "the namespace of this pod is not loaded yet\n",
            ),
            Refusal::UnknownServiceAccount => Self::refuse(
                Outcome::UnknownPod,
                "the service account of this pod is not known: it is not loaded yet, or was \
                 deleted\n",
            ),
            Refusal::NoRole => Self::refuse(
                Outcome::NoRole,
                "this pod has no role: annotate it with iam.amazonaws.com/role\n",
            ),
            Refusal::Denied(body) => Self::refuse(Outcome::Denied, body),
            Refusal::Failed(role, failure) => {
                let outcome = match failure.kind {
                    FailureKind::Final => Outcome::StsRefused,
                    FailureKind::Throttled | FailureKind::Temporary => Outcome::StsUnavailable,
                };
                Self::refuse(outcome, failure.owner_message(&role) + "\n")
            }
            Refusal::Fetching => Self::refuse(
                Outcome::StsUnavailable,
                "STS has not responded yet, try again\n",
            ),
        }
    }
}
