//! What a request means and what it gets.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use rolegate_aws::sessions::{Current, Lease};
use rolegate_core::arn::RoleArn;
use rolegate_core::document;
use rolegate_core::metadata::{CanonicalPath, RequestedRole, Route, TREES, VERSIONS};
use rolegate_core::session::{Failure, FailureKind};
use rolegate_standing::resident::{Allowed, Resident, Standing};

use super::answer::{Answer, AnswerBody};
use super::screen::{Screened, screen};
use super::{Door, ImdsV2, forward};
use crate::attachment::Verdict;
use crate::guard::LastLook;
use crate::limits::Connection;
use crate::metrics::{Handler, Outcome};
use crate::picture::Owner;
use crate::token::{MAX_TTL_SECONDS, TokenKeys};

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const FORWARDED_FOR: &str = "x-forwarded-for";

/// One connection of a pod.
#[derive(Debug)]
pub(super) struct Visit {
    door: Arc<Door>,
    connection: Connection,
    /// The pod's address. A name that the pod sends is never asked for it.
    peer: IpAddr,
    own: IpAddr,
    last_look: LastLook,
    /// The pod that the connection was first found to be of. Another one that gets the address
    /// gets connections of its own.
    uid: OnceLock<Arc<str>>,
}

/// How far a look at the picture got.
enum Look<T> {
    Done(T),
    /// A change of the picture may bring more; at the deadline this is the answer.
    Wait(Answer),
    /// A change of this session may bring more.
    WaitForSession(Arc<Lease>, Answer),
}

impl Look<Answer> {
    /// The same with another answer.
    fn map(self, change: impl FnOnce(Answer) -> Answer) -> Self {
        match self {
            Self::Done(answer) => Self::Done(change(answer)),
            Self::Wait(answer) => Self::Wait(change(answer)),
            Self::WaitForSession(lease, answer) => Self::WaitForSession(lease, change(answer)),
        }
    }
}

impl Visit {
    pub(super) fn new(
        door: Arc<Door>,
        connection: Connection,
        peer: IpAddr,
        own: IpAddr,
    ) -> Arc<Self> {
        let last_look = door.guard.opened(peer);
        // Looked at as it opens: a neighbour that opened it while it held the address must not be
        // able to wait until the address is back at its pod.
        if let Some(Owner::Pod(resident)) = door.picture.owner(peer) {
            let _ = door.guard.check(&resident.workload.uid, peer, &last_look);
        }
        Arc::new(Self {
            door,
            connection,
            peer,
            own,
            last_look,
            uid: OnceLock::new(),
        })
    }

    /// Answers one request, and counts it.
    pub(super) async fn answer<B>(self: Arc<Self>, request: Request<B>) -> Response<AnswerBody> {
        let begun = Instant::now();
        self.connection.begin(begun);
        let (handler, mut answer) = match screen(&request, self.peer, self.own) {
            Ok(Screened::Path(path)) => self.route(&request, &path).await,
            Ok(Screened::Health) => (Handler::Health, self.door.health.page()),
            Err(refused) => refused,
        };
        let took = begun.elapsed();
        if self.connection.end(begun + took) {
            answer = answer.and_close();
        }
        let metrics = &self.door.metrics;
        metrics.request(handler, answer.outcome, took);
        if let Some(kube2iam) = metrics.kube2iam() {
            let status = answer.response.status();
            kube2iam.request(handler, answer.outcome, request.method(), status, took);
        }
        tracing::debug!(
            peer = %self.peer,
            method = %request.method(),
            path = request.uri().path(),
            status = answer.response.status().as_u16(),
            outcome = answer.outcome.as_str(),
            ?took,
            "request"
        );
        answer.response
    }

    async fn route<B>(&self, request: &Request<B>, path: &CanonicalPath<'_>) -> (Handler, Answer) {
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
            let answer = Answer::refuse(Outcome::BadRequest, "this method is not for this path\n")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
                .with_header("allow", HeaderValue::from_static(allowed));
            return (handler, answer);
        }
        let headers = request.headers();
        let answer = match route {
            Route::Token => self.token(headers).await,
            Route::RoleName => {
                self.settled(headers, |resident, now| {
                    self.allowed(resident, now, |allowed| {
                        Look::Done(Answer::ok(allowed.listed.clone()))
                    })
                })
                .await
            }
            Route::Info => {
                self.settled(headers, |resident, now| {
                    self.allowed(resident, now, |allowed| {
                        Look::Done(Answer::ok(document::info(&allowed.role, allowed.since)))
                    })
                })
                .await
            }
            Route::Credentials(name) => {
                self.settled(headers, |resident, now| {
                    self.allowed(resident, now, |allowed| {
                        self.credentials(resident, allowed, name, now)
                    })
                })
                .await
            }
            Route::Versions => self.listed(headers, VERSIONS).await,
            Route::Trees => self.listed(headers, TREES).await,
            Route::Closed => Answer::refuse(Outcome::ClosedPath, "pods may not read this path\n"),
            Route::Other => self.forwarded(headers, method, path).await,
        };
        (handler, answer)
    }

    /// Answers a list that isn't specific to a pod. Clients use it to discover the service, and use
    /// a wrong token to find out whether tokens are checked.
    async fn listed(&self, headers: &HeaderMap, list: &'static str) -> Answer {
        let done = || Answer::ok(Bytes::from_static(list.as_bytes()));
        if headers.contains_key(TOKEN) {
            return self.settled(headers, |_, _| Look::Done(done())).await;
        }
        self.without_token().unwrap_or_else(done)
    }

    /// Hands the request on for a pod that is known. Before any pod is known the safe paths are
    /// open to all who get here, so that a node can start without its API server.
    async fn forwarded(
        &self,
        headers: &HeaderMap,
        method: &Method,
        path: &CanonicalPath<'_>,
    ) -> Answer {
        let refused = if self.door.picture.is_settled() || headers.contains_key(TOKEN) {
            let pass = |_: &Arc<Resident>, _| Look::Done(Answer::ok(Bytes::new()));
            let identified = self.settled(headers, pass).await;
            (identified.outcome != Outcome::Ok).then_some(identified)
        } else {
            self.without_token()
        };
        match refused {
            Some(refused) => refused,
            None => {
                let uid = self.uid.get();
                let forwarded = forward::forward(&self.door, &self.connection, uid, method, path);
                // Boxed, as all that waits: what is answered at once is not to move its memory
                // about.
                Box::pin(forwarded).await
            }
        }
    }

    async fn token(&self, headers: &HeaderMap) -> Answer {
        if headers.contains_key(FORWARDED_FOR) {
            return Answer::refuse(
                Outcome::BadRequest,
                "tokens are not given through proxies\n",
            )
            .with_status(StatusCode::FORBIDDEN);
        }
        let ttl = headers
            .get(TOKEN_TTL)
            .and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok())
            .filter(|ttl| (1..=MAX_TTL_SECONDS).contains(ttl));
        let Some(ttl) = ttl else {
            let sentence = "send X-aws-ec2-metadata-token-ttl-seconds from 1 to 21600\n";
            return Answer::refuse(Outcome::BadRequest, sentence);
        };
        self.look(|now| match self.identify(now) {
            Ok(resident) => {
                let uid = &resident.workload.uid;
                let token = self.door.tokens.issue(uid, self.peer, ttl, now);
                Look::Done(Answer::ok(token.into()).with_header(TOKEN_TTL, ttl.into()))
            }
            // Not 404, by which clients learn that there are no tokens here, for all their life.
            Err(refused) => refused.map(|answer| {
                if answer.outcome == Outcome::UnknownPod {
                    answer.with_status(StatusCode::SERVICE_UNAVAILABLE)
                } else {
                    answer
                }
            }),
        })
        .await
    }

    /// The refusal of a request without a token, where one is demanded.
    fn without_token(&self) -> Option<Answer> {
        let sentence = "a metadata token is demanded: get one by PUT /latest/api/token\n";
        match self.door.options.imds_v2 {
            ImdsV2::Optional => None,
            ImdsV2::Required => Some(Answer::refuse(Outcome::BadToken, sentence)),
        }
    }

    /// Looks with an identified pod whose token, if any is sent or demanded, is its own.
    async fn settled(
        &self,
        headers: &HeaderMap,
        mut look: impl FnMut(&Arc<Resident>, Timestamp) -> Look<Answer>,
    ) -> Answer {
        let wrong = || {
            let sentence = "the metadata token is not valid, or not this pod's\n";
            Answer::refuse(Outcome::BadToken, sentence)
        };
        let token = headers.get(TOKEN).map(HeaderValue::as_bytes);
        // Checked before the client is identified: waiting can't fix a missing or malformed token.
        match token {
            None => {
                if let Some(refused) = self.without_token() {
                    return refused;
                }
            }
            Some(token) if !TokenKeys::is_shaped(token) => return wrong(),
            Some(_) => {}
        }
        self.look(|now| {
            let resident = match self.identify(now) {
                Ok(resident) => resident,
                Err(wait) => return wait,
            };
            let uid = &resident.workload.uid;
            let is_good = |token| self.door.tokens.verify(token, uid, self.peer, now);
            if token.is_none_or(is_good) {
                look(&resident, now)
            } else {
                Look::Done(wrong())
            }
        })
        .await
    }

    /// Looks until it is done or the deadline comes. What is there is answered at once, with no
    /// future made and nothing counted.
    async fn look(&self, mut look: impl FnMut(Timestamp) -> Look<Answer>) -> Answer {
        match look(self.door.clock.now()) {
            Look::Done(answer) => answer,
            Look::Wait(answer) | Look::WaitForSession(_, answer) => {
                Box::pin(self.look_on(answer, look)).await
            }
        }
    }

    /// Looks again with each change that may bring more, up to the deadline.
    async fn look_on(
        &self,
        mut last: Answer,
        mut look: impl FnMut(Timestamp) -> Look<Answer>,
    ) -> Answer {
        let Some(_waiter) = self.connection.wait(self.door.clock.now()) else {
            return Answer::refuse(
                Outcome::Limited,
                "too many requests of this pod are waiting\n",
            );
        };
        let waiting = async {
            let mut changes = self.door.picture.changes();
            loop {
                // Looked at after following, so that no change falls between.
                match look(self.door.clock.now()) {
                    Look::Done(answer) => return answer,
                    Look::Wait(answer) => {
                        last = answer;
                        changes.next().await;
                    }
                    Look::WaitForSession(lease, answer) => {
                        last = answer;
                        // Hears of what happens from here on, polled or not.
                        let changed = lease.cell().changed();
                        if let Look::Done(answer) = look(self.door.clock.now()) {
                            return answer;
                        }
                        tokio::select! {
                            () = changed => {}
                            () = changes.next() => {}
                        }
                    }
                }
            }
        };
        match tokio::time::timeout(self.door.options.wait, waiting).await {
            Ok(answer) => answer,
            Err(_) => last,
        }
    }

    /// The pod that has the peer's address, positively.
    fn identify(&self, now: Timestamp) -> Result<Arc<Resident>, Look<Answer>> {
        let not_ready =
            |sentence: &'static str| Err(Look::Wait(Answer::refuse(Outcome::NotReady, sentence)));
        if !self.door.picture.is_settled() {
            return not_ready("rolegate has not loaded its rules and workloads yet\n");
        }
        if !self
            .door
            .guard
            .is_young(self.door.options.max_picture_age, now)
        {
            return not_ready("rolegate has not heard of the cluster for too long\n");
        }
        let refusal = |why: &str| {
            let sentence = format!(
                "no pod of this node is known by the address {}{why}\n",
                self.peer
            );
            Answer::refuse(Outcome::UnknownPod, sentence)
        };
        let unknown = |why: &str| Err(Look::Wait(refusal(why)));
        let resident = match self.door.picture.owner(self.peer) {
            Some(Owner::Pod(resident)) => resident,
            Some(Owner::Disputed) => return unknown(": several live pods claim it"),
            None => return unknown(""),
        };
        let guard = &self.door.guard;
        match guard.check(&resident.workload.uid, self.peer, &self.last_look) {
            Verdict::Same => {}
            Verdict::Changed => {
                let why = ": it is, or was a moment ago, elsewhere than its pod";
                return Err(Look::Wait(refusal(why).and_close()));
            }
            Verdict::EventsLost => {
                let sentence = "the kernel dropped events about this network, so rolegate can't tell \
                                whose this connection is: open a new one\n";
                let answer = Answer::refuse(Outcome::NotReady, sentence);
                return Err(Look::Done(answer.and_close()));
            }
            Verdict::Unrecorded => {
                return unknown(": the container runtime has not recorded that its pod has it");
            }
            Verdict::Unknown => return unknown(": the kernel does not know where it is"),
        }
        let uid = &resident.workload.uid;
        if self.uid.get_or_init(|| uid.clone()) != uid {
            let sentence = "this connection was another pod's, open a new one\n";
            let answer = Answer::refuse(Outcome::UnknownPod, sentence);
            return Err(Look::Done(answer.and_close()));
        }
        Ok(resident)
    }

    /// Looks further for a pod that may have its role; tells the owner of one that may not.
    fn allowed(
        &self,
        resident: &Resident,
        now: Timestamp,
        look: impl FnOnce(&Allowed) -> Look<Answer>,
    ) -> Look<Answer> {
        match &self.door.judge.standing(resident, now).standing {
            Standing::Allowed(allowed) => look(allowed),
            Standing::Undecided => Look::Wait(Answer::refuse(
                Outcome::UnknownPod,
                "the namespace of this pod has not been seen yet\n",
            )),
            Standing::NoRole => Look::Done(Answer::refuse(
                Outcome::NoRole,
                "this pod has no role: annotate it with iam.amazonaws.com/role\n",
            )),
            Standing::Denied { denial, body } => {
                self.door.metrics.denied(denial.layer);
                self.door.tell.denied(resident, denial, now);
                Look::Done(Answer::refuse(Outcome::Denied, body.clone()))
            }
        }
    }

    fn credentials(
        &self,
        resident: &Resident,
        allowed: &Allowed,
        name: RequestedRole<'_>,
        now: Timestamp,
    ) -> Look<Answer> {
        if !name.is(&allowed.listed) && !name.is(allowed.role.as_str().as_bytes()) {
            let sentence = format!("Invalid role {name}\n");
            return Look::Done(Answer::refuse(Outcome::WrongRole, sentence));
        }
        for denial in &allowed.audited {
            self.door.metrics.audited(denial.layer);
            self.door.tell.audited(resident, denial, now);
        }
        match allowed.lease.cell().current(now) {
            Current::Live(session) => {
                self.door.metrics.allowed();
                self.door.tell.served(resident, allowed, &session, now);
                Look::Done(Answer::ok(session.document.bytes()))
            }
            Current::Failed(failure) => {
                self.door
                    .tell
                    .failing(resident, &allowed.role, &failure, now);
                Look::Done(failed(&allowed.role, &failure))
            }
            Current::Fetching => {
                allowed.lease.ask();
                let sentence = "STS has not answered yet, try again\n";
                let answer = Answer::refuse(Outcome::StsUnavailable, sentence);
                Look::WaitForSession(allowed.lease.clone(), answer)
            }
        }
    }
}

fn failed(role: &RoleArn, failure: &Failure) -> Answer {
    let outcome = match failure.kind {
        FailureKind::Final => Outcome::StsRefused,
        FailureKind::Throttled | FailureKind::Temporary => Outcome::StsUnavailable,
    };
    Answer::refuse(outcome, failure.to_owner(role) + "\n")
}
