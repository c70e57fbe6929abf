//! Ties a pod's address to the host's interface that it was first seen on.
//!
//! An address alone proves little: once a pod is gone its address goes to another one, and a
//! picture of the cluster that is seconds old gives that one the first one's role; a neighbour on
//! a bridge takes an address by one forged ARP reply. The kernel knows better. A pod has an
//! interface, interfaces don't come back, and on a bridge there is a port and a MAC address for
//! each pod. What doesn't match what was first seen is nobody's, until a new pod owns it.
//!
//! [`Kernel`] asks, [`Bindings`] remembers and compares, [`Attachments`] is both, kept up to date
//! by the kernel's events.

mod bindings;
mod kernel;
mod monitor;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rolegate_core::redirect::InterfacePattern;
use tokio_util::sync::CancellationToken;

pub use bindings::{Bindings, Event, HOLD_DOWN, Verdict};
pub use kernel::Kernel;
pub use monitor::Monitor;

/// How often all is looked at again, and changes are told, when there is no end of them.
const PACE: Duration = Duration::from_secs(1);

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentError {
    /// No netlink socket, or it failed.
    #[error("cannot ask the kernel for routes and neighbours: {0}")]
    Socket(#[from] std::io::Error),
    /// The answer makes no sense.
    #[error("the kernel's answer about routes and neighbours can't be read: {0}")]
    Answer(String),
}

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where an address is joined to this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The interface's index; the kernel doesn't use one again.
    pub ifindex: u32,
    /// The interface's name, for people.
    pub name: String,
    /// What else tells the address from its neighbours.
    pub kind: Kind,
}

/// How an interface is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A route for this address alone: the interface is one pod's.
    PointToPoint,
    /// A bridge, where each pod has a port. What isn't known yet is nothing.
    Bridge {
        /// The pod's MAC address.
        mac: Option<Mac>,
        /// The index of the bridge's port that it was last heard on.
        port: Option<u32>,
    },
    /// Another network that pods share, macvlan for one: the MAC address is all there is, and
    /// pods may be able to forge it.
    Shared {
        /// The pod's MAC address.
        mac: Option<Mac>,
    },
}

impl Attachment {
    /// Whether only a MAC address tells the pod from its neighbours: worth a warning.
    pub fn can_be_forged(&self) -> bool {
        matches!(self.kind, Kind::Shared { .. })
    }
}

/// The host's attachments of this node's pods.
#[derive(Debug)]
pub struct Attachments {
    kernel: Kernel,
    bindings: Mutex<Bindings>,
}

impl Attachments {
    /// Attachments to the interfaces that `interface` matches; to all but the uplink without it.
    /// They are those of the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open(interface: Option<InterfacePattern>) -> Result<Self, AttachmentError> {
        Ok(Self {
            kernel: Kernel::open(interface)?,
            bindings: Mutex::default(),
        })
    }

    /// Where an address is attached now.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn resolve(&self, addr: IpAddr) -> Result<Option<Attachment>, AttachmentError> {
        self.kernel.resolve(addr)
    }

    /// A pod was seen with an address: ties them to where the address is attached now, unless
    /// they are tied already. A new pod takes the address over. `uid` names one life of a pod.
    /// Call it for each address of each pod, as soon as it is known: where the kernel has no route
    /// yet, the pod's first connection is what ties it.
    ///
    /// # Errors
    /// When the kernel can't be asked; the pod owns the address nevertheless.
    pub fn seen(&self, uid: &str, addr: IpAddr) -> Result<(), AttachmentError> {
        let attachment = self.kernel.resolve(addr);
        let known = attachment.as_ref().ok().cloned().flatten();
        self.bindings().bind(uid, addr, known);
        attachment.map(|_| ())
    }

    /// Whether an address still is where the pod that was [`seen`](Self::seen) with it was first
    /// attached; asks the kernel each time, some microseconds. Only [`Verdict::Same`] is good for
    /// credentials.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn check(&self, uid: &str, addr: IpAddr) -> Result<Verdict, AttachmentError> {
        let Some(current) = self.kernel.resolve(addr)? else {
            return Ok(Verdict::Unknown);
        };
        Ok(self.bindings().check(uid, addr, &current, Instant::now()))
    }

    /// A pod is gone.
    pub fn forget(&self, uid: &str) {
        self.bindings().forget(uid);
    }

    /// Follows the kernel's events until `cancel`, and names each address whose attachment has
    /// changed: its open connections are to be closed. When events were lost, every address is
    /// looked at again. Nothing else depends on this task: [`check`](Self::check) asks for itself.
    ///
    /// # Errors
    /// When there is no netlink socket to be had, or it ends.
    pub async fn run(
        &self,
        mut on_change: impl FnMut(IpAddr) + Send,
        cancel: CancellationToken,
    ) -> Result<(), AttachmentError> {
        let mut monitor = Monitor::open()?;
        let mut told: Option<Instant> = None;
        while let Some(event) = cancel.run_until_cancelled(monitor.next()).await {
            let event = event?;
            if let Event::LinkGone(ifindex) = event {
                self.kernel.forget_link(ifindex);
            }
            let changed = if event == Event::Lost {
                self.look_again()?
            } else {
                self.bindings().on_event(&event, Instant::now())
            };
            for addr in changed {
                // Neighbours can cause these as quickly as they like.
                if told.is_none_or(|told| told.elapsed() >= PACE) {
                    told = Some(Instant::now());
                    tracing::warn!(%addr, ?event, "an address is no longer where its pod was first seen: it gets no credentials");
                }
                on_change(addr);
            }
            if event == Event::Lost {
                tokio::time::sleep(PACE).await;
            }
        }
        Ok(())
    }

    fn look_again(&self) -> Result<Vec<IpAddr>, AttachmentError> {
        let bound = self.bindings().bound();
        let mut changed = Vec::new();
        for (uid, addr) in bound {
            let same = match self.kernel.resolve(addr)? {
                Some(current) => self.bindings().check(&uid, addr, &current, Instant::now()),
                None => Verdict::Changed,
            };
            if same == Verdict::Changed {
                changed.push(addr);
            }
        }
        Ok(changed)
    }

    fn bindings(&self) -> MutexGuard<'_, Bindings> {
        self.bindings.lock().unwrap_or_else(|e| e.into_inner())
    }
}
