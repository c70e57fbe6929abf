//! Converts the namespace annotations of kube2iam and kiam into grants.
//!
//! A converted grant never allows more than the annotation did. Patterns without an equivalent glob
//! are omitted with a note.

mod globs;
mod regexp;

use std::collections::{BTreeMap, BTreeSet};

use rolegate_core::annotation::{ALLOWED_ROLES, PERMITTED};
use rolegate_core::arn::BaseArn;
use rolegate_core::decision::is_external_id;
use rolegate_core::grant::{CompiledGrant, Grant, MAX_LIST, Subject};
use rolegate_core::namespace::{Namespace, NamespaceRules, allowed_patterns};
use rolegate_core::pattern::{PatternFormat, RoleExpression};
use rolegate_core::workload::Workload;
use serde_json::Value;

use crate::document::{self, Names, is_plain_name};
use globs::{contains, intersection, rooted, rooted_arn};
use rolegate_report::text::count;

/// The input of a conversion.
#[derive(Debug, Clone, Copy)]
pub struct Conversion<'a> {
    /// The namespaces with their annotations.
    pub namespaces: &'a [Namespace],
    /// Pods, whose external IDs grants must list.
    pub workloads: &'a [Workload],
    /// The base ARN that completes bare role names.
    pub base: Option<&'a BaseArn>,
    /// The format of `allowed-roles`.
    pub format: PatternFormat,
    /// True if namespaces without annotations allow every role.
    pub allow_unannotated: bool,
    /// Names of existing grants.
    pub taken: &'a [&'a str],
}

/// The grants by namespace, and the omitted patterns.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Converted {
    /// The namespaces in order.
    pub namespaces: Vec<ConvertedNamespace>,
}

/// The conversion of one namespace's annotations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConvertedNamespace {
    /// The namespace.
    pub name: String,
    /// The grants; several if a list would be too long.
    pub grants: Vec<Grant>,
    /// A sentence for each difference from the annotations.
    pub notes: Vec<String>,
}

/// Globs in the format of grants, and notes about omitted patterns.
#[derive(Debug, Default)]
struct Roles {
    globs: BTreeSet<String>,
    notes: Vec<String>,
}

/// Converts the annotations.
pub fn convert(conversion: &Conversion<'_>) -> Converted {
    let mut names = Names::taken(conversion.taken.iter().copied());
    let sorted: BTreeMap<_, _> = conversion
        .namespaces
        .iter()
        .map(|namespace| (&namespace.name, namespace))
        .collect();
    let converted = sorted
        .into_values()
        .filter_map(|namespace| one(namespace, conversion, &mut names));
    Converted {
        namespaces: converted.collect(),
    }
}

fn one(
    namespace: &Namespace,
    conversion: &Conversion<'_>,
    names: &mut Names,
) -> Option<ConvertedNamespace> {
    let mut converted = ConvertedNamespace {
        name: namespace.name.to_string(),
        ..ConvertedNamespace::default()
    };
    let rules = NamespaceRules::new(namespace, conversion.base, conversion.format);
    let compiled = rules.annotations();
    let both = [
        (ALLOWED_ROLES, &compiled.allowed, allowed as ReadRoles),
        (PERMITTED, &compiled.permitted, permitted as ReadRoles),
    ];
    let mut found: Option<Roles> = None;
    for (key, patterns, read) in both {
        let Some(patterns) = patterns else { continue };
        let mut roles = match patterns {
            Ok(_) => read(namespace, conversion),
            Err(broken) => Roles {
                notes: vec![format!("it cannot be parsed: {broken}; it allows no role")],
                ..Roles::default()
            },
        };
        for note in &mut roles.notes {
            *note = format!("{key}: {note}");
        }
        found = Some(match found {
            None => roles,
            Some(other) => both_allow(other, roles),
        });
    }
    let Some(roles) = found else {
        if conversion.allow_unannotated {
            converted.notes.push(
                "it has no annotation and therefore allows every role, for which no grant is written; `rolegate \
                 policy suggest` lists the roles that its pods use"
                    .into(),
            );
            return Some(converted);
        }
        return None;
    };
    converted.notes = roles.notes;
    if !is_plain_name(&namespace.name) {
        let note = "its name is not valid in Kubernetes";
        converted.notes.push(note.into());
        return Some(converted);
    }
    let globs = usable(roles.globs, conversion.base, &mut converted.notes);
    if globs.is_empty() {
        converted
            .notes
            .push("no role remains, so there is no grant".into());
        return Some(converted);
    }
    if globs.iter().any(|glob| glob.starts_with("arn:*")) {
        converted
            .notes
            .push("it allows roles of every account: use the account's ARN to limit it".into());
    }
    converted.grants = grants(namespace, &globs, conversion, names);
    Some(converted)
}

type ReadRoles = fn(&Namespace, &Conversion<'_>) -> Roles;

/// Converts kube2iam's list.
fn allowed(namespace: &Namespace, conversion: &Conversion<'_>) -> Roles {
    let mut roles = Roles::default();
    let list = namespace
        .allowed_roles
        .as_deref()
        .and_then(|text| allowed_patterns(text).ok())
        .unwrap_or_default();
    for pattern in list {
        match conversion.format {
            PatternFormat::Glob => match rooted(&pattern, conversion.base) {
                Some(glob) => {
                    roles.globs.insert(glob);
                }
                None => roles.notes.push(matches_nothing(&pattern, conversion.base)),
            },
            PatternFormat::Regexp => named_regexp(&pattern, conversion.base, &mut roles),
        }
    }
    roles
}

/// Converts kiam's expression, which matches the whole ARN or the part after the base.
fn permitted(namespace: &Namespace, conversion: &Conversion<'_>) -> Roles {
    let mut roles = Roles::default();
    let text = namespace.permitted.as_deref().unwrap_or_default();
    if text.is_empty() {
        roles.notes.push("it is empty and allows no role".into());
        return roles;
    }
    match regexp::globs(text) {
        Ok(globs) => {
            let globs = globs.iter().filter_map(|glob| rooted_arn(glob));
            roles.globs.extend(globs);
        }
        Err(why) => roles.notes.push(format!("{text:?}: {why}")),
    }
    if roles.notes.is_empty() {
        named_regexp(text, conversion.base, &mut roles);
    }
    if roles.globs.is_empty() && roles.notes.is_empty() {
        roles.notes.push(format!("{text:?} matches no role"));
    }
    roles
}

/// Converts an expression as kube2iam reads it: one that does not start as an ARN follows the base.
fn named_regexp(pattern: &str, base: Option<&BaseArn>, roles: &mut Roles) {
    let RoleExpression { start, rest } = RoleExpression::read(pattern, base);
    match regexp::globs(rest) {
        Ok(globs) => {
            let globs = globs.iter().filter(|glob| !glob.is_empty());
            let whole = globs.filter_map(|glob| rooted_arn(&format!("{start}{glob}")));
            roles.globs.extend(whole);
        }
        Err(why) => roles.notes.push(format!("{pattern:?}: {why}")),
    }
}

fn matches_nothing(pattern: &str, base: Option<&BaseArn>) -> String {
    if base.is_none() {
        format!(
            "{pattern:?} is a name, and no base ARN is known to complete it: set --base-role-arn"
        )
    } else {
        format!("{pattern:?} matches no role")
    }
}

/// Returns the roles that two annotations of one namespace both allow.
fn both_allow(one: Roles, other: Roles) -> Roles {
    let mut both = Roles {
        globs: BTreeSet::new(),
        notes: one.notes,
    };
    both.notes.extend(other.notes);
    for left in &one.globs {
        for right in &other.globs {
            match intersection(left, right) {
                Ok(common) => both.globs.extend(common),
                Err(()) => both.notes.push(format!(
                    "{left} and {right} overlap, and their intersection is not a glob: list the roles \
                     individually"
                )),
            }
        }
    }
    both
}

/// Returns the globs that a grant accepts, in their shortest form, without those that others
/// contain.
fn usable(all: BTreeSet<String>, base: Option<&BaseArn>, notes: &mut Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    for glob in &all {
        let is_contained = all.iter().any(|other| {
            other != glob && contains(other, glob) && !(contains(glob, other) && glob < other)
        });
        if is_contained {
            continue;
        }
        let text = base
            .and_then(|base| glob.strip_prefix(base.as_str()))
            .filter(|name| !name.is_empty() && !name.starts_with('/'))
            .unwrap_or(glob);
        let trial = Grant {
            name: "trial".into(),
            roles: vec![text.to_owned()],
            subjects: vec![Subject {
                namespaces: vec!["x".into()],
                ..Subject::default()
            }],
            ..Grant::default()
        };
        match CompiledGrant::compile(&trial, base) {
            Ok(_) => kept.push(text.to_owned()),
            Err(error) => notes.push(format!("{text:?} is omitted: {error}")),
        }
    }
    kept
}

/// Returns the grants. Annotations do not restrict external IDs, but grants list them: those that
/// pods use now.
fn grants(
    namespace: &Namespace,
    globs: &[String],
    conversion: &Conversion<'_>,
    names: &mut Names,
) -> Vec<Grant> {
    let ids: BTreeSet<String> = conversion
        .workloads
        .iter()
        .filter(|workload| workload.namespace == namespace.name)
        .filter_map(|workload| workload.role_request.external_id.as_deref())
        .filter(|id| is_external_id(id))
        .map(str::to_owned)
        .collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let no_ids: &[String] = &[];
    let lists = if ids.is_empty() {
        vec![no_ids]
    } else {
        ids.chunks(MAX_LIST).collect()
    };
    let mut made = Vec::new();
    for ids in lists {
        for roles in globs.chunks(MAX_LIST) {
            made.push(Grant {
                name: names.next(&namespace.name).into(),
                roles: roles.to_vec(),
                subjects: vec![Subject {
                    namespaces: vec![namespace.name.to_string()],
                    ..Subject::default()
                }],
                external_ids: ids.to_vec(),
                ..Grant::default()
            });
        }
    }
    made
}

impl Converted {
    /// Returns all grants.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.namespaces.iter().flat_map(|one| &one.grants)
    }

    /// Formats a stream of YAML that is ready to apply, with comments about differences.
    ///
    /// # Errors
    /// See [`document::yaml`].
    pub fn yaml(&self) -> Result<String, serde_saphyr::SerializeError> {
        let mut text = String::new();
        for namespace in &self.namespaces {
            let mut comments: Vec<_> = namespace
                .notes
                .iter()
                .map(|n| format!("note: {n}"))
                .collect();
            comments.insert(0, format!("namespace {}", namespace.name));
            if namespace.grants.is_empty() {
                let lines = comments.iter().map(|line| document::comment_line(line));
                text.extend(lines);
                continue;
            }
            let comments = std::iter::once(comments).chain(std::iter::repeat(Vec::new()));
            text.push_str(&document::yaml_stream(
                namespace.grants.iter().zip(comments),
            )?);
        }
        Ok(text)
    }

    /// Returns the grants as one JSON list, as `kubectl apply` accepts it.
    pub fn json(&self) -> Value {
        document::list(self.grants())
    }

    /// Returns notes about the grants, one per line.
    pub fn notes(&self) -> Vec<String> {
        let grants = count(self.grants().count(), "grant", "grants");
        let namespaces = count(self.namespaces.len(), "namespace", "namespaces");
        let mut notes = vec![format!("{grants} from the annotations of {namespaces}")];
        for namespace in &self.namespaces {
            let all = namespace.notes.iter();
            notes.extend(all.map(|note| format!("namespace {}: {note}", namespace.name)));
        }
        notes
    }
}

#[cfg(test)]
mod tests;
