//! Simulates a rule change: the pods that it denies or allows, and those whose session changes.

mod recreated;
mod show;

use std::collections::BTreeMap;

use jiff::Timestamp;
use rolegate_core::decision::{Decision, Denial, RuleSet};
use rolegate_core::layer::LayerId;
use rolegate_core::session::SessionKey;
use rolegate_core::workload::{Phase, Workload};
use serde::Serialize;

use crate::explain::Session;

/// The effect of a change on the existing pods. Pods with the same effect are one entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Simulation {
    /// The number of pods, without finished ones.
    pub pods: usize,
    /// The number of pods with the same session, or without one, before and after.
    pub unchanged: usize,
    /// Pods that have a role now, and would have none.
    pub newly_denied: Vec<Affected>,
    /// Pods that keep running, but that admission would deny when they are re-created, which it
    /// does not now; see [`add_recreated`](Self::add_recreated).
    pub denied_on_recreate: Vec<Affected>,
    /// Pods that have no role now, and would have one.
    pub newly_allowed: Vec<Affected>,
    /// Pods that would have another session.
    pub session_changed: Vec<Affected>,
    /// Pods that would keep their role, but that layers in audit mode would deny, which they do not
    /// now.
    pub newly_audited: Vec<Affected>,
}

/// The effect of a change as configured, and as if layers were enforced. Its JSON is the output of
/// `rolegate policy simulate -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Simulated {
    /// The effect with the configured modes.
    #[serde(flatten)]
    pub as_configured: Simulation,
    /// The effect if more layers were enforced; `None` if the modes would not change.
    pub if_enforced: Option<IfEnforced>,
}

/// The effect of a change as if layers were enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IfEnforced {
    /// The layers that are not enforced by the configuration.
    pub layers: Vec<LayerId>,
    /// The effect, compared with the current state.
    #[serde(flatten)]
    pub simulation: Simulation,
}

impl Simulated {
    /// Returns whether a running pod loses its role, or is denied when re-created, as configured or
    /// with the layers enforced.
    pub fn takes_away(&self) -> bool {
        let enforced = self.if_enforced.iter().map(|one| &one.simulation);
        let mut all = enforced.chain([&self.as_configured]);
        all.any(|one| !one.newly_denied.is_empty() || !one.denied_on_recreate.is_empty())
    }
}

/// Pods of one service account with the same effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Affected {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The role's ARN, or the requested role if it is invalid.
    pub role: String,
    /// The names of the pods.
    pub pods: Vec<String>,
    /// The reason: the rule that denies or allows.
    pub reason: String,
    /// The changed fields of the session.
    pub changes: Vec<FieldChange>,
}

/// A changed field of a session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldChange {
    /// The field's name in STS.
    pub field: String,
    /// The current value.
    pub before: String,
    /// The new value.
    pub after: String,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: String,
    service_account: String,
    role: String,
    reason: String,
    changes: Vec<FieldChange>,
}

type Group = BTreeMap<Key, Vec<String>>;

#[derive(Default)]
struct Groups {
    newly_denied: Group,
    newly_allowed: Group,
    session_changed: Group,
    newly_audited: Group,
}

/// Compares the decisions of `before` and `after` for each unfinished pod.
pub fn simulate(
    before: &RuleSet,
    after: &RuleSet,
    workloads: &[Workload],
    now: Timestamp,
) -> Simulation {
    let mut simulation = Simulation::default();
    let mut groups = Groups::default();
    for workload in workloads {
        if matches!(workload.phase, Phase::Succeeded | Phase::Failed) {
            continue;
        }
        simulation.pods += 1;
        let was = before.decide(workload, now);
        let will = after.decide(workload, now);
        match Effect::of(&was, &will) {
            Some(effect) => groups.add(effect, workload),
            None => simulation.unchanged += 1,
        }
    }
    Simulation {
        newly_denied: affected(groups.newly_denied),
        newly_allowed: affected(groups.newly_allowed),
        session_changed: affected(groups.session_changed),
        newly_audited: affected(groups.newly_audited),
        ..simulation
    }
}

impl Groups {
    fn add(&mut self, effect: Effect, workload: &Workload) {
        let group = match effect.kind {
            EffectKind::NewlyDenied => &mut self.newly_denied,
            EffectKind::NewlyAllowed => &mut self.newly_allowed,
            EffectKind::SessionChanged => &mut self.session_changed,
            EffectKind::NewlyAudited => &mut self.newly_audited,
        };
        let key = Key {
            namespace: workload.namespace.to_string(),
            service_account: workload.service_account.to_string(),
            role: effect.role,
            reason: effect.reason,
            changes: effect.changes,
        };
        let pods = group.entry(key).or_default();
        pods.push(workload.name.to_string());
    }
}

/// The effect of a change on one pod.
struct Effect {
    kind: EffectKind,
    role: String,
    reason: String,
    changes: Vec<FieldChange>,
}

/// The list of a [`Simulation`] that an effect belongs to.
enum EffectKind {
    NewlyDenied,
    NewlyAllowed,
    SessionChanged,
    NewlyAudited,
}

impl Effect {
    /// Compares two decisions for a pod. Returns `None` if the change doesn't affect it.
    fn of(before: &Decision, after: &Decision) -> Option<Self> {
        match (before, after) {
            (
                Decision::Allow { key, .. },
                Decision::Deny(_) | Decision::NoRole | Decision::Pending,
            ) => Some(Self::new(EffectKind::NewlyDenied, key, why_not(after))),
            (
                Decision::Deny(_) | Decision::NoRole | Decision::Pending,
                Decision::Allow { key, rules, .. },
            ) => {
                let reason = format!("allowed by {}", or_nothing(rules));
                Some(Self::new(EffectKind::NewlyAllowed, key, reason))
            }
            (
                Decision::Allow {
                    key: old,
                    audited: known,
                    ..
                },
                Decision::Allow {
                    key,
                    audited,
                    rules,
                    ..
                },
            ) => {
                if old == key {
                    let denial = first_new(audited, known)?;
                    let reason = format!("{} would deny: {}", denial.denied_by, denial.reason);
                    return Some(Self::new(EffectKind::NewlyAudited, key, reason));
                }
                let reason = format!("by {}", or_nothing(rules));
                Some(Self {
                    changes: differences(old, key),
                    ..Self::new(EffectKind::SessionChanged, key, reason)
                })
            }
            _ => None,
        }
    }

    fn new(kind: EffectKind, key: &SessionKey, reason: String) -> Self {
        Self {
            kind,
            role: key.role.to_string(),
            reason,
            changes: Vec::new(),
        }
    }
}

/// Returns the first denial of a source that has no known denial.
fn first_new<'a>(denials: &'a [Denial], known: &[Denial]) -> Option<&'a Denial> {
    let is_known = |denial: &Denial| {
        known
            .iter()
            .any(|known| known.denied_by == denial.denied_by)
    };
    denials.iter().find(|denial| !is_known(denial))
}

fn affected(group: Group) -> Vec<Affected> {
    let entries = group.into_iter();
    entries
        .map(|(key, mut pods)| {
            pods.sort();
            Affected {
                namespace: key.namespace,
                service_account: key.service_account,
                role: key.role,
                pods,
                reason: key.reason,
                changes: key.changes,
            }
        })
        .collect()
}

fn why_not(decision: &Decision) -> String {
    match decision {
        Decision::Deny(denial) => format!("denied by {}: {}", denial.denied_by, denial.reason),
        Decision::NoRole => "neither the pod nor a default requests a role".into(),
        Decision::Pending => "the rules do not contain its namespace".into(),
        Decision::Allow { .. } => String::new(),
    }
}

fn or_nothing(rules: &[String]) -> String {
    if rules.is_empty() {
        "no layer in enforce mode".into()
    } else {
        rules.join(", ")
    }
}

fn differences(old: &SessionKey, new: &SessionKey) -> Vec<FieldChange> {
    let (old, new) = (fields(old), fields(new));
    let pairs = old.into_iter().zip(new);
    pairs
        .filter(|((_, before), (_, after))| before != after)
        .map(|((field, before), (_, after))| FieldChange {
            field: field.to_owned(),
            before,
            after,
        })
        .collect()
}

fn fields(key: &SessionKey) -> [(&'static str, String); 9] {
    let session = Session::from(key);
    let tags: Vec<_> = session
        .tags
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    [
        ("RoleArn", session.role_arn),
        ("RoleSessionName", session.session_name),
        ("DurationSeconds", session.duration_seconds.to_string()),
        ("ExternalId", session.external_id.unwrap_or_default()),
        ("Tags", tags.join(", ")),
        (
            "TransitiveTagKeys",
            if session.transitive_tags { "all" } else { "" }.to_owned(),
        ),
        (
            "SourceIdentity",
            session.source_identity.unwrap_or_default(),
        ),
        ("PolicyArns", session.policy_arns.join(", ")),
        ("Policy", session.policy.unwrap_or_default()),
    ]
}

#[cfg(test)]
mod tests {
    use rolegate_core::layer::Mode;

    use super::*;
    use crate::fixtures::{NOW, grant, namespace, pod, rules, rules_of};

    #[test]
    fn whom_default_deny_cuts_off() {
        let before = rules(&[], Mode::Audit).rules;
        let after = rules(&[grant("shop", &["reader"], "shop", "api")], Mode::Enforce).rules;
        let mut second = pod("web", "api", "reader");
        second.name = "api-1".into();
        let finished = Workload {
            phase: Phase::Failed,
            ..pod("web", "old", "reader")
        };
        let pods = [
            second,
            pod("web", "api", "reader"),
            pod("shop", "api", "reader"),
            pod("closed", "api", "reader"),
            finished,
        ];
        let found = simulate(&before, &after, &pods, NOW);
        assert_eq!((found.pods, found.unchanged), (4, 2));
        assert_eq!(found.newly_denied.len(), 1);
        assert_eq!(found.newly_denied[0].pods, ["api-0", "api-1"]);
        assert!(
            found.newly_denied[0]
                .reason
                .starts_with("denied by grants: ")
        );
        let back = simulate(&after, &before, &pods, NOW);
        assert_eq!(back.newly_allowed.len(), 1);
        assert!(back.newly_denied.is_empty());
    }

    #[test]
    fn whose_session_changes_and_how() {
        let mut narrow = grant("shop", &["reader"], "shop", "api");
        let before = rules(&[narrow.clone()], Mode::Enforce).rules;
        narrow.session.duration_seconds = Some(900);
        narrow.session.tags = [("team".to_owned(), "shop".to_owned())].into();
        let after = rules(&[narrow], Mode::Enforce).rules;
        let found = simulate(&before, &after, &[pod("shop", "api", "reader")], NOW);
        let changed = found.session_changed.first().unwrap();
        let told: Vec<_> = changed
            .changes
            .iter()
            .map(|change| format!("{}: {} -> {}", change.field, change.before, change.after))
            .collect();
        assert_eq!(
            told,
            ["DurationSeconds: 3600 -> 900", "Tags:  -> team=shop"]
        );
    }

    #[test]
    fn what_a_trial_would_refuse_is_told() {
        let before = rules(&[], Mode::Off).rules;
        let after = rules(&[], Mode::Audit).rules;
        let pods = [pod("shop", "api", "reader")];
        let found = simulate(&before, &after, &pods, NOW);
        assert_eq!(found.newly_audited.len(), 1);
        assert_eq!(simulate(&after, &after, &pods, NOW).unchanged, 1);
    }

    #[test]
    fn a_namespace_that_goes_cuts_its_pods_off() {
        let before = rules(&[], Mode::Off).rules;
        let after = rules_of(&[namespace("web", "[]")], &[], Mode::Off).rules;
        let found = simulate(&before, &after, &[pod("shop", "api", "reader")], NOW);
        assert_eq!(found.newly_denied.len(), 1);
    }

    #[test]
    fn the_text_says_who_and_why() {
        let before = rules(&[], Mode::Off).rules;
        let after = rules(&[], Mode::Enforce).rules;
        let found = simulate(&before, &after, &[pod("shop", "api", "reader")], NOW);
        let text = found.text();
        assert!(text.contains("lose their role"), "{text}");
        assert!(text.contains("shop/api"), "{text}");
        assert!(text.contains("api-0"), "{text}");
        let same = simulate(&before, &before, &[], NOW).text();
        assert!(same.contains("nothing changes"), "{same}");
    }
}
