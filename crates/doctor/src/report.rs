//! The report of an examination, for people and for other programs.

use std::fmt::{self, Write};

use rolegate_core::text::plain;
use rolegate_report::cases::{Case, CaseResult, Cases, FailureReason, Suite};
use rolegate_report::text::{BAD, FAINT, GOOD, TITLE, WARN, count};
use serde_json::{Value, json};

use crate::check::{Checked, Finding, Outcome, Status};

/// The width of the status in text, in characters.
const STATUS_WIDTH: usize = 11;
/// Maximum number of findings of one check in text. JSON has all of them.
const MAX_SHOWN: usize = 10;

/// The checks of one subject and their outcomes.
#[derive(Debug, Clone)]
pub struct Report {
    /// The subject, such as a cluster and its URL.
    pub subject: String,
    /// The checks, in the order of their table.
    pub checks: Vec<Checked>,
    /// True if a warning fails its check.
    pub fails_on_warning: bool,
}

impl Report {
    pub(crate) fn new(subject: String, checks: Vec<Checked>) -> Self {
        Self {
            subject,
            checks,
            fails_on_warning: false,
        }
    }

    /// Returns whether a check failed.
    pub fn has_failed(&self) -> bool {
        let mut checks = self.checks.iter();
        checks.any(|check| self.fails(check.outcome.status()))
    }

    /// Returns the names of checks that failed.
    pub fn failed_names(&self) -> Vec<String> {
        let failed = self.checks.iter();
        failed
            .filter(|check| self.fails(check.outcome.status()))
            .map(|check| check.name.to_owned())
            .collect()
    }

    /// Formats the report as text with ANSI colours: a line for each check, with advice below.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    /// Returns the report as JSON.
    pub fn json(&self) -> Value {
        let findings = |outcome: &Outcome| -> Vec<_> {
            let findings = outcome.findings.iter();
            findings
                .map(|finding| {
                    json!({
                        "status": finding.status.as_str(),
                        "message": finding.message,
                        "advice": finding.advice,
                    })
                })
                .collect()
        };
        let checks = self.checks.iter().map(|check| {
            json!({
                "name": check.name,
                "status": check.outcome.status().as_str(),
                "summary": check.outcome.summary,
                "findings": findings(&check.outcome),
            })
        });
        let counts = Status::ALL.map(|status| (status.as_str().to_owned(), self.count(status)));
        json!({
            "subject": self.subject,
            "checks": checks.collect::<Vec<_>>(),
            "counts": counts.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        })
    }

    /// Returns the checks as test cases. A check that was not evaluated is skipped.
    pub fn cases(&self) -> Cases {
        let case = |check: &Checked| Case {
            name: check.name.to_owned(),
            file: self.subject.clone(),
            line: 0,
            result: self.result(&check.outcome),
            remarks: check
                .outcome
                .findings
                .iter()
                .filter(|finding| !self.fails(finding.status))
                .map(|finding| format!("{}: {}", finding.status.words(), finding.message))
                .collect(),
        };
        Cases {
            title: "rolegate doctor",
            suites: vec![Suite {
                name: self.subject.clone(),
                cases: self.checks.iter().map(case).collect(),
            }],
        }
    }

    fn fails(&self, status: Status) -> bool {
        match status {
            Status::Problem => true,
            Status::Warning => self.fails_on_warning,
            Status::NotChecked | Status::Ok => false,
        }
    }

    fn result(&self, outcome: &Outcome) -> CaseResult {
        let failing = outcome.findings.iter();
        let reasons: Vec<_> = failing
            .filter(|finding| self.fails(finding.status))
            .map(|finding| FailureReason {
                kind: finding.status.as_str().to_owned(),
                message: match &finding.advice {
                    Some(advice) => format!("{}; {advice}", finding.message),
                    None => finding.message.clone(),
                },
            })
            .collect();
        match (reasons.is_empty(), outcome.status()) {
            (false, _) => CaseResult::Failed(reasons),
            (true, Status::NotChecked) => CaseResult::Skipped(outcome.summary.clone()),
            (true, _) => CaseResult::Passed,
        }
    }

    fn count(&self, status: Status) -> usize {
        let mut statuses = self.checks.iter().map(|check| check.outcome.status());
        statuses.by_ref().filter(|one| *one == status).count()
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "{TITLE}{}{TITLE:#}", plain(&self.subject))?;
        let names = self.checks.iter().map(|check| check.name.len());
        let width = names.max().unwrap_or_default();
        for check in &self.checks {
            let status = check.outcome.status();
            let style = style(status);
            let words = format!("{:<STATUS_WIDTH$}", status.words());
            let name = format!("{:<width$}", check.name);
            let summary = plain(&check.outcome.summary);
            writeln!(out, "{style}{words}{style:#}  {name}  {summary}")?;
            let indent = " ".repeat(STATUS_WIDTH + width + 4);
            findings(out, &check.outcome, &indent)?;
        }
        writeln!(out, "\n{}", self.summary())
    }

    fn summary(&self) -> String {
        let numbers = Status::ALL.map(|status| (status, self.count(status)));
        let parts = numbers.iter().filter(|(_, number)| *number > 0);
        let parts: Vec<_> = parts
            .map(|(status, number)| {
                let style = style(*status);
                let text = match status {
                    Status::Problem => count(*number, "problem", "problems"),
                    Status::Warning => count(*number, "warning", "warnings"),
                    Status::NotChecked | Status::Ok => format!("{number} {}", status.words()),
                };
                format!("{style}{text}{style:#}")
            })
            .collect();
        parts.join(", ")
    }
}

fn style(status: Status) -> anstyle::Style {
    match status {
        Status::Ok => GOOD,
        Status::NotChecked => FAINT,
        Status::Warning => WARN,
        Status::Problem => BAD,
    }
}

/// Writes the findings below the line of their check. The line has the message of a single finding
/// already, and advice that several findings share is written once.
fn findings(out: &mut String, outcome: &Outcome, indent: &str) -> fmt::Result {
    let all = &outcome.findings;
    let is_said = |finding: &Finding| all.len() == 1 && finding.message == outcome.summary;
    let shown = all.iter().take(MAX_SHOWN);
    let mut shown = shown.peekable();
    while let Some(finding) = shown.next() {
        if !is_said(finding) {
            let style = style(finding.status);
            let message = plain(&finding.message);
            writeln!(out, "{indent}{style}-{style:#} {message}")?;
        }
        let next = shown.peek().and_then(|next| next.advice.as_ref());
        if let Some(advice) = finding.advice.as_ref().filter(|one| Some(*one) != next) {
            for (number, line) in advice.lines().enumerate() {
                let arrow = if number == 0 { "→" } else { " " };
                writeln!(out, "{indent}{arrow} {}", plain(line))?;
            }
        }
    }
    match all.len().saturating_sub(MAX_SHOWN) {
        0 => Ok(()),
        more => writeln!(out, "{indent}{FAINT}and {more} more: see -o json{FAINT:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let checked = |name, outcome| Checked { name, outcome };
        let advised = |message: &str| Finding::problem(message).advice("restart it");
        let outcomes = vec![
            checked("nodes", Outcome::ok("3 nodes")),
            checked(
                "agents",
                Outcome::of(
                    "2 agents fail",
                    vec![advised("a fails"), advised("b\nfails")],
                ),
            ),
            checked("rights", Finding::not_checked("not permitted").into()),
            checked(
                "layers",
                Finding::warning("all are off").advice("x\ny").into(),
            ),
        ];
        Report::new("cluster".into(), outcomes)
    }

    fn bare(text: &str) -> String {
        let mut bare = String::new();
        let mut is_code = false;
        for c in text.chars() {
            match c {
                '\u{1b}' => is_code = true,
                'm' if is_code => is_code = false,
                c if !is_code => bare.push(c),
                _ => {}
            }
        }
        bare
    }

    #[test]
    fn text_has_one_line_a_check_and_advice_once() {
        assert_eq!(
            bare(&report().text()),
            "cluster\n\
             ok           nodes   3 nodes\n\
             problem      agents  2 agents fail\n\
            \x20                    - a fails\n\
            \x20                    - b\\u{a}fails\n\
            \x20                    → restart it\n\
             not checked  rights  not permitted\n\
             warning      layers  all are off\n\
            \x20                    → x\n\
            \x20                      y\n\
             \n\
             1 problem, 1 warning, 1 not checked, 1 ok\n"
        );
    }

    #[test]
    fn long_lists_are_cut_in_text_only() {
        let findings = (0..25).map(|number| Finding::problem(number.to_string()));
        let outcome = Outcome::of("many", findings.collect());
        let checks = vec![Checked { name: "a", outcome }];
        let report = Report::new("x".into(), checks);
        assert!(report.text().contains("and 15 more"));
        let json = report.json();
        assert_eq!(json["checks"][0]["findings"].as_array().unwrap().len(), 25);
    }

    #[test]
    fn only_problems_fail_unless_warnings_do() {
        let mut report = report();
        assert!(report.has_failed());
        assert_eq!(report.failed_names(), ["agents"]);
        report.fails_on_warning = true;
        assert_eq!(report.failed_names(), ["agents", "layers"]);
        report.checks.retain(|check| check.name == "rights");
        assert!(!report.has_failed());
    }

    #[test]
    fn cases_skip_what_was_not_checked() {
        let cases = report().cases();
        let results: Vec<_> = cases.suites[0]
            .cases
            .iter()
            .map(|case| &case.result)
            .collect();
        assert!(matches!(results[0], CaseResult::Passed));
        assert!(matches!(results[1], CaseResult::Failed(reasons) if reasons.len() == 2));
        assert!(matches!(results[2], CaseResult::Skipped(_)));
        assert!(matches!(results[3], CaseResult::Passed));
        assert_eq!(cases.suites[0].cases[3].remarks, ["warning: all are off"]);
    }

    #[test]
    fn json_has_the_status_of_each_check() {
        let json = report().json();
        assert_eq!(json["checks"][2]["status"], "notChecked");
        assert_eq!(json["counts"]["problem"], 1);
        assert_eq!(json["checks"][1]["findings"][0]["advice"], "restart it");
    }
}
