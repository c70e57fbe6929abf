//! How rules fare, written where their authors look: the status of grants and of the
//! configuration, an annotation and an Event for ConfigMaps of policies.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use rolegate_api::{CONFIG_NAME, Status};
use rolegate_core::annotation;
use rolegate_core::grant::GrantError;
use rolegate_core::layer::{Mode, Verdict};
use rolegate_core::rulebook::ClusterConfig;
use rolegate_core::workload::{Phase, Workload};
use rolegate_kube::events::{Eventer, RuleKind, RuleObject};
use rolegate_kube::policy_status::write_policy_status;
use rolegate_kube::status::{
    StatusError, StatusWrite, Written, write_config_status, write_grant_status,
};
use rolegate_rego::PolicyStatus;
use rolegate_rules::keeper::Keeper;

/// The reason of what cannot be used as it is written.
const INVALID: &str = "Invalid";

/// What was written last, so that nothing is written twice.
pub(super) struct Statuses {
    client: Client,
    events: Eventer,
    grants: HashMap<Arc<str>, (Status, i64)>,
    config: Option<Status>,
    /// The errors of policies that Events told of.
    told: HashMap<Arc<str>, String>,
}

impl Statuses {
    pub(super) fn new(client: Client, events: Eventer) -> Self {
        Self {
            client,
            events,
            grants: HashMap::new(),
            config: None,
            told: HashMap::new(),
        }
    }

    /// Writes what changed. What fails is tried again with the next change or look.
    pub(super) async fn write<'a>(
        &mut self,
        keeper: &Keeper,
        pods: impl Iterator<Item = &'a Workload>,
        now: Timestamp,
    ) {
        self.write_grants(keeper, pods, now).await;
        self.write_config(keeper, now).await;
        self.write_policies(keeper).await;
    }

    async fn write_grants<'a>(
        &mut self,
        keeper: &Keeper,
        pods: impl Iterator<Item = &'a Workload>,
        now: Timestamp,
    ) {
        let layer = keeper.book().grants();
        let mode = keeper.book().config().modes.grants;
        let uses = uses(keeper, pods, now);
        let generation = |name: &str| keeper.book().grant(name).and_then(|grant| grant.generation);
        let valid = layer.grants().iter().map(|grant| {
            let status = ready(match mode {
                Mode::Enforce => "it counts".to_owned(),
                other => format!("it is valid; layer grants is {}", other.as_str()),
            });
            (grant.name.clone(), status)
        });
        let invalid = layer
            .invalid()
            .iter()
            .map(|(name, error)| (name.clone(), not_granting(error)));
        let mut known = HashMap::new();
        for (name, mut status) in valid.chain(invalid) {
            status.generation = generation(&name);
            let workloads = uses.get(&*name).copied().unwrap_or_default();
            let state = (status, workloads);
            if self.grants.get(&name) != Some(&state) {
                let (status, workloads) = &state;
                let written =
                    write_grant_status(&self.client, &name, status, *workloads, now).await;
                let Some(write) = done(written) else {
                    continue;
                };
                let object = (RuleKind::RoleGrant, &*name);
                self.report_invalid(object, status, &write);
            }
            known.insert(name, state);
        }
        self.grants = known;
    }

    async fn write_config(&mut self, keeper: &Keeper, now: Timestamp) {
        let mut status = match keeper.book().cluster_config() {
            ClusterConfig::Is(_) => match keeper.missing() {
                None => ready("it counts".into()),
                Some(missing) => not_ready(missing.to_string()),
            },
            ClusterConfig::Broken(why) => not_ready(why.to_string()),
            ClusterConfig::NotUsed | ClusterConfig::Unseen | ClusterConfig::Missing => return,
        };
        status.generation = match keeper.book().cluster_config() {
            ClusterConfig::Is(config) => config.generation,
            ClusterConfig::Broken(why) => why.generation,
            ClusterConfig::NotUsed | ClusterConfig::Unseen | ClusterConfig::Missing => None,
        };
        if self.config.as_ref() != Some(&status) {
            let write = done(write_config_status(&self.client, &status, now).await);
            if let Some(write) = &write {
                let object = (RuleKind::RolegateConfig, CONFIG_NAME);
                self.report_invalid(object, &status, write);
            }
            self.config = write.map(|_| status);
        }
    }

    /// Reports an object whose status has come to say that it cannot be used.
    fn report_invalid(&self, object: (RuleKind, &str), status: &Status, write: &StatusWrite) {
        let (kind, name) = object;
        if status.reason != INVALID || write.written != Written::Changed {
            return;
        }
        let kind_name = match kind {
            RuleKind::RoleGrant => "RoleGrant",
            RuleKind::RolegateConfig => "RolegateConfig",
        };
        tracing::warn!(
            kind = kind_name,
            name,
            reason = status.message,
            "a rule cannot be used"
        );
        if let Some(uid) = &write.uid {
            let object = RuleObject { kind, name, uid };
            self.events.report_invalid_rule(object, &status.message);
        }
    }

    async fn write_policies(&mut self, keeper: &Keeper) {
        let mut told = HashMap::new();
        for (id, status) in keeper.policy_statuses() {
            let Some((namespace, name)) = id.split_once('/') else {
                continue;
            };
            let Some(map) = keeper.config_map(namespace, name) else {
                continue;
            };
            let misplaced = keeper.misplaced().get(&(namespace.into(), name.into()));
            let misplaced = misplaced.map(|why| {
                format!(
                    "{}: {why}; it is asked at gate and doors",
                    annotation::POINTS
                )
            });
            let mut json = status.to_json();
            if let (Some(fields), Some(why)) = (json.as_object_mut(), &misplaced) {
                fields.insert("points".into(), why.as_str().into());
            }
            // It is compared with what the ConfigMap says now, so that it is put back too.
            let _ = done(write_policy_status(&self.client, map, &json).await);
            let error = match &status {
                PolicyStatus::Error { error, .. } => Some(error.to_string()),
                PolicyStatus::Ok { .. } | PolicyStatus::Ignored => None,
            };
            let faults: Vec<_> = error.into_iter().chain(misplaced).collect();
            if !faults.is_empty() {
                let sentence = faults.join("; ");
                if self.told.get(&id) != Some(&sentence) {
                    tracing::warn!(policy = %id, reason = sentence, "a policy cannot be used as it is");
                    self.events.tell_policy(map, &sentence);
                }
                told.insert(id, sentence);
            }
        }
        self.told = told;
    }
}

/// How many live pods each grant covers.
fn uses<'a>(
    keeper: &Keeper,
    pods: impl Iterator<Item = &'a Workload>,
    now: Timestamp,
) -> HashMap<String, i64> {
    let snapshot = keeper.rules().load().clone();
    let mut uses = HashMap::new();
    for pod in pods.filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed)) {
        for judgement in snapshot.gate.explain(pod, now).judgements {
            if judgement.layer == "grants"
                && let Verdict::Allow { rule, .. } = judgement.verdict
            {
                *uses.entry(rule).or_default() += 1;
            }
        }
    }
    uses
}

fn ready(message: String) -> Status {
    Status {
        ready: true,
        reason: "Valid",
        message,
        generation: None,
    }
}

fn not_ready(message: String) -> Status {
    Status {
        ready: false,
        reason: INVALID,
        message,
        generation: None,
    }
}

/// Agents may find out a base ARN that is not known here, so what a grant that lacks one does at
/// doors is another matter than what it does at the gate.
fn not_granting(error: &GrantError) -> Status {
    match error {
        GrantError::NoBase(_) => Status {
            reason: "NoBaseArn",
            ..not_ready(format!(
                "it grants nothing where no base ARN is known, as here and at the gate: {error}; set \
                 baseRoleArn of the RolegateConfig"
            ))
        },
        error => not_ready(format!("it grants nothing: {error}")),
    }
}

/// What was written; `None` where it needs another try.
fn done<T>(written: Result<T, StatusError>) -> Option<T> {
    written
        .inspect_err(|error| tracing::warn!(reason = %error, "cannot write a status"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_arn_that_is_missing_here_is_told_from_a_grant_that_is_wrong() {
        let missing = not_granting(&GrantError::NoBase("reader".into()));
        assert_eq!((missing.ready, missing.reason), (false, "NoBaseArn"));
        assert!(
            missing.message.contains("set baseRoleArn"),
            "{}",
            missing.message
        );
        let wrong = not_granting(&GrantError::NoRoles);
        assert_eq!((wrong.ready, wrong.reason), (false, "Invalid"));
    }
}
