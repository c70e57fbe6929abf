//! Tests of rules: objects with the expected verdict, validated as at admission, and the rules that
//! they used.

mod format;
mod observe;
mod report;

use std::fmt::Write;

use jiff::Timestamp;
use rolegate_review::{Outcome, ValidationRules, Violation};

pub use format::{Expect, FormatError, Objects, PolicyTest, Refuser, Select, TestCase, Verdict};
pub use observe::Observer;
pub use report::{Covered, TestReport};

use crate::check::{self, Creator, Existing, Manifest, Operation};
use rolegate_api::manifest::Document;
use rolegate_core::text::plain;
use rolegate_report::cases::{CaseResult, FailureReason};

/// The parsed objects of a case.
#[derive(Debug, Clone, Copy)]
pub struct Subjects<'a> {
    /// The objects to validate, before selection.
    pub objects: &'a [Document],
    /// The existing objects.
    pub old: &'a [Document],
}

impl TestCase {
    /// Runs the case. `shown` returns the displayed name of a policy.
    pub fn run(
        &self,
        rules: &ValidationRules<'_>,
        subjects: Subjects<'_>,
        shown: impl Fn(&str) -> String,
        now: Timestamp,
    ) -> CaseResult {
        let existing = Existing::of(
            subjects.old.iter().map(|document| &document.value),
            &self.namespace,
        );
        let creator = Creator {
            user: self.user.clone(),
            groups: self.groups.clone(),
        };
        let selected = subjects.objects.iter().filter(|one| self.selects(one));
        let (mut judged, mut complaints) = (0, Vec::new());
        for document in selected {
            judged += 1;
            let name = self.named(document);
            let old = existing.get(&document.value, &self.namespace);
            if old.is_none() && self.operation == Operation::Update {
                return CaseResult::Errored(format!(
                    "{name} is not among the existing objects, so it cannot be updated"
                ));
            }
            let manifest = Manifest {
                file: "",
                document,
                old,
                operation: self.operation,
                fault: None,
            };
            match check::judged(rules, manifest, &creator, &self.namespace, now) {
                Err(why) => return CaseResult::Errored(format!("cannot validate {name}: {why}")),
                Ok(outcome) => {
                    complaints.extend(self.expect.complaint(&outcome, &shown).map(|what| {
                        FailureReason {
                            kind: "verdict".into(),
                            message: format!("{name}: {what}"),
                        }
                    }))
                }
            }
        }
        match (judged, complaints.is_empty()) {
            (0, _) => CaseResult::Errored("no object is selected, so nothing was validated".into()),
            (_, true) => CaseResult::Passed,
            (_, false) => CaseResult::Failed(complaints),
        }
    }

    fn selects(&self, document: &Document) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let namespace = check::namespace_of(&document.value, &self.namespace);
        is(&self.select.kind, document.text("/kind"))
            && is(&self.select.name, document.text("/metadata/name"))
            && is(&self.select.namespace, Some(namespace))
    }

    fn named(&self, document: &Document) -> String {
        let text = |pointer| plain(document.text(pointer).unwrap_or_default());
        let namespace = plain(check::namespace_of(&document.value, &self.namespace));
        format!("{} {namespace}/{}", text("/kind"), text("/metadata/name"))
    }
}

impl Expect {
    /// Describes how the outcome differs from the expectation.
    fn complaint(&self, outcome: &Outcome, shown: &impl Fn(&str) -> String) -> Option<String> {
        let verdict = match (outcome.is_allowed(), outcome.warnings.is_empty()) {
            (false, _) => Verdict::Denied,
            (true, false) => Verdict::Warned,
            (true, true) => Verdict::Allowed,
        };
        let said = match verdict {
            Verdict::Denied => &outcome.violations,
            Verdict::Warned | Verdict::Allowed => &outcome.warnings,
        };
        let listed = || {
            let mut list = String::new();
            for fault in said {
                // Writing into a String cannot fail.
                let _ = write!(
                    list,
                    "; by layer {}, rule {}: {}",
                    fault.denied_by,
                    shown(&fault.rule),
                    shown(&fault.reason)
                );
            }
            if let Some(cause) = outcome.undecided.as_ref().filter(|_| said.is_empty()) {
                let _ = write!(list, "; {cause}");
            }
            list
        };
        if verdict != self.verdict {
            let (wanted, found) = (self.verdict.as_str(), verdict.as_str());
            return Some(format!("expected {wanted}, but it is {found}{}", listed()));
        }
        let missing = self
            .by
            .iter()
            .find(|refuser| !said.iter().any(|fault| refuser.is(fault, shown)))?;
        Some(format!(
            "it is {} as expected, but not by {}{}",
            verdict.as_str(),
            missing.shown(),
            listed()
        ))
    }
}

impl Refuser {
    fn is(&self, fault: &Violation, shown: &impl Fn(&str) -> String) -> bool {
        let is = |wanted: &Option<String>, holds: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(holds)
        };
        is(&self.layer, &|layer| layer == fault.denied_by.as_str())
            && is(&self.path, &|path| path == fault.path)
            && is(&self.message, &|part| shown(&fault.reason).contains(part))
            && is(&self.rule, &|rule| {
                let found = shown(&fault.rule);
                let end = found.strip_suffix(rule);
                end.is_some_and(|before| before.is_empty() || before.ends_with('/'))
            })
    }

    fn shown(&self) -> String {
        let parts = [
            ("layer", &self.layer),
            ("rule", &self.rule),
            ("path", &self.path),
            ("message", &self.message),
        ];
        let given: Vec<_> = parts
            .iter()
            .filter_map(|(name, value)| {
                let value = value.as_deref()?;
                Some(format!("{name} {:?}", plain(value)))
            })
            .collect();
        given.join(", ")
    }
}

#[cfg(test)]
mod tests;
