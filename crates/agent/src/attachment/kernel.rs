//! Queries the kernel for the attachment of an address: its route, and on shared networks its
//! neighbor entry and bridge port; and for the pairing of host interfaces with namespaces.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use parking_lot::{Mutex, MutexGuard};
use rolegate_netlink::{Client, Error as NetlinkError, no_response};
use rolegate_redirect::rules::InterfacePattern;

use super::{Attachment, Kind, Mac};

/// Maximum length of an interface's name, in bytes.
const MAX_LINK_NAME: usize = 15;
/// Remote addresses that reveal the uplink interface. Nothing is sent there.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30)),
];

/// A client for the network namespace in which it was opened.
#[derive(Debug)]
pub struct Kernel {
    interface: Option<InterfacePattern>,
    client: Client,
    links: Mutex<HashMap<u32, Link>>,
}

/// A host interface and its peer, which the kernel set and no pod can change afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLink {
    /// Its index.
    pub ifindex: u32,
    /// The ID of the peer's network namespace.
    pub peer: Option<i32>,
    /// The index of its bridge, if it is a port.
    pub bridge: Option<u32>,
}

/// The relevant fields of an interface.
#[derive(Debug, Clone)]
struct Link {
    name: String,
    bridge: bool,
    /// True if pods may be behind it.
    pods: bool,
}

impl Kernel {
    /// Opens a client that considers only interfaces matching `interface`.
    ///
    /// # Errors
    /// Returns an error if no netlink socket is available.
    pub fn open(interface: Option<InterfacePattern>) -> Result<Self, NetlinkError> {
        Ok(Self {
            interface,
            client: Client::open()?,
            links: Mutex::default(),
        })
    }

    /// Returns the attachment of an address: the interface of this host's own route to it, and the
    /// current MAC address and port from the neighbor table and the bridge. It is `None` if it
    /// cannot be a pod's: an address of this host, one behind a gateway, or the uplink.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn resolve(&self, addr: IpAddr) -> Result<Option<Attachment>, NetlinkError> {
        let Some(mut place) = self.place(addr)? else {
            return Ok(None);
        };
        match &mut place.kind {
            Kind::PointToPoint => {}
            Kind::Bridge { mac, port } => {
                *mac = self.neighbour(addr, place.ifindex)?;
                if let Some(mac) = *mac {
                    *port = self.port(mac, place.ifindex)?;
                }
            }
            Kind::Shared { mac } => *mac = self.neighbour(addr, place.ifindex)?,
        }
        Ok(Some(place))
    }

    /// Returns the attachment without the parts that pods can influence: the MAC address and the
    /// port.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn place(&self, addr: IpAddr) -> Result<Option<Attachment>, NetlinkError> {
        let Some(route) = self.route(addr)? else {
            return Ok(None);
        };
        let Some(ifindex) = on_link(&route) else {
            return Ok(None);
        };
        let Some(link) = self.link(ifindex)?.filter(|link| link.pods) else {
            return Ok(None);
        };
        let host_route =
            route.header.destination_prefix_length == if addr.is_ipv4() { 32 } else { 128 };
        let kind = if link.bridge {
            Kind::Bridge {
                mac: None,
                port: None,
            }
        } else if host_route {
            Kind::PointToPoint
        } else {
            Kind::Shared { mac: None }
        };
        Ok(Some(Attachment {
            ifindex,
            name: link.name,
            kind,
        }))
    }

    /// Returns the ID of a network namespace, as [`Client::namespace_id`] does.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn namespace(&self, file: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        self.client.namespace_id(file)
    }

    /// Looks up an interface by name, uncached: the name may later belong to another interface.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn host_link(&self, name: &str) -> Result<Option<HostLink>, NetlinkError> {
        if !(1..=MAX_LINK_NAME).contains(&name.len()) {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let message = match self.ask(RouteNetlinkMessage::GetLink(message))? {
            Some(RouteNetlinkMessage::NewLink(message)) => message,
            other => return no_response(other),
        };
        let mut link = HostLink {
            ifindex: message.header.index,
            peer: None,
            bridge: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::LinkNetNsId(id) => link.peer = Some(id),
                LinkAttribute::Controller(bridge) => link.bridge = Some(bridge),
                _ => {}
            }
        }
        Ok(Some(link))
    }

    /// Removes a deleted interface from the cache.
    pub fn forget_link(&self, ifindex: u32) {
        self.links().remove(&ifindex);
    }

    /// Removes all interfaces from the cache: each may be deleted.
    pub fn forget_links(&self) {
        self.links().clear();
    }

    /// Returns the routing table's entry for an address.
    fn route(&self, addr: IpAddr) -> Result<Option<RouteMessage>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(addr);
        message.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
        message.header.flags = RouteFlags::FibMatch;
        message.attributes = vec![RouteAttribute::Destination(addr.into())];
        match self.ask(RouteNetlinkMessage::GetRoute(message))? {
            Some(RouteNetlinkMessage::NewRoute(route)) => Ok(Some(route)),
            other => no_response(other),
        }
    }

    fn neighbour(&self, addr: IpAddr, ifindex: u32) -> Result<Option<Mac>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(addr);
        message.header.ifindex = ifindex;
        message.attributes = vec![NeighbourAttribute::Destination(match addr {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        })];
        match self.ask(RouteNetlinkMessage::GetNeighbour(message))? {
            Some(RouteNetlinkMessage::NewNeighbour(neighbour)) => Ok(mac(&neighbour)),
            other => no_response(other),
        }
    }

    /// Returns the port on which a bridge last saw a MAC address.
    fn port(&self, mac: Mac, bridge: u32) -> Result<Option<u32>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
            NeighbourAttribute::Controller(bridge),
        ];
        match self.ask(RouteNetlinkMessage::GetNeighbour(message))? {
            Some(RouteNetlinkMessage::NewNeighbour(entry)) => Ok(Some(entry.header.ifindex)),
            other => no_response(other),
        }
    }

    /// Returns an interface, cached: an index never belongs to another interface.
    fn link(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        if let Some(link) = self.links().get(&ifindex) {
            return Ok(Some(link.clone()));
        }
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let Some(answer) = self.ask(RouteNetlinkMessage::GetLink(message))? else {
            return Ok(None);
        };
        let RouteNetlinkMessage::NewLink(message) = answer else {
            return no_response(Some(answer));
        };
        let mut link = Link {
            name: String::new(),
            bridge: false,
            pods: !message.header.flags.contains(LinkFlags::Loopback)
                && !self.is_uplink(ifindex)?,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::LinkInfo(infos) => {
                    link.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        if let Some(pattern) = &self.interface {
            link.pods &= pattern.matches(&link.name);
        }
        self.links().insert(ifindex, link.clone());
        Ok(Some(link))
    }

    /// Returns whether an interface is the uplink.
    fn is_uplink(&self, ifindex: u32) -> Result<bool, NetlinkError> {
        for far in FAR {
            if let Some(route) = self.route(far)?
                && route.attributes.contains(&RouteAttribute::Oif(ifindex))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn ask(
        &self,
        request: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        self.client.request(request)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<u32, Link>> {
        self.links.lock()
    }
}

/// Returns the interface of a route to a directly connected address.
fn on_link(route: &RouteMessage) -> Option<u32> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut oif = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => oif = Some(*ifindex),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                return None;
            }
            _ => {}
        }
    }
    oif
}

/// Returns the MAC address of an entry, if any.
pub(super) fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                bytes.as_slice().try_into().ok().map(Mac)
            }
            _ => None,
        })
}

fn family(addr: IpAddr) -> AddressFamily {
    match addr {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
