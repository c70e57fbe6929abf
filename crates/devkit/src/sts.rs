//! A stand-in for AWS STS: `AssumeRole`, `AssumeRoleWithWebIdentity` and `GetCallerIdentity` of the
//! query protocol, with AWS's parameter rules, signatures and errors.

mod access_key;
mod keys;
mod request;
mod role;
mod signature;
mod trust_policy;
mod web_identity;
mod xml;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Method, Request};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::http::{Answer, Server, read_body};
use crate::ids;
use crate::recent::{Recent, lock};
pub use access_key::AccessKey;
use keys::{Caller, Keys};
pub use request::{IdentityToken, StsCall};
use role::Role;
pub use trust_policy::InvalidTrustPolicy;
use trust_policy::TrustPolicy;
pub use web_identity::{InvalidOidcProvider, OidcProvider};
use web_identity::{WebIdentities, WebIdentity};
use xml::Element;

const MAX_BODY: usize = 256 * 1024;
/// Maximum duration of a session, in seconds.
const MAX_DURATION: u32 = 43_200;
const MAX_CHAINED_DURATION: u32 = 3_600;
const DEFAULT_DURATION: u32 = 3_600;
const WEB_IDENTITY: &str = "AssumeRoleWithWebIdentity";

/// The initial behavior of the service.
#[derive(Clone, Debug)]
pub struct StsOptions {
    /// Access keys by ID, to verify signatures. `None`: signatures are not verified, and clients
    /// without a session from this service are `caller_arn`.
    pub keys: Option<HashMap<String, AccessKey>>,
    /// The caller if signatures are not verified.
    pub caller_arn: String,
    /// The latency of each call.
    pub latency: Duration,
}

impl Default for StsOptions {
    fn default() -> Self {
        Self {
            keys: None,
            caller_arn: "arn:aws:iam::123456789012:user/devkit".into(),
            latency: Duration::ZERO,
        }
    }
}

/// An error to return for calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StsFailure {
    /// HTTP status.
    pub status: u16,
    /// AWS's error code, such as `Throttling`.
    pub code: String,
    /// The error message.
    pub message: String,
    /// The number of calls that fail. `None`: all until further notice.
    pub times: Option<u32>,
}

impl StsFailure {
    /// Creates a failure of every call.
    pub fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            times: None,
        }
    }

    /// Limits the failure to the next `times` calls.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// A running STS stand-in. It stops when dropped.
#[derive(Debug)]
pub struct Sts {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    keys: Keys,
    latency: Duration,
    lifetime: Option<Duration>,
    failure: Option<StsFailure>,
    quota: Option<u32>,
    /// The current second, and the number of accepted calls in it.
    second: (i64, u32),
    roles: HashMap<String, Role>,
    web_identities: WebIdentities,
    calls: Recent<StsCall>,
    count: u64,
    in_flight: usize,
    max_in_flight: usize,
}

impl Sts {
    /// Starts the service on `bind`.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound.
    pub async fn start(bind: SocketAddr, options: StsOptions) -> io::Result<Self> {
        let state = Arc::new(State {
            inner: Mutex::new(Inner {
                latency: options.latency,
                keys: Keys::new(options.keys, options.caller_arn),
                lifetime: None,
                failure: None,
                quota: None,
                second: (0, 0),
                roles: HashMap::new(),
                web_identities: WebIdentities::default(),
                calls: Recent::default(),
                count: 0,
                in_flight: 0,
                max_in_flight: 0,
            }),
        });
        let served = state.clone();
        let server = Server::start(bind, move |request| {
            let state = served.clone();
            async move { state.answer(request).await }
        })
        .await?;
        Ok(Self { server, state })
    }

    /// Returns the bound address.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Returns the endpoint: `http://` and the address, without a trailing slash.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Stops the service and waits until its port is free.
    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// Sets the latency of later calls.
    pub fn set_latency(&self, latency: Duration) {
        lock(&self.state.inner).latency = latency;
    }

    /// Sets the validity of sessions, whatever duration was requested. `None` resets it.
    pub fn set_lifetime(&self, lifetime: Option<Duration>) {
        lock(&self.state.inner).lifetime = lifetime;
    }

    /// Makes all calls fail. `None` resets it.
    pub fn fail_with(&self, failure: Option<StsFailure>) {
        lock(&self.state.inner).failure = failure;
    }

    /// Makes `AssumeRole` of one role fail, by its ARN. `None` resets it.
    pub fn fail_role(&self, role_arn: &str, failure: Option<StsFailure>) {
        self.role(role_arn, |role| role.failure = failure);
    }

    /// Throttles calls above this number per second. `None` resets it.
    pub fn set_quota(&self, calls_per_second: Option<u32>) {
        lock(&self.state.inner).quota = calls_per_second;
    }

    /// Makes the role's trust policy deny all callers (`AccessDenied`).
    pub fn deny_role(&self, role_arn: &str) {
        self.role(role_arn, |role| role.denied = true);
    }

    /// Reverts [`deny_role`](Self::deny_role).
    pub fn allow_role(&self, role_arn: &str) {
        self.role(role_arn, |role| role.denied = false);
    }

    /// Limits the role's trust policy to these ARNs of users and roles (roles without path). Empty:
    /// all callers.
    pub fn trust_only(&self, role_arn: &str, principals: &[&str]) {
        self.role(role_arn, |role| {
            role.trusted = principals.iter().map(|arn| (*arn).to_owned()).collect();
        });
    }

    /// Sets whether the role's trust policy denies a source identity.
    pub fn deny_source_identity(&self, role_arn: &str, denied: bool) {
        self.role(role_arn, |role| role.source_identity_denied = denied);
    }

    /// Sets whether the role's trust policy denies session tags.
    pub fn deny_tagging(&self, role_arn: &str, denied: bool) {
        self.role(role_arn, |role| role.tagging_denied = denied);
    }

    /// Makes the role's trust policy require this external ID. `None` resets it.
    pub fn require_external_id(&self, role_arn: &str, external_id: Option<&str>) {
        self.role(role_arn, |role| {
            role.external_id = external_id.map(Into::into)
        });
    }

    /// Sets the role's `MaxSessionDuration` in seconds (default: 12 hours).
    pub fn set_max_session_duration(&self, role_arn: &str, seconds: u32) {
        self.role(role_arn, |role| role.max_duration = Some(seconds));
    }

    /// Sets the role's trust policy, a JSON document. Roles without one can be assumed by all callers
    /// of `AssumeRole`, and by no web identity.
    ///
    /// # Errors
    /// Returns an error if the policy contains anything that is not evaluated here.
    pub fn set_trust_policy(&self, role_arn: &str, policy: &str) -> Result<(), InvalidTrustPolicy> {
        let policy = TrustPolicy::parse(policy)?;
        self.role(role_arn, |role| role.policy = Some(policy));
        Ok(())
    }

    /// Creates or replaces an OIDC provider, whose tokens `AssumeRoleWithWebIdentity` accepts.
    ///
    /// # Errors
    /// Returns an error if IAM does not accept such a provider.
    pub fn create_oidc_provider(&self, provider: OidcProvider) -> Result<(), InvalidOidcProvider> {
        let identities = &mut lock(&self.state.inner).web_identities;
        identities.create_provider(provider)
    }

    /// Sets the clock skew that is accepted in identity tokens (default: 5 minutes, as in AWS).
    pub fn set_token_leeway(&self, leeway: Duration) {
        let leeway = SignedDuration::try_from(leeway).unwrap_or(SignedDuration::MAX);
        lock(&self.state.inner).web_identities.leeway = leeway;
    }

    /// Returns the last 10,000 calls in order of arrival, including failed ones.
    pub fn calls(&self) -> Vec<StsCall> {
        lock(&self.state.inner).calls.to_vec()
    }

    /// Returns the number of calls since the start.
    pub fn count(&self) -> u64 {
        lock(&self.state.inner).count
    }

    /// Returns the number of calls in flight.
    pub fn in_flight(&self) -> usize {
        lock(&self.state.inner).in_flight
    }

    /// Returns the maximum number of concurrent calls so far.
    pub fn max_in_flight(&self) -> usize {
        lock(&self.state.inner).max_in_flight
    }

    fn role(&self, arn: &str, change: impl FnOnce(&mut Role)) {
        change(lock(&self.state.inner).roles.entry(arn.into()).or_default());
    }
}

/// An error in the format of STS.
#[derive(Debug)]
struct Refusal {
    status: u16,
    code: String,
    message: String,
}

impl Refusal {
    fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
        }
    }

    fn access_denied(caller: &Caller, action: &str, role_arn: &str) -> Self {
        let message = format!(
            "User: {} is not authorized to perform: sts:{action} on resource: {role_arn}",
            caller.arn
        );
        Self::new(403, "AccessDenied", message)
    }
}

impl From<StsFailure> for Refusal {
    fn from(failure: StsFailure) -> Self {
        Self {
            status: failure.status,
            code: failure.code,
            message: failure.message,
        }
    }
}

/// Consumes one of the failure's times.
fn take(failure: &mut Option<StsFailure>) -> Option<StsFailure> {
    let taken = failure.clone()?;
    if let Some(StsFailure {
        times: Some(times), ..
    }) = failure
    {
        if *times <= 1 {
            *failure = None;
        } else {
            *times -= 1;
        }
    }
    taken.times.is_none_or(|times| times > 0).then_some(taken)
}

/// Counts a call as in flight until it is dropped, even if it is cancelled.
struct InFlight<'a>(&'a State);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(&self.0.inner).in_flight -= 1;
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let request_id = ids::uuid();
        let (parts, body) = request.into_parts();
        let outcome = match read_body(body, MAX_BODY).await {
            Some(body) => self.call(&parts, &body).await,
            None => Err(Refusal::new(
                413,
                "RequestEntityTooLarge",
                "The body is too long, broke off or came too slowly.",
            )),
        };
        match outcome {
            Ok((action, result)) => xml::success(action, result, &request_id),
            Err(refusal) => xml::error(&refusal, &request_id),
        }
    }

    async fn call(
        &self,
        parts: &Parts,
        body: &[u8],
    ) -> Result<(&'static str, Vec<Element>), Refusal> {
        let form = match parts.method {
            Method::POST => body,
            _ => parts.uri.query().unwrap_or_default().as_bytes(),
        };
        let call = StsCall::parse(form, &parts.headers);
        let (_in_flight, latency) = self.begin(call.clone());
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let now = Timestamp::now();
        self.admit(now)?;
        // The only action without a signature: the token identifies the caller.
        if (call.action.as_str(), call.version.as_str()) == (WEB_IDENTITY, request::VERSION) {
            let result = self.assume_role_with_web_identity(call, now).await?;
            return Ok((WEB_IDENTITY, result));
        }
        let mut inner = lock(&self.inner);
        let caller = inner.keys.authenticate(parts, body, now)?;
        match (call.action.as_str(), call.version.as_str()) {
            ("AssumeRole", request::VERSION) => {
                Ok(("AssumeRole", inner.assume_role(&call, &caller, now)?))
            }
            ("GetCallerIdentity", request::VERSION) => Ok(("GetCallerIdentity", caller.describe())),
            ("", _) => Err(Refusal::new(
                400,
                "MissingAction",
                "The request has no Action.",
            )),
            (action, version) => {
                let version = if version.is_empty() {
                    "NO_VERSION_SPECIFIED"
                } else {
                    version
                };
                let message = format!("Could not find operation {action} for version {version}");
                Err(Refusal::new(400, "InvalidAction", message))
            }
        }
    }

    /// Fails if calls are set to fail, or are too many.
    fn admit(&self, now: Timestamp) -> Result<(), Refusal> {
        let mut inner = lock(&self.inner);
        if let Some(failure) = take(&mut inner.failure) {
            return Err(failure.into());
        }
        inner.throttle(now)
    }

    async fn assume_role_with_web_identity(
        &self,
        call: StsCall,
        now: Timestamp,
    ) -> Result<Vec<Element>, Refusal> {
        let call = call.without_role_parameters();
        call.validate()?;
        let token = call.web_identity_token.as_ref().ok_or_else(|| {
            let message = "1 validation error detected: Value null at 'webIdentityToken' failed to \
                           satisfy constraint: Member must not be null";
            Refusal::new(400, "ValidationError", message)
        })?;
        let account_id = call.role_arn.split(':').nth(4).unwrap_or_default();
        let examined = lock(&self.inner)
            .web_identities
            .examine(token, account_id, now);
        let identity = examined?.verify().await?;
        lock(&self.inner).assume_role_with_web_identity(&call, &identity, now)
    }

    fn begin(&self, call: StsCall) -> (InFlight<'_>, Duration) {
        let mut inner = lock(&self.inner);
        inner.calls.push(call);
        inner.count += 1;
        inner.in_flight += 1;
        inner.max_in_flight = inner.max_in_flight.max(inner.in_flight);
        (InFlight(self), inner.latency)
    }
}

impl Inner {
    fn throttle(&mut self, now: Timestamp) -> Result<(), Refusal> {
        let Some(quota) = self.quota else {
            return Ok(());
        };
        if self.second.0 != now.as_second() {
            self.second = (now.as_second(), 0);
        }
        if self.second.1 >= quota {
            return Err(Refusal::new(400, "Throttling", "Rate exceeded"));
        }
        self.second.1 += 1;
        Ok(())
    }

    fn assume_role(
        &mut self,
        call: &StsCall,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Vec<Element>, Refusal> {
        call.validate()?;
        let duration = call.duration_seconds.unwrap_or(DEFAULT_DURATION);
        role::check_chaining(call, caller, duration)?;
        if let Some(role) = self.roles.get_mut(&call.role_arn) {
            role.check(call, caller, duration)?;
        }
        Ok(self
            .keys
            .issue(call, caller, self.expiration(duration, now)))
    }

    fn assume_role_with_web_identity(
        &mut self,
        call: &StsCall,
        identity: &WebIdentity,
        now: Timestamp,
    ) -> Result<Vec<Element>, Refusal> {
        let duration = call.duration_seconds.unwrap_or(DEFAULT_DURATION);
        let role = self.roles.entry(call.role_arn.clone()).or_default();
        role.check_web_identity(&identity.provider_arn, identity.context(), duration)?;
        let caller = Caller::named(identity.provider_arn.clone());
        let expiration = self.expiration(duration, now);
        let mut result = self.keys.issue(call, &caller, expiration);
        result.extend([
            Element::text("SubjectFromWebIdentityToken", &identity.subject),
            Element::text("Audience", &identity.audience),
            Element::text("Provider", &identity.provider_arn),
        ]);
        Ok(result)
    }

    /// Returns the end of a session that begins now.
    fn expiration(&self, duration: u32, now: Timestamp) -> Timestamp {
        let lifetime = match self.lifetime {
            Some(lifetime) => SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX),
            None => SignedDuration::from_secs(duration.into()),
        };
        now.saturating_add(lifetime).unwrap_or(Timestamp::MAX)
    }
}
