//! The redirect of pods' metadata traffic to the agent, as input for `nft` and `iptables-restore`.
//!
//! Either program gets the same four kinds of rules:
//! 1. **Redirect.** TCP to port 80 of the metadata addresses that arrives on the pods' interfaces
//!    goes to the agent. These rules precede the service proxy's. Metadata traffic on other
//!    interfaces keeps its destination, so a Service with a metadata address as external IP cannot
//!    capture either.
//! 2. **No bypass.** Traffic forwarded to or from a metadata address was not redirected and is
//!    rejected. These rules match neither interfaces nor connection tracking state, so they cover
//!    connections older than the rules, untracked packets and unexpected kinds of interfaces.
//! 3. **No spoofed source.** A packet for a metadata address is dropped if the reply would not
//!    leave by the interface on which the packet arrived.
//! 4. **No direct access.** The agent's port accepts redirected connections and this host's own,
//!    but no direct connections from pods or the network.
//!
//! The container credentials endpoint has an address of this host and needs no redirect. Its rules
//! pin the destination, drop spoofed sources, and let pods reach its port and nothing else.
//!
//! Flushing such a program's rules removes all of them at once. The [routing rules](routing_rules)
//! therefore repeat the second where a flush has no effect.
//!
//! Frames that a bridge switches between ports without routing, and traffic of macvlan pods on the
//! uplink, never enter the host's IP stack, so no rule here applies to them.

mod interface;
mod iptables;
mod nft;
mod routing;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use interface::{InterfaceError, InterfacePattern};
pub use iptables::{
    iptables_chains, iptables_is_complete, iptables_owned, iptables_remove, iptables_restore,
};
pub use nft::{nft_is_complete, nft_remove_script, nft_script};
pub use routing::{RoutingAction, RoutingRule, routing_rules};

/// IPv4 address of the instance metadata service.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// IPv6 address of the instance metadata service.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// rolegate's own nftables table, of family `inet`.
pub const NFT_TABLE: &str = "rolegate";

/// An address family. nftables has one table for both; iptables has a program for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families, in the order in which they are applied.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the metadata address of this family.
    pub fn metadata(self) -> IpAddr {
        match self {
            Self::V4 => METADATA_V4.into(),
            Self::V6 => METADATA_V6.into(),
        }
    }
}

/// The source and target of a redirect, the same for every backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    port: u16,
    interface: InterfacePattern,
    endpoint: Option<Endpoint>,
}

/// An endpoint that pods reach without a redirect, on addresses that this host owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The addresses, which serve nothing else.
    pub addresses: Vec<IpAddr>,
    /// The port.
    pub port: u16,
}

/// The reason why a redirect is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither an IPv4 nor an IPv6 address is given.
    #[error("the redirect needs an address of this host: set --host-ip")]
    NoAddress,
    /// Traffic of pods cannot be sent to the address.
    #[error(
        "cannot redirect pods to {0}: set --host-ip to an address of this host that is not \
         loopback, link-local or the metadata address"
    )]
    Address(IpAddr),
    /// The port is 0.
    #[error("the redirect needs the agent's port, which cannot be 0: set --app-port")]
    Port,
}

impl Spec {
    /// Creates a redirect to the agent at `port` of the host's addresses. Pods cannot reach the
    /// metadata address of a family for which no host address is given.
    ///
    /// # Errors
    /// [`SpecError`] if there is no address, or one to which pods' traffic cannot be sent.
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
            endpoint: None,
        })
    }

    /// Adds the rules of an endpoint on addresses of this host. Pods and this host reach its port,
    /// and nothing else reaches its addresses.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Returns the addresses of the endpoint of one family, and its port.
    fn endpoint(&self, family: Family) -> impl Iterator<Item = (IpAddr, u16)> {
        let endpoint = self.endpoint.iter();
        let all = endpoint.flat_map(|it| it.addresses.iter().map(|ip| (*ip, it.port)));
        all.filter(move |(ip, _)| ip.is_ipv4() == (family == Family::V4))
    }

    /// Returns the interfaces on which pods' traffic arrives.
    pub fn interface(&self) -> &InterfacePattern {
        &self.interface
    }

    /// Returns the agent's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the host's address to which pods' traffic is sent.
    pub fn agent(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::from),
            Family::V6 => self.v6.map(IpAddr::from),
        }
    }

    /// Returns `address:port` of the agent in the form of NAT rules, with brackets for IPv6.
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
