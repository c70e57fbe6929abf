//! Records which rules were used while tests ran.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rolegate_core::decision::RuleSet;
use rolegate_core::layer::{ActiveLayer, Ask, Layer, Reads, Verdict};
use rolegate_rego::Coverage;

/// The name of the layer of grants.
const GRANTS: &str = "grants";

/// Sees which grants allow something and which lines of policies are evaluated.
#[derive(Debug, Default)]
pub struct Observer {
    /// Lines of policies.
    pub lines: Arc<Coverage>,
    /// Grants that allowed something.
    allowed: Arc<Mutex<BTreeSet<String>>>,
}

impl Observer {
    /// The same rules; which grants allow something is seen.
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

    /// Returns whether a grant allowed something.
    pub fn has_allowed(&self, grant: &str) -> bool {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.contains(grant)
    }
}

/// A layer of which it is kept which grants allow.
#[derive(Debug)]
struct Observed {
    layer: Arc<dyn Layer>,
    allowed: Arc<Mutex<BTreeSet<String>>>,
}

impl Layer for Observed {
    fn name(&self) -> &'static str {
        self.layer.name()
    }

    fn judge(&self, ask: &Ask<'_>) -> Verdict {
        let verdict = self.layer.judge(ask);
        if let (GRANTS, Verdict::Allow { rule, .. }) = (self.layer.name(), &verdict) {
            let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
            allowed.insert(rule.clone());
        }
        verdict
    }

    fn reads(&self) -> Reads {
        self.layer.reads()
    }

    fn reads_time(&self) -> bool {
        self.layer.reads_time()
    }
}
