//! Sessions: what is asked of STS, and what it answers.

use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use zeroize::Zeroizing;

use crate::arn::RoleArn;
use crate::key_values::KeyValues;

/// Everything that shapes a session: the whole AssumeRole request. The call to STS is built from
/// the key and from nothing else, so two requests that differ can never share credentials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// `RoleArn`.
    pub role: RoleArn,
    /// `RoleSessionName`, 2 to 64 characters.
    pub name: Arc<str>,
    /// `ExternalId`.
    pub external_id: Option<Arc<str>>,
    /// `DurationSeconds`, 900 to 43,200.
    pub duration_seconds: u32,
    /// What narrows and marks the session; `None` for nothing.
    pub limits: Option<Arc<SessionLimits>>,
}

/// Session tags, source identity and policies, as they are sent to STS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SessionLimits {
    /// Session tags (`Tags`).
    pub tags: KeyValues,
    /// Whether all tags are transitive (`TransitiveTagKeys`).
    pub transitive: bool,
    /// `SourceIdentity`, 2 to 64 characters.
    pub source_identity: Option<Arc<str>>,
    /// ARNs of managed policies (`PolicyArns`), sorted.
    pub policy_arns: Vec<Arc<str>>,
    /// A policy document (`Policy`), JSON.
    pub policy: Option<Arc<str>>,
}

/// When a session was issued and when STS says it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When the call was made.
    pub from: Timestamp,
    /// STS's `Expiration`.
    pub until: Timestamp,
}

impl Life {
    /// Whether the session may still be served.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// What is left, zero when over.
    pub fn left(&self, now: Timestamp) -> SignedDuration {
        now.duration_until(self.until).max(SignedDuration::ZERO)
    }
}

/// Temporary credentials of one session. The secrets are wiped when dropped and never formatted.
pub struct Credentials {
    /// `AccessKeyId`: names the session in CloudTrail, not a secret.
    pub access_key_id: String,
    /// `SecretAccessKey`.
    pub secret_access_key: Zeroizing<String>,
    /// `SessionToken`.
    pub session_token: Zeroizing<String>,
    /// From the call until STS's `Expiration`.
    pub life: Life,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

/// What kind of failure it was: decides when it is worth trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// STS refused for good; nothing changes until somebody changes something.
    Final,
    /// STS asked us to slow down.
    Throttled,
    /// No answer, or none that says anything about the request.
    Temporary,
}

impl FailureKind {
    /// The word for metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Throttled => "throttled",
            Self::Temporary => "temporary",
        }
    }
}

/// A call to STS that brought no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// Whether trying again helps.
    pub kind: FailureKind,
    /// AWS's error code, `AccessDenied` for one, or our own word where there was no answer.
    pub code: String,
    /// AWS's message, bounded and without control characters. It names rolegate's own role, and is
    /// for the log alone.
    pub message: String,
    /// The cause that STS gives, if known.
    pub cause: Option<RefusalCause>,
}

impl Failure {
    /// What the pod's owner is told, by the answer to the pod and by an Event: which role, STS's code,
    /// and what is to be changed where STS says it. AWS's own message names rolegate's role, and is
    /// for the log alone.
    pub fn to_owner(&self, role: &RoleArn) -> String {
        let code = &self.code;
        match (self.kind, self.cause) {
            (FailureKind::Final, Some(cause)) => {
                format!("STS refuses role {role} ({code}): {}", cause.advice(role))
            }
            (FailureKind::Final, None) => {
                format!("STS refuses role {role} ({code}): rolegate's log has STS's reason")
            }
            (FailureKind::Throttled | FailureKind::Temporary, _) => {
                format!("STS gives no session of role {role} for now ({code}), try again")
            }
        }
    }
}

/// The reason why STS refuses a session for good, as far as its answer and the request show. It
/// contains none of AWS's own text, so that pods may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCause {
    /// The trust policy does not allow an action beside `sts:AssumeRole`.
    Missing(MissingAction),
    /// The role does not exist, or its trust policy does not allow what was asked for.
    Untrusted {
        /// The session asked for has an external ID.
        external_id: bool,
    },
    /// A policy of rolegate's own role does not allow `sts:AssumeRole`.
    IdentityPolicy,
    /// Some policy denies it outright.
    ExplicitDeny,
    /// More seconds were asked for than the role's `MaxSessionDuration`.
    MaxSessionDuration {
        /// `DurationSeconds`.
        asked: u32,
    },
    /// More seconds were asked for than there are for roles that a role assumes.
    RoleChaining {
        /// `DurationSeconds`.
        asked: u32,
    },
    /// Tags and policies take more room than STS has for them.
    TooLarge,
    /// The session's policy is invalid.
    MalformedPolicy,
    /// A tag of the session is a transitive one of rolegate's own session.
    TransitiveTag,
    /// STS is not enabled in the Region.
    RegionDisabled,
}

impl RefusalCause {
    /// Returns advice on how to make STS accept the request.
    pub fn advice(self, role: &RoleArn) -> String {
        let name = role.name();
        match self {
            Self::Missing(action) => action.advice(role),
            Self::Untrusted { external_id } => {
                let id = if external_id {
                    " with this pod's external ID"
                } else {
                    ""
                };
                format!(
                    "the role must exist, and its trust policy must allow rolegate's role to assume it{id}"
                )
            }
            Self::IdentityPolicy => {
                format!("a policy of rolegate's own role must allow sts:AssumeRole on role {name}")
            }
            Self::ExplicitDeny => format!(
                "a policy denies it outright: look in the trust policy of role {name}, the \
                 policies of rolegate's own role and those of the organization"
            ),
            Self::MaxSessionDuration { asked } => format!(
                "{asked} s were asked for; lower the session's duration, or raise \
                 MaxSessionDuration of role {name}"
            ),
            Self::RoleChaining { asked } => format!(
                "{asked} s were asked for, and a role that a role assumes has an hour at the most; \
                 set the session's duration to 3600 s or less"
            ),
            Self::TooLarge => "the session's tags and policies take more room than STS has for \
                               them: shorten those of its grant"
                .to_owned(),
            Self::MalformedPolicy => {
                "the policy of the session's grant is not one that AWS takes".to_owned()
            }
            Self::TransitiveTag => {
                "rolegate's own session has transitive tags with the same keys, \
                                    as EKS Pod Identity sets them: switch them off there, or give \
                                    rolegate other credentials"
                    .to_owned()
            }
            Self::RegionDisabled => {
                "STS is not enabled in this Region for the account of the role".to_owned()
            }
        }
    }
}

/// An action that a trust policy must allow beside `sts:AssumeRole` for what a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MissingAction {
    /// `sts:TagSession`, for session tags.
    TagSession,
    /// `sts:SetSourceIdentity`, for a source identity.
    SetSourceIdentity,
}

impl MissingAction {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::TagSession, Self::SetSourceIdentity];

    /// As policies name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TagSession => "sts:TagSession",
            Self::SetSourceIdentity => "sts:SetSourceIdentity",
        }
    }

    /// What to change so that STS agrees.
    pub fn advice(self, role: &RoleArn) -> String {
        let has = match self {
            Self::TagSession => "tags",
            Self::SetSourceIdentity => "a source identity",
        };
        format!(
            "the session has {has}, so the trust policy of role {} must allow {} to rolegate \
             beside sts:AssumeRole",
            role.name(),
            self.as_str()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_when_sts_says_so() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let life = Life {
            from: at(100),
            until: at(200),
        };
        for (now, is_valid, left) in [
            (100, true, 100),
            (199, true, 1),
            (200, false, 0),
            (201, false, 0),
        ] {
            assert_eq!(life.is_valid(at(now)), is_valid, "{now}");
            assert_eq!(life.left(at(now)), SignedDuration::from_secs(left), "{now}");
        }
    }

    #[test]
    fn secrets_are_not_formatted() {
        let credentials = Credentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: Zeroizing::new("very-secret".into()),
            session_token: Zeroizing::new("also-secret".into()),
            life: Life {
                from: Timestamp::UNIX_EPOCH,
                until: Timestamp::UNIX_EPOCH,
            },
        };
        let text = format!("{credentials:?}");
        assert!(
            text.contains("ASIAEXAMPLE") && !text.contains("secret"),
            "{text}"
        );
    }
}
