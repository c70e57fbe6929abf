//! The Rego layer of decisions: policies that are enforced at agents.

use std::sync::Arc;

use rolegate_core::layer::{AccessRequest, Layer, LayerId, Verdict, WorkloadFields};
use rolegate_core::needs::{Keys, Needs};

use crate::policies::Policies;

/// Policies as a layer. [`crate::DOCUMENTED_INPUT`] describes their input.
#[derive(Debug, Clone)]
pub struct RegoLayer {
    policies: Arc<Policies>,
}

impl RegoLayer {
    /// Creates the layer.
    pub fn new(policies: Arc<Policies>) -> Self {
        Self { policies }
    }
}

impl Layer for RegoLayer {
    fn id(&self) -> LayerId {
        LayerId::Rego
    }

    fn evaluate(&self, request: &AccessRequest<'_>) -> Verdict {
        let findings = self.policies.evaluate_pod(request.workload, request.now);
        if findings.is_allowed() {
            Verdict::allow("no policy denies")
        } else {
            Verdict::Deny {
                rule: findings.rule(),
                reason: findings.reason(),
                transient: findings.transient,
            }
        }
    }

    fn reads(&self) -> WorkloadFields {
        let enforced = self.policies.has_agent_policies();
        WorkloadFields {
            labels: enforced,
            identity: enforced,
            pod: enforced,
        }
    }

    fn needs(&self) -> Needs {
        let keys = if self.policies.has_agent_policies() {
            Keys::All
        } else {
            Keys::default()
        };
        Needs {
            pod_labels: keys.clone(),
            pod_annotations: keys,
            ..Needs::default()
        }
    }

    fn lacks(&self, request: &AccessRequest<'_>) -> bool {
        let needs = self.needs();
        let pod = request.workload;
        !pod.labels.cover(&needs.pod_labels) || !pod.annotations.cover(&needs.pod_annotations)
    }

    fn reads_time(&self) -> bool {
        self.policies.reads_time_at_agents()
    }
}
