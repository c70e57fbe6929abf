//! A role's trust policy and settings.

use std::collections::HashMap;

use super::keys::Caller;
use super::trust_policy::{Principal, Request, TrustPolicy};
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
    /// The trust policy. `None`: every caller may assume the role, and no web identity.
    pub(super) policy: Option<TrustPolicy>,
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
        if let Some(action) = self.denied_by_policy(call, caller) {
            return denied(action);
        }
        self.check_duration(duration)
    }

    /// Returns the first action of the call that the trust policy does not allow.
    fn denied_by_policy(&self, call: &StsCall, caller: &Caller) -> Option<&'static str> {
        let policy = self.policy.as_ref()?;
        let tags = call.tags.iter().map(|(key, value)| {
            let key = format!("aws:requesttag/{}", key.to_ascii_lowercase());
            (key, value.clone())
        });
        let external_id = call.external_id.iter();
        let external_id = external_id.map(|id| ("sts:externalid".to_owned(), id.clone()));
        let request = Request {
            principal: Principal::Aws(&caller.principal()),
            context: tags.chain(external_id).collect(),
        };
        let tagged = !(call.tags.is_empty() && caller.transitive_tags.is_empty());
        let actions = [
            ("AssumeRole", true),
            ("TagSession", tagged),
            ("SetSourceIdentity", call.source_identity.is_some()),
        ];
        actions.into_iter().find_map(|(action, needed)| {
            (needed && !policy.allows(&format!("sts:{action}"), &request)).then_some(action)
        })
    }

    /// Checks a call of `AssumeRoleWithWebIdentity` with a valid token.
    pub(super) fn check_web_identity(
        &mut self,
        provider_arn: &str,
        context: HashMap<String, String>,
        duration: u32,
    ) -> Result<(), Refusal> {
        if let Some(failure) = take(&mut self.failure) {
            return Err(failure.into());
        }
        let request = Request {
            principal: Principal::Federated(provider_arn),
            context,
        };
        let action = "sts:AssumeRoleWithWebIdentity";
        let allowed = self.policy.as_ref();
        if self.denied || !allowed.is_some_and(|policy| policy.allows(action, &request)) {
            let message = format!("Not authorized to perform {action}");
            return Err(Refusal::new(403, "AccessDenied", message));
        }
        self.check_duration(duration)
    }

    fn check_duration(&self, duration: u32) -> Result<(), Refusal> {
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
