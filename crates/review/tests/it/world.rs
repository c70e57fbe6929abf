//! Rules from a world's manifests.

use std::sync::Arc;

use jiff::Timestamp;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_inventory::offline::{OfflineOptions, load};
use rolegate_rego::Policies;
use rolegate_review::{Outcome, Review, ReviewPolicies, ValidationRules, validate};
use serde_json::Value;

pub(crate) const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// The inputs of a validation.
pub(crate) struct Rules {
    /// The rules of admission: without layer `rego`.
    pub(crate) set: RuleSet,
    /// The rules of agents: all layers.
    pub(crate) agent: RuleSet,
    /// The policies, which evaluate whole reviews.
    pub(crate) policies: Arc<Policies>,
    pub(crate) config: Arc<RuleConfig>,
    pub(crate) grants: Arc<GrantsLayer>,
    pub(crate) keys: AnnotationKeys,
}

impl Rules {
    /// Reads the rules of a world in `tests/cases/worlds`.
    pub(crate) fn of(name: &str) -> Self {
        let world = rolegate_testkit::cases::world(name).unwrap();
        let offline = load(&world.documents, OfflineOptions::default()).unwrap();
        let snapshot = offline.writer.rules().load().clone();
        let rules = Self {
            set: snapshot.admission.clone(),
            agent: snapshot.rules.clone(),
            policies: snapshot.policies.clone(),
            config: snapshot.config.clone(),
            grants: snapshot.grants.clone(),
            keys: AnnotationKeys::default(),
        };
        assert_eq!(rules.grants.invalid(), &[], "{name} has an invalid grant");
        assert_eq!(rules.set.missing, None, "{name}");
        rules
    }

    pub(crate) fn validation<'a>(
        &'a self,
        policies: Option<&'a dyn ReviewPolicies>,
    ) -> ValidationRules<'a> {
        ValidationRules {
            rules: &self.set,
            config: &self.config,
            grants: &self.grants,
            keys: &self.keys,
            policies,
            accounts: None,
        }
    }

    pub(crate) fn validate(&self, review: &Value) -> Outcome {
        let body = review.to_string();
        let review = Review::parse(body.as_bytes()).unwrap();
        validate(&self.validation(Some(&*self.policies)), &review, NOW)
    }
}
