//! Ties a pod's address to its place on this host.
//!
//! An address alone proves little: once a pod is gone its address goes to another one, and a
//! picture of the cluster that is seconds old gives that one the first one's role; a neighbour on
//! a bridge takes an address by one forged ARP reply. So an address counts only at its pod's place.
//!
//! If a pod has an interface of its own, its place comes from the host's routing table, and packets
//! from elsewhere are dropped. On a bridge, traffic doesn't identify pods, so the place comes from
//! the container runtime's records, made as root ([`cni_results`]): the MAC address, and the port,
//! which is the host's end of the pair whose other end is in the recorded namespace. Unrecorded
//! addresses belong to no pod.
//!
//! [`Kernel`] asks, [`Bindings`] remembers and compares, [`Attachments`] is both, kept up to date
//! by the kernel's events and by changes of the records.

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
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use rolegate_core::redirect::InterfacePattern;
use rolegate_core::workload::Workload;
use tokio::sync::Notify;

use cni_results::{Assigned, Folder, Recorded, Records};
use events::{Events, Reached};
use monitor::Monitor;

pub use bindings::{Bindings, Event, HOLD_DOWN, Verdict};
pub use events::HALF_OPEN;
pub use kernel::{HostLink, Kernel};

/// The least time between two warnings of one kind.
const PACE: Duration = Duration::from_secs(1);
/// Bytes of events that the kernel keeps for us, so that neither a burst of pods nor a pod that sends
/// from ever new MAC addresses makes it drop some.
pub const EVENT_BUFFER: usize = crate::netlink::RECEIVE_BUFFER;
/// Tries of a look to read all events: together they read what the kernel keeps at the most. A pod
/// that makes the kernel report faster than they are read must not hold up a request for longer.
const TRIES: usize = 96;

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

/// One life of a pod, as the API server and the container runtime name it.
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
    /// A bridge, where each pod has a port. What isn't known is nothing.
    Bridge {
        /// The pod's MAC address.
        mac: Option<Mac>,
        /// The index of the bridge's port.
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

    /// Whether other pods are behind the same interface.
    pub fn is_shared(&self) -> bool {
        self.kind != Kind::PointToPoint
    }
}

/// The treatment of an address on a shared network that the container runtime has not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unrecorded {
    /// It belongs to no pod.
    #[default]
    Refuse,
    /// It belongs where its first packet comes from. Any neighbour can send that packet.
    Learn,
}

/// Settings for locating addresses.
#[derive(Debug, Clone)]
pub struct AttachmentOptions {
    /// The interfaces that pods are behind; all but the uplink without it.
    pub interface: Option<InterfacePattern>,
    /// The folder of the container runtime's records, or `None` if there isn't one.
    pub results_dir: Option<PathBuf>,
    /// The user that writes them: root, 0.
    pub results_owner: u32,
    /// The folder of pods' network namespaces.
    pub netns_dir: PathBuf,
    /// The treatment of addresses without a record.
    pub unrecorded: Unrecorded,
    /// Bytes of events that the kernel keeps for us; [`EVENT_BUFFER`] but for tests.
    pub event_buffer: usize,
}

/// The host's attachments of this node's pods.
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
    /// Grows with each change that makes earlier looks worthless.
    generation: AtomicU64,
    /// A pod needs a record that isn't there.
    wanted: Notify,
    /// The kernel dropped events.
    lost: Notify,
    /// How often it did.
    losses: Counter,
    /// All events are read again, after a look that was refused because some were not.
    recovered: Notify,
    /// Addresses without a record, when they were last counted.
    missing: AtomicUsize,
    /// A pod's address that a neighbour could take was seen.
    forgeable: AtomicBool,
    warned: Mutex<Option<Instant>>,
}

impl Attachments {
    /// Attachments of the calling thread's network namespace. The kernel's events are collected
    /// from here on, and the records are read.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open(options: AttachmentOptions) -> Result<Self, AttachmentError> {
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

    /// Where an address is attached now.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn resolve(&self, addr: IpAddr) -> Result<Option<Attachment>, AttachmentError> {
        self.kernel.resolve(addr)
    }

    /// A pod has these addresses and no others: binds all of them to their place, as far as the
    /// routing table or the records tell it by now. What was known of them stays.
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

    /// Compares where an address is with its pod's place, for a connection that was accepted at this
    /// time; asks the kernel each time, some microseconds. Only [`Verdict::Same`] is good for
    /// credentials.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn check(
        &self,
        uid: &str,
        addr: IpAddr,
        accepted: Instant,
    ) -> Result<Verdict, AttachmentError> {
        for tries_left in (0..TRIES).rev() {
            // A neighbour's action before this request counts, even if it has been undone since.
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

    /// Returns whether `place` is a pod's place for its address.
    pub fn is_home(&self, uid: &str, addr: IpAddr, place: Option<&Attachment>) -> bool {
        lock(&self.bindings).is_home(uid, addr, place)
    }

    /// A pod is gone.
    pub fn forget(&self, uid: &str) {
        lock(&self.bindings).forget(uid);
        self.moved();
    }

    /// A number that changes with each change that may make an earlier [`check`](Self::check)
    /// wrong; never 0.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Counts how often the kernel dropped events.
    pub fn losses(&self) -> Counter {
        self.losses.clone()
    }

    /// Returns anything an operator should know about the addresses here.
    pub fn concern(&self) -> Option<String> {
        let missing = self.missing.load(Ordering::Relaxed);
        let place = match &self.results_dir {
            Some(path) => format!("in {}", path.display()),
            None => "(--cni-results-dir is empty)".to_owned(),
        };
        match self.unrecorded {
            Unrecorded::Refuse if missing > 0 => Some(format!(
                "{missing} addresses of pods on a shared network have no record of the container \
                 runtime {place}: they get no credentials"
            )),
            Unrecorded::Learn if missing > 0 => Some(format!(
                "{missing} addresses of pods on a shared network have no record of the container \
                 runtime {place}: a neighbour can take them (--unrecorded-addresses=learn)"
            )),
            _ if self.forgeable.load(Ordering::Relaxed) => Some(
                "pods share an interface on which a neighbour can take another's address"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Reads the records again and rebinds all addresses accordingly. Returns whether any address
    /// has moved. Reads files, so it must not be called while serving a request.
    pub fn read_records(&self) -> bool {
        let mut folder = lock(&self.folder);
        let records = match folder.as_mut().map(Folder::read) {
            None => Records::default(),
            Some(Ok(records)) => records,
            Some(Err(error)) => {
                if !lock(&self.bindings).claims().is_empty() {
                    self.warn(
                        || tracing::warn!(%error, "no address on a bridge can be bound to its pod"),
                    );
                }
                Records::default()
            }
        };
        *lock(&self.records) = Arc::new(records);
        drop(folder);
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
                        "the container runtime has no record of this pod's address: on a shared network nothing else tells it from its neighbours"
                    );
                }
            }
        }
        self.missing.store(missing, Ordering::Relaxed);
        if changed {
            self.moved();
        }
        changed
    }

    /// Binds an address to its place, and returns whether that differs from the previous one.
    fn try_bind(&self, pod: &PodId, addr: IpAddr) -> bool {
        self.bind(pod, addr).unwrap_or_else(|error| {
            self.warn(|| tracing::warn!(address = %addr, %error, "cannot ask the kernel where a pod's address is"));
            false
        })
    }

    fn bind(&self, pod: &PodId, addr: IpAddr) -> Result<bool, AttachmentError> {
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
                "pods share an interface on which a neighbour can take another's address, unless the network plugin prevents it"
            );
        }
        let records = lock(&self.records).clone();
        let exists = |netns: &str| matches!(self.namespace(netns), Ok(Some(_)));
        let recorded = match records.assigned(pod, addr, exists) {
            Assigned::To(record) if lock(&self.bindings).is_bound_by(&pod.uid, addr, &record) => {
                return Ok(false);
            }
            Assigned::To(record) => self.home(place, &record)?.map(|home| (home, record)),
            Assigned::Unrecorded => None,
            Assigned::Twice => {
                self.warn(|| tracing::warn!(address = %addr, "the container runtime recorded an address for two network namespaces: it belongs to no pod"));
                None
            }
        };
        Ok(lock(&self.bindings).record(&pod.uid, addr, recorded))
    }

    /// The place that a record names on this network: on a bridge the port whose other end is in
    /// the recorded namespace.
    fn home(
        &self,
        mut place: Attachment,
        record: &Recorded,
    ) -> Result<Option<Attachment>, AttachmentError> {
        // Without a MAC address there would be no telling when a neighbour claims the address.
        let Some(recorded) = record.mac else {
            return Ok(None);
        };
        match &mut place.kind {
            Kind::PointToPoint => {}
            Kind::Shared { mac } => *mac = Some(recorded),
            Kind::Bridge { mac, port } => {
                let Some(namespace) = self.namespace(&record.netns)?.filter(|id| *id >= 0) else {
                    return Ok(None);
                };
                let mut ports = Vec::new();
                for name in &*record.host_links {
                    if let Some(link) = self.kernel.host_link(name)?
                        && link.peer == Some(namespace)
                        && link.bridge == Some(place.ifindex)
                    {
                        ports.push(link.ifindex);
                    }
                }
                let [only] = ports.as_slice() else {
                    return Ok(None);
                };
                (*mac, *port) = (Some(recorded), Some(*only));
            }
        }
        Ok(Some(place))
    }

    /// The number of the network namespace of that name, as [`Kernel::namespace`].
    fn namespace(&self, name: &str) -> Result<Option<i32>, AttachmentError> {
        match File::open(self.netns_dir.join(name)) {
            Ok(file) => self.kernel.namespace(file.as_fd()),
            Err(_) => Ok(None),
        }
    }

    fn needs_record(&self, addr: IpAddr) -> bool {
        let place = self.kernel.place(addr);
        place.is_ok_and(|place| place.is_some_and(|place| place.kind != Kind::PointToPoint))
    }

    /// Takes in the events that the kernel has reported so far, up to a bound.
    fn catch_up(&self) -> Result<Reached, AttachmentError> {
        let reached = lock(&self.events).catch_up(|event| self.take_in(event))?;
        self.reached(&reached);
        Ok(reached)
    }

    /// Draws the conclusions from a reading of the events.
    fn reached(&self, reached: &Reached) {
        if reached.unsure || !reached.all {
            // What was lost, or is left to read, may be a move of any address: no earlier look
            // counts.
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
                self.warn(|| tracing::warn!("the kernel dropped events about pods' addresses: on networks that pods share, connections from before are closed"));
            }
            _ => {}
        }
        let changed = lock(&self.bindings).on_event(event, Instant::now());
        if changed.is_empty() {
            return;
        }
        self.moved();
        for addr in changed {
            // Neighbours can cause these as quickly as they like.
            self.warn(|| tracing::warn!(%addr, %event, "an address is no longer at its pod's place: it gets no credentials"));
        }
    }

    /// Looks at every address again.
    fn look_again(&self) -> Result<(), AttachmentError> {
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
        if warned.is_none_or(|warned| warned.elapsed() >= PACE) {
            *warned = Some(Instant::now());
            warn();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
