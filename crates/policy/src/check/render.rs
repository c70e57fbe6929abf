//! Reports as text, SARIF 2.1.0 and annotations of GitHub's workflows.

use std::fmt::{self, Write};

use serde_json::{Value, json};

use super::{Finding, Level, Report};
use crate::text::{BAD, FAINT, GOOD, TITLE, WARN, count, plain};

/// Most findings in SARIF: services refuse more.
const MOST_RESULTS: usize = 5000;

impl Report {
    /// The report for people, with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A String takes whatever is written.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        for finding in &self.findings {
            let (style, word) = match finding.level {
                Level::Error => (BAD, "refused"),
                Level::Warning => (WARN, "would be refused"),
            };
            let (file, line) = (plain(&finding.file), finding.line);
            writeln!(
                out,
                "{TITLE}{file}:{line}{TITLE:#}: {style}{word}{style:#} {}: {}",
                finding.object(),
                plain(&finding.message)
            )?;
            write!(
                out,
                "  {FAINT}layer {}, rule {}",
                finding.layer,
                plain(&finding.rule)
            )?;
            if !finding.path.is_empty() {
                write!(out, ", at {}", plain(&finding.path))?;
            }
            if let Some(template) = &finding.template {
                write!(out, ", from {}", plain(template))?;
            }
            writeln!(out, "{FAINT:#}")?;
        }
        let objects = count(self.checked, "object", "objects");
        match self.refused {
            0 => writeln!(
                out,
                "{GOOD}{objects} checked, none would be refused{GOOD:#}"
            ),
            refused => writeln!(
                out,
                "{objects} checked, {BAD}{refused} would be refused{BAD:#}"
            ),
        }
    }

    /// The report as SARIF 2.1.0 (OASIS), which code hosts show beside the lines.
    pub fn sarif(&self) -> Value {
        let mut rules: Vec<_> = self.findings.iter().map(Finding::rule_id).collect();
        rules.sort();
        rules.dedup();
        let results: Vec<_> = self
            .findings
            .iter()
            .take(MOST_RESULTS)
            .map(result)
            .collect();
        let rules: Vec<_> = rules
            .into_iter()
            .map(|id| {
                let text = format!("Refused by {id} of the AWS roles' rules");
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

    /// The report as workflow commands, by which GitHub annotates lines.
    pub fn github(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let title = format!("rolegate: {}", finding.object());
            text.push_str(&format!(
                "::{} file={},line={},title={}::{}\n",
                finding.level.as_str(),
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
    /// The object by its name.
    fn object(&self) -> String {
        let (kind, name) = (plain(&self.kind), plain(&self.name));
        if self.namespace.is_empty() || self.kind == "Namespace" {
            format!("{kind} {name}")
        } else {
            format!("{kind} {}/{name}", plain(&self.namespace))
        }
    }

    /// The rule as SARIF names it: rules of layers are anybody's words, layers are few.
    fn rule_id(&self) -> String {
        format!("rolegate/{}", self.layer)
    }
}

fn result(finding: &Finding) -> Value {
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
                "fullyQualifiedName": format!("{}.{}", finding.object(), finding.path),
                "kind": "resource",
            }],
        }],
    })
}

/// A path as the reference of a URI (RFC 3986), relative ones without `./`.
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

/// The message of a workflow command, by GitHub's rules.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A property of a workflow command, by GitHub's rules.
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
        assert!(text.contains("from shop/templates/api.yaml"), "{text}");
        assert!(Report::default().text().contains("0 objects checked, none"));
    }
}
