//! Grants: what an administrator gives, raw as written and compiled for matching.
//!
//! A grant says which roles which workloads may have. What is broken or empty grants nothing: a
//! subject that says nothing is a mistake, and never everyone.

mod subject;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::arn::{ArnError, BaseArn, RoleArn, is_arn, resolve, shorten};
use crate::attribution::{self, AttributionRules};
use crate::key_values::KeyValues;
use crate::pattern::{MAX_COMPILED, Pattern, PatternError, PatternFormat};
use crate::selector::Selector;
use crate::session::SessionLimits;
use crate::workload::Workload;
pub use subject::CompiledSubject;

/// Most role patterns, subjects, and values in one list of a grant.
pub const MAX_LIST: usize = 64;
/// STS's limits of a session's life, seconds.
pub const DURATION: std::ops::RangeInclusive<u32> = 900..=43_200;
/// Most session tags of a grant. One is left for the tag of the cluster.
pub const MAX_TAGS: usize = attribution::MAX_TAGS - 1;
/// Most managed policies that STS takes for a session.
pub const MAX_POLICY_ARNS: usize = 10;
/// Most characters of a session policy that STS takes.
pub const MAX_POLICY: usize = 2048;
/// Tags that a grant may not set: ours, AWS's own, and those that EKS sets for attribution.
const RESERVED_TAGS: &[&str] = &["rolegate.dev/", "aws:", "eks-", "kubernetes-"];

/// A grant as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.generation`; `None` for a manifest that has none.
    pub generation: Option<i64>,
    /// Role patterns: names or ARNs, `*` stands for any text, `/` included.
    pub roles: Vec<String>,
    /// Who may have them: any of these.
    pub subjects: Vec<Subject>,
    /// External IDs that these workloads may pass to STS. Without any, none.
    pub external_ids: Vec<String>,
    /// What sessions are like.
    pub session: SessionRules,
    /// Why it cannot be read, where its source could not: such a grant is not valid, whatever else
    /// it says.
    pub unreadable: Option<String>,
}

/// Who: everything that is given must match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// Patterns of namespaces' names.
    pub namespaces: Vec<String>,
    /// Labels of the namespace.
    pub namespace_selector: Option<Selector>,
    /// Patterns of service accounts' names.
    pub service_accounts: Vec<String>,
    /// Labels of the pod, which its owner chooses: no boundary.
    pub pod_selector: Option<Selector>,
}

/// What a grant makes of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionRules {
    /// The life asked of STS, seconds.
    pub duration_seconds: Option<u32>,
    /// Session tags.
    pub tags: BTreeMap<String, String>,
    /// How sessions say whose they are, where it is not as the configuration says.
    pub attribution: AttributionRules,
    /// ARNs of managed policies that narrow the session.
    pub policy_arns: Vec<String>,
    /// A policy document (JSON) that narrows the session; empty for none.
    pub policy: String,
    /// Patterns of the session names that pods may choose. Without any, any that is the
    /// namespace's own.
    pub names: Vec<String>,
}

/// Why a grant is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Its source could not read it.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// No role is named.
    #[error("spec.roles is empty: name at least one role, such as \"payments-*\"")]
    NoRoles,
    /// Nobody is named.
    #[error(
        "spec.subjects is empty: name at least one subject; a grant to nobody is no grant to everyone"
    )]
    NoSubjects,
    /// A subject names no namespace.
    #[error(
        "spec.subjects[{0}] has neither namespaces nor a namespaceSelector that says something: a \
         subject needs one of them, and namespaces: [\"*\"] means all"
    )]
    NoNamespace(usize),
    /// A list or selector that is there and empty.
    #[error("spec.subjects[{0}].{1} is there but empty: leave it out, or say something")]
    Empty(usize, &'static str),
    /// A list is too long.
    #[error("{0} has more than {MAX_LIST} entries: split the grant")]
    TooMany(&'static str),
    /// A role is named that only a base ARN completes, and none is known here. Elsewhere one may be.
    #[error("spec.roles: {0:?} is a name, and no base ARN is known to complete it")]
    NoBase(String),
    /// A role pattern is malformed.
    #[error("spec.roles: {0}")]
    Role(String),
    /// Another pattern is malformed.
    #[error("{0}: {1}")]
    Pattern(&'static str, PatternError),
    /// A duration that STS refuses.
    #[error("spec.session.durationSeconds is {0}: STS takes 900 to 43200")]
    Duration(u32),
    /// A tag that STS refuses, or that is not a grant's to set.
    #[error("spec.session.tags: {0}")]
    Tag(String),
    /// Policies that STS refuses.
    #[error("spec.session: {0}")]
    Policy(String),
}

/// What a grant makes of a session, and of the names that it may have.
#[derive(Debug, Clone)]
pub struct GrantSession {
    /// The life asked of STS, seconds.
    pub duration_seconds: Option<u32>,
    /// Tags and policies.
    pub limits: Option<Arc<SessionLimits>>,
    /// How it says whose it is, where it is not as the configuration says.
    pub attribution: AttributionRules,
    /// Patterns of the names that pods may choose; empty for the usual rule.
    pub names: Vec<Pattern>,
}

impl PartialEq for GrantSession {
    fn eq(&self, other: &Self) -> bool {
        let names = |session: &Self| {
            let names = session.names.iter();
            names
                .map(|name| name.as_str().to_owned())
                .collect::<std::collections::BTreeSet<_>>()
        };
        self.duration_seconds == other.duration_seconds
            && self.limits == other.limits
            && self.attribution == other.attribution
            && names(self) == names(other)
    }
}
impl Eq for GrantSession {}

/// How closely a role pattern names a role. Later is closer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closeness {
    /// A pattern with a star.
    Glob,
    /// A name, completed by the base ARN.
    Name,
    /// A whole ARN.
    Arn,
}

/// A role pattern, compiled.
#[derive(Debug, Clone)]
pub struct RolePattern {
    /// As written.
    pub text: Arc<str>,
    /// How closely it names a role.
    pub closeness: Closeness,
    /// What matches whole ARNs.
    pub pattern: Pattern,
}

/// A grant, compiled.
#[derive(Clone)]
pub struct CompiledGrant {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Which roles.
    pub roles: Vec<RolePattern>,
    /// To whom.
    pub subjects: Vec<CompiledSubject>,
    /// External IDs that may be passed.
    pub external_ids: Vec<Arc<str>>,
    /// What sessions are like.
    pub session: Arc<GrantSession>,
}

impl fmt::Debug for CompiledGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompiledGrant({})", self.name)
    }
}

impl CompiledGrant {
    /// Compiles a grant.
    ///
    /// # Errors
    /// [`GrantError`]: the first fault found. Such a grant grants nothing.
    pub fn compile(grant: &Grant, base: Option<&BaseArn>) -> Result<Self, GrantError> {
        if let Some(why) = &grant.unreadable {
            return Err(GrantError::Unreadable(why.clone()));
        }
        if grant.roles.is_empty() {
            return Err(GrantError::NoRoles);
        }
        if grant.subjects.is_empty() {
            return Err(GrantError::NoSubjects);
        }
        check_count("spec.roles", &grant.roles)?;
        check_count("spec.externalIds", &grant.external_ids)?;
        if grant.subjects.len() > MAX_LIST {
            return Err(GrantError::TooMany("spec.subjects"));
        }
        let roles = grant.roles.iter().map(|text| role_pattern(text, base));
        let subjects = grant.subjects.iter().enumerate();
        Ok(Self {
            name: grant.name.clone(),
            roles: roles.collect::<Result<_, _>>()?,
            subjects: subjects
                .map(|(place, subject)| CompiledSubject::compile(place, subject))
                .collect::<Result<_, _>>()?,
            external_ids: grant
                .external_ids
                .iter()
                .map(|id| id.as_str().into())
                .collect(),
            session: Arc::new(session(&grant.session)?),
        })
    }

    /// The closest of its patterns that match `role`.
    pub fn closeness(&self, role: &RoleArn) -> Option<Closeness> {
        let matching = self
            .roles
            .iter()
            .filter(|role_pattern| role_pattern.pattern.matches(role.as_str()));
        matching.map(|pattern| pattern.closeness).max()
    }

    /// Whether it is given to `workload` in a namespace with `namespace_labels`.
    pub fn covers(&self, workload: &Workload, namespace_labels: &KeyValues) -> bool {
        self.subjects
            .iter()
            .any(|subject| subject.covers(workload, namespace_labels))
    }

    /// Returns whether it depends on labels that were not kept whether it covers a workload.
    pub fn lacks(&self, workload: &Workload, namespace_labels: &KeyValues) -> bool {
        self.subjects
            .iter()
            .any(|subject| subject.lacks(workload, namespace_labels))
    }

    /// Whether it looks at the name of a namespace and finds this one, with these labels, among those
    /// that it gives something to: whoever makes a namespace of that name is given it. A grant to
    /// namespaces of any name looks at none.
    pub fn looks_for(&self, namespace: &str, labels: &KeyValues) -> bool {
        self.subjects
            .iter()
            .any(|subject| subject.looks_for(namespace, labels))
    }

    /// Whether pods may pass `id` to STS. None at all they always may.
    pub fn takes_external_id(&self, id: Option<&str>) -> bool {
        id.is_none_or(|id| self.external_ids.iter().any(|known| **known == *id))
    }

    /// The keys of namespace labels that it looks at: whoever sets them grants.
    pub fn namespace_label_keys(&self) -> impl Iterator<Item = &str> {
        let selectors = self
            .subjects
            .iter()
            .filter_map(|subject| subject.namespace_selector.as_ref());
        selectors.flat_map(Selector::keys)
    }

    /// The keys of pod labels that it looks at.
    pub fn pod_label_keys(&self) -> impl Iterator<Item = &str> {
        let selectors = self
            .subjects
            .iter()
            .filter_map(|subject| subject.pod_selector.as_ref());
        selectors.flat_map(Selector::keys)
    }
}

fn check_count(field: &'static str, list: &[String]) -> Result<(), GrantError> {
    (list.len() <= MAX_LIST)
        .then_some(())
        .ok_or(GrantError::TooMany(field))
}

fn role_pattern(text: &str, base: Option<&BaseArn>) -> Result<RolePattern, GrantError> {
    let refused = |why: String| GrantError::Role(why);
    if text.is_empty() {
        return Err(refused("an empty pattern matches no role".into()));
    }
    let closeness = match (text.contains('*'), is_arn(text)) {
        (true, _) => Closeness::Glob,
        (false, true) => Closeness::Arn,
        (false, false) => Closeness::Name,
    };
    if closeness == Closeness::Glob {
        // A glob that isn't rooted at a base would match names of any account.
        if !is_arn(text) && base.is_none() {
            return Err(GrantError::NoBase(shorten(text)));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-/:*".contains(&b);
        if !text.bytes().all(allowed) {
            return Err(refused(format!(
                "{:?} has characters that no role has",
                shorten(text)
            )));
        }
    } else {
        resolve(text, base).map_err(|error| match error {
            ArnError::NoBase(name) => GrantError::NoBase(name),
            error => refused(error.to_string()),
        })?;
    }
    let pattern = Pattern::for_roles(text, PatternFormat::Glob, base, MAX_COMPILED)
        .map_err(|error| refused(error.to_string()))?;
    Ok(RolePattern {
        text: text.into(),
        closeness,
        pattern,
    })
}

fn session(rules: &SessionRules) -> Result<GrantSession, GrantError> {
    if let Some(seconds) = rules.duration_seconds
        && !DURATION.contains(&seconds)
    {
        return Err(GrantError::Duration(seconds));
    }
    check_tags(&rules.tags)?;
    if rules.policy_arns.len() > MAX_POLICY_ARNS {
        return Err(GrantError::Policy(format!(
            "policyArns has more than {MAX_POLICY_ARNS} entries, which STS refuses"
        )));
    }
    if let Some(wrong) = rules.policy_arns.iter().find(|arn| !is_policy_arn(arn)) {
        return Err(GrantError::Policy(format!(
            "policyArns: {:?} is not the ARN of a managed policy",
            shorten(wrong)
        )));
    }
    if rules.policy.len() > MAX_POLICY {
        return Err(GrantError::Policy(format!(
            "policy has more than {MAX_POLICY} characters, which STS refuses"
        )));
    }
    if !rules.policy.is_empty()
        && !serde_json::from_str::<serde_json::Value>(&rules.policy)
            .is_ok_and(|policy| policy.is_object())
    {
        return Err(GrantError::Policy("policy is not a JSON object".into()));
    }
    check_count("spec.session.names", &rules.names)?;
    let names = rules.names.iter().map(|name| Pattern::glob_of_names(name));
    let mut policy_arns: Vec<Arc<str>> = rules
        .policy_arns
        .iter()
        .map(|arn| arn.as_str().into())
        .collect();
    policy_arns.sort();
    policy_arns.dedup();
    let limits = SessionLimits {
        tags: rules.tags.iter().collect(),
        policy_arns,
        policy: (!rules.policy.is_empty()).then(|| rules.policy.as_str().into()),
        ..SessionLimits::default()
    };
    Ok(GrantSession {
        duration_seconds: rules.duration_seconds,
        limits: (limits != SessionLimits::default()).then(|| Arc::new(limits)),
        attribution: rules.attribution,
        names: names
            .collect::<Result<_, _>>()
            .map_err(|error| GrantError::Pattern("spec.session.names", error))?,
    })
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), GrantError> {
    let wrong = |why: String| Err(GrantError::Tag(why));
    if tags.len() > MAX_TAGS {
        return wrong(format!("more than {MAX_TAGS}, which STS refuses"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (key, value) in tags {
        let lower = key.to_lowercase();
        if RESERVED_TAGS
            .iter()
            .any(|reserved| lower.starts_with(reserved))
        {
            return wrong(format!("{:?} is reserved", shorten(key)));
        }
        if !attribution::is_tag(key, value) {
            return wrong(format!(
                "{:?}: STS takes keys of 1 to 128 and values of up to 256 letters, digits, blanks and _.:/=+-@",
                shorten(key)
            ));
        }
        // STS tells tag keys apart without regard to case.
        if !seen.insert(lower) {
            return wrong(format!(
                "{:?} is there twice in different case",
                shorten(key)
            ));
        }
    }
    Ok(())
}

fn is_policy_arn(text: &str) -> bool {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next().unwrap_or_default();
    text.len() <= 2048
        && next() == "arn"
        && next().starts_with("aws")
        && next() == "iam"
        && next().is_empty()
        && {
            let account = next();
            account == "aws" || (account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()))
        }
        && next()
            .strip_prefix("policy/")
            .is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
pub(crate) mod tests;
