//! Ties a pod's address to its attachment on this host.
//!
//! An address alone does not identify a pod. After a pod is removed, another one gets its address,
//! and a pod table that is seconds old would assign the first one's role to it. A neighbor on a
//! bridge takes over an address with one forged ARP reply. So an address only counts at its pod's
//! attachment.
//!
//! If a pod has its own interface, the attachment comes from the host's routing table, and packets
//! from elsewhere are dropped. On a bridge, traffic does not identify pods, so the attachment comes
//! from the container runtime's records, which root writes ([`cni_results`]): the MAC address, and
//! the port, which is the host's end of the pair whose other end is in the recorded namespace.
//! Unrecorded addresses belong to no pod.
//!
//! [`Kernel`] queries, [`Bindings`] stores and compares, and [`Attachments`] combines both. The
//! kernel's events and changes of the records keep it up to date.

mod adopted;
mod bindings;
pub mod cni_results;
mod events;
mod follow;
pub(crate) mod kernel;
mod monitor;

use std::fmt;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use rolegate_core::workload::Workload;
use rolegate_netlink::Error as NetlinkError;
use rolegate_redirect::rules::InterfacePattern;
use tokio::sync::Notify;

use cni_results::{Assigned, Folder, Recorded, Records};
use events::{Events, Reached};
use monitor::Monitor;

pub use bindings::{Bindings, Event, HOLD_DOWN, Verdict};
pub use events::HALF_OPEN;
pub use kernel::{HostLink, Kernel};

/// Minimum interval between two warnings of one kind.
const WARN_INTERVAL: Duration = Duration::from_secs(1);
/// Size of the kernel's event buffer, in bytes. Neither a burst of pods nor a pod that keeps
/// sending from new MAC addresses should make the kernel drop events.
pub const EVENT_BUFFER: usize = rolegate_netlink::RECEIVE_BUFFER;
/// Maximum number of reads that one check makes to read all events. Together they can read the
/// whole buffer of the kernel. A pod that causes events faster than they are read must not delay a
/// request any longer.
const MAX_READS: usize = 96;

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

/// The identity of one pod instance for the API server and the container runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodId {
    /// Its UID.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl From<&Workload> for PodId {
    fn from(workload: &Workload) -> Self {
        Self {
            uid: workload.uid.clone(),
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
        }
    }
}

/// The attachment of an address to this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The interface's index, which the kernel does not reuse.
    pub ifindex: u32,
    /// The interface's name, for messages.
    pub name: String,
    /// The features that distinguish the address from its neighbors.
    pub kind: Kind,
}

/// The way in which an interface is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A route for this address alone: the interface belongs to one pod.
    PointToPoint,
    /// A bridge, on which each pod has a port. Unknown values are `None`.
    Bridge {
        /// The pod's MAC address.
        mac: Option<Mac>,
        /// The index of the bridge's port.
        port: Option<u32>,
    },
    /// Another network that pods share, such as macvlan. Only the MAC address identifies the pod,
    /// and pods may be able to forge it.
    Shared {
        /// The pod's MAC address.
        mac: Option<Mac>,
    },
}

impl Attachment {
    /// Returns whether only a MAC address identifies the pod, which deserves a warning.
    pub fn can_be_forged(&self) -> bool {
        matches!(self.kind, Kind::Shared { .. })
    }

    /// Returns whether other pods are behind the same interface.
    pub fn is_shared(&self) -> bool {
        self.kind != Kind::PointToPoint
    }
}

/// The treatment of an address on a shared network that the container runtime has not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unrecorded {
    /// Assign it to no pod.
    #[default]
    Refuse,
    /// Learn its attachment from the first packet, which any neighbor can send.
    Learn,
}

/// The options for attachments.
#[derive(Debug, Clone)]
pub struct AttachmentOptions {
    /// The interfaces that pods are behind; `None`: all except the uplink.
    pub interface: Option<InterfacePattern>,
    /// The directory of the container runtime's records, or `None` if the node has no such
    /// directory.
    pub results_dir: Option<PathBuf>,
    /// The user that writes them: root, 0.
    pub results_owner: u32,
    /// The directory of pods' network namespaces.
    pub netns_dir: PathBuf,
    /// The treatment of addresses without a record.
    pub unrecorded: Unrecorded,
    /// Size of the kernel's event buffer, in bytes. [`EVENT_BUFFER`] except in tests.
    pub event_buffer: usize,
}

/// The effect of reading the records again.
#[derive(Debug)]
struct Reread {
    /// True if the attachment of an address changed.
    moved: bool,
    /// True if the runtime recorded addresses that no request could find before.
    added: bool,
}

/// The attachments of this node's pods to the host.
#[derive(Debug)]
pub struct Attachments {
    kernel: Kernel,
    events: Mutex<Events<Monitor>>,
    bindings: Mutex<Bindings>,
    folder: Mutex<Option<Folder>>,
    results_dir: Option<PathBuf>,
    records: Mutex<Arc<Records>>,
    netns_dir: PathBuf,
    unrecorded: Unrecorded,
    /// A counter of the changes that invalidate earlier checks.
    generation: AtomicU64,
    /// Notified when a pod needs a record that does not exist.
    wanted: Notify,
    /// Notified when the kernel dropped events.
    lost: Notify,
    /// The number of such losses.
    losses: Counter,
    /// Notified when all events are read again, after a check that was refused because some were
    /// not.
    recovered: Notify,
    /// The number of addresses without a record at the last count.
    missing: AtomicUsize,
    /// True after a pod's address that a neighbor could take over was seen.
    forgeable: AtomicBool,
    warned: Mutex<Option<Instant>>,
}

impl Attachments {
    /// Opens the attachments of the calling thread's network namespace. The kernel's events are
    /// collected from now on, and the records are read.
    ///
    /// # Errors
    /// Returns an error if no netlink socket is available.
    pub fn open(options: AttachmentOptions) -> Result<Self, NetlinkError> {
        let folder = |path| Folder::new(path, options.results_owner);
        let attachments = Self {
            kernel: Kernel::open(options.interface)?,
            events: Mutex::new(Events::new(Monitor::open(options.event_buffer)?)),
            bindings: Mutex::new(match options.unrecorded {
                Unrecorded::Refuse => Bindings::default(),
                Unrecorded::Learn => Bindings::learning(),
            }),
            folder: Mutex::new(options.results_dir.clone().map(folder)),
            results_dir: options.results_dir,
            records: Mutex::default(),
            netns_dir: options.netns_dir,
            unrecorded: options.unrecorded,
            generation: AtomicU64::new(1),
            wanted: Notify::new(),
            lost: Notify::new(),
            losses: Counter::default(),
            recovered: Notify::new(),
            missing: AtomicUsize::new(0),
            forgeable: AtomicBool::new(false),
            warned: Mutex::default(),
        };
        attachments.read_records();
        Ok(attachments)
    }

    /// Returns the current attachment of an address.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn resolve(&self, addr: IpAddr) -> Result<Option<Attachment>, NetlinkError> {
        self.kernel.resolve(addr)
    }

    /// Sets the complete list of a pod's addresses, and binds them to their attachment if the
    /// routing table or the records contain it already. Known attachments stay.
    pub fn seen(&self, pod: PodId, addresses: &[IpAddr]) {
        let pod = Arc::new(pod);
        lock(&self.bindings).claim(&pod, addresses);
        for address in addresses {
            self.try_bind(&pod, *address);
            if !lock(&self.bindings).is_bound(&pod.uid, *address) {
                self.wanted.notify_one();
            }
        }
        self.moved();
    }

    /// Compares the attachment of an address with its pod's, for a connection that was accepted at
    /// this time. It queries the kernel each time, which takes a few microseconds. Only
    /// [`Verdict::Same`] permits credentials.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn check(
        &self,
        uid: &str,
        addr: IpAddr,
        accepted: Instant,
    ) -> Result<Verdict, NetlinkError> {
        for tries_left in (0..MAX_READS).rev() {
            // A neighbor's action before this request counts, even if it has been undone since.
            let reached = self.catch_up()?;
            let Some(current) = self.kernel.resolve(addr)? else {
                return Ok(Verdict::Unknown);
            };
            if current.is_shared() && !reached.all && tries_left > 0 {
                continue;
            }
            let verdict = lock(&self.bindings).check(uid, addr, &current, Instant::now());
            if verdict == Verdict::Unrecorded {
                self.wanted.notify_one();
            }
            return Ok(reached.confirm(verdict, &current, accepted));
        }
        Ok(Verdict::Unknown)
    }

    /// Returns whether `place` is the attachment of a pod's address.
    pub fn is_home(&self, uid: &str, addr: IpAddr, place: Option<&Attachment>) -> bool {
        lock(&self.bindings).is_home(uid, addr, place)
    }

    /// Removes a pod.
    pub fn forget(&self, uid: &str) {
        lock(&self.bindings).forget(uid);
        self.moved();
    }

    /// Returns a number that changes with each change that may invalidate an earlier
    /// [`check`](Self::check). It is never 0.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the counter of event losses.
    pub fn losses(&self) -> Counter {
        self.losses.clone()
    }

    /// Returns a warning about the addresses for operators, if any.
    pub fn concern(&self) -> Option<String> {
        let missing = self.missing.load(Ordering::Relaxed);
        let place = match &self.results_dir {
            Some(path) => format!("in {}", path.display()),
            None => "(--cni-results-dir is empty)".to_owned(),
        };
        match self.unrecorded {
            Unrecorded::Refuse if missing > 0 => Some(format!(
                "{missing} addresses of pods on a shared network are missing from the container \
                 runtime's records {place}: they get no credentials"
            )),
            Unrecorded::Learn if missing > 0 => Some(format!(
                "{missing} addresses of pods on a shared network are missing from the container \
                 runtime's records {place}: a neighbor can take them over (--unrecorded-addresses=learn)"
            )),
            _ if self.forgeable.load(Ordering::Relaxed) => Some(
                "pods share an interface on which a neighbor can take over another pod's address"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Reads the records again and rebinds all addresses accordingly. Returns whether any address
    /// has moved. It reads files, so it must not be called while serving a request.
    pub fn read_records(&self) -> bool {
        self.reread().moved
    }

    fn reread(&self) -> Reread {
        let mut folder = lock(&self.folder);
        let records = match folder.as_mut().map(Folder::read) {
            None => Records::default(),
            Some(Ok(records)) => records,
            Some(Err(error)) => {
                if !lock(&self.bindings).claims().is_empty() {
                    self.warn(
                        || tracing::warn!(%error, "cannot bind addresses on bridges to their pods"),
                    );
                }
                Records::default()
            }
        };
        let records = Arc::new(records);
        let earlier = std::mem::replace(&mut *lock(&self.records), records.clone());
        drop(folder);
        lock(&self.bindings).keep_adopted(|pod, addr| records.names(pod, addr));
        let added = records.adds_to(&earlier);
        let mut changed = false;
        let mut missing = 0;
        let claims = lock(&self.bindings).claims();
        for (pod, addr) in claims {
            changed |= self.try_bind(&pod, addr);
            if self.needs_record(addr) && !lock(&self.bindings).was_recorded(&pod.uid, addr) {
                missing += 1;
                if lock(&self.bindings).report(&pod.uid, addr) {
                    tracing::warn!(
                        namespace = &*pod.namespace, pod = &*pod.name, address = %addr,
                        "the container runtime has no record of this pod's address, which is the only way to identify it on a shared network"
                    );
                }
            }
        }
        self.missing.store(missing, Ordering::Relaxed);
        if changed {
            self.moved();
        }
        Reread {
            moved: changed,
            added,
        }
    }

    /// Binds an address to its attachment, and returns whether that differs from the previous one.
    fn try_bind(&self, pod: &PodId, addr: IpAddr) -> bool {
        self.bind(pod, addr).unwrap_or_else(|error| {
            self.warn(|| tracing::warn!(address = %addr, %error, "cannot query the kernel for the attachment of a pod's address"));
            false
        })
    }

    fn bind(&self, pod: &PodId, addr: IpAddr) -> Result<bool, NetlinkError> {
        let Some(place) = self.kernel.place(addr)? else {
            return Ok(false);
        };
        if place.kind == Kind::PointToPoint {
            lock(&self.bindings).learn(&pod.uid, addr, place);
            return Ok(false);
        }
        if place.can_be_forged() && !self.forgeable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                interface = place.name,
                "pods share an interface on which a neighbor can take over another pod's address, unless the network plugin prevents it"
            );
        }
        let records = lock(&self.records).clone();
        let recorded = match records.assigned(pod, addr, |netns| self.exists(netns)) {
            Assigned::To(record) if lock(&self.bindings).is_bound_by(&pod.uid, addr, &record) => {
                return Ok(false);
            }
            Assigned::To(record) => self.home(place, &record)?.map(|home| (home, record)),
            Assigned::Unrecorded => None,
            Assigned::Twice => {
                self.warn(|| tracing::warn!(address = %addr, "the container runtime recorded an address for two network namespaces; assigning it to no pod"));
                None
            }
        };
        Ok(lock(&self.bindings).record(&pod.uid, addr, recorded))
    }

    /// Returns the attachment that a record describes on this network: on a bridge, the port whose
    /// other end is in the recorded namespace.
    fn home(
        &self,
        mut place: Attachment,
        record: &Recorded,
    ) -> Result<Option<Attachment>, NetlinkError> {
        // Without a MAC address there would be no event when a neighbor claims the address.
        let Some(recorded) = record.mac else {
            return Ok(None);
        };
        match &mut place.kind {
            Kind::PointToPoint => {}
            Kind::Shared { mac } => *mac = Some(recorded),
            Kind::Bridge { mac, port } => {
                let links = self.host_links(record)?.into_iter();
                let ports: Vec<_> = links
                    .filter(|link| link.bridge == Some(place.ifindex))
                    .collect();
                let [only] = ports.as_slice() else {
                    return Ok(None);
                };
                (*mac, *port) = (Some(recorded), Some(only.ifindex));
            }
        }
        Ok(Some(place))
    }

    /// Returns the host's interfaces in a record whose other end is in the recorded namespace.
    fn host_links(&self, record: &Recorded) -> Result<Vec<HostLink>, NetlinkError> {
        let Some(namespace) = self.namespace(&record.netns)?.filter(|id| *id >= 0) else {
            return Ok(Vec::new());
        };
        let mut links = Vec::new();
        for name in &*record.host_links {
            let link = self.kernel.host_link(name)?;
            links.extend(link.filter(|link| link.peer == Some(namespace)));
        }
        Ok(links)
    }

    /// Returns whether a network namespace exists.
    fn exists(&self, netns: &str) -> bool {
        matches!(self.namespace(netns), Ok(Some(_)))
    }

    /// Returns the ID of a network namespace by name, as [`Kernel::namespace`] does.
    fn namespace(&self, name: &str) -> Result<Option<i32>, NetlinkError> {
        match File::open(self.netns_dir.join(name)) {
            Ok(file) => self.kernel.namespace(file.as_fd()),
            Err(_) => Ok(None),
        }
    }

    fn needs_record(&self, addr: IpAddr) -> bool {
        let place = self.kernel.place(addr);
        place.is_ok_and(|place| place.is_some_and(|place| place.kind != Kind::PointToPoint))
    }

    /// Applies the events that the kernel has reported so far, up to a limit.
    fn catch_up(&self) -> Result<Reached, NetlinkError> {
        let reached = lock(&self.events).catch_up(|event| self.take_in(event))?;
        self.reached(&reached);
        Ok(reached)
    }

    /// Applies the result of reading the events.
    fn reached(&self, reached: &Reached) {
        if reached.unsure || !reached.all {
            // A lost or unread event may be a move of any address, so no earlier check is valid.
            self.moved();
        }
        if reached.unsure {
            self.lost.notify_one();
        }
        if reached.recovered {
            self.recovered.notify_one();
        }
    }

    fn take_in(&self, event: &Event) {
        match event {
            Event::LinkGone(ifindex) => self.kernel.forget_link(*ifindex),
            Event::Lost => {
                self.losses.inc();
                // An interface may be gone.
                self.kernel.forget_links();
                self.warn(|| tracing::warn!("the kernel dropped events about pods' addresses; closing earlier connections on networks that pods share"));
            }
            _ => {}
        }
        let changed = lock(&self.bindings).on_event(event, Instant::now());
        if changed.is_empty() {
            return;
        }
        self.moved();
        for addr in changed {
            // Neighbors can cause these events at any rate.
            self.warn(|| tracing::warn!(%addr, %event, "an address is no longer attached to its pod; refusing credentials"));
        }
    }

    /// Checks every address again.
    fn recheck_all(&self) -> Result<(), NetlinkError> {
        let claims = lock(&self.bindings).claims();
        for (pod, addr) in claims {
            if let Some(current) = self.kernel.resolve(addr)? {
                lock(&self.bindings).check(&pod.uid, addr, &current, Instant::now());
            }
        }
        self.moved();
        Ok(())
    }

    fn moved(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn warn(&self, warn: impl FnOnce()) {
        let mut warned = lock(&self.warned);
        if warned.is_none_or(|warned| warned.elapsed() >= WARN_INTERVAL) {
            *warned = Some(Instant::now());
            warn();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests;
