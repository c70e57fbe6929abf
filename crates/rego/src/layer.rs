//! The Rego layer of decisions: policies that are asked at doors.

use std::sync::Arc;

use rolegate_core::layer::{Ask, Layer, Reads, Verdict};
use rolegate_core::needs::{Keys, Needs};

use crate::policies::Policies;

/// Policies as a layer. It knows of the pod what [`crate::DOCUMENTED_INPUT`] says.
#[derive(Debug, Clone)]
pub struct RegoLayer {
    policies: Arc<Policies>,
}

impl RegoLayer {
    /// The layer of some policies.
    pub fn new(policies: Arc<Policies>) -> Self {
        Self { policies }
    }
}

impl Layer for RegoLayer {
    fn name(&self) -> &'static str {
        "rego"
    }

    fn judge(&self, ask: &Ask<'_>) -> Verdict {
        let findings = self.policies.judge_pod(ask.workload, ask.now);
        if findings.is_allowed() {
            Verdict::allow("no policy denies")
        } else {
            Verdict::Deny {
                rule: findings.rule(),
                reason: findings.reason(),
                passing: findings.passing,
            }
        }
    }

    fn reads(&self) -> Reads {
        let asked = self.policies.asks_at_door();
        Reads {
            labels: asked,
            identity: asked,
            pod: asked,
        }
    }

    fn needs(&self) -> Needs {
        let keys = match self.policies.asks_at_door() {
            true => Keys::All,
            false => Keys::default(),
        };
        Needs {
            pod_labels: keys.clone(),
            pod_annotations: keys,
            ..Needs::default()
        }
    }

    fn lacks(&self, ask: &Ask<'_>) -> bool {
        let needs = self.needs();
        let pod = ask.workload;
        !pod.labels.know(&needs.pod_labels) || !pod.annotations.know(&needs.pod_annotations)
    }

    fn reads_time(&self) -> bool {
        self.policies.reads_time_at_door()
    }
}
