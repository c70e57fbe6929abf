//! The kernel's own events about interfaces, routes, neighbours and bridge ports.

use std::io;
use std::net::IpAddr;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use tokio::task::JoinHandle;

use super::kernel::mac;
use super::{AttachmentError, Event};

/// Bytes of events that the kernel keeps for us: thousands, so that a burst of pods loses none.
const RECEIVE_BUFFER: i32 = 4 * 1024 * 1024;

/// A stream of [`Event`]s of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Monitor {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    reading: JoinHandle<()>,
}

impl Monitor {
    /// Subscribes; needs a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, AttachmentError> {
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        connection
            .socket_mut()
            .socket_mut()
            .set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self {
            messages,
            reading: tokio::spawn(connection),
        })
    }

    /// The next event.
    ///
    /// # Errors
    /// When the socket has ended.
    pub async fn next(&mut self) -> Result<Event, AttachmentError> {
        loop {
            let Some((message, _)) = self.messages.next().await else {
                let ended = io::Error::other("the stream of events has ended");
                return Err(AttachmentError::Socket(ended));
            };
            let event = match message.payload {
                NetlinkPayload::Overrun(_) => Some(Event::Lost),
                NetlinkPayload::InnerMessage(message) => read(&message),
                _ => None,
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reading.abort();
    }
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
