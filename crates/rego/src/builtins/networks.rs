//! `net.cidr_*`, as Go's `net.ParseCIDR` reads networks.

use std::net::IpAddr;

use ipnet::IpNet;
use regorus::Value;

use super::{MAX_ELEMENTS, elements, set_of, text};

/// A network, host bits dropped; a bare address is a network of one.
fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(network) => Some(network.trunc()),
        Err(_) => text.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

fn cidr(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().map(|network| network.trunc())
}

/// Whether the first network contains the second network or address.
pub(super) fn contains(arguments: &[Value]) -> anyhow::Result<Value> {
    let asked = text(arguments, 0)
        .and_then(cidr)
        .zip(text(arguments, 1).and_then(network));
    Ok(asked.map_or(Value::Undefined, |(one, other)| {
        Value::from(one.contains(&other))
    }))
}

/// Whether two networks have an address in common.
pub(super) fn intersects(arguments: &[Value]) -> anyhow::Result<Value> {
    let asked = text(arguments, 0)
        .and_then(cidr)
        .zip(text(arguments, 1).and_then(cidr));
    Ok(asked.map_or(Value::Undefined, |(one, other)| {
        Value::from(one.contains(&other) || other.contains(&one))
    }))
}

/// Whether a text is a network.
pub(super) fn is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(Value::from(text(arguments, 0).and_then(cidr).is_some()))
}

/// All addresses of a network, its own and the broadcast address too.
pub(super) fn expand(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(network) = text(arguments, 0).and_then(cidr) else {
        return Ok(Value::Undefined);
    };
    let bits = network.max_prefix_len() - network.prefix_len();
    anyhow::ensure!(
        bits < 32 && (1usize << bits) <= MAX_ELEMENTS,
        "net.cidr_expand: {network} has more than {MAX_ELEMENTS} addresses"
    );
    let addresses: Vec<IpAddr> = match network {
        IpNet::V4(network) => (0..1u32 << bits)
            .map(|place| IpAddr::from((u32::from(network.network()) | place).to_be_bytes()))
            .collect(),
        IpNet::V6(network) => (0..1u128 << bits)
            .map(|place| IpAddr::from((u128::from(network.network()) | place).to_be_bytes()))
            .collect(),
    };
    Ok(set_of(
        addresses
            .into_iter()
            .map(|address| Value::from(address.to_string())),
    ))
}

/// The fewest networks that hold the same addresses.
pub(super) fn merge(arguments: &[Value]) -> anyhow::Result<Value> {
    let networks: Option<Vec<IpNet>> = elements(arguments.first()).and_then(|all| {
        all.into_iter()
            .map(|one| match one {
                Value::String(text) => network(text),
                _ => None,
            })
            .collect()
    });
    Ok(networks.map_or(Value::Undefined, |networks| {
        set_of(
            IpNet::aggregate(&networks)
                .into_iter()
                .map(|one| Value::from(one.to_string())),
        )
    }))
}
