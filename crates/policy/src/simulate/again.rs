//! What the gate makes of pods that run when they are made again, by the rules now and then.

use std::collections::HashSet;

use jiff::Timestamp;
use rolegate_admission::{Fault, GateRules, Review, WebIdentity, judge};
use serde_json::Value;

use super::{Affected, Group, Key, Simulation, affected};
use crate::check::{Creator, creation_of};

impl Simulation {
    /// Adds which pods the gate takes now and would refuse, those that are cut off aside, since they
    /// are told already. `pods` are the objects of [`simulate`](super::simulate)'s workloads.
    pub fn add_made_again<'a>(
        &mut self,
        before: &GateRules<'_>,
        after: &GateRules<'_>,
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
        let cut_off = named(&[&self.cut_off]);
        let told = named(&[&self.let_in, &self.session_changed, &self.newly_audited]);
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
                || cut_off.contains(&id)
            {
                continue;
            }
            let again = made_again(pod);
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
                reason: format!("refused by {}: {}", fault.layer, fault.reason),
                changes: Vec::new(),
            };
            group.entry(key).or_default().push(id.1);
        }
        self.refused_when_made_again = affected(group);
    }
}

/// The pod as its controller makes it.
fn made_again(pod: &Value) -> Value {
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

/// The first fault that the gate finds.
fn refused(rules: &GateRules<'_>, pod: &Value, namespace: &str, now: Timestamp) -> Option<Fault> {
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
    // What cannot be read was taken by the API server, and is not about the rules.
    let review = Review::parse(body.as_bytes()).ok()?;
    judge(rules, &review, now).faults.into_iter().next()
}

/// The role that the pod names, by its annotation or for web identity.
fn role(rules: &GateRules<'_>, pod: &Value) -> String {
    let annotations = pod.pointer("/metadata/annotations");
    let annotated = annotations.and_then(|all| all.get(&rules.keys.role)?.as_str());
    let asking = || {
        let found = WebIdentity::of(pod, rules.keys, &rules.config.web_identity_audiences)?;
        found
            .asking
            .first()?
            .wish
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
    use rolegate_core::layer::Mode;
    use serde_json::json;

    use super::*;
    use crate::fixtures::{NOW, Stage, rules};

    fn pod(name: &str, phase: &str, role: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": {"nodeName": "n", "containers": [
                {"name": "app", "env": [{"name": "AWS_ROLE_ARN", "value": role}]}]},
            "status": {"phase": phase},
        })
    }

    fn told(before: (&Stage, Mode), after: (&Stage, Mode), pods: &[Value]) -> Simulation {
        let keys = AnnotationKeys::default();
        let configs = [before.1, after.1].map(|mode| {
            let mut config = RuleConfig::default();
            config.modes.grants = mode;
            config
        });
        let [before, after] =
            [(before.0, &configs[0]), (after.0, &configs[1])].map(|(stage, config)| GateRules {
                rules: &stage.rules,
                config,
                grants: &stage.grants,
                keys: &keys,
                policies: None,
            });
        let mut simulation = Simulation {
            pods: pods.len(),
            unchanged: pods.len(),
            ..Simulation::default()
        };
        simulation.add_made_again(&before, &after, pods, NOW);
        simulation
    }

    #[test]
    fn pods_that_the_gate_will_not_take_again_are_told() {
        let (open, closed) = (rules(&[], Mode::Audit), rules(&[], Mode::Enforce));
        let (open, closed) = ((&open, Mode::Audit), (&closed, Mode::Enforce));
        let pods = [
            pod("api-0", "Running", "reader"),
            pod("done", "Succeeded", "reader"),
            pod("none", "Running", ""),
        ];
        let found = told(open, closed, &pods);
        assert_eq!(found.unchanged, 2);
        let refused = &found.refused_when_made_again;
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(
            (&*refused[0].role, &*refused[0].pods[0]),
            ("reader", "api-0")
        );
        assert!(
            refused[0].reason.starts_with("refused by grants: "),
            "{refused:?}"
        );
        assert!(
            found
                .text()
                .contains("would be refused at the gate when made again")
        );
        for same in [told(closed, closed, &pods), told(closed, open, &pods)] {
            assert_eq!(
                (same.unchanged, same.refused_when_made_again),
                (3, Vec::new())
            );
        }
    }
}
