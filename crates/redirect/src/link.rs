//! The link that carries the addresses of the container credentials endpoint.
//!
//! Pods reach the endpoint by its well-known addresses, so the host must own them. They are on a link
//! of their own, so that no other interface's configuration affects them: a dummy link, or, where
//! the kernel has none, a bridge without ports, which serves this purpose in the same way.

use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkDummy, LinkUnspec};
use rustix::io::Errno;

use crate::RedirectError;
use crate::routing::connected;

/// The name of the link.
pub const ENDPOINT_LINK: &str = "rolegate-cc0";

/// The reason why the link cannot carry an address.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Another link has the address.
    #[error(
        "the address {address} belongs to the link {link}, which is not rolegate's: stop the program \
         that created it, such as the EKS Pod Identity Agent, and remove it with ip link del {link}"
    )]
    Taken {
        /// The address.
        address: IpAddr,
        /// The name of its link.
        link: String,
    },
    /// A link with the name exists and is of another kind.
    #[error("the link {ENDPOINT_LINK} exists and is neither a dummy link nor a bridge: remove it")]
    OtherKind,
    /// The kernel cannot be queried.
    #[error(transparent)]
    Netlink(#[from] RedirectError),
    /// The kernel refuses the link or the address.
    #[error(
        "the kernel refuses {what} of {ENDPOINT_LINK}: {why}; the agent needs the host's network and \
         the capability NET_ADMIN"
    )]
    Refused {
        /// The refused object: the link, or an address.
        what: String,
        /// The kernel's reason.
        why: String,
    },
}

/// The result of [`ensure_link`].
#[derive(Debug, Default)]
pub struct LinkState {
    /// True if the link was created or changed.
    pub changed: bool,
    /// The addresses that the link cannot carry, such as those of IPv6 on a host without it.
    pub missing: Vec<(IpAddr, LinkError)>,
}

/// Creates the link if it is missing, and adds these addresses, each as a single host. It is
/// idempotent. An address that cannot be added is reported and does not prevent the others.
///
/// # Errors
/// Returns an error if the link itself cannot be created.
pub async fn ensure_link(addresses: &[IpAddr]) -> Result<LinkState, LinkError> {
    connected(async |handle| Ok(ensure(&handle, addresses).await)).await?
}

/// Removes the link with its addresses, and returns whether it existed.
///
/// # Errors
/// Returns an error if the kernel refuses.
pub async fn remove_link() -> Result<bool, LinkError> {
    connected(async |handle| Ok(remove(&handle).await)).await?
}

async fn ensure(handle: &Handle, addresses: &[IpAddr]) -> Result<LinkState, LinkError> {
    let mut state = LinkState::default();
    let index = match find(handle).await? {
        Some(link) => {
            check_kind(&link)?;
            if !link.header.flags.contains(LinkFlags::Up) {
                state.changed = true;
                set_up(handle, link.header.index).await?;
            }
            link.header.index
        }
        None => {
            state.changed = true;
            create(handle).await?;
            let link = find(handle).await?;
            link.ok_or_else(|| refused("the link", &"it disappeared"))?
                .header
                .index
        }
    };
    let present = addresses_of_host(handle).await?;
    for address in addresses {
        let owner = present.iter().find(|(given, _)| given == address);
        let added = match owner {
            Some((_, owner)) if *owner == index => continue,
            Some((_, owner)) => Err(LinkError::Taken {
                address: *address,
                link: name_of(handle, *owner).await?,
            }),
            None => add(handle, index, *address).await,
        };
        match added {
            Ok(()) => state.changed = true,
            Err(error) => state.missing.push((*address, error)),
        }
    }
    Ok(state)
}

/// Creates the link. Kernels without dummy links respond that the kind is not supported.
async fn create(handle: &Handle) -> Result<(), LinkError> {
    let dummy = LinkDummy::new(ENDPOINT_LINK).up().build();
    let bridge = LinkBridge::new(ENDPOINT_LINK).up().build();
    let mut created = handle.link().add(dummy).execute().await;
    if matches!(&created, Err(error) if is(error, Errno::OPNOTSUPP)) {
        created = handle.link().add(bridge).execute().await;
    }
    match created {
        // Another agent created it concurrently.
        Err(error) if is(&error, Errno::EXIST) => Ok(()),
        created => created.map_err(|error| refused("the link", &error)),
    }
}

async fn set_up(handle: &Handle, index: u32) -> Result<(), LinkError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    let changed = handle.link().set(message).execute().await;
    changed.map_err(|error| refused("the link", &error))
}

async fn add(handle: &Handle, index: u32, address: IpAddr) -> Result<(), LinkError> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(index, address, bits);
    // Without duplicate address detection, during which nothing can listen on an IPv6 address: no
    // other host is on this link.
    let attributes = &mut request.message_mut().attributes;
    attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    match request.execute().await {
        Err(error) if is(&error, Errno::EXIST) => Ok(()),
        added => added.map_err(|error| refused(&format!("the address {address}"), &error)),
    }
}

async fn remove(handle: &Handle) -> Result<bool, LinkError> {
    let Some(link) = find(handle).await? else {
        return Ok(false);
    };
    check_kind(&link)?;
    match handle.link().del(link.header.index).execute().await {
        Err(error) if is(&error, Errno::NODEV) => Ok(false),
        removed => removed
            .map(|()| true)
            .map_err(|error| refused("the removal", &error)),
    }
}

/// Returns the link of rolegate's name.
async fn find(handle: &Handle) -> Result<Option<LinkMessage>, LinkError> {
    let links = handle.link().get().match_name(ENDPOINT_LINK.to_owned());
    let mut links = links.execute();
    match links.try_next().await {
        Err(error) if is(&error, Errno::NODEV) => Ok(None),
        found => found.map_err(|error| refused("a query", &error)),
    }
}

fn check_kind(link: &LinkMessage) -> Result<(), LinkError> {
    let mut attributes = link.attributes.iter();
    let is_known = attributes.any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos
            .iter()
            .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Dummy | InfoKind::Bridge))),
        _ => false,
    });
    is_known.then_some(()).ok_or(LinkError::OtherKind)
}

async fn name_of(handle: &Handle, index: u32) -> Result<String, LinkError> {
    let mut links = handle.link().get().match_index(index).execute();
    let link = links.try_next().await;
    let link = link.map_err(|error| refused("a query", &error))?;
    let mut attributes = link.into_iter().flat_map(|link| link.attributes);
    let name = attributes.find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    Ok(name.unwrap_or_else(|| format!("number {index}")))
}

/// Returns the addresses of all links, each with the index of its link.
async fn addresses_of_host(handle: &Handle) -> Result<Vec<(IpAddr, u32)>, LinkError> {
    let messages: Vec<_> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| refused("a query", &error))?;
    let addresses = messages.iter().flat_map(|message| {
        let index = message.header.index;
        message
            .attributes
            .iter()
            .filter_map(move |attribute| match attribute {
                // The peer's address on point-to-point links, else equal to the local one.
                AddressAttribute::Local(address) | AddressAttribute::Address(address) => {
                    Some((*address, index))
                }
                _ => None,
            })
    });
    Ok(addresses.collect())
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    match error {
        rtnetlink::Error::NetlinkError(error) => {
            error.to_io().raw_os_error() == Some(errno.raw_os_error())
        }
        _ => false,
    }
}

fn refused(what: &str, why: &dyn std::fmt::Display) -> LinkError {
    LinkError::Refused {
        what: what.to_owned(),
        why: why.to_string(),
    }
}
