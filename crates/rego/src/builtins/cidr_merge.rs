//! `net.cidr_merge`: joins adjacent and overlapping networks to ranges, and splits each range into
//! the fewest networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network: its first address, and the prefix length in bits of the address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    /// The address as written. Host bits are kept where Go keeps them.
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

/// A range of addresses of one family. IPv4 is ordered within IPv6, as in Go.
struct Range {
    first: u128,
    last: u128,
    /// The network, if the range is exactly one.
    network: Option<Network>,
}

/// The prefix of IPv4 addresses within IPv6.
const MAPPED: u128 = 0xffff << 32;

/// Converts a number to an address of the family with this many bits.
pub(super) fn address(number: u128, bits: u8) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if bits == 32 => IpAddr::V4(Ipv4Addr::from(number)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => MAPPED | u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn is_ipv4(number: u128) -> bool {
    number >> 32 == MAPPED >> 32
}

/// Parses a network, or an IPv4 address with the mask of its class.
pub(super) fn member(text: &str) -> Option<Network> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Network::parse(text);
    };
    match address.to_canonical() {
        IpAddr::V4(address) => Some(Network {
            address: IpAddr::V4(address),
            prefix: match address.octets() {
                [0..0x80, ..] => 8,
                [0x80..0xc0, ..] => 16,
                _ => 24,
            },
        }),
        IpAddr::V6(_) => None,
    }
}

/// Returns the fewest networks with the same addresses.
pub(super) fn merged(networks: Vec<Network>) -> Vec<Network> {
    let mut ranges: Vec<Range> = networks
        .into_iter()
        .map(|network| Range {
            first: number(network.first()),
            last: number(network.last()),
            network: Some(network),
        })
        .collect();
    ranges.sort_by_key(|range| (range.last, range.first));
    let mut done: Vec<Range> = Vec::new();
    // Processes ranges in descending order, each merged with those that it overlaps.
    while let Some(range) = ranges.pop() {
        let touches = |below: &Range| previous(range.first) <= below.last;
        match ranges.pop_if(|below| touches(below)) {
            Some(below) => ranges.push(Range {
                first: below.first.min(range.first),
                last: range.last,
                network: None,
            }),
            None => done.push(range),
        }
    }
    done.into_iter().flat_map(split).collect()
}

/// Returns the preceding address, unless the address is its family's first.
fn previous(number: u128) -> u128 {
    match number {
        0 | MAPPED => number,
        number => number - 1,
    }
}

/// Splits a range into networks.
fn split(range: Range) -> Vec<Network> {
    if let Some(network) = range.network {
        return vec![network];
    }
    let bits: u8 = if is_ipv4(range.first) && is_ipv4(range.last) {
        32
    } else {
        128
    };
    let offset = if bits == 32 { MAPPED } else { 0 };
    let (mut first, last) = (range.first - offset, range.last - offset);
    let mut networks = Vec::new();
    loop {
        // The largest network that begins here and does not extend beyond the range.
        let aligned = first.trailing_zeros().min(u32::from(bits));
        let host = (0..=aligned)
            .rev()
            .find(|host| size(*host).is_some_and(|size| size <= last - first))
            .unwrap_or(0);
        networks.push(Network {
            address: address(first, bits),
            prefix: bits.saturating_sub(u8::try_from(host).unwrap_or(bits)),
        });
        let end = first + size(host).unwrap_or(u128::MAX);
        if end >= last {
            return networks;
        }
        first = end + 1;
    }
}

/// Returns the distance between the first and last address of a network with this many host bits.
fn size(host: u32) -> Option<u128> {
    match host {
        128 => Some(u128::MAX),
        host => 1u128.checked_shl(host).map(|size| size - 1),
    }
}
