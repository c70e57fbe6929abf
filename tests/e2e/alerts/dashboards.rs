//! The dashboards: their form, and the expressions of their panels.

use std::fs;

use anyhow::Context;
use rolegate_testkit::repository;
use serde_json::Value;

use super::exposition::Exposition;

const FOLDER: &str = "charts/rolegate/files/dashboards";
/// The files, with the dashboards' stable identifiers: links to a dashboard contain them.
const DASHBOARDS: [(&str, &str); 3] = [
    ("rolegate.json", "rolegate"),
    ("from-kube2iam.json", "rolegate-from-kube2iam"),
    ("from-kiam.json", "rolegate-from-kiam"),
];
/// Grafana's variable for the window of a rate.
const WINDOW: &str = "$__rate_interval";

/// Returns what is wrong with the dashboards.
pub(super) fn check(exposition: &Exposition) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut expressions = Vec::new();
    let folder = repository().join(FOLDER);
    let found = fs::read_dir(&folder)?.count();
    if found != DASHBOARDS.len() {
        faults.push(format!("{FOLDER} has {found} files"));
    }
    for (file, uid) in DASHBOARDS {
        let text = fs::read_to_string(folder.join(file))?;
        let dashboard: Value = serde_json::from_str(&text).context(file)?;
        let wrong = form(&dashboard, uid);
        faults.extend(wrong.into_iter().map(|wrong| format!("{file}: {wrong}")));
        for panel in array(&dashboard, "/panels") {
            let title = text_of(panel, "/title");
            let place = format!("{file}: {title:?}");
            let wrong = panel_faults(panel);
            faults.extend(wrong.into_iter().map(|wrong| format!("{place}: {wrong}")));
            for target in array(panel, "/targets") {
                let expression = text_of(target, "/expr");
                if expression.matches('[').count()
                    != expression.matches(&format!("[{WINDOW}]")).count()
                {
                    faults.push(format!("{place}: a window is not {WINDOW}: {expression}"));
                }
                expressions.push((place.clone(), expression.replace(WINDOW, "5m")));
            }
        }
    }
    faults.extend(exposition.faults(&expressions)?);
    Ok(faults)
}

/// Returns what is wrong with a dashboard as a whole.
fn form(dashboard: &Value, uid: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |pointer: &str, value: Value| {
        let found = dashboard.pointer(pointer).unwrap_or(&Value::Null);
        if *found != value {
            faults.push(format!("{pointer} is {found}, not {value}"));
        }
    };
    expect("/uid", uid.into());
    expect("/editable", false.into());
    expect("/templating/list/0/name", "datasource".into());
    expect("/templating/list/0/type", "datasource".into());
    for (variable, name) in [(1, "job"), (2, "instance")] {
        expect(&format!("/templating/list/{variable}/name"), name.into());
        expect(&format!("/templating/list/{variable}/multi"), true.into());
        expect(
            &format!("/templating/list/{variable}/includeAll"),
            true.into(),
        );
        // When the range of time changes.
        expect(&format!("/templating/list/{variable}/refresh"), 2.into());
    }
    faults
}

/// Returns what is wrong with the form of a panel.
fn panel_faults(panel: &Value) -> Vec<String> {
    let row = text_of(panel, "/type") == "row";
    let needed: &[&str] = if row {
        &["/title"]
    } else {
        &[
            "/title",
            "/description",
            "/fieldConfig/defaults/unit",
            "/targets/0/expr",
        ]
    };
    let missing = needed
        .iter()
        .filter(|pointer| text_of(panel, pointer).is_empty());
    let mut faults: Vec<_> = missing.map(|pointer| format!("no {pointer}")).collect();
    if !row && text_of(panel, "/datasource/uid") != "${datasource}" {
        faults.push("the data source is not the variable".to_owned());
    }
    faults
}

fn array<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn text_of<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
