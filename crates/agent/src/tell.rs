//! Telling a pod's owner why it got no credentials: a line in the log, and an Event on the pod.

use std::time::Duration;

use jiff::Timestamp;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::session::Failure;
use rolegate_kube::events::{EventReason, Eventer};
use tracing::warn;

use crate::picture::Resident;

/// How often the same denial of the same pod is told: SDKs try again and again.
const PERIOD: Duration = Duration::from_secs(10);

/// Tells in the log, and in Events where there is a cluster.
#[derive(Debug, Clone, Default)]
pub struct Tell {
    events: Option<Eventer>,
}

impl Tell {
    /// With an eventer where there is a cluster.
    pub fn new(events: Option<Eventer>) -> Self {
        Self { events }
    }

    /// A pod was refused by a rule.
    pub(crate) fn denied(&self, resident: &Resident, denial: &Denial, now: Timestamp) {
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
            "denied: {}",
            denial.reason
        );
        if let Some(events) = &self.events {
            events.tell(pod, EventReason::RoleForbidden, &denial.to_string());
        }
    }

    /// A pod got what a rule in audit mode would have refused.
    pub(crate) fn audited(&self, resident: &Resident, denial: &Denial, now: Timestamp) {
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
            "would be denied (audit): {}",
            denial.reason
        );
    }

    /// A pod that may have its role got no session of it. AWS's message names the node's role
    /// and is for the log alone.
    pub(crate) fn failing(
        &self,
        resident: &Resident,
        role: &RoleArn,
        failure: &Failure,
        now: Timestamp,
    ) {
        if !resident.told.allows(now, PERIOD) {
            return;
        }
        let pod = &resident.workload;
        warn!(
            namespace = %pod.namespace,
            pod = %pod.name,
            %role,
            code = failure.code,
            "no session: {}",
            failure.message
        );
        if let Some(events) = &self.events {
            let note = format!("STS gives no session of role {role}: {}", failure.code);
            events.tell(pod, EventReason::CredentialError, &note);
        }
    }
}
