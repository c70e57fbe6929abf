//! Authentication of streams, and its expiry.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use jiff::Timestamp;
use rolegate_kube::token_review::{Reviewed, claimed};
use rolegate_proto::wire::MAX_TOKEN;
use rolegate_runtime::peer::PeerKey;
use tokio::time::timeout;
use tonic::Status;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::Connection;
use crate::identity::{AuthenticatedNode, AuthnRejection, by_certificate, by_token};
use crate::token_reviewer::ReviewError;

/// Interval within which an agent must present its token again.
pub(super) const REAUTH_INTERVAL: Duration = Duration::from_secs(600);
/// Time to wait until the watch reports the agent's pod.
const POD_WAIT: Duration = Duration::from_secs(5);
/// Time after which a token is reviewed again if the API server was unavailable.
const REVIEW_RETRY_INTERVAL: Duration = Duration::from_secs(20);

/// An error that prevents authentication.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthnError {
    #[error(transparent)]
    AuthnRejection(#[from] AuthnRejection),
    /// The token could not be reviewed.
    #[error(transparent)]
    Review(#[from] ReviewError),
}

impl Connection {
    /// Checks that the peer of this connection is the agent of node `claimed`.
    pub(super) async fn authenticate(
        &self,
        claimed: &str,
        token: &str,
    ) -> Result<AuthenticatedNode, AuthnError> {
        let parts = &self.service.parts;
        let authenticated = if token.is_empty() {
            by_certificate(&self.nodes, self.until, claimed)?
        } else {
            self.authenticate_by_token(claimed, token).await?
        };
        // The certificate was valid when the connection was made, which may be long ago.
        let now = parts.clock.now();
        if authenticated.until.is_some_and(|until| until <= now) {
            return Err(AuthnRejection::Ended.into());
        }
        debug!(node = %authenticated.node, peer = %self.peer, broker = parts.name, "agent authenticated");
        Ok(authenticated)
    }

    async fn authenticate_by_token(
        &self,
        node: &str,
        token: &str,
    ) -> Result<AuthenticatedNode, AuthnError> {
        let parts = &self.service.parts;
        if token.len() > MAX_TOKEN {
            return Err(AuthnRejection::Unknown.into());
        }
        // A token's own claims prove nothing. But if they would be insufficient even when true, the
        // API server need not be asked, which anyone could otherwise make the broker do.
        let claims = claimed(token).ok_or(AuthnRejection::Unknown)?;
        let unchecked = self.compare(&claims, node).await?;
        if unchecked
            .until
            .is_some_and(|until| until <= parts.clock.now())
        {
            return Err(AuthnRejection::Ended.into());
        }
        let peer = if parts.agents.has_address(self.peer) {
            PeerKey::exactly(self.peer)
        } else {
            PeerKey::of(self.peer)
        };
        let audience = &parts.agents.account().audience;
        let reviewed = parts.token_reviewer.review(peer, token, audience).await?;
        Ok(self.compare(&reviewed, node).await?)
    }

    /// Checks that a token with this review belongs to the agent of `node`. Waits briefly, as the
    /// broker's watch may lag behind an agent that has just started.
    async fn compare(
        &self,
        review: &Reviewed,
        node: &str,
    ) -> Result<AuthenticatedNode, AuthnRejection> {
        let agents = &self.service.parts.agents;
        let mut changes = agents.changes();
        let start_review = || {
            let uid = review.pod_uid.as_deref();
            let pod = uid.and_then(|uid| agents.get(uid));
            by_token(review, agents.account(), node, self.peer, pod.as_deref())
        };
        let waiting = async {
            loop {
                match start_review() {
                    Err(refused) if refused.is_retriable() => {
                        if changes.changed().await.is_err() {
                            return Err(refused);
                        }
                    }
                    result => return result,
                }
            }
        };
        match timeout(POD_WAIT, waiting).await {
            Ok(result) => result,
            Err(_) => start_review(),
        }
    }

    /// Returns the status for a peer that is not authenticated, or no longer is. Any peer can cause
    /// it at any rate, so few of them are logged at a visible level.
    pub(super) fn reject(&self, why: &AuthnError) -> Status {
        // Nothing that the peer sent is logged.
        if self.service.may_log_rejection(self.peer) {
            warn!(
                peer = %self.peer, reason = %why,
                "agent authentication failed; further failures of this address in the next minute are logged at level debug"
            );
        } else {
            debug!(peer = %self.peer, reason = %why, "agent authentication failed");
        }
        match why {
            AuthnError::AuthnRejection(refused) => {
                self.service.parts.metrics.refused(refused.reason());
                Status::unauthenticated(refused.to_string())
            }
            AuthnError::Review(ReviewError::Busy) => {
                Status::unavailable("the broker is reviewing too many tokens, try again")
            }
            AuthnError::Review(ReviewError::Api(_)) => Status::unavailable(
                "the broker cannot review the token with the API server, try again",
            ),
        }
    }
}

/// A token, the time of its review, and the result.
type ReviewResult = (
    Zeroizing<String>,
    Timestamp,
    Result<AuthenticatedNode, AuthnError>,
);

/// Tracks the authentication of a stream.
///
/// Credentials are valid until they expire. An agent must present its token again before
/// [`REAUTH_INTERVAL`] ends, since the token may have been revoked. While the API server cannot
/// review a newer token, the review is retried and the earlier authentication remains valid.
pub(super) struct Reauthentication<'c> {
    connection: &'c Connection,
    /// The node and pod that authenticated first. Later credentials must match them.
    first: AuthenticatedNode,
    /// Time at which the stream ends unless a token is presented again.
    again: Timestamp,
    /// Time at which the stream ends at the latest.
    until: Timestamp,
    pending_review: Option<BoxFuture<'c, ReviewResult>>,
    /// The token that was presented last and is not validated yet.
    newer: Option<Zeroizing<String>>,
}

impl<'c> Reauthentication<'c> {
    pub(super) fn new(connection: &'c Connection, first: &AuthenticatedNode) -> Self {
        let mut reauth = Self {
            connection,
            first: first.clone(),
            again: Timestamp::MIN,
            until: Timestamp::MIN,
            pending_review: None,
            newer: None,
        };
        reauth.count(first);
        reauth
    }

    fn count(&mut self, authenticated: &AuthenticatedNode) {
        let now = self.connection.service.parts.clock.now();
        let again = now.checked_add(REAUTH_INTERVAL).unwrap_or(Timestamp::MAX);
        (self.again, self.until) = match (&authenticated.pod_uid, authenticated.until) {
            // The peer authenticated with a certificate.
            (None, Some(until)) => (until, until),
            (Some(_), Some(until)) => (again.min(until), until),
            (_, None) => (again, again),
        };
    }

    /// Records a token that the agent presented again.
    pub(super) fn show(&mut self, token: Zeroizing<String>) {
        match self.pending_review {
            Some(_) => self.newer = Some(token),
            None => self.start_review(token, Timestamp::MIN),
        }
    }

    fn start_review(&mut self, token: Zeroizing<String>, when: Timestamp) {
        let (connection, node) = (self.connection, self.first.node.clone());
        let start_review = async move {
            let clock = &connection.service.parts.clock;
            clock.sleep_until(when).await;
            let reviewed_at = clock.now();
            let authenticated = connection.authenticate(&node, &token).await;
            (token, reviewed_at, authenticated)
        };
        self.pending_review = Some(start_review.boxed());
    }

    /// Waits until the authentication expires, and returns the reason. Cancel safe.
    pub(super) async fn end(&mut self) -> AuthnError {
        loop {
            let due = match self.pending_review {
                Some(_) => self.until,
                None => self.again,
            };
            tokio::select! {
                biased;
                () = self.connection.service.parts.clock.sleep_until(due) => {
                    return AuthnRejection::Ended.into();
                }
                Some((token, reviewed_at, authenticated)) = OptionFuture::from(self.pending_review.as_mut()) => {
                    self.pending_review = None;
                    let newer = self.newer.take();
                    match authenticated {
                        Ok(authenticated) if authenticated.node != self.first.node => return AuthnRejection::Node.into(),
                        Ok(authenticated) if authenticated.pod_uid != self.first.pod_uid => {
                            return AuthnRejection::Gone.into();
                        }
                        Ok(authenticated) => {
                            self.count(&authenticated);
                            if let Some(newer) = newer {
                                self.start_review(newer, Timestamp::MIN);
                            }
                        }
                        Err(AuthnError::Review(_)) => {
                            let again = reviewed_at.checked_add(REVIEW_RETRY_INTERVAL).unwrap_or(Timestamp::MAX);
                            self.start_review(newer.unwrap_or(token), again);
                        }
                        Err(refused) => return refused,
                    }
                }
            }
        }
    }
}
