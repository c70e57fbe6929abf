//! The listening sockets: opened, or taken over from the previous agent, and handed over to the
//! next.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{ListenError, listen};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::endpoint::{EndpointSockets, listener};
use super::{Addresses, StartError};
use crate::container_credentials::MAX_ADDRESSES;
use crate::handover::{Ack, HandoverSocket, Inherited, Offer, OfferedSockets};
use crate::runtime_folder::RuntimeFolder;
use crate::token::{KeyRing, TokenKeys};

/// Interval at which a new agent that is not ready yet checks whether the previous one still runs.
const PREDECESSOR_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Time within which a previous agent of another version must stop listening.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between attempts to open the ports of such an agent. Pods cannot connect meanwhile.
const RELEASE_CHECK_INTERVAL: Duration = Duration::from_millis(10);

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
        let previous = match place {
            Some(place) => succeed(place, readiness).await,
            None => Previous::None,
        };
        let released = matches!(previous, Previous::Released);
        let (mut sockets, keys, endpoints) = match previous {
            Previous::Inherited(inherited) => {
                let sockets = Self {
                    pods: listener(inherited.pods)?,
                    admin: listener(inherited.admin)?,
                    container_credentials: None,
                    receipt: Some(inherited.receipt),
                };
                (sockets, Some(inherited.keys), inherited.endpoints)
            }
            Previous::Released | Previous::None => {
                let sockets = Self {
                    pods: listen_released(addresses.pods, released).await?,
                    admin: listen_released(addresses.admin, released).await?,
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

/// The previous agent on these ports.
enum Previous {
    /// No agent, or one that does not hand over.
    None,
    /// It handed over its sockets and keys.
    Inherited(Box<Inherited>),
    /// It received the request to stop listening.
    Released,
}

/// Takes over from the previous agent, once this one knows the node's pods.
async fn succeed(place: &HandoverSocket, readiness: &Readiness) -> Previous {
    if !place.is_taken().await {
        return Previous::None;
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
        () = gone => return Previous::None,
    }
    let taken = match place.take().await {
        Ok(None) => return Previous::None,
        Ok(Some(Offer::Sockets(inherited))) => return Previous::Inherited(inherited),
        Ok(Some(Offer::OtherVersion { version, receipt })) => {
            warn!(
                version,
                "the previous agent hands over in another version; telling it to stop listening, \
                 which drops waiting connections and invalidates metadata tokens"
            );
            receipt.confirm().await.map(|()| Previous::Released)
        }
        Err(error) => Err(error),
    };
    taken.unwrap_or_else(|error| {
        warn!(%error, "socket handover from the previous agent failed; this upgrade will drop connections");
        Previous::None
    })
}

/// Opens a port. If a previous agent was requested to stop listening on it, waits until it has.
async fn listen_released(address: SocketAddr, released: bool) -> Result<TcpListener, ListenError> {
    let opened = async {
        loop {
            match listen(address) {
                Err(error) if released && error.source.kind() == ErrorKind::AddrInUse => {
                    tokio::time::sleep(RELEASE_CHECK_INTERVAL).await;
                }
                done => return done,
            }
        }
    };
    match tokio::time::timeout(RELEASE_TIMEOUT, opened).await {
        Ok(done) => done,
        Err(_) => listen(address),
    }
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rolegate_runtime::readiness::Readiness;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// An agent of another version stops listening only after this one's reply.
    #[tokio::test]
    async fn ports_of_an_agent_of_another_version_are_opened_once_it_releases_them() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = RuntimeFolder::open(folder.path()).unwrap();
        let free = || listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (pods, admin) = (free(), free());
        let addresses = Addresses {
            pods: pods.local_addr().unwrap(),
            admin: admin.local_addr().unwrap(),
            container_credentials: Default::default(),
        };
        let place = HandoverSocket::new(&runtime, addresses.pods.port());
        let name = runtime.name(addresses.pods.port(), "sock");
        let handover = UnixListener::bind(runtime.join(&name)).unwrap();
        let old = async {
            // The first connections only check whether an agent is there.
            loop {
                let (mut stream, _) = handover.accept().await.unwrap();
                let _ = stream.write_all(&[99]).await;
                if stream.read_u8().await.is_ok() {
                    break;
                }
            }
            tokio::time::sleep(RELEASE_CHECK_INTERVAL * 3).await;
            drop((pods, admin));
        };
        let readiness = Readiness::new();
        let new = Sockets::open(addresses, None, Some(&place), &readiness);
        let ((), opened) = tokio::join!(old, new);
        let (sockets, keys) = opened.unwrap();
        assert!(keys.is_none() && sockets.receipt.is_none());
        assert_eq!(sockets.addresses().unwrap().pods, addresses.pods);
        assert_eq!(sockets.addresses().unwrap().admin, addresses.admin);
    }
}
