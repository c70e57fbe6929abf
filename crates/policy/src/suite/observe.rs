//! Records the rules that tests used.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::{AccessRequest, ActiveLayer, Layer, LayerId, Verdict, WorkloadFields};
use rolegate_rego::Coverage;

/// Records the grants that allow a role and the evaluated lines of policies.
#[derive(Debug, Default)]
pub struct Observer {
    /// The evaluated lines of policies.
    pub lines: Arc<Coverage>,
    /// The grants that allowed a role.
    allowed: Arc<Mutex<BTreeSet<String>>>,
}

impl Observer {
    /// Returns the same rules with a recording of the grants that allow a role.
    pub fn observed(&self, rules: &RuleSet) -> RuleSet {
        let layers = rules.layers.iter().map(|active| ActiveLayer {
            layer: Arc::new(Observed {
                layer: active.layer.clone(),
                allowed: self.allowed.clone(),
            }),
            mode: active.mode,
        });
        RuleSet {
            layers: layers.collect(),
            ..rules.clone()
        }
    }

    /// Returns whether a grant allowed a role.
    pub fn has_allowed(&self, grant: &str) -> bool {
        let allowed = self.allowed.lock();
        allowed.contains(grant)
    }
}

/// A layer that records which grants allow a role.
#[derive(Debug)]
struct Observed {
    layer: Arc<dyn Layer>,
    allowed: Arc<Mutex<BTreeSet<String>>>,
}

impl Layer for Observed {
    fn id(&self) -> LayerId {
        self.layer.id()
    }

    fn evaluate(&self, ask: &AccessRequest<'_>) -> Verdict {
        let verdict = self.layer.evaluate(ask);
        if let (LayerId::Grants, Verdict::Allow { rule, .. }) = (self.id(), &verdict) {
            let mut allowed = self.allowed.lock();
            allowed.insert(rule.clone());
        }
        verdict
    }

    fn reads(&self) -> WorkloadFields {
        self.layer.reads()
    }

    fn reads_time(&self) -> bool {
        self.layer.reads_time()
    }
}
