//! The agent: starts all tasks from its options, and owns them.

mod background;
mod keys;
mod mode;
mod options;
mod redirect_check;
mod source;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_runtime::admin::Admin;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_sessions::SessionMetrics;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attachment::{AttachmentError, Attachments};
use crate::credentials::CredentialSource;
use crate::handover::{Ack, HandoverSocket, Inherited};
use crate::metadata::{MetadataParts, MetadataServer, NodeHealth};
use crate::metrics::AgentMetrics;
use crate::pod_table::PodTable;
use crate::runtime_folder::RuntimeFolder;
use crate::token::{KeyRing, NoRandomness, TokenKeys};
use rolegate_redirect::Backend;

pub use options::{AgentOptions, Mode, RedirectOptions, SourceOptions, StandaloneOptions};

/// Interval at which a new agent that is not ready yet checks whether the previous one still runs.
const PREDECESSOR_CHECK_INTERVAL: Duration = Duration::from_millis(500);

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
    Attachment(#[from] AttachmentError),
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

impl StartError {
    /// Returns whether the error requires other flags or files, rather than a retry.
    pub fn is_usage(&self) -> bool {
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
}

/// The reason why an agent stopped by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The next agent has its sockets; this one only finishes open requests.
    HandedOver,
    /// A required task exited, which is a bug.
    Broken(&'static str),
}

/// The end of a task. A required task returns the reason.
type TaskEnd = Option<Ended>;

/// A running agent. Dropping it aborts everything; [`Agent::stop`] stops it gracefully.
#[derive(Debug)]
pub struct Agent {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    /// Stops the tasks that must stop gracefully, such as the redirect reconciler.
    stop: CancellationToken,
    /// The backend of a redirect that is removed at exit, unless the next agent relies on it.
    removes_redirect: Option<Backend>,
    tasks: JoinSet<TaskEnd>,
}

impl Agent {
    /// Starts an agent, and returns when it listens. It keeps retrying dependencies that are not
    /// available yet (the API server, STS) and reports them in its readiness.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: AgentOptions) -> Result<Self, StartError> {
        let readiness = Readiness::new();
        let stop = CancellationToken::new();
        let drain = Drain::new();
        let mut tasks = JoinSet::new();
        let mut metrics = Metrics::new();
        let mut session_metrics = SessionMetrics::register(metrics.ours());
        let agent_metrics = if options.kube2iam_metrics {
            session_metrics = session_metrics.with_kube2iam_names(metrics.common());
            let (ours, common) = metrics.both();
            AgentMetrics::register_with_kube2iam_names(ours, common)
        } else {
            AgentMetrics::register(metrics.ours())
        };
        let clock = options.clock;

        let imds = Imds::new(&options.metadata_addr)?;
        // Addresses are tied to interfaces if pods arrive through the host's own redirect. An agent
        // behind another redirect sees other interfaces than the pods'.
        let attachments = options
            .redirect
            .as_ref()
            .map(|redirect| Attachments::open(redirect.attachments.clone()).map(Arc::new))
            .transpose()?;
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
            readiness: &readiness,
            metrics: &mut metrics,
            tasks: &mut tasks,
        };
        let mode::Backend {
            verifier,
            decisions,
            sessions,
            outcomes,
        } = match options.mode {
            Mode::Standalone(options) => mode::standalone(*options, shared).await?,
            Mode::Brokered(broker) => mode::brokered(broker, shared),
        };
        if let Some(attachments) = attachments {
            metrics.ours().register(
                "address_events_lost",
                "Number of times that the kernel dropped events about pods' addresses",
                attachments.losses(),
            );
            let follow = background::attachments(attachments, pod_table.clone(), stop.clone());
            tasks.spawn(passing(follow));
        }
        tasks.spawn(passing(background::staleness(
            verifier.clone(),
            options.metadata.max_staleness,
            readiness.condition("watch-freshness"),
        )));
        let gauges = background::Gauges::new(sessions, verifier.clone(), clock.clone());
        metrics.ours().register_collector(Box::new(gauges));

        let redirect = options.redirect;
        let removes_redirect = redirect
            .as_ref()
            .and_then(|redirect| redirect.remove_at_exit.then_some(redirect.backend));
        if let Some(redirect) = redirect {
            background::redirect(redirect, &stop, &readiness, metrics.ours(), &mut tasks);
        }

        let folder = options.runtime_dir.and_then(|path| folder(&path));
        let place = folder
            .as_ref()
            .map(|folder| HandoverSocket::new(folder, options.listen.port()));
        let (sockets, inherited) = Sockets::open(
            options.listen,
            options.admin_listen,
            place.as_ref(),
            &readiness,
        )
        .await?;
        let kept = keys::KeptKeys::new(folder, options.listen.port(), &readiness);
        let tokens = Arc::new(TokenKeys::new(kept.ring(inherited, clock.now())?));
        tasks.spawn(passing(kept.keep(tokens.clone(), clock.clone())));
        let addresses = Addresses {
            pods: sockets.pods.local_addr()?,
            admin: sockets.admin.local_addr()?,
        };

        let parts = MetadataParts {
            credentials: CredentialSource {
                pod_table: pod_table.clone(),
                decisions: decisions.clone(),
                outcomes,
                metrics: agent_metrics,
                clock: clock.clone(),
                wait: options.wait,
            },
            verifier,
            tokens: tokens.clone(),
            imds,
            health,
        };
        let metadata = MetadataServer::new(options.metadata, parts);
        if let Some(place) = place {
            let spare = (
                sockets.pods.as_fd().try_clone_to_owned()?,
                sockets.admin.as_fd().try_clone_to_owned()?,
            );
            tasks.spawn(hand_over(place, spare, tokens));
        }
        tasks.spawn(passing(background::limits(
            metadata.limits().clone(),
            clock,
            readiness.condition("limits"),
        )));
        let mut admin = Admin::new(Arc::new(metrics), readiness.clone());
        if options.debug {
            admin = admin.with_debug("store", move || crate::debug::store(&pod_table, &decisions));
        }
        tasks.spawn(passing(admin.serve(sockets.admin, drain.clone())));
        tasks.spawn(passing(metadata.serve(sockets.pods, drain.clone())));
        if let Some(receipt) = sockets.receipt {
            match receipt.confirm().await {
                Ok(()) => info!("took over from the previous agent"),
                Err(error) => warn!(%error, "the previous agent is gone"),
            }
        }
        Ok(Self {
            addresses,
            readiness,
            drain,
            stop,
            removes_redirect,
            tasks,
        })
    }

    /// Returns its listening addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns its readiness.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Waits until the agent stops by itself.
    pub async fn ended(&mut self) -> Ended {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Some(ended))) => return ended,
                Some(Ok(None)) => {}
                Some(Err(_)) => return Ended::Broken("a task"),
                None => std::future::pending().await,
            }
        }
    }

    /// Stops it gracefully: accepts nothing new and finishes open requests, up to `deadline`. The
    /// redirect stays, unless it is to be removed at exit and `next` is false: no next agent has
    /// taken over.
    pub async fn stop(mut self, deadline: Duration, next: bool) {
        self.drain.drain(deadline).await;
        self.stop.cancel();
        self.tasks.shutdown().await;
        if let Some(backend) = self.removes_redirect
            && !next
        {
            match rolegate_redirect::remove(backend).await {
                Ok(()) => warn!("removed the redirect: pods reach the node's role"),
                Err(error) => tracing::error!(%error, "cannot remove the redirect"),
            }
        }
    }
}

/// The listening sockets: new ones, or those of the previous agent.
struct Sockets {
    pods: TcpListener,
    admin: TcpListener,
    receipt: Option<Ack>,
}

impl Sockets {
    async fn open(
        pods: SocketAddr,
        admin: SocketAddr,
        place: Option<&HandoverSocket>,
        readiness: &Readiness,
    ) -> Result<(Self, Option<KeyRing>), StartError> {
        let estate = match place {
            Some(place) => inherit(place, readiness).await,
            None => None,
        };
        Ok(match estate {
            Some(estate) => {
                let sockets = Self {
                    pods: listener(estate.pods)?,
                    admin: listener(estate.admin)?,
                    receipt: Some(estate.receipt),
                };
                (sockets, Some(estate.keys))
            }
            None => {
                let sockets = Self {
                    pods: listen(pods)?,
                    admin: listen(admin)?,
                    receipt: None,
                };
                (sockets, None)
            }
        })
    }
}

/// Takes over from the previous agent, once this one knows the node's pods.
async fn inherit(place: &HandoverSocket, readiness: &Readiness) -> Option<Inherited> {
    if !place.is_taken().await {
        return None;
    }
    info!("another agent serves this node; taking over when ready");
    // Not earlier: an agent that cannot become ready must not replace one that works.
    let gone = async {
        while place.is_taken().await {
            tokio::time::sleep(PREDECESSOR_CHECK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = readiness.ready() => {}
        () = gone => return None,
    }
    place.take().await.unwrap_or_else(|error| {
        warn!(%error, "socket handover from the previous agent failed; this upgrade will drop connections");
        None
    })
}

fn listener(socket: std::os::fd::OwnedFd) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn folder(path: &std::path::Path) -> Option<Arc<RuntimeFolder>> {
    match RuntimeFolder::open(path) {
        Ok(folder) => Some(Arc::new(folder)),
        Err(error) => {
            warn!(%error, "cannot hand over sockets; upgrades will drop connections");
            None
        }
    }
}

type Spare = (std::os::fd::OwnedFd, std::os::fd::OwnedFd);

async fn hand_over(place: HandoverSocket, (pods, admin): Spare, tokens: Arc<TokenKeys>) -> TaskEnd {
    match place.offer(pods.as_fd(), admin.as_fd(), &tokens).await {
        Ok(()) => Some(Ended::HandedOver),
        Err(error) => {
            warn!(%error, "cannot hand over sockets; upgrades will drop connections");
            None
        }
    }
}

/// Runs a required task: the agent stops when it exits.
async fn vital(name: &'static str, task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    Some(Ended::Broken(name))
}

/// Runs a task that may exit.
async fn passing(task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    None
}
