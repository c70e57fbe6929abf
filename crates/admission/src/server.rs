//! The webhook's port: an AdmissionReview in, an AdmissionReview out.

mod peers;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_rules::rules::Rules;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::serve::{self, serve_tls};
use rolegate_runtime::shares::Eviction;
use rolegate_runtime::tls::ServerTls;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use crate::metrics::{AdmissionMetrics, Ending};
use crate::outcome::{Outcome, refusal};
use crate::review::{MAX_REVIEW, Review};
use crate::{GateRules, judge};
use peers::{Held, Peer, Peers};

/// Where the API server sends reviews.
pub const PATH: &str = "/validate";

/// Largest body. The API server takes objects of 3 MiB at most, and an update holds two.
const BODY: usize = MAX_REVIEW;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(5);
/// How long a review waits for a namespace that was made a moment ago, or for rules.
const WAIT: Duration = Duration::from_secs(1);
/// API servers keep a few connections for long, and open one only to send something at once.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
const HEADER_TIME: Duration = Duration::from_secs(120);
const HEADER_BYTES: usize = 16 * 1024;
const LIFETIME: Duration = Duration::from_secs(3600);

/// What answers reviews. Shared by all connections.
#[derive(Debug)]
pub struct Webhook {
    rules: Rules,
    keys: AnnotationKeys,
    clock: Clock,
    metrics: AdmissionMetrics,
    peers: Arc<Peers>,
}

impl Webhook {
    /// A webhook that judges by `rules`.
    pub fn new(
        rules: Rules,
        keys: AnnotationKeys,
        clock: Clock,
        metrics: AdmissionMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            rules,
            keys,
            clock,
            metrics,
            peers: Peers::new(),
        })
    }

    /// Answers on `listener` until the drain has begun.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: ServerTls, drain: Drain) {
        serve_tls(listener, self.limits(), drain, tls, move |peer, _| {
            Some(self.clone().connect(peer))
        })
        .await;
    }

    fn limits(&self) -> serve::Limits {
        serve::Limits {
            // The limits of peers evict others and are never waited for.
            connections: self.peers.most_connections(),
            first_request: FIRST_REQUEST,
            header_time: HEADER_TIME,
            header_bytes: HEADER_BYTES,
            lifetime: LIFETIME,
        }
    }

    /// What answers on a connection of `peer`, and what ends it for another one.
    fn connect(
        self: Arc<Self>,
        peer: SocketAddr,
    ) -> (
        impl Service<
            Request<Incoming>,
            Response = Response<Full<Bytes>>,
            Error = Infallible,
            Future: Send,
        > + Send
        + 'static,
        Eviction,
    ) {
        let (peer, eviction, evicted) = self.peers.connect(peer.ip());
        if let Some(limit) = evicted {
            self.metrics.connection_closed(limit);
        }
        let service = service_fn(move |request| {
            let (webhook, peer) = (self.clone(), peer.clone());
            async move { Ok::<_, Infallible>(webhook.answer(request, &peer).await) }
        });
        (service, eviction)
    }

    async fn answer(&self, request: Request<Incoming>, peer: &Peer) -> Response<Full<Bytes>> {
        let begin = std::time::Instant::now();
        peer.begin();
        let (ending, response) = match body(request, peer).await {
            Ok((body, _memory)) => self.review(&body, peer).await,
            Err((status, sentence)) => {
                warn!(%status, reason = sentence, "the request is not a review");
                (Ending::Malformed, text(status, sentence))
            }
        };
        peer.end();
        self.metrics.observe(ending, begin.elapsed());
        response
    }

    async fn review(&self, body: &[u8], peer: &Peer) -> (Ending, Response<Full<Bytes>>) {
        let review = match Review::parse(body) {
            Ok(review) => review,
            Err(error) => {
                let sentence = error.to_string();
                warn!(reason = sentence, "cannot read a review");
                let response = match error.uid() {
                    Some(uid) => json(refusal(uid, &sentence)),
                    None => text(StatusCode::BAD_REQUEST, sentence),
                };
                return (Ending::Malformed, response);
            }
        };
        peer.reviewed();
        let outcome = self.judge(&review).await;
        self.tell(&outcome, &review);
        let ending = match (outcome.is_allowed(), outcome.warnings.is_empty()) {
            (false, _) => Ending::Denied,
            (true, false) => Ending::Warned,
            (true, true) => Ending::Allowed,
        };
        (ending, json(outcome.answer(&review)))
    }

    /// Judges, once more with each change of the rules while something was not seen yet: a
    /// namespace and what is in it are often made in one go.
    async fn judge(&self, review: &Review<'_>) -> Outcome {
        let mut outcome = self.judge_now(review);
        if outcome.undecided.is_none() {
            return outcome;
        }
        let deadline = Instant::now() + WAIT;
        let mut changes = self.rules.changes();
        changes.mark_changed();
        while outcome.undecided.is_some()
            && matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(())))
        {
            outcome = self.judge_now(review);
        }
        outcome
    }

    fn judge_now(&self, review: &Review<'_>) -> Outcome {
        let judge = || self.judge_by_rules(review);
        // What takes long leaves its thread's other reviews to another thread.
        if review.body().len() > peers::SMALL
            && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread
        {
            tokio::task::block_in_place(judge)
        } else {
            judge()
        }
    }

    fn judge_by_rules(&self, review: &Review<'_>) -> Outcome {
        let snapshot = self.rules.load();
        let rules = GateRules {
            rules: &snapshot.gate,
            config: &snapshot.config,
            grants: &snapshot.grants,
            keys: &self.keys,
            policies: Some(&*snapshot.policies),
        };
        judge(&rules, review, self.clock.now())
    }

    fn tell(&self, outcome: &Outcome, review: &Review<'_>) {
        for fault in &outcome.faults {
            self.metrics.denied(fault.layer);
        }
        for warning in &outcome.warnings {
            self.metrics.audited(warning.layer);
            warn!(
                kind = %review.kind().kind,
                namespace = review.namespace(),
                name = review.name(),
                user = %review.user().name,
                layer = warning.layer,
                rule = warning.rule,
                reason = warning.reason,
                "request would be denied"
            );
        }
        if !outcome.is_allowed() {
            warn!(
                kind = %review.kind().kind,
                namespace = review.namespace(),
                name = review.name(),
                user = %review.user().name,
                reason = outcome.message(),
                "request denied"
            );
        }
    }
}

/// Reads the body of a request that may be a review, once there is memory for it.
async fn body(
    request: Request<Incoming>,
    peer: &Peer,
) -> Result<(Bytes, Held<'_>), (StatusCode, String)> {
    let refuse = |status, sentence: &str| Err((status, sentence.to_owned()));
    if request.uri().path() != PATH {
        return refuse(StatusCode::NOT_FOUND, "reviews go to /validate");
    }
    if request.method() != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "reviews are sent by POST");
    }
    let kind = request.headers().get(CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        let sentence = "reviews are application/json";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence);
    }
    let too_large = || {
        let sentence = format!("the review has more than {BODY} bytes");
        Err((StatusCode::PAYLOAD_TOO_LARGE, sentence))
    };
    let told = request.body().size_hint().upper();
    let length = told.map_or(BODY, |told| usize::try_from(told).unwrap_or(usize::MAX));
    if length > BODY {
        return too_large();
    }
    let Ok(Ok(memory)) = timeout(BODY_TIME, peer.hold(length)).await else {
        let sentence = "there is no room for large reviews at the moment";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, sentence);
    };
    let body = Limited::new(request.into_body(), BODY);
    match timeout(BODY_TIME, body.collect()).await {
        Err(_) => refuse(
            StatusCode::REQUEST_TIMEOUT,
            "the review took too long to arrive",
        ),
        Ok(Err(error)) if error.is::<LengthLimitError>() => too_large(),
        Ok(Err(_)) => refuse(StatusCode::BAD_REQUEST, "the review broke off"),
        Ok(Ok(body)) => Ok((body.to_bytes(), memory)),
    }
}

fn json(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, sentence: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{sentence}\n")));
    *response.status_mut() = status;
    // API servers send reviews: nobody else needs the connection.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}
