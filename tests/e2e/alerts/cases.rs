//! The cases of `tests/alerts`, which promtool runs: each alert has one that fires it and one that
//! does not, on series that the processes have.

use std::collections::BTreeMap;

use anyhow::Context;
use rolegate_testkit::{promtool, repository};
use serde::Deserialize;
use serde_json::Value;

use super::exposition::Exposition;
use super::rules::Alert;

const FOLDER: &str = "tests/alerts";

#[derive(Debug, Deserialize)]
struct File {
    tests: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    input_series: Vec<Series>,
    alert_rule_test: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
struct Series {
    series: String,
}

#[derive(Debug, Deserialize)]
struct Expected {
    alertname: String,
    exp_alerts: Vec<Value>,
}

/// Returns the files of cases, as paths from the repository's root.
pub(super) fn files() -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(repository().join(FOLDER))? {
        let name = entry?.file_name();
        files.push(format!("{FOLDER}/{}", name.display()));
    }
    files.sort();
    Ok(files)
}

/// Returns the alerts without both cases, and the series that no process has.
pub(super) fn check(
    alerts: &[Alert],
    files: &[String],
    exposition: &Exposition,
) -> anyhow::Result<Vec<String>> {
    let mut cases = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(repository().join(file))?;
        let file: File = serde_saphyr::from_str(&text).with_context(|| file.clone())?;
        cases.extend(file.tests);
    }
    let mut faults = Vec::new();
    // The number of cases in which an alert fires, and in which it doesn't.
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for expected in cases.iter().flat_map(|case| &case.alert_rule_test) {
        let count = counts.entry(&expected.alertname).or_default();
        if expected.exp_alerts.is_empty() {
            count.1 += 1;
        } else {
            count.0 += 1;
        }
    }
    for Alert { name, .. } in alerts {
        let (fires, quiet) = counts.remove(&**name).unwrap_or_default();
        if fires == 0 {
            faults.push(format!("{name}: no case fires it"));
        }
        if quiet == 0 {
            faults.push(format!("{name}: no case keeps it quiet"));
        }
    }
    let others = counts.keys();
    faults.extend(others.map(|name| format!("{FOLDER}: there is no alert {name}")));

    let series: Vec<(&str, &str)> = cases
        .iter()
        .flat_map(|case| {
            let series = case.input_series.iter();
            series.map(move |series| (&*case.name, &*series.series))
        })
        .collect();
    let parsed = promtool::parse(series.iter().map(|(_, series)| *series))?;
    for ((case, text), parsed) in series.into_iter().zip(parsed) {
        let selectors = parsed.selectors.iter();
        let wrong = selectors.flat_map(|selector| exposition.labels(selector));
        faults.extend(wrong.map(|wrong| format!("{case}: {wrong}: {text}")));
    }
    Ok(faults)
}
