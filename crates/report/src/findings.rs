//! Findings about Kubernetes objects, and their text and JSON forms.

use std::fmt::{self, Display, Write};
use std::ops::Range;

use rolegate_core::text::plain;
use serde_json::{Map, Value, json};

use crate::cases::{Case, CaseResult, Cases, FailureReason, Suite};
use crate::text::{BAD, FAINT, GOOD, TITLE, WARN, count};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The object fails the check.
    Error,
    /// The finding may become an error, or a part of the object has no effect.
    Warning,
    /// Information.
    Note,
}

impl Level {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: String,
    /// The line in the file, from 1.
    pub line: u64,
    /// The template from which Helm rendered the object, if known.
    pub template: Option<String>,
}

/// The kind and name of a Kubernetes object. It displays as `Pod shop/api`, escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// The kind.
    pub kind: String,
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (plain(&self.kind), plain(&self.name));
        if self.namespace.is_empty() || self.kind == "Namespace" {
            write!(f, "{kind} {name}")
        } else {
            write!(f, "{kind} {}/{name}", plain(&self.namespace))
        }
    }
}

/// A finding about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The line of the field or of the object.
    pub location: Location,
    /// The object.
    pub object: ObjectName,
    /// The path of the field in the object; empty for the whole object.
    pub path: String,
    /// The category of the rule, from a fixed set of the command. It is the rule ID of SARIF, since
    /// names of rules may be arbitrary.
    pub category: String,
    /// The rule in that category.
    pub rule: String,
    /// The fault and its correction.
    pub message: String,
}

/// The words of a command's findings.
#[derive(Debug, Clone, Copy)]
pub struct Wording {
    /// The noun for a category. It is the name of the JSON field too.
    pub category: &'static str,
    /// The category of findings that come from the command itself and not from a rule. The text
    /// report prints no category and no rule for them.
    pub remarks: &'static str,
    /// The participle for objects with an error, such as `refused`. It also names the JSON field
    /// with their number.
    pub failed: &'static str,
    /// The verb phrase for objects with an error in the summary, such as `would be denied`.
    pub would_fail: &'static str,
    /// The text that follows the category of a warning, such as ` in audit mode`.
    pub of_warnings: &'static str,
    /// Describes a category in one sentence, for SARIF.
    pub describe: fn(category: &str) -> String,
}

/// An object that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedObject {
    /// The file.
    pub file: String,
    /// The line in the file, from 1.
    pub line: u64,
    /// The kind and name.
    pub name: ObjectName,
    /// The range of findings about it.
    pub findings: Range<usize>,
}

/// The objects that a command checked, and its findings.
#[derive(Debug, Clone)]
pub struct Findings {
    /// The command.
    pub title: &'static str,
    /// The command's words.
    pub wording: Wording,
    /// True if a warning fails its object.
    pub fails_on_warning: bool,
    /// All checked objects.
    pub objects: Vec<CheckedObject>,
    /// All findings, in the order of the objects.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// Creates an empty report of the command `title`.
    pub fn new(title: &'static str, wording: Wording) -> Self {
        Self {
            title,
            wording,
            fails_on_warning: false,
            objects: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Adds a checked object and the findings about it.
    pub fn add(&mut self, file: &str, line: u64, name: ObjectName, found: Vec<Finding>) {
        let first = self.findings.len();
        self.objects.push(CheckedObject {
            file: file.to_owned(),
            line,
            name,
            findings: first..first + found.len(),
        });
        self.findings.extend(found);
    }

    /// Returns the number of objects with an error.
    pub fn failed(&self) -> usize {
        let has_error = |object: &&CheckedObject| {
            let mut findings = self.of(object).iter();
            findings.any(|finding| finding.level == Level::Error)
        };
        self.objects.iter().filter(has_error).count()
    }

    /// Returns the number of warnings.
    pub fn warnings(&self) -> usize {
        let levels = self.findings.iter().map(|finding| finding.level);
        levels.filter(|level| *level == Level::Warning).count()
    }

    /// Returns whether a finding fails its object.
    pub fn has_failed(&self) -> bool {
        self.findings.iter().any(|finding| self.fails(finding))
    }

    /// Returns whether there is a warning or an error.
    pub fn has_faults(&self) -> bool {
        self.findings.iter().any(|one| one.level != Level::Note)
    }

    /// Returns the names of objects with an error, as in kubectl: `pod/api`.
    pub fn names(&self) -> Vec<String> {
        let errors = self.findings.iter().filter(|one| one.level == Level::Error);
        let mut names: Vec<_> = errors
            .map(|one| {
                let kind = one.object.kind.to_lowercase();
                format!("{kind}/{}", one.object.name)
            })
            .collect();
        names.dedup();
        names
    }

    /// Formats the report as text with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    /// Returns the fields of the report in JSON.
    pub fn json(&self) -> Map<String, Value> {
        let findings = self
            .findings
            .iter()
            .map(|finding| self.finding_json(finding));
        Map::from_iter([
            ("checked".to_owned(), self.objects.len().into()),
            (self.wording.failed.to_owned(), self.failed().into()),
            ("warnings".to_owned(), self.warnings().into()),
            ("findings".to_owned(), findings.collect()),
        ])
    }

    /// Returns the report as cases: a suite for each file, a case for each object.
    pub fn cases(&self) -> Cases {
        let mut suites: Vec<Suite> = Vec::new();
        for object in &self.objects {
            let case = self.case(object);
            match suites.last_mut() {
                Some(suite) if suite.name == object.file => suite.cases.push(case),
                _ => suites.push(Suite {
                    name: object.file.clone(),
                    cases: vec![case],
                }),
            }
        }
        Cases {
            title: self.title,
            suites,
        }
    }

    fn of(&self, object: &CheckedObject) -> &[Finding] {
        let findings = self.findings.get(object.findings.clone());
        findings.unwrap_or_default()
    }

    fn fails(&self, finding: &Finding) -> bool {
        match finding.level {
            Level::Error => true,
            Level::Warning => self.fails_on_warning,
            Level::Note => false,
        }
    }

    fn case(&self, object: &CheckedObject) -> Case {
        let (failing, others): (Vec<_>, Vec<_>) =
            self.of(object).iter().partition(|one| self.fails(one));
        let complaints: Vec<_> = failing
            .into_iter()
            .map(|finding| FailureReason {
                kind: format!("{}: {}", finding.category, finding.rule),
                message: finding.message.clone(),
            })
            .collect();
        let remarks = others
            .into_iter()
            .map(|one| format!("{}: {}", one.level.as_str(), one.message));
        Case {
            name: object.name.to_string(),
            file: object.file.clone(),
            line: object.line,
            result: if complaints.is_empty() {
                CaseResult::Passed
            } else {
                CaseResult::Failed(complaints)
            },
            remarks: remarks.collect(),
        }
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        for finding in &self.findings {
            let (style, word) = match finding.level {
                Level::Error => (BAD, self.wording.failed),
                Level::Warning => (WARN, "warning"),
                Level::Note => (FAINT, "note"),
            };
            let (file, line) = (plain(&finding.location.file), finding.location.line);
            writeln!(
                out,
                "{TITLE}{file}:{line}{TITLE:#}: {style}{word}{style:#} {}: {}",
                finding.object,
                plain(&finding.message)
            )?;
            let details = self.details(finding);
            if !details.is_empty() {
                writeln!(out, "  {FAINT}{}{FAINT:#}", details.join(", "))?;
            }
        }
        writeln!(out, "{}", self.summary())
    }

    /// Returns the details of a finding, for the line below its message.
    fn details(&self, finding: &Finding) -> Vec<String> {
        let mut details = Vec::new();
        if finding.category != self.wording.remarks {
            let phrase = match finding.level {
                Level::Warning => self.wording.of_warnings,
                Level::Error | Level::Note => "",
            };
            let noun = self.wording.category;
            details.push(format!("{noun} {}{phrase}", finding.category));
            details.push(format!("rule {}", plain(&finding.rule)));
        }
        if !finding.path.is_empty() {
            details.push(format!("at {}", plain(&finding.path)));
        }
        if let Some(template) = &finding.location.template {
            details.push(format!("rendered by Helm from {}", plain(template)));
        }
        details
    }

    /// Summarizes the number of checked objects and their outcomes.
    fn summary(&self) -> String {
        let objects = count(self.objects.len(), "object", "objects");
        let (failed, warnings) = (self.failed(), self.warnings());
        let would_fail = self.wording.would_fail;
        if failed == 0 && warnings == 0 {
            return format!("{GOOD}{objects} checked, none {would_fail}{GOOD:#}");
        }
        let warnings = match warnings {
            0 => String::new(),
            number => format!(", {WARN}{}{WARN:#}", count(number, "warning", "warnings")),
        };
        match failed {
            0 => format!("{objects} checked, none {would_fail}{warnings}"),
            failed => format!("{objects} checked, {BAD}{failed} {would_fail}{BAD:#}{warnings}"),
        }
    }

    fn finding_json(&self, finding: &Finding) -> Value {
        let Finding {
            level,
            location,
            object,
            path,
            category,
            rule,
            message,
        } = finding;
        json!({
            "level": level.as_str(),
            "file": location.file,
            "line": location.line,
            "template": location.template,
            "kind": object.kind,
            "namespace": object.namespace,
            "name": object.name,
            "path": path,
            (self.wording.category): category,
            "rule": rule,
            "message": message,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns a report of an imaginary command with one finding.
    pub(crate) fn report() -> Findings {
        let wording = Wording {
            category: "layer",
            remarks: "check",
            failed: "refused",
            would_fail: "would be denied",
            of_warnings: " in audit mode",
            describe: |category| format!("Denied by {category}"),
        };
        let mut report = Findings::new("test", wording);
        let object = |name: &str| ObjectName {
            kind: "Pod".into(),
            namespace: "shop".into(),
            name: name.into(),
        };
        let finding = Finding {
            level: Level::Error,
            location: Location {
                file: "./a b,c:%.yaml".into(),
                line: 7,
                template: Some("shop/templates/api.yaml".into()),
            },
            object: object("api"),
            path: "metadata.annotations[iam.amazonaws.com/role]".into(),
            category: "grants".into(),
            rule: "default deny".into(),
            message: "no\n::error::grant".into(),
        };
        report.add("./a b,c:%.yaml", 1, object("api"), vec![finding]);
        report.add("./a b,c:%.yaml", 20, object("web"), Vec::new());
        report
    }

    #[test]
    fn the_text_is_one_line_a_finding_and_one_of_details() {
        let text = report().text();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.contains("Pod shop/api: no\\u{a}::error::grant"),
            "{text}"
        );
        assert!(
            text.contains("rule default deny, at metadata.annotations[iam.amazonaws.com/role], rendered by Helm from shop/templates/api.yaml"),
            "{text}"
        );
        let empty = Findings::new("test", report().wording);
        assert!(empty.text().contains("0 objects checked, none"));
    }

    #[test]
    fn the_summary_says_what_the_lines_say() {
        let mut report = report();
        report.findings[0].level = Level::Warning;
        let text = report.text();
        assert!(text.contains("layer grants in audit mode"), "{text}");
        let last = text.lines().last().unwrap();
        assert!(
            last.contains("none would be denied") && last.contains("1 warning"),
            "{text}"
        );
        assert!(!text.lines().next().unwrap().contains("refused"), "{text}");
    }

    #[test]
    fn json_uses_the_words_of_the_command() {
        let json = report().json();
        assert_eq!((&json["checked"], &json["refused"]), (&json!(2), &json!(1)));
        assert_eq!(json["findings"][0]["layer"], "grants");
        assert_eq!(report().names(), ["pod/api"]);
    }

    #[test]
    fn a_warning_fails_its_object_only_if_it_should() {
        let mut report = report();
        assert!(report.has_failed());
        report.findings[0].level = Level::Warning;
        assert!(!report.has_failed() && report.has_faults());
        let case = |report: &Findings| report.cases().suites[0].cases[0].clone();
        assert_eq!(case(&report).result, CaseResult::Passed);
        assert_eq!(case(&report).remarks, ["warning: no\n::error::grant"]);
        report.fails_on_warning = true;
        assert!(report.has_failed());
        assert!(matches!(case(&report).result, CaseResult::Failed(_)));
    }
}
