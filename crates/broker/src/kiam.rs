//! The kiam-compatible gRPC interface, for clusters that migrate from kiam node by node.
//!
//! kiam's agents share one certificate, so only the address of a connection identifies its node.
//! Pods of other nodes are reported as not found.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::pod::{Allowed, Authorization, DecisionRecord, PodEntry};
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_core::document::aws_time;
use rolegate_core::session::Failure;
use rolegate_core::workload::Workload;
use rolegate_kube::freshness::FreshnessSet;
use rolegate_proto::kiam::{
    Credentials, GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest, HealthStatus, Role,
    kiam_service_server,
};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::http2::Authentication;
use rolegate_runtime::keyed_limit::{KeyedLimiter, Permit};
use rolegate_runtime::rate::{KeyedRate, Rate};
use rolegate_runtime::tls::ClientNames;
use rolegate_sessions::{Session, SessionState};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::index::StreamCommand;
use crate::metrics::{BrokerMetrics, KiamUser};
use crate::node_addresses::NodeAddresses;
use crate::service::Registration;
use crate::subscription::Subscription;

/// Time to wait for the node's pods to be decided when its first agent connects.
const ACTIVATION_TIMEOUT: Duration = Duration::from_secs(3);
/// Time to wait for a session's first credentials. kiam's agents retry for five seconds.
const SESSION_TIMEOUT: Duration = Duration::from_secs(3);
/// Rate of requests from one node's agents. Requests above it wait.
pub const REQUEST_RATE: Rate = Rate {
    burst: 1000.0,
    per_second: 200.0,
};
/// Maximum size of a request (an address and a role), in bytes.
const MAX_REQUEST_BYTES: usize = 8 << 10;

/// State shared by all connections.
#[derive(Debug)]
pub struct KiamParts {
    /// The addresses of nodes.
    pub node_addresses: NodeAddresses,
    /// Limit of connections per node.
    pub permits: KeyedLimiter<Arc<str>>,
    /// Request rate of each node.
    pub rates: KeyedRate<Arc<str>>,
    /// Activation rate of each node.
    pub activations: KeyedRate<Arc<str>>,
    /// The freshness of the watches.
    pub freshness: FreshnessSet,
    /// Maximum staleness at which credentials are served.
    pub max_staleness: Duration,
    /// Commands to the index.
    pub commands: mpsc::UnboundedSender<StreamCommand>,
    /// The authorizer. Decides where the index has not processed a pod since the rules changed.
    pub authorizer: Authorizer,
    /// Records outcomes as Events, logs and ledger entries.
    pub recorder: OutcomeRecorder,
    /// The broker's metrics.
    pub metrics: BrokerMetrics,
    /// The time.
    pub clock: Clock,
}

/// One connection. It keeps its node's sessions in use while it is open.
#[derive(Debug)]
pub struct KiamConnection {
    parts: Arc<KiamParts>,
    peer: IpAddr,
    /// Expiry of the client certificate.
    until: Timestamp,
    shown: Authentication,
    /// Permit from the node's limit, until the connection registers with the index.
    permit: Mutex<Option<Permit<Arc<str>>>>,
    registration: OnceCell<(Registration, KiamUser)>,
}

impl KiamConnection {
    /// Creates the service for a connection, or returns `None` if it showed no certificate or if
    /// its node has reached its limit. All kiam agents show the same certificate, so the connection
    /// is also authenticated by its address: now, or once the address is known to be a node's.
    pub fn new(
        parts: Arc<KiamParts>,
        peer: IpAddr,
        names: &ClientNames,
        shown: Authentication,
    ) -> Option<Self> {
        let until = names.until?;
        let permit = match parts.node_addresses.node_of(peer) {
            None => None,
            Some(node) => {
                let Some(permit) = parts.permits.take(node).filter(|_| shown.succeed()) else {
                    parts.metrics.kiam("refused");
                    return None;
                };
                Some(permit)
            }
        };
        Some(Self {
            parts,
            peer: peer.to_canonical(),
            until,
            shown,
            permit: Mutex::new(permit),
            registration: OnceCell::new(),
        })
    }

    /// Returns the subscription of the node that owns the connection's address.
    async fn subscription(&self) -> Result<&Subscription, Status> {
        if self.until <= self.parts.clock.now() {
            self.parts.metrics.kiam("refused");
            return Err(Status::unauthenticated(
                "the client certificate has expired",
            ));
        }
        let node = self.parts.node_addresses.node_of(self.peer).ok_or_else(|| {
            self.parts.metrics.kiam("refused");
            self.shown.close_unauthenticated();
            warn!(peer = %self.peer, "rejecting a kiam agent: its address belongs to no node or to several");
            Status::permission_denied("this address does not belong to a node")
        })?;
        let wait = self.parts.rates.charge(&node, 1);
        if wait > SESSION_TIMEOUT {
            return Err(Status::resource_exhausted(
                "too many requests from this node",
            ));
        }
        tokio::time::sleep(wait).await;
        let activate = || async { self.activate(node.clone()) };
        let (registration, _) = self.registration.get_or_try_init(activate).await?;
        if registration.subscription.node != node {
            self.parts.metrics.kiam("refused");
            return Err(Status::permission_denied(
                "this address belonged to another node",
            ));
        }
        if timeout(ACTIVATION_TIMEOUT, registration.subscription.completed())
            .await
            .is_err()
        {
            return Err(Status::unavailable("not all pods and rules are known yet"));
        }
        Ok(&registration.subscription)
    }

    /// Registers with the index. The registration is kept while the subscription is incomplete, so
    /// that the next request continues to wait for it.
    fn activate(&self, node: Arc<str>) -> Result<(Registration, KiamUser), Status> {
        let refuse = |why| {
            self.parts.metrics.kiam("refused");
            self.shown.close();
            Status::resource_exhausted(why)
        };
        let crowded = "this node has reached its limit of connections";
        let often = "too many new connections from this node: try again in a few seconds";
        let permit = self.permit(node.clone()).ok_or_else(|| refuse(crowded))?;
        if !self.parts.activations.take(&node) {
            return Err(refuse(often));
        }
        let registration =
            Registration::take(Subscription::new(permit, None), self.parts.commands.clone());
        registration.activate();
        info!(node = %registration.subscription.node, peer = %self.peer, "kiam agent connected");
        Ok((registration, self.parts.metrics.kiam_user()))
    }

    /// Returns the connection's permit from the limit of `node`.
    fn permit(&self, node: Arc<str>) -> Option<Permit<Arc<str>>> {
        let mut own = self.permit.lock();
        let own = own.take().filter(|own| *own.key() == node);
        let permit = own.or_else(|| self.parts.permits.take(node))?;
        self.shown.succeed().then_some(permit)
    }

    /// Returns the pod on this node that has the address `ip`, with its current authorization.
    async fn pod(&self, ip: &str) -> Result<Pod, Status> {
        let subscription = self.subscription().await?;
        // rolegate's agents check the staleness that their stream reports. kiam's agents do not.
        let age = self.parts.freshness.age();
        if age.is_none_or(|age| age > self.parts.max_staleness) {
            return Err(self.unavailable("no update from the API server for too long"));
        }
        let address: Option<IpAddr> = ip.parse().ok();
        let entry = address
            .and_then(|address| subscription.at(address.to_canonical()))
            .ok_or_else(|| {
                self.parts.metrics.kiam("unknown");
                Status::unknown("pod not found")
            })?;
        let decided = self.parts.authorizer.peek(&entry);
        if matches!(decided.authorization, Authorization::Pending) {
            return Err(self.unavailable("there is no decision for this pod yet"));
        }
        Ok(Pod { entry, decided })
    }

    /// Returns the authorization of the pod if it may assume `role`.
    fn allowed<'p>(&self, pod: &'p Pod, role: &str) -> Result<&'p Allowed, Status> {
        match &pod.decided.authorization {
            Authorization::Allowed(allowed) if names(allowed, role) => Ok(allowed),
            Authorization::Denied { denial, .. } => {
                let parts = &self.parts;
                parts.recorder.denied(&pod.entry, denial, parts.clock.now());
                Err(self.forbidden())
            }
            _ => Err(self.forbidden()),
        }
    }

    async fn credentials(&self, ip: &str, role: &str) -> Result<Credentials, Status> {
        let parts = &self.parts;
        let asked = self.pod(ip).await?;
        let wanted = self.allowed(&asked, role)?;
        let session = self.session(wanted).await;
        // The pod or its authorization may be gone by now.
        let pod = self.pod(ip).await?;
        let allowed = self.allowed(&pod, role)?;
        if pod.entry.workload.uid != asked.entry.workload.uid
            || allowed.lease.cell().key() != wanted.lease.cell().key()
        {
            return Err(self.unavailable("the pod changed during the request"));
        }
        let (entry, now) = (&pod.entry, parts.clock.now());
        match session {
            None => Err(self.unavailable("STS has not responded yet")),
            Some(Err(failure)) => {
                parts.recorder.failing(entry, &allowed.role, &failure, now);
                parts.metrics.kiam("failed");
                // AWS's message names the broker's role, so it goes to the broker's log only.
                Err(Status::unknown(failure.owner_message(&allowed.role)))
            }
            Some(Ok(session)) => {
                for denial in &allowed.audited {
                    parts.recorder.audited(entry, denial, now);
                }
                parts.recorder.served(entry, allowed, &session, now);
                parts.metrics.kiam("served");
                Ok(message(&session))
            }
        }
    }

    /// Returns the session or the STS error. `None` if STS takes too long.
    async fn session(&self, allowed: &Allowed) -> Option<Result<Arc<Session>, Failure>> {
        let cell = allowed.lease.cell();
        let session = async {
            loop {
                let changed = cell.changed();
                match cell.state(self.parts.clock.now()) {
                    SessionState::Valid(session) => return Ok(session),
                    SessionState::Failed(failure) => return Err(failure),
                    SessionState::Fetching => {
                        allowed.lease.prioritize();
                        changed.await;
                    }
                }
            }
        };
        timeout(SESSION_TIMEOUT, session).await.ok()
    }

    fn forbidden(&self) -> Status {
        self.parts.metrics.kiam("denied");
        Status::unknown("forbidden by policy")
    }

    fn unavailable(&self, why: &'static str) -> Status {
        self.parts.metrics.kiam("unavailable");
        Status::unavailable(why)
    }
}

/// A pod and its current authorization.
struct Pod {
    entry: Arc<PodEntry>,
    decided: Arc<DecisionRecord>,
}

/// Returns `true` if `role` names the role that the pod may assume.
fn names(allowed: &Allowed, role: &str) -> bool {
    // kiam ignores a leading slash.
    let role = role.strip_prefix('/').unwrap_or(role);
    allowed.role_name == role.as_bytes() || allowed.role.as_str() == role
}

/// Returns the role as the pod names it, which is the form kiam reports. Errors are reported when
/// credentials are requested.
fn named(pod: &Workload, authorization: &Authorization) -> String {
    match authorization {
        Authorization::Allowed(allowed) => String::from_utf8_lossy(&allowed.role_name).into_owned(),
        Authorization::Denied { denial, .. } => match &pod.role_request.role {
            Some(role) => role.to_string(),
            None => denial.role.clone(),
        },
        Authorization::NoRole | Authorization::Pending => String::new(),
    }
}

/// Returns kiam's message, with the values of the metadata service's document.
fn message(session: &Session) -> Credentials {
    let credentials = &session.credentials;
    Credentials {
        code: "Success".into(),
        r#type: "AWS-HMAC".into(),
        access_key_id: credentials.access_key_id.to_string(),
        secret_access_key: credentials.secret_access_key().into(),
        token: credentials.session_token().into(),
        expiration: aws_time(credentials.validity.not_after),
        last_updated: aws_time(credentials.validity.not_before),
    }
}

#[tonic::async_trait]
impl kiam_service_server::KiamService for KiamConnection {
    async fn get_pod_role(
        &self,
        request: Request<GetPodRoleRequest>,
    ) -> Result<Response<Role>, Status> {
        let pod = self.pod(&request.get_ref().ip).await?;
        let name = named(&pod.entry.workload, &pod.decided.authorization);
        Ok(Response::new(Role { name }))
    }

    async fn get_pod_credentials(
        &self,
        request: Request<GetPodCredentialsRequest>,
    ) -> Result<Response<Credentials>, Status> {
        let request = request.get_ref();
        let credentials = self.credentials(&request.ip, &request.role).await?;
        Ok(Response::new(credentials))
    }

    async fn get_health(
        &self,
        _: Request<GetHealthRequest>,
    ) -> Result<Response<HealthStatus>, Status> {
        let message = "ok".into();
        Ok(Response::new(HealthStatus { message }))
    }
}

/// Builds the gRPC server of a connection.
pub fn server(
    connection: KiamConnection,
) -> kiam_service_server::KiamServiceServer<KiamConnection> {
    kiam_service_server::KiamServiceServer::new(connection)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
}

#[cfg(test)]
mod tests {
    use rolegate_core::arn::RoleArn;
    use rolegate_core::document;
    use rolegate_core::session::{self, Validity};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn messages_have_the_values_of_the_metadata_document() {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap();
        let validity = Validity {
            not_before: "2026-11-22T02:00:00.25Z".parse().unwrap(),
            not_after: "2026-11-22T03:00:00Z".parse().unwrap(),
        };
        let credentials = session::Credentials::new("ASIA1", "secret/+", "token==", validity);
        let session = Session::new(role, credentials);
        let document = document::credentials(&session.credentials);
        let document: Value = serde_json::from_slice(&document).unwrap();
        let message = message(&session);
        let sent = json!({
            "Code": message.code,
            "LastUpdated": message.last_updated,
            "Type": message.r#type,
            "AccessKeyId": message.access_key_id,
            "SecretAccessKey": message.secret_access_key,
            "Token": message.token,
            "Expiration": message.expiration,
        });
        assert_eq!(sent, document);
    }
}
