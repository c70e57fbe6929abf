//! The version of this program and the commit it was built from.

use std::fmt;

/// A version and its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The version, as in `Cargo.toml`.
    pub version: &'static str,
    /// The commit from the variable `BUILD_REVISION` at compile time, or `unknown`.
    pub revision: &'static str,
}

impl Version {
    /// The version of this build.
    pub const CURRENT: Self = Self {
        version: env!("CARGO_PKG_VERSION"),
        revision: match option_env!("BUILD_REVISION") {
            Some(revision) => revision,
            None => "unknown",
        },
    };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (commit {})", self.version, self.revision)
    }
}
