//! Associations: a grant's statements that a role is the role of service accounts.
//!
//! They take the place of EKS Pod Identity's associations, and use its terms. In addition, names of
//! namespaces and service accounts may be globs, and an association may have an audience.

use std::fmt;
use std::sync::Arc;

use super::{GrantError, RolePattern, Specificity, role_pattern};
use crate::arn::{BaseArn, RoleArn, resolve};
use crate::pattern::Pattern;
use crate::session::is_external_id;
use crate::workload::Workload;

/// Default audience of the tokens for container credentials, as on EKS.
pub const CONTAINER_CREDENTIALS_AUDIENCE: &str = "pods.eks.amazonaws.com";
/// Default audience of the tokens for web identity, as on EKS.
pub const WEB_IDENTITY_AUDIENCE: &str = "sts.amazonaws.com";
/// Maximum length of an association's audience, in characters.
pub const MAX_AUDIENCE: usize = 253;
/// Maximum length of the name of a namespace or service account, in characters.
const MAX_NAME: usize = 253;

/// An association as written. It requests the role for the service accounts, and grants it to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Association {
    /// The namespace. `*` matches any text.
    pub namespace: String,
    /// The service account. `*` matches any text.
    pub service_account: String,
    /// The role: a name or an ARN, without `*`.
    pub role: String,
    /// The audience of the tokens that get the role; `None` for the endpoint's default audience.
    pub audience: Option<String>,
    /// A role that is assumed with the credentials of `role`, and whose credentials are served.
    pub target_role: Option<String>,
    /// The external ID for the last role that is assumed: the target role, or `role` without one.
    pub external_id: Option<String>,
}

/// The precision with which an association names a service account. The greater one wins: first the
/// namespace counts, then the service account; an exact name before a glob, and a glob with more
/// literal characters before one with fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precision {
    namespace: NamePrecision,
    service_account: NamePrecision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NamePrecision {
    /// A glob with this number of literal characters.
    Glob(usize),
    Exact,
}

impl NamePrecision {
    fn of(glob: &Pattern) -> Self {
        let text = glob.as_str();
        match text.matches('*').count() {
            0 => Self::Exact,
            stars => Self::Glob(text.len() - stars),
        }
    }
}

/// The place of an association, by which messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociationName {
    /// `metadata.name` of the grant.
    pub grant: Arc<str>,
    /// The index in `spec.associations`.
    pub place: usize,
}

impl fmt::Display for AssociationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (spec.associations[{}])", self.grant, self.place)
    }
}

/// A compiled association.
#[derive(Debug, Clone)]
pub struct CompiledAssociation {
    /// The place of the association.
    pub name: AssociationName,
    /// The precision of its names.
    pub precision: Precision,
    /// The role.
    pub role: RoleArn,
    /// The target role.
    pub target_role: Option<RoleArn>,
    /// The external ID for the last role that is assumed.
    pub external_id: Option<Arc<str>>,
    /// The audience; `None` for the endpoint's default audience.
    pub audience: Option<Arc<str>>,
    /// The roles that the association grants: the role and the target role.
    pub(crate) grants: Vec<RolePattern>,
    namespace: Pattern,
    service_account: Pattern,
}

impl CompiledAssociation {
    pub(super) fn compile(
        grant: &Arc<str>,
        place: usize,
        association: &Association,
        base: Option<&BaseArn>,
    ) -> Result<Self, GrantError> {
        let refused = |field, why: String| GrantError::Association(place, field, why);
        let glob = |field, text: &str| {
            if text.is_empty() {
                return Err(refused(field, "it is empty: \"*\" matches all".into()));
            }
            if text.len() > MAX_NAME {
                return Err(refused(
                    field,
                    format!("it has more than {MAX_NAME} characters"),
                ));
            }
            Pattern::glob_of_names(text).map_err(|error| refused(field, error.to_string()))
        };
        let role = |field, text: &str| {
            if text.contains('*') {
                return Err(refused(field, "it must be one role, without *".into()));
            }
            let pattern = role_pattern(text, base).map_err(|error| match error {
                GrantError::Role(why) => refused(field, why),
                error => error,
            })?;
            let arn = resolve(text, base).map_err(|error| refused(field, error.to_string()))?;
            Ok((pattern, arn))
        };
        let (pattern, arn) = role("role", &association.role)?;
        let target = association
            .target_role
            .as_deref()
            .map(|text| role("targetRole", text))
            .transpose()?;
        if let Some(id) = &association.external_id
            && !is_external_id(id)
        {
            let why = "STS accepts 2 to 1224 letters, digits and _+=,.@:/- characters";
            return Err(refused("externalId", why.into()));
        }
        if let Some(audience) = &association.audience {
            check_audience(audience).map_err(|why| refused("audience", why.into()))?;
        }
        let namespace = glob("namespace", &association.namespace)?;
        let service_account = glob("serviceAccount", &association.service_account)?;
        let (target_pattern, target_role) = target.unzip();
        Ok(Self {
            name: AssociationName {
                grant: grant.clone(),
                place,
            },
            precision: Precision {
                namespace: NamePrecision::of(&namespace),
                service_account: NamePrecision::of(&service_account),
            },
            role: arn,
            target_role,
            external_id: association.external_id.as_deref().map(Into::into),
            audience: association.audience.as_deref().map(Into::into),
            grants: std::iter::once(pattern).chain(target_pattern).collect(),
            namespace,
            service_account,
        })
    }

    /// Returns true if the association is one of this service account.
    pub fn matches(&self, namespace: &str, service_account: &str) -> bool {
        self.namespace.matches(namespace) && self.service_account.matches(service_account)
    }

    /// Returns the namespace if its name is exact, for indexes.
    pub fn exact_namespace(&self) -> Option<&str> {
        let text = self.namespace.as_str();
        (self.precision.namespace == NamePrecision::Exact).then_some(text)
    }

    /// Returns the last role that is assumed, whose credentials are served.
    pub fn last_role(&self) -> &RoleArn {
        self.target_role.as_ref().unwrap_or(&self.role)
    }

    /// Returns true if both give a service account the same credentials, apart from the session
    /// settings of their grants.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.role == other.role
            && self.target_role == other.target_role
            && self.external_id == other.external_id
    }

    /// Returns the specificity with which the association grants `role` to `workload`.
    pub(super) fn specificity(&self, workload: &Workload, role: &RoleArn) -> Option<Specificity> {
        if !self.matches(&workload.namespace, &workload.service_account) {
            return None;
        }
        let granted = self.grants.iter();
        granted
            .filter(|granted| granted.pattern.matches(role.as_str()))
            .map(|granted| granted.specificity)
            .max()
    }

    /// Returns true if `workload` may pass `id` to STS for `role`.
    pub(super) fn allows_external_id(&self, workload: &Workload, role: &RoleArn, id: &str) -> bool {
        self.external_id.as_deref() == Some(id)
            && self.last_role() == role
            && self.matches(&workload.namespace, &workload.service_account)
    }

    /// Returns true if the association selects namespaces by name and selects this one.
    pub(super) fn matches_namespace(&self, namespace: &str) -> bool {
        let any_name = self.namespace.as_str().bytes().all(|byte| byte == b'*');
        !any_name && self.namespace.matches(namespace)
    }
}

/// Checks the audience of an association.
///
/// # Errors
/// Returns the fault, without a full stop.
fn check_audience(audience: &str) -> Result<(), &'static str> {
    if audience.is_empty() || audience.len() > MAX_AUDIENCE {
        return Err("it must have 1 to 253 characters");
    }
    if !audience.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it must consist of visible ASCII characters");
    }
    if audience == CONTAINER_CREDENTIALS_AUDIENCE {
        return Err("this is the default audience: leave the field out");
    }
    if audience == WEB_IDENTITY_AUDIENCE {
        return Err("tokens for this audience are valid at STS itself: choose another one");
    }
    Ok(())
}
