//! The interface to Rego policies, so that the validator can be tested without an engine.

use jiff::Timestamp;

/// The result of evaluating policies for one review.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// All denials.
    pub denials: Vec<Finding>,
    /// The number of policies that were evaluated.
    pub asked: usize,
}

/// A denial by a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The policy's name.
    pub policy: String,
    /// The policy's message.
    pub message: String,
}

/// Policies that evaluate whole reviews.
pub trait ReviewPolicies: Send + Sync {
    /// Evaluates a review, given as JSON. Required policies that are missing deny, too.
    fn evaluate_review(&self, review: &str, now: Timestamp) -> Findings;
}

impl ReviewPolicies for rolegate_rego::Policies {
    fn evaluate_review(&self, review: &str, now: Timestamp) -> Findings {
        match self.evaluate_review_json(review.as_bytes(), now) {
            Ok(found) => Findings {
                denials: found
                    .denials
                    .into_iter()
                    .map(|finding| Finding {
                        policy: finding.policy.to_string(),
                        message: finding.message,
                    })
                    .collect(),
                asked: found.evaluated.len(),
            },
            Err(error) => Findings {
                denials: vec![Finding {
                    policy: "(all)".into(),
                    message: error.to_string(),
                }],
                asked: 0,
            },
        }
    }
}
