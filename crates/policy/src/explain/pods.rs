//! The decisions for all pods of a namespace or a cluster.

use jiff::Timestamp;
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::workload::{Phase, Workload};
use serde::Serialize;

use super::{Explained, Outcome, Question, explain};
use rolegate_report::text::{BAD, GOOD, count, table};

/// The decisions for all unfinished pods. Its JSON is the output of `rolegate policy explain -A -o
/// json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedPods {
    /// The number of pods by outcome.
    pub counts: Counts,
    /// The pods, by namespace and name: all, or only denied ones.
    pub items: Vec<Explained>,
}

/// Pods by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All pods.
    pub pods: usize,
    /// Pods that get a role.
    pub allowed: usize,
    /// Pods that are denied their requested role.
    pub denied: usize,
    /// Pods without a role, and pods on the host's network, which get no credentials.
    pub no_role: usize,
}

impl Explained {
    /// Returns whether the pod is denied its requested or default role.
    pub fn is_denied(&self) -> bool {
        match self.decision {
            Outcome::Denied | Outcome::UnknownNamespace => true,
            // Nothing ever served such pods, so nothing is taken from them.
            Outcome::Allowed | Outcome::NoRole | Outcome::HostNetwork => false,
        }
    }
}

/// Explains the decision for each unfinished pod. With `only_denied`, it keeps only denied pods.
pub fn explain_pods(
    rules: &RuleSet,
    grants: &GrantsLayer,
    workloads: &[Workload],
    only_denied: bool,
    now: Timestamp,
) -> ExplainedPods {
    let mut counts = Counts::default();
    let mut items = Vec::new();
    for workload in workloads {
        if matches!(workload.phase, Phase::Succeeded | Phase::Failed) {
            continue;
        }
        let explained = explain(&Question {
            rules,
            grants,
            policies: &[],
            workload,
            web_identity: None,
            admission: None,
            now,
        });
        counts.pods += 1;
        match explained.decision {
            Outcome::Allowed => counts.allowed += 1,
            Outcome::NoRole | Outcome::HostNetwork => counts.no_role += 1,
            Outcome::Denied | Outcome::UnknownNamespace => counts.denied += 1,
        }
        if !only_denied || explained.is_denied() {
            items.push(explained);
        }
    }
    let name = |one: &Explained| (one.workload.namespace.clone(), one.workload.name.clone());
    items.sort_by_cached_key(name);
    ExplainedPods { counts, items }
}

impl ExplainedPods {
    /// Formats a table with ANSI colours in the summary. `is_wide` adds columns.
    pub fn text(&self, is_wide: bool) -> String {
        let mut titles = vec!["NAMESPACE", "POD", "ROLE", "DECISION", "REASON"];
        if is_wide {
            titles.extend(["SERVICE ACCOUNT", "LAYER", "RULE", "FIX"]);
        }
        let mut text = String::new();
        if !self.items.is_empty() {
            text = table(&titles, self.items.iter().map(|one| row(one, is_wide)));
            text.push('\n');
        }
        let Counts { pods, denied, .. } = self.counts;
        let pods = count(pods, "pod", "pods");
        let sum = match denied {
            0 => format!("{GOOD}none{GOOD:#} of {pods} denied their role\n"),
            some => format!("{BAD}{some}{BAD:#} of {pods} denied their role\n"),
        };
        text + &sum
    }
}

fn row(one: &Explained, is_wide: bool) -> Vec<String> {
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let asker = &one.workload;
    let role = one.role.as_deref().or(asker.requested_role.as_deref());
    let (decision, reason) = match one.decision {
        Outcome::Allowed => ("allowed", None),
        Outcome::Denied => ("denied", one.denial.as_ref().map(|one| &*one.reason)),
        Outcome::NoRole => ("no role", None),
        Outcome::UnknownNamespace => ("denied", Some("unknown namespace")),
        Outcome::HostNetwork => ("no credentials", Some("the pod is on the host's network")),
    };
    let mut row = vec![
        asker.namespace.clone(),
        asker.name.clone(),
        or_none(role.filter(|role| !role.is_empty())),
        decision.to_owned(),
        or_none(reason),
    ];
    if is_wide {
        let denial = one.denial.as_ref();
        row.extend([
            asker.service_account.clone(),
            or_none(denial.map(|one| one.denied_by.as_str())),
            or_none(denial.map(|one| &*one.rule)),
            or_none(one.advice.as_deref()),
        ]);
    }
    row
}
