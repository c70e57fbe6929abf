//! Grants as objects that administrators apply: `RoleGrant`s in YAML and JSON.

use rolegate_api::RoleGrant;
use rolegate_core::arn::{BaseArn, RoleArn, listed_name};
use rolegate_core::grant::{Grant, GrantSession, SessionRules};
use rolegate_core::text::plain;
use rolegate_core::text::{escape_yaml, is_unsafe};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

/// Maximum length of a generated object name. Kubernetes accepts 253 characters, and a suffix that
/// makes names unique needs some of them.
const MAX_NAME_LENGTH: usize = 240;

/// Returns a grant as a JSON object without empty fields.
pub fn object(grant: &Grant) -> Value {
    json!(RoleGrant::from(grant))
}

/// Returns the written form of a compiled grant's session rules.
pub fn session_rules(session: &GrantSession) -> SessionRules {
    let limits = session.limits.as_deref();
    SessionRules {
        duration_seconds: session.duration_seconds,
        tags: limits
            .into_iter()
            .flat_map(|limits| limits.tags.iter())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        attribution: session.attribution,
        policy_arns: limits
            .into_iter()
            .flat_map(|limits| &limits.policy_arns)
            .map(|arn| arn.to_string())
            .collect(),
        policy: limits
            .and_then(|limits| limits.policy.as_deref())
            .unwrap_or_default()
            .to_owned(),
        names: session
            .names
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect(),
    }
}

/// Returns the shortest form of a role in a grant: its name if `base` completes it.
pub fn role_text(role: &RoleArn, base: Option<&BaseArn>) -> String {
    listed_name(role, base).to_owned()
}

/// Formats a value as one YAML document that ends in a line break, with keys in the order of
/// Kubernetes objects.
///
/// # Errors
/// Returns an error if the YAML serializer fails, which it does not for JSON values.
pub fn yaml(value: &Value) -> Result<String, serde_saphyr::SerializeError> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let text = serde_saphyr::to_string_with_options(&Ordered(value), options)?;
    Ok(escape_yaml(&without_markers(&text)).into_owned())
}

/// Formats an object that `rolegate policy export` writes, with long texts in blocks.
///
/// # Errors
/// See [`yaml`].
pub(crate) fn yaml_in_blocks(value: &Value) -> Result<String, serde_saphyr::SerializeError> {
    let text = serde_saphyr::to_string(&Quoted(value))?;
    Ok(escape_yaml(&without_markers(&text)).into_owned())
}

/// Formats grants as a stream of YAML, each with its comment lines before it.
///
/// # Errors
/// See [`yaml`].
pub fn yaml_stream<'a>(
    grants: impl IntoIterator<Item = (&'a Grant, Vec<String>)>,
) -> Result<String, serde_saphyr::SerializeError> {
    let mut text = String::new();
    for (grant, comments) in grants {
        text.push_str("---\n");
        for comment in comments {
            text.push_str(&comment_line(&comment));
        }
        text.push_str(&yaml(&object(grant))?);
    }
    Ok(text)
}

/// Returns grants as one JSON list, as `kubectl apply` accepts it.
pub fn list<'a>(grants: impl IntoIterator<Item = &'a Grant>) -> Value {
    let items: Vec<_> = grants.into_iter().map(object).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Formats a YAML comment that stays on one line for any `text`.
pub fn comment_line(text: &str) -> String {
    format!("# {}\n", plain(text))
}

/// Fields in their usual order. Others follow by name.
const ORDER: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    "name",
    "roles",
    "subjects",
    "namespaces",
    "namespaceSelector",
    "serviceAccounts",
    "podSelector",
    "externalIds",
    "session",
];

/// A value whose maps are serialized in that order.
struct Ordered<'a>(&'a Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                let rank = |key: &str| ORDER.iter().position(|known| *known == key);
                fields.sort_by_key(|(key, _)| (rank(key).unwrap_or(ORDER.len()), key.as_str()));
                let fields = fields.into_iter();
                serializer.collect_map(fields.map(|(key, value)| (Text(key), Self(value))))
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Self)),
            Value::String(text) => Text(text).serialize(serializer),
            scalar => scalar.serialize(serializer),
        }
    }
}

/// A value whose keys and strings are [`Text`]s.
struct Quoted<'a>(&'a Value);

impl Serialize for Quoted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let fields = fields.iter();
                serializer.collect_map(fields.map(|(key, value)| (Text(key), Self(value))))
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Self)),
            Value::String(text) => Text(text).serialize(serializer),
            scalar => scalar.serialize(serializer),
        }
    }
}

/// A text that is double-quoted if it contains unsafe characters, so that [`escape_yaml`] can
/// escape them. Line feeds alone are left to the serializer.
struct Text<'a>(&'a str);

/// Begins a text that must be double-quoted. A control makes the serializer quote keys too, for
/// which it ignores [`serde_saphyr::DoubleQuoted`].
const MARKER: char = '\u{1}';
/// The marker behind an opening quote, as the serializer escapes it.
const WRITTEN_MARKER: &str = r#""\x01"#;

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_unsafe = self.0.contains(|c| c != '\n' && is_unsafe(c));
        // Unquoted, a text with the written marker would lose it.
        if is_unsafe || self.0.contains(WRITTEN_MARKER) {
            serializer.collect_str(&format_args!("{MARKER}{}", self.0))
        } else {
            serializer.serialize_str(self.0)
        }
    }
}

/// Removes the markers of [`Text`]s. A quote inside a quoted text has a backslash before it, so it
/// is not an opening one.
fn without_markers(yaml: &str) -> String {
    let mut text = String::with_capacity(yaml.len());
    let mut rest = yaml;
    while let Some((before, after)) = rest.split_once(WRITTEN_MARKER) {
        text.push_str(before);
        let is_inside = before.ends_with('\\');
        text.push_str(if is_inside { WRITTEN_MARKER } else { "\"" });
        rest = after;
    }
    text + rest
}

/// Generates unique and valid names of objects (RFC 1123 subdomains).
#[derive(Debug, Default)]
pub struct Names(std::collections::HashSet<String>);

impl Names {
    /// Creates a generator that avoids these names.
    pub fn taken<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(str::to_owned).collect())
    }

    /// Returns a name as close to `base_name` as possible.
    pub fn next(&mut self, base_name: &str) -> String {
        let fitted: String = base_name
            .chars()
            .map(|c| match c.to_ascii_lowercase() {
                c if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' => c,
                _ => '-',
            })
            .take(MAX_NAME_LENGTH)
            .collect();
        // Each label between dots starts and ends with a letter or digit.
        let labels: Vec<_> = fitted
            .split('.')
            .map(|label| label.trim_matches('-'))
            .filter(|label| !label.is_empty())
            .collect();
        let name = match labels.join(".") {
            empty if empty.is_empty() => "grant".to_owned(),
            name => name,
        };
        let mut unique = name.clone();
        let mut number = 1_u32;
        while !self.0.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}-{number}");
        }
        unique
    }
}

/// Returns whether a text is a valid name of a namespace or a service account, so that it matches
/// only itself in a grant.
pub fn is_plain_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rolegate_core::grant::Subject;
    use rolegate_core::selector::Selector;
    use rolegate_core::text::UNSAFE_EXAMPLES;
    use serde_json::Map;

    use super::*;

    #[test]
    fn a_grant_is_written_as_people_write_it() {
        let grant = Grant {
            name: "payments".into(),
            roles: vec![
                "payments-*".into(),
                "arn:aws:iam::123456789012:role/a".into(),
            ],
            subjects: vec![Subject {
                namespaces: vec!["payments".into()],
                service_accounts: vec!["no".into()],
                pod_selector: Some(Selector {
                    labels: [("app", "1.5")].into_iter().collect(),
                    expressions: Vec::new(),
                }),
                ..Subject::default()
            }],
            external_ids: vec!["0x1".into()],
            session: SessionRules {
                duration_seconds: Some(900),
                ..SessionRules::default()
            },
            ..Grant::default()
        };
        assert_eq!(
            yaml_stream([(&grant, vec!["why\nnot".into()])]).unwrap(),
            "\
---
# why\\u{a}not
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata:
  name: payments
spec:
  roles:
  - payments-*
  - arn:aws:iam::123456789012:role/a
  subjects:
  - namespaces:
    - payments
    serviceAccounts:
    - \"no\"
    podSelector:
      matchLabels:
        app: \"1.5\"
  externalIds:
  - \"0x1\"
  session:
    durationSeconds: 900
"
        );
    }

    #[test]
    fn names_are_valid_and_unique() {
        let mut names = Names::taken(["shop.api"]);
        assert_eq!(names.next("shop.api"), "shop.api-2");
        assert_eq!(names.next("shop.api"), "shop.api-3");
        assert_eq!(names.next("Shop._x_"), "shop.x");
        assert_eq!(names.next("..."), "grant");
        let long = names.next(&"x".repeat(500));
        assert!(long.len() <= 253);
        assert_ne!(names.next(&"x".repeat(499)), long);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            ".{0,12}".prop_map(Value::from),
            "[a-zA-Z0-9.~#:*&!? -]{0,6}".prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<Map<_, _>>().into()),
            ]
        })
    }

    #[test]
    fn threat_25_yaml_escapes_unsafe_characters_and_keeps_the_value() {
        let classes = UNSAFE_EXAMPLES.iter().map(|c| format!("a{c}b"));
        let forged = [
            "\u{1}",
            "\u{1}\u{1}\"\u{1}",
            "\\\"\u{1}",
            r#""\x01"#,
            r#"a "\x01\"#,
        ]
        .map(Into::into);
        for hostile in classes.chain(forged) {
            let document = json!({
                "apiVersion": "v1", "kind": "X", hostile.as_str(): hostile,
                "spec": [hostile, {hostile.as_str(): {hostile.as_str(): "x"}}],
            });
            for text in [yaml(&document), yaml_in_blocks(&document)] {
                let text = text.unwrap();
                let unsafe_chars = |c| c != '\n' && is_unsafe(c);
                assert!(!text.contains(unsafe_chars), "{text:?}");
                let read = serde_saphyr::from_str::<Value>(&text);
                assert_eq!(read.unwrap(), document, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in value()) {
            let document = json!({"apiVersion": "v1", "kind": "X", "spec": value});
            let text = yaml(&document).unwrap();
            let read = rolegate_api::manifest::documents(&text)
                .map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
            prop_assert_eq!(&read.documents[0].value, &document, "{}", text);
        }

        #[test]
        fn names_are_rfc_1123(role_requests in prop::collection::vec(".{0,40}", 1..8)) {
            let mut names = Names::default();
            let mut seen = std::collections::HashSet::new();
            for base_name in role_requests {
                let name = names.next(&base_name);
                prop_assert!(name.split('.').all(is_plain_name), "{name}");
                prop_assert!(seen.insert(name));
            }
        }
    }
}
