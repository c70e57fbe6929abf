//! Manifests and what they are validated with.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rolegate_inventory::files::Manifests;
use rolegate_inventory::load::Loaded;
use rolegate_policy::check::{Existing, Manifest, Operation, check, is_review};
use rolegate_report::findings::Findings;

use super::{Action, CheckArguments};

/// Manifests to validate with any rules.
pub(super) struct Checking<'a> {
    pub(super) arguments: &'a CheckArguments,
    pub(super) manifests: &'a [Manifests],
    pub(super) existing: Existing<'a>,
    /// Errors in rules among the manifests, by file and line.
    pub(super) faults: BTreeMap<(String, u64), String>,
    pub(super) namespace: String,
    pub(super) now: Timestamp,
}

impl Checking<'_> {
    /// Returns the number of objects that are created rather than updated from --old.
    pub(super) fn created(&self) -> usize {
        if self.arguments.old.is_empty() {
            return 0;
        }
        let documents = self.manifests.iter().flat_map(|one| &one.documents);
        let values = documents.map(|document| &document.value);
        values
            .filter(|value| {
                !is_review(value) && self.existing.get(value, &self.namespace).is_none()
            })
            .count()
    }

    /// Validates the manifests with rules.
    pub(super) fn report(&self, loaded: &Loaded) -> Findings {
        let creator = self.arguments.creator();
        let all = self.manifests.iter().flat_map(|one| {
            one.documents.iter().map(|document| Manifest {
                file: &one.file,
                document,
                old: self.existing.get(&document.value, &self.namespace),
                operation: match self.arguments.operation {
                    Action::Create | Action::Update => Operation::Create,
                    Action::Delete => Operation::Delete,
                },
                fault: self
                    .faults
                    .get(&(one.file.clone(), document.line()))
                    .map(String::as_str),
            })
        });
        check(
            &loaded.validation_rules(),
            all,
            &creator,
            &self.namespace,
            self.now,
        )
    }
}
