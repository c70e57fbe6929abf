//! The attachment of each pod's addresses, and the check that they are still there. No I/O and no
//! clock.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cni_results::Recorded;
use super::{Attachment, Kind, Mac, PodId};

/// The time for which an address stays refused after it was seen elsewhere, even if it is back: a
/// neighbor that alternates with the pod must not succeed in between.
pub const HOLD_DOWN: Duration = Duration::from_secs(60);

/// The result of comparing an address with its pod's attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is attached to its pod.
    Same,
    /// It is elsewhere, or was within the last minute.
    Changed,
    /// The container runtime has not recorded it for the pod, on a network on which only the record
    /// distinguishes the pod from its neighbors.
    Unrecorded,
    /// The kernel dropped events while the connection was open or being opened, on a network that
    /// pods share, so the address may have been elsewhere meanwhile. The connection stays refused.
    EventsLost,
    /// The kernel has too little information, its events could not be read completely, or no such
    /// pod has the address.
    Unknown,
}

/// A change that the kernel reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An interface was removed, with its index.
    LinkGone(u32),
    /// A route to an address alone was added.
    Route {
        /// The address.
        addr: IpAddr,
        /// The interface of the route.
        ifindex: u32,
    },
    /// A MAC address was resolved for an address.
    Neighbour {
        /// The address.
        addr: IpAddr,
        /// The interface of the address.
        ifindex: u32,
        /// The MAC address.
        mac: Mac,
    },
    /// A bridge learned a MAC address on a port.
    Port {
        /// The MAC address.
        mac: Mac,
        /// The bridge's index.
        bridge: u32,
        /// The port's index.
        port: u32,
    },
    /// Events were lost: everything must be checked again.
    Lost,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkGone(ifindex) => write!(f, "interface {ifindex} is gone"),
            Self::Route { addr, ifindex } => write!(f, "route of {addr} by interface {ifindex}"),
            Self::Neighbour { addr, ifindex, mac } => {
                write!(f, "neighbour {addr} at {mac} on interface {ifindex}")
            }
            Self::Port { mac, bridge, port } => {
                write!(f, "{mac} at port {port} of bridge {bridge}")
            }
            Self::Lost => f.write_str("events of the kernel were lost"),
        }
    }
}

/// A pod's claim to one of its addresses.
#[derive(Debug)]
struct Binding {
    pod: Arc<PodId>,
    /// The attachment; unknown until found in the routing table or the runtime's records.
    home: Option<Attachment>,
    /// The record with the attachment.
    record: Option<Arc<Recorded>>,
    elsewhere: Option<Instant>,
    /// True once a record has been seen: a runtime removes it before the pod's object is deleted.
    was_recorded: bool,
    reported: bool,
    /// True if only the runtime's record claims the address: the API server has not reported it.
    is_adopted: bool,
}

impl Binding {
    fn new(pod: Arc<PodId>, is_adopted: bool) -> Self {
        Self {
            pod,
            home: None,
            record: None,
            elsewhere: None,
            was_recorded: false,
            reported: false,
            is_adopted,
        }
    }
}

/// The attachment of each address, for each pod that claims it. Claims are independent: when one
/// pod is removed, the others keep theirs.
#[derive(Debug, Default)]
pub struct Bindings {
    claims: HashMap<IpAddr, Vec<Binding>>,
    /// True if the first packet on a shared network may determine the attachment of an address.
    learns: bool,
}

impl Bindings {
    /// Creates bindings that learn the attachment of an unrecorded address on a shared network from
    /// its first packet, which any neighbor can send.
    pub fn learning() -> Self {
        Self {
            learns: true,
            ..Self::default()
        }
    }

    /// Sets the complete list of a pod's addresses. Known attachments stay.
    pub fn claim(&mut self, pod: &Arc<PodId>, addresses: &[IpAddr]) {
        self.retain(|addr, binding| binding.pod.uid != pod.uid || addresses.contains(&addr));
        for addr in addresses {
            let claims = self.claims.entry(*addr).or_default();
            match claims.iter_mut().find(|it| it.pod.uid == pod.uid) {
                Some(binding) => binding.is_adopted = false,
                None => claims.push(Binding::new(pod.clone(), false)),
            }
        }
    }

    /// Adds an address that only the container runtime's record claims for a pod. Returns whether
    /// the claim is new.
    pub fn adopt(&mut self, pod: PodId, addr: IpAddr) -> bool {
        let claims = self.claims.entry(addr).or_default();
        let is_new = claims.iter().all(|binding| binding.pod.uid != pod.uid);
        if is_new {
            claims.push(Binding::new(Arc::new(pod), true));
        }
        is_new
    }

    /// Removes the claims of [`adopt`](Self::adopt) that the records no longer support.
    pub fn keep_adopted(&mut self, is_recorded: impl Fn(&PodId, IpAddr) -> bool) {
        self.retain(|addr, binding| !binding.is_adopted || is_recorded(&binding.pod, addr));
    }

    /// Sets the attachment of an address from the routing table, if only its pod can be there. The
    /// first attachment applies for the pod's lifetime.
    pub fn learn(&mut self, uid: &str, addr: IpAddr, home: Attachment) {
        if let Some(binding) = self.binding(uid, addr)
            && binding.home.is_none()
        {
            binding.home = Some(home);
        }
    }

    /// Applies the container runtime's record of an address: its attachment, or that it is not this
    /// pod's (`None`). It replaces earlier information. Returns whether anything changed.
    pub fn record(
        &mut self,
        uid: &str,
        addr: IpAddr,
        recorded: Option<(Attachment, Arc<Recorded>)>,
    ) -> bool {
        let learns = self.learns;
        let Some(binding) = self.binding(uid, addr) else {
            return false;
        };
        let learnt = binding.record.is_none() && binding.home.is_some();
        let (home, record) = recorded.unzip();
        if binding.home == home || (home.is_none() && learnt && learns) {
            return false;
        }
        binding.elsewhere = None;
        binding.was_recorded |= record.is_some();
        (binding.home, binding.record) = (home, record);
        true
    }

    /// Returns whether exactly this record determined the attachment of an address.
    pub fn is_bound_by(&mut self, uid: &str, addr: IpAddr, record: &Arc<Recorded>) -> bool {
        self.binding(uid, addr)
            .and_then(|binding| binding.record.as_ref())
            .is_some_and(|known| Arc::ptr_eq(known, record))
    }

    /// Returns true the first time that an address is found to be unrecorded, so that it is
    /// reported once.
    pub fn report(&mut self, uid: &str, addr: IpAddr) -> bool {
        self.binding(uid, addr)
            .is_some_and(|binding| !std::mem::replace(&mut binding.reported, true))
    }

    /// Removes a pod and its addresses.
    pub fn forget(&mut self, uid: &str) {
        self.retain(|_, binding| &*binding.pod.uid != uid);
    }

    /// Returns all claims.
    pub fn claims(&self) -> Vec<(Arc<PodId>, IpAddr)> {
        let pods = |(addr, claims): (&IpAddr, &Vec<Binding>)| {
            let addr = *addr;
            let pod = move |binding: &Binding| (binding.pod.clone(), addr);
            claims.iter().map(pod).collect::<Vec<_>>()
        };
        self.claims.iter().flat_map(pods).collect()
    }

    /// Returns whether a pod's address has an attachment.
    pub fn is_bound(&self, uid: &str, addr: IpAddr) -> bool {
        let claims = self.claims.get(&addr).map_or(&[][..], Vec::as_slice);
        let mut own = claims.iter().filter(|binding| &*binding.pod.uid == uid);
        own.any(|binding| binding.home.is_some())
    }

    /// Returns whether the container runtime has, or had, a record of a pod's address.
    pub fn was_recorded(&self, uid: &str, addr: IpAddr) -> bool {
        let claims = self.claims.get(&addr).map_or(&[][..], Vec::as_slice);
        let mut own = claims.iter().filter(|binding| &*binding.pod.uid == uid);
        own.any(|binding| binding.was_recorded)
    }

    /// Returns whether `place` is the attachment of a pod's address. If the interface is the pod's
    /// own, only the interface is compared.
    pub fn is_home(&self, uid: &str, addr: IpAddr, place: Option<&Attachment>) -> bool {
        let claims = self.claims.get(&addr).map_or(&[][..], Vec::as_slice);
        let own = claims.iter().find(|binding| &*binding.pod.uid == uid);
        own.and_then(|binding| binding.home.as_ref())
            .is_some_and(|home| {
                let is_there =
                    |place: &Attachment| place.ifindex == home.ifindex && place.kind == home.kind;
                !home.is_shared() || place.is_some_and(is_there)
            })
    }

    /// Compares the current attachment of an address with its pod's. An unknown attachment is
    /// learned now if only this pod can have it. On a shared network it never is, unless these
    /// bindings are [`learning`](Self::learning).
    pub fn check(
        &mut self,
        uid: &str,
        addr: IpAddr,
        current: &Attachment,
        now: Instant,
    ) -> Verdict {
        let learns = self.learns;
        let Some(binding) = self.binding(uid, addr) else {
            return Verdict::Unknown;
        };
        let verdict = binding.compare(current, learns);
        if verdict == Verdict::Changed {
            binding.elsewhere = Some(now);
        }
        match binding.elsewhere {
            Some(then) if now.saturating_duration_since(then) < HOLD_DOWN => Verdict::Changed,
            _ => verdict,
        }
    }

    /// Applies an event, and returns the addresses that it shows to be elsewhere.
    pub fn on_event(&mut self, event: &Event, now: Instant) -> Vec<IpAddr> {
        let mut changed = Vec::new();
        let mut consider = |addr: &IpAddr, claims: &mut Vec<Binding>| {
            for binding in claims {
                if binding.contradicts(*addr, event) {
                    binding.elsewhere = Some(now);
                    changed.push(*addr);
                }
            }
        };
        match event {
            Event::Route { addr, .. } | Event::Neighbour { addr, .. } => {
                if let Some(claims) = self.claims.get_mut(addr) {
                    consider(addr, claims);
                }
            }
            _ => self
                .claims
                .iter_mut()
                .for_each(|(addr, c)| consider(addr, c)),
        }
        changed
    }

    fn binding(&mut self, uid: &str, addr: IpAddr) -> Option<&mut Binding> {
        let claims = self.claims.get_mut(&addr)?;
        claims.iter_mut().find(|binding| &*binding.pod.uid == uid)
    }

    fn retain(&mut self, kept: impl Fn(IpAddr, &Binding) -> bool) {
        self.claims.retain(|addr, claims| {
            claims.retain(|binding| kept(*addr, binding));
            !claims.is_empty()
        });
    }
}

impl Binding {
    fn compare(&mut self, current: &Attachment, learns: bool) -> Verdict {
        let home = match &mut self.home {
            Some(home) => home,
            None if learns || current.kind == Kind::PointToPoint => {
                self.home.insert(current.clone())
            }
            None => return Verdict::Unrecorded,
        };
        if home.ifindex != current.ifindex {
            return Verdict::Changed;
        }
        match (&mut home.kind, &current.kind) {
            (Kind::PointToPoint, Kind::PointToPoint) => Verdict::Same,
            (Kind::Shared { mac }, Kind::Shared { mac: now }) => settle(mac, *now),
            (
                Kind::Bridge { mac, port },
                Kind::Bridge {
                    mac: mac_now,
                    port: port_now,
                },
            ) => match (settle(mac, *mac_now), settle(port, *port_now)) {
                (Verdict::Changed, _) | (_, Verdict::Changed) => Verdict::Changed,
                (Verdict::Same, Verdict::Same) => Verdict::Same,
                // Without a port the bridge would flood the response to all ports.
                _ => Verdict::Unknown,
            },
            _ => Verdict::Changed,
        }
    }

    fn contradicts(&self, own: IpAddr, event: &Event) -> bool {
        let Some(home) = &self.home else {
            return false;
        };
        match *event {
            Event::LinkGone(ifindex) => {
                home.ifindex == ifindex
                    || matches!(home.kind, Kind::Bridge { port: Some(port), .. } if port == ifindex)
            }
            Event::Route { addr, ifindex } => addr == own && ifindex != home.ifindex,
            Event::Neighbour { addr, ifindex, mac } => {
                addr == own
                    && ifindex == home.ifindex
                    && match home.kind {
                        Kind::Bridge { mac: Some(of), .. } | Kind::Shared { mac: Some(of) } => {
                            of != mac
                        }
                        _ => false,
                    }
            }
            Event::Port { mac, bridge, port } => {
                home.ifindex == bridge
                    && matches!(
                        home.kind,
                        Kind::Bridge { mac: Some(of), port: Some(at) } if of == mac && at != port
                    )
            }
            Event::Lost => false,
        }
    }
}

/// Compares a fact with the known one. Facts from a record are always known; others are learned.
fn settle<T: PartialEq + Copy>(first: &mut Option<T>, now: Option<T>) -> Verdict {
    match (*first, now) {
        (_, None) => Verdict::Unknown,
        (None, Some(_)) => {
            *first = now;
            Verdict::Same
        }
        (Some(first), Some(now)) if first == now => Verdict::Same,
        _ => Verdict::Changed,
    }
}

#[cfg(test)]
mod tests;
