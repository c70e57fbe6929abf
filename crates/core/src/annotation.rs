//! Annotations of pods and namespaces, including those of kube2iam and kiam.

/// Pod annotation: the requested role, as a name, a name with a path or an ARN.
pub const ROLE: &str = "iam.amazonaws.com/role";
/// Pod annotation: the external ID that the role's trust policy requires.
pub const EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
/// Pod annotation: the requested `RoleSessionName` (kiam).
pub const SESSION_NAME: &str = "iam.amazonaws.com/session-name";
/// Namespace annotation: a JSON list of role patterns (kube2iam).
pub const ALLOWED_ROLES: &str = "iam.amazonaws.com/allowed-roles";
/// Namespace annotation: a regular expression for role ARNs (kiam).
pub const PERMITTED: &str = "iam.amazonaws.com/permitted";
/// Namespace annotation: the role of pods that request none.
pub const DEFAULT_ROLE: &str = "iam.amazonaws.com/default-role";
/// Pod annotation that the kubelet sets on the mirror of a static pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// ConfigMap annotation: the points that enforce its policies, a list such as `admission,agent`.
pub const ENFORCEMENT_POINTS: &str = "rolegate.dev/enforcement-points";
/// Service account annotation: the role for web identity (IRSA) and for container credentials.
pub const WEB_IDENTITY_ROLE: &str = "eks.amazonaws.com/role-arn";
/// Service account annotation: the role for container credentials and web identity, a name, a name
/// with a path or an ARN. It takes precedence over [`WEB_IDENTITY_ROLE`].
pub const SERVICE_ACCOUNT_ROLE: &str = "rolegate.dev/role";
/// Default prefix of the annotations of the EKS webhook.
pub const EKS_PREFIX: &str = "eks.amazonaws.com";

/// Returns true if a pod's annotation is stored and visible to rules: AWS role annotations and
/// rolegate's own. Other annotations can be of any size and never affect a decision.
pub fn is_kept(key: &str) -> bool {
    ["iam.amazonaws.com/", "eks.amazonaws.com/", "rolegate.dev/"]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

/// Maximum stored size of a pod annotation, in bytes. It exceeds every limit of AWS, so a truncated
/// value is rejected rather than mistaken for another one.
pub(crate) const MAX_ANNOTATION_BYTES: usize = 2048;

/// Truncates the value of a pod annotation to the stored size, which is the same at admission and
/// at agents.
pub fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_ANNOTATION_BYTES))
        .unwrap_or(text)
}

/// Strips surrounding white space, as YAML's `|` and copying leave it.
///
/// Every source calls this once on each string that names roles, or that is compared with such
/// strings. White space is Unicode's, which CEL's `trim` strips too. A zero-width space is not
/// white space: it stays and makes the value malformed.
pub fn normalized(text: &str) -> &str {
    text.trim()
}

/// Normalizes and truncates the value of a pod or namespace annotation. Returns `None` if it is
/// empty.
pub fn given(text: &str) -> Option<&str> {
    let text = cut(normalized(text));
    (!text.is_empty()).then_some(text)
}

/// The annotation keys in use. kube2iam lets its users rename three of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationKeys {
    /// Key of the pod's role; [`ROLE`] by default.
    pub role: String,
    /// Key of the pod's external ID; [`EXTERNAL_ID`] by default.
    pub external_id: String,
    /// Key of the namespace's allowed roles; [`ALLOWED_ROLES`] by default.
    pub allowed_roles: String,
}

impl Default for AnnotationKeys {
    fn default() -> Self {
        Self {
            role: ROLE.into(),
            external_id: EXTERNAL_ID.into(),
            allowed_roles: ALLOWED_ROLES.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_a_text_are_those_of_unicode() {
        for blank in [
            " ", "\t", "\n", "\r\n", "\u{b}", "\u{c}", "\u{85}", "\u{a0}", "\u{1680}", "\u{2000}",
            "\u{200a}", "\u{2028}", "\u{2029}", "\u{202f}", "\u{205f}", "\u{3000}",
        ] {
            let text = format!("{blank}{blank}a b{blank}");
            assert_eq!(normalized(&text), "a b", "{blank:?}");
            assert_eq!(given(&text), Some("a b"), "{blank:?}");
            assert_eq!(given(blank), None, "{blank:?}");
        }
        for kept in ["\u{200b}a", "a\u{feff}", "\u{180e}a", "\0a"] {
            assert_eq!(normalized(kept), kept, "{kept:?}");
        }
    }
}
