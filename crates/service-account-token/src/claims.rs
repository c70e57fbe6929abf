//! The claims of a projected ServiceAccount token.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// Maximum difference between the clocks of this node and the API server for `iat` and `nbf`. `exp`
/// has no leeway: a kubelet renews a token when 80 % of its life has passed.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(60);
/// Maximum length of a name, in bytes: that of a DNS subdomain.
const MAX_NAME_BYTES: usize = 253;
/// Maximum length of a UID, in bytes. Those of the API server have 36.
const MAX_UID_BYTES: usize = 128;

/// The issuer of the cluster's tokens, which is compared byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Issuer(Arc<str>);

impl Issuer {
    /// Creates an issuer from the value of `iss`.
    pub fn new(issuer: impl Into<Arc<str>>) -> Self {
        Self(issuer.into())
    }

    /// Returns the value of `iss`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The conditions that a token must meet in addition to its signature.
#[derive(Clone, Copy)]
pub struct TokenRequirements<'a> {
    /// The cluster's issuer.
    pub issuer: &'a Issuer,
    /// Returns true for an audience that the endpoint serves. One of the token's audiences must be
    /// served.
    pub serves_audience: &'a dyn Fn(&str) -> bool,
    /// The current time.
    pub now: Timestamp,
}

/// An object that a token names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ObjectRef {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
}

impl ObjectRef {
    fn is_bounded(&self) -> bool {
        let name = 1..=MAX_NAME_BYTES;
        name.contains(&self.name.len()) && (1..=MAX_UID_BYTES).contains(&self.uid.len())
    }
}

/// The pod that a verified token names. The pod may have been deleted since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The namespace of the pod and of its ServiceAccount.
    pub namespace: Arc<str>,
    /// The ServiceAccount.
    pub service_account: ObjectRef,
    /// The pod that the token is bound to.
    pub pod: ObjectRef,
    /// The node that the pod was on when the token was issued. API servers before 1.30 omit it.
    pub node: Option<ObjectRef>,
    /// The audience that the endpoint serves.
    pub audience: Arc<str>,
    /// `exp`: the token is refused from this time on.
    pub expires_at: Timestamp,
}

/// The reason why a token with a valid signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Another issuer.
    #[error(
        "the token's issuer is not this cluster's: request the token from the API server of the \
         cluster that the pod runs in"
    )]
    Issuer,
    /// No audience that the endpoint serves.
    #[error(
        "the token is for another audience: project a serviceAccountToken with the audience of this \
         endpoint, by default pods.eks.amazonaws.com"
    )]
    Audience,
    /// `exp` has passed.
    #[error("the token is expired: read the token file again before each request")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not valid yet: compare the clocks of this node and the API server")]
    NotYetValid,
    /// `iat` is in the future.
    #[error(
        "the token was issued in the future: compare the clocks of this node and the API server"
    )]
    IssuedInTheFuture,
    /// The times are not in order, or are not times.
    #[error("the token's iat, nbf and exp are not in order")]
    Times,
    /// The token is not bound to a pod.
    #[error(
        "the token is not bound to a pod: use a projected serviceAccountToken volume, or a \
         TokenRequest whose boundObjectRef is the pod"
    )]
    NoPod,
    /// A name or UID is empty or too long, or `sub` names another ServiceAccount.
    #[error("the token's claims do not name one ServiceAccount and one pod")]
    Subject,
}

/// The claims as written.
#[derive(Deserialize)]
pub(crate) struct Claims {
    iss: String,
    sub: String,
    aud: Audiences,
    iat: i64,
    nbf: i64,
    exp: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: Arc<str>,
    serviceaccount: ObjectRef,
    pod: Option<ObjectRef>,
    node: Option<ObjectRef>,
}

/// `aud`: one audience, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Audiences {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(audience) => std::slice::from_ref(audience),
            Self::Several(audiences) => audiences,
        }
    }
}

impl Claims {
    /// Checks the claims of a token whose signature is valid.
    pub(crate) fn check(self, required: &TokenRequirements<'_>) -> Result<Identity, ClaimError> {
        if self.iss != required.issuer.as_str() {
            return Err(ClaimError::Issuer);
        }
        let mut audiences = self.aud.as_slice().iter();
        let audience = audiences.find(|audience| (required.serves_audience)(audience));
        let audience = Arc::from(audience.ok_or(ClaimError::Audience)?.as_str());
        let expires_at = self.check_times(required.now)?;
        let Kubernetes {
            namespace,
            serviceaccount: service_account,
            pod,
            node,
        } = self.kubernetes;
        let pod = pod.ok_or(ClaimError::NoPod)?;
        let named = [&service_account, &pod].into_iter().chain(&node);
        let subject = format!("system:serviceaccount:{namespace}:{}", service_account.name);
        if self.sub != subject
            || namespace.is_empty()
            || !named.into_iter().all(ObjectRef::is_bounded)
        {
            return Err(ClaimError::Subject);
        }
        Ok(Identity {
            namespace,
            service_account,
            pod,
            node,
            audience,
            expires_at,
        })
    }

    /// Checks `exp`, `nbf` and `iat`, and returns `exp`.
    fn check_times(&self, now: Timestamp) -> Result<Timestamp, ClaimError> {
        let time = |seconds| Timestamp::from_second(seconds).map_err(|_| ClaimError::Times);
        let (issued_at, not_before, expires_at) =
            (time(self.iat)?, time(self.nbf)?, time(self.exp)?);
        if expires_at <= issued_at || expires_at <= not_before {
            return Err(ClaimError::Times);
        }
        if now >= expires_at {
            return Err(ClaimError::Expired);
        }
        if now.duration_until(not_before) > CLOCK_SKEW {
            return Err(ClaimError::NotYetValid);
        }
        if now.duration_until(issued_at) > CLOCK_SKEW {
            return Err(ClaimError::IssuedInTheFuture);
        }
        Ok(expires_at)
    }
}
