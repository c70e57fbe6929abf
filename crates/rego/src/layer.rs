//! The Rego layer of decisions: policies that are asked at doors.

use std::sync::Arc;

use rolegate_core::layer::{Ask, Layer, Reads, Verdict};

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

    fn reads_time(&self) -> bool {
        self.policies.reads_time_at_door()
    }
}
