//! The validating admission webhook: evaluates an AdmissionReview against the rules.
//!
//! The pure modules ([`review`], [`validate`], [`outcome`], [`webhook_configuration`]) do no I/O
//! and read no clock, so a pipeline can evaluate manifests as the API server does requests. The
//! decision whether a workload may have a role is
//! [`RuleSet::explain`](rolegate_core::decision::RuleSet::explain), which agents use too.

#[cfg(feature = "server")]
pub mod app;
pub mod audience;
mod field_path;
mod json;
#[cfg(feature = "server")]
pub mod metrics;
pub mod outcome;
mod pod_template;
pub mod policies;
pub mod review;
#[cfg(feature = "server")]
pub mod server;
mod target;
mod text;
pub mod validate;
mod web_identity;
pub mod webhook_configuration;

pub use outcome::{NotSynced, Outcome, Violation};
pub use pod_template::{ACCOUNTS_OF_OWNERS, ROLE_VARIABLE};
pub use policies::{Finding, Findings, ReviewPolicies};
pub use review::{Review, ReviewError};
pub use validate::{ValidationRules, validate};
pub use web_identity::{Unnamed, WebIdentity};

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
