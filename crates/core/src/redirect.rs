//! The redirect of pods' metadata traffic to the agent, as text for `nft` and `iptables-restore`.
//!
//! Four things are asked of the kernel, the same ones for either program:
//! 1. **redirect**: TCP to port 80 of the metadata addresses, from the pods' interfaces, goes to
//!    the agent. This comes before the service proxy's rules, and what the interface pattern
//!    leaves out is pinned to where it was going, so that no Service with a metadata address as
//!    external IP can take either;
//! 2. **never past the agent**: what is forwarded to or from a metadata address was not
//!    redirected, and is refused. These rules look neither at interfaces nor at connection
//!    tracking: a connection older than the rules, an untracked packet or an interface kind
//!    nobody thought of is refused like the rest;
//! 3. **no borrowed source**: a packet for a metadata address whose answer would not leave by
//!    the interface it came in by is dropped;
//! 4. **the agent's port is no service**: it answers redirected connections and this host, not
//!    what pods or the network send straight to it.
//!
//! A flush of such a program's rules takes all four away at once. So the second is said again where
//! no such flush reaches, in the [rules of routing](routing_rules).
//!
//! Frames that a bridge passes from port to port without this host routing them, and macvlan
//! pods on the uplink, never enter the host's IP stack: no rule here can see them.

mod interface;
mod iptables;
mod nft;
mod routing;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use interface::{InterfaceError, InterfacePattern};
pub use iptables::{
    iptables_chains, iptables_is_whole, iptables_owned, iptables_remove, iptables_restore,
};
pub use nft::{nft_is_whole, nft_remove_script, nft_script};
pub use routing::{RoutingAction, RoutingRule, routing_rules};

/// Where instances find their metadata, IPv4.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where instances find their metadata, IPv6.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The nftables table that is ours alone, of family `inet`.
pub const NFT_TABLE: &str = "rolegate";

/// IPv4 or IPv6; nftables has one table for both, iptables a program for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both, in the order they are applied.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The metadata address of this family.
    pub fn metadata(self) -> IpAddr {
        match self {
            Self::V4 => METADATA_V4.into(),
            Self::V6 => METADATA_V6.into(),
        }
    }
}

/// What to redirect, and where to; the same for every backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    port: u16,
    interface: InterfacePattern,
}

/// Why a redirect can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither an IPv4 nor an IPv6 address.
    #[error("the redirect needs an address of this host to send pods to: give --host-ip")]
    NoAddress,
    /// Pods can't be sent to such an address.
    #[error(
        "pods can't be redirected to {0}: give --host-ip an address of this host that is neither loopback, link-local nor the metadata address"
    )]
    Address(IpAddr),
    /// Port 0.
    #[error("the redirect needs the port that the agent listens on, not 0: give --app-port")]
    Port,
}

impl Spec {
    /// A redirect to the agent at `port` of the host's addresses. Without an address of a family,
    /// that family's metadata address is closed to pods.
    ///
    /// # Errors
    /// When there is no address, or one that packets from pods can't be sent to.
    pub fn new(
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
        port: u16,
        interface: InterfacePattern,
    ) -> Result<Self, SpecError> {
        if v4.is_none() && v6.is_none() {
            return Err(SpecError::NoAddress);
        }
        if let Some(ip) = v4
            && (ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast())
        {
            return Err(SpecError::Address(ip.into()));
        }
        if let Some(ip) = v6
            && (ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip.to_ipv4_mapped().is_some()
                || ip == METADATA_V6)
        {
            return Err(SpecError::Address(ip.into()));
        }
        if port == 0 {
            return Err(SpecError::Port);
        }
        Ok(Self {
            v4,
            v6,
            port,
            interface,
        })
    }

    /// The interfaces that pods' traffic comes in by.
    pub fn interface(&self) -> &InterfacePattern {
        &self.interface
    }

    /// The agent's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host's address that pods are sent to.
    pub fn agent(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::from),
            Family::V6 => self.v6.map(IpAddr::from),
        }
    }

    /// `address:port` of the agent as NAT rules write it, with brackets for IPv6.
    fn target(&self, family: Family) -> Option<String> {
        self.agent(family)
            .map(|ip| std::net::SocketAddr::new(ip, self.port).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(v4: Option<&str>, v6: Option<&str>, port: u16) -> Result<Spec, SpecError> {
        Spec::new(
            v4.map(|ip| ip.parse().unwrap()),
            v6.map(|ip| ip.parse().unwrap()),
            port,
            "eni+".parse().unwrap(),
        )
    }

    #[test]
    fn only_addresses_that_pods_can_be_sent_to_are_taken() {
        assert!(spec(Some("10.0.0.1"), Some("2001:db8::1"), 8181).is_ok());
        assert_eq!(spec(None, None, 8181), Err(SpecError::NoAddress));
        assert_eq!(spec(Some("10.0.0.1"), None, 0), Err(SpecError::Port));
        for v4 in ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1"] {
            assert!(spec(Some(v4), None, 8181).is_err(), "{v4}");
        }
        for v6 in ["::1", "::", "fe80::1", "fd00:ec2::254", "::ffff:10.0.0.1"] {
            assert!(spec(None, Some(v6), 8181).is_err(), "{v6}");
        }
    }
}
