//! The annotations that pods and namespaces already carry, in kube2iam's and kiam's dialects.

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
