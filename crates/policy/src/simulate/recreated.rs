//! The effect of a rule change on running pods when they are re-created.

use std::collections::HashSet;

use jiff::Timestamp;
use rolegate_review::{Review, ValidationRules, Violation, WebIdentity, validate};
use serde_json::Value;

use super::{Affected, Group, Key, Simulation, affected};
use crate::check::{Creator, creation_of};

impl Simulation {
    /// Adds the pods that admission accepts now but would deny, except those that lose their role
    /// anyway. `pods` are the objects of [`simulate`](super::simulate)'s workloads.
    pub fn add_recreated<'a>(
        &mut self,
        before: &ValidationRules<'_>,
        after: &ValidationRules<'_>,
        pods: impl IntoIterator<Item = &'a Value>,
        now: Timestamp,
    ) {
        let named = |groups: &[&Vec<Affected>]| -> HashSet<(String, String)> {
            let entries = groups.iter().flat_map(|group| group.iter());
            entries
                .flat_map(|entry| {
                    let pods = entry.pods.iter().cloned();
                    pods.map(|pod| (entry.namespace.clone(), pod))
                })
                .collect()
        };
        let newly_denied = named(&[&self.newly_denied]);
        let told = named(&[
            &self.newly_allowed,
            &self.session_changed,
            &self.newly_audited,
        ]);
        let mut group = Group::new();
        for pod in pods {
            let text = |path: &str| pod.pointer(path).and_then(Value::as_str);
            let (Some(namespace), Some(name)) =
                (text("/metadata/namespace"), text("/metadata/name"))
            else {
                continue;
            };
            let id = (namespace.to_owned(), name.to_owned());
            if matches!(text("/status/phase"), Some("Succeeded" | "Failed"))
                || newly_denied.contains(&id)
            {
                continue;
            }
            let again = recreated(pod);
            let Some(fault) = refused(after, &again, namespace, now) else {
                continue;
            };
            if refused(before, &again, namespace, now).is_some() {
                continue;
            }
            if !told.contains(&id) {
                self.unchanged = self.unchanged.saturating_sub(1);
            }
            let account = text("/spec/serviceAccountName").unwrap_or("default");
            let key = Key {
                namespace: namespace.to_owned(),
                service_account: account.to_owned(),
                role: role(after, pod),
                reason: format!("denied by {}: {}", fault.denied_by, fault.reason),
                changes: Vec::new(),
            };
            group.entry(key).or_default().push(id.1);
        }
        self.denied_on_recreate = affected(group);
    }
}

/// Returns the pod as its controller re-creates it.
fn recreated(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for (part, fields) in [
        (
            "/metadata",
            &["uid", "resourceVersion", "creationTimestamp"][..],
        ),
        ("/spec", &["nodeName"]),
        ("", &["status"]),
    ] {
        if let Some(Value::Object(part)) = pod.pointer_mut(part) {
            part.retain(|field, _| !fields.contains(&field.as_str()));
        }
    }
    pod
}

/// Returns the first violation that admission finds.
fn refused(
    rules: &ValidationRules<'_>,
    pod: &Value,
    namespace: &str,
    now: Timestamp,
) -> Option<Violation> {
    let account = "system:serviceaccount:kube-system:replicaset-controller";
    let groups = [
        "system:serviceaccounts",
        "system:serviceaccounts:kube-system",
        "system:authenticated",
    ];
    let creator = Creator {
        user: account.to_owned(),
        groups: groups.map(str::to_owned).into(),
    };
    let body = creation_of(pod, &creator, namespace).to_string();
    // An unreadable part was accepted by the API server, and does not concern the rules.
    let review = Review::parse(body.as_bytes()).ok()?;
    validate(rules, &review, now).violations.into_iter().next()
}

/// Returns the role that the pod requests, by its annotation or with web identity.
fn role(rules: &ValidationRules<'_>, pod: &Value) -> String {
    let annotations = pod.pointer("/metadata/annotations");
    let annotated = annotations.and_then(|all| all.get(&rules.keys.role)?.as_str());
    let asking = || {
        let found = WebIdentity::of(pod, rules.keys, &rules.config.web_identity_audiences)?;
        found
            .asking
            .first()?
            .role_request
            .role
            .as_deref()
            .map(str::to_owned)
    };
    annotated
        .map(str::to_owned)
        .or_else(asking)
        .unwrap_or_else(|| "no role".into())
}

#[cfg(test)]
mod tests {
    use rolegate_core::annotation::AnnotationKeys;
    use rolegate_core::config::RuleConfig;
    use rolegate_core::layer::{LayerId, Mode};
    use serde_json::json;

    use super::*;
    use crate::fixtures::{Fixture, NOW, rules};

    fn pod(name: &str, phase: &str, role: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": {"nodeName": "n", "containers": [
                {"name": "app", "env": [{"name": "AWS_ROLE_ARN", "value": role}]}]},
            "status": {"phase": phase},
        })
    }

    fn told(before: (&Fixture, Mode), after: (&Fixture, Mode), pods: &[Value]) -> Simulation {
        let keys = AnnotationKeys::default();
        let configs = [before.1, after.1].map(|mode| {
            let mut config = RuleConfig::default();
            config.modes[LayerId::Grants] = mode;
            config
        });
        let [before, after] =
            [(before.0, &configs[0]), (after.0, &configs[1])].map(|(fixture, config)| {
                ValidationRules {
                    rules: &fixture.rules,
                    config,
                    grants: &fixture.grants,
                    keys: &keys,
                    policies: None,
                    accounts: None,
                }
            });
        let mut simulation = Simulation {
            pods: pods.len(),
            unchanged: pods.len(),
            ..Simulation::default()
        };
        simulation.add_recreated(&before, &after, pods, NOW);
        simulation
    }

    #[test]
    fn pods_that_admission_would_deny_again_are_reported() {
        let (open, closed) = (rules(&[], Mode::Audit), rules(&[], Mode::Enforce));
        let (open, closed) = ((&open, Mode::Audit), (&closed, Mode::Enforce));
        let pods = [
            pod("api-0", "Running", "reader"),
            pod("done", "Succeeded", "reader"),
            pod("none", "Running", ""),
        ];
        let found = told(open, closed, &pods);
        assert_eq!(found.unchanged, 2);
        let refused = &found.denied_on_recreate;
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(
            (&*refused[0].role, &*refused[0].pods[0]),
            ("reader", "api-0")
        );
        assert!(
            refused[0].reason.starts_with("denied by grants: "),
            "{refused:?}"
        );
        assert!(
            found
                .text()
                .contains("would be refused by the webhook when re-created")
        );
        for same in [told(closed, closed, &pods), told(closed, open, &pods)] {
            assert_eq!((same.unchanged, same.denied_on_recreate), (3, Vec::new()));
        }
    }
}
