//! The annotations that pods and namespaces already carry, in kube2iam's and kiam's dialects.

use crate::workload::Wish;

/// Annotation of a pod: the role it wishes for, as a name, a name with path or a whole ARN.
pub const ROLE: &str = "iam.amazonaws.com/role";
/// Annotation of a pod: the external ID that the role's trust policy demands.
pub const EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
/// Annotation of a pod: the `RoleSessionName` it wishes for (kiam).
pub const SESSION_NAME: &str = "iam.amazonaws.com/session-name";
/// Annotation of a namespace: a JSON list of role patterns (kube2iam).
pub const ALLOWED_ROLES: &str = "iam.amazonaws.com/allowed-roles";
/// Annotation of a namespace: a regular expression on the role's ARN (kiam).
pub const PERMITTED: &str = "iam.amazonaws.com/permitted";
/// Annotation of a namespace: the role of its pods that name none.
pub const DEFAULT_ROLE: &str = "iam.amazonaws.com/default-role";
/// Annotation of a static pod's mirror, set by the kubelet.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Annotation of a ConfigMap of policies: where they are asked, a list such as `gate,door`.
pub const POINTS: &str = "rolegate.dev/points";
/// Annotation of a service account: the role of web identity (IRSA).
pub const WEB_IDENTITY_ROLE: &str = "eks.amazonaws.com/role-arn";

/// Whether a pod's annotation is kept and shown to rules: those about AWS roles and ours. Others
/// may hold anything, at any length, and decide nothing.
pub fn is_kept(key: &str) -> bool {
    ["iam.amazonaws.com/", "eks.amazonaws.com/", "rolegate.dev/"]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

/// The most bytes kept of a pod's annotation: longer than anything that AWS takes, so that what was
/// cut is refused and not mistaken for something else.
const LONGEST: usize = 2048;

/// As much of a pod's annotation as is kept, the same at gate and doors.
pub fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST))
        .unwrap_or(text)
}

/// A text without the blanks around it, which YAML's `|` and copying leave there.
///
/// Every source of texts that name roles, or that are compared with such texts, calls this once, when
/// the text comes in. Blanks are Unicode's white space, which CEL's `trim` takes too; a zero-width
/// space is none, so it stays and makes the text malformed.
pub fn normalized(text: &str) -> &str {
    text.trim()
}

/// A normalized text of a pod's or namespace's annotation, as much of it as is kept; `None` where
/// it is empty.
pub fn given(text: &str) -> Option<&str> {
    let text = cut(normalized(text));
    (!text.is_empty()).then_some(text)
}

/// Reads what annotations ask for; `value` returns the raw text of a key.
pub fn wish<'a>(keys: &AnnotationKeys, value: impl Fn(&str) -> Option<&'a str>) -> Wish {
    Wish::new(
        value(&keys.role),
        value(&keys.external_id),
        value(SESSION_NAME),
    )
}

/// The annotation keys in use: kube2iam lets its users rename three of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationKeys {
    /// The pod's role, [`ROLE`] by default.
    pub role: String,
    /// The pod's external ID, [`EXTERNAL_ID`] by default.
    pub external_id: String,
    /// The namespace's list of allowed roles, [`ALLOWED_ROLES`] by default.
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

    #[test]
    fn a_wish_is_normalized_and_bounded() {
        let long = format!(" {}", "x".repeat(LONGEST + 1));
        let wish = wish(&AnnotationKeys::default(), |key| match key {
            ROLE => Some("reader\n"),
            EXTERNAL_ID => Some(&long),
            SESSION_NAME => Some(" \n"),
            _ => None,
        });
        assert_eq!(wish.role.as_deref(), Some("reader"));
        assert_eq!(wish.external_id.map(|id| id.len()), Some(LONGEST));
        assert_eq!(wish.session_name, None);
        // An empty role declines the default one, unlike an absent role.
        assert_eq!(Wish::new(Some("\n"), None, None).role.as_deref(), Some(""));
        assert_eq!(Wish::new(None, None, None).role, None);
    }
}
