//! The lines of policies that evaluations reach, for tests of policies.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use regorus::Engine;

/// The lines of modules that were evaluated, over all evaluations.
#[derive(Debug, Default)]
pub struct Coverage(Mutex<BTreeMap<String, Lines>>);

/// Lines of a module, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    /// Lines that were evaluated.
    pub covered: BTreeSet<u32>,
    /// Lines with an expression that was never evaluated.
    pub not_covered: BTreeSet<u32>,
}

impl Coverage {
    /// Adds the lines that an engine evaluated.
    pub(crate) fn add(&self, engine: &Engine) {
        let Ok(report) = engine.get_coverage_report() else {
            return;
        };
        let mut modules = self.0.lock();
        for file in report.files {
            let lines = modules.entry(file.path).or_default();
            lines.covered.extend(file.covered);
            lines.not_covered.extend(file.not_covered);
            lines
                .not_covered
                .retain(|line| !lines.covered.contains(line));
        }
    }

    /// Returns the lines of a module; `None` if nothing of it was evaluated.
    pub(crate) fn of(&self, place: &str) -> Option<Lines> {
        let modules = self.0.lock();
        modules.get(place).cloned()
    }
}
