//! The agent as a whole: options in, bound addresses out, and an owner for every task.

mod background;
mod keys;
mod mind;
mod options;
mod redirect_check;
mod source;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_aws::sessions::SessionMetrics;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{ListenError, listen};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attachment::{AttachmentError, Attachments};
use crate::door::{Door, DoorParts, NodeHealth};
use crate::handover::{Estate, Place, Receipt};
use crate::metrics::AgentMetrics;
use crate::picture::Picture;
use crate::redirect::{self, Backend};
use crate::runtime_folder::RuntimeFolder;
use crate::token::{KeyRing, NoRandomness, TokenKeys};

pub use options::{AgentOptions, AloneOptions, MindOptions, RedirectOptions, SourceOptions};

/// How often a new agent that is not ready yet looks whether the one before is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The metadata service's address is malformed.
    #[error("--metadata-addr: {0}")]
    Imds(#[from] ImdsError),
    /// No key of tokens.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The kernel does not tell where pods are.
    #[error("the agent cannot ask the kernel where pods' addresses are")]
    Attachment(#[from] AttachmentError),
    /// The API server cannot be reached as configured.
    #[error(transparent)]
    Client(#[from] rolegate_kube::client::ClientError),
    /// The file of workloads cannot be read.
    #[error("--workloads: {0}")]
    File(#[from] rolegate_kube::file::FileError),
    /// A socket that was handed over is none.
    #[error("a socket that the old agent handed over cannot be used")]
    Socket(#[from] std::io::Error),
}

impl StartError {
    /// Whether other flags or files are needed, and not another try.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Imds(_) | Self::Client(_) | Self::File(_))
    }
}

/// Where an agent listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The pods' port.
    pub pods: SocketAddr,
    /// The operators' port.
    pub admin: SocketAddr,
}

/// Why an agent ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The next agent has its sockets; this one only finishes what is open.
    HandedOver,
    /// A task that it cannot do without ended, which is a fault of rolegate.
    Broken(&'static str),
}

/// A task's end: what the agent cannot do without names itself.
type TaskEnd = Option<Ended>;

/// A running agent. Dropping it aborts everything; [`Agent::stop`] ends it in order.
#[derive(Debug)]
pub struct Agent {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    /// Ends what must end in order, such as the keeper of the redirect.
    stop: CancellationToken,
    /// The redirect may be taken away at the end, unless the next agent relies on it.
    removes_redirect: Option<Backend>,
    tasks: JoinSet<TaskEnd>,
}

impl Agent {
    /// Starts an agent; returns when it listens. What it needs and cannot have yet (the API
    /// server, STS) it goes on asking for, and says so in its readiness.
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
        // Addresses are tied to interfaces where pods come by the host's own redirect; a door
        // that others lead pods to sees other interfaces than the pods'.
        let attachments = options
            .redirect
            .as_ref()
            .map(|redirect| Attachments::open(redirect.attachments.clone()).map(Arc::new))
            .transpose()?;
        let health = NodeHealth::new(options.host_ip);
        let picture = Arc::new(Picture::default());
        let ground = mind::Ground {
            picture: picture.clone(),
            places: attachments.clone().map(|attachments| attachments as _),
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
        let mind::Mind {
            guard,
            judge,
            sessions,
            tell,
        } = match options.mind {
            MindOptions::Alone(alone) => mind::alone(*alone, ground).await?,
            MindOptions::Brokered(broker) => mind::brokered(broker, ground),
        };
        if let Some(attachments) = attachments {
            metrics.ours().register(
                "address_events_lost",
                "Times that the kernel dropped events about pods' addresses",
                attachments.losses(),
            );
            let follow = background::attachments(attachments, picture.clone(), stop.clone());
            tasks.spawn(passing(follow));
        }
        tasks.spawn(passing(background::picture_age(
            guard.clone(),
            options.door.max_picture_age,
            readiness.condition("picture"),
        )));
        let gauges = background::Gauges::new(sessions, guard.clone(), clock.clone());
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
            .map(|folder| Place::new(folder, options.listen.port()));
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

        let parts = DoorParts {
            picture: picture.clone(),
            judge: judge.clone(),
            guard,
            tokens: tokens.clone(),
            imds,
            clock: clock.clone(),
            metrics: agent_metrics,
            tell,
            health,
        };
        let door = Door::new(options.door, parts);
        if let Some(place) = place {
            let spare = (
                sockets.pods.as_fd().try_clone_to_owned()?,
                sockets.admin.as_fd().try_clone_to_owned()?,
            );
            tasks.spawn(hand_over(place, spare, tokens));
        }
        tasks.spawn(passing(background::limits(
            door.limits().clone(),
            clock,
            readiness.condition("limits"),
        )));
        let mut admin = Admin::new(Arc::new(metrics), readiness.clone());
        if options.debug {
            admin = admin.with_debug("store", move || crate::debug::store(&picture, &judge));
        }
        tasks.spawn(passing(admin.serve(sockets.admin, drain.clone())));
        tasks.spawn(passing(door.serve(sockets.pods, drain.clone())));
        if let Some(receipt) = sockets.receipt {
            match receipt.confirm().await {
                Ok(()) => info!("took over from the agent before"),
                Err(error) => warn!(%error, "the agent before is gone"),
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

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Whether it is ready, and why not.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Returns when the agent ends by itself.
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

    /// Ends it in order: takes nothing new, finishes what is open, up to `deadline`. The redirect
    /// stays, unless it was to be removed and `next` is false: no next agent has taken over.
    pub async fn stop(mut self, deadline: Duration, next: bool) {
        self.drain.drain(deadline).await;
        self.stop.cancel();
        self.tasks.shutdown().await;
        if let Some(backend) = self.removes_redirect
            && !next
        {
            match redirect::remove(backend).await {
                Ok(()) => warn!("the redirect is removed: pods reach the node's role"),
                Err(error) => tracing::error!(%error, "the redirect cannot be removed"),
            }
        }
    }
}

/// The listening sockets: new, or of the agent before.
struct Sockets {
    pods: TcpListener,
    admin: TcpListener,
    receipt: Option<Receipt>,
}

impl Sockets {
    async fn open(
        pods: SocketAddr,
        admin: SocketAddr,
        place: Option<&Place>,
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

/// What the agent before leaves, once this one knows the node's pods as well as that one does.
async fn inherit(place: &Place, readiness: &Readiness) -> Option<Estate> {
    if !place.is_taken().await {
        return None;
    }
    info!("another agent serves this node: getting ready before taking over");
    // Not before: an agent that cannot get ready must not push out one that works.
    let gone = async {
        while place.is_taken().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::select! {
        () = readiness.ready() => {}
        () = gone => return None,
    }
    place.take().await.unwrap_or_else(|error| {
        warn!(%error, "the agent before does not hand over");
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
            warn!(%error, "upgrades will have a gap");
            None
        }
    }
}

type Spare = (std::os::fd::OwnedFd, std::os::fd::OwnedFd);

async fn hand_over(place: Place, (pods, admin): Spare, tokens: Arc<TokenKeys>) -> TaskEnd {
    match place.offer(pods.as_fd(), admin.as_fd(), &tokens).await {
        Ok(()) => Some(Ended::HandedOver),
        Err(error) => {
            warn!(%error, "upgrades will have a gap");
            None
        }
    }
}

/// A task whose end is the agent's.
async fn vital(name: &'static str, task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    Some(Ended::Broken(name))
}

/// A task that may end.
async fn passing(task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    None
}
