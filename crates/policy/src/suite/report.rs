//! Test reports as text and JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use rolegate_core::text::plain;
use rolegate_rego::Lines;
use rolegate_report::cases::Cases;
use rolegate_report::text::count;
use serde_json::{Value, json};

/// The results of all tests.
#[derive(Debug, Clone, Default)]
pub struct TestReport {
    /// Suites with their cases: one for each test file, and one for each file with tests in Rego.
    pub cases: Cases,
    /// The used rules.
    pub covered: Covered,
}

/// The used rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Covered {
    /// The lines of each policy module, by its file, or by its ConfigMap and entry.
    pub modules: BTreeMap<String, Lines>,
    /// The grants, and whether each allowed a role.
    pub grants: BTreeMap<String, bool>,
}

impl Covered {
    /// Adds the lines of a module, which other sets of rules may have used too.
    pub fn add_module(&mut self, name: &str, lines: &Lines) {
        let known = self.modules.entry(name.to_owned()).or_default();
        known.covered.extend(&lines.covered);
        known.not_covered.extend(&lines.not_covered);
        known
            .not_covered
            .retain(|line| !known.covered.contains(line));
    }

    /// Adds a grant, which other sets of rules may have used too.
    pub fn add_grant(&mut self, name: &str, is_used: bool) {
        *self.grants.entry(name.to_owned()).or_default() |= is_used;
    }

    /// Returns the number of evaluated lines, and of all lines that can be evaluated.
    fn lines(&self) -> (usize, usize) {
        let of = |lines: &Lines| (lines.covered.len(), lines.not_covered.len());
        let counts = self.modules.values().map(of);
        counts.fold((0, 0), |(covered, all), (more, missing)| {
            (covered + more, all + more + missing)
        })
    }
}

/// Returns the covered percentage, rounded down; 100 if there is nothing to cover.
fn percent(part: usize, all: usize) -> usize {
    (part * 100).checked_div(all).unwrap_or(100)
}

impl TestReport {
    /// Formats the report as text with ANSI colours. `all` includes passed tests.
    pub fn text(&self, all: bool, with_coverage: bool) -> String {
        let mut text = self.cases.text(all);
        if with_coverage {
            // Writing into a String cannot fail.
            let _ = self.covered.write(&mut text);
        }
        text
    }

    /// Formats the report as one JSON document.
    pub fn json(&self) -> Value {
        let mut fields = self.cases.json();
        fields.insert("coverage".into(), self.covered.json());
        fields.into()
    }
}

impl Covered {
    fn write(&self, out: &mut String) -> fmt::Result {
        let (covered, all) = self.lines();
        let used = self.grants.values().filter(|used| **used).count();
        writeln!(
            out,
            "coverage: {} % of {} of policies, {used} of {}",
            percent(covered, all),
            count(all, "line", "lines"),
            count(self.grants.len(), "grant", "grants"),
        )?;
        for (name, lines) in &self.modules {
            if !lines.not_covered.is_empty() {
                let missing = ranges(lines.not_covered.iter().copied());
                writeln!(out, "  {}: not evaluated: {missing}", plain(name))?;
            }
        }
        for (name, _) in self.grants.iter().filter(|(_, used)| !**used) {
            writeln!(out, "  RoleGrant {}: allowed nothing", plain(name))?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let (covered, all) = self.lines();
        let modules = self.modules.iter().map(|(name, lines)| {
            json!({"name": name, "covered": lines.covered, "notCovered": lines.not_covered})
        });
        let grants = self
            .grants
            .iter()
            .map(|(name, used)| json!({"name": name, "used": used}));
        json!({
            "percent": percent(covered, all),
            "lines": all,
            "coveredLines": covered,
            "modules": modules.collect::<Vec<_>>(),
            "grants": grants.collect::<Vec<_>>(),
        })
    }
}

/// Formats numbers as ranges: `1, 3-5`.
fn ranges(numbers: impl Iterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let shown = ranges.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use rolegate_report::cases::{Case, CaseResult, FailureReason, Suite};

    use super::*;

    #[test]
    fn failures_are_reported_with_their_line_and_passes_on_request() {
        let case = |name: &str, result| Case {
            name: name.into(),
            file: "a.yaml".into(),
            line: 3,
            result,
            remarks: Vec::new(),
        };
        let failed = vec![FailureReason {
            kind: "verdict".into(),
            message: "expected denied".into(),
        }];
        let lines = Lines {
            covered: [1, 2, 3].into(),
            not_covered: [4, 6, 7, 8].into(),
        };
        let mut covered = Covered::default();
        covered.add_module("a.rego", &lines);
        let more = Lines {
            covered: [4].into(),
            not_covered: [3].into(),
        };
        covered.add_module("a.rego", &more);
        covered.add_grant("shop", false);
        let report = TestReport {
            cases: Cases {
                title: "test",
                suites: vec![Suite {
                    name: "a".into(),
                    cases: vec![
                        case("one", CaseResult::Passed),
                        case("two", CaseResult::Failed(failed)),
                        case("three", CaseResult::Skipped("to do".into())),
                    ],
                }],
            },
            covered,
        };
        let plain = |text: String| {
            let mut out = String::new();
            let mut parts = text.split('\x1b');
            out.push_str(parts.next().unwrap());
            for part in parts {
                out.push_str(part.split_once('m').unwrap().1);
            }
            out
        };
        assert_eq!(
            plain(report.text(true, true)),
            "a.yaml:3: passed one\na.yaml:3: failed two\n  expected denied\n\
             a.yaml:3: skipped three\n  to do\n3 tests: 1 passed, 1 failed, 1 skipped\n\
             coverage: 57 % of 7 lines of policies, 0 of 1 grant\n\
             \u{20} a.rego: not evaluated: 6-8\n\u{20} RoleGrant shop: allowed nothing\n"
        );
        assert!(!report.text(false, false).contains("one"));
        assert!(!report.cases.has_passed());
        let json = report.json();
        assert_eq!(
            (&json["failed"], &json["coverage"]["percent"]),
            (&json!(1), &json!(57))
        );
        assert_eq!(json["tests"][1]["messages"][0], "expected denied");
    }
}
