//! The interfaces on which pods' traffic arrives: kube2iam's `--host-interface`.

use std::fmt;
use std::str::FromStr;

/// The comment of the rule that redirects.
const REDIRECT_COMMENT: &str = "rolegate: redirect to the agent";

/// Maximum length of an interface name on Linux, in bytes.
const MAX_NAME: usize = 15;

/// A pattern of interface names: `docker0` matches one interface, `eni+` all that start with `eni`,
/// `!eth0` all but `eth0`, `!eni+` all that do not start with `eni`, and `+` all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfacePattern {
    name: String,
    prefix: bool,
    inverted: bool,
}

/// The reason why an interface pattern is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// The pattern is empty.
    #[error(
        "the interface is empty: set a name (docker0), a prefix (eni+) or an exception (!eth0)"
    )]
    Empty,
    /// `!+` matches no interface.
    #[error(
        "\"!+\" matches no interface, so no pod would be redirected: name the interface to \
             exclude"
    )]
    MatchesNothing,
    /// The name is too long for an interface.
    #[error("interface {0:?} is longer than {MAX_NAME} characters, the maximum on Linux")]
    TooLong(String),
    /// The name has a character that interface names do not have, or that has a meaning in rules.
    #[error(
        "interface {0:?} has an invalid character: use letters, digits, '.', '_', '-' and '@', \
         with '!' at the start and '+' at the end"
    )]
    Character(String),
}

impl FromStr for InterfacePattern {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        let (inverted, rest) = match text.strip_prefix('!') {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text),
        };
        let (prefix, name) = match rest.strip_suffix('+') {
            Some(name) => (true, name),
            None => (false, rest),
        };
        match (name.is_empty(), prefix, inverted) {
            (true, false, _) => return Err(InterfaceError::Empty),
            (true, true, true) => return Err(InterfaceError::MatchesNothing),
            _ => {}
        }
        // iptables includes the `+` in the length.
        if rest.len() > MAX_NAME {
            return Err(InterfaceError::TooLong(text.chars().take(64).collect()));
        }
        let usable = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        if !name.chars().all(usable) || name.starts_with('-') || name == "." || name == ".." {
            return Err(InterfaceError::Character(text.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            prefix,
            inverted,
        })
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.inverted { "!" } else { "" };
        let any = if self.prefix { "+" } else { "" };
        write!(f, "{not}{}{any}", self.name)
    }
}

impl InterfacePattern {
    /// Returns true if the pattern matches the interface `name`.
    pub fn matches(&self, name: &str) -> bool {
        let named = if self.prefix {
            name.starts_with(&self.name)
        } else {
            name == self.name
        };
        named != self.inverted
    }

    /// Returns the pattern of the redirect in a listing of rolegate's rules, of either backend.
    pub fn of_listing(listing: &str) -> Option<Self> {
        let rule = listing
            .lines()
            .find(|line| line.contains(REDIRECT_COMMENT))?;
        let words: Vec<_> = rule.split_whitespace().collect();
        let place = words
            .iter()
            .position(|word| matches!(*word, "iifname" | "-i"));
        let Some(place) = place else {
            return "+".parse().ok();
        };
        // nft writes `iifname != "eth0"`, iptables `! -i eth0`.
        let after = words.get(place + 1)?;
        let before = place.checked_sub(1).and_then(|place| words.get(place));
        let (not, name) = match *after {
            "!=" => ("!", *words.get(place + 2)?),
            name if before == Some(&"!") => ("!", name),
            name => ("", name),
        };
        let name = name.trim_matches('"');
        let name = name
            .strip_suffix('*')
            .map_or(name.to_owned(), |name| format!("{name}+"));
        format!("{not}{name}").parse().ok()
    }

    /// Returns nft's match expression with a trailing space; empty for all interfaces.
    pub(super) fn nft(&self) -> String {
        if self.name.is_empty() {
            return String::new();
        }
        let not = if self.inverted { "!= " } else { "" };
        let any = if self.prefix { "*" } else { "" };
        format!("iifname {not}\"{}{any}\" ", self.name)
    }

    /// Returns iptables' match options with a trailing space.
    pub(super) fn iptables(&self) -> String {
        if self.name.is_empty() {
            return String::new();
        }
        let not = if self.inverted { "! " } else { "" };
        let any = if self.prefix { "+" } else { "" };
        format!("{not}-i {}{any} ", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> InterfacePattern {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_match_as_kube2iam_has_them() {
        for (text, yes, no) in [
            ("docker0", "docker0", "docker01"),
            ("eni+", "eni5f3a", "eth0"),
            ("eni+", "eni", "vlan.eth.1"),
            ("!eth0", "eni1", "eth0"),
            ("!eth0", "eth01", "eth0"),
            ("!eni+", "eth0", "eni1"),
            ("eth0.100", "eth0.100", "eth0x100"),
        ] {
            assert!(pattern(text).matches(yes), "{text} {yes}");
            assert!(!pattern(text).matches(no), "{text} {no}");
            assert_eq!(pattern(text).to_string(), text);
        }
        assert!(pattern("+").matches("anything"));
    }

    #[test]
    fn patterns_read_the_same_to_both_programs() {
        for (text, nft, iptables) in [
            ("docker0", "iifname \"docker0\" ", "-i docker0 "),
            ("eni+", "iifname \"eni*\" ", "-i eni+ "),
            ("!eth0", "iifname != \"eth0\" ", "! -i eth0 "),
            ("! eth0", "iifname != \"eth0\" ", "! -i eth0 "),
            ("!eni+", "iifname != \"eni*\" ", "! -i eni+ "),
            ("+", "", ""),
        ] {
            assert_eq!(pattern(text).nft(), nft);
            assert_eq!(pattern(text).iptables(), iptables);
        }
    }

    #[test]
    fn what_a_rule_could_not_hold_is_refused() {
        for text in [
            "",
            "!",
            "!+",
            "a b",
            "eth0\"",
            "eth0;x",
            "e*",
            "+eni",
            "!!eth0",
            "-j",
            "..",
            "eth/0",
            "eth0\n",
            "eth0:1",
            "интер",
            "sixteencharacter",
            "fifteencharact_+",
        ] {
            assert!(text.parse::<InterfacePattern>().is_err(), "{text:?}");
        }
        assert!("fifteencharact_".parse::<InterfacePattern>().is_ok());
    }

    #[test]
    fn a_listing_has_the_pattern_of_its_rules() {
        use crate::rules::{Family, Spec, iptables_restore, nft_script};
        for text in ["docker0", "eni+", "!eth0", "!eni+", "+"] {
            let host = Some([10, 0, 0, 1].into());
            let spec = Spec::new(host, None, 8181, pattern(text)).unwrap();
            for listing in [nft_script(&spec), iptables_restore(&spec, Family::V4, "")] {
                let found = InterfacePattern::of_listing(&listing).unwrap();
                assert_eq!(found.to_string(), text, "{listing}");
            }
        }
        assert_eq!(InterfacePattern::of_listing("table inet rolegate {"), None);
    }
}
