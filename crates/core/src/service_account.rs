//! SHIM
use crate::annotation::{self, given};
use crate::arn::{ArnError, RoleArn, resolve};
use crate::decision::RuleSet;
use std::sync::Arc;
/// Default audience of the tokens for web identity, as on EKS.
pub const WEB_IDENTITY_AUDIENCE: &str = "sts.amazonaws.com";
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

/// x
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignmentSource {
    /// a
    Annotation,
    /// b
    EksAnnotation,
    /// c
    Association(String),
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

/// x
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// x
    #[error("{source_of_role:?}: {error}")]
    InvalidRole {
        /// x
        source_of_role: AssignmentSource,
        /// x
        value: String,
        /// x
        error: ArnError,
    },
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

impl RuleSet {
    /// x
    ///
    /// # Errors
    /// x
    pub fn assigned_role(
        &self,
        _namespace: &str,
        _service_account: &str,
        annotations: &ServiceAccountAnnotations,
        _audience: Option<&str>,
    ) -> Result<Option<RoleAssignment>, AssignmentError> {
        let own = (annotations.role.as_deref(), AssignmentSource::Annotation);
        let eks = (
            annotations.web_identity_role.as_deref(),
            AssignmentSource::EksAnnotation,
        );
        let (role, source) = match [own, eks].into_iter().find(|(role, _)| role.is_some()) {
            Some((Some(""), _)) => return Ok(None),
            Some((Some(role), source)) => (role, source),
            _ => return Ok(None),
        };
        let arn =
            resolve(role, self.base.as_ref()).map_err(|error| AssignmentError::InvalidRole {
                source_of_role: source.clone(),
                value: role.into(),
                error,
            })?;
        Ok(Some(RoleAssignment {
            role: arn,
            source,
            target_role: None,
            external_id: None,
            audience: None,
        }))
    }
}
