//! The interfaces of this host by which the packets of a network namespace come in.
//!
//! The pairing of interfaces is the kernel's, which no pod can change: a pod can make the metadata
//! address unreachable for itself, but not look as if it came in by another interface.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use futures::TryStreamExt;
use netlink_packet_route::link::LinkAttribute;

use super::RedirectError;
use super::routing::connected;
use crate::attachment::kernel::Kernel;

/// An interface of this host.
#[derive(Debug, Default)]
struct HostInterface {
    name: String,
    /// The number of the network namespace that the other end is in.
    peer: Option<i32>,
    /// The index of the bridge that it is a port of.
    bridge: Option<u32>,
}

/// The names of the interfaces by which packets from the network namespace at `netns` come into this
/// one: those paired with one in there, or the bridge that they are ports of. Empty where nothing is
/// paired, as with macvlan.
///
/// # Errors
/// When the file cannot be opened, or the kernel cannot be asked.
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
    // Asked afterwards: listing the interfaces is what gives a namespace its number.
    let failed = |error: &dyn std::fmt::Display| RedirectError::Interfaces(error.to_string());
    let file = File::open(netns).map_err(|error| failed(&error))?;
    let kernel = Kernel::open(None).map_err(|error| failed(&error))?;
    let number = kernel
        .namespace(file.as_fd())
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
