//! STS sessions: the parameters of a request, and its results.

use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::arn::RoleArn;
use crate::labels::Labels;

/// Maximum length of an `ExternalId` in STS, in characters.
const MAX_EXTERNAL_ID: usize = 1224;

/// All parameters of a session, that is, of an AssumeRole request. The call to STS is built from
/// the key alone, so requests that differ can never share credentials.
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
    /// Restrictions and attribution of the session; `None` for none.
    pub limits: Option<Arc<SessionLimits>>,
    /// The role that is assumed with the credentials of [`Self::role`], and whose credentials are
    /// those of the session; `None` for most sessions.
    pub target: Option<Arc<TargetRole>>,
}

impl SessionKey {
    /// Returns the role whose credentials are those of the session.
    pub fn last_role(&self) -> &RoleArn {
        self.target
            .as_ref()
            .map_or(&self.role, |target| &target.role)
    }
}

/// The second role of a chain, as EKS Pod Identity's target role. Both calls have the same session
/// name and duration. The first one has the tags, which are then transitive, and the source identity;
/// the second one has the policies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetRole {
    /// `RoleArn` of the second call.
    pub role: RoleArn,
    /// `ExternalId` of the second call.
    pub external_id: Option<Arc<str>>,
}

/// Session tags, source identity and policies, as sent to STS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SessionLimits {
    /// Session tags (`Tags`).
    pub tags: Labels,
    /// True if all tags are transitive (`TransitiveTagKeys`).
    pub transitive: bool,
    /// `SourceIdentity`, 2 to 64 characters.
    pub source_identity: Option<Arc<str>>,
    /// ARNs of managed policies (`PolicyArns`), sorted.
    pub policy_arns: Vec<Arc<str>>,
    /// A policy document (`Policy`), JSON.
    pub policy: Option<Arc<str>>,
}

/// Returns true if STS accepts the text as an `ExternalId`.
pub fn is_external_id(text: &str) -> bool {
    (2..=MAX_EXTERNAL_ID).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b))
}

/// The period in which a session is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The time of the call to STS.
    pub not_before: Timestamp,
    /// STS's `Expiration`.
    pub not_after: Timestamp,
}

impl Validity {
    /// Returns true if the session may still be served.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        now < self.not_after
    }

    /// Returns the remaining time; zero after the expiration.
    pub fn remaining(&self, now: Timestamp) -> SignedDuration {
        now.duration_until(self.not_after).max(SignedDuration::ZERO)
    }
}

/// Temporary credentials of a session. The secrets are wiped when dropped and never formatted.
pub struct Credentials {
    /// `AccessKeyId`. It identifies the session in CloudTrail and is not a secret.
    pub access_key_id: Arc<str>,
    /// The period from the call until STS's `Expiration`.
    pub validity: Validity,
    /// `SecretAccessKey`, followed by `SessionToken`. One allocation, since thousands are held.
    secrets: Zeroizing<String>,
    secret_access_key_length: usize,
}

/// Maximum length of an `AccessKeyId`, in bytes. IAM's own have 20 to 128.
pub const MAX_ACCESS_KEY_ID_BYTES: usize = 256;
/// Maximum length of a `SecretAccessKey`, in bytes. Those of STS have 40.
pub const MAX_SECRET_ACCESS_KEY_BYTES: usize = 256;
/// Maximum length of a `SessionToken`, in bytes. STS documents no limit; its tokens have up to 4 KiB.
pub const MAX_SESSION_TOKEN_BYTES: usize = 15 << 10;

/// Checks credentials of another process: their lengths, and that they can be put into a JSON
/// string without escapes, as endpoints do. Each byte is graphic ASCII, and none is a quote or a
/// backslash. A session token may be empty.
///
/// # Errors
/// Returns the name of the malformed part.
pub fn check_credentials(
    access_key_id: &str,
    secret_access_key: &str,
    session_token: &str,
) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    let is_good = |text: &str, max| text.len() <= max && text.bytes().all(plain);
    if access_key_id.is_empty() || !is_good(access_key_id, MAX_ACCESS_KEY_ID_BYTES) {
        return Err("an access key's ID");
    }
    if secret_access_key.is_empty() || !is_good(secret_access_key, MAX_SECRET_ACCESS_KEY_BYTES) {
        return Err("a secret access key");
    }
    if !is_good(session_token, MAX_SESSION_TOKEN_BYTES) {
        return Err("a session token");
    }
    Ok(())
}

impl Credentials {
    /// Creates credentials. The secrets are copied, so the caller must wipe its own copies.
    pub fn new(
        access_key_id: impl Into<Arc<str>>,
        secret_access_key: &str,
        session_token: &str,
        validity: Validity,
    ) -> Self {
        // A text that grows would leave copies of the secrets in memory.
        let length = secret_access_key.len() + session_token.len();
        let mut secrets = Zeroizing::new(String::with_capacity(length));
        secrets.push_str(secret_access_key);
        secrets.push_str(session_token);
        Self {
            access_key_id: access_key_id.into(),
            validity,
            secrets,
            secret_access_key_length: secret_access_key.len(),
        }
    }

    /// Returns `SecretAccessKey`.
    pub fn secret_access_key(&self) -> &str {
        let secret = self.secrets.get(..self.secret_access_key_length);
        secret.unwrap_or_default()
    }

    /// Returns `SessionToken`.
    pub fn session_token(&self) -> &str {
        let token = self.secrets.get(self.secret_access_key_length..);
        token.unwrap_or_default()
    }
}

impl ZeroizeOnDrop for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// The kind of a failure, which determines when to retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// STS rejected the request. A retry fails until something is changed.
    Final,
    /// STS throttled the request.
    Throttled,
    /// The call failed for a reason other than the request, such as a timeout or missing
    /// credentials of rolegate itself. A retry may succeed.
    Temporary,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Final, Self::Throttled, Self::Temporary];

    /// Returns the value for metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Throttled => "throttled",
            Self::Temporary => "temporary",
        }
    }
}

/// A failed call to STS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// The kind of the failure.
    pub kind: FailureKind,
    /// AWS's error code, such as `AccessDenied`, or rolegate's own code if there was no response.
    pub code: String,
    /// AWS's message, truncated and without control characters. It names rolegate's own role, so it
    /// is only logged.
    pub message: String,
    /// The cause, if STS's response shows it.
    pub cause: Option<RefusalCause>,
}

impl Failure {
    /// Returns the message for the pod's owner, which the response to the pod and the Event
    /// contain: the role, STS's code, and the necessary change if it is known. AWS's own message
    /// names rolegate's role and is only logged.
    pub fn owner_message(&self, role: &RoleArn) -> String {
        let code = &self.code;
        match (self.kind, self.cause) {
            (FailureKind::Final, Some(cause)) => {
                format!("STS denies role {role} ({code}): {}", cause.advice(role))
            }
            (FailureKind::Final, None) => {
                format!("STS denies role {role} ({code}): see rolegate's log for the reason")
            }
            (FailureKind::Throttled | FailureKind::Temporary, _) => {
                format!("STS cannot issue a session of role {role} right now ({code}): try again")
            }
        }
    }
}

/// The cause of a final error, as far as STS's response and the request show it. It contains no
/// text of AWS, so pods may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCause {
    /// The trust policy does not allow an action in addition to `sts:AssumeRole`.
    Missing(MissingAction),
    /// The role does not exist, or its trust policy does not allow the request.
    Untrusted {
        /// True if the request has an external ID.
        external_id: bool,
    },
    /// The policies of rolegate's own role do not allow `sts:AssumeRole`.
    IdentityPolicy,
    /// A policy denies the request explicitly.
    ExplicitDeny,
    /// The requested duration exceeds the role's `MaxSessionDuration`.
    MaxSessionDuration {
        /// `DurationSeconds`.
        requested: u32,
    },
    /// The requested duration exceeds the limit for chained roles.
    RoleChaining {
        /// `DurationSeconds`.
        requested: u32,
    },
    /// Tags and policies exceed STS's size limit.
    TooLarge,
    /// The session's policy is invalid.
    MalformedPolicy,
    /// A session tag has the key of a transitive tag of rolegate's own session.
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
                "a policy denies it explicitly: check the trust policy of role {name}, the \
                 policies of rolegate's own role and those of the organization"
            ),
            Self::MaxSessionDuration { requested } => format!(
                "the requested duration is {requested} s: lower it, or raise MaxSessionDuration \
                 of role {name}"
            ),
            Self::RoleChaining { requested } => format!(
                "the requested duration is {requested} s, but chained roles have a maximum of \
                 one hour: set it to 3600 s or less"
            ),
            Self::TooLarge => "the session's tags and policies exceed the size limit of STS: \
                               shorten those of the grant"
                .to_owned(),
            Self::MalformedPolicy => {
                "AWS rejects the session policy of the grant as malformed".to_owned()
            }
            Self::TransitiveTag => {
                "rolegate's own session has transitive tags with the same keys, as set by EKS \
                 Pod Identity: disable session tags there, or use other credentials for rolegate"
                    .to_owned()
            }
            Self::RegionDisabled => {
                "STS is not enabled in this Region for the role's account".to_owned()
            }
        }
    }
}

/// An action that a trust policy must allow in addition to `sts:AssumeRole`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MissingAction {
    /// `sts:TagSession`, for session tags.
    TagSession,
    /// `sts:SetSourceIdentity`, for a source identity.
    SetSourceIdentity,
}

impl MissingAction {
    /// All actions.
    pub const ALL: [Self; 2] = [Self::TagSession, Self::SetSourceIdentity];

    /// Returns the action's name in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TagSession => "sts:TagSession",
            Self::SetSourceIdentity => "sts:SetSourceIdentity",
        }
    }

    /// Returns advice on how to make STS accept the request.
    pub fn advice(self, role: &RoleArn) -> String {
        let has = match self {
            Self::TagSession => "tags",
            Self::SetSourceIdentity => "a source identity",
        };
        format!(
            "the session has {has}, so the trust policy of role {} must allow rolegate {} in \
             addition to sts:AssumeRole",
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
        let lifetime = Validity {
            not_before: at(100),
            not_after: at(200),
        };
        for (now, is_valid, left) in [
            (100, true, 100),
            (199, true, 1),
            (200, false, 0),
            (201, false, 0),
        ] {
            assert_eq!(lifetime.is_valid(at(now)), is_valid, "{now}");
            assert_eq!(
                lifetime.remaining(at(now)),
                SignedDuration::from_secs(left),
                "{now}"
            );
        }
    }

    #[test]
    fn malformed_credentials_are_named() {
        let long = |length| "a".repeat(length);
        let (id, secret, token) = (long(256), long(256), long(15 << 10));
        assert_eq!(check_credentials(&id, &secret, &token), Ok(()));
        assert_eq!(check_credentials("ASIA", "b/+=", ""), Ok(()));
        for bad in ["a b", "a\"", "a\\", "a\n", "é", &long((15 << 10) + 1)] {
            let token = check_credentials("a", "b", bad);
            assert_eq!(token, Err("a session token"), "{bad}");
        }
        for bad in ["", "a b", "a\"", "a\\", "a\n", "é", &long(257)] {
            let id = check_credentials(bad, "b", "c");
            assert_eq!(id, Err("an access key's ID"), "{bad}");
            let secret = check_credentials("a", bad, "c");
            assert_eq!(secret, Err("a secret access key"), "{bad}");
        }
    }

    #[test]
    fn owner_messages_name_the_necessary_change() {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/team/reader").unwrap();
        let untrusted = |external_id| RefusalCause::Untrusted { external_id };
        for (cause, change) in [
            (
                RefusalCause::Missing(MissingAction::TagSession),
                "the session has tags, so the trust policy of role reader must allow rolegate \
                 sts:TagSession in addition to sts:AssumeRole",
            ),
            (
                RefusalCause::Missing(MissingAction::SetSourceIdentity),
                "has a source identity, so the trust policy of role reader must allow rolegate \
                 sts:SetSourceIdentity",
            ),
            (untrusted(false), "allow rolegate's role to assume it"),
            (untrusted(true), "with this pod's external ID"),
            (RefusalCause::IdentityPolicy, "allow sts:AssumeRole on role"),
            (RefusalCause::ExplicitDeny, "check the trust policy of role"),
        ] {
            let failure = Failure {
                kind: FailureKind::Final,
                code: "AccessDenied".into(),
                message: "User arn:aws:sts::1:assumed-role/own is not authorized".into(),
                cause: Some(cause),
            };
            let message = failure.owner_message(&role);
            let start = format!("STS denies role {role} (AccessDenied): ");
            assert!(message.starts_with(&start), "{message}");
            assert!(message.contains(change), "{message}");
            assert!(!message.contains("assumed-role"), "{message}");
        }
    }

    #[test]
    fn secrets_are_not_formatted() {
        let validity = Validity {
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
        };
        let credentials =
            Credentials::new("ASIAEXAMPLE", "very-secret", "also-secret-token", validity);
        assert_eq!(credentials.secret_access_key(), "very-secret");
        assert_eq!(credentials.session_token(), "also-secret-token");
        let text = format!("{credentials:?}");
        assert!(
            text.contains("ASIAEXAMPLE") && !text.contains("secret"),
            "{text}"
        );
    }
}
