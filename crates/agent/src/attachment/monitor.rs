//! The kernel's events about interfaces, routes, neighbors and bridge ports.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rolegate_netlink::{Error as NetlinkError, Notifications, Reading, Source, messages};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::Event;
use super::events::EventSource;
use super::kernel::mac;

/// The [`Event`]s of the network namespace in which it was opened, from then on.
pub(super) struct Monitor(Notifications);

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes with a kernel buffer of `buffer` bytes.
    ///
    /// # Errors
    /// Returns an error if no netlink socket is available.
    pub(super) fn open(buffer: usize) -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link as u32,
            MulticastGroup::Neigh as u32,
            MulticastGroup::Ipv4Route as u32,
            MulticastGroup::Ipv6Route as u32,
        ];
        Ok(Self(Notifications::open(NETLINK_ROUTE, &groups, buffer)?))
    }

    /// Duplicates the socket, to wait for events.
    ///
    /// # Errors
    /// Returns an error if there are no file descriptors left.
    pub(super) fn socket(&self) -> Result<OwnedFd, NetlinkError> {
        Ok(self.0.socket()?)
    }
}

impl EventSource for Monitor {
    fn read(&mut self) -> Result<Option<Vec<Event>>, NetlinkError> {
        Ok(match self.0.read()? {
            Reading::Messages(chunk) => Some(events(chunk)),
            Reading::Lost => Some(vec![Event::Lost]),
            Reading::Drained => None,
        })
    }
}

/// Parses the events in a chunk of messages. An unreadable message counts as lost.
fn events(chunk: &[u8]) -> Vec<Event> {
    messages(chunk).filter_map(event).collect()
}

fn event(message: Option<&[u8]>) -> Option<Event> {
    let message = message.and_then(|bytes| NetlinkMessage::deserialize(bytes).ok());
    match message.map(|message| message.payload) {
        None | Some(NetlinkPayload::Overrun(_)) => Some(Event::Lost),
        Some(NetlinkPayload::InnerMessage(message)) => read(&message),
        Some(_) => None,
    }
}

fn read(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        // Bridges report a removed port with the same message type, in their own address family.
        RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family == AddressFamily::Unspec =>
        {
            Some(Event::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewRoute(route) => host_route(route),
        RouteNetlinkMessage::NewNeighbour(neighbour) => neighbour_event(neighbour),
        _ => None,
    }
}

fn host_route(route: &RouteMessage) -> Option<Event> {
    let mut addr = None;
    let mut oif = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => addr = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => addr = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(ifindex) => oif = Some(*ifindex),
            _ => {}
        }
    }
    let (addr, ifindex) = (addr?, oif?);
    let whole = if addr.is_ipv4() { 32 } else { 128 };
    (route.header.destination_prefix_length == whole).then_some(Event::Route { addr, ifindex })
}

fn neighbour_event(message: &NeighbourMessage) -> Option<Event> {
    let mac = mac(message)?;
    let ifindex = message.header.ifindex;
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Controller(bridge)
                if message.header.family == AddressFamily::Bridge =>
            {
                Some(Event::Port {
                    mac,
                    bridge: *bridge,
                    port: ifindex,
                })
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(Event::Neighbour {
                addr: IpAddr::V4(*ip),
                ifindex,
                mac,
            }),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                Some(Event::Neighbour {
                    addr: IpAddr::V6(*ip),
                    ifindex,
                    mac,
                })
            }
            _ => None,
        })
}

#[cfg(test)]
mod tests;
