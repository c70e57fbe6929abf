//! What the gate asks of Rego policies: a seam, so that the gate is tested without an engine.

use jiff::Timestamp;

/// What policies say about one review.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Each refusal.
    pub denials: Vec<Finding>,
    /// How many policies were asked.
    pub asked: usize,
}

/// A refusal by a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The policy.
    pub policy: String,
    /// What it says.
    pub message: String,
}

/// Policies that are asked about whole reviews.
pub trait ReviewPolicies: Send + Sync {
    /// Judges a review, given as its JSON. Policies that are demanded and missing refuse too.
    fn judge_review(&self, review: &str, now: Timestamp) -> Findings;
}

impl ReviewPolicies for rolegate_rego::Policies {
    fn judge_review(&self, review: &str, now: Timestamp) -> Findings {
        match self.judge_review_json(review.as_bytes(), now) {
            Ok(found) => Findings {
                denials: found
                    .denials
                    .into_iter()
                    .map(|finding| Finding {
                        policy: finding.policy.to_string(),
                        message: finding.message,
                    })
                    .collect(),
                asked: found.asked.len(),
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
