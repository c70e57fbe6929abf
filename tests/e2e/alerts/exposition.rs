//! The names, labels and values in the metrics of processes, and what an expression may select.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use rolegate_testkit::promtool::{self, Matcher, Selector};
use rolegate_testkit::repository;

/// The labels that Prometheus adds to each series.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];
/// Series of others, with their labels: of Prometheus, of kube-state-metrics, and of the API server
/// where it has them only after a fault.
const EXTERNAL: [(&str, &str, &[&str]); 4] = [
    ("up", "gauge", &[]),
    (
        "kube_daemonset_status_desired_number_scheduled",
        "gauge",
        &["namespace", "daemonset"],
    ),
    (
        "kube_daemonset_status_number_available",
        "gauge",
        &["namespace", "daemonset"],
    ),
    (
        "apiserver_admission_webhook_fail_open_count",
        "counter",
        &["name", "type"],
    ),
];
/// The functions that a counter may be inside of. `count`, `absent` and `last_over_time` are for
/// the existence of a series, not for its value.
const FOR_COUNTERS: [&str; 5] = ["rate", "increase", "count", "absent", "last_over_time"];

/// The values of each label of a metric. Empty if any value is possible.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// The metrics of several processes.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    /// By name.
    series: BTreeMap<String, Labels>,
    counters: BTreeSet<String>,
    /// The reference, which lists values that no process of a test has.
    reference: String,
}

impl Exposition {
    /// Returns the series that are not rolegate's.
    pub(super) fn external() -> Self {
        let mut exposition = Self::default();
        for (name, kind, labels) in EXTERNAL {
            let labels = labels
                .iter()
                .map(|label| ((*label).into(), BTreeSet::new()));
            exposition.series.insert(name.into(), labels.collect());
            if kind == "counter" {
                exposition.counters.insert(name.into());
            }
        }
        let reference = repository().join("docs/reference/metrics.md");
        exposition.reference = std::fs::read_to_string(reference).unwrap_or_default();
        exposition
    }

    /// Adds metrics in the text format.
    pub(super) fn add(&mut self, text: &str) -> anyhow::Result<()> {
        for line in text.lines() {
            let Some(kind) = line.strip_prefix("# TYPE ") else {
                continue;
            };
            match kind.split_once(' ').context("a type without a name")? {
                (name, "counter") => {
                    self.counters.insert(name.to_owned());
                }
                (name, "histogram") => {
                    let parts = ["_bucket", "_count", "_sum"];
                    let parts = parts.map(|part| format!("{name}{part}"));
                    self.counters.extend(parts);
                }
                _ => {}
            }
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let series = samples.filter_map(|sample| match sample.rfind('}') {
            Some(end) => sample.get(..=end),
            None => sample.split(' ').next().filter(|name| !name.is_empty()),
        });
        for sample in promtool::parse(series)? {
            for Selector { name, matchers, .. } in sample.selectors {
                let labels = self.series.entry(name).or_default();
                for Matcher { label, value, .. } in matchers {
                    labels.entry(label).or_default().insert(value);
                }
            }
        }
        Ok(())
    }

    /// Returns what is wrong with expressions, each of which has a name for the reader.
    pub(super) fn faults(&self, expressions: &[(String, String)]) -> anyhow::Result<Vec<String>> {
        let parsed = promtool::parse(expressions.iter().map(|(_, expression)| &**expression))?;
        let mut faults = Vec::new();
        for ((place, text), expression) in expressions.iter().zip(parsed) {
            let mut fault = |fault: String| faults.push(format!("{place}: {fault}: {text}"));
            if !expression.error.is_empty() {
                fault(expression.error);
                continue;
            }
            for selector in &expression.selectors {
                for wrong in self.selector(selector) {
                    fault(wrong);
                }
            }
            let names = expression.selectors.iter().map(|selector| &*selector.name);
            for label in self.unknown_labels(names, &expression.grouping) {
                fault(format!("it groups by {label}, which no series in it has"));
            }
        }
        Ok(faults)
    }

    fn unknown_labels<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        grouping: &[String],
    ) -> Vec<String> {
        let known: BTreeSet<&str> = names
            .filter_map(|name| self.series.get(name))
            .flat_map(|labels| labels.keys().map(String::as_str))
            .chain(TARGET_LABELS)
            .collect();
        let unknown = grouping.iter().filter(|label| !known.contains(&***label));
        unknown.cloned().collect()
    }

    /// Returns what is wrong with a selector of series in an expression.
    fn selector(&self, selector: &Selector) -> Vec<String> {
        let mut faults = self.labels(selector);
        let functions = &selector.functions;
        let counter = self.counters.contains(&selector.name);
        if counter && !functions.iter().any(|it| FOR_COUNTERS.contains(&&**it)) {
            faults.push(format!("{} is a counter without a rate", selector.name));
        }
        faults
    }

    /// Returns what is wrong with the name and labels of a selector.
    pub(super) fn labels(&self, selector: &Selector) -> Vec<String> {
        let name = &selector.name;
        let Some(labels) = self.series.get(name) else {
            return vec![format!("no process has {name}")];
        };
        let faults = selector.matchers.iter().filter_map(|matcher| {
            let Matcher { label, value, .. } = matcher;
            if TARGET_LABELS.contains(&&**label) {
                return None;
            }
            let Some(values) = labels.get(label) else {
                return Some(format!("{name} has no label {label}"));
            };
            let plain = value
                .chars()
                .all(|it| it.is_ascii_alphanumeric() || "_-|".contains(it));
            // Names that vary, such as those of DaemonSets and the version, have no fixed set.
            if values.is_empty() || !plain {
                return None;
            }
            let wrong = value.split('|').find(|value| {
                let cell = format!("`{value}`");
                let example = format!("\"{value}\"");
                !values.contains(*value)
                    && !self.reference.contains(&cell)
                    && !self.reference.contains(&example)
            });
            wrong.map(|wrong| format!("{label} is never {wrong}"))
        });
        faults.collect()
    }
}
