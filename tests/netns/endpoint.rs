//! The link of the container credentials endpoint, and the rules about its addresses.
//!
//! This kernel decides whether the link is a dummy link or a bridge; the guarantees are the same.

use std::net::{IpAddr, SocketAddr};

use rolegate_redirect::rules::{Endpoint, Spec};
use rolegate_redirect::{Backend, ENDPOINT_LINK, LinkError, Redirect, ensure_link, remove_all};
use rolegate_testkit::lab::{NODE_V4, NODE_V6, PodLink};

use crate::harness::{PORT, RedirectHarness, StandIn, fetch, for_each_backend, on};

for_each_backend!(
    pods_reach_the_endpoint_and_nothing_else_on_its_addresses,
    threat_21_a_service_with_the_endpoint_s_address_gets_nothing,
    removal_takes_rules_and_link,
);

const ENDPOINT: &str = "container credentials";
const OTHER: &str = "another server of the node";

fn addresses() -> [IpAddr; 2] {
    ["169.254.170.23", "fd00:ec2::23"].map(|address| address.parse().unwrap())
}

fn at(port: u16) -> [SocketAddr; 2] {
    addresses().map(|address| SocketAddr::new(address, port))
}

/// A node with the link, a server of the endpoint, and another server on all addresses.
fn node(backend: Backend) -> anyhow::Result<(RedirectHarness, [StandIn; 2])> {
    let harness = RedirectHarness::new(backend)?;
    let state = on(harness.lab.node(), || async {
        ensure_link(&addresses()).await
    })?;
    assert!(state.changed && state.missing.is_empty(), "{state:?}");
    let servers = [
        StandIn::start(harness.lab.node(), 80, ENDPOINT)?,
        StandIn::start(harness.lab.node(), 9100, OTHER)?,
    ];
    Ok((harness, servers))
}

fn apply(harness: &RedirectHarness) -> anyhow::Result<()> {
    let spec = Spec::new(Some(NODE_V4), Some(NODE_V6), PORT, "eni+".parse()?)?;
    let spec = spec.with_endpoint(Endpoint {
        addresses: addresses().into(),
        port: 80,
    });
    let redirect = Redirect::new(harness.backend, spec);
    on(harness.lab.node(), || redirect.apply())?;
    let state = on(harness.lab.node(), || redirect.state())?;
    assert_eq!(state, rolegate_redirect::State::InPlace);
    Ok(())
}

fn pods_reach_the_endpoint_and_nothing_else_on_its_addresses(
    backend: Backend,
) -> anyhow::Result<()> {
    let (harness, _servers) = node(backend)?;
    let pod = harness.pod()?;
    let foreign = harness
        .lab
        .pod("10.1.0.7", PodLink::VethNamed("vlan.eth.1"))?;
    for (credentials, other) in at(80).into_iter().zip(at(9100)) {
        assert_eq!(fetch(&pod, credentials)?, ENDPOINT, "the lab is real");
        assert_eq!(fetch(&pod, other)?, OTHER, "the lab is real");
        assert_eq!(fetch(&foreign, credentials)?, ENDPOINT, "the lab is real");
    }
    apply(&harness)?;
    for (credentials, other) in at(80).into_iter().zip(at(9100)) {
        assert_eq!(fetch(&pod, credentials)?, ENDPOINT);
        // Pods on the host network.
        assert_eq!(fetch(harness.lab.node(), credentials)?, ENDPOINT);
        fetch(&pod, other).unwrap_err();
        // What does not arrive on an interface of pods.
        fetch(&foreign, credentials).unwrap_err();
    }
    // A node whose link is gone does not send the tokens of its pods to the network.
    harness
        .lab
        .node()
        .exec(&format!("ip link del {ENDPOINT_LINK}"))?;
    for credentials in at(80) {
        fetch(&pod, credentials).unwrap_err();
    }
    Ok(())
}

fn threat_21_a_service_with_the_endpoint_s_address_gets_nothing(
    backend: Backend,
) -> anyhow::Result<()> {
    let (harness, _servers) = node(backend)?;
    let pod = harness.pod()?;
    harness.nft(
        "table inet kube-proxy {
           chain nat-prerouting {
             type nat hook prerouting priority dstnat
             ip daddr 169.254.170.23 tcp dport 80 dnat ip to 169.254.170.23:9100
             ip6 daddr fd00:ec2::23 tcp dport 80 dnat ip6 to [fd00:ec2::23]:9100
           }
         }
",
    )?;
    for credentials in at(80) {
        assert_eq!(fetch(&pod, credentials)?, OTHER, "the way is real");
    }
    apply(&harness)?;
    for credentials in at(80) {
        assert_eq!(fetch(&pod, credentials)?, ENDPOINT);
    }
    Ok(())
}

fn removal_takes_rules_and_link(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let links = harness.lab.node().exec("ip -o link")?;
    on(harness.lab.node(), || async {
        ensure_link(&addresses()).await
    })?;
    apply(&harness)?;
    assert!(on(harness.lab.node(), remove_all)?.link);
    let left = harness.all_rules()?.to_lowercase();
    assert!(
        !left.contains("rolegate") && !left.contains("169.254"),
        "{left}"
    );
    assert_eq!(harness.lab.node().exec("ip -o link")?, links);
    assert!(!on(harness.lab.node(), remove_all)?.link);
    Ok(())
}

#[test]
fn link_is_created_once_and_repaired() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::Nftables)?;
    let node = harness.lab.node();
    let ensure = || on(node, || async { ensure_link(&addresses()).await });
    assert!(ensure()?.changed);
    assert!(!ensure()?.changed);
    for damage in [
        "addr del 169.254.170.23/32 dev",
        "link set down dev",
        "link del",
    ] {
        node.exec(&format!("ip {damage} {ENDPOINT_LINK}"))?;
        let state = ensure()?;
        assert!(
            state.changed && state.missing.is_empty(),
            "{damage}: {state:?}"
        );
        // A link that is down loses its IPv6 addresses.
        assert!(!ensure()?.changed, "{damage}");
    }
    Ok(())
}

#[test]
fn link_of_another_owner_is_refused() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::Nftables)?;
    let node = harness.lab.node();
    node.exec("ip link add pod-id-link0 type bridge")?;
    node.exec("ip addr add 169.254.170.23/32 dev pod-id-link0")?;
    let state = on(node, || async { ensure_link(&addresses()).await })?;
    let [(address, error)] = &state.missing[..] else {
        panic!("{state:?}");
    };
    assert_eq!(*address, addresses()[0]);
    assert!(error.to_string().contains("pod-id-link0"), "{error}");
    // A link that took the name.
    node.exec(&format!("ip link del {ENDPOINT_LINK}"))?;
    node.exec(&format!(
        "ip link add {ENDPOINT_LINK} type veth peer name other"
    ))?;
    let error = on(node, || async { ensure_link(&addresses()).await }).unwrap_err();
    assert!(matches!(error, LinkError::OtherKind), "{error}");
    Ok(())
}

#[test]
fn pain_13_a_node_without_ipv6_has_the_ipv4_address() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::Nftables)?;
    let node = harness.lab.node();
    let pod = harness.pod()?;
    node.exec("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
    let state = on(node, || async { ensure_link(&addresses()).await })?;
    let missing: Vec<_> = state.missing.iter().map(|(address, _)| *address).collect();
    assert_eq!(missing, [addresses()[1]]);
    let _server = StandIn::start(node, 80, ENDPOINT)?;
    assert_eq!(fetch(&pod, at(80)[0])?, ENDPOINT);
    Ok(())
}
