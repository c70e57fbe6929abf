//! The alerts: their form, their expressions, and their runbooks.

use std::collections::BTreeMap;

use rolegate_testkit::repository;
use serde::Deserialize;

use super::ALERTS;
use super::exposition::Exposition;

const RUNBOOKS: &str = "docs/how-to/runbooks.md";
/// The address of the page of runbooks.
const RUNBOOKS_URL: &str = "https://github.com/rolegate/rolegate/blob/main/docs/how-to/runbooks.md";
/// The parts of a runbook.
const PARTS: [&str; 4] = ["Meaning", "Impact", "Diagnosis", "Mitigation"];
/// The shortest `for`: two scrapes at an interval of a minute.
const SHORTEST_FOR: &str = "2m";

#[derive(Debug, Deserialize)]
struct File {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

/// An alert.
#[derive(Debug, Deserialize)]
pub(super) struct Alert {
    #[serde(rename = "alert")]
    pub(super) name: String,
    pub(super) expr: String,
    #[serde(rename = "for")]
    lasting: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// Reads the alerts, in the order of the file.
pub(super) fn read() -> anyhow::Result<Vec<Alert>> {
    let text = std::fs::read_to_string(repository().join(ALERTS))?;
    let file: File = serde_saphyr::from_str(&text)?;
    Ok(file
        .groups
        .into_iter()
        .flat_map(|group| group.rules)
        .collect())
}

/// Returns what is wrong with the alerts.
pub(super) fn check(alerts: &[Alert], exposition: &Exposition) -> anyhow::Result<Vec<String>> {
    let expressions: Vec<_> = alerts
        .iter()
        .map(|alert| (alert.name.clone(), alert.expr.clone()))
        .collect();
    let mut faults = exposition.faults(&expressions)?;
    for alert in alerts {
        let name = &alert.name;
        let mut expect = |right: bool, what: &str| {
            if !right {
                faults.push(format!("{name}: {what}"));
            }
        };
        let rest = name.strip_prefix("Rolegate").unwrap_or_default();
        let camel = rest.starts_with(|it: char| it.is_ascii_uppercase())
            && rest.chars().all(|it| it.is_ascii_alphanumeric());
        expect(camel, "the name is not Rolegate… in CamelCase");
        let severity = alert.labels.get("severity").map_or("", String::as_str);
        let known = ["critical", "warning", "info"].contains(&severity);
        expect(
            known && alert.labels.len() == 1,
            "severity is the only label",
        );
        let long = minutes(&alert.lasting) >= minutes(SHORTEST_FOR);
        expect(long, "`for` is shorter than two scrapes");
        let annotation = |key| alert.annotations.get(key).map_or("", String::as_str);
        let summary = annotation("summary");
        expect(
            summary.ends_with('.') && !summary.contains("{{"),
            "the summary is not one fixed sentence",
        );
        expect(annotation("description").ends_with('.'), "no description");
        let url = format!("{RUNBOOKS_URL}#{}", name.to_lowercase());
        expect(annotation("runbook_url") == url, "runbook_url is another");
    }
    Ok(faults)
}

/// Returns the minutes of a duration in one unit; 0 if it has another form.
fn minutes(duration: &str) -> u32 {
    let units = [("m", 1), ("h", 60), ("d", 24 * 60)];
    let found = units.iter().find_map(|(unit, minutes)| {
        let number: u32 = duration.strip_suffix(unit)?.parse().ok()?;
        Some(number * minutes)
    });
    found.unwrap_or_default()
}

/// Returns the alerts without a runbook that has all its parts, and runbooks without an alert.
pub(super) fn runbooks(alerts: &[Alert]) -> anyhow::Result<Vec<String>> {
    let page = std::fs::read_to_string(repository().join(RUNBOOKS))?;
    let mut runbooks: BTreeMap<&str, &str> = page
        .split("\n### ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .collect();
    let mut faults = Vec::new();
    for Alert { name, .. } in alerts {
        let runbook = runbooks.remove(&**name).unwrap_or_default();
        let parts = PARTS
            .iter()
            .filter(|part| !runbook.contains(&format!("**{part}.** ")));
        faults.extend(parts.map(|part| format!("{name}: its runbook has no part {part}")));
    }
    let others = runbooks.keys();
    faults.extend(others.map(|name| format!("{RUNBOOKS}: there is no alert {name}")));
    Ok(faults)
}
