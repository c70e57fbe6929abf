//! A role's trust policy and settings.

use super::keys::Caller;
use super::{MAX_CHAINED_DURATION, MAX_DURATION, Refusal, StsCall, StsFailure, take};

/// A role. By default every caller may assume it.
#[derive(Debug, Default)]
pub(super) struct Role {
    /// No caller may assume it.
    pub(super) denied: bool,
    /// ARNs of the users and roles that may assume it. Empty: all callers.
    pub(super) trusted: Vec<String>,
    /// The policy lacks `sts:TagSession`.
    pub(super) tagging_denied: bool,
    /// The policy lacks `sts:SetSourceIdentity`.
    pub(super) source_identity_denied: bool,
    pub(super) external_id: Option<String>,
    pub(super) max_duration: Option<u32>,
    pub(super) failure: Option<StsFailure>,
}

impl Role {
    pub(super) fn check(
        &mut self,
        call: &StsCall,
        caller: &Caller,
        duration: u32,
    ) -> Result<(), Refusal> {
        if let Some(failure) = take(&mut self.failure) {
            return Err(failure.into());
        }
        let denied = |action| Err(Refusal::access_denied(caller, action, &call.role_arn));
        let wrong_id = self.external_id.is_some() && self.external_id != call.external_id;
        let strange = !self.trusted.is_empty() && !self.trusted.contains(&caller.principal());
        if self.denied || wrong_id || strange {
            return denied("AssumeRole");
        }
        // Tags inherited in a chain need the permission too.
        if self.tagging_denied && !(call.tags.is_empty() && caller.transitive_tags.is_empty()) {
            return denied("TagSession");
        }
        if self.source_identity_denied && call.source_identity.is_some() {
            return denied("SetSourceIdentity");
        }
        if duration > self.max_duration.unwrap_or(MAX_DURATION) {
            let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for \
                           this role.";
            return Err(Refusal::new(400, "ValidationError", message));
        }
        Ok(())
    }
}

/// Validates role chaining: a role's session that assumes another role.
pub(super) fn check_chaining(
    call: &StsCall,
    caller: &Caller,
    duration: u32,
) -> Result<(), Refusal> {
    if caller.is_role() && duration > MAX_CHAINED_DURATION {
        let message = "The requested DurationSeconds exceeds the 1 hour session limit for roles \
                       assumed by role chaining.";
        return Err(Refusal::new(400, "ValidationError", message));
    }
    let inherited = |key: &String| {
        let mut tags = caller.transitive_tags.iter();
        tags.any(|(known, _)| known.eq_ignore_ascii_case(key))
    };
    if call.tags.iter().any(|(key, _)| inherited(key)) {
        let message = "One of the specified transitive tag keys can't be set because it conflicts \
                       with a transitive tag key from the calling session.";
        return Err(Refusal::new(400, "InvalidParameterValue", message));
    }
    let percent = call
        .packed_policy_size(&caller.transitive_tags)
        .unwrap_or_default();
    if percent > 100 {
        let what = match (&call.policy, call.policy_arns.is_empty()) {
            (None, true) => "Packed size of session tags",
            _ => "Packed policy",
        };
        let message = format!("{what} consumes {percent}% of allotted space.");
        return Err(Refusal::new(400, "PackedPolicyTooLarge", message));
    }
    Ok(())
}
