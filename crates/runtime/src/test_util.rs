//! Helpers for the tests of this crate and of those that use it (feature `test-util`).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may panic: that is how it fails"
)]

use std::fmt;
use std::ops::Deref;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The text exposition of a registry.
#[derive(Debug)]
pub struct Exposition(String);

impl Exposition {
    /// Encodes the metrics of `registry`.
    ///
    /// # Panics
    /// Panics if a collector fails.
    pub fn encode(registry: &Registry) -> Self {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        Self(text)
    }

    /// Returns true if `line` is one of the lines.
    pub fn has_line(&self, line: &str) -> bool {
        self.lines().any(|found| found == line)
    }

    /// Checks that each of `lines` is one of the lines.
    ///
    /// # Panics
    /// Panics at the first missing line.
    #[track_caller]
    pub fn assert_lines(&self, lines: impl IntoIterator<Item = impl AsRef<str>>) {
        for line in lines {
            let line = line.as_ref();
            assert!(self.has_line(line), "{line} not in\n{}", self.0);
        }
    }

    /// Returns the value of `series`, a metric's name with its labels.
    ///
    /// # Panics
    /// Panics if the series is missing.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        let mut samples = self.lines().filter_map(|line| line.rsplit_once(' '));
        match samples.find(|(found, _)| *found == series) {
            Some((_, value)) => value.parse().unwrap(),
            None => panic!("{series} not in\n{}", self.0),
        }
    }
}

impl fmt::Display for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Deref for Exposition {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}
