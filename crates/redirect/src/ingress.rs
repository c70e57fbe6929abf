//! The interfaces of this host on which packets from a network namespace arrive.
//!
//! The kernel pairs interfaces, and no pod can change that. A pod can make the metadata address
//! unreachable for itself, but cannot pretend that its packets arrive on another interface.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use futures::TryStreamExt;
use netlink_packet_route::link::LinkAttribute;
use rolegate_netlink::Client;

use crate::RedirectError;
use crate::routing::connected;

/// An interface of this host.
#[derive(Debug, Default)]
struct HostInterface {
    name: String,
    /// The ID of the peer's network namespace.
    peer: Option<i32>,
    /// The index of its bridge, if it is a port.
    bridge: Option<u32>,
}

/// Returns the names of the interfaces on which packets from the network namespace at `netns`
/// arrive: those paired with one of its interfaces, or the bridge that they are ports of. It is
/// empty without pairs, as with macvlan.
///
/// # Errors
/// Returns an error if the file cannot be opened, or the kernel cannot be queried.
pub async fn ingress_interfaces(netns: &Path) -> Result<Vec<String>, RedirectError> {
    let interfaces = connected(async |handle| {
        let mut interfaces = HashMap::new();
        let mut links = handle.link().get().execute();
        let failed = |error: rtnetlink::Error| RedirectError::Interfaces(error.to_string());
        while let Some(link) = links.try_next().await.map_err(failed)? {
            let mut interface = HostInterface::default();
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => interface.name = name,
                    LinkAttribute::LinkNetNsId(id) => interface.peer = Some(id),
                    LinkAttribute::Controller(bridge) => interface.bridge = Some(bridge),
                    _ => {}
                }
            }
            interfaces.insert(link.header.index, interface);
        }
        Ok(interfaces)
    })
    .await?;
    // Queried afterwards, since listing the interfaces assigns an ID to a namespace.
    let failed = |error: &dyn std::fmt::Display| RedirectError::Interfaces(error.to_string());
    let file = File::open(netns).map_err(|error| failed(&error))?;
    let client = Client::open().map_err(|error| failed(&error))?;
    let number = client
        .namespace_id(file.as_fd())
        .map_err(|error| failed(&error))?;
    Ok(match number {
        Some(number) if number >= 0 => ingress(&interfaces, number),
        _ => Vec::new(),
    })
}

fn ingress(interfaces: &HashMap<u32, HostInterface>, number: i32) -> Vec<String> {
    let paired = interfaces
        .values()
        .filter(|interface| interface.peer == Some(number));
    let entered = paired.map(|interface| {
        let bridge = interface.bridge.and_then(|index| interfaces.get(&index));
        bridge.unwrap_or(interface).name.clone()
    });
    entered.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_counts_and_not_its_port() {
        let interface = |name: &str, peer, bridge| HostInterface {
            name: name.into(),
            peer,
            bridge,
        };
        let interfaces = HashMap::from([
            (1, interface("eth0", None, None)),
            (2, interface("eni3", Some(4), None)),
            (3, interface("cni0", None, None)),
            (4, interface("veth1", Some(5), Some(3))),
            (5, interface("veth2", Some(5), Some(3))),
        ]);
        assert_eq!(ingress(&interfaces, 4), ["eni3"]);
        assert_eq!(ingress(&interfaces, 5), ["cni0"]);
        assert!(ingress(&interfaces, 6).is_empty());
    }
}
