//! What `rolegate policy` tells about rules, as plain data and text: why a pod may have a role,
//! which manifests would be refused, whom a change of the rules cuts off, and which grants cover
//! what runs.
//!
//! Nothing is decided here: every answer comes from the decision that the doors and the gate ask.
//! There is no I/O either; documents come in as text or JSON, and what is found goes out as data
//! with its renderings.

pub mod basis;
pub mod case_report;
pub mod check;
pub mod convert;
pub mod document;
pub mod explain;
pub mod manifest;
pub mod missing;
pub mod overlay;
pub mod simulate;
pub mod suggest;
pub mod suite;
pub mod text;
pub mod vap;

#[cfg(test)]
mod fixtures;
