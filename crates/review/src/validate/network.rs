//! Validates Services, which must not divert traffic to the metadata address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Change, Validator};
use crate::field_path::{FieldRef, Malformed};

/// The addresses from which pods fetch credentials: instance metadata, container credentials, EKS
/// Pod Identity.
const METADATA: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

impl Validator<'_> {
    /// Checks every address for which kube-proxy would redirect traffic.
    pub(super) fn service(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let old = change.old.as_ref();
        let old = old.and_then(|old| addresses(&FieldRef::root(old)).ok());
        let old: HashSet<_> = old
            .iter()
            .flatten()
            .filter_map(|old| old.value.as_text())
            .filter(|text| is_metadata(text))
            .collect();
        for place in addresses(&FieldRef::root(&change.new))? {
            let text = place.value.as_text();
            if text.is_some_and(|text| is_metadata(text) && !old.contains(text)) {
                self.guard(
                    &place.path(),
                    "metadata address",
                    "pods fetch their credentials from this address, and a Service would \
                     intercept the requests; use another address",
                );
            }
        }
        Ok(())
    }
}

fn addresses<'a>(service: &FieldRef<'a>) -> Result<Vec<FieldRef<'a>>, Malformed> {
    let mut all = Vec::new();
    if let Some(spec) = service.field("spec")? {
        all.extend(spec.list("externalIPs")?);
        all.extend(spec.field("loadBalancerIP")?);
    }
    if let Some(balancer) = service.at(&["status", "loadBalancer"])? {
        for ingress in balancer.list("ingress")? {
            all.extend(ingress.field("ip")?);
        }
    }
    Ok(all)
}

fn is_metadata(text: &str) -> bool {
    parse(text).is_some_and(|address| METADATA.contains(&address.to_canonical()))
}

/// Parses an address as Kubernetes does: leading zeros of decimal numbers are ignored, also within
/// IPv6.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let (start, last) = match text.rfind(':') {
        Some(colon) => text.split_at_checked(colon + 1)?,
        None => ("", text),
    };
    if !last.contains('.') {
        return text.parse().ok();
    }
    let numbers = last.split('.').map(|number| {
        let digits = number.trim_start_matches('0');
        if digits.is_empty() && !number.is_empty() {
            "0"
        } else {
            digits
        }
    });
    let plain: Vec<_> = numbers.collect();
    format!("{start}{}", plain.join(".")).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threat_21_metadata_addresses_in_any_spelling() {
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.0169.254",
            "::ffff:169.254.169.254",
            "::ffff:169.254.169.0254",
            "::ffff:0169.254.169.254",
            "::ffff:00169.0254.169.254",
            "::ffff:a9fe:a9fe",
            "::FFFF:A9FE:A9FE",
            "0:0:0:0:0:ffff:a9fe:a9fe",
            "fd00:ec2::254",
            "FD00:0EC2::254",
            "fd00:ec2:0:0:0:0:0:254",
            "fd00:ec2::0:254",
            "fd00:ec2::0.0.2.84",
            "fd00:ec2::23",
        ] {
            assert!(is_metadata(text), "{text}");
        }
        for text in [
            "",
            "10.0.0.1",
            "169.254.169.253",
            "fd00:ec2::253",
            "x",
            "...",
            "::",
        ] {
            assert!(!is_metadata(text), "{text}");
        }
    }
}
