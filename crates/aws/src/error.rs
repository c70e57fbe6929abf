//! Errors of STS calls, classified by remedy and bounded in size.
//!
//! AWS's message about our own credentials is never shown: `SignatureDoesNotMatch` quotes the
//! signed request, including the session token.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use rolegate_core::session::{
    Failure, FailureKind, MissingAction, RefusalCause, SessionKey, SessionLimits,
};
use rolegate_core::text::is_unsafe;

use crate::chain::ChainError;

const MAX_MESSAGE: usize = 300;
/// Maximum length of a message that names an intermediate role before the reason.
const MAX_CHAIN_CHARS: usize = 2 * MAX_MESSAGE;
const MAX_CODE: usize = 64;

/// Returns an error that rolegate itself has detected.
pub(crate) fn temporary(code: &str, message: &str) -> Failure {
    Failure {
        kind: FailureKind::Temporary,
        code: code.to_owned(),
        message: bounded(message, MAX_MESSAGE),
        cause: None,
    }
}

/// Returns the error for a call that took longer than `limit`.
pub(crate) fn timed_out(limit: Duration) -> Failure {
    let seconds = limit.as_secs_f64();
    temporary(
        "Timeout",
        &format!(
            "no response within {seconds} s: check the connection to the STS endpoint and to \
             the source of rolegate's own credentials"
        ),
    )
}

/// Converts an SDK error. `key` is the session requested by an AssumeRole call.
pub(crate) fn from_sdk<E>(error: &SdkError<E>, key: Option<&SessionKey>, limit: Duration) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let SdkError::ServiceError(answer) = error {
        let status = answer.raw().status().as_u16();
        let refusal = answer.err();
        return refused(refusal.code(), refusal.message(), status, key);
    }
    if let Some(cause) = find::<ChainError>(error) {
        // The pod's owner cannot fix it. Throttling is handled the same way.
        return Failure {
            kind: match cause.failure.kind {
                FailureKind::Throttled => FailureKind::Throttled,
                FailureKind::Final | FailureKind::Temporary => FailureKind::Temporary,
            },
            code: "IntermediateRole".into(),
            message: bounded(&cause.to_string(), MAX_CHAIN_CHARS),
            cause: None,
        };
    }
    // The SDK's own texts are never shown: some contain the request with the external ID.
    if let Some(cause) = find::<CredentialsError>(error) {
        let chain = chain(cause);
        return temporary(
            "NoCredentials",
            &format!("rolegate has no AWS credentials of its own: {chain}"),
        );
    }
    match error {
        SdkError::TimeoutError(_) => timed_out(limit),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => timed_out(limit),
        SdkError::ResponseError(_) => temporary(
            "BadAnswer",
            "cannot parse the response from STS: check which server is listening at its endpoint",
        ),
        _ => match find::<hyper_util::client::legacy::Error>(error) {
            Some(cause) => temporary(
                "Unreachable",
                &format!("cannot reach STS: {}", chain(cause)),
            ),
            None => temporary(
                "Unreachable",
                "cannot call STS: check its endpoint URL, AWS_ENDPOINT_URL or \
                 AWS_ENDPOINT_URL_STS, and the Region",
            ),
        },
    }
}

/// Returns the error for a response from STS.
fn refused(
    code: Option<&str>,
    message: Option<&str>,
    status: u16,
    key: Option<&SessionKey>,
) -> Failure {
    let kind = classify(code, status);
    let message = message.unwrap_or("STS gave no reason");
    let cause = key
        .zip(code)
        .and_then(|(key, code)| cause_of(code, message, key));
    let text = match code.and_then(own_credentials) {
        Some(advice) => format!("STS refused rolegate's own credentials: {advice}"),
        None => match cause
            .zip(key)
            .map(|(cause, key)| advice(cause, message, key))
        {
            Some(advice) => {
                // The advice must not be truncated.
                let room = MAX_MESSAGE.saturating_sub(advice.chars().count() + 2);
                let message = bounded(message.trim_end_matches('.'), room);
                format!("{message}: {advice}")
            }
            None => message.to_owned(),
        },
    };
    Failure {
        kind,
        code: code.map_or_else(|| format!("HTTP{status}"), |code| bounded(code, MAX_CODE)),
        message: bounded(&text, MAX_MESSAGE),
        cause,
    }
}

/// Returns whether an error is final. A response without an AWS error code comes from an
/// intermediary and says nothing about the request.
fn classify(code: Option<&str>, status: u16) -> FailureKind {
    let throttled = code.is_some_and(|code| {
        code.starts_with("Throttling")
            || code.starts_with("TooManyRequests")
            || code == "RequestLimitExceeded"
            || code == "Throttled"
    });
    match code {
        _ if throttled || status == 429 => FailureKind::Throttled,
        Some(code) if own_credentials(code).is_none() && (400..500).contains(&status) => {
            FailureKind::Final
        }
        _ => FailureKind::Temporary,
    }
}

/// Returns advice if STS rejects our own credentials or clock.
fn own_credentials(code: &str) -> Option<&'static str> {
    Some(match code {
        "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "InvalidSignatureException"
        | "RequestExpired"
        | "RequestTimeTooSkewed" => {
            "the signature does not match. Check the node's clock, then the secret access key"
        }
        "ExpiredToken" | "ExpiredTokenException" => {
            "they have expired. If this persists, check the node's clock and the source of the \
             credentials"
        }
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "InvalidAccessKeyId"
        | "MissingAuthenticationToken"
        | "AuthFailure" => {
            "AWS does not recognize them. Check their source, and that this Region is enabled \
             for their account"
        }
        _ => return None,
    })
}

/// Returns the cause of a refusal, by its code and message.
fn cause_of(code: &str, message: &str, key: &SessionKey) -> Option<RefusalCause> {
    let asked = key.duration_seconds;
    let says = |words: &str| message.contains(words);
    if says("role chaining") {
        return Some(RefusalCause::RoleChaining { requested: asked });
    }
    if says("MaxSessionDuration") {
        return Some(RefusalCause::MaxSessionDuration { requested: asked });
    }
    if code.starts_with("PackedPolicyTooLarge") {
        return Some(RefusalCause::TooLarge);
    }
    if code.starts_with("MalformedPolicyDocument") {
        return Some(RefusalCause::MalformedPolicy);
    }
    if code.starts_with("RegionDisabled") {
        return Some(RefusalCause::RegionDisabled);
    }
    if says("transitive tag") {
        return Some(RefusalCause::TransitiveTag);
    }
    if !code.starts_with("AccessDenied") {
        return None;
    }
    // Checked before the action: a policy of rolegate's own role may lack or deny that one too.
    if says("explicit deny") {
        return Some(RefusalCause::ExplicitDeny);
    }
    let own = [
        "identity-based policy",
        "permissions boundary",
        "session policy",
    ];
    if own
        .into_iter()
        .any(|policy| says(&format!("no {policy} allows")))
    {
        return Some(RefusalCause::IdentityPolicy);
    }
    let mut actions = MissingAction::ALL.into_iter();
    if let Some(action) = actions.find(|action| says(action.as_str())) {
        return Some(RefusalCause::Missing(action));
    }
    let external_id = key.external_id.is_some();
    Some(RefusalCause::Untrusted { external_id })
}

/// Advises how to make STS accept the request, with details that only the log needs.
fn advice(cause: RefusalCause, message: &str, key: &SessionKey) -> String {
    let limits = key.limits.as_deref();
    let advice = cause.advice(&key.role);
    match cause {
        RefusalCause::TooLarge => too_large(message, limits),
        RefusalCause::Untrusted { .. } => advice + &actions(limits),
        _ => advice,
    }
}

/// Lists the actions that a trust policy must allow besides `sts:AssumeRole`, as STS doesn't name
/// the missing one.
fn actions(limits: Option<&SessionLimits>) -> String {
    let mut actions = String::new();
    if limits.is_some_and(|limits| !limits.tags.is_empty()) {
        actions += ", with sts:TagSession, as the session has tags";
    }
    if limits.is_some_and(|limits| limits.source_identity.is_some()) {
        actions += if actions.is_empty() {
            ", with"
        } else {
            ", and"
        };
        actions += " sts:SetSourceIdentity, as it has a source identity";
    }
    actions
}

/// Lists what counts toward the packed session size, whose limit only STS knows.
fn too_large(message: &str, limits: Option<&SessionLimits>) -> String {
    let percent = message.split('%').next().and_then(|text| {
        let digits = text.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next();
        digits.filter(|digits| (1..=6).contains(&digits.len()))
    });
    let percent = percent
        .filter(|_| message.contains('%'))
        .map(|percent| format!("{percent} % of "))
        .unwrap_or_else(|| "more than ".to_owned());
    let tags = limits.map_or(0, |limits| limits.tags.len());
    let policies = limits.map_or(0, |limits| limits.policy_arns.len());
    let policy = limits.and_then(|limits| limits.policy.as_ref());
    let policy = policy.map_or(0, |policy| policy.chars().count());
    format!(
        "the session's {tags} tags, {policies} policy ARNs and policy of {policy} characters, \
         with transitive tags of rolegate's own session, use {percent}the packed size that STS \
         allows: shorten the grant"
    )
}

/// Joins the `Display` texts of an error and its sources, without repetitions. (`Debug` could
/// contain requests and responses.)
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{cause}");
    }
    text
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns an error and its sources. Bounded, since a chain may be cyclic.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source()).take(16)
}

/// Truncates to `limit` characters, on one line.
pub(crate) fn bounded(text: &str, limit: usize) -> String {
    let mut kept: String = text
        .chars()
        .map(|c| if is_unsafe(c) { ' ' } else { c })
        .take(limit)
        .collect();
    if kept.len() < text.len() {
        kept.pop();
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use rolegate_core::arn::RoleArn;

    use super::*;

    fn key() -> SessionKey {
        SessionKey {
            role: RoleArn::parse("arn:aws:iam::123456789012:role/team/reader").unwrap(),
            name: "default.api".into(),
            external_id: None,
            duration_seconds: 7200,
            limits: None,
            target: None,
        }
    }

    #[test]
    fn each_code_is_final_throttled_or_temporary() {
        use FailureKind::{Final, Temporary, Throttled};
        for (code, status, kind) in [
            ("AccessDenied", 403, Final),
            ("AccessDeniedException", 400, Final),
            ("MalformedPolicyDocument", 400, Final),
            ("PackedPolicyTooLarge", 400, Final),
            ("RegionDisabledException", 403, Final),
            ("ValidationError", 400, Final),
            ("InvalidParameterValue", 400, Final),
            ("SomethingNew", 418, Final),
            ("Throttling", 400, Throttled),
            ("ThrottlingException", 400, Throttled),
            ("TooManyRequestsException", 429, Throttled),
            ("RequestLimitExceeded", 503, Throttled),
            ("SomethingNew", 429, Throttled),
            ("ServiceUnavailable", 503, Temporary),
            ("InternalFailure", 500, Temporary),
            ("InvalidClientTokenId", 403, Temporary),
            ("ExpiredToken", 403, Temporary),
            ("SignatureDoesNotMatch", 403, Temporary),
            ("RequestExpired", 400, Temporary),
        ] {
            assert_eq!(classify(Some(code), status), kind, "{code} {status}");
        }
        for (status, kind) in [(429, Throttled), (403, Temporary), (502, Temporary)] {
            assert_eq!(classify(None, status), kind, "{status}");
        }
    }

    #[test]
    fn a_signature_error_never_quotes_the_request() {
        let quoted = "The Canonical String should have been 'POST x-amz-security-token:SECRET'";
        let failure = refused(
            Some("SignatureDoesNotMatch"),
            Some(quoted),
            403,
            Some(&key()),
        );
        assert!(!failure.message.contains("SECRET"), "{failure}");
        assert!(failure.message.contains("clock"), "{failure}");
    }

    #[test]
    fn durations_that_are_too_long_come_with_advice() {
        let chaining = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining";
        let failure = refused(Some("ValidationError"), Some(chaining), 400, Some(&key()));
        assert!(failure.message.contains("3600 s or less"), "{failure}");
        let maximum =
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        let failure = refused(Some("ValidationError"), Some(maximum), 400, Some(&key()));
        assert!(
            failure.message.ends_with("the requested duration is 7200 s: lower it, or raise MaxSessionDuration of role reader"),
            "{failure}"
        );
    }

    /// STS's messages and their causes.
    #[test]
    #[allow(clippy::too_many_lines, reason = "a table of cases")]
    fn each_refusal_has_its_cause() {
        use RefusalCause::*;
        let user = "User: arn:aws:sts::111122223333:assumed-role/node/i-0abc is not authorized to perform:";
        let on = "on resource: arn:aws:iam::123456789012:role/team/reader";
        let assume = format!("{user} sts:AssumeRole {on}");
        for (code, message, cause) in [
            ("AccessDenied", assume.clone(), Some(Untrusted { external_id: false })),
            (
                "AccessDenied",
                format!("{assume} because no resource-based policy allows the sts:AssumeRole action"),
                Some(Untrusted { external_id: false }),
            ),
            (
                "AccessDenied",
                format!("{assume} because no identity-based policy allows the sts:AssumeRole action"),
                Some(IdentityPolicy),
            ),
            (
                "AccessDenied",
                format!("{assume} because no permissions boundary allows the sts:AssumeRole action"),
                Some(IdentityPolicy),
            ),
            (
                "AccessDenied",
                format!("{user} sts:TagSession {on} because no identity-based policy allows the sts:TagSession action"),
                Some(IdentityPolicy),
            ),
            (
                "AccessDenied",
                format!("{assume} with an explicit deny in a service control policy"),
                Some(ExplicitDeny),
            ),
            (
                "AccessDenied",
                format!("{user} sts:TagSession {on}"),
                Some(Missing(MissingAction::TagSession)),
            ),
            (
                "AccessDenied",
                format!("{user} sts:SetSourceIdentity {on}"),
                Some(Missing(MissingAction::SetSourceIdentity)),
            ),
            (
                "ValidationError",
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.".into(),
                Some(MaxSessionDuration { requested: 7200 }),
            ),
            (
                "ValidationError",
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining".into(),
                Some(RoleChaining { requested: 7200 }),
            ),
            (
                "PackedPolicyTooLarge",
                "Packed size of session tags consumes 112% of allotted space.".into(),
                Some(TooLarge),
            ),
            ("MalformedPolicyDocument", "Syntax errors in policy.".into(), Some(MalformedPolicy)),
            (
                "InvalidParameterValue",
                "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.".into(),
                Some(TransitiveTag),
            ),
            (
                "RegionDisabledException",
                "STS is not activated in this region for account: 123456789012.".into(),
                Some(RegionDisabled),
            ),
            ("ValidationError", "1 validation error detected".into(), None),
            ("InternalFailure", "sts:TagSession".into(), None),
        ] {
            let failure = refused(Some(code), Some(&message), 400, Some(&key()));
            assert_eq!(failure.cause, cause, "{message}");
            // The owner learns nothing about rolegate's own session, nor about a missing external
            // ID.
            let told = failure.owner_message(&key().role);
            for word in ["111122223333", "assumed-role", "external ID"] {
                assert!(!told.contains(word), "{told}");
            }
            assert!(told.contains(&format!("({code})")), "{told}");
            let advised = !told.contains("rolegate's log") && !told.contains("for now");
            assert_eq!(advised, cause.is_some(), "{told}");
        }
        let with_id = SessionKey {
            external_id: Some("customer-a".into()),
            ..key()
        };
        let failure = refused(Some("AccessDenied"), Some(&assume), 403, Some(&with_id));
        let told = failure.owner_message(&with_id.role);
        assert!(
            told.ends_with("to assume it with this pod's external ID"),
            "{told}"
        );
        assert!(!told.contains("customer-a"), "{told}");
        // A refusal of our own identity is not a refusal of a session.
        assert_eq!(
            refused(Some("AccessDenied"), Some(&assume), 403, None).cause,
            None
        );
    }

    #[test]
    fn too_large_sessions_say_by_how_much() {
        for (message, told) in [
            (
                "Packed size of session tags consumes 112% of allotted space.",
                "use 112 % of",
            ),
            (
                "Packed policy consumes 104% of allotted space, please use smaller policy.",
                "104 %",
            ),
            ("It is too large.", "use more than the packed size"),
            ("%", "use more than the packed size"),
        ] {
            let failure = refused(
                Some("PackedPolicyTooLarge"),
                Some(message),
                400,
                Some(&key()),
            );
            assert_eq!(failure.kind, FailureKind::Final);
            assert!(failure.message.contains(told), "{failure}");
        }
    }

    #[test]
    fn messages_are_bounded_and_on_one_line() {
        let long = format!("a\nb\u{1b}[31m{}", "é".repeat(1000));
        for code in ["AccessDenied", "InternalFailure"] {
            let failure = refused(Some(code), Some(&long), 400, Some(&key()));
            assert!(failure.message.chars().count() <= MAX_MESSAGE);
            assert!(!failure.message.chars().any(char::is_control));
        }
        let failure = refused(Some("AccessDenied"), Some(&long), 403, Some(&key()));
        assert!(failure.message.ends_with("to assume it"), "{failure}");
        let marked = SessionLimits {
            tags: [("team", "payments")].into_iter().collect(),
            source_identity: Some("default.api".into()),
            ..SessionLimits::default()
        };
        let marked = SessionKey {
            limits: Some(marked.into()),
            target: None,
            ..key()
        };
        for code in ["AccessDenied", "PackedPolicyTooLarge"] {
            let failure = refused(Some(code), Some(&long), 403, Some(&marked));
            assert!(failure.message.chars().count() <= MAX_MESSAGE);
            assert!(!failure.message.ends_with('…'), "{failure}");
        }
        let failure = refused(Some(&"x".repeat(1000)), None, 403, None);
        assert!(failure.code.chars().count() <= MAX_CODE);
    }
}
