//! Layer `namespace`: the annotations of kube2iam and kiam on the pod's namespace.

use crate::annotation;
use crate::layer::{AccessRequest, Layer, LayerId, Verdict};
use crate::needs::Needs;
use crate::pattern::Pattern;

/// Requires at least one annotation on the namespace, and that each of them allows the role.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamespaceLayer {
    /// True if a namespace without annotations allows every role, for migrations.
    pub allow_unannotated: bool,
}

impl Layer for NamespaceLayer {
    fn id(&self) -> LayerId {
        LayerId::Namespace
    }

    fn needs(&self) -> Needs {
        Needs {
            namespace_roles: true,
            ..Needs::default()
        }
    }

    fn lacks(&self, request: &AccessRequest<'_>) -> bool {
        !request.is_default && request.namespace.namespace().without_roles
    }

    fn evaluate(&self, request: &AccessRequest<'_>) -> Verdict {
        // As in kube2iam, the administrator's default role needs no annotation.
        if request.is_default {
            return Verdict::allow("default role");
        }
        let compiled = request.namespace.annotations();
        let annotations = [
            (annotation::ALLOWED_ROLES, &compiled.allowed),
            (annotation::PERMITTED, &compiled.permitted),
        ];
        let mut allowed_by = None;
        for (key, patterns) in annotations {
            let Some(patterns) = patterns else { continue };
            match find(patterns, request) {
                Ok(pattern) => allowed_by = Some(format!("{key}: {}", pattern.as_str())),
                Err(reason) => {
                    let reason = format!("annotation {key} of the namespace {reason}");
                    return Verdict::deny(key, reason);
                }
            }
        }
        match allowed_by {
            Some(rule) => Verdict::allow(rule),
            None if self.allow_unannotated => {
                Verdict::allow("namespaces without annotations allow all roles")
            }
            None => Verdict::deny(
                annotation::ALLOWED_ROLES,
                format!(
                    "the namespace allows no role: it has neither {} nor {}",
                    annotation::ALLOWED_ROLES,
                    annotation::PERMITTED
                ),
            ),
        }
    }
}

fn find<'a>(
    patterns: &'a Result<Vec<Pattern>, String>,
    request: &AccessRequest<'_>,
) -> Result<&'a Pattern, String> {
    let patterns = patterns
        .as_ref()
        .map_err(|broken| format!("is invalid: {broken}"))?;
    patterns
        .iter()
        .find(|pattern| pattern.matches(request.role.as_str()))
        .ok_or_else(|| "does not allow the role".to_owned())
}
