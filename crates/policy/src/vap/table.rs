//! The parameter object: all grants as one `RoleGrantTable`, each as rows of fields that CEL can
//! split.
//!
//! It is one object, since several parameter objects are evaluated individually and combined with
//! AND. Its keys are an index: `any` and `ns.NAMESPACE` list the numbers of the rows that may apply
//! in a namespace, and `row.N` contains a row. A row is one subject of a grant with the role
//! patterns of one specificity. Names are completed and globs compiled to regular expressions, so
//! that admission only has to compare.
//!
//! It is a custom resource and not a ConfigMap: when the last policy with such parameters is
//! deleted, the API server permanently stops its watch of a built-in kind and serves stale data to
//! later policies. A revoked grant would apply until the API server's restart (observed with 1.36).

use std::collections::BTreeMap;

use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::grant::{CompiledGrant, Grant, Specificity, Subject};
use rolegate_core::selector::{Operator, Requirement, Selector};
use serde_json::{Value, json};

use super::VapError;
use super::cel::{expand, globs, literal_start, longest_part};

/// The name of the object with the grants.
pub const PARAMETERS: &str = "rolegate-grants";
/// Its kind, and the plural.
pub(super) const KIND: (&str, &str) = ("RoleGrantTable", "rolegranttables");
/// The API group and version of its kind, which is defined with rolegate's other kinds.
pub(super) const API: (&str, &str) = ("rolegate.dev", "v1alpha1");
/// Maximum size of its data, in bytes. etcd accepts 1.5 MiB including the rest of the object.
const MAX_DATA_BYTES: usize = 1_000_000;
/// Maximum number of rows to evaluate for one namespace.
pub(super) const MAX_ROWS: usize = 2000;
/// Maximum size of the rows to evaluate for one namespace, in bytes.
const MAX_EVALUATED_BYTES: usize = 600_000;

/// The index of each field in a row.
pub(super) mod field {
    /// The grant's name.
    pub(in crate::vap) const GRANT: usize = 0;
    /// `1` for globs, `2` for names, `3` for ARNs.
    pub(in crate::vap) const CLOSENESS: usize = 1;
    /// The common prefix of its roles.
    pub(in crate::vap) const START: usize = 2;
    /// The longest literal text in the rest of the role, if there is one pattern. Searching for it
    /// is cheaper than matching.
    pub(in crate::vap) const PART: usize = 3;
    /// ARNs separated by blanks, or a regular expression if the specificity is `1`.
    pub(in crate::vap) const ROLES: usize = 4;
    /// A regular expression for namespaces; empty for all.
    pub(in crate::vap) const NAMESPACES: usize = 5;
    /// A regular expression for service accounts; empty for all.
    pub(in crate::vap) const ACCOUNTS: usize = 6;
    /// Requirements on the namespace's labels, separated by `;`.
    pub(in crate::vap) const NAMESPACE_LABELS: usize = 7;
    /// Requirements on the pod's labels, separated by `;`.
    pub(in crate::vap) const POD_LABELS: usize = 8;
    /// External IDs, separated by blanks.
    pub(in crate::vap) const EXTERNAL_IDS: usize = 9;
    /// A number that is equal for equal sessions.
    pub(in crate::vap) const SESSION: usize = 10;
    /// A regular expression for session names; empty for all.
    pub(in crate::vap) const NAMES: usize = 11;
}

/// The prefix of pod labels in the fields of a request.
pub(super) const LABEL: &str = "label/";

/// All valid grants, prepared for CEL.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Rows,
    /// Keys of namespace labels that grants select by.
    pub(super) namespace_labels: Vec<String>,
    /// Keys of pod labels that grants select by.
    pub(super) pod_labels: Vec<String>,
    /// Omitted grants, with the reason.
    pub(super) left_out: Vec<String>,
}

impl Table {
    /// Compiles the grants.
    pub(super) fn new(grants: &[Grant], config: &RuleConfig) -> Self {
        let base = config.base.as_ref();
        let mut table = Self::default();
        let mut sorted: Vec<_> = grants.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut sessions = Vec::new();
        for grant in sorted {
            // Those of invalid grants too: their labels apply once they are fixed.
            let selectors = grant
                .subjects
                .iter()
                .filter_map(|subject| subject.namespace_selector.as_ref());
            let keys = selectors.flat_map(|selector| selector.keys());
            table.namespace_labels.extend(keys.map(str::to_owned));
            let parts = grant.parts();
            let parts: Result<Vec<_>, _> = CompiledGrant::compile(grant, base).and_then(|_| {
                let compiled = parts.iter().map(|part| {
                    CompiledGrant::compile(part, base).map(|compiled| (part, compiled))
                });
                compiled.collect()
            });
            let parts = match parts {
                Ok(parts) => parts,
                Err(error) => {
                    table.left_out.push(format!(
                        "grant {} is not valid and grants nothing: {error}",
                        grant.name
                    ));
                    continue;
                }
            };
            for (part, compiled) in parts {
                let session = sessions
                    .iter()
                    .position(|known| *known == compiled.session)
                    .unwrap_or_else(|| {
                        sessions.push(compiled.session.clone());
                        sessions.len() - 1
                    });
                let owned = |keys: &mut dyn Iterator<Item = &str>| -> Vec<String> {
                    keys.map(str::to_owned).collect()
                };
                table
                    .pod_labels
                    .extend(owned(&mut compiled.pod_label_keys()));
                table.rows.add(part, &compiled, session, base);
            }
        }
        for keys in [&mut table.namespace_labels, &mut table.pod_labels] {
            keys.sort();
            keys.dedup();
        }
        table
    }

    /// Returns the object.
    ///
    /// # Errors
    /// Returns [`VapError::TooLarge`] or [`VapError::TooMany`].
    pub(super) fn document(&self, namespace: &str) -> Result<Value, VapError> {
        Ok(json!({
            "apiVersion": format!("{}/{}", API.0, API.1),
            "kind": KIND.0,
            "metadata": { "name": PARAMETERS, "namespace": namespace },
            "data": self.rows.data()?,
        }))
    }
}

/// Rows, and the namespaces in which they apply.
#[derive(Debug, Default)]
struct Rows {
    texts: Vec<String>,
    anywhere: Vec<usize>,
    by_namespace: BTreeMap<String, Vec<usize>>,
}

impl Rows {
    fn add(
        &mut self,
        grant: &Grant,
        compiled: &CompiledGrant,
        session: usize,
        base: Option<&BaseArn>,
    ) {
        // Offline input is not validated, so it must not be interpreted as other fields.
        let name: String = grant
            .name
            .chars()
            .map(|c| {
                if is_label(c.encode_utf8(&mut [0; 4]), "") {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        let names = &grant.session.names;
        let names = match (names.is_empty(), globs(names, "_+=,.@-")) {
            (true, _) => String::new(),
            // No name is empty, so this allows none.
            (false, names) => names.unwrap_or_else(|| "^$".to_owned()),
        };
        let ids = grant
            .external_ids
            .iter()
            .filter(|id| {
                let fine = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
                id.bytes().all(fine) && !id.is_empty()
            })
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        for specificity in [Specificity::Arn, Specificity::Name, Specificity::Glob] {
            let patterns = compiled
                .roles
                .iter()
                .filter(|role| role.specificity == specificity);
            let roles: Vec<_> = patterns.map(|role| expand(&role.text, base)).collect();
            let start = roles.iter().map(|role| literal_start(role));
            let Some(start) = start.reduce(common_start) else {
                continue;
            };
            let (number, matcher) = match specificity {
                Specificity::Arn => ("3", Some(roles.join(" "))),
                Specificity::Name => ("2", Some(roles.join(" "))),
                Specificity::Glob => ("1", globs(&roles, "_+=,.@/:-")),
            };
            let Some(matcher) = matcher else { continue };
            let part = match &*roles {
                [one] => longest_part(one),
                _ => "",
            };
            for subject in &grant.subjects {
                let Some(whom) = Whom::new(subject) else {
                    continue;
                };
                let fields = [
                    &name,
                    number,
                    start,
                    part,
                    &matcher,
                    &whom.namespaces,
                    &whom.accounts,
                    &whom.namespace_labels,
                    &whom.pod_labels,
                    &ids,
                    &session.to_string(),
                    &names,
                ];
                self.insert(subject, fields.join("\n"));
            }
        }
    }

    fn insert(&mut self, subject: &Subject, text: String) {
        let row = self.texts.len();
        self.texts.push(text);
        if !is_exact(subject) {
            self.anywhere.push(row);
            return;
        }
        for name in subject.namespaces.iter().filter(|name| is_namespace(name)) {
            let rows = self.by_namespace.entry(name.clone()).or_default();
            if rows.last() != Some(&row) {
                rows.push(row);
            }
        }
    }

    fn data(&self) -> Result<BTreeMap<String, String>, VapError> {
        let size = |rows: &[usize]| -> usize {
            rows.iter()
                .filter_map(|row| self.texts.get(*row))
                .map(String::len)
                .sum()
        };
        let (most, most_bytes) = self
            .by_namespace
            .values()
            .map(|rows| (rows.len(), size(rows)))
            .fold((0, 0), |(a, b), (c, d)| (a.max(c), b.max(d)));
        let (most, most_bytes) = (
            most + self.anywhere.len(),
            most_bytes + size(&self.anywhere),
        );
        if most > MAX_ROWS || most_bytes > MAX_EVALUATED_BYTES {
            return Err(VapError::TooMany {
                rows: most,
                bytes: most_bytes,
            });
        }
        let numbers = |rows: &[usize]| {
            let numbers: Vec<_> = rows.iter().map(ToString::to_string).collect();
            numbers.join(" ")
        };
        let mut data: BTreeMap<_, _> = [("any".to_owned(), numbers(&self.anywhere))].into();
        for (namespace, rows) in &self.by_namespace {
            data.insert(format!("ns.{namespace}"), numbers(rows));
        }
        for (row, text) in self.texts.iter().enumerate() {
            data.insert(format!("row.{row}"), text.clone());
        }
        let bytes = data
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if bytes > MAX_DATA_BYTES {
            return Err(VapError::TooLarge { bytes });
        }
        Ok(data)
    }
}

/// A subject as fields of a row.
struct Whom {
    namespaces: String,
    accounts: String,
    namespace_labels: String,
    pod_labels: String,
}

impl Whom {
    /// Returns `None` if the subject matches no pod.
    fn new(subject: &Subject) -> Option<Self> {
        let named = |patterns: &[String], others| {
            let all =
                patterns.is_empty() || patterns.iter().any(|text| text.bytes().all(|b| b == b'*'));
            if all {
                Some(String::new())
            } else {
                globs(patterns, others)
            }
        };
        let namespaces = if is_exact(subject) {
            // The index finds them by their names.
            String::new()
        } else {
            named(&subject.namespaces, "-")?
        };
        let labels = |selector: &Option<Selector>, prefix| {
            selector.as_ref().map_or(Some(String::new()), |selector| {
                requirements(selector, prefix)
            })
        };
        Some(Self {
            namespaces,
            accounts: named(&subject.service_accounts, "-.")?,
            namespace_labels: labels(&subject.namespace_selector, "")?,
            pod_labels: labels(&subject.pod_selector, LABEL)?,
        })
    }
}

/// Formats a selector as text: `OPERATOR PREFIXkey value,value` separated by `;`. Returns `None` if
/// no valid labels can match it.
fn requirements(selector: &Selector, prefix: &str) -> Option<String> {
    let equal = selector.labels.iter().map(|(key, value)| Requirement {
        key: key.into(),
        operator: Operator::In(vec![value.into()]),
    });
    let mut texts = Vec::new();
    for Requirement { key, operator } in equal.chain(selector.expressions.iter().cloned()) {
        let possible = !key.is_empty() && is_label(&key, "/");
        let (name, values) = match &operator {
            Operator::In(values) => ("In", &values[..]),
            Operator::NotIn(values) => ("NotIn", &values[..]),
            Operator::Exists => ("Exists", &[][..]),
            Operator::DoesNotExist => ("DoesNotExist", &[][..]),
        };
        let values: Vec<_> = values.iter().filter(|value| is_label(value, "")).collect();
        let values: Vec<_> = values.iter().map(|value| &***value).collect();
        let is_positive = matches!(operator, Operator::In(_) | Operator::Exists);
        let is_empty =
            matches!(operator, Operator::In(_) | Operator::NotIn(_)) && values.is_empty();
        if !possible || is_empty {
            // A value that no label can have never matches.
            if is_positive {
                return None;
            }
            continue;
        }
        texts.push(format!("{name} {prefix}{key} {}", values.join(",")));
    }
    Some(texts.join(";"))
}

fn is_exact(subject: &Subject) -> bool {
    !subject.namespaces.is_empty() && subject.namespaces.iter().all(|name| !name.contains('*'))
}

fn is_label(text: &str, others: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c) || others.contains(c))
}

fn is_namespace(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn common_start<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.get(..same).unwrap_or_default()
}
