//! Evaluates an AdmissionReview against the rules.
//!
//! The crate does no I/O and reads no clock, so a pipeline can evaluate manifests as the API server
//! does requests. The decision whether a workload may have a role is
//! [`RuleSet::explain`](rolegate_core::decision::RuleSet::explain), which agents use too.

pub mod admission_review;
pub mod audience;
mod field_path;
mod json;
pub mod mutating_configuration;
pub mod mutation;
pub mod outcome;
mod pod_template;
pub mod policies;
mod target;
pub mod validate;
mod web_identity;
pub mod webhook_configuration;

pub use admission_review::{Review, ReviewError};
pub use outcome::{Outcome, Undecided, Violation, ViolationSource};
pub use pod_template::{ACCOUNTS_OF_OWNERS, ROLE_VARIABLE};
pub use policies::{Finding, Findings, ReviewPolicies};
pub use validate::{ServiceAccounts, ValidationRules, validate};
pub use web_identity::{UnnamedRoleRequest, WebIdentity};

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
