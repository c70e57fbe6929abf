//! The redirect for `iptables-restore --noflush`: rolegate's own chains, and a jump to each at the
//! head of the built-in chain.
//!
//! iptables cannot replace a rule, so the chains concerned are listed first ([`iptables_chains`]).
//! The same transaction that inserts the new jumps at the head deletes the existing ones in exactly
//! the form in which they were listed. Each table is one transaction; the tables that reject
//! traffic precede the one that redirects it.
//!
//! A listing is the output of `iptables -t TABLE -S CHAIN` for each of those chains, each below a
//! line `*TABLE`. `iptables-save` would include megabytes of the service proxy's rules.

use std::fmt::Write;

use super::{Family, Spec};

/// One of rolegate's chains, its table, and the built-in chain whose first rule jumps to it.
struct Chain {
    table: &'static str,
    builtin: &'static str,
    name: &'static str,
    rules: fn(&Spec, Family) -> Vec<Rule>,
}

/// The match of a rule, its comment and its target.
struct Rule(String, &'static str, String);

/// The chains in the order in which they are applied, those of one table adjacent.
const CHAINS: [Chain; 4] = [
    Chain {
        table: "filter",
        builtin: "FORWARD",
        name: "ROLEGATE-FORWARD",
        rules: forward,
    },
    Chain {
        table: "filter",
        builtin: "INPUT",
        name: "ROLEGATE-INPUT",
        rules: input,
    },
    Chain {
        table: "raw",
        builtin: "PREROUTING",
        name: "ROLEGATE-RAW",
        rules: raw,
    },
    Chain {
        table: "nat",
        builtin: "PREROUTING",
        name: "ROLEGATE-PREROUTING",
        rules: prerouting,
    },
];

fn rule(matches: String, why: &'static str, target: impl Into<String>) -> Rule {
    Rule(matches, why, target.into())
}

fn forward(spec: &Spec, family: Family) -> Vec<Rule> {
    let metadata = family.metadata();
    let why = "not redirected";
    let mut rules = vec![
        rule(
            format!("-d {metadata} -p tcp"),
            why,
            "REJECT --reject-with tcp-reset",
        ),
        rule(format!("-d {metadata}"), why, "DROP"),
        rule(format!("-s {metadata}"), "reply, not redirected", "DROP"),
    ];
    // Without the link, these packets would leave this host for another one with the address.
    for (address, _) in spec.endpoint(family) {
        let why = "not this host";
        rules.extend([
            rule(
                format!("-d {address} -p tcp"),
                why,
                "REJECT --reject-with tcp-reset",
            ),
            rule(format!("-d {address}"), why, "DROP"),
            rule(format!("-s {address}"), "reply, not this host", "DROP"),
        ]);
    }
    rules
}

fn input(spec: &Spec, family: Family) -> Vec<Rule> {
    let metadata = family.metadata();
    let port = format!("-p tcp -m tcp --dport {}", spec.port());
    let iif = spec.interface().iptables();
    let mut rules = vec![
        rule("-i lo".into(), "this host", "RETURN"),
        rule(format!("-d {metadata}"), "not redirected", "DROP"),
        rule(
            format!("{port} -m conntrack --ctstate DNAT --ctorigdst {metadata}"),
            "redirected",
            "RETURN",
        ),
    ];
    for (address, port) in spec.endpoint(family) {
        rules.extend([
            rule(
                format!("{iif}-d {address} -p tcp -m tcp --dport {port}"),
                "container credentials",
                "RETURN",
            ),
            rule(
                format!("-d {address}"),
                "only container credentials",
                "DROP",
            ),
        ]);
    }
    rules.push(rule(port, "only redirected connections", "DROP"));
    rules
}

fn raw(spec: &Spec, family: Family) -> Vec<Rule> {
    let endpoint = spec.endpoint(family).map(|(address, _)| address);
    let addresses = [family.metadata()].into_iter().chain(endpoint);
    addresses
        .map(|address| {
            rule(
                format!("-d {address} -m rpfilter --invert"),
                "spoofed source",
                "DROP",
            )
        })
        .collect()
}

fn prerouting(spec: &Spec, family: Family) -> Vec<Rule> {
    let metadata = family.metadata();
    let iif = spec.interface().iptables();
    let redirect = spec.target(family).map(|target| {
        rule(
            format!("{iif}-d {metadata} -p tcp -m tcp --dport 80"),
            "redirect to the agent",
            format!("DNAT --to-destination {target}"),
        )
    });
    let endpoint = spec.endpoint(family).map(|(address, _)| address);
    let pins = [metadata].into_iter().chain(endpoint).map(|address| {
        rule(
            format!("-d {address}"),
            "keep the destination",
            format!("DNAT --to-destination {address}"),
        )
    });
    redirect.into_iter().chain(pins).collect()
}

/// Returns the tables and chains that a listing contains.
pub fn iptables_chains() -> impl Iterator<Item = (&'static str, &'static str)> {
    CHAINS
        .iter()
        .flat_map(|chain| [(chain.table, chain.builtin), (chain.table, chain.name)])
}

/// Returns the lines of one table in a listing.
fn table<'a>(listing: &'a str, table: &str) -> impl Iterator<Item = &'a str> {
    let mut within = false;
    listing.lines().map(str::trim).filter(move |line| {
        if let Some(name) = line.strip_prefix('*') {
            within = name == table;
        }
        within
    })
}

impl Chain {
    /// Returns true if a line of the chain's table defines the chain.
    fn defined(&self, line: &str) -> bool {
        line.strip_prefix("-N ") == Some(self.name)
    }

    /// Returns true if a line is a rule of the chain `chain`.
    fn rule_of(chain: &str, line: &str) -> bool {
        line.strip_prefix("-A ")
            .and_then(|line| line.strip_prefix(chain))
            .is_some_and(|line| line.starts_with(' '))
    }

    /// Returns true if a line jumps to the chain. A jump without options ends the line; a comment
    /// with the same text ends in a quote.
    fn jumped_to(&self, line: &str) -> bool {
        line.starts_with("-A ")
            && line
                .strip_suffix(self.name)
                .is_some_and(|line| line.ends_with(" -j ") || line.ends_with(" -g "))
    }

    /// Deletes every jump to the chain.
    fn delete_jumps(&self, listing: &str, out: &mut String) {
        for line in table(listing, self.table).filter(|line| self.jumped_to(line)) {
            let _ = writeln!(out, "-D {}", line.trim_start_matches("-A "));
        }
    }
}

/// Returns the redirect of one family for `iptables-restore --noflush` or `ip6tables-restore
/// --noflush`. `listing` is the current state; rules of other programs stay.
pub fn iptables_restore(spec: &Spec, family: Family, listing: &str) -> String {
    let mut out = String::new();
    let mut open = "";
    for chain in &CHAINS {
        let Chain {
            table,
            builtin,
            name,
            rules,
        } = chain;
        if *table != open {
            out.push_str(if open.is_empty() { "" } else { "COMMIT\n" });
            let _ = writeln!(out, "*{table}");
            open = table;
        }
        let _ = writeln!(out, ":{name} - [0:0]");
        for Rule(matches, why, target) in rules(spec, family) {
            let _ = writeln!(
                out,
                "-A {name} {matches} -m comment --comment \"rolegate: {why}\" -j {target}"
            );
        }
        chain.delete_jumps(listing, &mut out);
        let _ = writeln!(
            out,
            "-I {builtin} 1 -m comment --comment \"rolegate: comes first\" -j {name}"
        );
    }
    out.push_str("COMMIT\n");
    out
}

/// Returns input that removes rolegate's rules in `listing` and nothing else, the redirect before
/// the rules that reject traffic; empty if `listing` has no rule of rolegate.
pub fn iptables_remove(listing: &str) -> String {
    let mut out = String::new();
    for chain in CHAINS.iter().rev() {
        let mut commands = String::new();
        chain.delete_jumps(listing, &mut commands);
        if table(listing, chain.table).any(|line| chain.defined(line)) {
            let _ = write!(commands, "-F {0}\n-X {0}\n", chain.name);
        }
        if !commands.is_empty() {
            let _ = write!(out, "*{}\n{commands}COMMIT\n", chain.table);
        }
    }
    out
}

/// Returns rolegate's part of `listing`, each jump with its position, which matters as much as its
/// presence. Empty if `listing` has no rule of rolegate.
pub fn iptables_owned(listing: &str) -> String {
    let mut out = String::new();
    for chain in &CHAINS {
        let Chain { name, builtin, .. } = chain;
        let mut position = 0;
        for line in table(listing, chain.table) {
            if Chain::rule_of(builtin, line) {
                position += 1;
            }
            if chain.jumped_to(line) {
                let _ = writeln!(out, "{} {position}: {line}", chain.table);
            } else if chain.defined(line) {
                let _ = writeln!(out, "{}: {name}", chain.table);
            } else if Chain::rule_of(name, line) {
                let _ = writeln!(out, "{}: {line}", chain.table);
            }
        }
    }
    out
}

/// Returns true if `listing` has all of one family's redirect rules in order, with each jump to
/// them first in its chain. To check the other parts of the rules, compare two listings.
pub fn iptables_is_complete(spec: &Spec, family: Family, listing: &str) -> bool {
    CHAINS.iter().all(|chain| {
        let mut builtin =
            table(listing, chain.table).filter(|line| Chain::rule_of(chain.builtin, line));
        let own: Vec<_> = table(listing, chain.table)
            .filter(|line| Chain::rule_of(chain.name, line))
            .collect();
        let wanted = (chain.rules)(spec, family);
        builtin.next().is_some_and(|first| chain.jumped_to(first))
            && own.len() == wanted.len()
            && own.iter().zip(&wanted).all(|(line, Rule(_, why, _))| {
                line.contains(&format!("--comment \"rolegate: {why}\""))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
*filter
-P INPUT ACCEPT
-A INPUT -p tcp -j ACCEPT
*nat
-P PREROUTING ACCEPT
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"rolegate: comes first\" -j ROLEGATE-PREROUTING
-A PREROUTING -m comment --comment \"like -j ROLEGATE-PREROUTING\" -j OTHER
-A PREROUTING -j ROLEGATE-PREROUTING-2
*nat
-N ROLEGATE-PREROUTING
-A ROLEGATE-PREROUTING -d 169.254.169.254/32 -j DNAT --to-destination 10.0.0.1:8181
";

    fn spec(v6: Option<&str>) -> Spec {
        let v6 = v6.map(|ip| ip.parse().unwrap());
        let interface = "!eth0".parse().unwrap();
        Spec::new(Some([10, 0, 0, 1].into()), v6, 8181, interface).unwrap()
    }

    #[test]
    fn the_whole_input() {
        insta::assert_snapshot!(iptables_restore(&spec(None), Family::V4, ""));
    }

    #[test]
    fn an_earlier_jump_is_replaced_and_others_rules_are_left() {
        let out = iptables_restore(&spec(None), Family::V4, LISTING);
        let deleted: Vec<_> = out.lines().filter(|line| line.starts_with("-D")).collect();
        assert_eq!(
            deleted,
            ["-D PREROUTING -m comment --comment \"rolegate: comes first\" -j ROLEGATE-PREROUTING"]
        );
        assert!(!out.contains("\n-F ") && !out.contains("\n-X "));
    }

    #[test]
    fn a_family_without_an_agent_is_closed_and_not_redirected() {
        let with = iptables_restore(&spec(Some("2001:db8::1")), Family::V6, "");
        assert!(with.contains("DNAT --to-destination [2001:db8::1]:8181"));
        let without = iptables_restore(&spec(None), Family::V6, "");
        assert!(!without.contains("--dport 80 "));
        assert!(without.contains("-A ROLEGATE-FORWARD -d fd00:ec2::254 -m comment"));
    }

    #[test]
    fn only_ours_is_removed_and_only_where_it_is() {
        assert_eq!(
            iptables_remove(LISTING),
            "*nat\n-D PREROUTING -m comment --comment \"rolegate: comes first\" -j ROLEGATE-PREROUTING\n-F ROLEGATE-PREROUTING\n-X ROLEGATE-PREROUTING\nCOMMIT\n"
        );
        assert_eq!(iptables_remove("*nat\n-P PREROUTING ACCEPT\n"), "");
    }

    #[test]
    fn a_jump_that_is_no_longer_first_shows() {
        let ours = iptables_owned(LISTING);
        assert!(ours.contains("nat 2: -A PREROUTING"), "{ours}");
        assert!(!ours.contains("KUBE"), "{ours}");
        let first = LISTING.replace(
            "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n",
            "",
        );
        assert_ne!(ours, iptables_owned(&first));
    }

    #[test]
    fn a_listing_that_lacks_a_rule_is_not_whole() {
        let spec = spec(None);
        // The listing that the program prints for its input.
        let mut listing = String::new();
        for Chain {
            table,
            builtin,
            name,
            rules,
        } in &CHAINS
        {
            let _ = writeln!(listing, "*{table}\n-P {builtin} ACCEPT");
            let _ = writeln!(
                listing,
                "-A {builtin} -m comment --comment \"rolegate: comes first\" -j {name}"
            );
            let _ = writeln!(listing, "-A {builtin} -j OTHER\n-N {name}");
            for Rule(matches, why, target) in rules(&spec, Family::V4) {
                let _ = writeln!(
                    listing,
                    "-A {name} {matches} -m comment --comment \"rolegate: {why}\" -j {target}"
                );
            }
        }
        let whole = |listing: &str| iptables_is_complete(&spec, Family::V4, listing);
        assert!(whole(&listing));
        assert!(!whole("") && !whole(LISTING));
        let rules = || listing.lines().filter(|line| line.contains("rolegate: "));
        assert!(rules().count() > 10);
        for rule in rules() {
            assert!(
                !whole(&listing.replacen(&format!("{rule}\n"), "", 1)),
                "{rule}"
            );
        }
        let jump =
            "-A FORWARD -m comment --comment \"rolegate: comes first\" -j ROLEGATE-FORWARD\n";
        let second = listing.replace(jump, &format!("-A FORWARD -j ACCEPT\n{jump}"));
        assert!(!whole(&second), "another rule comes first");
    }
}
