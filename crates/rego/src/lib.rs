//! The Rego layer: policies from ConfigMaps, compiled once, bounded, asked at gates and doors.
//!
//! A [`PolicyBook`] takes in ConfigMaps and replicated objects and hands out [`Policies`]: an
//! immutable snapshot that is asked from any thread. [`Policies::judge_review`] is for the gate,
//! [`RegoLayer`] for doors. There is no I/O here, and the time is an argument; the one clock is
//! the one that stops a policy which takes too long.
//!
//! # Where this differs from OPA
//! | what | OPA | here |
//! | --- | --- | --- |
//! | two values of one rule or function | the query fails | the question is denied, with the reason |
//! | `time.now_ns()` | the clock | the time of the question |
//! | results that have no bound (`numbers.range`, `net.cidr_expand`, `concat`, …) | memory | 65,536 elements, 1 MiB of text |
//! | brackets inside each other | no bound | 16 |
//! | `print`, `trace` | written to the log | nothing is written |
//! | a text that is no pattern, or too large a one | undefined | the question is denied; refused at load where it is written into the policy |
//! | decoded bytes that are no UTF-8 | a text | the question is denied |
//! | numbers | as they were written | whole ones of any size, fractions of 64 bits |
//! | the order of a set and an object | objects first | sets first |
//! | `and`, `or`, `$"… {x}"` | newer keywords | refused at load |
//! | a rule `p.b.q` in one module and `p[x].q` in another | both | refused at load |
//! | bodies of one function in several modules | one function | refused at load |
//! | built-ins | all | without [`missing_builtins`] |
//!
//! Before a module runs it is lowered: written anew as OPA's compiler leaves it, since the interpreter reads some
//! constructs another way.
//!
//! Errors of built-ins make their expression undefined, as in OPA without `strict-builtin-errors`.

mod analysis;
mod book;
mod builtins;
#[cfg(feature = "conformance")]
pub mod conformance;
mod data;
mod error;
mod evaluate;
mod fractions;
mod input;
mod layer;
mod limits;
mod link;
mod lower;
mod meter;
mod panics;
mod policies;
mod prepare;
mod scan;
mod source;
mod status;
mod syntax;
mod testing;
mod text;
mod wrap;

pub use book::PolicyBook;
pub use builtins::{MissingBuiltin, missing_builtins};
pub use error::LoadError;
pub use input::DOCUMENTED_INPUT;
pub use layer::RegoLayer;
pub use limits::Limits;
pub use policies::{Finding, Findings, Policies, ReviewError};
pub use source::{
    Kind, Points, PointsError, PolicySource, Replicated, Required, Settings, looks_like_rego,
};
pub use status::{PolicyStatus, STATUS_ANNOTATION};
pub use syntax::Syntax;
pub use testing::{Coverage, Lines, RegoResult, RegoTest, Unasked};
