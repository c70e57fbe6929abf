//! The webhooks' HTTPS server.

mod mutate;
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
use rolegate_core::layer::Mode;
use rolegate_review::admission_review::{MAX_REVIEW_BYTES, Review, ReviewError};
use rolegate_review::outcome::{Outcome, refusal};
use rolegate_review::{ServiceAccounts, ValidationRules, validate};
use rolegate_rules::rules::RuleStore;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{self, serve_tls};
use rolegate_runtime::shares::Eviction;
use rolegate_runtime::tls::ServerTls;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use crate::injection::Injection;
use crate::metrics::injection::{InjectionMetrics, MutationEnding};
use crate::metrics::{AdmissionMetrics, Ending};
pub use mutate::MUTATE_PATH;
use peers::{Held, Peer, Peers};

/// The path of the validating webhook.
pub const PATH: &str = "/validate";
/// The path of health checks on the port of the webhooks, as in EKS's pod identity webhook.
const HEALTH_PATH: &str = "/healthz";

/// Maximum size of a body, in bytes. The API server accepts objects up to 3 MiB, and an update has
/// two.
const MAX_BODY_BYTES: usize = MAX_REVIEW_BYTES;
/// Time limit for receiving a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a review waits for rules or a namespace that was just created.
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit for the first request. API servers keep a few connections for long, and open one only
/// to send a request at once.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIME: Duration = Duration::from_secs(120);
const HEADER_BYTES: usize = 16 * 1024;
const LIFETIME: Duration = Duration::from_secs(3600);

/// The handler of reviews, shared by all connections.
#[derive(Debug)]
pub struct Webhook {
    rules: RuleStore,
    keys: AnnotationKeys,
    clock: Clock,
    metrics: AdmissionMetrics,
    peers: Arc<Peers>,
    mutating: Option<Mutating>,
}

/// The mutating webhook.
#[derive(Debug, Clone)]
pub struct Mutating {
    /// Decides about the injection.
    pub injection: Arc<Injection>,
    /// The metrics of the injection.
    pub metrics: InjectionMetrics,
    /// The readiness of the process, for health checks on the port of the webhooks.
    pub readiness: Readiness,
    /// The mode of the check that pods have the credentials of their service accounts.
    pub require: Mode,
    /// True to serve the mutating webhook alone.
    pub is_alone: bool,
}

/// A path of the server that takes reviews.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Validate,
    Mutate,
}

impl Webhook {
    /// Creates a webhook that evaluates `rules`.
    pub fn new(
        rules: RuleStore,
        keys: AnnotationKeys,
        clock: Clock,
        metrics: AdmissionMetrics,
        mutating: Option<Mutating>,
    ) -> Arc<Self> {
        Arc::new(Self {
            rules,
            keys,
            clock,
            metrics,
            peers: Peers::new(),
            mutating,
        })
    }

    /// Serves requests on `listener` until the drain begins.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: ServerTls, drain: Drain) {
        serve_tls(listener, self.limits(), drain, tls, move |peer, _| {
            Some(self.clone().connect(peer))
        })
        .await;
    }

    fn limits(&self) -> serve::Limits {
        serve::Limits {
            // Peers' limits evict connections, so there is nothing to wait for.
            connections: self.peers.most_connections(),
            first_request: FIRST_REQUEST_TIMEOUT,
            header_time: HEADER_TIME,
            header_bytes: HEADER_BYTES,
            lifetime: LIFETIME,
        }
    }

    /// Returns the service of a connection from `peer`, and its eviction.
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
        peer.begin();
        let response = match self.mutating(&request) {
            Ok(Some(mutating)) => self.mutate(mutating, request, peer).await,
            Ok(None) => self.validation(request, peer).await,
            Err(response) => response,
        };
        peer.end();
        response
    }

    /// Returns the mutating webhook if the request is for it, or the response to a request that is
    /// not a review.
    fn mutating(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Option<&Mutating>, Response<Full<Bytes>>> {
        let Some(mutating) = &self.mutating else {
            return Ok(None);
        };
        match request.uri().path() {
            MUTATE_PATH => Ok(Some(mutating)),
            HEALTH_PATH if mutating.readiness.is_ready() => Err(plain(StatusCode::OK, "ok".into())),
            HEALTH_PATH => {
                let sentence = "not ready: /readyz of the metrics port lists the reasons";
                Err(text(StatusCode::SERVICE_UNAVAILABLE, sentence.into()))
            }
            _ if mutating.is_alone => {
                let sentence = "the path of reviews is /mutate";
                Err(text(StatusCode::NOT_FOUND, sentence.into()))
            }
            _ => Ok(None),
        }
    }

    async fn validation(&self, request: Request<Incoming>, peer: &Peer) -> Response<Full<Bytes>> {
        let begin = std::time::Instant::now();
        let (ending, response) = match body(request, peer, Target::Validate).await {
            Ok((body, _memory)) => self.review(&body, peer).await,
            Err((status, sentence)) => {
                warn!(%status, reason = sentence, "the request is not a review");
                (Ending::Malformed, text(status, sentence))
            }
        };
        self.metrics.observe(ending, begin.elapsed());
        response
    }

    async fn mutate(
        &self,
        mutating: &Mutating,
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Response<Full<Bytes>> {
        let begin = std::time::Instant::now();
        let (ending, response) = match body(request, peer, Target::Mutate).await {
            Ok((body, _memory)) => match Review::parse(&body) {
                Ok(review) => {
                    peer.reviewed();
                    mutate::respond(&mutating.injection, &review).await
                }
                Err(error) => (MutationEnding::Malformed, unreadable(&error)),
            },
            Err((status, sentence)) => {
                warn!(%status, reason = sentence, "the request is not a review");
                (MutationEnding::Malformed, text(status, sentence))
            }
        };
        let took = begin.elapsed();
        mutating.metrics.observe(ending, took);
        if let Some(compatible) = mutating.metrics.compatible() {
            compatible.request(MUTATE_PATH, response.status().as_u16(), took);
        }
        response
    }

    async fn review(&self, body: &[u8], peer: &Peer) -> (Ending, Response<Full<Bytes>>) {
        let review = match Review::parse(body) {
            Ok(review) => review,
            Err(error) => return (Ending::Malformed, unreadable(&error)),
        };
        peer.reviewed();
        let outcome = self.validate(&review).await;
        self.log_outcome(&outcome, &review);
        let ending = match (outcome.is_allowed(), outcome.warnings.is_empty()) {
            (false, _) => Ending::Denied,
            (true, false) => Ending::Warned,
            (true, true) => Ending::Allowed,
        };
        (ending, json(outcome.answer(&review)))
    }

    /// Validates the review, and repeats that after each change of the rules while a dependency is
    /// not synced: a namespace and its content are often created together.
    async fn validate(&self, review: &Review<'_>) -> Outcome {
        let mut outcome = self.validate_now(review);
        if outcome.undecided.is_none() {
            return outcome;
        }
        let deadline = Instant::now() + SYNC_TIMEOUT;
        let mut changes = self.rules.changes();
        changes.mark_changed();
        while outcome.undecided.is_some()
            && matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(())))
        {
            outcome = self.validate_now(review);
        }
        outcome
    }

    fn validate_now(&self, review: &Review<'_>) -> Outcome {
        let validate = || self.validate_by_rules(review);
        // Slow reviews must not delay others on the same thread.
        if review.body().len() > peers::SMALL_BODY_BYTES
            && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread
        {
            tokio::task::block_in_place(validate)
        } else {
            validate()
        }
    }

    fn validate_by_rules(&self, review: &Review<'_>) -> Outcome {
        let snapshot = self.rules.load();
        let rules = ValidationRules {
            rules: &snapshot.admission,
            config: &snapshot.config,
            grants: &snapshot.grants,
            keys: &self.keys,
            policies: Some(&*snapshot.policies),
            accounts: self
                .mutating
                .as_ref()
                .map(|mutating| &*mutating.injection as &dyn ServiceAccounts),
        };
        let mut outcome = validate(&rules, review, self.clock.now());
        if let Some(mutating) = &self.mutating
            && mutating.require != Mode::Off
            && !snapshot
                .config
                .exempt_namespaces
                .contains(review.namespace())
            && let Some(violation) = mutate::missing(&mutating.injection, review)
        {
            outcome.add(mutating.require, violation);
        }
        outcome
    }

    fn log_outcome(&self, outcome: &Outcome, review: &Review<'_>) {
        for violation in &outcome.violations {
            self.metrics.denied(violation.denied_by);
        }
        for warning in &outcome.warnings {
            self.metrics.audited(warning.denied_by);
            warn!(
                kind = &*review.kind().kind,
                namespace = review.namespace(),
                name = review.name(),
                user = &*review.user().name,
                layer = warning.denied_by.as_str(),
                rule = warning.rule,
                reason = warning.reason,
                "request would be denied"
            );
        }
        if !outcome.is_allowed() {
            warn!(
                kind = &*review.kind().kind,
                namespace = review.namespace(),
                name = review.name(),
                user = &*review.user().name,
                reason = outcome.message(),
                "request denied"
            );
        }
    }
}

/// Reads the body of a potential review, once there is memory for it.
async fn body(
    request: Request<Incoming>,
    peer: &Peer,
    target: Target,
) -> Result<(Bytes, Held<'_>), (StatusCode, String)> {
    let refuse = |status, sentence: &str| Err((status, sentence.to_owned()));
    if target == Target::Validate && request.uri().path() != PATH {
        return refuse(StatusCode::NOT_FOUND, "the path of reviews is /validate");
    }
    if request.method() != Method::POST {
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "the method of reviews is POST",
        );
    }
    let kind = request.headers().get(CONTENT_TYPE);
    // EKS's webhook rejects parameters too, with this text.
    if target == Target::Mutate && kind.is_none_or(|kind| kind != "application/json") {
        let sentence = "Invalid Content-Type, expected application/json";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence);
    }
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        let sentence = "the content type of reviews is application/json";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence);
    }
    let too_large = || {
        let sentence = format!("the review has more than {MAX_BODY_BYTES} bytes");
        Err((StatusCode::PAYLOAD_TOO_LARGE, sentence))
    };
    let told = request.body().size_hint().upper();
    let length = told.map_or(MAX_BODY_BYTES, |told| {
        usize::try_from(told).unwrap_or(usize::MAX)
    });
    if length > MAX_BODY_BYTES {
        return too_large();
    }
    let Ok(Ok(memory)) = timeout(BODY_TIMEOUT, peer.hold(length)).await else {
        let sentence = "too many large reviews are in progress";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, sentence);
    };
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES);
    match timeout(BODY_TIMEOUT, body.collect()).await {
        Err(_) => refuse(StatusCode::REQUEST_TIMEOUT, "timed out reading the review"),
        Ok(Err(error)) if error.is::<LengthLimitError>() => too_large(),
        Ok(Err(_)) => refuse(StatusCode::BAD_REQUEST, "the review is incomplete"),
        Ok(Ok(body)) => Ok((body.to_bytes(), memory)),
    }
}

/// Returns the response to a body that is not a review: a denial if the request can be identified,
/// otherwise an error, which makes the API server apply its failure policy.
fn unreadable(error: &ReviewError) -> Response<Full<Bytes>> {
    let sentence = error.to_string();
    warn!(reason = sentence, "cannot parse a review");
    match error.uid() {
        Some(request) => json(refusal(request, &sentence)),
        None => text(StatusCode::BAD_REQUEST, sentence),
    }
}

fn plain(status: StatusCode, sentence: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(sentence));
    *response.status_mut() = status;
    response
}

fn json(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, sentence: String) -> Response<Full<Bytes>> {
    let mut response = plain(status, format!("{sentence}\n"));
    // Only API servers, which send reviews, need a persistent connection.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}
