//! Records the outcomes of pods' requests. Denials and failures go to the pod's owner (the log, and
//! an Event on the pod); issued sessions go to the ledger.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::session::Failure;
use rolegate_kube::events::{EventReason, EventRecorder};
use rolegate_sessions::Session;
use tokio::sync::mpsc;
use tracing::warn;

use crate::ledger::{Issued, Ledger};
use crate::pod::{Allowed, PodEntry, RoleOf};

/// Minimum interval between reports of the same denial of the same pod, since SDKs retry.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// An outcome that an agent reports to its broker. It identifies the pod only; the broker takes all
/// details from its own decisions and sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeReport {
    /// The pod's UID.
    pub pod_uid: Arc<str>,
    /// The holder of the requested role.
    pub role_of: RoleOf,
    /// The outcome of the request.
    pub outcome: RequestOutcome,
}

/// The outcome of a pod's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOutcome {
    /// A rule denied the request.
    Denied,
    /// The request was allowed, but a layer in audit mode would have denied it.
    Audited,
    /// No session is available.
    Failing,
    /// The pod received a session for the first time.
    Served {
        /// The session's `AccessKeyId`.
        access_key_id: Arc<str>,
    },
}

/// Records outcomes in the log, in Events (if there is a cluster) and in the ledger, or reports
/// them to the broker.
#[derive(Debug, Clone, Default)]
pub struct OutcomeRecorder {
    events: Option<EventRecorder>,
    ledger: Ledger,
    broker: Option<mpsc::Sender<OutcomeReport>>,
}

impl OutcomeRecorder {
    /// Creates a recorder for the log, `ledger` and, if there is a cluster, Events.
    pub fn new(events: Option<EventRecorder>, ledger: Ledger) -> Self {
        Self {
            events,
            ledger,
            broker: None,
        }
    }

    /// Creates a recorder for this node's log and the broker, which records the rest. Outcomes are
    /// dropped when the queue is full, so that requests never wait.
    pub fn to_broker(broker: mpsc::Sender<OutcomeReport>) -> Self {
        Self {
            broker: Some(broker),
            ..Self::default()
        }
    }

    /// Records that a rule denied a pod's request.
    pub fn denied(&self, entry: &PodEntry, denial: &Denial, now: Timestamp) {
        let is_recorded = self.denial(entry, denial, RequestOutcome::Denied, "request denied", now);
        if let (true, Some(events)) = (is_recorded, &self.events) {
            let pod = &entry.workload;
            events.publish(pod, EventReason::RoleForbidden, &denial.owner_message());
        }
    }

    /// Records that a layer in audit mode would have denied a pod's request.
    pub fn audited(&self, entry: &PodEntry, denial: &Denial, now: Timestamp) {
        let message = "request would be denied";
        self.denial(entry, denial, RequestOutcome::Audited, message, now);
    }

    /// Logs a denial and reports its outcome, unless the pod had one a short time ago. Returns
    /// whether it did.
    fn denial(
        &self,
        entry: &PodEntry,
        denial: &Denial,
        outcome: RequestOutcome,
        message: &'static str,
        now: Timestamp,
    ) -> bool {
        if !entry.report_throttle.allows(now, REPORT_INTERVAL) {
            return false;
        }
        let pod = &entry.workload;
        warn!(
            namespace = %pod.namespace,
            pod = %pod.name,
            service_account = %pod.service_account,
            role = denial.role,
            layer = denial.denied_by.as_str(),
            rule = denial.rule,
            reason = denial.reason,
            "{message}"
        );
        self.forward(entry, outcome);
        true
    }

    /// Records that no session is available for an allowed role. AWS's message names the node's
    /// role and is only logged.
    pub fn failing(&self, entry: &PodEntry, role: &RoleArn, failure: &Failure, now: Timestamp) {
        if !entry.report_throttle.allows(now, REPORT_INTERVAL) {
            return;
        }
        let pod = &entry.workload;
        warn!(
            namespace = %pod.namespace,
            pod = %pod.name,
            %role,
            code = failure.code,
            reason = failure.message,
            "no session available for pod"
        );
        self.forward(entry, RequestOutcome::Failing);
        if let Some(events) = &self.events {
            events.publish(
                pod,
                EventReason::CredentialError,
                &failure.owner_message(role),
            );
        }
    }

    /// Records that a pod receives a session, once for each pod and session.
    pub fn served(&self, entry: &PodEntry, allowed: &Allowed, session: &Session, now: Timestamp) {
        if !entry.mark_served(session) {
            return;
        }
        if self.broker.is_some() {
            let access_key_id = session.credentials.access_key_id.clone();
            self.forward(entry, RequestOutcome::Served { access_key_id });
        } else {
            let handed = Issued {
                pod: &entry.workload,
                allowed,
                endpoint: entry.role_of.endpoint(),
                access_key_id: &session.credentials.access_key_id,
                lifetime: session.credentials.validity,
            };
            self.ledger.served(handed, now);
        }
    }

    /// Returns the ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn forward(&self, entry: &PodEntry, outcome: RequestOutcome) {
        if let Some(broker) = &self.broker {
            let _ = broker.try_send(OutcomeReport {
                pod_uid: entry.workload.uid.clone(),
                role_of: entry.role_of.clone(),
                outcome,
            });
        }
    }
}
