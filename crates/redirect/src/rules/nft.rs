//! The redirect for `nft -f -`: one table, replaced in one transaction.

use std::fmt::Display;
use std::net::IpAddr;

use super::{Family, NFT_TABLE, Spec};

/// Returns nft's name of the family's header.
fn header(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Concatenates a rule for each family.
fn each(rule: impl Fn(&str, String) -> String) -> String {
    Family::ALL
        .map(|family| rule(header(family), family.metadata().to_string()))
        .concat()
}

/// Concatenates a rule for each address of the endpoint.
fn each_endpoint(spec: &Spec, rule: impl Fn(&str, IpAddr, u16) -> String) -> String {
    let all = Family::ALL.into_iter().flat_map(|family| {
        let addresses = spec.endpoint(family);
        addresses.map(move |(address, port)| (header(family), address, port))
    });
    all.map(|(ip, address, port)| rule(ip, address, port))
        .collect()
}

/// Returns the whole redirect for `nft -f -`. It is one transaction, so no packet sees a partial
/// set of rules. It can be applied repeatedly.
pub fn nft_script(spec: &Spec) -> String {
    let port = spec.port();
    let iif = spec.interface().nft();
    let redirect = Family::ALL.map(|family| {
        let (ip, metadata) = (header(family), family.metadata());
        spec.target(family).map_or(String::new(), |target| {
            format!(
                "    {iif}{ip} daddr {metadata} tcp dport 80 dnat {ip} to {target} comment \"rolegate: redirect to the agent\"\n"
            )
        })
    }).concat();
    let pinned = |ip: &str, address: &dyn Display| {
        format!(
            "    {ip} daddr {address} dnat {ip} to {address} comment \"rolegate: keep the destination\"\n"
        )
    };
    let pin = each(|ip, metadata| pinned(ip, &metadata))
        + &each_endpoint(spec, |ip, address, _| pinned(ip, &address));
    let spoofs = |ip: &str, address: &dyn Display| {
        format!(
            "    {ip} daddr {address} fib saddr . iif oif 0 drop comment \"rolegate: spoofed source\"\n"
        )
    };
    let spoofed = each(|ip, metadata| spoofs(ip, &metadata))
        + &each_endpoint(spec, |ip, address, _| spoofs(ip, &address));
    let past = each(|ip, metadata| {
        format!(
            "    {ip} daddr {metadata} meta l4proto tcp reject with tcp reset comment \"rolegate: not redirected\"\n    {ip} daddr {metadata} drop comment \"rolegate: not redirected\"\n    {ip} saddr {metadata} drop comment \"rolegate: reply, not redirected\"\n"
        )
    });
    let here = each(|ip, metadata| {
        format!(
            "    {ip} daddr {metadata} drop comment \"rolegate: not redirected\"\n    tcp dport {port} ct status dnat ct original {ip} daddr {metadata} accept comment \"rolegate: redirected\"\n"
        )
    });
    // Without the link, these packets would leave this host for another one with the address.
    let forwarded = each_endpoint(spec, |ip, address, _| {
        format!(
            "    {ip} daddr {address} meta l4proto tcp reject with tcp reset comment \"rolegate: not this host\"\n    {ip} daddr {address} drop comment \"rolegate: not this host\"\n    {ip} saddr {address} drop comment \"rolegate: reply, not this host\"\n"
        )
    });
    let endpoint = each_endpoint(spec, |ip, address, port| {
        format!(
            "    {iif}{ip} daddr {address} tcp dport {port} accept comment \"rolegate: container credentials\"\n    {ip} daddr {address} drop comment \"rolegate: only container credentials\"\n"
        )
    });
    let (add, delete) = (format!("add table inet {NFT_TABLE}"), nft_remove_script());
    format!(
        "{add}
{delete}table inet {NFT_TABLE} {{
  chain source {{
    type filter hook prerouting priority raw - 10; policy accept;
{spoofed}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat - 10; policy accept;
{redirect}{pin}  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
{past}{forwarded}  }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname \"lo\" accept comment \"rolegate: this host\"
{here}{endpoint}    tcp dport {port} drop comment \"rolegate: only redirected connections\"
  }}
}}
"
    )
}

/// Returns a script that removes the redirect. It fails without a redirect.
pub fn nft_remove_script() -> String {
    format!("delete table inet {NFT_TABLE}\n")
}

/// Returns true if `listing`, the output of `nft -s list table`, has all redirect rules in order
/// and no others of rolegate's. To check the other parts of the rules, compare two listings.
pub fn nft_is_complete(spec: &Spec, listing: &str) -> bool {
    fn comments(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter_map(|line| {
            line.split_once(" comment ")
                .map(|(_, comment)| comment.trim())
        })
    }
    comments(&nft_script(spec)).eq(comments(listing))
}

#[cfg(test)]
mod tests {
    use super::super::Endpoint;
    use super::*;

    fn script(v4: Option<&str>, v6: Option<&str>, interface: &str) -> String {
        let spec = Spec::new(
            v4.map(|ip| ip.parse().unwrap()),
            v6.map(|ip| ip.parse().unwrap()),
            8181,
            interface.parse().unwrap(),
        );
        nft_script(&spec.unwrap())
    }

    #[test]
    fn the_whole_script() {
        insta::assert_snapshot!(script(Some("10.0.0.1"), Some("2001:db8::1"), "eni+"));
    }

    #[test]
    fn the_script_with_an_endpoint() {
        let spec = Spec::new(
            Some([10, 0, 0, 1].into()),
            None,
            8181,
            "eni+".parse().unwrap(),
        );
        let endpoint = Endpoint {
            addresses: vec![
                "169.254.170.23".parse().unwrap(),
                "fd00:ec2::23".parse().unwrap(),
            ],
            port: 80,
        };
        insta::assert_snapshot!(nft_script(&spec.unwrap().with_endpoint(endpoint)));
    }

    #[test]
    fn a_family_without_an_agent_is_closed_and_not_redirected() {
        let script = script(Some("10.0.0.1"), None, "!eth0");
        assert!(script.contains("iifname != \"eth0\" ip daddr 169.254.169.254 tcp dport 80 dnat"));
        assert!(!script.contains("tcp dport 80 dnat ip6"));
        assert!(script.contains("ip6 daddr fd00:ec2::254 drop"));
    }

    #[test]
    fn the_drop_rules_look_at_no_interface_and_no_connection_state() {
        let script = script(Some("10.0.0.1"), Some("2001:db8::1"), "eni+");
        let forward = script
            .split("chain forward")
            .nth(1)
            .unwrap()
            .split("chain input")
            .next()
            .unwrap();
        assert!(
            !forward.contains("iif") && !forward.contains(" ct "),
            "{forward}"
        );
    }

    #[test]
    fn a_listing_that_lacks_a_rule_is_not_whole() {
        let spec = Spec::new(
            Some([10, 0, 0, 1].into()),
            None,
            8181,
            "eni+".parse().unwrap(),
        )
        .unwrap();
        let script = nft_script(&spec);
        assert!(nft_is_complete(&spec, &script));
        let rules = script
            .lines()
            .filter(|line| line.contains(" comment "))
            .count();
        assert!(rules > 10);
        for missing in 0..rules {
            let mut place = 0;
            let left: Vec<_> = script
                .lines()
                .filter(|line| {
                    let is_rule = line.contains(" comment ");
                    place += usize::from(is_rule);
                    !(is_rule && place == missing + 1)
                })
                .collect();
            assert!(!nft_is_complete(&spec, &left.join("\n")), "{missing}");
        }
        assert!(!nft_is_complete(&spec, ""));
    }
}
