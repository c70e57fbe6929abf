//! The role of a service account, for endpoints whose callers present a token of it.
//!
//! A service account has a role by an annotation, or by an association in a grant. As with a pod's
//! annotation, the role is a request: [`RuleSet::decide`] decides whether a pod may have it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::annotation::{self, given};
use crate::arn::{ArnError, RoleArn, resolve, shorten};
use crate::decision::{Decision, Denial, DenialSource, RuleSet};
use crate::grant::{Ambiguous, AssociationName};
pub use crate::grant::{CONTAINER_CREDENTIALS_AUDIENCE, MAX_AUDIENCE, WEB_IDENTITY_AUDIENCE};
use crate::session::{SessionKey, TargetRole};
use crate::workload::{RoleRequest, Workload};

/// Maximum number of audiences for which a service account has a role, including the default one.
pub const MAX_ASSIGNED_AUDIENCES: usize = 16;
/// Maximum session duration of a chained role in STS, in seconds.
const MAX_CHAINED_SECONDS: u32 = 3600;

/// The annotations of a service account that concern AWS, as written. Values are normalized and
/// truncated as those of pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ServiceAccountAnnotations {
    /// `rolegate.dev/role`: a name or an ARN. Empty if the service account declines a role.
    pub role: Option<Arc<str>>,
    /// `eks.amazonaws.com/role-arn`.
    pub web_identity_role: Option<Arc<str>>,
    /// `eks.amazonaws.com/audience`: the audience of web identity tokens.
    pub audience: Option<Arc<str>>,
    /// `eks.amazonaws.com/sts-regional-endpoints`: a boolean.
    pub regional_sts: Option<Arc<str>>,
    /// `eks.amazonaws.com/token-expiration`, in seconds.
    pub token_expiration: Option<Arc<str>>,
}

impl ServiceAccountAnnotations {
    /// Parses annotations; `value` returns the raw value of a key. `prefix` is that of the EKS
    /// webhook's annotations, [`annotation::EKS_PREFIX`] by default.
    pub fn parse<'a>(prefix: &str, value: impl Fn(&str) -> Option<&'a str>) -> Self {
        let eks = |name: &str| {
            let value = value(&format!("{prefix}/{name}")).and_then(given);
            value.map(Into::into)
        };
        Self {
            role: value(annotation::SERVICE_ACCOUNT_ROLE)
                .map(|role| given(role).unwrap_or_default().into()),
            web_identity_role: eks("role-arn"),
            audience: eks("audience"),
            regional_sts: eks("sts-regional-endpoints"),
            token_expiration: eks("token-expiration"),
        }
    }

    /// Returns true if no annotation is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A service account, reduced to the fields that endpoints need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`, which distinguishes the service account from earlier ones of the same name.
    pub uid: Arc<str>,
    /// The annotations.
    pub annotations: ServiceAccountAnnotations,
}

/// The origin of a service account's role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignmentSource {
    /// The annotation `rolegate.dev/role`.
    Annotation,
    /// The annotation `eks.amazonaws.com/role-arn`.
    EksAnnotation,
    /// An association in a grant.
    Association(AssociationName),
}

impl std::fmt::Display for AssignmentSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Annotation => write!(
                f,
                "annotation {} of the service account",
                annotation::SERVICE_ACCOUNT_ROLE
            ),
            Self::EksAnnotation => write!(
                f,
                "annotation {} of the service account",
                annotation::WEB_IDENTITY_ROLE
            ),
            Self::Association(name) => write!(f, "association in RoleGrant {name}"),
        }
    }
}

/// The role of a service account. It confers no right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleAssignment {
    /// The role.
    pub role: RoleArn,
    /// The origin of the assignment.
    pub source: AssignmentSource,
    /// The role that is assumed with the credentials of [`Self::role`], and whose credentials are
    /// served.
    pub target_role: Option<RoleArn>,
    /// The external ID for the last role that is assumed.
    pub external_id: Option<Arc<str>>,
    /// The audience of the tokens that get the role; `None` for the endpoint's default audience.
    pub audience: Option<Arc<str>>,
}

/// The reason why the role of a service account cannot be determined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// The annotation does not name a role.
    #[error("{source_of_role}: {error}")]
    InvalidRole {
        /// The annotation.
        source_of_role: AssignmentSource,
        /// The value of the annotation, truncated.
        value: String,
        /// The fault of the value.
        error: ArnError,
    },
    /// Two associations name the service account equally precisely, and differ.
    #[error(
        "RoleGrants {first} and {second} associate different roles with the service account \
         equally precisely: ask your cluster's administrator to remove one of them"
    )]
    AmbiguousAssociation {
        /// The first association.
        first: AssociationName,
        /// An association that differs.
        second: AssociationName,
    },
}

impl AssignmentError {
    /// Returns the denial that every request for the role gets.
    pub fn denial(&self) -> Denial {
        let (role, rule) = match self {
            Self::InvalidRole { value, .. } => (
                value.escape_debug().to_string(),
                "service account annotation",
            ),
            Self::AmbiguousAssociation { .. } => {
                ("(that of the service account)".to_owned(), "associations")
            }
        };
        Denial::new(role, DenialSource::Request, rule, self.to_string())
    }
}

impl RoleAssignment {
    /// Returns `pod` with a request for the assigned role instead of that in its annotations. The
    /// session name is the pod's default one, which stays the same when the session is renewed.
    pub fn request(&self, pod: &Workload) -> Workload {
        let external_id = self.external_id.as_ref();
        Self::requesting(
            pod,
            &self.role,
            external_id.filter(|_| self.target_role.is_none()),
        )
    }

    /// Returns `pod` with a request for the target role, if there is one.
    pub fn target_request(&self, pod: &Workload) -> Option<Workload> {
        let target = self.target_role.as_ref()?;
        Some(Self::requesting(pod, target, self.external_id.as_ref()))
    }

    fn requesting(pod: &Workload, role: &RoleArn, external_id: Option<&Arc<str>>) -> Workload {
        Workload {
            role_request: RoleRequest {
                role: Some(role.shared_text()),
                external_id: external_id.cloned(),
                session_name: None,
            },
            ..pod.clone()
        }
    }

    /// Decides for `pod` by `decide`, which is called for the role and for the target role. Both
    /// must be allowed, each by the rules for a pod that requests it.
    pub fn decide(&self, pod: &Workload, decide: impl Fn(&Workload) -> Decision) -> Decision {
        let decision = decide(&self.request(pod));
        match self.target_request(pod) {
            Some(target) => chained(decision, || decide(&target)),
            None => decision,
        }
    }
}

/// Combines the decisions for a role and for its target role.
fn chained(first: Decision, target: impl FnOnce() -> Decision) -> Decision {
    let Decision::Allow {
        key,
        rules,
        audited,
        ..
    } = first
    else {
        return first;
    };
    match target() {
        Decision::Allow {
            key: target,
            role_name,
            rules: target_rules,
            audited: target_audited,
        } => Decision::Allow {
            key: SessionKey {
                duration_seconds: key.duration_seconds.min(MAX_CHAINED_SECONDS),
                target: Some(Arc::new(TargetRole {
                    role: target.role,
                    external_id: target.external_id,
                })),
                ..key
            },
            role_name,
            rules: rules.iter().chain(&*target_rules).cloned().collect(),
            audited: audited.into_iter().chain(target_audited).collect(),
        },
        denied => denied,
    }
}

impl RuleSet {
    /// Returns the role of a service account for tokens of an audience; `None` for the endpoint's
    /// default audience. Annotations apply to the default audience only.
    ///
    /// The order is: the annotation `rolegate.dev/role`, the annotation
    /// `eks.amazonaws.com/role-arn`, then the most precise association. An empty
    /// `rolegate.dev/role` declines every role for the default audience.
    ///
    /// # Errors
    /// [`AssignmentError`]. An invalid annotation never falls back to another source.
    pub fn assigned_role(
        &self,
        namespace: &str,
        service_account: &str,
        annotations: &ServiceAccountAnnotations,
        audience: Option<&str>,
    ) -> Result<Option<RoleAssignment>, AssignmentError> {
        if audience.is_none() {
            let own = (annotations.role.as_deref(), AssignmentSource::Annotation);
            let eks = (
                annotations.web_identity_role.as_deref(),
                AssignmentSource::EksAnnotation,
            );
            match [own, eks].into_iter().find(|(role, _)| role.is_some()) {
                Some((Some(""), _)) => return Ok(None),
                Some((Some(role), source)) => return self.annotated_role(role, source).map(Some),
                _ => {}
            }
        }
        let association = self
            .associations
            .find(namespace, service_account, audience)
            .map_err(
                |Ambiguous { first, second }| AssignmentError::AmbiguousAssociation {
                    first,
                    second,
                },
            )?;
        Ok(association.map(|association| RoleAssignment {
            role: association.role.clone(),
            source: AssignmentSource::Association(association.name.clone()),
            target_role: association.target_role.clone(),
            external_id: association.external_id.clone(),
            audience: association.audience.clone(),
        }))
    }

    fn annotated_role(
        &self,
        role: &str,
        source: AssignmentSource,
    ) -> Result<RoleAssignment, AssignmentError> {
        let role =
            resolve(role, self.base.as_ref()).map_err(|error| AssignmentError::InvalidRole {
                source_of_role: source.clone(),
                value: shorten(role),
                error,
            })?;
        Ok(RoleAssignment {
            role,
            source,
            target_role: None,
            external_id: None,
            audience: None,
        })
    }

    /// Returns the audiences for which a service account may have a role: the endpoint's default
    /// audience, as `None`, and those of its associations, without duplicates. Only the first
    /// [`MAX_ASSIGNED_AUDIENCES`] in alphabetical order count, since each pod keeps a session for
    /// each.
    pub fn assigned_audiences(
        &self,
        namespace: &str,
        service_account: &str,
    ) -> BTreeSet<Option<Arc<str>>> {
        let all = self.associations.of(namespace, service_account);
        let audiences = all.iter().map(|association| association.audience.clone());
        let all: BTreeSet<_> = audiences.chain([None]).collect();
        all.into_iter().take(MAX_ASSIGNED_AUDIENCES).collect()
    }
}

#[cfg(test)]
mod tests;
