//! Kubernetes' own kinds that create pods from a template.

/// A built-in kind that creates pods from a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltinTemplateKind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The plural name.
    pub resource: &'static str,
    /// The path of the pod template.
    pub path: &'static [&'static str],
}

/// The current API version of all of them.
pub const VERSION: &str = "v1";

const USUAL_PATH: &[&str] = &["spec", "template"];

const fn kind(
    group: &'static str,
    kind: &'static str,
    resource: &'static str,
    path: &'static [&'static str],
) -> BuiltinTemplateKind {
    BuiltinTemplateKind {
        group,
        kind,
        resource,
        path,
    }
}

/// All built-in kinds with a pod template. Admission, its registration, the exported CEL and
/// `rolegate policy check` cover these kinds, in addition to those of the configuration.
pub const BUILTIN_TEMPLATE_KINDS: &[BuiltinTemplateKind] = &[
    kind("", "PodTemplate", "podtemplates", &["template"]),
    kind(
        "",
        "ReplicationController",
        "replicationcontrollers",
        USUAL_PATH,
    ),
    kind("apps", "DaemonSet", "daemonsets", USUAL_PATH),
    kind("apps", "Deployment", "deployments", USUAL_PATH),
    kind("apps", "ReplicaSet", "replicasets", USUAL_PATH),
    kind("apps", "StatefulSet", "statefulsets", USUAL_PATH),
    kind(
        "batch",
        "CronJob",
        "cronjobs",
        &["spec", "jobTemplate", "spec", "template"],
    ),
    kind("batch", "Job", "jobs", USUAL_PATH),
];

impl BuiltinTemplateKind {
    /// Returns the kind with this group and name.
    pub fn find(group: &str, kind: &str) -> Option<&'static Self> {
        let mut known = BUILTIN_TEMPLATE_KINDS.iter();
        known.find(|known| known.group == group && known.kind == kind)
    }

    /// Returns the `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => VERSION.to_owned(),
            group => format!("{group}/{VERSION}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_group_and_name() {
        let found = BuiltinTemplateKind::find("batch", "CronJob").unwrap();
        assert_eq!(found.resource, "cronjobs");
        assert_eq!(found.api_version(), "batch/v1");
        let found = BuiltinTemplateKind::find("", "PodTemplate").unwrap();
        assert_eq!(found.api_version(), "v1");
        assert_eq!(BuiltinTemplateKind::find("apps", "CronJob"), None);
        assert_eq!(BuiltinTemplateKind::find("", "Pod"), None);
    }
}
