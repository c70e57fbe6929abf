//! Reports of commands that check something, for people and for other programs.
//!
//! [`findings::Findings`] is a list of findings about Kubernetes objects, and [`cases::Cases`] is a
//! list of test results. Both have a text form and a JSON form. [`format::FORMATS`] lists the
//! formats for CI systems and code hosts: a new format is one file in `format/` and one line there.
//!
//! This crate does not know what a command checks. A command sets the words of its reports with
//! [`findings::Wording`].

pub mod cases;
pub mod findings;
pub mod format;
pub mod text;

/// Exit code of a command that found a fault: a finding that fails its object, or a failed test.
pub const EXIT_FINDINGS: u8 = 3;
