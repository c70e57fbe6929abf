//! The statuses of rules, written to the objects that their authors read: the status of grants and
//! of the RolegateConfig, and an annotation and an Event for ConfigMaps of policies.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use rolegate_api::{CONFIG_NAME, Status};
use rolegate_core::annotation;
use rolegate_core::grant::GrantError;
use rolegate_core::layer::{LayerId, Mode, Verdict};
use rolegate_core::rule_set_builder::ClusterConfig;
use rolegate_core::workload::{Phase, Workload};
use rolegate_kube::events::{EventRecorder, RuleKind, RuleObject};
use rolegate_kube::policy_status::write_policy_status;
use rolegate_kube::status::{
    StatusError, StatusWrite, Written, write_config_status, write_grant_status,
};
use rolegate_rego::PolicyStatus;
use rolegate_rules::store::RuleStoreWriter;

/// The reason of the condition of an object that is invalid.
const INVALID: &str = "Invalid";
/// The reason of a condition while objects that the rules need are not loaded.
const NOT_LOADED: &str = "NotLoaded";
/// The reason of a condition while the webhook configuration does not match the rules.
const NOT_REGISTERED: &str = "NotRegistered";

/// The writer of statuses. It remembers the last written ones, so that an unchanged status causes
/// no request.
pub(super) struct Statuses {
    client: Client,
    events: EventRecorder,
    grants: HashMap<Arc<str>, (Status, i64)>,
    config: Option<Status>,
    /// The errors of policies that Events reported, by policy.
    told: HashMap<Arc<str>, String>,
}

impl Statuses {
    pub(super) fn new(client: Client, events: EventRecorder) -> Self {
        Self {
            client,
            events,
            grants: HashMap::new(),
            config: None,
            told: HashMap::new(),
        }
    }

    /// Writes the changed statuses. A failed write is retried at the next reconciliation.
    pub(super) async fn write<'a>(
        &mut self,
        writer: &RuleStoreWriter,
        pods: impl Iterator<Item = &'a Workload>,
        now: Timestamp,
    ) {
        self.write_grants(writer, pods, now).await;
        self.write_policies(writer).await;
    }

    async fn write_grants<'a>(
        &mut self,
        writer: &RuleStoreWriter,
        pods: impl Iterator<Item = &'a Workload>,
        now: Timestamp,
    ) {
        let layer = writer.builder().grants();
        let mode = writer.builder().config().modes[LayerId::Grants];
        let uses = uses(writer, pods, now);
        let generation = |name: &str| {
            writer
                .builder()
                .grant(name)
                .and_then(|grant| grant.generation)
        };
        let valid = layer.grants().iter().map(|grant| {
            let status = ready(match mode {
                Mode::Enforce => "in effect".to_owned(),
                other => format!("valid, but layer grants is {}", other.as_str()),
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

    /// Writes the status of the RolegateConfig. `registration` is the error of the last update of
    /// the webhook's registration.
    pub(super) async fn write_config(
        &mut self,
        writer: &RuleStoreWriter,
        registration: Option<&str>,
        now: Timestamp,
    ) {
        let mut status = match writer.builder().cluster_config() {
            ClusterConfig::Valid(_) => {
                match (writer.missing(), writer.not_synced(), registration) {
                    (None, None, None) => ready("in effect".into()),
                    (Some(missing), _, _) => not_ready(missing.to_string()),
                    (None, Some(part), _) => Status {
                        reason: NOT_LOADED,
                        ..not_ready(format!("not in effect yet: {}", part.as_str()))
                    },
                    (None, None, Some(error)) => Status {
                        reason: NOT_REGISTERED,
                        ..not_ready(format!(
                            "the webhook configuration cannot be updated to match: {error}"
                        ))
                    },
                }
            }
            ClusterConfig::Invalid(why) => not_ready(why.to_string()),
            ClusterConfig::Unused | ClusterConfig::NotSynced | ClusterConfig::Missing => return,
        };
        status.generation = match writer.builder().cluster_config() {
            ClusterConfig::Valid(config) => config.generation,
            ClusterConfig::Invalid(why) => why.generation,
            ClusterConfig::Unused | ClusterConfig::NotSynced | ClusterConfig::Missing => None,
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

    /// Logs and records an Event for an object that this write marked as invalid.
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
            "a rule is invalid"
        );
        if let Some(uid) = &write.uid {
            let object = RuleObject { kind, name, uid };
            self.events.report_invalid_rule(object, &status.message);
        }
    }

    async fn write_policies(&mut self, writer: &RuleStoreWriter) {
        let mut told = HashMap::new();
        for (id, status) in writer.policy_statuses() {
            let Some((namespace, name)) = id.split_once('/') else {
                continue;
            };
            let Some(map) = writer.config_map(namespace, name) else {
                continue;
            };
            let invalid_points = writer
                .invalid_points()
                .get(&(namespace.into(), name.into()))
                .map(|why| {
                    format!(
                        "{}: {why}; the policy is enforced at admission and agents",
                        annotation::ENFORCEMENT_POINTS
                    )
                });
            let mut json = status.to_json();
            if let (Some(fields), Some(why)) = (json.as_object_mut(), &invalid_points) {
                fields.insert("points".into(), why.as_str().into());
            }
            // Compared with the ConfigMap's present annotation instead of the last written one, so
            // that an annotation that a user changed is restored.
            let _ = done(write_policy_status(&self.client, map, &json).await);
            let error = match &status {
                PolicyStatus::Error { error, .. } => Some(error.to_string()),
                PolicyStatus::Ok { .. } | PolicyStatus::Ignored => None,
            };
            let faults: Vec<_> = error.into_iter().chain(invalid_points).collect();
            if !faults.is_empty() {
                let sentence = faults.join("; ");
                if self.told.get(&id) != Some(&sentence) {
                    tracing::warn!(policy = %id, reason = sentence, "a policy is invalid");
                    self.events.report_invalid_policy(map, &sentence);
                }
                told.insert(id, sentence);
            }
        }
        self.told = told;
    }
}

/// Returns the number of live pods that each grant covers.
fn uses<'a>(
    writer: &RuleStoreWriter,
    pods: impl Iterator<Item = &'a Workload>,
    now: Timestamp,
) -> HashMap<String, i64> {
    let snapshot = writer.rules().load().clone();
    let mut uses = HashMap::new();
    for pod in pods.filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed)) {
        for result in snapshot.admission.explain(pod, now).layer_results {
            if result.layer == LayerId::Grants
                && let Verdict::Allow { rule, .. } = result.verdict
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

/// Returns the status of an invalid grant. A missing base ARN has its own reason: agents may detect
/// a base ARN that the controller does not know, so the grant may be valid at agents although it is
/// not at admission.
fn not_granting(error: &GrantError) -> Status {
    match error {
        GrantError::NoBase(_) => Status {
            reason: "NoBaseArn",
            ..not_ready(format!(
                "it grants nothing where no base ARN is known, as here and at admission: {error}; set \
                 baseRoleArn of the RolegateConfig"
            ))
        },
        error => not_ready(format!("it grants nothing: {error}")),
    }
}

/// Returns the result of a write; `None` if the write failed and must be retried.
fn done<T>(written: Result<T, StatusError>) -> Option<T> {
    written
        .inspect_err(|error| tracing::warn!(reason = %error, "cannot write a status"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_base_arn_has_its_own_reason() {
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
