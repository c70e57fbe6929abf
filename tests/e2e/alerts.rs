//! The alerts and dashboards of the chart, held against the metrics of the real processes: each
//! series that they select exists, each alert has a case that fires it and one that does not, and
//! each has a runbook.

mod cases;
mod dashboards;
mod exposition;
mod record;
mod rules;

use anyhow::{Context, ensure};
use rolegate_testkit::promtool::promtool;

use exposition::Exposition;

const ALERTS: &str = "charts/rolegate/files/alerts.yaml";

#[tokio::test(flavor = "multi_thread")]
async fn every_alert_fires_and_stays_quiet() -> anyhow::Result<()> {
    let mut exposition = Exposition::external();
    for (process, metrics) in record::all().await? {
        if process != record::API_SERVER {
            promtool(&["check", "metrics"], &metrics).context(process)?;
        }
        exposition.add(&metrics)?;
    }
    let alerts = rules::read()?;
    let files = cases::files()?;
    let mut faults = rules::check(&alerts, &exposition)?;
    faults.extend(rules::runbooks(&alerts)?);
    faults.extend(cases::check(&alerts, &files, &exposition)?);
    faults.extend(dashboards::check(&exposition)?);
    ensure!(faults.is_empty(), "{}", faults.join("\n"));

    promtool(&["check", "rules", ALERTS], "")?;
    let mut test = vec!["test", "rules"];
    test.extend(files.iter().map(String::as_str));
    promtool(&test, "")
}

/// The check notices what it is there for.
#[test]
fn faults_of_alerts_are_found() -> anyhow::Result<()> {
    let mut exposition = Exposition::external();
    exposition
        .add("# TYPE rolegate_denied_total counter\nrolegate_denied_total{layer=\"rego\"} 1\n")?;
    for (expression, fault) in [
        ("rolegate_gone > 0", "no process has rolegate_gone"),
        (
            "rate(rolegate_denied_total{kind=\"x\"}[5m]) > 0",
            "has no label kind",
        ),
        (
            "rate(rolegate_denied_total{layer=\"nowhere\"}[5m]) > 0",
            "layer is never nowhere",
        ),
        ("rolegate_denied_total > 0", "is a counter"),
        ("rate(rolegate_denied_total[5m]", "parse error"),
        (
            "sum by (node) (rate(rolegate_denied_total[5m])) > 0",
            "groups by node",
        ),
    ] {
        let faults = exposition.faults(&[("it".to_owned(), expression.to_owned())])?;
        ensure!(
            faults.iter().any(|found| found.contains(fault)),
            "{expression}: {faults:?} without {fault}"
        );
    }
    let right = "sum by (layer) (rate(rolegate_denied_total{layer=\"rego\", job=\"x\"}[5m])) > 0";
    let faults = exposition.faults(&[("it".to_owned(), right.to_owned())])?;
    ensure!(faults.is_empty(), "{faults:?}");
    Ok(())
}
