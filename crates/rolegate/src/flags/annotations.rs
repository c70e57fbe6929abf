//! Flags about annotation keys, which kube2iam lets users rename.

use clap::Args;
use rolegate_core::annotation::{ALLOWED_ROLES, AnnotationKeys, EXTERNAL_ID, ROLE};

use crate::flags::given_fields::GivenFields;
use crate::flags::invalid;

const RULES: &str = "Roles and rules";
/// Maximum length of a key that Kubernetes accepts, in characters.
const MAX_KEY_LENGTH: usize = 317;

/// The annotation keys.
#[derive(Debug, Clone, Args)]
pub(crate) struct AnnotationFlags {
    /// Annotation key of a pod's requested role
    #[arg(long, value_name = "KEY", env = "ROLEGATE_IAM_ROLE_KEY", default_value = ROLE, help_heading = RULES)]
    iam_role_key: String,
    /// Annotation key of a pod's external ID
    #[arg(long, value_name = "KEY", env = "ROLEGATE_IAM_EXTERNAL_ID", default_value = EXTERNAL_ID, help_heading = RULES)]
    iam_external_id: String,
    /// Annotation key of a namespace's allowed roles
    #[arg(long, value_name = "KEY", env = "ROLEGATE_NAMESPACE_KEY", default_value = ALLOWED_ROLES, help_heading = RULES)]
    namespace_key: String,
}

impl AnnotationFlags {
    /// Merges two sources of flags. A flag that is `given` here overrides `lower`.
    pub(crate) fn over(self, lower: Self, given: &GivenFields) -> Self {
        Self {
            iam_role_key: given.pick("iam_role_key", self.iam_role_key, lower.iam_role_key),
            iam_external_id: given.pick(
                "iam_external_id",
                self.iam_external_id,
                lower.iam_external_id,
            ),
            namespace_key: given.pick("namespace_key", self.namespace_key, lower.namespace_key),
        }
    }

    /// Returns the annotation keys.
    ///
    /// # Errors
    /// Returns a usage error for an invalid key.
    pub(crate) fn keys(&self) -> anyhow::Result<AnnotationKeys> {
        for (flag, key) in [
            ("--iam-role-key", &self.iam_role_key),
            ("--iam-external-id", &self.iam_external_id),
            ("--namespace-key", &self.namespace_key),
        ] {
            if key.is_empty() || key.len() > MAX_KEY_LENGTH || key.contains(char::is_whitespace) {
                return Err(invalid(format!("{flag}: must be an annotation key")));
            }
        }
        Ok(AnnotationKeys {
            role: self.iam_role_key.clone(),
            external_id: self.iam_external_id.clone(),
            allowed_roles: self.namespace_key.clone(),
        })
    }
}
