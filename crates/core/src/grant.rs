//! Grants of roles to workloads, as written by an administrator and compiled for matching.
//!
//! A grant lists roles and the workloads that may assume them. A broken or empty grant grants
//! nothing: a subject without criteria is a mistake and never means every workload.

mod association;
mod associations;
mod subject;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::arn::{ArnError, BaseArn, RoleArn, is_arn, resolve, shorten};
use crate::attribution::{self, AttributionRules};
use crate::labels::Labels;
use crate::pattern::{MAX_COMPILED, Pattern, PatternError, PatternFormat};
use crate::selector::Selector;
use crate::session::SessionLimits;
use crate::workload::Workload;
pub use association::{
    Association, AssociationName, CONTAINER_CREDENTIALS_AUDIENCE, CompiledAssociation,
    MAX_AUDIENCE, Precision, WEB_IDENTITY_AUDIENCE,
};
pub use associations::{Ambiguous, Associations};
pub use subject::CompiledSubject;

/// Maximum number of role patterns, of subjects, and of values in one list of a grant.
pub const MAX_LIST: usize = 64;
/// STS's limits of the session duration, in seconds.
pub const DURATION: std::ops::RangeInclusive<u32> = 900..=43_200;
/// Maximum number of session tags of a grant. One is reserved for the cluster's tag.
pub const MAX_TAGS: usize = attribution::MAX_TAGS - 1;
/// Maximum number of managed policies that STS accepts for a session.
pub const MAX_POLICY_ARNS: usize = 10;
/// Maximum length of a session policy that STS accepts, in characters.
pub const MAX_POLICY: usize = 2048;
/// Prefixes of tags that a grant may not set: rolegate's, AWS's, and those that EKS sets for
/// attribution.
const RESERVED_TAGS: &[&str] = &["rolegate.dev/", "aws:", "eks-", "kubernetes-"];

/// A grant as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.generation`; `None` for a manifest without one.
    pub generation: Option<i64>,
    /// Role patterns: names or ARNs. `*` matches any text, including `/`.
    pub roles: Vec<String>,
    /// The workloads that may assume the roles. A workload must match at least one subject.
    pub subjects: Vec<Subject>,
    /// External IDs that the workloads may pass to STS. If empty, none are allowed.
    pub external_ids: Vec<String>,
    /// Associations of roles with service accounts. Each grants its role to its service accounts.
    pub associations: Vec<Association>,
    /// Settings of the sessions.
    pub session: SessionRules,
    /// The error of a source that could not read the grant. Such a grant is invalid, whatever else
    /// it contains.
    pub unreadable: Option<String>,
}

/// A selection of workloads. A workload must match every field that is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// Patterns of namespace names.
    pub namespaces: Vec<String>,
    /// Selector for the labels of the namespace.
    pub namespace_selector: Option<Selector>,
    /// Patterns of service account names.
    pub service_accounts: Vec<String>,
    /// Selector for the labels of the pod. It is not a security boundary, since the pod's owner
    /// chooses them.
    pub pod_selector: Option<Selector>,
}

/// Session settings of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionRules {
    /// Requested session duration, in seconds.
    pub duration_seconds: Option<u32>,
    /// Session tags.
    pub tags: BTreeMap<String, String>,
    /// Attribution settings that override the configuration's.
    pub attribution: AttributionRules,
    /// ARNs of managed policies that restrict the session.
    pub policy_arns: Vec<String>,
    /// A JSON policy document that restricts the session; empty for none.
    pub policy: String,
    /// Patterns of session names that pods may request. If empty, names that begin with the pod's
    /// namespace are allowed.
    pub names: Vec<String>,
}

/// The reason why a grant is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The source could not read the grant.
    #[error("cannot read the grant: {0}")]
    Unreadable(String),
    /// No role is given.
    #[error("spec.roles is empty: name at least one role, such as \"payments-*\"")]
    NoRoles,
    /// No subject is given.
    #[error(
        "spec.subjects is empty: name at least one subject; an empty list does not mean all \
         workloads"
    )]
    NoSubjects,
    /// A subject selects no namespace.
    #[error(
        "spec.subjects[{0}] has no namespaces and no namespaceSelector with requirements: a \
         subject needs one of them; namespaces: [\"*\"] means all"
    )]
    NoNamespace(usize),
    /// A list or selector is present but empty.
    #[error("spec.subjects[{0}].{1} is empty: remove it, or add an entry")]
    Empty(usize, &'static str),
    /// A list is too long.
    #[error("{0} has more than {MAX_LIST} entries: split the grant")]
    TooMany(&'static str),
    /// A role needs a base ARN to complete it, and none is known here. Another process may know
    /// one.
    #[error("spec.roles: {0:?} is a name, but no base ARN is known to complete it")]
    NoBase(String),
    /// A role pattern is malformed.
    #[error("spec.roles: {0}")]
    Role(String),
    /// An association is malformed: its index, the field and the fault.
    #[error("spec.associations[{0}].{1}: {2}")]
    Association(usize, &'static str, String),
    /// Another pattern is malformed.
    #[error("{0}: {1}")]
    Pattern(&'static str, PatternError),
    /// STS would reject the duration.
    #[error("spec.session.durationSeconds is {0}: STS accepts 900 to 43200")]
    Duration(u32),
    /// STS would reject the tag, or a grant may not set it.
    #[error("spec.session.tags: {0}")]
    Tag(String),
    /// STS would reject the policies.
    #[error("spec.session: {0}")]
    Policy(String),
}

/// Session settings of a compiled grant.
#[derive(Debug, Clone)]
pub struct GrantSession {
    /// Requested session duration, in seconds.
    pub duration_seconds: Option<u32>,
    /// Tags and policies.
    pub limits: Option<Arc<SessionLimits>>,
    /// Attribution settings that override the configuration's.
    pub attribution: AttributionRules,
    /// Patterns of session names that pods may request; empty for the default rule.
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

/// The precision with which a role pattern identifies a role, in increasing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Specificity {
    /// A pattern with `*`.
    Glob,
    /// A name that the base ARN completes.
    Name,
    /// A whole ARN.
    Arn,
}

/// A compiled role pattern.
#[derive(Debug, Clone)]
pub struct RolePattern {
    /// The text of the pattern.
    pub text: Arc<str>,
    /// The specificity of the pattern.
    pub specificity: Specificity,
    /// The pattern that matches whole ARNs.
    pub pattern: Pattern,
}

/// A compiled grant.
#[derive(Clone)]
pub struct CompiledGrant {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The role patterns.
    pub roles: Vec<RolePattern>,
    /// The subjects.
    pub subjects: Vec<CompiledSubject>,
    /// The allowed external IDs.
    pub external_ids: Vec<Arc<str>>,
    /// The associations.
    pub associations: Vec<CompiledAssociation>,
    /// Session settings.
    pub session: Arc<GrantSession>,
}

impl fmt::Debug for CompiledGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompiledGrant({})", self.name)
    }
}

impl Grant {
    /// Returns the grants without associations that this grant amounts to: its roles for its
    /// subjects, and the roles of each association for its service accounts. Exports to formats
    /// without associations use it.
    pub fn parts(&self) -> Vec<Self> {
        let own = (!self.roles.is_empty() || self.associations.is_empty()).then(|| Self {
            associations: Vec::new(),
            ..self.clone()
        });
        let associated = self.associations.iter().flat_map(|association| {
            let target = association.target_role.as_ref();
            // The external ID is that of the last role.
            let roles = [(Some(&association.role), target.is_none()), (target, true)];
            roles.into_iter().filter_map(|(role, is_last)| {
                let id = association.external_id.as_ref().filter(|_| is_last);
                Some(Self {
                    roles: vec![role?.clone()],
                    subjects: vec![Subject {
                        namespaces: vec![association.namespace.clone()],
                        service_accounts: vec![association.service_account.clone()],
                        ..Subject::default()
                    }],
                    external_ids: id.into_iter().cloned().collect(),
                    associations: Vec::new(),
                    ..self.clone()
                })
            })
        });
        own.into_iter().chain(associated).collect()
    }
}

impl CompiledGrant {
    /// Compiles a grant.
    ///
    /// # Errors
    /// [`GrantError`]: the first error found. Such a grant grants nothing.
    pub fn compile(grant: &Grant, base: Option<&BaseArn>) -> Result<Self, GrantError> {
        if let Some(why) = &grant.unreadable {
            return Err(GrantError::Unreadable(why.clone()));
        }
        // Associations need neither. One without the other is a mistake in any case.
        let only_associations =
            !grant.associations.is_empty() && grant.roles.is_empty() && grant.subjects.is_empty();
        if grant.roles.is_empty() && !only_associations {
            return Err(GrantError::NoRoles);
        }
        if grant.subjects.is_empty() && !only_associations {
            return Err(GrantError::NoSubjects);
        }
        check_count("spec.roles", &grant.roles)?;
        check_count("spec.externalIds", &grant.external_ids)?;
        if grant.subjects.len() > MAX_LIST {
            return Err(GrantError::TooMany("spec.subjects"));
        }
        if grant.associations.len() > MAX_LIST {
            return Err(GrantError::TooMany("spec.associations"));
        }
        let roles = grant.roles.iter().map(|text| role_pattern(text, base));
        let associations = grant.associations.iter().enumerate();
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
            associations: associations
                .map(|(place, association)| {
                    CompiledAssociation::compile(&grant.name, place, association, base)
                })
                .collect::<Result<_, _>>()?,
            session: Arc::new(session(&grant.session)?),
        })
    }

    /// Returns the specificity with which the grant gives `role` to `workload` in a namespace with
    /// `namespace_labels`: the highest one of the role patterns and associations that match.
    pub fn covers_role(
        &self,
        workload: &Workload,
        namespace_labels: &Labels,
        role: &RoleArn,
    ) -> Option<Specificity> {
        let by_subject = self
            .specificity(role)
            .filter(|_| self.covers(workload, namespace_labels));
        let associations = self.associations.iter();
        let by_association = associations.filter_map(|it| it.specificity(workload, role));
        by_association.chain(by_subject).max()
    }

    /// Returns the texts of the roles that `workload` may assume by this grant.
    pub fn roles_of(&self, workload: &Workload, namespace_labels: &Labels) -> Vec<&str> {
        let roles = self
            .covers(workload, namespace_labels)
            .then_some(&self.roles);
        let associations = self.associations.iter().filter(|association| {
            association.matches(&workload.namespace, &workload.service_account)
        });
        let associated = associations.flat_map(|association| &association.grants);
        let roles = roles.into_iter().flatten().chain(associated);
        roles.map(|role| &*role.text).collect()
    }

    /// Returns the highest specificity of the patterns that match `role`.
    pub fn specificity(&self, role: &RoleArn) -> Option<Specificity> {
        let matching = self
            .roles
            .iter()
            .filter(|role_pattern| role_pattern.pattern.matches(role.as_str()));
        matching.map(|pattern| pattern.specificity).max()
    }

    /// Returns true if a subject matches `workload` in a namespace with `namespace_labels`.
    pub fn covers(&self, workload: &Workload, namespace_labels: &Labels) -> bool {
        self.subjects
            .iter()
            .any(|subject| subject.covers(workload, namespace_labels))
    }

    /// Returns true if the match with `workload` depends on labels that are not stored.
    pub fn lacks(&self, workload: &Workload, namespace_labels: &Labels) -> bool {
        self.subjects
            .iter()
            .any(|subject| subject.lacks(workload, namespace_labels))
    }

    /// Returns true if a subject selects namespaces by name and selects this one, which has these
    /// labels. A user who may create such a namespace can obtain the roles. Subjects that match
    /// every name are ignored, since they give no name a meaning.
    pub fn matches_namespace(&self, namespace: &str, labels: &Labels) -> bool {
        let mut associations = self.associations.iter();
        self.subjects
            .iter()
            .any(|subject| subject.matches_namespace(namespace, labels))
            || associations.any(|association| association.matches_namespace(namespace))
    }

    /// Returns true if `workload` may pass `id` to STS for `role`, which the grant covers. No
    /// external ID is always allowed.
    pub fn allows_external_id(
        &self,
        workload: &Workload,
        role: &RoleArn,
        id: Option<&str>,
    ) -> bool {
        let Some(id) = id else { return true };
        let mut associations = self.associations.iter();
        self.external_ids.iter().any(|known| **known == *id)
            || associations.any(|it| it.allows_external_id(workload, role, id))
    }

    /// Returns the keys of the namespace labels that the subjects read. Users who may set them can
    /// grant the roles.
    pub fn namespace_label_keys(&self) -> impl Iterator<Item = &str> {
        let selectors = self
            .subjects
            .iter()
            .filter_map(|subject| subject.namespace_selector.as_ref());
        selectors.flat_map(Selector::keys)
    }

    /// Returns the keys of the pod labels that the subjects read.
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
    let specificity = match (text.contains('*'), is_arn(text)) {
        (true, _) => Specificity::Glob,
        (false, true) => Specificity::Arn,
        (false, false) => Specificity::Name,
    };
    if specificity == Specificity::Glob {
        // A glob without a base ARN would match names of any account.
        if !is_arn(text) && base.is_none() {
            return Err(GrantError::NoBase(shorten(text)));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-/:*".contains(&b);
        if !text.bytes().all(allowed) {
            return Err(refused(format!(
                "{:?} has characters that role names cannot have",
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
        specificity,
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
            "policyArns has more than {MAX_POLICY_ARNS} entries, which STS would reject"
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
            "policy has more than {MAX_POLICY} characters, which STS would reject"
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
        return wrong(format!("more than {MAX_TAGS} tags, which STS would reject"));
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
                "{:?}: STS accepts keys of 1 to 128 and values of up to 256 letters, digits, \
                 blanks and _.:/=+-@",
                shorten(key)
            ));
        }
        // Tag keys are case-insensitive in STS.
        if !seen.insert(lower) {
            return wrong(format!(
                "{:?} appears twice in different case",
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
