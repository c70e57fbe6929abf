//! kiam's interface, for kiam's agents while a cluster moves over one node at a time.
//!
//! kiam's agents share one certificate, so nothing but the address of a connection tells which node
//! it comes from. Pods of another node are not found, as if they weren't there.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rolegate_aws::sessions::{Current, Session};
use rolegate_core::session::Failure;
use rolegate_core::workload::Workload;
use rolegate_kube::picture::Pictures;
use rolegate_proto::kiam::{
    Credentials, GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest, HealthStatus, Role,
    kiam_service_server,
};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::http2::Authentication;
use rolegate_runtime::places::{Place, Places};
use rolegate_runtime::rate::{KeyedRate, Rate};
use rolegate_runtime::tls::ClientNames;
use rolegate_standing::decider::Decider;
use rolegate_standing::resident::{Allowed, Decided, Resident, Standing};
use rolegate_standing::tell::Tell;
use serde::Deserialize;
use tokio::sync::{OnceCell, mpsc};
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::desk::Order;
use crate::feed::Feed;
use crate::hosts::Hosts;
use crate::metrics::{BrokerMetrics, KiamUser};
use crate::service::Seat;

/// For the node's pods to be decided for when its first agent connects.
const BEGIN: Duration = Duration::from_secs(3);
/// For a session's first credentials; kiam's agents ask again for five seconds.
const WAIT: Duration = Duration::from_secs(3);
/// Requests of one node's agents in a time: more of them wait.
pub const REQUESTS: Rate = Rate {
    burst: 1000.0,
    per_second: 200.0,
};
/// Longest request, bytes: an address and a role.
const MAX_REQUEST: usize = 8 << 10;

/// What all connections share.
#[derive(Debug)]
pub struct KiamParts {
    /// Which node an address is of.
    pub hosts: Hosts,
    /// Seats that nodes have by kiam's agents.
    pub places: Places<Arc<str>>,
    /// Requests of each node.
    pub rates: KeyedRate<Arc<str>>,
    /// New seats of each node.
    pub begins: KeyedRate<Arc<str>>,
    /// The age of what is known of the cluster.
    pub pictures: Pictures,
    /// The greatest age at which anything is served.
    pub max_picture_age: Duration,
    /// Where seats are taken.
    pub orders: mpsc::UnboundedSender<Order>,
    /// Decides where the desk has not got to a pod since the rules changed.
    pub decider: Decider,
    /// Tells owners of pods, and the ledger.
    pub tell: Tell,
    /// Counts.
    pub metrics: BrokerMetrics,
    /// The time.
    pub clock: Clock,
}

/// One connection. It holds its node's sessions as long as it is open.
#[derive(Debug)]
pub struct KiamConnection {
    parts: Arc<KiamParts>,
    peer: IpAddr,
    /// The end of its certificate.
    until: Timestamp,
    shown: Authentication,
    /// Its place among its node's, until it has a seat.
    place: Mutex<Option<Place<Arc<str>>>>,
    seat: OnceCell<(Seat, KiamUser)>,
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
        let place = match parts.hosts.node_of(peer) {
            None => None,
            Some(node) => {
                let Some(place) = parts.places.take(node).filter(|_| shown.succeed()) else {
                    parts.metrics.kiam("refused");
                    return None;
                };
                Some(place)
            }
        };
        Some(Self {
            parts,
            peer: peer.to_canonical(),
            until,
            shown,
            place: Mutex::new(place),
            seat: OnceCell::new(),
        })
    }

    /// What the node of the connection's address may have.
    async fn feed(&self) -> Result<&Feed, Status> {
        if self.until <= self.parts.clock.now() {
            self.parts.metrics.kiam("refused");
            return Err(Status::unauthenticated(
                "the client's certificate has ended",
            ));
        }
        let node = self.parts.hosts.node_of(self.peer).ok_or_else(|| {
            self.parts.metrics.kiam("refused");
            self.shown.close_unauthenticated();
            warn!(peer = %self.peer, "a kiam agent's address is of no node, or of several: it is refused");
            Status::permission_denied("this address is of no node")
        })?;
        let wait = self.parts.rates.charge(&node, 1);
        if wait > WAIT {
            return Err(Status::resource_exhausted("this node asks too often"));
        }
        tokio::time::sleep(wait).await;
        let begin = || async { self.begin(node.clone()) };
        let (seat, _) = self.seat.get_or_try_init(begin).await?;
        if seat.feed.node != node {
            self.parts.metrics.kiam("refused");
            return Err(Status::permission_denied("this address was another node's"));
        }
        if timeout(BEGIN, seat.feed.completed()).await.is_err() {
            return Err(Status::unavailable("not all pods and rules are known yet"));
        }
        Ok(&seat.feed)
    }

    /// Takes a seat, which is kept while it is not complete yet: the next request goes on waiting
    /// for it.
    fn begin(&self, node: Arc<str>) -> Result<(Seat, KiamUser), Status> {
        let refuse = |why| {
            self.parts.metrics.kiam("refused");
            self.shown.close();
            Status::resource_exhausted(why)
        };
        let crowded = "this node has as many connections as it may have";
        let often = "connections of this node begin too often: try again in a few seconds";
        let place = self.place(node.clone()).ok_or_else(|| refuse(crowded))?;
        if !self.parts.begins.take(&node) {
            return Err(refuse(often));
        }
        let seat = Seat::take(Feed::new(place, None), self.parts.orders.clone());
        seat.begin();
        info!(node = %seat.feed.node, peer = %self.peer, "a kiam agent is served");
        Ok((seat, self.parts.metrics.kiam_user()))
    }

    /// The connection's place among those of `node`.
    fn place(&self, node: Arc<str>) -> Option<Place<Arc<str>>> {
        let mut own = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.take().filter(|own| *own.whose() == node);
        let place = own.or_else(|| self.parts.places.take(node))?;
        self.shown.succeed().then_some(place)
    }

    /// The pod of the node that has the address `ip`, and what counts for it now.
    async fn pod(&self, ip: &str) -> Result<Pod, Status> {
        let feed = self.feed().await?;
        // rolegate's agents compare the age that their stream tells them; kiam's know of none.
        let age = self.parts.pictures.age();
        if age.is_none_or(|age| age > self.parts.max_picture_age) {
            return Err(self.unavailable("the API server has sent nothing for too long"));
        }
        let address: Option<IpAddr> = ip.parse().ok();
        let resident = address.and_then(|address| feed.at(address.to_canonical()));
        let resident = resident.ok_or_else(|| {
            self.parts.metrics.kiam("unknown");
            Status::unknown("pod not found")
        })?;
        let decided = self.parts.decider.look(&resident);
        if matches!(decided.standing, Standing::Undecided) {
            return Err(self.unavailable("the pod is not decided for yet"));
        }
        Ok(Pod { resident, decided })
    }

    /// What the pod may have, if that is `role`.
    fn allowed<'p>(&self, pod: &'p Pod, role: &str) -> Result<&'p Allowed, Status> {
        match &pod.decided.standing {
            Standing::Allowed(allowed) if names(allowed, role) => Ok(allowed),
            Standing::Denied { denial, .. } => {
                let parts = &self.parts;
                parts.tell.denied(&pod.resident, denial, parts.clock.now());
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
        // Meanwhile the pod may have gone, or its right.
        let pod = self.pod(ip).await?;
        let allowed = self.allowed(&pod, role)?;
        if pod.resident.workload.uid != asked.resident.workload.uid
            || allowed.lease.cell().key() != wanted.lease.cell().key()
        {
            return Err(self.unavailable("the pod changed while it waited"));
        }
        let (resident, now) = (&pod.resident, parts.clock.now());
        match session {
            None => Err(self.unavailable("STS has not answered yet")),
            Some(Err(failure)) => {
                parts.tell.failing(resident, &allowed.role, &failure, now);
                parts.metrics.kiam("failed");
                // AWS's message names the broker's role, which is for its own log.
                Err(Status::unknown(failure.to_owner(&allowed.role)))
            }
            Some(Ok(session)) => {
                for denial in &allowed.audited {
                    parts.tell.audited(resident, denial, now);
                }
                parts.tell.served(resident, allowed, &session, now);
                parts.metrics.kiam("served");
                message(&session)
            }
        }
    }

    /// The session, or why there is none; `None` where STS takes too long.
    async fn session(&self, allowed: &Allowed) -> Option<Result<Arc<Session>, Failure>> {
        let cell = allowed.lease.cell();
        let session = async {
            loop {
                let changed = cell.changed();
                match cell.current(self.parts.clock.now()) {
                    Current::Live(session) => return Ok(session),
                    Current::Failed(failure) => return Err(failure),
                    Current::Fetching => {
                        allowed.lease.ask();
                        changed.await;
                    }
                }
            }
        };
        timeout(WAIT, session).await.ok()
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

/// A pod, and what counts for it at the moment.
struct Pod {
    resident: Arc<Resident>,
    decided: Arc<Decided>,
}

/// Whether a pod that asks for `role` asks for the one that it may have.
fn names(allowed: &Allowed, role: &str) -> bool {
    // kiam reads a name with a slash before it as the name.
    let role = role.strip_prefix('/').unwrap_or(role);
    allowed.listed == role.as_bytes() || allowed.role.as_str() == role
}

/// The role as the pod names it, as kiam tells it: what comes of it is told with the credentials.
fn named(pod: &Workload, standing: &Standing) -> String {
    match standing {
        Standing::Allowed(allowed) => String::from_utf8_lossy(&allowed.listed).into_owned(),
        Standing::Denied { denial, .. } => match &pod.wish.role {
            Some(role) => role.to_string(),
            None => denial.role.clone(),
        },
        Standing::NoRole | Standing::Undecided => String::new(),
    }
}

/// The document of a session, read again.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'d> {
    #[serde(borrow)]
    secret_access_key: Cow<'d, str>,
    #[serde(borrow)]
    token: Cow<'d, str>,
    #[serde(borrow)]
    last_updated: Cow<'d, str>,
    #[serde(borrow)]
    expiration: Cow<'d, str>,
}

fn message(session: &Session) -> Result<Credentials, Status> {
    let document = session.document.bytes();
    let document: Document<'_> = serde_json::from_slice(&document)
        .map_err(|_| Status::internal("the credentials cannot be read"))?;
    Ok(Credentials {
        code: "Success".into(),
        r#type: "AWS-HMAC".into(),
        access_key_id: session.access_key_id.clone(),
        secret_access_key: document.secret_access_key.into(),
        token: document.token.into(),
        expiration: document.expiration.into(),
        last_updated: document.last_updated.into(),
    })
}

#[tonic::async_trait]
impl kiam_service_server::KiamService for KiamConnection {
    async fn get_pod_role(
        &self,
        request: Request<GetPodRoleRequest>,
    ) -> Result<Response<Role>, Status> {
        let pod = self.pod(&request.get_ref().ip).await?;
        let name = named(&pod.resident.workload, &pod.decided.standing);
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

/// What answers the requests of a connection.
pub fn server(
    connection: KiamConnection,
) -> kiam_service_server::KiamServiceServer<KiamConnection> {
    kiam_service_server::KiamServiceServer::new(connection).max_decoding_message_size(MAX_REQUEST)
}
