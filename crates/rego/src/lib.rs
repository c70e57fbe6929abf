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
//! | arithmetic on what is no number | undefined | the question is denied, with the reason |
//! | two values of one rule or function | the query fails | the question is denied, with the reason |
//! | `sprintf("%t", [true])` | `%!t(string=true)` | `true` |
//! | `time.now_ns()` | the clock | the time of the question |
//! | results that have no bound (`numbers.range`, `net.cidr_expand`, `concat`, …) | memory | 65,536 elements, 1 MiB of text |
//! | brackets inside each other | no bound | 16 |
//! | `print`, `trace` | written to the log | nothing is written |
//! | an extra argument for the result, `f(x, y)` for `y := f(x)` | all built-ins | not for deprecated ones and `net.*`, `crypto.*`, `glob.*`, `yaml.*` |
//! | a comprehension with a variable of the same name as the one it is assigned to | another variable | refused at load |
//! | bodies of one function in several modules | one function | refused at load |
//! | built-ins | all | without [`missing_builtins`] |
//!
//! Errors of built-ins make their expression undefined, as in OPA without `strict-builtin-errors`.

mod analysis;
mod book;
mod builtins;
mod data;
mod error;
mod evaluate;
mod input;
mod layer;
mod limits;
mod link;
mod meter;
mod policies;
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
