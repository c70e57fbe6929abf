//! The listening sockets: opened, or taken over from the previous agent, and handed over to the
//! next.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::listen;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::endpoint::{EndpointSockets, listener};
use super::{Addresses, StartError};
use crate::container_credentials::MAX_ADDRESSES;
use crate::handover::{Ack, HandoverSocket, Inherited, OfferedSockets};
use crate::runtime_folder::RuntimeFolder;
use crate::token::{KeyRing, TokenKeys};

/// Interval at which a new agent that is not ready yet checks whether the previous one still runs.
const PREDECESSOR_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The listening sockets.
pub(super) struct Sockets {
    pub(super) pods: TcpListener,
    pub(super) admin: TcpListener,
    /// The sockets of the container credentials endpoint, if it is enabled.
    pub(super) container_credentials: Option<EndpointSockets>,
    /// Informs the previous agent, if the sockets are its own.
    pub(super) receipt: Option<Ack>,
}

impl Sockets {
    /// Takes over the sockets of the previous agent and its keys, or opens new sockets. `endpoint`
    /// are the addresses of the container credentials endpoint, if it is enabled.
    pub(super) async fn open(
        addresses: Addresses,
        endpoint: Option<&[SocketAddr]>,
        place: Option<&HandoverSocket>,
        readiness: &Readiness,
    ) -> Result<(Self, Option<KeyRing>), StartError> {
        let inherited = match place {
            Some(place) => inherit(place, readiness).await,
            None => None,
        };
        let (mut sockets, keys, endpoints) = match inherited {
            Some(inherited) => {
                let sockets = Self {
                    pods: listener(inherited.pods)?,
                    admin: listener(inherited.admin)?,
                    container_credentials: None,
                    receipt: Some(inherited.receipt),
                };
                (sockets, Some(inherited.keys), inherited.endpoints)
            }
            None => {
                let sockets = Self {
                    pods: listen(addresses.pods)?,
                    admin: listen(addresses.admin)?,
                    container_credentials: None,
                    receipt: None,
                };
                (sockets, None, Vec::new())
            }
        };
        if let Some(endpoint) = endpoint {
            let condition = readiness.condition("container-credentials");
            let opened = EndpointSockets::open(endpoint, endpoints, condition).await?;
            sockets.container_credentials = Some(opened);
        }
        Ok((sockets, keys))
    }

    /// Returns the bound addresses.
    pub(super) fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            pods: self.pods.local_addr()?,
            admin: self.admin.local_addr()?,
            container_credentials: self
                .container_credentials
                .as_ref()
                .map_or([None; MAX_ADDRESSES], EndpointSockets::addresses),
        })
    }

    /// Returns the task that offers the sockets to the next agent. It cancels `handed_over` once
    /// the next agent has them.
    pub(super) fn offer(
        &self,
        place: HandoverSocket,
        tokens: Arc<TokenKeys>,
        handed_over: CancellationToken,
    ) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
        let pods = self.pods.as_fd().try_clone_to_owned()?;
        let admin = self.admin.as_fd().try_clone_to_owned()?;
        let endpoint = self.container_credentials.iter();
        let endpoints = endpoint
            .flat_map(EndpointSockets::listeners)
            .map(|listener| listener.as_fd().try_clone_to_owned())
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(async move {
            let endpoints: Vec<_> = endpoints.iter().map(AsFd::as_fd).collect();
            let sockets = OfferedSockets {
                pods: pods.as_fd(),
                admin: admin.as_fd(),
                endpoints: &endpoints,
            };
            match place.offer(sockets, &tokens).await {
                Ok(()) => handed_over.cancel(),
                Err(error) => {
                    warn!(%error, "cannot hand over sockets; upgrades will drop connections");
                }
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

/// Opens the folder of the handover socket.
pub(super) fn folder(path: &Path) -> Option<Arc<RuntimeFolder>> {
    match RuntimeFolder::open(path) {
        Ok(folder) => Some(Arc::new(folder)),
        Err(error) => {
            warn!(%error, "cannot hand over sockets; upgrades will drop connections");
            None
        }
    }
}
