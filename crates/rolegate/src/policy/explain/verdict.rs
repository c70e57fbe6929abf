//! The verdict of an explanation.

use rolegate_core::layer::LayerId;
use rolegate_policy::explain::{Explained, Outcome};
use rolegate_review::ViolationSource;

/// The parts of an explanation that must not depend on an unknown base ARN.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    decision: Outcome,
    role_arn: Option<String>,
    /// The layers that deny: at agents, at admission, and for each web identity role.
    refusals: Vec<Option<ViolationSource>>,
    /// The layers, and whether they allow.
    layers: Vec<(LayerId, bool)>,
}

impl From<&Explained> for Verdict {
    fn from(explained: &Explained) -> Self {
        let tokens = explained.web_identity.iter().map(|one| &one.refusal);
        let refusals = [&explained.denial, &explained.admission]
            .into_iter()
            .chain(tokens);
        let layers = explained.layers.iter();
        Self {
            decision: explained.decision,
            role_arn: explained.session.as_ref().map(|one| one.role_arn.clone()),
            refusals: refusals
                .map(|refusal| refusal.as_ref().map(|one| one.denied_by))
                .collect(),
            layers: layers.map(|one| (one.layer, one.allows)).collect(),
        }
    }
}
