//! Pods and the Kubernetes kinds that create them, by their names on the command line.

use serde_json::{Value, json};

/// A kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its API group.
    pub group: &'static str,
    /// The version that is requested.
    pub version: &'static str,
    /// Its name.
    pub kind: &'static str,
    /// The plural, which is the name of its resource.
    pub plural: &'static str,
    /// The short name in kubectl.
    short: &'static str,
    /// The path of its pod template. Empty for a pod.
    template: &'static str,
}

const fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    template: &'static str,
) -> Kind {
    Kind {
        group,
        version: "v1",
        kind,
        plural,
        short,
        template,
    }
}

/// All of them.
const KINDS: &[Kind] = &[
    kind("", "Pod", "pods", "po", ""),
    kind(
        "apps",
        "Deployment",
        "deployments",
        "deploy",
        "/spec/template",
    ),
    kind(
        "apps",
        "StatefulSet",
        "statefulsets",
        "sts",
        "/spec/template",
    ),
    kind("apps", "DaemonSet", "daemonsets", "ds", "/spec/template"),
    kind("apps", "ReplicaSet", "replicasets", "rs", "/spec/template"),
    kind(
        "",
        "ReplicationController",
        "replicationcontrollers",
        "rc",
        "/spec/template",
    ),
    kind("batch", "Job", "jobs", "job", "/spec/template"),
    kind(
        "batch",
        "CronJob",
        "cronjobs",
        "cj",
        "/spec/jobTemplate/spec/template",
    ),
];

impl Kind {
    /// Returns the kind of a word such as `pod`, `deployments`, `sts` or `deployment.apps`.
    pub fn named(word: &str) -> Option<&'static Self> {
        let word = word.to_ascii_lowercase();
        let (name, group) = match word.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (&*word, None),
        };
        KINDS.iter().find(|kind| {
            let names = [kind.plural, kind.short];
            let is_named = names.contains(&name) || kind.kind.eq_ignore_ascii_case(name);
            is_named && group.is_none_or(|group| group == kind.group)
        })
    }

    /// Returns the kinds' names, for messages.
    pub fn names() -> String {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.kind.to_lowercase()).collect();
        names.join(", ")
    }

    /// Returns whether this is the kind `Pod`.
    pub fn is_pod(&self) -> bool {
        self.template.is_empty()
    }

    /// Returns whether an object is of this kind.
    pub fn is_of(&self, object: &Value) -> bool {
        let text = |field| {
            object
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let version = text("apiVersion");
        let group = version.split_once('/').map_or("", |(group, _)| group);
        text("kind") == self.kind && group == self.group
    }

    /// Returns the pod that an object of this kind creates.
    pub fn pod_of(&self, object: &Value, name: &str, namespace: &str) -> Value {
        let template = object.pointer(self.template).cloned().unwrap_or_default();
        let of = |pointer| template.pointer(pointer).cloned().unwrap_or_default();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": of("/metadata/labels"),
                "annotations": of("/metadata/annotations"),
            },
            "spec": of("/spec"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_for_kubectl() {
        for (word, expected) in [
            ("pod", Some("Pod")),
            ("po", Some("Pod")),
            ("Deployment", Some("Deployment")),
            ("deployments.apps", Some("Deployment")),
            ("deploy", Some("Deployment")),
            ("sts", Some("StatefulSet")),
            ("cronjob", Some("CronJob")),
            ("deployment.extensions", None),
            ("service", None),
        ] {
            assert_eq!(Kind::named(word).map(|kind| kind.kind), expected, "{word}");
        }
    }
}
