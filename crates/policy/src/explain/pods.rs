//! The decisions for all pods of a namespace or a cluster.

use jiff::Timestamp;
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::workload::{Phase, Workload};
use serde::Serialize;

use super::{Explained, Outcome, Question, explain};
use crate::text::{BAD, GOOD, count, table};

/// The decisions for pods that are not finished; as JSON it is what `rolegate policy explain -A -o json`
/// prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedPods {
    /// How many pods there are, by outcome.
    pub counts: Counts,
    /// The pods, by namespace and name: all, or those that are refused.
    pub items: Vec<Explained>,
}

/// Pods by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All.
    pub pods: usize,
    /// Those that get a role.
    pub allowed: usize,
    /// Those that name a role and do not get it.
    pub denied: usize,
    /// Those without a role.
    pub no_role: usize,
}

impl Explained {
    /// Whether the pod names a role, or has a default one, and does not get it.
    pub fn is_denied(&self) -> bool {
        match self.decision {
            Outcome::Denied | Outcome::UnknownNamespace => true,
            Outcome::Allowed | Outcome::NoRole => false,
        }
    }
}

/// Explains the decision for each pod that is not finished; with `only_denied` those alone are kept that
/// are refused.
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
            gate: None,
            now,
        });
        counts.pods += 1;
        match explained.decision {
            Outcome::Allowed => counts.allowed += 1,
            Outcome::NoRole => counts.no_role += 1,
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
    /// A table for people, with ANSI colours below it; `is_wide` with more columns.
    pub fn text(&self, is_wide: bool) -> String {
        let mut titles = vec!["NAMESPACE", "POD", "ROLE", "DECISION", "REASON"];
        if is_wide {
            titles.extend(["SERVICE ACCOUNT", "LAYER", "RULE", "TO DO"]);
        }
        let mut text = String::new();
        if !self.items.is_empty() {
            text = table(&titles, self.items.iter().map(|one| row(one, is_wide)));
            text.push('\n');
        }
        let Counts { pods, denied, .. } = self.counts;
        let pods = count(pods, "pod", "pods");
        let sum = match denied {
            0 => format!("{GOOD}none{GOOD:#} of {pods} is refused its role\n"),
            some => format!("{BAD}{some}{BAD:#} of {pods} refused their role\n"),
        };
        text + &sum
    }
}

fn row(one: &Explained, is_wide: bool) -> Vec<String> {
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let asker = &one.workload;
    let role = one.role.as_deref().or(asker.wished_role.as_deref());
    let (decision, reason) = match one.decision {
        Outcome::Allowed => ("allowed", None),
        Outcome::Denied => ("refused", one.denial.as_ref().map(|one| &*one.reason)),
        Outcome::NoRole => ("no role", None),
        Outcome::UnknownNamespace => ("refused", Some("the namespace is not known")),
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
            or_none(denial.map(|one| &*one.layer)),
            or_none(denial.map(|one| &*one.rule)),
            or_none(one.advice.as_deref()),
        ]);
    }
    row
}
