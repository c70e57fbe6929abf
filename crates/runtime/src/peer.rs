//! Peers as counted by limits.

use std::net::{IpAddr, Ipv6Addr};

/// Prefix length of an IPv6 network: one machine may have all addresses in it.
const IPV6_PREFIX_BITS: u32 = 64;

/// A peer as counted by limits: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerKey(IpAddr);

impl PeerKey {
    /// Returns the peer of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() >> IPV6_PREFIX_BITS << IPV6_PREFIX_BITS;
                Self(Ipv6Addr::from_bits(network).into())
            }
            address @ IpAddr::V4(_) => Self(address),
        }
    }

    /// Returns the peer of an address that is known to belong to one machine: the machines of a
    /// subnet often share a /64.
    pub fn exactly(address: IpAddr) -> Self {
        Self(address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_peer_and_an_address_of_ipv4_is() {
        let of = |address: &str| PeerKey::of(address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        let exactly = |address: &str| PeerKey::exactly(address.parse().unwrap());
        assert_ne!(exactly("2001:db8::1"), exactly("2001:db8::2"));
        assert_eq!(exactly("10.0.0.1"), of("::ffff:10.0.0.1"));
    }
}
