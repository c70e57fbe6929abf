//! Layer `namespace`: the annotations of kube2iam and kiam on the pod's namespace.

use crate::annotation;
use crate::layer::{Ask, Layer, Verdict};
use crate::needs::Needs;
use crate::pattern::Pattern;

/// Demands that each annotation that the namespace has allows the role, and that there is one.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamespaceLayer {
    /// Whether a namespace with neither annotation allows every role, as without restrictions:
    /// for moving over.
    pub allow_unannotated: bool,
}

impl Layer for NamespaceLayer {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn needs(&self) -> Needs {
        Needs {
            namespace_roles: true,
            ..Needs::default()
        }
    }

    fn lacks(&self, ask: &Ask<'_>) -> bool {
        !ask.is_default && ask.namespace.namespace().without_roles
    }

    fn judge(&self, ask: &Ask<'_>) -> Verdict {
        // As in kube2iam: what the administrator gives to every pod needs no namespace's leave.
        if ask.is_default {
            return Verdict::allow("default role");
        }
        let compiled = ask.namespace.annotations();
        let annotations = [
            (annotation::ALLOWED_ROLES, &compiled.allowed),
            (annotation::PERMITTED, &compiled.permitted),
        ];
        let mut allowed_by = None;
        for (key, patterns) in annotations {
            let Some(patterns) = patterns else { continue };
            match find(patterns, ask) {
                Ok(pattern) => allowed_by = Some(format!("{key}: {}", pattern.as_str())),
                Err(reason) => {
                    let reason = format!("annotation {key} of the namespace: {reason}");
                    return Verdict::deny(key, reason);
                }
            }
        }
        match allowed_by {
            Some(rule) => Verdict::allow(rule),
            None if self.allow_unannotated => {
                Verdict::allow("namespaces without annotations are open")
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
    ask: &Ask<'_>,
) -> Result<&'a Pattern, String> {
    let patterns = patterns
        .as_ref()
        .map_err(|broken| format!("it cannot be read, {broken}"))?;
    patterns
        .iter()
        .find(|pattern| pattern.matches(ask.role.as_str()))
        .ok_or_else(|| "it does not allow the role".to_owned())
}
