//! The answer of a process's `/readyz`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::check::Finding;

/// The state of a process, see `rolegate_runtime::readiness::Report`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ReadyReport {
    /// True if the process is ready.
    pub(crate) ready: bool,
    /// Work of the start that is in progress.
    pub(crate) waiting: Vec<String>,
    /// Failing conditions by name.
    pub(crate) failing: BTreeMap<String, String>,
    /// Conditions that need attention, by name.
    pub(crate) noted: BTreeMap<String, String>,
}

impl ReadyReport {
    /// Parses the body of a response.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_slice(body).ok()?;
        value.get("ready")?.as_bool()?;
        serde_json::from_value(value).ok()
    }

    /// Returns a finding for each condition that is not healthy. `process` names the process.
    pub(crate) fn findings(&self, process: &str) -> Vec<Finding> {
        let table = "see docs/how-to/debug-a-denied-pod.md, \"The agent is not ready\"";
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|what| Finding::problem(format!("{process} waits: {what}")));
        let failing = self
            .failing
            .iter()
            .map(|(name, why)| Finding::problem(format!("{process}: {name}: {why}")).advice(table));
        let noted = self.noted.iter();
        let noted = noted.map(|(name, why)| Finding::warning(format!("{process}: {name}: {why}")));
        waiting.chain(failing).chain(noted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn conditions_become_findings() {
        let body = br#"{"ready": false, "waiting": ["pods"], "failing": {"redirect": "gone"},
            "noted": {"layers": "none"}, "ok": ["rules"]}"#;
        let report = ReadyReport::parse(body).unwrap();
        let findings = report.findings("agent a");
        let statuses: Vec<_> = findings.iter().map(|one| one.status).collect();
        assert_eq!(
            statuses,
            [Status::Problem, Status::Problem, Status::Warning]
        );
        assert_eq!(findings[1].message, "agent a: redirect: gone");
        let fine = ReadyReport::parse(br#"{"ready": true}"#).unwrap();
        assert!(fine.findings("agent a").is_empty());
        assert_eq!(ReadyReport::parse(b"{}"), None);
        assert_eq!(ReadyReport::parse(b"ready"), None);
    }

    #[test]
    fn the_processes_own_reports_are_read() {
        let readiness = rolegate_runtime::readiness::Readiness::new();
        readiness.condition("redirect").fail("gone");
        readiness.condition("layers").note("all are off");
        let body = serde_json::to_vec(&readiness.report()).unwrap();
        let report = ReadyReport::parse(&body).unwrap();
        assert!(!report.ready);
        assert_eq!(report.failing["redirect"], "gone");
        assert_eq!(report.noted["layers"], "all are off");
    }
}
