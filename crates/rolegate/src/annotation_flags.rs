//! Flags about the keys of annotations, which kube2iam lets its users rename.

use clap::Args;
use rolegate_core::annotation::{ALLOWED_ROLES, AnnotationKeys, EXTERNAL_ID, ROLE};

use crate::flags::invalid;
use crate::given_flags::Given;

const RULES: &str = "Roles and rules";
/// The longest key that Kubernetes takes.
const LONGEST: usize = 317;

/// The keys of annotations.
#[derive(Debug, Clone, Args)]
pub(crate) struct AnnotationFlags {
    /// Key of the annotation that names a pod's role
    #[arg(long, value_name = "KEY", env = "ROLEGATE_IAM_ROLE_KEY", default_value = ROLE, help_heading = RULES)]
    iam_role_key: String,
    /// Key of the annotation that names a pod's external ID
    #[arg(long, value_name = "KEY", env = "ROLEGATE_IAM_EXTERNAL_ID", default_value = EXTERNAL_ID, help_heading = RULES)]
    iam_external_id: String,
    /// Key of the annotation of namespaces that lists allowed roles
    #[arg(long, value_name = "KEY", env = "ROLEGATE_NAMESPACE_KEY", default_value = ALLOWED_ROLES, help_heading = RULES)]
    namespace_key: String,
}

impl AnnotationFlags {
    /// These flags in the places where they were `given`, and `lower` in the others.
    pub(crate) fn over(self, lower: Self, given: &Given) -> Self {
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

    /// The keys.
    ///
    /// # Errors
    /// One that is none, as wrong usage.
    pub(crate) fn keys(&self) -> anyhow::Result<AnnotationKeys> {
        for (flag, key) in [
            ("--iam-role-key", &self.iam_role_key),
            ("--iam-external-id", &self.iam_external_id),
            ("--namespace-key", &self.namespace_key),
        ] {
            if key.is_empty() || key.len() > LONGEST || key.contains(char::is_whitespace) {
                return Err(invalid(format!("{flag}: give the key of an annotation")));
            }
        }
        Ok(AnnotationKeys {
            role: self.iam_role_key.clone(),
            external_id: self.iam_external_id.clone(),
            allowed_roles: self.namespace_key.clone(),
        })
    }
}
