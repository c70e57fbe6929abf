//! The version of this program, and the commit it was built from with its date.

use std::fmt;

/// A version, its commit and its date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The version, as in `Cargo.toml`.
    pub version: &'static str,
    /// The commit from the variable `BUILD_REVISION` at compile time, or `unknown`.
    pub revision: &'static str,
    /// The day from the variable `BUILD_DATE` at compile time, or `unknown`. Reproducible builds set
    /// the day of the commit.
    pub date: &'static str,
}

impl Version {
    /// The version of this build.
    pub const CURRENT: Self = Self {
        version: env!("CARGO_PKG_VERSION"),
        revision: match option_env!("BUILD_REVISION") {
            Some(revision) => revision,
            None => "unknown",
        },
        date: match option_env!("BUILD_DATE") {
            Some(date) => date,
            None => "unknown",
        },
    };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            revision,
            date,
        } = self;
        write!(f, "{version} (commit {revision}, built {date})")
    }
}
