//! `net.cidr_*`: addresses and networks as in Go's `net`. An IPv4 address written as IPv6 is the
//! IPv4 address.

use std::net::IpAddr;

use regorus::Value;

use super::cidr_merge::{self, Network, address};
use super::{MAX_ELEMENTS, elements, set_of, text};

/// Returns an address as Go compares it: IPv4 within IPv6 is IPv4.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Returns an address as a number, and the number of bits of its family.
fn number(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

/// Returns a mask of the bits after the prefix.
fn host_bits(prefix: u8, bits: u8) -> u128 {
    match bits.saturating_sub(prefix) {
        0 => 0,
        128.. => u128::MAX,
        bits => (1 << bits) - 1,
    }
}

impl Network {
    /// Parses `10.0.0.0/8` as `net.ParseCIDR` does, and clears host bits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let written: IpAddr = address.parse().ok()?;
        if prefix.is_empty() || !prefix.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        // Go accepts leading zeros.
        let prefix: u32 = prefix
            .trim_start_matches('0')
            .parse()
            .or_else(|_| {
                let is_zero = prefix.bytes().all(|digit| digit == b'0');
                is_zero.then_some(0).ok_or(())
            })
            .ok()?;
        let prefix = u8::try_from(prefix).ok()?;
        let (_, bits) = number(written);
        if prefix > bits {
            return None;
        }
        let masked = mask(written, prefix);
        // The bits of an IPv6 prefix that remain for an IPv4 address.
        Some(match canonical(masked) {
            IpAddr::V4(address) if bits == 128 => Self {
                address: IpAddr::V4(address),
                prefix: prefix.saturating_sub(96),
            },
            _ => Self {
                address: masked,
                prefix,
            },
        })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let (own, bits) = number(self.address);
        let (other, others_bits) = number(canonical(address));
        let host = host_bits(self.prefix, bits);
        bits == others_bits && own & !host == other & !host
    }

    pub(super) fn first(&self) -> IpAddr {
        mask(self.address, self.prefix)
    }

    pub(super) fn last(&self) -> IpAddr {
        let (number, bits) = number(self.address);
        address(number | host_bits(self.prefix, bits), bits)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn mask(of: IpAddr, prefix: u8) -> IpAddr {
    let (number, bits) = number(of);
    address(number & !host_bits(prefix, bits), bits)
}

fn network(arguments: &[Value], place: usize) -> Option<Network> {
    text(arguments, place).and_then(Network::parse)
}

/// Returns true if the first network contains the second network or address.
pub(super) fn contains(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = network(arguments, 0).zip(text(arguments, 1));
    let contains = parsed.and_then(|(network, other)| contained(&network, other));
    Ok(contains.map_or(Value::Undefined, Value::from))
}

fn contained(network: &Network, other: &str) -> Option<bool> {
    if let Ok(address) = other.parse::<IpAddr>() {
        return Some(network.contains(address));
    }
    let other = Network::parse(other)?;
    if network.address.is_ipv6() && other.address.is_ipv6() {
        // The last address of an IPv6 network may look like an IPv4 address.
        let start = mask(other.address, network.prefix);
        return Some(network.prefix <= other.prefix && start == network.first());
    }
    Some(network.contains(other.first()) && network.contains(other.last()))
}

/// Returns true if two networks have a common address.
pub(super) fn intersects(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = network(arguments, 0).zip(network(arguments, 1));
    Ok(parsed.map_or(Value::Undefined, |(one, other)| {
        Value::from(one.contains(other.first()) || other.contains(one.first()))
    }))
}

/// Returns true if a text is a network.
pub(super) fn is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(Value::from(network(arguments, 0).is_some()))
}

/// Returns all addresses of a network, including the network and broadcast addresses.
pub(super) fn expand(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(network) = network(arguments, 0) else {
        return Ok(Value::Undefined);
    };
    let (first, bits) = number(network.first());
    let count = host_bits(network.prefix, bits).saturating_add(1);
    anyhow::ensure!(
        usize::try_from(count).is_ok_and(|count| count <= MAX_ELEMENTS),
        "net.cidr_expand: {network} has more than {MAX_ELEMENTS} addresses"
    );
    let addresses = (0..count).map(|place| address(first | place, bits));
    Ok(set_of(
        addresses.map(|address| Value::from(address.to_string())),
    ))
}

/// Returns the fewest networks with the same addresses.
pub(super) fn merge(arguments: &[Value]) -> anyhow::Result<Value> {
    let networks: Option<Vec<Network>> = elements(arguments.first()).and_then(|all| {
        all.into_iter()
            .map(|one| match one {
                Value::String(text) => cidr_merge::member(text),
                _ => None,
            })
            .collect()
    });
    Ok(networks.map_or(Value::Undefined, |networks| {
        let merged = cidr_merge::merged(networks);
        set_of(merged.into_iter().map(|one| Value::from(one.to_string())))
    }))
}

/// Finds which networks of the first collection contain which networks or addresses of the second.
pub(super) fn contains_matches(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some((Some(ones), Some(others))) = arguments
        .first()
        .map(members)
        .zip(arguments.get(1).map(members))
    else {
        return Ok(Value::Undefined);
    };
    anyhow::ensure!(
        ones.len().saturating_mul(others.len()) <= MAX_ELEMENTS,
        "net.cidr_contains_matches: more than {MAX_ELEMENTS} pairs"
    );
    let mut found = Vec::new();
    for (one, place) in &ones {
        for (other, others_place) in &others {
            let contains = match (one, other) {
                (Value::String(one), Value::String(other)) => {
                    Network::parse(one).and_then(|one| contained(&one, other))
                }
                _ => None,
            };
            match contains {
                Some(true) => {
                    found.push(Value::from(vec![place.clone(), others_place.clone()]));
                }
                Some(false) => {}
                None => return Ok(Value::Undefined),
            }
        }
    }
    Ok(set_of(found))
}

/// Returns the networks of a collection, each with its key in the result.
fn members(collection: &Value) -> Option<Vec<(Value, Value)>> {
    let network = |value: &Value| match value {
        Value::String(_) => Some(value.clone()),
        Value::Array(array) => array.first().cloned(),
        _ => None,
    };
    match collection {
        Value::String(_) => Some(vec![(collection.clone(), collection.clone())]),
        Value::Array(array) => array
            .iter()
            .enumerate()
            .map(|(place, value)| Some((network(value)?, Value::from(place))))
            .collect(),
        Value::Set(set) => set
            .iter_sorted()
            .map(|value| Some((network(value)?, value.clone())))
            .collect(),
        Value::Object(object) => object
            .iter_sorted()
            .map(|(key, value)| Some((network(value)?, key.clone())))
            .collect(),
        _ => Some(Vec::new()),
    }
}
