//! Reports as text, SARIF 2.1.0 and annotations of GitHub workflows.

use std::fmt::{self, Write};

use serde_json::{Value, json};

use super::{CHECK, Checked, Finding, Level, Report};
use crate::case_report::{Case, CaseResult, Complaint, Suite};
use crate::text::{BAD, FAINT, GOOD, TITLE, WARN, count, plain};

/// Maximum number of findings in SARIF. Services reject more.
const MAX_RESULTS: usize = 5000;

impl Report {
    /// Formats the report as text with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        for finding in &self.findings {
            let (style, word) = match finding.level {
                Level::Error => (BAD, "refused"),
                Level::Warning => (WARN, "warning"),
                Level::Note => (FAINT, "note"),
            };
            let (file, line) = (plain(&finding.file), finding.line);
            writeln!(
                out,
                "{TITLE}{file}:{line}{TITLE:#}: {style}{word}{style:#} {}: {}",
                finding.object(),
                plain(&finding.message)
            )?;
            let mut details = Vec::new();
            if finding.layer != CHECK {
                let audited = match finding.level {
                    Level::Warning => " in audit mode",
                    _ => "",
                };
                details.push(format!("layer {}{audited}", finding.layer));
                details.push(format!("rule {}", plain(&finding.rule)));
            }
            if !finding.path.is_empty() {
                details.push(format!("at {}", plain(&finding.path)));
            }
            if let Some(template) = &finding.template {
                details.push(format!("rendered by Helm from {}", plain(template)));
            }
            if !details.is_empty() {
                writeln!(out, "  {FAINT}{}{FAINT:#}", details.join(", "))?;
            }
        }
        writeln!(out, "{}", self.summary())
    }

    /// Summarizes the number of validated objects and their outcomes.
    fn summary(&self) -> String {
        let objects = count(self.checked, "object", "objects");
        let warnings = match self.warnings {
            0 => String::new(),
            number => format!(", {WARN}{}{WARN:#}", count(number, "warning", "warnings")),
        };
        match (self.refused, self.warnings) {
            (0, 0) => format!("{GOOD}{objects} checked, none would be denied{GOOD:#}"),
            (0, _) => format!("{objects} checked, none would be denied{warnings}"),
            (refused, _) => {
                format!("{objects} checked, {BAD}{refused} would be denied{BAD:#}{warnings}")
            }
        }
    }

    /// Returns the report as cases: a suite for each file, a case for each object. With
    /// `fail_on_warning` a warning fails its object.
    pub fn suites(&self, fail_on_warning: bool) -> Vec<Suite> {
        let mut suites: Vec<Suite> = Vec::new();
        for object in &self.objects {
            let case = self.case(object, fail_on_warning);
            match suites.last_mut() {
                Some(suite) if suite.name == object.file => suite.cases.push(case),
                _ => suites.push(Suite {
                    name: object.file.clone(),
                    cases: vec![case],
                }),
            }
        }
        suites
    }

    fn case(&self, object: &Checked, fail_on_warning: bool) -> Case {
        let findings = self
            .findings
            .get(object.findings.clone())
            .unwrap_or_default();
        let fails = |finding: &&Finding| match finding.level {
            Level::Error => true,
            Level::Warning => fail_on_warning,
            Level::Note => false,
        };
        let failed = findings.iter().filter(fails).map(|finding| Complaint {
            kind: format!("{}: {}", finding.layer, finding.rule),
            message: finding.message.clone(),
        });
        let failed: Vec<_> = failed.collect();
        let others = findings.iter().filter(|finding| !fails(finding));
        let remarks = others.map(|one| format!("{}: {}", one.level.as_str(), one.message));
        Case {
            name: object.name.clone(),
            file: object.file.clone(),
            line: object.line,
            result: match failed.is_empty() {
                true => CaseResult::Passed,
                false => CaseResult::Failed(failed),
            },
            remarks: remarks.collect(),
        }
    }

    /// Formats the report as SARIF 2.1.0 (OASIS), which code hosts show next to the lines.
    pub fn sarif(&self) -> Value {
        let mut rules: Vec<_> = self.findings.iter().map(Finding::rule_id).collect();
        rules.sort();
        rules.dedup();
        let results: Vec<_> = self.findings.iter().take(MAX_RESULTS).map(result).collect();
        let rules: Vec<_> = rules
            .into_iter()
            .map(|id| {
                let text = match id.strip_prefix("rolegate/") {
                    Some(CHECK) => "Not validated, or without effect".to_owned(),
                    _ => format!("Denied by {id} of the rules about AWS roles"),
                };
                json!({"id": id, "shortDescription": {"text": text}})
            })
            .collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": {"driver": {
                    "name": "rolegate",
                    "semanticVersion": env!("CARGO_PKG_VERSION"),
                    "informationUri": env!("CARGO_PKG_REPOSITORY"),
                    "rules": rules,
                }},
                "columnKind": "unicodeCodePoints",
                "results": results,
            }],
        })
    }

    /// Formats the report as workflow commands, with which GitHub annotates lines.
    pub fn github(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let title = format!("rolegate: {}", finding.object());
            let level = match finding.level {
                Level::Note => "notice",
                level => level.as_str(),
            };
            text.push_str(&format!(
                "::{level} file={},line={},title={}::{}\n",
                property(&finding.file),
                finding.line,
                property(&title),
                data(&format!(
                    "{} (layer {}, rule {})",
                    finding.message, finding.layer, finding.rule
                )),
            ));
        }
        text
    }
}

impl Finding {
    /// Returns the object by its name.
    fn object(&self) -> String {
        object(&self.kind, &self.namespace, &self.name)
    }

    /// Returns the rule ID in SARIF. It is the layer, since names of rules are arbitrary.
    fn rule_id(&self) -> String {
        format!("rolegate/{}", self.layer)
    }
}

/// Formats an object by its kind, namespace and name.
pub(super) fn object(kind: &str, namespace: &str, name: &str) -> String {
    let (shown, name) = (plain(kind), plain(name));
    if namespace.is_empty() || kind == "Namespace" {
        format!("{shown} {name}")
    } else {
        format!("{shown} {}/{name}", plain(namespace))
    }
}

fn result(finding: &Finding) -> Value {
    let place = match finding.path.as_str() {
        "" => finding.object(),
        path => format!("{}.{path}", finding.object()),
    };
    let message = format!(
        "{}: {} ({})",
        finding.object(),
        finding.message,
        finding.rule
    );
    json!({
        "ruleId": finding.rule_id(),
        "level": finding.level.as_str(),
        "message": {"text": message},
        "locations": [{
            "physicalLocation": {
                "artifactLocation": {"uri": uri(&finding.file)},
                "region": {"startLine": finding.line.max(1)},
            },
            "logicalLocations": [{
                "fullyQualifiedName": place,
                "kind": "resource",
            }],
        }],
    })
}

/// Formats a path as a URI reference (RFC 3986). Relative ones have no `./`.
fn uri(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    let mut uri = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    if path.starts_with('/') {
        format!("file://{uri}")
    } else {
        uri
    }
}

/// Escapes the message of a workflow command, by GitHub's rules.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// Escapes a property of a workflow command, by GitHub's rules.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding() -> Finding {
        Finding {
            level: Level::Error,
            file: "./a b,c:%.yaml".into(),
            line: 7,
            template: Some("shop/templates/api.yaml".into()),
            kind: "Pod".into(),
            namespace: "shop".into(),
            name: "api".into(),
            path: "metadata.annotations[iam.amazonaws.com/role]".into(),
            layer: "grants".into(),
            rule: "default deny".into(),
            message: "no\n::error::grant".into(),
        }
    }

    fn report() -> Report {
        Report {
            checked: 2,
            refused: 1,
            findings: vec![finding()],
            ..Report::default()
        }
    }

    #[test]
    fn threat_25_workflow_commands_cannot_be_forged() {
        assert_eq!(
            report().github(),
            "::error file=./a b%2Cc%3A%25.yaml,line=7,title=rolegate%3A Pod shop/api::no%0A::error::\
             grant (layer grants, rule default deny)\n"
        );
    }

    #[test]
    fn sarif_points_at_the_line() {
        let sarif = report().sarif();
        assert_eq!(sarif["version"], "2.1.0");
        let run = &sarif["runs"][0];
        assert_eq!(run["tool"]["driver"]["rules"][0]["id"], "rolegate/grants");
        let result = &run["results"][0];
        assert_eq!(result["ruleId"], "rolegate/grants");
        assert_eq!(result["level"], "error");
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "a%20b%2Cc%3A%25.yaml");
        assert_eq!(place["region"]["startLine"], 7);
        assert_eq!(uri("/x/y.yaml"), "file:///x/y.yaml");
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
        assert!(Report::default().text().contains("0 objects checked, none"));
    }

    #[test]
    fn the_summary_says_what_the_lines_say() {
        let mut report = report();
        report.refused = 0;
        report.warnings = 1;
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
    fn sarif_names_of_whole_objects_have_no_trailing_dot() {
        let mut report = report();
        report.findings[0].path.clear();
        let sarif = report.sarif();
        let name = &sarif["runs"][0]["results"][0]["locations"][0]["logicalLocations"][0];
        assert_eq!(name["fullyQualifiedName"], "Pod shop/api");
    }
}
