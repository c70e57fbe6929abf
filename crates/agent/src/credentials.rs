//! Credentials for pods that an endpoint has identified.
//!
//! An endpoint identifies its caller, by address or by token, and renders documents. This module
//! does the rest in the same way for each endpoint: the current decision, its reports, the session,
//! and the wait for a change.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rolegate_authorizer::pod::AssignedLookup;
use rolegate_authorizer::pod::{Allowed, Authorization, PodEntry};
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_core::arn::RoleArn;
use rolegate_core::session::Failure;
use rolegate_runtime::clock::Clock;
use rolegate_sessions::{Lease, Session, SessionState};

use crate::address_verifier::AddressVerifier;
use crate::decision_source::DecisionSource;
use crate::metrics::AgentMetrics;
use crate::pod_table::PodTable;

/// The reason that a pod gets no credentials. Each endpoint words it in its own protocol.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// Pods, rules or the AWS environment have not synced yet.
    NotSynced,
    /// The last update from the cluster is too old.
    Stale,
    /// No pod of this node has this UID.
    UnknownPod,
    /// The namespace of the pod has not synced yet.
    NamespaceNotSynced,
    /// The pod requests no role, or its service account has none.
    NoRole,
    /// The service account of the pod is not loaded yet, or was deleted.
    UnknownServiceAccount,
    /// The rules deny the role. The message is for the pod's owner.
    Denied(Bytes),
    /// The last call to STS failed.
    Failed(RoleArn, Failure),
    /// The first call to STS is in progress.
    Fetching,
}

/// The result of one attempt to respond.
#[derive(Debug)]
pub enum Attempt<T> {
    /// The response.
    Done(T),
    /// Retry on a change of the pod table. This is the response at the deadline.
    Wait(T),
    /// Retry on a change of this session. This is the response at the deadline.
    WaitForSession(Arc<Lease>, T),
}

impl<T> Attempt<T> {
    /// Maps the response.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Attempt<U> {
        match self {
            Self::Done(response) => Attempt::Done(change(response)),
            Self::Wait(response) => Attempt::Wait(change(response)),
            Self::WaitForSession(lease, response) => {
                Attempt::WaitForSession(lease, change(response))
            }
        }
    }
}

/// The credentials of this node's pods. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct CredentialSource {
    /// The pods of this node.
    pub pod_table: Arc<PodTable>,
    /// The source of decisions.
    pub decisions: DecisionSource,
    /// The freshness of the pod table.
    pub verifier: AddressVerifier,
    /// Maximum staleness of the pod table.
    pub max_staleness: Duration,
    /// The recorder of Events for pods' owners.
    pub outcomes: OutcomeRecorder,
    /// The metrics of decisions.
    pub metrics: AgentMetrics,
    /// The clock.
    pub clock: Clock,
    /// Maximum time that a request waits for the watch or for STS.
    pub wait: Duration,
}

impl CredentialSource {
    /// Checks that the pod table can be relied on. Each endpoint checks it before it identifies a
    /// pod: a table that is incomplete or outdated may name another pod, or a deleted one.
    ///
    /// # Errors
    /// Returns [`Refusal::NotSynced`] or [`Refusal::Stale`].
    pub fn check_ready(&self, now: Timestamp) -> Result<(), Refusal> {
        if !self.pod_table.has_synced() {
            return Err(Refusal::NotSynced);
        }
        if !self.verifier.is_fresh(self.max_staleness, now) {
            return Err(Refusal::Stale);
        }
        Ok(())
    }

    /// Continues for a pod that may have its role, and reports the denial of one that may not.
    pub fn allowed<T: From<Refusal>>(
        &self,
        entry: &PodEntry,
        now: Timestamp,
        attempt: impl FnOnce(&Allowed) -> Attempt<T>,
    ) -> Attempt<T> {
        match &self.decisions.authorization(entry, now).authorization {
            Authorization::Allowed(allowed) => attempt(allowed),
            Authorization::Pending => Attempt::Wait(Refusal::NamespaceNotSynced.into()),
            Authorization::NoRole => Attempt::Done(Refusal::NoRole.into()),
            Authorization::Denied { denial, body } => {
                self.metrics.denied(denial.denied_by);
                self.outcomes.denied(entry, denial, now);
                Attempt::Done(Refusal::Denied(body.clone()).into())
            }
        }
    }

    /// Continues for a pod whose service account may have its role for tokens of an audience, and
    /// reports the denial of one that may not. `audience` is `None` for the endpoint's default
    /// audience. `attempt` gets the entry of that role, to which outcomes are reported.
    ///
    /// The endpoint must have verified that a token of this audience is bound to the pod.
    pub fn allowed_for<T: From<Refusal>>(
        &self,
        pod: &PodEntry,
        audience: Option<&str>,
        now: Timestamp,
        attempt: impl FnOnce(&PodEntry, &Allowed) -> Attempt<T>,
    ) -> Attempt<T> {
        match self.decisions.assigned(pod, audience) {
            AssignedLookup::Role(entry) => {
                self.allowed(&entry, now, |allowed| attempt(&entry, allowed))
            }
            AssignedLookup::NoRole => Attempt::Done(Refusal::NoRole.into()),
            AssignedLookup::Unknown => Attempt::Wait(Refusal::UnknownServiceAccount.into()),
        }
    }

    /// Serves the current session of an allowed pod, and reports the outcome.
    pub fn session<T: From<Refusal>>(
        &self,
        entry: &PodEntry,
        allowed: &Allowed,
        now: Timestamp,
        serve: impl FnOnce(&Arc<Session>) -> T,
    ) -> Attempt<T> {
        for denial in &allowed.audited {
            self.metrics.audited(denial.denied_by);
            self.outcomes.audited(entry, denial, now);
        }
        match allowed.lease.cell().state(now) {
            SessionState::Valid(session) => {
                self.metrics.allowed();
                self.outcomes.served(entry, allowed, &session, now);
                Attempt::Done(serve(&session))
            }
            SessionState::Failed(failure) => {
                self.outcomes.failing(entry, &allowed.role, &failure, now);
                Attempt::Done(Refusal::Failed(allowed.role.clone(), failure).into())
            }
            SessionState::Fetching => {
                allowed.lease.prioritize();
                Attempt::WaitForSession(allowed.lease.clone(), Refusal::Fetching.into())
            }
        }
    }

    /// Returns the current session of the pod with a UID, for endpoints whose callers prove their
    /// pod by a token. The endpoint must have verified the token, and must limit the calls in
    /// progress for each pod: each may wait for [`Self::wait`].
    ///
    /// # Errors
    /// Returns [`Refusal`] if the pod gets no credentials within [`Self::wait`].
    pub async fn session_of(&self, uid: &str) -> Result<Arc<Session>, Refusal> {
        let attempt = |now| {
            if let Err(refusal) = self.check_ready(now) {
                return Attempt::Wait(Err(refusal));
            }
            let Some(entry) = self.pod_table.pod(uid) else {
                return Attempt::Wait(Err(Refusal::UnknownPod));
            };
            self.allowed(&entry, now, |allowed| {
                self.session(&entry, allowed, now, |session| Ok(session.clone()))
            })
        };
        match attempt(self.clock.now()) {
            Attempt::Done(session) => session,
            Attempt::Wait(last) | Attempt::WaitForSession(_, last) => {
                Box::pin(self.retry_on_change(last, attempt)).await
            }
        }
    }

    /// Returns the current session of the role that the service account of a pod has for tokens of
    /// an audience, as [`Self::session_of`] does for the pod's own role.
    ///
    /// # Errors
    /// Returns [`Refusal`] if the pod gets no credentials within [`Self::wait`].
    pub async fn session_for(
        &self,
        uid: &str,
        audience: Option<&str>,
    ) -> Result<Arc<Session>, Refusal> {
        let attempt = |now| {
            if let Err(refusal) = self.check_ready(now) {
                return Attempt::Wait(Err(refusal));
            }
            let Some(pod) = self.pod_table.pod(uid) else {
                return Attempt::Wait(Err(Refusal::UnknownPod));
            };
            self.allowed_for(&pod, audience, now, |entry, allowed| {
                self.session(entry, allowed, now, |session| Ok(session.clone()))
            })
        };
        match attempt(self.clock.now()) {
            Attempt::Done(session) => session,
            Attempt::Wait(last) | Attempt::WaitForSession(_, last) => {
                Box::pin(self.retry_on_change(last, attempt)).await
            }
        }
    }

    /// Retries on each relevant change, and returns the last response at the deadline.
    pub async fn retry_on_change<T>(
        &self,
        mut last: T,
        mut attempt: impl FnMut(Timestamp) -> Attempt<T>,
    ) -> T {
        let waiting = async {
            let mut changes = self.pod_table.changes();
            loop {
                // Checked after subscribing, so that no change is missed in between.
                match attempt(self.clock.now()) {
                    Attempt::Done(response) => return response,
                    Attempt::Wait(response) => {
                        last = response;
                        changes.next().await;
                    }
                    Attempt::WaitForSession(lease, response) => {
                        last = response;
                        // Subscribes before the next attempt, so that no event is missed.
                        let changed = lease.cell().changed();
                        if let Attempt::Done(response) = attempt(self.clock.now()) {
                            return response;
                        }
                        tokio::select! {
                            () = changed => {}
                            () = changes.next() => {}
                        }
                    }
                }
            }
        };
        match tokio::time::timeout(self.wait, waiting).await {
            Ok(response) => response,
            Err(_) => last,
        }
    }
}

impl From<Refusal> for Result<Arc<Session>, Refusal> {
    fn from(refusal: Refusal) -> Self {
        Err(refusal)
    }
}

#[cfg(test)]
mod tests;
