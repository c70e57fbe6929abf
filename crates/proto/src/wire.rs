//! Messages as what they mean, and back.
//!
//! What is received is checked here, once: sizes, numbers, texts. What is not as it must be is an
//! error that ends the stream, since whoever sends it is broken or lies.

use std::mem::take;
use std::net::IpAddr;

use bytes::Bytes;
use jiff::Timestamp;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::document;
use rolegate_core::session::{
    Failure, FailureKind, Life, MissingAction, RefusalCause, SessionKey, SessionLimits,
};
use zeroize::Zeroizing;

use crate::v1;

/// The most bytes of a message to a broker, which takes the first before anything is proven: a
/// token, or [`MAX_NOTICES`] notices.
pub const MAX_TO_BROKER: usize = 64 << 10;
/// The most bytes of a message to an agent.
pub const MAX_TO_AGENT: usize = 2 << 20;
/// The most notices in a message; an agent puts fewer into one.
pub const MAX_NOTICES: usize = 256;
/// The longest token that an agent shows, bytes.
pub const MAX_TOKEN: usize = 16 << 10;
/// The longest text that names something: a UID, a node, an access key, a code.
const MAX_NAME: usize = 256;
/// The longest document of credentials.
const MAX_DOCUMENT: usize = 16 << 10;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of the other side is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// A text that names something, if it is one.
///
/// # Errors
/// [`Malformed`] with `what` where it is empty, too long or has control characters.
pub fn name<'t>(text: &'t str, what: &'static str) -> Result<&'t str, Malformed> {
    let good = (1..=MAX_NAME).contains(&text.len()) && !text.chars().any(char::is_control);
    good.then_some(text).ok_or(Malformed(what))
}

impl From<&SessionKey> for v1::SessionKey {
    fn from(key: &SessionKey) -> Self {
        // All of it by name, so that a new field is not forgotten here.
        let SessionKey {
            role,
            name,
            external_id,
            duration_seconds,
            limits,
        } = key;
        Self {
            role: role.to_string(),
            name: name.to_string(),
            external_id: external_id.as_deref().map(Into::into),
            duration_seconds: *duration_seconds,
            limits: limits.as_deref().map(Into::into),
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
        Ok(Self {
            role: RoleArn::parse(&key.role).map_err(|_| Malformed("a session's role"))?,
            name: name(&key.name, "a session's name")?.into(),
            external_id: key.external_id.map(Into::into),
            duration_seconds: key.duration_seconds,
            limits: key.limits.map(|limits| std::sync::Arc::new(limits.into())),
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

impl v1::Credentials {
    /// Credentials as they are sent.
    pub fn new(access_key_id: &str, document: &[u8], life: Life) -> Self {
        Self {
            access_key_id: access_key_id.into(),
            document: document.into(),
            from_ms: life.from.as_millisecond(),
            until_ms: life.until.as_millisecond(),
        }
    }

    /// The access key's ID, the document and the life of what was received.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn open(mut self) -> Result<(String, Bytes, Life), Malformed> {
        let document = Zeroizing::new(take(&mut self.document));
        if document.is_empty() || document.len() > MAX_DOCUMENT {
            return Err(Malformed("a document of credentials"));
        }
        name(&self.access_key_id, "an access key's ID")?;
        let time = |ms| Timestamp::from_millisecond(ms).map_err(|_| Malformed("a session's times"));
        let life = Life {
            from: time(self.from_ms)?,
            until: time(self.until_ms)?,
        };
        let key = take(&mut self.access_key_id);
        Ok((key, document::received(document), life))
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
        // AWS's message names the broker's role, which is for its own log.
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
            asked_seconds: match failure.cause {
                Some(
                    RefusalCause::MaxSessionDuration { asked }
                    | RefusalCause::RoleChaining { asked },
                ) => asked,
                _ => 0,
            },
        }
    }
}

impl TryFrom<v1::Failure> for Failure {
    type Error = Malformed;

    fn try_from(failure: v1::Failure) -> Result<Self, Malformed> {
        use v1::failure::{Cause, Kind};
        let asked = failure.asked_seconds;
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
            Cause::MaxSessionDuration => Some(RefusalCause::MaxSessionDuration { asked }),
            Cause::RoleChaining => Some(RefusalCause::RoleChaining { asked }),
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
            layer: denial.layer.into(),
            rule: denial.rule.clone(),
            reason: denial.reason.clone(),
        }
    }
}

impl From<v1::Denial> for Denial {
    fn from(denial: v1::Denial) -> Self {
        // A label of metrics, so one of a fixed set.
        const LAYERS: [&str; 6] = [
            "namespace",
            "grants",
            "rego",
            "request",
            "own-role",
            "rules",
        ];
        let known = LAYERS.into_iter().find(|layer| **layer == denial.layer);
        Self {
            role: denial.role,
            layer: known.unwrap_or("broker"),
            rule: denial.rule,
            reason: denial.reason,
            // The broker asks again by itself.
            passing: false,
        }
    }
}

/// An address as it is sent: 4 or 16 bytes.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// An address that was received.
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

    use super::*;

    #[test]
    fn failures_come_back_with_what_is_to_be_changed_and_without_the_text_of_aws() {
        for cause in [
            None,
            Some(RefusalCause::Missing(MissingAction::TagSession)),
            Some(RefusalCause::Missing(MissingAction::SetSourceIdentity)),
            Some(RefusalCause::Untrusted { external_id: false }),
            Some(RefusalCause::Untrusted { external_id: true }),
            Some(RefusalCause::IdentityPolicy),
            Some(RefusalCause::ExplicitDeny),
            Some(RefusalCause::MaxSessionDuration { asked: 7200 }),
            Some(RefusalCause::RoleChaining { asked: 3601 }),
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

    #[test]
    fn keys_come_back_as_they_were() {
        for (external_id, limits) in [
            (None, None),
            (
                Some("customer-a".into()),
                Some(Arc::new(SessionLimits {
                    tags: [("team", "payments")].into_iter().collect(),
                    policy_arns: vec!["arn:aws:iam::aws:policy/ReadOnlyAccess".into()],
                    policy: Some("{}".into()),
                    transitive: true,
                    source_identity: Some("default.api".into()),
                })),
            ),
        ] {
            let key = SessionKey {
                role: RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap(),
                name: "default.api".into(),
                external_id,
                duration_seconds: 3600,
                limits,
            };
            assert_eq!(SessionKey::try_from(v1::SessionKey::from(&key)), Ok(key));
        }
    }

    #[test]
    fn addresses_of_both_families_and_nothing_else() {
        for text in ["10.0.0.1", "fd00::1"] {
            let address = text.parse().unwrap();
            assert_eq!(super::address(&address_bytes(address)), Ok(address));
        }
        assert!(address(&[1, 2, 3]).is_err());
        // What is mapped is the pod's own, however it is written.
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(
            address(&address_bytes(mapped)),
            Ok("10.0.0.1".parse().unwrap())
        );
    }

    #[test]
    fn the_most_that_an_agent_says_fits_into_a_message() {
        let key = "x".repeat(128);
        let notice = v1::Notice {
            pod_uid: "x".repeat(36),
            outcome: Some(v1::notice::Outcome::Served(key)),
        };
        let notices = v1::Notices {
            notices: vec![notice; MAX_NOTICES],
        };
        let body = Some(v1::from_agent::Body::Notices(notices));
        let message = v1::FromAgent { body };
        assert!(prost::Message::encoded_len(&message) <= MAX_TO_BROKER);
    }

    #[test]
    fn what_is_received_is_bounded() {
        assert!(name("", "x").is_err() && name("a\nb", "x").is_err());
        assert!(name(&"x".repeat(257), "x").is_err());
        let life = Life {
            from: Timestamp::UNIX_EPOCH,
            until: Timestamp::UNIX_EPOCH,
        };
        assert!(v1::Credentials::new("ASIA", b"", life).open().is_err());
        let long = vec![b'x'; MAX_DOCUMENT + 1];
        assert!(v1::Credentials::new("ASIA", &long, life).open().is_err());
        let (key, document, _) = v1::Credentials::new("ASIA", b"{}", life).open().unwrap();
        assert_eq!((key.as_str(), &document[..]), ("ASIA", &b"{}"[..]));
    }

    #[test]
    fn denials_come_back_as_they_were() {
        let denial = Denial {
            role: "reader".into(),
            layer: "grants",
            rule: "default deny".into(),
            reason: "no RoleGrant covers it".into(),
            passing: false,
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
        assert_eq!(denial("grants").layer, "grants");
        assert_eq!(denial("anything").layer, "broker");
    }
}
