//! Who is at the other end of a connection, and until when that counts.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use jiff::Timestamp;
use rolegate_kube::token_review::{Reviewed, claimed};
use rolegate_proto::wire::MAX_TOKEN;
use rolegate_runtime::peer::PeerKey;
use tokio::time::timeout;
use tonic::Status;
use tracing::debug;
use zeroize::Zeroizing;

use super::Connection;
use crate::identity::{Proven, Refused, by_certificate, by_token};
use crate::reviewer::ReviewError;

/// Within which an agent shows its token again.
pub(super) const PROOF: Duration = Duration::from_secs(600);
/// How long it may take until the watch shows the agent's pod.
const PROVING: Duration = Duration::from_secs(5);
/// The time until a token is reviewed again if the API server was unavailable.
const AGAIN: Duration = Duration::from_secs(20);

/// Why nothing is proven.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unproven {
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nothing is known of the token.
    #[error(transparent)]
    Unasked(#[from] ReviewError),
}

impl Connection {
    /// Whether this connection's other end is the agent of node `claimed`.
    pub(super) async fn prove(&self, claimed: &str, token: &str) -> Result<Proven, Unproven> {
        let parts = &self.service.parts;
        let proven = match token.is_empty() {
            true => by_certificate(&self.nodes, self.until, claimed)?,
            false => self.prove_by_token(claimed, token).await?,
        };
        // A certificate was good when its connection was made, which may be long ago.
        let now = parts.clock.now();
        if proven.until.is_some_and(|until| until <= now) {
            return Err(Refused::Ended.into());
        }
        debug!(node = %proven.node, peer = %self.peer, broker = parts.name, "agent proven");
        Ok(proven)
    }

    async fn prove_by_token(&self, node: &str, token: &str) -> Result<Proven, Unproven> {
        let parts = &self.service.parts;
        if token.len() > MAX_TOKEN {
            return Err(Refused::Unknown.into());
        }
        // A token's own claims prove nothing. But if they would be insufficient even when true, the
        // API server need not be asked, which anyone could otherwise make the broker do.
        let said = claimed(token).ok_or(Refused::Unknown)?;
        let unchecked = self.compare(&said, node).await?;
        if unchecked
            .until
            .is_some_and(|until| until <= parts.clock.now())
        {
            return Err(Refused::Ended.into());
        }
        let peer = match parts.agents.has_address(self.peer) {
            true => PeerKey::exactly(self.peer),
            false => PeerKey::of(self.peer),
        };
        let audience = &parts.agents.account().audience;
        let reviewed = parts.reviewer.review(peer, token, audience).await?;
        Ok(self.compare(&reviewed, node).await?)
    }

    /// Returns whether a token with this review belongs to the agent of `node`. Waits briefly, as
    /// the broker's watch may lag behind an agent that has just started.
    async fn compare(&self, known: &Reviewed, node: &str) -> Result<Proven, Refused> {
        let agents = &self.service.parts.agents;
        let mut changes = agents.changes();
        let look = || {
            let uid = known.pod_uid.as_deref();
            let pod = uid.and_then(|uid| agents.get(uid));
            by_token(known, agents.account(), node, self.peer, pod.as_deref())
        };
        let waiting = async {
            loop {
                match look() {
                    Err(refused) if refused.may_pass() => {
                        if changes.changed().await.is_err() {
                            return Err(refused);
                        }
                    }
                    settled => return settled,
                }
            }
        };
        match timeout(PROVING, waiting).await {
            Ok(settled) => settled,
            Err(_) => look(),
        }
    }

    /// What somebody is told who has proven nothing, or whose proof counts no longer. Anybody can
    /// have this said, so it is no line of the log.
    pub(super) fn unproven(&self, why: &Unproven) -> Status {
        debug!(peer = %self.peer, reason = %why, "an agent is refused");
        match why {
            Unproven::Refused(refused) => {
                self.service.parts.metrics.refused(refused.reason());
                Status::unauthenticated(refused.to_string())
            }
            Unproven::Unasked(ReviewError::Busy) => {
                Status::unavailable("the broker looks at too many tokens, try again")
            }
            Unproven::Unasked(ReviewError::Api(_)) => Status::unavailable(
                "the broker cannot ask the API server about the token, try again",
            ),
        }
    }
}

/// A token, the time of its review, and the result.
type Look = (Zeroizing<String>, Timestamp, Result<Proven, Unproven>);

/// The proofs of a stream.
///
/// What was proven counts until its own end. A token must be shown again before that, for it may
/// have been taken back; where nobody can be asked about one that was shown, it is looked at again
/// and again, and what was proven before goes on counting.
pub(super) struct Proofs<'c> {
    connection: &'c Connection,
    /// Everything is bound to the node and pod that were proven first.
    first: Proven,
    /// When it ends unless a token is shown again.
    again: Timestamp,
    /// When it ends at the latest.
    until: Timestamp,
    looking: Option<BoxFuture<'c, Look>>,
    /// What was shown since.
    newer: Option<Zeroizing<String>>,
}

impl<'c> Proofs<'c> {
    pub(super) fn new(connection: &'c Connection, first: &Proven) -> Self {
        let mut proofs = Self {
            connection,
            first: first.clone(),
            again: Timestamp::MIN,
            until: Timestamp::MIN,
            looking: None,
            newer: None,
        };
        proofs.count(first);
        proofs
    }

    fn count(&mut self, proven: &Proven) {
        let now = self.connection.service.parts.clock.now();
        let again = now.checked_add(PROOF).unwrap_or(Timestamp::MAX);
        (self.again, self.until) = match (&proven.pod_uid, proven.until) {
            // Of a certificate.
            (None, Some(until)) => (until, until),
            (Some(_), Some(until)) => (again.min(until), until),
            (_, None) => (again, again),
        };
    }

    /// The agent shows its token again.
    pub(super) fn show(&mut self, token: Zeroizing<String>) {
        match self.looking {
            Some(_) => self.newer = Some(token),
            None => self.look(token, Timestamp::MIN),
        }
    }

    fn look(&mut self, token: Zeroizing<String>, when: Timestamp) {
        let (connection, node) = (self.connection, self.first.node.clone());
        let look = async move {
            let clock = &connection.service.parts.clock;
            clock.sleep_until(when).await;
            let looked = clock.now();
            let proven = connection.prove(&node, &token).await;
            (token, looked, proven)
        };
        self.looking = Some(look.boxed());
    }

    /// Waits until they count no longer, and says why. Nothing is lost where that is given up.
    pub(super) async fn end(&mut self) -> Unproven {
        loop {
            let due = match self.looking {
                Some(_) => self.until,
                None => self.again,
            };
            tokio::select! {
                biased;
                () = self.connection.service.parts.clock.sleep_until(due) => {
                    return Refused::Ended.into();
                }
                Some((token, looked, proven)) = OptionFuture::from(self.looking.as_mut()) => {
                    self.looking = None;
                    let newer = self.newer.take();
                    match proven {
                        Ok(proven) if proven.node != self.first.node => return Refused::Node.into(),
                        Ok(proven) if proven.pod_uid != self.first.pod_uid => {
                            return Refused::Gone.into();
                        }
                        Ok(proven) => {
                            self.count(&proven);
                            if let Some(newer) = newer {
                                self.look(newer, Timestamp::MIN);
                            }
                        }
                        Err(Unproven::Unasked(_)) => {
                            let again = looked.checked_add(AGAIN).unwrap_or(Timestamp::MAX);
                            self.look(newer.unwrap_or(token), again);
                        }
                        Err(refused) => return refused,
                    }
                }
            }
        }
    }
}
