//! The admission gate: AdmissionReview in, the decision of the rules, answer out.
//!
//! What is in this crate's pure part ([`review`], [`gate`], [`outcome`], [`registration`]) does no
//! I/O and knows no clock: a pipeline can ask it about manifests as the API server asks it about
//! requests. Whether a workload may have a role is not decided here but by
//! [`RuleSet::explain`](rolegate_core::decision::RuleSet::explain), which the doors ask too.

#[cfg(feature = "server")]
pub mod app;
pub mod audience;
pub mod gate;
mod json;
mod kinds;
#[cfg(feature = "server")]
pub mod metrics;
pub mod outcome;
mod place;
pub mod policies;
pub mod registration;
pub mod review;
#[cfg(feature = "server")]
pub mod server;
mod shape;
mod text;
mod web_identity;

pub use gate::{GateRules, judge};
pub use outcome::{Fault, Outcome, Unseen};
pub use policies::{Finding, Findings, ReviewPolicies};
pub use review::{Review, ReviewError};
pub use shape::{ACCOUNTS_OF_OWNERS, ROLE_VARIABLE};
pub use web_identity::{Unnamed, WebIdentity};
