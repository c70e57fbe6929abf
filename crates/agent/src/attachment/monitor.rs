//! The kernel's own events about interfaces, routes, neighbours and bridge ports.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::kernel::mac;
use super::{AttachmentError, Event};

/// Bytes of events that the kernel keeps for us: thousands, so that a burst of pods loses none.
/// It is also the bound: a pod that makes the kernel talk (a bridge tells of each MAC address that
/// it hears) makes it drop events, which is told as [`Event::Lost`], and not us grow.
const RECEIVE_BUFFER: i32 = 1024 * 1024;
/// Bytes of one read: some tens of events.
const CHUNK: usize = 32 * 1024;

/// The [`Event`]s of the network namespace that it was opened in, from then on.
pub struct Monitor {
    socket: Socket,
    chunk: Vec<u8>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, AttachmentError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        for group in [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ] {
            socket.add_membership(group as u32)?;
        }
        Ok(Self {
            socket,
            chunk: Vec::with_capacity(CHUNK),
        })
    }

    /// Reads pending events, a few at a time; `None` without any. Whatever the kernel did
    /// before this call is included.
    ///
    /// # Errors
    /// When the socket has ended.
    pub fn read(&mut self) -> Result<Option<Vec<Event>>, AttachmentError> {
        self.chunk.clear();
        match self.socket.recv(&mut self.chunk, 0) {
            Ok(_) => Ok(Some(events(&self.chunk))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if overrun(&error) => Ok(Some(vec![Event::Lost])),
            Err(error) => Err(error.into()),
        }
    }

    /// The socket once more, to wait for events.
    ///
    /// # Errors
    /// Returns an error if there are no more file descriptors.
    pub fn socket(&self) -> Result<OwnedFd, AttachmentError> {
        Ok(self.socket.as_fd().try_clone_to_owned()?)
    }
}

fn overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

/// The events in a chunk of messages; what cannot be read is one that was lost.
fn events(mut chunk: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while !chunk.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(chunk) else {
            events.push(Event::Lost);
            return events;
        };
        // Messages begin at multiples of four bytes.
        let length = usize::try_from(message.header.length).unwrap_or(chunk.len());
        chunk = chunk
            .get(length.max(1).next_multiple_of(4)..)
            .unwrap_or_default();
        match message.payload {
            NetlinkPayload::Overrun(_) => events.push(Event::Lost),
            NetlinkPayload::InnerMessage(message) => events.extend(read(&message)),
            _ => {}
        }
    }
    events
}

fn read(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        // Bridges tell of a port that leaves in the same words, of their own family.
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
