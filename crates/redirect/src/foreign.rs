//! Rules of other programs for the metadata addresses, such as kube2iam's. They may redirect pods
//! past the agent, or block it.

use crate::RedirectError;
use crate::command::run;
use crate::rules::{METADATA_V4, METADATA_V6, NFT_TABLE};

/// The built-in chains of iptables that packets to a metadata address pass. Their rules only are
/// listed: the chains of kube-proxy may have many thousands.
const CHAINS: [(&str, &str); 8] = [
    ("raw", "PREROUTING"),
    ("mangle", "PREROUTING"),
    ("nat", "PREROUTING"),
    ("filter", "INPUT"),
    ("filter", "FORWARD"),
    ("mangle", "FORWARD"),
    ("nat", "OUTPUT"),
    ("nat", "POSTROUTING"),
];
/// Tables that iptables programs on nftables manage, which iptables lists better than nft.
const IPTABLES_TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];
const NFT_HINT: &str = "install nftables";
const IPTABLES_HINT: &str = "install iptables";

/// A rule of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule {
    /// The rule, as the program lists it.
    pub rule: String,
    /// True if it sends packets to another address.
    pub redirects: bool,
    /// The command that removes it, if it is known.
    pub removal: Option<String>,
}

/// The rules of other programs, and the reasons why parts could not be listed.
#[derive(Debug, Default)]
pub struct ForeignRules {
    /// The rules.
    pub rules: Vec<ForeignRule>,
    /// Listings that failed. Missing programs have no rules.
    pub failed: Vec<RedirectError>,
}

/// Lists the rules of other programs for the metadata addresses.
pub async fn foreign_rules() -> ForeignRules {
    let mut found = ForeignRules::default();
    for program in [
        "iptables",
        "iptables-legacy",
        "ip6tables",
        "ip6tables-legacy",
    ] {
        for (table, chain) in CHAINS {
            let args = ["-w", "5", "-t", table, "-S", chain];
            match run(program, IPTABLES_HINT, &args, "").await {
                // A table or chain may not exist.
                Ok(done) if done.error_output.is_some() => {}
                Ok(done) => {
                    for rule in iptables(program, table, &done.stdout) {
                        if !found.rules.iter().any(|known| known.rule == rule.rule) {
                            found.rules.push(rule);
                        }
                    }
                }
                Err(RedirectError::Missing { .. }) => break,
                Err(error) => found.failed.push(error),
            }
        }
    }
    match run("nft", NFT_HINT, &["list", "tables"], "").await {
        Ok(done) => {
            for (family, table) in tables(&done.stdout) {
                let args = ["-s", "list", "table", &family, &table];
                match run("nft", NFT_HINT, &args, "").await {
                    Ok(done) => found.rules.extend(nft(&family, &table, &done.stdout)),
                    Err(error) => found.failed.push(error),
                }
            }
        }
        Err(RedirectError::Missing { .. }) => {}
        Err(error) => found.failed.push(error),
    }
    found
}

/// Returns whether a line names a metadata address.
fn names_metadata(line: &str) -> bool {
    line.contains(&METADATA_V4.to_string()) || line.contains(&METADATA_V6.to_string())
}

fn iptables(program: &str, table: &str, listing: &str) -> Vec<ForeignRule> {
    let lines = listing.lines().map(str::trim);
    let rules = lines.filter(|line| {
        line.starts_with("-A ") && names_metadata(line) && !line.contains("ROLEGATE-")
    });
    rules
        .map(|line| ForeignRule {
            rule: format!("{table}: {line}"),
            redirects: line.contains("-j DNAT") || line.contains("-j REDIRECT"),
            removal: Some(format!(
                "{program} -t {table} {}",
                line.replacen("-A", "-D", 1)
            )),
        })
        .collect()
}

/// Returns the tables of nftables that are neither rolegate's nor those of iptables programs.
fn tables(listing: &str) -> Vec<(String, String)> {
    let words = listing.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        match (words.next()?, words.next()?, words.next()?) {
            ("table", family, name) => Some((family.to_owned(), name.to_owned())),
            _ => None,
        }
    });
    words
        .filter(|(family, name)| {
            let is_iptables =
                matches!(&**family, "ip" | "ip6") && IPTABLES_TABLES.contains(&&**name);
            let is_ours = family == "inet" && name == NFT_TABLE;
            !is_iptables && !is_ours
        })
        .collect()
}

fn nft(family: &str, table: &str, listing: &str) -> Vec<ForeignRule> {
    let lines = listing
        .lines()
        .map(str::trim)
        .filter(|line| names_metadata(line));
    lines
        .map(|line| ForeignRule {
            rule: format!("table {family} {table}: {line}"),
            redirects: line.contains("dnat ") || line.contains("redirect"),
            removal: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube2iams_rule_is_found_and_ours_are_not() {
        let listing = "-P PREROUTING ACCEPT\n\
            -A PREROUTING -m comment --comment \"rolegate: comes first\" -j ROLEGATE-PREROUTING\n\
            -A PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181\n\
            -A PREROUTING -d 10.0.0.0/8 -j ACCEPT\n";
        let found = iptables("iptables", "nat", listing);
        assert_eq!(found.len(), 1);
        assert!(found[0].redirects);
        assert_eq!(
            found[0].removal.as_deref(),
            Some(
                "iptables -t nat -D PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
            )
        );
        let drop = iptables(
            "iptables",
            "filter",
            "-A FORWARD -d 169.254.169.254/32 -j DROP\n",
        );
        assert!(!drop[0].redirects);
    }

    #[test]
    fn other_tables_of_nftables_are_searched() {
        let listing = "table ip nat\ntable inet rolegate\ntable inet filter\ntable ip kube-proxy\n";
        let expected = [("inet", "filter"), ("ip", "kube-proxy")];
        let expected = expected.map(|(family, name)| (family.to_owned(), name.to_owned()));
        assert_eq!(tables(listing), expected);
        let listing = "table inet filter {\n  chain c {\n    ip daddr 169.254.169.254 drop\n    ip daddr 1.1.1.1 drop\n  }\n}\n";
        let found = nft("inet", "filter", listing);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].rule,
            "table inet filter: ip daddr 169.254.169.254 drop"
        );
        assert!(nft("ip", "x", "ip daddr 169.254.169.254 dnat to 10.0.0.1")[0].redirects);
    }
}
