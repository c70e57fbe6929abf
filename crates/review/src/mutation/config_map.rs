//! The ConfigMap of the EKS webhook, whose key `config` maps `NAMESPACE/SERVICEACCOUNT` to a role.
//!
//! Unlike in the EKS webhook, `*` works anywhere in both names, an entry without an audience gets
//! the default one, and a broken entry affects nothing but itself.

use std::collections::HashMap;

use rolegate_core::pattern::Pattern;
use rolegate_core::text::bounded;
use serde_json::{Map, Value};

/// Name of the ConfigMap.
pub const NAME: &str = "pod-identity-webhook";
/// Key of the ConfigMap's data.
pub const KEY: &str = "config";
/// Maximum number of characters of a fault.
const MAX_FAULT_CHARS: usize = 300;

/// The entry of one service account or pattern.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// The role's ARN, unchecked.
    pub role: String,
    /// The token's audience. `None`: the default one.
    pub audience: Option<String>,
    /// True to use the regional endpoints of STS.
    pub regional: bool,
    /// The token's expiration, in seconds. `None`: the default one.
    pub expiration: Option<u32>,
}

/// An entry with stars in its key.
#[derive(Debug)]
struct PatternEntry {
    key: String,
    namespace: Pattern,
    service_account: Pattern,
    precision: Precision,
    entry: Entry,
}

/// The precision of a key: exact names first, then the one with more characters other than stars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Precision {
    namespace_is_exact: bool,
    namespace_chars: usize,
    account_is_exact: bool,
    account_chars: usize,
}

/// Two patterns of the same precision that match a service account and differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the keys {first:?} and {second:?} of ConfigMap {NAME} match equally precisely")]
pub struct Ambiguous {
    first: String,
    second: String,
}

/// The parsed ConfigMap.
#[derive(Debug, Default)]
pub struct PodIdentityConfig {
    exact: HashMap<String, Entry>,
    patterns: Vec<PatternEntry>,
    faults: Vec<String>,
}

impl PodIdentityConfig {
    /// Parses the value of [`KEY`]. Broken entries are left out and listed as faults.
    ///
    /// # Errors
    /// Returns a sentence if the value is not a JSON object.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        if text.trim().is_empty() {
            return Ok(config);
        }
        let entries: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| bounded(&error.to_string(), MAX_FAULT_CHARS))?;
        for (key, value) in entries {
            if let Err(fault) = config.insert(&key, &value) {
                let fault = format!("entry {key:?}: {fault}");
                config.faults.push(bounded(&fault, MAX_FAULT_CHARS));
            }
        }
        Ok(config)
    }

    fn insert(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let (namespace, account) = key
            .split_once('/')
            .filter(|(namespace, account)| {
                !namespace.is_empty() && !account.is_empty() && !account.contains('/')
            })
            .ok_or("the key must be NAMESPACE/SERVICEACCOUNT")?;
        let entry = entry(value)?;
        if !key.contains('*') {
            self.exact.insert(key.to_owned(), entry);
            return Ok(());
        }
        let pattern = |text: &str| Pattern::glob_of_names(text).map_err(|error| error.to_string());
        let chars = |text: &str| text.chars().filter(|c| *c != '*').count();
        self.patterns.push(PatternEntry {
            key: key.to_owned(),
            namespace: pattern(namespace)?,
            service_account: pattern(account)?,
            precision: Precision {
                namespace_is_exact: !namespace.contains('*'),
                namespace_chars: chars(namespace),
                account_is_exact: !account.contains('*'),
                account_chars: chars(account),
            },
            entry,
        });
        Ok(())
    }

    /// Returns sentences about the entries that were left out.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Returns the number of usable entries.
    pub fn len(&self) -> usize {
        self.exact.len() + self.patterns.len()
    }

    /// Returns true if there is no usable entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the entry whose key is exactly this service account.
    pub fn exact(&self, namespace: &str, account: &str) -> Option<&Entry> {
        self.exact.get(&format!("{namespace}/{account}"))
    }

    /// Returns the most precise entry of a service account.
    ///
    /// # Errors
    /// Returns [`Ambiguous`] if two are equally precise and differ.
    pub fn find(&self, namespace: &str, account: &str) -> Result<Option<&Entry>, Ambiguous> {
        if let Some(entry) = self.exact(namespace, account) {
            return Ok(Some(entry));
        }
        let matching: Vec<_> = self
            .patterns
            .iter()
            .filter(|it| it.namespace.matches(namespace) && it.service_account.matches(account))
            .collect();
        let Some(best) = matching.iter().max_by_key(|it| it.precision) else {
            return Ok(None);
        };
        let rival = matching
            .iter()
            .find(|it| it.precision == best.precision && it.entry != best.entry);
        match rival {
            None => Ok(Some(&best.entry)),
            Some(rival) => Err(Ambiguous {
                first: best.key.clone().min(rival.key.clone()),
                second: best.key.clone().max(rival.key.clone()),
            }),
        }
    }
}

/// Reads an entry. As in the EKS webhook, the case of field names does not matter.
fn entry(value: &Value) -> Result<Entry, String> {
    let fields = value.as_object().ok_or("the value must be an object")?;
    let mut entry = Entry::default();
    for (name, value) in fields {
        let wrong = |wanted: &str| format!("{name} must be {wanted}");
        match name.to_ascii_lowercase().as_str() {
            "rolearn" => {
                let role = value.as_str().ok_or_else(|| wrong("a string"))?;
                entry.role = role.trim().to_owned();
            }
            "audience" => {
                let audience = value.as_str().ok_or_else(|| wrong("a string"))?.trim();
                entry.audience = (!audience.is_empty()).then(|| audience.to_owned());
            }
            "useregionalsts" => {
                entry.regional = value.as_bool().ok_or_else(|| wrong("true or false"))?;
            }
            "tokenexpiration" => {
                let seconds = value.as_u64().ok_or_else(|| wrong("a number of seconds"))?;
                let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
                entry.expiration = (seconds > 0).then_some(seconds);
            }
            _ => {}
        }
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(config: &str, accounts: &[(&str, &str)]) -> Vec<String> {
        let config = PodIdentityConfig::parse(config).unwrap();
        let role = |(namespace, account): &(&str, &str)| match config.find(namespace, account) {
            Ok(entry) => entry.map_or("none".to_owned(), |entry| entry.role.clone()),
            Err(error) => error.to_string(),
        };
        accounts.iter().map(role).collect()
    }

    #[test]
    fn the_most_precise_key_wins() {
        let config = r#"{
            "shop/api": {"RoleARN": "exact"},
            "*/api": {"RoleARN": "anywhere"},
            "test-*/api": {"RoleARN": "test"},
            "test-a*/*": {"RoleARN": "a"},
            "shop/*": {"RoleARN": "shop"}
        }"#;
        let found = roles(
            config,
            &[
                ("shop", "api"),
                ("other", "api"),
                ("test-1", "api"),
                ("test-abc", "api"),
                ("shop", "web"),
                ("other", "web"),
            ],
        );
        assert_eq!(found, ["exact", "anywhere", "test", "a", "shop", "none"]);
    }

    #[test]
    fn equally_precise_keys_are_an_error() {
        let config = r#"{"a*/api": {"RoleARN": "1"}, "*a/api": {"RoleARN": "2"}}"#;
        let [found] = &*roles(config, &[("aa", "api")]) else {
            panic!()
        };
        assert!(found.contains(r#""*a/api" and "a*/api""#), "{found}");
        let same = r#"{"a*/api": {"RoleARN": "1"}, "*a/api": {"RoleARN": "1"}}"#;
        assert_eq!(roles(same, &[("aa", "api")]), ["1"]);
    }

    #[test]
    fn broken_entries_affect_only_themselves() {
        let config = PodIdentityConfig::parse(
            r#"{"no-slash": {}, "a/b": null, "a/c/d": {}, "/x": {}, "n/e": {"TokenExpiration": "1"},
                "ok/ok": {"rolearn": " r ", "Audience": "", "UseRegionalSTS": true, "TokenExpiration": 0}}"#,
        )
        .unwrap();
        assert_eq!(config.faults().len(), 5, "{:?}", config.faults());
        assert_eq!(config.len(), 1);
        assert_eq!(
            config.find("ok", "ok").unwrap(),
            Some(&Entry {
                role: "r".into(),
                audience: None,
                regional: true,
                expiration: None
            })
        );
        assert!(PodIdentityConfig::parse("[]").is_err());
        assert!(PodIdentityConfig::parse(" ").unwrap().is_empty());
    }
}
