//! The caller of a request: the pod that its token is bound to.

use std::sync::Arc;

use jiff::Timestamp;
use rolegate_authorizer::pod::PodEntry;
use rolegate_core::workload::Workload;
use rolegate_kube::service_account_keys::FoundKey;
use rolegate_service_account_token::{Identity, TokenError, TokenRequirements, UnverifiedToken};

use super::ContainerCredentialsServer;
use super::reply::{Code, Reply};
use super::verified::{TokenHash, VerifiedToken};
use crate::credentials::{Attempt, Refusal};
use crate::metrics::Outcome;

/// The reason why a verified token is not that of a pod of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotBound {
    /// The pod's name, namespace or ServiceAccount differ.
    #[error(
        "the token's pod has another name, namespace or ServiceAccount in this cluster: request a \
         new token"
    )]
    Differs,
    /// The token or its pod is of another node.
    #[error(
        "the token belongs to a pod on another node: call the endpoint of the node that the pod is on"
    )]
    OtherNode,
}

/// Checks that the pod with the token's UID is the pod that the token names, on the node `here`.
pub(super) fn check_bound(identity: &Identity, pod: &Workload, here: &str) -> Result<(), NotBound> {
    let is_named = identity.pod.uid == pod.uid
        && identity.pod.name == pod.name
        && identity.namespace == pod.namespace
        && identity.service_account.name == pod.service_account;
    if !is_named {
        return Err(NotBound::Differs);
    }
    // A pod never changes its node, so a token without the claim is as good as one with it.
    let is_here = pod.node.as_deref() == Some(here);
    let claims_here = identity
        .node
        .as_ref()
        .is_none_or(|node| &*node.name == here);
    if is_here && claims_here {
        Ok(())
    } else {
        Err(NotBound::OtherNode)
    }
}

impl ContainerCredentialsServer {
    /// Returns a token that was verified before, with the keys that are still published.
    pub(super) fn known_token(
        &self,
        hash: &TokenHash,
        now: Timestamp,
    ) -> Option<Arc<VerifiedToken>> {
        let generation = self.keys.published()?.generation;
        self.tokens.get(hash, generation, now)
    }

    /// Verifies a token with a key, and keeps it.
    pub(super) fn verify(
        &self,
        token: &UnverifiedToken<'_>,
        hash: TokenHash,
        found: &FoundKey,
        now: Timestamp,
    ) -> Result<Arc<VerifiedToken>, TokenError> {
        let serves_audience = |audience: &str| {
            audience == &*self.options.audience || self.credentials.decisions.has_audience(audience)
        };
        let required = TokenRequirements {
            issuer: &found.published.issuer,
            serves_audience: &serves_audience,
            now,
        };
        let identity = token.verify(&found.key, &required)?;
        let verified = Arc::new(VerifiedToken {
            identity,
            generation: found.published.generation,
        });
        self.tokens.insert(hash, verified.clone());
        Ok(verified)
    }

    /// Returns the live pod that a verified token is bound to.
    pub(super) fn bound_pod(
        &self,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<Arc<PodEntry>, Attempt<Reply>> {
        let credentials = &self.credentials;
        credentials
            .check_ready(now)
            .map_err(|refusal| Attempt::Wait(refusal.into()))?;
        // Otherwise an account that is not loaded yet would look like a deleted one.
        if !credentials.decisions.has_accounts() {
            return Err(Attempt::Wait(Refusal::NotSynced.into()));
        }
        // The token may have expired while the request waited.
        if now >= identity.expires_at {
            let expired = TokenError::from(rolegate_service_account_token::ClaimError::Expired);
            return Err(Attempt::Done(expired.into()));
        }
        // The kubelet may start the pod before the watch reports it.
        let Some(entry) = credentials.pod_table.pod(&identity.pod.uid) else {
            return Err(Attempt::Wait(Refusal::UnknownPod.into()));
        };
        if let Err(reason) = check_bound(identity, &entry.workload, &self.options.node) {
            let code = Code::AccessDenied;
            let reply = Reply::refuse(Outcome::BadToken, code, reason.to_string());
            return Err(Attempt::Done(reply));
        }
        // A ServiceAccount that was deleted and created again under the same name.
        let uid = &identity.service_account.uid;
        if !credentials.decisions.may_be_account(&entry, uid) {
            let reason = NotBound::Differs.to_string();
            let reply = Reply::refuse(Outcome::BadToken, Code::AccessDenied, reason);
            return Err(Attempt::Done(reply));
        }
        Ok(entry)
    }

    /// Returns the audience by which the role is chosen; `None` for the endpoint's default audience.
    pub(super) fn audience_of<'i>(&self, identity: &'i Identity) -> Option<&'i str> {
        let audience = &*identity.audience;
        (audience != &*self.options.audience).then_some(audience)
    }
}
