//! The parameter object: all grants as one `RoleGrantTable`, each as rows of fields that CEL can
//! split.
//!
//! One object, since several are judged one by one and joined by AND. Its keys are an index: `any`
//! and `ns.NAMESPACE` list the numbers of the rows that may count in a namespace, `row.N` holds a
//! row. A row is one subject of a grant with the role patterns of one closeness, names completed
//! and globs compiled to regular expressions, so that at admission nothing is left but to compare.
//!
//! A custom resource and no ConfigMap: the API server stops its watch of a built-in kind for good
//! when the last policy with such parameters goes, and serves what it saw last to those that come
//! later, so that a grant that was taken back would count until its restart (seen with 1.36).

use std::collections::BTreeMap;

use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::grant::{Closeness, CompiledGrant, Grant, Subject};
use rolegate_core::selector::{Operator, Requirement, Selector};
use serde_json::{Value, json};

use super::VapError;
use super::cel::{expand, globs, literal_start, longest_part};

/// The name of the object that holds the grants.
pub const PARAMETERS: &str = "rolegate-grants";
/// Its kind, and the plural.
pub(super) const KIND: (&str, &str) = ("RoleGrantTable", "rolegranttables");
/// The API group and version of its kind, which is defined beside those of our other kinds.
pub(super) const API: (&str, &str) = ("rolegate.dev", "v1alpha1");
/// Most bytes of its data; etcd takes 1.5 MiB with the rest of the object.
const MOST_BYTES: usize = 1_000_000;
/// Most rows that may have to be looked at for one namespace.
pub(super) const MOST_ROWS: usize = 2000;
/// Most bytes of the rows that may have to be looked at for one namespace.
const MOST_LOOKED_AT: usize = 600_000;

/// The place of each field in a row.
pub(super) mod field {
    /// The grant's name.
    pub(in crate::vap) const GRANT: usize = 0;
    /// `1` for globs, `2` for names, `3` for ARNs.
    pub(in crate::vap) const CLOSENESS: usize = 1;
    /// What all of its roles start with.
    pub(in crate::vap) const START: usize = 2;
    /// The longest literal text in the rest of the role, where there is one pattern: cheaper to look
    /// for than to match.
    pub(in crate::vap) const PART: usize = 3;
    /// ARNs divided by blanks, or a regular expression where the closeness is `1`.
    pub(in crate::vap) const ROLES: usize = 4;
    /// A regular expression for namespaces; empty for all.
    pub(in crate::vap) const NAMESPACES: usize = 5;
    /// A regular expression for service accounts; empty for all.
    pub(in crate::vap) const ACCOUNTS: usize = 6;
    /// Demands on the namespace's labels, divided by `;`.
    pub(in crate::vap) const NAMESPACE_LABELS: usize = 7;
    /// Demands on the pod's labels, divided by `;`.
    pub(in crate::vap) const POD_LABELS: usize = 8;
    /// External IDs, divided by blanks.
    pub(in crate::vap) const EXTERNAL_IDS: usize = 9;
    /// A number that is equal where the sessions are.
    pub(in crate::vap) const SESSION: usize = 10;
    /// A regular expression for session names; empty for all.
    pub(in crate::vap) const NAMES: usize = 11;
}

/// What a pod label is called among the facts about a wish.
pub(super) const LABEL: &str = "label/";

/// All grants that are valid, ready for CEL.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Rows,
    /// Keys of namespaces' labels that grants look at.
    pub(super) namespace_labels: Vec<String>,
    /// Keys of pods' labels that grants look at.
    pub(super) pod_labels: Vec<String>,
    /// Grants that are left out, with the reason.
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
            // Of invalid ones too: their labels would count once they are mended.
            let selectors = grant.subjects.iter();
            let selectors = selectors.filter_map(|subject| subject.namespace_selector.as_ref());
            let keys = selectors.flat_map(|selector| selector.keys());
            table.namespace_labels.extend(keys.map(str::to_owned));
            match CompiledGrant::compile(grant, base) {
                Ok(compiled) => {
                    let session = sessions.iter().position(|known| *known == compiled.session);
                    let session = session.unwrap_or_else(|| {
                        sessions.push(compiled.session.clone());
                        sessions.len() - 1
                    });
                    let owned = |keys: &mut dyn Iterator<Item = &str>| -> Vec<String> {
                        keys.map(str::to_owned).collect()
                    };
                    table
                        .pod_labels
                        .extend(owned(&mut compiled.pod_label_keys()));
                    table.rows.add(grant, &compiled, session, base);
                }
                Err(error) => table.left_out.push(format!(
                    "grant {} is not valid and grants nothing: {error}",
                    grant.name
                )),
            }
        }
        for keys in [&mut table.namespace_labels, &mut table.pod_labels] {
            keys.sort();
            keys.dedup();
        }
        table
    }

    /// The object.
    ///
    /// # Errors
    /// [`VapError::TooLarge`] or [`VapError::TooMany`].
    pub(super) fn document(&self, namespace: &str) -> Result<Value, VapError> {
        Ok(json!({
            "apiVersion": format!("{}/{}", API.0, API.1),
            "kind": KIND.0,
            "metadata": { "name": PARAMETERS, "namespace": namespace },
            "data": self.rows.data()?,
        }))
    }
}

/// Rows, and where they count.
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
        // Read offline it may be anything, and must not be taken for other fields.
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
        let ids = grant.external_ids.iter().filter(|id| {
            let fine = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
            id.bytes().all(fine) && !id.is_empty()
        });
        let ids = ids.map(String::as_str).collect::<Vec<_>>().join(" ");
        for closeness in [Closeness::Arn, Closeness::Name, Closeness::Glob] {
            let patterns = compiled
                .roles
                .iter()
                .filter(|role| role.closeness == closeness);
            let roles: Vec<_> = patterns.map(|role| expand(&role.text, base)).collect();
            let start = roles.iter().map(|role| literal_start(role));
            let Some(start) = start.reduce(common_start) else {
                continue;
            };
            let (number, matcher) = match closeness {
                Closeness::Arn => ("3", Some(roles.join(" "))),
                Closeness::Name => ("2", Some(roles.join(" "))),
                Closeness::Glob => ("1", globs(&roles, "_+=,.@/:-")),
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
        if most > MOST_ROWS || most_bytes > MOST_LOOKED_AT {
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
        if bytes > MOST_BYTES {
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
    /// `None` where nobody can be meant.
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
            // The index has found them by their names.
            String::new()
        } else {
            named(&subject.namespaces, "-")?
        };
        let labels = |selector: &Option<Selector>, prefix| {
            selector
                .as_ref()
                .map_or(Some(String::new()), |selector| demands(selector, prefix))
        };
        Some(Self {
            namespaces,
            accounts: named(&subject.service_accounts, "-.")?,
            namespace_labels: labels(&subject.namespace_selector, "")?,
            pod_labels: labels(&subject.pod_selector, LABEL)?,
        })
    }
}

/// A selector as text: `OPERATOR PREFIXkey value,value` divided by `;`. `None` where no labels
/// that Kubernetes takes can meet it.
fn demands(selector: &Selector, prefix: &str) -> Option<String> {
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
            // What no label can be is never there.
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
