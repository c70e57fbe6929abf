//! SARIF 2.1.0 (OASIS), which code hosts show next to the lines.

use rolegate_core::text::escape_json;
use serde_json::{Value, json};

use super::{Format, Renderer};
use crate::findings::{Finding, Findings};

/// The format.
pub(super) const FORMAT: Format = Format {
    name: "sarif",
    help: "SARIF 2.1.0, for code hosts",
    renderer: Renderer::Findings(render),
};

/// Maximum number of findings. Services reject more.
const MAX_RESULTS: usize = 5000;

fn render(report: &Findings) -> String {
    escape_json(&format!("{:#}\n", document(report))).into_owned()
}

fn document(report: &Findings) -> Value {
    let findings = report.findings.iter();
    let mut categories: Vec<_> = findings.clone().map(|one| one.category.as_str()).collect();
    categories.sort_unstable();
    categories.dedup();
    let results: Vec<_> = findings.take(MAX_RESULTS).map(result).collect();
    let rules: Vec<_> = categories
        .into_iter()
        .map(|category| {
            let text = (report.wording.describe)(category);
            json!({"id": rule_id(category), "shortDescription": {"text": text}})
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

/// Returns the ID of a rule. It is made of the category, since names of rules are arbitrary.
fn rule_id(category: &str) -> String {
    format!("rolegate/{category}")
}

fn result(finding: &Finding) -> Value {
    let Finding {
        object,
        location,
        message,
        rule,
        ..
    } = finding;
    let place = match finding.path.as_str() {
        "" => object.to_string(),
        path => format!("{object}.{path}"),
    };
    json!({
        "ruleId": rule_id(&finding.category),
        "level": finding.level.as_str(),
        "message": {"text": format!("{object}: {message} ({rule})")},
        "locations": [{
            "physicalLocation": {
                "artifactLocation": {"uri": uri(&location.file)},
                "region": {"startLine": location.line.max(1)},
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::tests::report;

    #[test]
    fn sarif_points_at_the_line() {
        let sarif = document(&report());
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
    fn sarif_names_of_whole_objects_have_no_trailing_dot() {
        let mut report = report();
        report.findings[0].path.clear();
        let sarif = document(&report);
        let name = &sarif["runs"][0]["results"][0]["locations"][0]["logicalLocations"][0];
        assert_eq!(name["fullyQualifiedName"], "Pod shop/api");
    }
}
