//! The Rego layer: policies from ConfigMaps that are compiled once, bounded, and enforced at
//! admission and agents.
//!
//! A [`PolicyStore`] loads ConfigMaps and replicated objects and creates [`Policies`], immutable
//! snapshots that any thread can evaluate. [`Policies::evaluate_review`] is for admission,
//! [`RegoLayer`] for agents. The crate does no I/O, and the time is an argument; the only clock is
//! the one that stops a policy that takes too long.
//!
//! # Differences from OPA
//! | feature | OPA | rolegate |
//! | --- | --- | --- |
//! | two values of one rule or function | the query fails | the request is denied, with the reason |
//! | `time.now_ns()` | the clock | the time of the request |
//! | unbounded results (`numbers.range`, `net.cidr_expand`, `concat`, …) | memory | 65,536 elements, 1 MiB of text |
//! | nested brackets | unlimited | 16 |
//! | `print`, `trace` | written to the log | nothing is written |
//! | an invalid or too large pattern | undefined | the request is denied; rejected at load if it is a literal |
//! | decoded bytes that are not UTF-8 | a string | the request is denied |
//! | numbers | as written | integers of any size, 64-bit fractions |
//! | the order of a set and an object | objects first | sets first |
//! | `and`, `or`, `$"… {x}"` | newer keywords | rejected at load |
//! | a rule `p.b.q` in one module and `p[x].q` in another | both | rejected at load |
//! | bodies of one function in several modules | one function | rejected at load |
//! | built-ins | all | without [`missing_builtins`] |
//!
//! A module is lowered before it is evaluated: rewritten to the form that OPA's compiler produces,
//! since the interpreter reads some constructs differently.
//!
//! Errors of built-ins make their expression undefined, as in OPA without `strict-builtin-errors`.

mod analysis;
mod builtins;
#[cfg(feature = "conformance")]
pub mod conformance;
mod coverage;
mod data;
mod error;
mod evaluate;
mod fractions;
mod generated_names;
mod input;
mod layer;
mod limits;
mod link;
mod lower;
mod meter;
mod panics;
mod policies;
mod policy_store;
mod prepare;
mod scan;
mod source;
mod status;
mod syntax;
mod testing;
mod text;
mod wrap;

pub use builtins::{MissingBuiltin, missing_builtins};
pub use coverage::{Coverage, Lines};
pub use error::LoadError;
pub use input::DOCUMENTED_INPUT;
pub use layer::RegoLayer;
pub use limits::Limits;
pub use meter::{CountingAllocator, counting_allocator};
pub use policies::{Finding, Findings, Policies, ReviewError};
pub use policy_store::PolicyStore;
pub use source::{
    EnforcementPoints, Kind, PointsError, PolicySource, Replicated, Required, Settings,
    looks_like_rego,
};
pub use status::{PolicyStatus, STATUS_ANNOTATION};
pub use syntax::Syntax;
pub use testing::{RegoResult, RegoTest, UnusedPolicy};

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: CountingAllocator = counting_allocator();
