//! One authenticated stream: sends the subscription of its node, and takes the agent's messages.

use std::mem::take;

use rolegate_authorizer::pod::RoleOf;
use rolegate_authorizer::recorder::RequestOutcome;
use rolegate_proto::v1::{self, from_agent, outcome, to_agent};
use rolegate_proto::wire::MAX_OUTCOMES;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};
use tracing::info;
use zeroize::Zeroizing;

use super::authn::{AuthnError, Reauthentication};
use super::{Connection, HEARTBEAT_INTERVAL, Registration, message};
use crate::identity::AuthnRejection;

/// One authenticated stream.
pub(super) struct AgentStream<'c> {
    connection: &'c Connection,
    reauth: Reauthentication<'c>,
    /// `true` if the agent authenticated with a token.
    by_token: bool,
    index: Registration,
    /// `true` once the agent serves pods from this stream.
    active: bool,
    /// The time from which the node may send more.
    paused_until: Option<Instant>,
}

impl<'c> AgentStream<'c> {
    /// Creates the state of a stream that is not active yet.
    pub(super) fn new(
        connection: &'c Connection,
        reauth: Reauthentication<'c>,
        by_token: bool,
        index: Registration,
    ) -> Self {
        Self {
            connection,
            reauth,
            by_token,
            index,
            active: false,
            paused_until: None,
        }
    }

    /// Serves the stream until it ends.
    pub(super) async fn run(
        mut self,
        mut incoming: Streaming<v1::FromAgent>,
        sender: mpsc::Sender<Result<Box<v1::ToAgent>, Status>>,
    ) -> Result<(), Status> {
        let parts = &self.connection.service.parts;
        let subscription = self.index.subscription.clone();
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        let mut heartbeat_due = false;
        let mut ending = std::pin::pin!(parts.drain.begun());
        loop {
            let has_changes = self.active && subscription.has_changes();
            let paused_until = self.paused_until;
            tokio::select! {
                // The end of the stream takes precedence over messages from the agent.
                biased;
                () = subscription.closed.cancelled() => {
                    return Err(self.closed(&AuthnRejection::Gone.into()));
                }
                () = &mut ending => {
                    return Err(Status::unavailable("this broker is shutting down"));
                }
                why = self.reauth.end() => return Err(self.closed(&why)),
                _ = heartbeat.tick() => heartbeat_due = true,
                permit = sender.reserve(), if has_changes || heartbeat_due => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if take(&mut heartbeat_due) {
                        permit.send(Ok(message(to_agent::Body::Heartbeat(self.heartbeat()))));
                    } else if let Some(update) = subscription.take(parts.recorder.ledger(), parts.clock.now()) {
                        permit.send(Ok(message(to_agent::Body::Update(update))));
                    }
                }
                () = sleep_until(paused_until.unwrap_or_else(Instant::now)), if paused_until.is_some() => {
                    self.paused_until = None;
                }
                message = incoming.message(), if paused_until.is_none() => {
                    let Some(body) = message?.map(|it| it.body) else {
                        return Ok(());
                    };
                    self.receive(body)?;
                }
                () = subscription.changed(), if self.active => {}
            }
        }
    }

    /// Takes a message of the agent. `None` is one of a later version that this broker does not
    /// know.
    fn receive(&mut self, body: Option<from_agent::Body>) -> Result<(), Status> {
        let node = &self.index.subscription.node;
        let rate = &self.connection.service.messages;
        let wait = rate.charge(node, cost(body.as_ref()));
        self.paused_until = (!wait.is_zero()).then(|| Instant::now() + wait);
        match body {
            Some(from_agent::Body::Reauthenticate(mut authn)) if self.by_token => {
                self.reauth.show(Zeroizing::new(take(&mut authn.token)));
            }
            Some(from_agent::Body::Activate(_)) if !self.active => {
                self.connection.may_activate(node)?;
                self.active = true;
                self.index.activate();
            }
            Some(from_agent::Body::PrioritizeSession(request)) => {
                self.index.subscription.prioritize(request.session);
            }
            Some(from_agent::Body::Outcomes(outcomes)) => self.record(&outcomes.outcomes)?,
            None => {}
            Some(_) => {
                return Err(Status::invalid_argument("this message is not allowed here"));
            }
        }
        Ok(())
    }

    fn record(&self, outcomes: &[v1::Outcome]) -> Result<(), Status> {
        if outcomes.len() > MAX_OUTCOMES {
            return Err(Status::invalid_argument("too many outcomes in one message"));
        }
        let parts = &self.connection.service.parts;
        let now = parts.clock.now();
        for report in outcomes {
            let outcome = match &report.result {
                Some(outcome::Result::Denied(_)) => RequestOutcome::Denied,
                Some(outcome::Result::Audited(_)) => RequestOutcome::Audited,
                Some(outcome::Result::Failing(_)) => RequestOutcome::Failing,
                Some(outcome::Result::Served(id)) => RequestOutcome::Served {
                    access_key_id: id.as_str().into(),
                },
                None => continue,
            };
            let role_of = match &report.service_account {
                None => RoleOf::Pod,
                Some(role) => RoleOf::ServiceAccount {
                    audience: role.audience.as_deref().map(Into::into),
                },
            };
            let subscription = &self.index.subscription;
            let outcome = (&role_of, &outcome);
            subscription.record(&report.pod_uid, outcome, &parts.recorder, now);
        }
        Ok(())
    }

    fn heartbeat(&self) -> v1::Heartbeat {
        let age = self.connection.service.parts.freshness.age();
        v1::Heartbeat {
            staleness_ms: age
                .and_then(|age| u64::try_from(age.as_millis()).ok())
                .unwrap_or(u64::MAX),
        }
    }

    /// Logs the end of the stream, and returns the status for the agent.
    fn closed(&self, why: &AuthnError) -> Status {
        let (node, peer) = (&self.index.subscription.node, self.connection.peer);
        info!(%node, %peer, reason = %why, "agent stream closed");
        self.connection.reject(why)
    }
}

/// Returns the cost of a message in its node's rate.
fn cost(body: Option<&from_agent::Body>) -> u32 {
    match body {
        Some(from_agent::Body::Outcomes(outcomes)) => {
            u32::try_from(outcomes.outcomes.len()).map_or(u32::MAX, |all| all.max(1))
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_cost_as_much_as_messages() {
        let outcomes = |count: usize| {
            let outcomes = vec![v1::Outcome::default(); count];
            cost(Some(&from_agent::Body::Outcomes(v1::Outcomes { outcomes })))
        };
        assert_eq!([0, 1, 50].map(outcomes), [1, 1, 50]);
        let activate = from_agent::Body::Activate(v1::Activate {});
        assert_eq!([Some(&activate), None].map(cost), [1, 1]);
    }
}
