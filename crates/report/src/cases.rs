//! Test results, and their text and JSON forms.

use std::fmt::{self, Write};

use anstyle::Style;
use rolegate_core::text::plain;
use serde_json::{Map, Value, json};

use crate::text::{BAD, FAINT, GOOD, TITLE, WARN, count};

/// A group of cases, such as those of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Suite {
    /// Its name, such as a file.
    pub name: String,
    /// Its cases, in order.
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The file.
    pub file: String,
    /// The line in the file, from 1; 0 for a case that is not about a line.
    pub line: u64,
    /// The result.
    pub result: CaseResult,
    /// A sentence for each remark.
    pub remarks: Vec<String>,
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaseResult {
    /// The case passed.
    Passed,
    /// The case failed.
    Failed(Vec<FailureReason>),
    /// The case could not run, for this reason.
    Errored(String),
    /// The case was skipped, for this reason.
    Skipped(String),
}

/// One reason for a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureReason {
    /// Its kind, such as the layer that denied.
    pub kind: String,
    /// The message, as one sentence.
    pub message: String,
}

/// The test results of a command.
#[derive(Debug, Clone, Default)]
pub struct Cases {
    /// The command.
    pub title: &'static str,
    /// The suites with their cases.
    pub suites: Vec<Suite>,
}

impl Cases {
    /// Returns the number of cases.
    pub fn count(&self) -> usize {
        self.all().count()
    }

    /// Returns whether every case passed or was skipped.
    pub fn has_passed(&self) -> bool {
        let mut cases = self.all();
        cases.all(|case| matches!(case.result, CaseResult::Passed | CaseResult::Skipped(_)))
    }

    /// Returns the names of cases that did not pass: `SUITE/CASE`.
    pub fn failed_names(&self) -> Vec<String> {
        let suites = self.suites.iter();
        let cases = suites.flat_map(|suite| suite.cases.iter().map(move |case| (suite, case)));
        let is_failed =
            |case: &Case| matches!(case.result, CaseResult::Failed(_) | CaseResult::Errored(_));
        cases
            .filter(|(_, case)| is_failed(case))
            .map(|(suite, case)| format!("{}/{}", suite.name, case.name))
            .collect()
    }

    /// Formats the results as text with ANSI colours. `with_passed` includes the cases that passed.
    pub fn text(&self, with_passed: bool) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text, with_passed);
        text
    }

    /// Returns the fields of the results in JSON.
    pub fn json(&self) -> Map<String, Value> {
        let suites = self.suites.iter();
        let tests = suites.flat_map(|suite| suite.cases.iter().map(|case| case_json(suite, case)));
        let counts = Counts::of(self.all());
        Map::from_iter([
            ("tests".to_owned(), tests.collect()),
            ("passed".to_owned(), counts.passed().into()),
            ("failed".to_owned(), counts.failed.into()),
            ("errors".to_owned(), counts.errored.into()),
            ("skipped".to_owned(), counts.skipped.into()),
        ])
    }

    /// Returns all cases.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Case> {
        self.suites.iter().flat_map(|suite| &suite.cases)
    }

    fn write(&self, out: &mut String, with_passed: bool) -> fmt::Result {
        for case in self.all() {
            case.write(out, with_passed)?;
        }
        let counts = Counts::of(self.all());
        let (passed, failed) = (counts.passed(), counts.failed + counts.errored);
        let tests = count(counts.all, "test", "tests");
        let style = if failed == 0 { GOOD } else { BAD };
        let skipped = match counts.skipped {
            0 => String::new(),
            number => format!(", {number} skipped"),
        };
        writeln!(
            out,
            "{style}{tests}: {passed} passed, {failed} failed{skipped}{style:#}"
        )
    }
}

impl Case {
    /// Returns the file and line, for messages.
    pub(crate) fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            line => format!("{}:{line}", self.file),
        }
    }

    fn write(&self, out: &mut String, with_passed: bool) -> fmt::Result {
        let place = plain(&self.place());
        let name = plain(&self.name);
        let mut line = |style: Style, word: &str, details: &[&str], indent: Style| {
            writeln!(
                out,
                "{TITLE}{place}{TITLE:#}: {style}{word}{style:#} {name}"
            )?;
            for detail in details {
                writeln!(out, "  {indent}{}{indent:#}", plain(detail))?;
            }
            Ok(())
        };
        match &self.result {
            CaseResult::Passed if with_passed => line(GOOD, "passed", &[], Style::new()),
            CaseResult::Passed => Ok(()),
            CaseResult::Skipped(why) => line(WARN, "skipped", &[why], FAINT),
            CaseResult::Failed(complaints) => {
                let messages: Vec<_> = complaints.iter().map(|one| one.message.as_str()).collect();
                line(BAD, "failed", &messages, Style::new())
            }
            CaseResult::Errored(why) => line(BAD, "error", &[why], Style::new()),
        }
    }
}

fn case_json(suite: &Suite, case: &Case) -> Value {
    let (result, messages) = match &case.result {
        CaseResult::Passed => ("passed", Vec::new()),
        CaseResult::Failed(complaints) => {
            let messages = complaints.iter().map(|one| one.message.clone());
            ("failed", messages.collect())
        }
        CaseResult::Errored(why) => ("error", vec![why.clone()]),
        CaseResult::Skipped(why) => ("skipped", vec![why.clone()]),
    };
    json!({
        "suite": suite.name, "name": case.name, "file": case.file, "line": case.line,
        "result": result, "messages": messages,
    })
}

/// The number of cases by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) all: usize,
    pub(crate) failed: usize,
    pub(crate) errored: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    /// Counts cases.
    pub(crate) fn of<'a>(cases: impl Iterator<Item = &'a Case>) -> Self {
        let mut counts = Self::default();
        for case in cases {
            counts.all += 1;
            match case.result {
                CaseResult::Passed => {}
                CaseResult::Failed(_) => counts.failed += 1,
                CaseResult::Errored(_) => counts.errored += 1,
                CaseResult::Skipped(_) => counts.skipped += 1,
            }
        }
        counts
    }

    /// Returns the number of cases that passed.
    fn passed(self) -> usize {
        self.all - self.failed - self.errored - self.skipped
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_case_without_a_line_has_the_place_of_its_file() {
        let mut case = cases().suites[0].cases[0].clone();
        assert_eq!(case.place(), "a.yaml:3");
        case.line = 0;
        assert_eq!(case.place(), "a.yaml");
    }

    /// Returns one case of each result, with names and messages that formats must escape.
    pub(crate) fn cases() -> Cases {
        let case = |name: &str, result| Case {
            name: name.into(),
            file: "a.yaml".into(),
            line: 3,
            result,
            remarks: Vec::new(),
        };
        let complaint = |message: &str| FailureReason {
            kind: "grants".into(),
            message: message.into(),
        };
        let failed = vec![complaint("no <grant> & \"none\"\n]]>"), complaint("b")];
        let mut passed = case("fine # todo", CaseResult::Passed);
        passed.remarks.push("worth\u{1}knowing".into());
        let suites = vec![Suite {
            name: "a.yaml".into(),
            cases: vec![
                passed,
                case("bad\nok 2", CaseResult::Failed(failed)),
                case("odd", CaseResult::Errored("it failed".into())),
                case("late", CaseResult::Skipped("to do".into())),
            ],
        }];
        Cases {
            title: "rolegate",
            suites,
        }
    }
}
