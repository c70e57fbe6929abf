//! Telling what came of a pod's request: to its owner why it got no credentials (a line in the
//! log, and an Event on the pod), to the ledger which session it got.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rolegate_aws::sessions::Session;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::session::Failure;
use rolegate_kube::events::{EventReason, Eventer};
use tokio::sync::mpsc;
use tracing::warn;

use crate::ledger::{Handed, Ledger};
use crate::resident::{Allowed, Resident};

/// How often the same denial of the same pod is told: SDKs try again and again.
const PERIOD: Duration = Duration::from_secs(10);

/// What an agent tells its broker. It names the pod; what the broker writes of it comes from what
/// the broker itself decided and pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The pod's UID.
    pub pod_uid: Arc<str>,
    /// What came of its request.
    pub outcome: NoticeOutcome,
}

/// What came of a pod's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoticeOutcome {
    /// A rule refused it.
    Denied,
    /// It got what a layer in audit mode would have refused.
    Audited,
    /// There is no session for it.
    Failing,
    /// It got a session that it had not got before.
    Served {
        /// The session's `AccessKeyId`.
        access_key_id: Arc<str>,
    },
}

/// Tells in the log, in Events where there is a cluster, in the ledger, or to the broker.
#[derive(Debug, Clone, Default)]
pub struct Tell {
    events: Option<Eventer>,
    ledger: Ledger,
    broker: Option<mpsc::Sender<Notice>>,
}

impl Tell {
    /// Tells in the log and `ledger`, and in Events where there is a cluster.
    pub fn new(events: Option<Eventer>, ledger: Ledger) -> Self {
        Self {
            events,
            ledger,
            broker: None,
        }
    }

    /// Tells in this node's log, and the broker, which does the rest. What finds no room is
    /// dropped: nobody waits for it.
    pub fn to_broker(broker: mpsc::Sender<Notice>) -> Self {
        Self {
            broker: Some(broker),
            ..Self::default()
        }
    }

    /// A pod was refused by a rule.
    pub fn denied(&self, resident: &Resident, denial: &Denial, now: Timestamp) {
        if !resident.told.allows(now, PERIOD) {
            return;
        }
        let pod = &resident.workload;
        warn!(
            namespace = %pod.namespace,
            pod = %pod.name,
            service_account = %pod.service_account,
            role = denial.role,
            layer = denial.layer,
            rule = denial.rule,
            reason = denial.reason,
            "request denied"
        );
        self.notice(resident, NoticeOutcome::Denied);
        if let Some(events) = &self.events {
            events.tell(pod, EventReason::RoleForbidden, &denial.to_owner());
        }
    }

    /// A pod got what a rule in audit mode would have refused.
    pub fn audited(&self, resident: &Resident, denial: &Denial, now: Timestamp) {
        if !resident.told.allows(now, PERIOD) {
            return;
        }
        let pod = &resident.workload;
        warn!(
            namespace = %pod.namespace,
            pod = %pod.name,
            service_account = %pod.service_account,
            role = denial.role,
            layer = denial.layer,
            rule = denial.rule,
            reason = denial.reason,
            "request would be denied"
        );
        self.notice(resident, NoticeOutcome::Audited);
    }

    /// A pod that may have its role got no session of it. AWS's message names the node's role
    /// and is for the log alone.
    pub fn failing(&self, resident: &Resident, role: &RoleArn, failure: &Failure, now: Timestamp) {
        if !resident.told.allows(now, PERIOD) {
            return;
        }
        let pod = &resident.workload;
        warn!(
            namespace = %pod.namespace,
            pod = %pod.name,
            %role,
            code = failure.code,
            reason = failure.message,
            "no session for a pod"
        );
        self.notice(resident, NoticeOutcome::Failing);
        if let Some(events) = &self.events {
            events.tell(pod, EventReason::CredentialError, &failure.to_owner(role));
        }
    }

    /// A pod is handed a session; told once for each pod and session.
    pub fn served(
        &self,
        resident: &Resident,
        allowed: &Allowed,
        session: &Session,
        now: Timestamp,
    ) {
        if !resident.is_first(session) {
            return;
        }
        if self.broker.is_some() {
            let access_key_id = session.access_key_id.as_str().into();
            self.notice(resident, NoticeOutcome::Served { access_key_id });
        } else {
            let handed = Handed {
                pod: &resident.workload,
                allowed,
                access_key_id: &session.access_key_id.as_str().into(),
                life: session.life,
            };
            self.ledger.served(handed, now);
        }
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn notice(&self, resident: &Resident, outcome: NoticeOutcome) {
        if let Some(broker) = &self.broker {
            let pod_uid = resident.workload.uid.clone();
            let _ = broker.try_send(Notice { pod_uid, outcome });
        }
    }
}
