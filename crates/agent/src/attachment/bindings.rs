//! What was first seen of each address, and whether it still is so. No I/O and no clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Attachment, Kind, Mac};

/// How long an address stays nobody's after it was seen elsewhere, though it is back: a neighbour
/// that takes turns with the pod must not win in between.
pub const HOLD_DOWN: Duration = Duration::from_secs(60);

/// Whether an address is where its pod was first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Same,
    /// It is elsewhere, or was within the last minute.
    Changed,
    /// Nobody can say: another pod owns the address, or the kernel doesn't know enough now.
    Unknown,
}

/// What the kernel tells by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An interface is gone; its index.
    LinkGone(u32),
    /// An address got a route of its own.
    Route {
        /// The address.
        addr: IpAddr,
        /// The interface of the route.
        ifindex: u32,
    },
    /// An address has a MAC address.
    Neighbour {
        /// The address.
        addr: IpAddr,
        /// The interface it is on.
        ifindex: u32,
        /// The MAC address.
        mac: Mac,
    },
    /// A bridge heard a MAC address on a port.
    Port {
        /// The MAC address.
        mac: Mac,
        /// The bridge's index.
        bridge: u32,
        /// The port's index.
        port: u32,
    },
    /// Events were lost: nothing is certain until all is looked at again.
    Lost,
}

#[derive(Debug)]
struct Binding {
    uid: String,
    first: Option<Attachment>,
    elsewhere: Option<Instant>,
}

/// The first attachment of each address, by the pod that owns it.
#[derive(Debug, Default)]
pub struct Bindings(HashMap<IpAddr, Binding>);

impl Bindings {
    /// A pod has an address, attached where `attachment` says, if that is known by now. What the
    /// same pod was first seen on stays; a new pod takes the address over. `uid` names one life
    /// of a pod.
    pub fn bind(&mut self, uid: &str, addr: IpAddr, attachment: Option<Attachment>) {
        match self.0.get_mut(&addr) {
            Some(binding) if binding.uid == uid => {
                if binding.first.is_none() {
                    binding.first = attachment;
                }
            }
            _ => {
                let binding = Binding {
                    uid: uid.to_owned(),
                    first: attachment,
                    elsewhere: None,
                };
                self.0.insert(addr, binding);
            }
        }
    }

    /// Forgets a pod and its addresses.
    pub fn forget(&mut self, uid: &str) {
        self.0.retain(|_, binding| binding.uid != uid);
    }

    /// All that is bound.
    pub fn bound(&self) -> Vec<(String, IpAddr)> {
        let pair = |(addr, binding): (&IpAddr, &Binding)| (binding.uid.clone(), *addr);
        self.0.iter().map(pair).collect()
    }

    /// Compares where an address is now with where its pod was first seen. What wasn't known
    /// then (a MAC address, a port, or all of it) is learnt now.
    pub fn check(
        &mut self,
        uid: &str,
        addr: IpAddr,
        current: &Attachment,
        now: Instant,
    ) -> Verdict {
        let Some(binding) = self.0.get_mut(&addr).filter(|binding| binding.uid == uid) else {
            return Verdict::Unknown;
        };
        let verdict = binding.compare(current);
        if verdict == Verdict::Changed {
            binding.elsewhere = Some(now);
        }
        match binding.elsewhere {
            Some(then) if now.saturating_duration_since(then) < HOLD_DOWN => Verdict::Changed,
            _ => verdict,
        }
    }

    /// Takes an event in; gives the addresses that it shows to be elsewhere.
    pub fn on_event(&mut self, event: &Event, now: Instant) -> Vec<IpAddr> {
        let mut changed = Vec::new();
        let mut consider = |addr: &IpAddr, binding: &mut Binding| {
            if binding.contradicts(*addr, event) {
                binding.elsewhere = Some(now);
                changed.push(*addr);
            }
        };
        match event {
            Event::Route { addr, .. } | Event::Neighbour { addr, .. } => {
                if let Some(binding) = self.0.get_mut(addr) {
                    consider(addr, binding);
                }
            }
            _ => self.0.iter_mut().for_each(|(addr, b)| consider(addr, b)),
        }
        changed
    }
}

impl Binding {
    fn compare(&mut self, current: &Attachment) -> Verdict {
        let first = self.first.get_or_insert_with(|| current.clone());
        if first.ifindex != current.ifindex {
            return Verdict::Changed;
        }
        match (&mut first.kind, &current.kind) {
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
                // A bridge that doesn't learn has no ports to tell.
                (Verdict::Same, _) if port.is_none() => Verdict::Same,
                (Verdict::Same, Verdict::Same) => Verdict::Same,
                _ => Verdict::Unknown,
            },
            _ => Verdict::Changed,
        }
    }

    fn contradicts(&self, own: IpAddr, event: &Event) -> bool {
        let Some(first) = &self.first else {
            return false;
        };
        match *event {
            Event::LinkGone(ifindex) => {
                first.ifindex == ifindex
                    || matches!(first.kind, Kind::Bridge { port: Some(port), .. } if port == ifindex)
            }
            Event::Route { addr, ifindex } => addr == own && ifindex != first.ifindex,
            Event::Neighbour { addr, ifindex, mac } => {
                addr == own
                    && ifindex == first.ifindex
                    && match first.kind {
                        Kind::Bridge { mac: Some(of), .. } | Kind::Shared { mac: Some(of) } => {
                            of != mac
                        }
                        _ => false,
                    }
            }
            Event::Port { mac, bridge, port } => {
                first.ifindex == bridge
                    && matches!(
                        first.kind,
                        Kind::Bridge { mac: Some(of), port: Some(at) } if of == mac && at != port
                    )
            }
            Event::Lost => false,
        }
    }
}

/// Compares a fact with what was first known of it, and learns it where it wasn't.
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
mod tests {
    use super::*;

    const ADDR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 5));
    const PODS: Mac = Mac([2, 0, 0, 0, 0, 5]);
    const THIEFS: Mac = Mac([2, 0, 0, 0, 0, 66]);

    fn on(ifindex: u32, kind: Kind) -> Attachment {
        let name = format!("if{ifindex}");
        Attachment {
            ifindex,
            name,
            kind,
        }
    }

    fn own(ifindex: u32) -> Attachment {
        on(ifindex, Kind::PointToPoint)
    }

    fn bridge(mac: Option<Mac>, port: Option<u32>) -> Attachment {
        on(3, Kind::Bridge { mac, port })
    }

    fn bound(attachment: Attachment) -> Bindings {
        let mut bindings = Bindings::default();
        bindings.bind("a", ADDR, Some(attachment));
        bindings
    }

    #[test]
    fn an_address_stays_with_its_first_interface_until_a_new_pod_owns_it() {
        let now = Instant::now();
        let mut bindings = bound(own(5));
        assert_eq!(bindings.check("a", ADDR, &own(5), now), Verdict::Same);
        assert_eq!(bindings.check("b", ADDR, &own(5), now), Verdict::Unknown);
        assert_eq!(bindings.check("a", ADDR, &own(6), now), Verdict::Changed);
        bindings.bind("a", ADDR, Some(own(6)));
        let later = now + 2 * HOLD_DOWN;
        assert_eq!(bindings.check("a", ADDR, &own(6), later), Verdict::Changed);
        bindings.bind("b", ADDR, Some(own(6)));
        assert_eq!(bindings.check("b", ADDR, &own(6), later), Verdict::Same);
        bindings.forget("b");
        assert_eq!(bindings.check("b", ADDR, &own(6), later), Verdict::Unknown);
        assert!(bindings.bound().is_empty());
    }

    #[test]
    fn a_neighbour_that_takes_turns_with_the_pod_never_wins() {
        let mut now = Instant::now();
        let mut bindings = bound(bridge(Some(PODS), Some(7)));
        for stolen in [
            bridge(Some(THIEFS), Some(8)),
            bridge(Some(PODS), Some(8)),
            on(3, Kind::Shared { mac: Some(PODS) }),
        ] {
            assert_eq!(bindings.check("a", ADDR, &stolen, now), Verdict::Changed);
            let back = bridge(Some(PODS), Some(7));
            now += HOLD_DOWN / 2;
            assert_eq!(bindings.check("a", ADDR, &back, now), Verdict::Changed);
            now += HOLD_DOWN;
            assert_eq!(bindings.check("a", ADDR, &back, now), Verdict::Same);
        }
    }

    #[test]
    fn what_was_not_known_at_first_is_learnt_once() {
        let now = Instant::now();
        let mut bindings = bound(bridge(None, None));
        let nothing = bridge(None, None);
        assert_eq!(bindings.check("a", ADDR, &nothing, now), Verdict::Unknown);
        let known = bridge(Some(PODS), Some(7));
        assert_eq!(bindings.check("a", ADDR, &known, now), Verdict::Same);
        let no_port = bridge(Some(PODS), None);
        assert_eq!(bindings.check("a", ADDR, &no_port, now), Verdict::Unknown);
        let other = bridge(Some(PODS), Some(8));
        assert_eq!(bindings.check("a", ADDR, &other, now), Verdict::Changed);
        let mut unlearning = bound(bridge(Some(PODS), None));
        assert_eq!(unlearning.check("a", ADDR, &no_port, now), Verdict::Same);
    }

    #[test]
    fn a_pod_seen_before_its_interface_is_bound_by_its_first_packet() {
        let now = Instant::now();
        let mut bindings = bound(own(5));
        bindings.bind("b", ADDR, None);
        assert!(bindings.on_event(&Event::LinkGone(5), now).is_empty());
        assert_eq!(bindings.check("a", ADDR, &own(5), now), Verdict::Unknown);
        assert_eq!(bindings.check("b", ADDR, &own(6), now), Verdict::Same);
        bindings.bind("b", ADDR, Some(own(7)));
        assert_eq!(bindings.check("b", ADDR, &own(7), now), Verdict::Changed);
    }

    #[test]
    fn events_that_contradict_name_the_address_and_others_do_not() {
        let now = Instant::now();
        let elsewhere = IpAddr::from([10, 1, 0, 6]);
        let neighbour = |addr, mac| Event::Neighbour {
            addr,
            ifindex: 3,
            mac,
        };
        let port = |mac, port| Event::Port {
            mac,
            bridge: 3,
            port,
        };
        let route = |addr, ifindex| Event::Route { addr, ifindex };
        for (attachment, harmless, telling) in [
            (
                own(5),
                vec![
                    Event::LinkGone(6),
                    route(ADDR, 5),
                    route(elsewhere, 6),
                    neighbour(ADDR, THIEFS),
                ],
                vec![Event::LinkGone(5), route(ADDR, 6)],
            ),
            (
                bridge(Some(PODS), Some(7)),
                vec![
                    Event::LinkGone(8),
                    neighbour(ADDR, PODS),
                    neighbour(elsewhere, THIEFS),
                    port(PODS, 7),
                    port(THIEFS, 8),
                ],
                vec![
                    Event::LinkGone(3),
                    Event::LinkGone(7),
                    neighbour(ADDR, THIEFS),
                    port(PODS, 8),
                ],
            ),
            (
                on(3, Kind::Shared { mac: Some(PODS) }),
                vec![neighbour(ADDR, PODS), Event::Lost],
                vec![neighbour(ADDR, THIEFS)],
            ),
        ] {
            let mut bindings = bound(attachment.clone());
            for event in &harmless {
                assert!(bindings.on_event(event, now).is_empty(), "{event:?}");
            }
            for event in &telling {
                let mut bindings = bound(attachment.clone());
                assert_eq!(bindings.on_event(event, now), [ADDR], "{event:?}");
                let verdict = bindings.check("a", ADDR, &attachment, now);
                assert_eq!(verdict, Verdict::Changed, "{event:?}");
            }
        }
    }
}
