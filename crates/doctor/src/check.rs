//! A check, and its outcome.

use crate::reading::Unread;

/// The status of a check, from the least to the most serious.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Evaluated, without a finding.
    Ok,
    /// Not evaluated, or only in part.
    NotChecked,
    /// Works, but needs attention.
    Warning,
    /// Does not work.
    Problem,
}

impl Status {
    /// All of them, in the order of the summary.
    pub const ALL: [Self; 4] = [Self::Problem, Self::Warning, Self::NotChecked, Self::Ok];

    /// Returns its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotChecked => "notChecked",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }

    /// Returns its name in text.
    pub fn words(self) -> &'static str {
        match self {
            Self::NotChecked => "not checked",
            other => other.as_str(),
        }
    }
}

/// One finding of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The severity, which is not [`Status::Ok`].
    pub status: Status,
    /// The fault, or the reason why something is not checked, as one sentence.
    pub message: String,
    /// The remedy. It may have several lines, such as an object to apply.
    pub advice: Option<String>,
}

impl Finding {
    /// Returns a finding about something that does not work.
    pub fn problem(message: impl Into<String>) -> Self {
        Self::of(Status::Problem, message)
    }

    /// Returns a finding about something that needs attention.
    pub fn warning(message: impl Into<String>) -> Self {
        Self::of(Status::Warning, message)
    }

    /// Returns a finding about something that could not be evaluated.
    pub fn not_checked(message: impl Into<String>) -> Self {
        Self::of(Status::NotChecked, message)
    }

    /// Adds the remedy.
    #[must_use]
    pub fn advice(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }

    fn of(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            advice: None,
        }
    }
}

impl From<Unread> for Finding {
    fn from(unread: Unread) -> Self {
        let finding = Self::not_checked(unread.to_string());
        match unread.advice() {
            Some(advice) => finding.advice(advice),
            None => finding,
        }
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The observed state, in a few words.
    pub summary: String,
    /// The findings. Without any, the check passed.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Returns the outcome of a check without a finding.
    pub fn ok(summary: impl Into<String>) -> Self {
        Self::of(summary, Vec::new())
    }

    /// Returns an outcome with these findings. The summary describes all of them.
    pub fn of(summary: impl Into<String>, findings: Vec<Finding>) -> Self {
        Self {
            summary: summary.into(),
            findings,
        }
    }

    /// Returns the status: that of the most serious finding.
    pub fn status(&self) -> Status {
        let statuses = self.findings.iter().map(|finding| finding.status);
        statuses.max().unwrap_or(Status::Ok)
    }
}

impl From<Finding> for Outcome {
    fn from(finding: Finding) -> Self {
        Self::of(finding.message.clone(), vec![finding])
    }
}

/// A check of the facts `F`.
pub(crate) struct Check<F> {
    /// Its name, which users see and programs rely on.
    pub(crate) name: &'static str,
    /// Evaluates the facts. A fact that was not read ends the check.
    pub(crate) run: fn(&F) -> Result<Outcome, Unread>,
}

/// A check that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The check's name.
    pub name: &'static str,
    /// Its outcome.
    pub outcome: Outcome,
}

/// Runs checks in their order.
pub(crate) fn run<F>(checks: &[Check<F>], facts: &F) -> Vec<Checked> {
    let run = |check: &Check<F>| Checked {
        name: check.name,
        outcome: (check.run)(facts).unwrap_or_else(|unread| Finding::from(unread).into()),
    };
    checks.iter().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unread_fact_is_never_a_pass() {
        let checks: [Check<()>; 1] = [Check {
            name: "a",
            run: |()| Err(Unread::TimedOut("nodes".into())),
        }];
        let checked = run(&checks, &());
        assert_eq!(checked[0].outcome.status(), Status::NotChecked);
    }

    #[test]
    fn the_worst_finding_counts() {
        let findings = vec![
            Finding::not_checked("a"),
            Finding::problem("b"),
            Finding::warning("c"),
        ];
        assert_eq!(Outcome::of("", findings).status(), Status::Problem);
        let findings = vec![Finding::not_checked("a"), Finding::warning("c")];
        assert_eq!(Outcome::of("", findings).status(), Status::Warning);
        assert_eq!(Outcome::ok("").status(), Status::Ok);
    }
}
