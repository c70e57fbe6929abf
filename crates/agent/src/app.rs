//! The agent: starts all tasks from its options, and owns them.

mod background;
mod endpoint;
mod keys;
mod mode;
mod options;
mod redirect_check;
mod sockets;
mod source;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_netlink::Error as NetlinkError;
use rolegate_redirect::Backend;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::serve::ListenError;
use rolegate_runtime::supervisor::{self, Running, Service, Supervisor};
use rolegate_sessions::SessionMetrics;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attachment::Attachments;
use crate::container_credentials::{ContainerCredentialsServer, MAX_ADDRESSES};
use crate::credentials::CredentialSource;
use crate::decision_source::DecisionSource;
use crate::handover::HandoverSocket;
use crate::metadata::{MetadataParts, MetadataServer, NodeHealth};
use crate::metrics::AgentMetrics;
use crate::pod_table::PodTable;
use crate::token::{NoRandomness, TokenKeys};
use background::Background;
use keys::KeptKeys;
use sockets::Sockets;

pub use options::{AgentOptions, Mode, RedirectOptions, SourceOptions, StandaloneOptions};

/// An error that prevents the agent's start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is in use.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The metadata service's address is malformed.
    #[error("--metadata-addr: {0}")]
    Imds(#[from] ImdsError),
    /// No random bytes for a token key.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The kernel does not report the attachment of addresses.
    #[error("cannot query the kernel for the attachment of pods' addresses")]
    Attachment(#[from] NetlinkError),
    /// The configuration of the API server is invalid.
    #[error(transparent)]
    Client(#[from] rolegate_kube::client::ClientError),
    /// The workloads file cannot be read.
    #[error("--workloads: {0}")]
    File(#[from] rolegate_kube::workloads_file::FileError),
    /// An inherited socket is invalid.
    #[error("cannot use a socket from the previous agent")]
    Socket(#[from] std::io::Error),
}

impl supervisor::StartError for StartError {
    fn is_usage(&self) -> bool {
        matches!(self, Self::Imds(_) | Self::Client(_) | Self::File(_))
    }
}

/// The agent's listening addresses.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The pods' port.
    pub pods: SocketAddr,
    /// The operators' port.
    pub admin: SocketAddr,
    /// The addresses of the container credentials endpoint that are bound.
    pub container_credentials: [Option<SocketAddr>; MAX_ADDRESSES],
}

/// A running agent. Its stop accepts nothing new and finishes open requests.
pub type Agent = Running<AgentService>;

/// The agent's kind of process.
#[derive(Debug)]
pub struct AgentService {
    /// Cancelled once the next agent has the sockets.
    handed_over: CancellationToken,
    /// The backend of a redirect that is removed at exit, unless the next agent relies on it.
    removes_redirect: Option<Backend>,
}

impl Service for AgentService {
    type Options = AgentOptions;
    type Addresses = Addresses;
    type Error = StartError;

    async fn start(
        options: AgentOptions,
        supervisor: &mut Supervisor,
    ) -> Result<(Self, Addresses), StartError> {
        let mut metrics = Metrics::new().with_readiness(supervisor.readiness());
        let wanted = options.addresses();
        let clock = options.clock;
        let imds = Imds::new(&options.metadata_addr)?;
        let attachments = open_attachments(options.redirect.as_ref())?;
        let (agent_metrics, session_metrics) =
            register_metrics(&mut metrics, options.kube2iam_metrics);
        let health = NodeHealth::new(options.host_ip);
        let pod_table = Arc::new(PodTable::default());
        let shared = mode::Shared {
            pod_table: pod_table.clone(),
            attachments: attachments.clone().map(|attachments| attachments as _),
            agent_metrics: agent_metrics.clone(),
            session_metrics,
            imds: imds.clone(),
            health: health.clone(),
            host_ip: options.host_ip,
            clock: clock.clone(),
            needs_token_keys: options.container_credentials.is_some(),
            metrics: &mut metrics,
            supervisor: &mut *supervisor,
        };
        let backend = match options.mode {
            Mode::Standalone(options) => mode::standalone(*options, shared).await?,
            Mode::Brokered(broker) => mode::brokered(broker, shared),
        };
        let mut background = Background {
            registry: metrics.ours(),
            supervisor: &mut *supervisor,
        };
        if let Some(attachments) = attachments {
            background.follow_attachments(attachments, pod_table.clone());
        }
        background.report_staleness(&backend, options.max_staleness, clock.clone());
        let removes_redirect = options
            .redirect
            .and_then(|redirect| background.keep_redirect(redirect));

        let endpoint = options.container_credentials.as_ref();
        let endpoint = endpoint.map(|endpoint| endpoint.listen.as_slice());
        let opened = open_sockets(wanted, endpoint, options.runtime_dir, &clock, supervisor);
        let Opened {
            sockets,
            tokens,
            handed_over,
        } = opened.await?;

        let readiness = supervisor.readiness().clone();
        let debugged = options.debug.then_some((&pod_table, &backend.decisions));
        let admin = with_debug(Admin::new(Arc::new(metrics), readiness), debugged);
        let credentials = CredentialSource {
            pod_table,
            decisions: backend.decisions,
            outcomes: backend.outcomes,
            metrics: agent_metrics,
            clock: clock.clone(),
            verifier: backend.verifier,
            max_staleness: options.max_staleness,
            wait: options.wait,
        };
        let by_token = options.container_credentials.zip(backend.token_keys);
        let by_token = by_token
            .map(|(it, keys)| ContainerCredentialsServer::new(it, credentials.clone(), keys));
        let parts = MetadataParts {
            credentials,
            tokens,
            imds,
            health,
        };
        let metadata = MetadataServer::new(options.metadata, parts);
        let addresses = sockets.addresses()?;
        let servers = Servers {
            metadata,
            by_token,
            admin,
        };
        serve(sockets, servers, clock, supervisor).await;
        let service = Self {
            handed_over,
            removes_redirect,
        };
        Ok((service, addresses))
    }

    async fn handed_over(&mut self) {
        self.handed_over.cancelled().await;
    }

    /// Removes the redirect if that is configured and no next agent has taken over.
    async fn stopped(self) {
        if let Some(backend) = self.removes_redirect
            && !self.handed_over.is_cancelled()
        {
            match rolegate_redirect::remove(backend).await {
                Ok(()) => warn!("removed the redirect: pods reach the node's role"),
                Err(error) => tracing::error!(%error, "cannot remove the redirect"),
            }
        }
    }
}

/// The sockets of an agent and the keys of metadata tokens.
struct Opened {
    sockets: Sockets,
    tokens: Arc<TokenKeys>,
    /// Cancelled once the next agent has the sockets.
    handed_over: CancellationToken,
}

/// Opens the sockets or takes them over, and offers them to the next agent. `endpoint` are the
/// addresses of the container credentials endpoint, if it is enabled.
async fn open_sockets(
    wanted: Addresses,
    endpoint: Option<&[SocketAddr]>,
    runtime_dir: Option<PathBuf>,
    clock: &Clock,
    supervisor: &mut Supervisor,
) -> Result<Opened, StartError> {
    let port = wanted.pods.port();
    let folder = runtime_dir.and_then(|path| sockets::folder(&path));
    let place = folder.as_ref().map(|it| HandoverSocket::new(it, port));
    let readiness = supervisor.readiness().clone();
    let opened = Sockets::open(wanted, endpoint, place.as_ref(), &readiness).await;
    let (sockets, inherited) = opened?;
    let kept = KeptKeys::new(folder, port, &readiness);
    let tokens = Arc::new(TokenKeys::new(kept.ring(inherited, clock.now())?));
    supervisor.spawn(kept.keep(tokens.clone(), clock.clone()));
    let handed_over = CancellationToken::new();
    if let Some(place) = place {
        supervisor.spawn(sockets.offer(place, tokens.clone(), handed_over.clone())?);
    }
    Ok(Opened {
        sockets,
        tokens,
        handed_over,
    })
}

/// Registers the metrics of the agent and of its sessions.
fn register_metrics(metrics: &mut Metrics, kube2iam: bool) -> (AgentMetrics, SessionMetrics) {
    let sessions = SessionMetrics::register(metrics.ours());
    if !kube2iam {
        return (AgentMetrics::register(metrics.ours()), sessions);
    }
    let sessions = sessions.with_kube2iam_names(metrics.common());
    let (ours, common) = metrics.both();
    let agent = AgentMetrics::register_with_kube2iam_names(ours, common);
    (agent, sessions)
}

/// Opens the attachments of pods' addresses. Addresses are tied to interfaces if pods arrive
/// through the host's own redirect. An agent behind another redirect sees other interfaces than the
/// pods'.
fn open_attachments(
    redirect: Option<&RedirectOptions>,
) -> Result<Option<Arc<Attachments>>, NetlinkError> {
    let Some(redirect) = redirect else {
        return Ok(None);
    };
    let attachments = Attachments::open(redirect.attachments.clone())?;
    Ok(Some(Arc::new(attachments)))
}

/// Adds the pages that show the agent's state, if it is given.
fn with_debug(admin: Admin, state: Option<(&Arc<PodTable>, &DecisionSource)>) -> Admin {
    let Some((pod_table, decisions)) = state else {
        return admin;
    };
    let (pod_table, decisions) = (pod_table.clone(), decisions.clone());
    admin.with_debug("store", move || crate::debug::store(&pod_table, &decisions))
}

/// The servers of an agent.
struct Servers {
    metadata: Arc<MetadataServer>,
    /// The container credentials endpoint.
    by_token: Option<Arc<ContainerCredentialsServer>>,
    admin: Admin,
}

/// Serves pods and operators, and then confirms that to the previous agent.
async fn serve(sockets: Sockets, servers: Servers, clock: Clock, supervisor: &mut Supervisor) {
    let drain = supervisor.drain().clone();
    let condition = supervisor.readiness().condition("limits");
    let mut limits = vec![servers.metadata.limits().clone()];
    if let (Some(server), Some(sockets)) = (servers.by_token, sockets.container_credentials) {
        limits.push(server.limits().clone());
        supervisor.spawn(server.clone().sweep());
        supervisor.spawn(sockets.serve(server, drain.clone()));
    }
    supervisor.spawn(background::limits(limits, clock, condition));
    supervisor.spawn(servers.admin.serve(sockets.admin, drain.clone()));
    supervisor.spawn(servers.metadata.serve(sockets.pods, drain));
    if let Some(receipt) = sockets.receipt {
        match receipt.confirm().await {
            Ok(()) => info!("took over from the previous agent"),
            Err(error) => warn!(%error, "the previous agent is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rolegate_kube::client::ClientError;
    use rolegate_runtime::supervisor::StartError as _;

    use super::*;

    #[test]
    fn only_errors_of_flags_are_usage_errors() {
        assert!(StartError::Client(ClientError::TokenWithoutServer).is_usage());
        assert!(!StartError::Socket(std::io::ErrorKind::Other.into()).is_usage());
    }
}
