//! The flags that were given to a command, by the names of their fields.

use std::collections::BTreeSet;

use clap::ArgMatches;
use clap::parser::ValueSource;

/// The names of the fields that the command line or the environment sets, without defaults.
#[derive(Debug, Default, Clone)]
pub(crate) struct GivenFields(BTreeSet<String>);

impl GivenFields {
    /// Returns the flags that were given.
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let is_given = |id: &str| {
            matches
                .value_source(id)
                .is_some_and(|source| source != ValueSource::DefaultValue)
        };
        Self(
            matches
                .ids()
                .map(|id| id.as_str())
                .filter(|id| is_given(id))
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Returns whether a flag was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.0.contains(flag)
    }

    /// Returns `value` if the flag was given, and `lower` otherwise.
    pub(crate) fn pick<T>(&self, flag: &str, value: T, lower: T) -> T {
        if self.has(flag) { value } else { lower }
    }

    /// Returns the names.
    pub(crate) fn names(&self) -> &BTreeSet<String> {
        &self.0
    }
}
