//! Conversion between messages and rolegate's types.
//!
//! Received messages are validated here: sizes, numbers and texts. A violation is an error that
//! ends the stream, since the sender is broken or malicious.

use std::net::IpAddr;

use jiff::Timestamp;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::{Denial, DenialSource, RequestField};
use rolegate_core::session::{
    Credentials, Failure, FailureKind, MissingAction, RefusalCause, SessionKey, SessionLimits,
    TargetRole, Validity, check_credentials,
};

use crate::v1;

/// Maximum size of a message to a broker, in bytes. It limits the unauthenticated first message,
/// which contains a token, and later ones with up to [`MAX_SENT_OUTCOMES`] outcomes.
pub const MAX_TO_BROKER: usize = 64 << 10;
/// Maximum size of a message to an agent, in bytes.
pub const MAX_TO_AGENT: usize = 2 << 20;
/// Maximum number of outcomes in a message that a broker accepts.
pub const MAX_OUTCOMES: usize = 256;
/// Maximum number of outcomes in a message that an agent sends.
pub const MAX_SENT_OUTCOMES: usize = 128;
/// Maximum number of roles of a pod's service account. Brokers send fewer.
pub const MAX_ASSIGNED_ROLES: usize = 64;
/// Maximum size of an agent's token, in bytes.
pub const MAX_TOKEN: usize = 16 << 10;
/// Maximum size of an identifier (a UID, a node, an access key, a code), in bytes.
const MAX_NAME: usize = 256;

/// A malformed field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("received a malformed message: {0}")]
pub struct Malformed(pub &'static str);

/// Validates an identifier.
///
/// # Errors
/// [`Malformed`] with `what` if it is empty, too long or has control characters.
pub fn name<'t>(text: &'t str, what: &'static str) -> Result<&'t str, Malformed> {
    let good = (1..=MAX_NAME).contains(&text.len()) && !text.chars().any(char::is_control);
    good.then_some(text).ok_or(Malformed(what))
}

impl From<&SessionKey> for v1::SessionKey {
    fn from(key: &SessionKey) -> Self {
        // Destructured completely, so that a new field cannot be forgotten here.
        let SessionKey {
            role,
            name,
            external_id,
            duration_seconds,
            limits,
            target,
        } = key;
        // The last role comes first, since older agents know only one.
        let first = target.as_ref().map(|_| v1::SourceRole {
            role: role.to_string(),
            external_id: external_id.as_deref().map(Into::into),
        });
        let (role, external_id) = match target.as_deref() {
            Some(TargetRole { role, external_id }) => (role, external_id),
            None => (role, external_id),
        };
        Self {
            role: role.to_string(),
            name: name.to_string(),
            external_id: external_id.as_deref().map(Into::into),
            duration_seconds: *duration_seconds,
            limits: limits.as_deref().map(Into::into),
            source: first,
        }
    }
}

impl From<&SessionLimits> for v1::SessionLimits {
    fn from(limits: &SessionLimits) -> Self {
        let SessionLimits {
            tags,
            policy_arns,
            policy,
            transitive,
            source_identity,
        } = limits;
        let tag = |(key, value): (&str, &str)| v1::Tag {
            key: key.into(),
            value: value.into(),
        };
        Self {
            tags: tags.iter().map(tag).collect(),
            policy_arns: policy_arns.iter().map(ToString::to_string).collect(),
            policy: policy.as_deref().map(Into::into),
            transitive: *transitive,
            source_identity: source_identity.as_deref().map(Into::into),
        }
    }
}

impl TryFrom<v1::SessionKey> for SessionKey {
    type Error = Malformed;

    fn try_from(key: v1::SessionKey) -> Result<Self, Malformed> {
        let role = |text: &str| RoleArn::parse(text).map_err(|_| Malformed("a session's role"));
        let last = TargetRole {
            role: role(&key.role)?,
            external_id: key.external_id.map(Into::into),
        };
        let (first, target) = match key.source {
            None => (last, None),
            Some(source) => {
                let first = TargetRole {
                    role: role(&source.role)?,
                    external_id: source.external_id.map(Into::into),
                };
                (first, Some(std::sync::Arc::new(last)))
            }
        };
        Ok(Self {
            role: first.role,
            name: name(&key.name, "a session's name")?.into(),
            external_id: first.external_id,
            duration_seconds: key.duration_seconds,
            limits: key.limits.map(|limits| std::sync::Arc::new(limits.into())),
            target,
        })
    }
}

impl From<v1::SessionLimits> for SessionLimits {
    fn from(limits: v1::SessionLimits) -> Self {
        let tags = limits.tags.into_iter().map(|tag| (tag.key, tag.value));
        Self {
            tags: tags.collect(),
            policy_arns: limits.policy_arns.into_iter().map(Into::into).collect(),
            policy: limits.policy.map(Into::into),
            transitive: limits.transitive,
            source_identity: limits.source_identity.map(Into::into),
        }
    }
}

impl From<&Credentials> for v1::Credentials {
    fn from(credentials: &Credentials) -> Self {
        Self {
            access_key_id: credentials.access_key_id.to_string(),
            secret_access_key: credentials.secret_access_key().into(),
            session_token: credentials.session_token().into(),
            issued_at_ms: credentials.validity.not_before.as_millisecond(),
            expires_at_ms: credentials.validity.not_after.as_millisecond(),
        }
    }
}

impl TryFrom<&v1::Credentials> for Credentials {
    type Error = Malformed;

    fn try_from(message: &v1::Credentials) -> Result<Self, Malformed> {
        let id = &message.access_key_id;
        let secret = &message.secret_access_key;
        let token = &message.session_token;
        check_credentials(id, secret, token).map_err(Malformed)?;
        let time = |ms| Timestamp::from_millisecond(ms).map_err(|_| Malformed("a session's times"));
        let validity = Validity {
            not_before: time(message.issued_at_ms)?,
            not_after: time(message.expires_at_ms)?,
        };
        Ok(Self::new(&**id, secret, token, validity))
    }
}

impl From<&Failure> for v1::Failure {
    fn from(failure: &Failure) -> Self {
        use v1::failure::{Cause, Kind};
        let kind = match failure.kind {
            FailureKind::Final => Kind::Final,
            FailureKind::Throttled => Kind::Throttled,
            FailureKind::Temporary => Kind::Temporary,
        };
        // AWS's message names the broker's role and stays in the broker's log.
        Self {
            kind: kind.into(),
            code: failure.code.clone(),
            cause: match failure.cause {
                None => Cause::None,
                Some(RefusalCause::Missing(MissingAction::TagSession)) => Cause::TagSession,
                Some(RefusalCause::Missing(MissingAction::SetSourceIdentity)) => {
                    Cause::SetSourceIdentity
                }
                Some(RefusalCause::Untrusted { external_id: false }) => Cause::Untrusted,
                Some(RefusalCause::Untrusted { external_id: true }) => Cause::UntrustedExternalId,
                Some(RefusalCause::IdentityPolicy) => Cause::IdentityPolicy,
                Some(RefusalCause::ExplicitDeny) => Cause::ExplicitDeny,
                Some(RefusalCause::MaxSessionDuration { .. }) => Cause::MaxSessionDuration,
                Some(RefusalCause::RoleChaining { .. }) => Cause::RoleChaining,
                Some(RefusalCause::TooLarge) => Cause::TooLarge,
                Some(RefusalCause::MalformedPolicy) => Cause::MalformedPolicy,
                Some(RefusalCause::TransitiveTag) => Cause::TransitiveTag,
                Some(RefusalCause::RegionDisabled) => Cause::RegionDisabled,
            }
            .into(),
            requested_seconds: match failure.cause {
                Some(
                    RefusalCause::MaxSessionDuration { requested }
                    | RefusalCause::RoleChaining { requested },
                ) => requested,
                _ => 0,
            },
        }
    }
}

impl TryFrom<v1::Failure> for Failure {
    type Error = Malformed;

    fn try_from(failure: v1::Failure) -> Result<Self, Malformed> {
        use v1::failure::{Cause, Kind};
        let requested = failure.requested_seconds;
        let cause = match failure.cause() {
            Cause::None => None,
            Cause::TagSession => Some(RefusalCause::Missing(MissingAction::TagSession)),
            Cause::SetSourceIdentity => {
                Some(RefusalCause::Missing(MissingAction::SetSourceIdentity))
            }
            Cause::Untrusted => Some(RefusalCause::Untrusted { external_id: false }),
            Cause::UntrustedExternalId => Some(RefusalCause::Untrusted { external_id: true }),
            Cause::IdentityPolicy => Some(RefusalCause::IdentityPolicy),
            Cause::ExplicitDeny => Some(RefusalCause::ExplicitDeny),
            Cause::MaxSessionDuration => Some(RefusalCause::MaxSessionDuration { requested }),
            Cause::RoleChaining => Some(RefusalCause::RoleChaining { requested }),
            Cause::TooLarge => Some(RefusalCause::TooLarge),
            Cause::MalformedPolicy => Some(RefusalCause::MalformedPolicy),
            Cause::TransitiveTag => Some(RefusalCause::TransitiveTag),
            Cause::RegionDisabled => Some(RefusalCause::RegionDisabled),
        };
        let kind = match failure.kind() {
            Kind::Final => FailureKind::Final,
            Kind::Throttled => FailureKind::Throttled,
            Kind::Temporary => FailureKind::Temporary,
        };
        Ok(Self {
            kind,
            code: name(&failure.code, "a failure's code")?.into(),
            message: "the broker's log has the message of AWS".into(),
            cause,
        })
    }
}

impl From<&Denial> for v1::Denial {
    fn from(denial: &Denial) -> Self {
        Self {
            role: denial.role.clone(),
            layer: denial.denied_by.as_str().into(),
            rule: denial.rule.clone(),
            reason: denial.reason.clone(),
        }
    }
}

impl From<v1::Denial> for Denial {
    fn from(denial: v1::Denial) -> Self {
        Self {
            role: denial.role,
            denied_by: DenialSource::parse(&denial.layer),
            rule: denial.rule,
            // Only admission reports it.
            field: RequestField::default(),
            reason: denial.reason,
            // The broker itself evaluates the request again.
            transient: false,
        }
    }
}

/// Encodes an address: 4 or 16 bytes.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// Decodes an address.
///
/// # Errors
/// [`Malformed`].
pub fn address(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(octets.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(|octets| IpAddr::from(octets).to_canonical())
        .map_err(|_| Malformed("a pod's address"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rolegate_core::layer::LayerId;

    use rolegate_core::session::{
        MAX_ACCESS_KEY_ID_BYTES, MAX_SECRET_ACCESS_KEY_BYTES, MAX_SESSION_TOKEN_BYTES,
    };

    use super::*;

    #[test]
    fn failures_keep_their_cause_without_the_text_of_aws() {
        for cause in [
            None,
            Some(RefusalCause::Missing(MissingAction::TagSession)),
            Some(RefusalCause::Missing(MissingAction::SetSourceIdentity)),
            Some(RefusalCause::Untrusted { external_id: false }),
            Some(RefusalCause::Untrusted { external_id: true }),
            Some(RefusalCause::IdentityPolicy),
            Some(RefusalCause::ExplicitDeny),
            Some(RefusalCause::MaxSessionDuration { requested: 7200 }),
            Some(RefusalCause::RoleChaining { requested: 3601 }),
            Some(RefusalCause::TooLarge),
            Some(RefusalCause::MalformedPolicy),
            Some(RefusalCause::TransitiveTag),
            Some(RefusalCause::RegionDisabled),
        ] {
            let failure = Failure {
                kind: FailureKind::Final,
                code: "AccessDenied".into(),
                message: "User: arn:aws:sts::1:assumed-role/broker/x is not authorized".into(),
                cause,
            };
            let back = Failure::try_from(v1::Failure::from(&failure)).unwrap();
            assert_eq!((back.kind, back.cause), (failure.kind, cause));
            assert!(!back.message.contains("assumed-role"), "{back}");
        }
    }

    /// `Pod` before it had the roles of service accounts.
    #[derive(Clone, PartialEq, prost::Message)]
    struct OldPod {
        #[prost(string, tag = "1")]
        uid: String,
        #[prost(message, optional, tag = "8")]
        no_role: Option<v1::Empty>,
    }

    #[test]
    fn versions_before_service_accounts_understand_each_other() {
        let new = v1::Pod {
            uid: "uid-1".into(),
            authorization: Some(v1::pod::Authorization::NoRole(v1::Empty {})),
            assigned_roles: vec![v1::AssignedRole::default()],
            unknown_service_account: true,
            ..v1::Pod::default()
        };
        let old = <OldPod as prost::Message>::decode(&*prost::Message::encode_to_vec(&new));
        let old = old.unwrap();
        assert_eq!(old.uid, "uid-1");
        assert!(old.no_role.is_some());
        let read = <v1::Pod as prost::Message>::decode(&*prost::Message::encode_to_vec(&old));
        let read = read.unwrap();
        assert_eq!(read.authorization, new.authorization);
        assert!(read.assigned_roles.is_empty() && !read.unknown_service_account);
    }

    #[test]
    fn keys_come_back_as_they_were() {
        let target = TargetRole {
            role: RoleArn::parse("arn:aws:iam::210987654321:role/writer").unwrap(),
            external_id: Some("customer-b".into()),
        };
        for (external_id, limits, target) in [
            (None, None, None),
            (
                Some("customer-a".into()),
                Some(Arc::new(SessionLimits {
                    tags: [("team", "payments")].into_iter().collect(),
                    policy_arns: vec!["arn:aws:iam::aws:policy/ReadOnlyAccess".into()],
                    policy: Some("{}".into()),
                    transitive: true,
                    source_identity: Some("default.api".into()),
                })),
                Some(Arc::new(target)),
            ),
        ] {
            let key = SessionKey {
                role: RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap(),
                name: "default.api".into(),
                external_id,
                duration_seconds: 3600,
                limits,
                target,
            };
            let message = v1::SessionKey::from(&key);
            // An agent that knows one role must not take the session for one of the first role.
            assert_eq!(message.role, key.last_role().as_str());
            assert_eq!(SessionKey::try_from(message), Ok(key));
        }
    }

    #[test]
    fn addresses_of_both_families_and_nothing_else() {
        for text in ["10.0.0.1", "fd00::1"] {
            let address = text.parse().unwrap();
            assert_eq!(super::address(&address_bytes(address)), Ok(address));
        }
        assert!(address(&[1, 2, 3]).is_err());
        // An IPv4-mapped address is the pod's own, in whichever form it is written.
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(
            address(&address_bytes(mapped)),
            Ok("10.0.0.1".parse().unwrap())
        );
    }

    #[test]
    fn the_largest_agent_message_fits_the_limit() {
        let key = "x".repeat(128);
        let notice = v1::Outcome {
            pod_uid: "x".repeat(36),
            result: Some(v1::outcome::Result::Served(key)),
            service_account: Some(v1::ServiceAccountRole {
                audience: Some("x".repeat(MAX_NAME)),
            }),
        };
        let outcomes = v1::Outcomes {
            outcomes: vec![notice; MAX_SENT_OUTCOMES],
        };
        let body = Some(v1::from_agent::Body::Outcomes(outcomes));
        let message = v1::FromAgent { body };
        assert!(prost::Message::encoded_len(&message) <= MAX_TO_BROKER);
    }

    #[test]
    fn the_largest_tokens_and_credentials_fit_into_their_messages() {
        // Tokens of the API server have one to two KiB; issuers with many claims, more.
        const { assert!(MAX_TOKEN >= 8 << 10 && MAX_TOKEN + 1024 <= MAX_TO_BROKER) };
        // A broker puts 64 sessions into one message, and as many pods. The last pod may add those of
        // its own role and of 16 roles of its service account.
        const CREDENTIALS: usize =
            MAX_ACCESS_KEY_ID_BYTES + MAX_SECRET_ACCESS_KEY_BYTES + MAX_SESSION_TOKEN_BYTES;
        const { assert!((63 + 17) * (CREDENTIALS + 8 * 1024) <= MAX_TO_AGENT) };
    }

    fn credentials(id: &str, secret: &str, token: &str) -> v1::Credentials {
        let validity = Validity {
            not_before: Timestamp::from_millisecond(1_700_000_000_123).unwrap(),
            not_after: Timestamp::from_millisecond(1_700_003_600_000).unwrap(),
        };
        (&Credentials::new(id, secret, token, validity)).into()
    }

    #[test]
    fn credentials_come_back_as_they_were() {
        let long = ["i".repeat(256), "s".repeat(256), "t".repeat(15 << 10)];
        for [id, secret, token] in [
            ["ASIA", "secret/+", "token=="],
            long.each_ref().map(|it| &**it),
        ] {
            let message = credentials(id, secret, token);
            let back = Credentials::try_from(&message).unwrap();
            assert_eq!(&*back.access_key_id, id);
            assert_eq!(back.secret_access_key(), secret);
            assert_eq!(back.session_token(), token);
            assert_eq!(v1::Credentials::from(&back), message);
        }
    }

    #[test]
    fn what_is_received_is_bounded() {
        assert!(name("", "x").is_err() && name("a\nb", "x").is_err());
        assert!(name(&"x".repeat(257), "x").is_err());
        let long = |most: usize| "x".repeat(most + 1);
        let (bad_id, bad_secret, bad_token) = (
            "an access key's ID",
            "a secret access key",
            "a session token",
        );
        for (id, secret, token, bad) in [
            ("", "s", "t", bad_id),
            (&*long(MAX_NAME), "s", "t", bad_id),
            ("AS\nIA", "s", "t", bad_id),
            ("ASIA", "", "t", bad_secret),
            ("ASIA", &*long(MAX_SECRET_ACCESS_KEY_BYTES), "t", bad_secret),
            ("ASIA", "s\"", "t", bad_secret),
            ("ASIA", "s", &*long(MAX_SESSION_TOKEN_BYTES), bad_token),
            ("ASIA", "s", "t\\", bad_token),
            ("ASIA", "s", "é", bad_token),
        ] {
            let received = Credentials::try_from(&credentials(id, secret, token));
            assert_eq!(received.unwrap_err(), Malformed(bad));
        }
        let mut message = credentials("ASIA", "s", "t");
        message.expires_at_ms = i64::MAX;
        assert!(Credentials::try_from(&message).is_err());
    }

    #[test]
    fn denials_come_back_as_they_were() {
        let denial = Denial {
            role: "reader".into(),
            denied_by: LayerId::Grants.into(),
            rule: "default deny".into(),
            field: RequestField::default(),
            reason: "no RoleGrant covers the role".into(),
            transient: false,
        };
        assert_eq!(Denial::from(v1::Denial::from(&denial)), denial);
    }

    #[test]
    fn a_layer_is_one_of_those_there_are() {
        let denial = |layer: &str| {
            Denial::from(v1::Denial {
                layer: layer.into(),
                ..v1::Denial::default()
            })
        };
        assert_eq!(denial("grants").denied_by, LayerId::Grants.into());
        assert_eq!(denial("anything").denied_by, DenialSource::Unknown);
        assert_eq!(denial("anything").denied_by.as_str(), "broker");
    }
}
