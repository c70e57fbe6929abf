//! The rights that rolegate's processes need, as in the manifests of `deploy/`.

use serde_json::{Value, json};

use super::process::Process;

/// A right of RBAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Right {
    /// The API group; empty for the core group.
    pub(crate) group: &'static str,
    /// The resource, with its subresource after a slash.
    pub(crate) resource: &'static str,
    /// The verb.
    pub(crate) verb: &'static str,
    /// The name of the only object.
    pub(crate) name: Option<&'static str>,
    /// True if the right is limited to rolegate's namespace.
    pub(crate) is_own_namespace: bool,
    /// The effect of its absence.
    pub(crate) otherwise: &'static str,
}

/// The flags of a process on which its rights depend.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProcessFlags {
    /// True for an agent with `--broker`.
    pub(crate) is_brokered: bool,
    /// True for a controller with `--startup-taint`.
    pub(crate) removes_taints: bool,
}

const RULES: &str = "rolegate.dev";
const RBAC: &str = "rbac.authorization.k8s.io";
const NO_PODS: &str = "no pod is known, so no pod gets credentials";
const NO_RULES: &str = "rules are not known, so every role is denied";
const NO_EVENTS: &str = "pods have no Events that say why a role is denied";

const fn right(
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
    otherwise: &'static str,
) -> Right {
    Right {
        group,
        resource,
        verb,
        name: None,
        is_own_namespace: false,
        otherwise,
    }
}

const fn own(right: Right) -> Right {
    Right {
        is_own_namespace: true,
        ..right
    }
}

const fn named(name: &'static str, right: Right) -> Right {
    Right {
        name: Some(name),
        ..right
    }
}

const PODS: &[Right] = &[
    right("", "pods", "list", NO_PODS),
    right("", "pods", "watch", NO_PODS),
];

/// The rights to follow the rules.
const READ_RULES: &[Right] = &[
    right("", "namespaces", "list", NO_RULES),
    right("", "namespaces", "watch", NO_RULES),
    right(RULES, "rolegateconfigs", "list", NO_RULES),
    right(RULES, "rolegateconfigs", "watch", NO_RULES),
    right(RULES, "rolegrants", "list", NO_RULES),
    right(RULES, "rolegrants", "watch", NO_RULES),
];

const EVENTS: &[Right] = &[right("events.k8s.io", "events", "create", NO_EVENTS)];

const TOKEN_REVIEWS: &[Right] = &[right(
    "authentication.k8s.io",
    "tokenreviews",
    "create",
    "agents cannot authenticate by a token",
)];

const CERTIFICATE: &[Right] = &[own(named(
    rolegate_core::names::ADMISSION_TLS,
    right("", "secrets", "watch", "the webhook has no certificate"),
))];

const NO_STATUS: &str = "grants and the configuration have no status";
const NO_LEADER: &str = "no replica becomes the leader, so certificates are not renewed";
const NO_WEBHOOK: &str = "the webhook is not registered, or its registration is outdated";
const NO_OWNER: &str = "the webhook's registration has no owner, so it may outlive an uninstall";
const NO_TAINTS: &str = "startup taints are not removed, so no pod is scheduled to new nodes";

const CONTROLLER: &[Right] = &[
    right(RULES, "rolegrants/status", "patch", NO_STATUS),
    right(RULES, "rolegateconfigs/status", "patch", NO_STATUS),
    right("", "pods", "list", NO_STATUS),
    right("", "pods", "watch", NO_STATUS),
    right("", "namespaces", "list", NO_RULES),
    right(RULES, "rolegateconfigs", "list", NO_RULES),
    right(RULES, "rolegrants", "list", NO_RULES),
    named(
        rolegate_core::names::WEBHOOK,
        right(
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            "patch",
            NO_WEBHOOK,
        ),
    ),
    right(
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        "create",
        NO_WEBHOOK,
    ),
    own(named(
        rolegate_core::names::CONTROLLER,
        right("coordination.k8s.io", "leases", "update", NO_LEADER),
    )),
    own(right("coordination.k8s.io", "leases", "create", NO_LEADER)),
    own(named(
        rolegate_core::names::ADMISSION_TLS,
        right(
            "",
            "secrets",
            "update",
            "the webhook's certificate is not renewed",
        ),
    )),
    own(right(
        "",
        "secrets",
        "create",
        "the webhook has no certificate",
    )),
    own(named(
        rolegate_core::names::ADMISSION,
        right(
            "",
            "services",
            "get",
            "the webhook's certificate is not issued",
        ),
    )),
    own(right(
        "discovery.k8s.io",
        "endpointslices",
        "list",
        NO_WEBHOOK,
    )),
    named(
        rolegate_core::names::CONTROLLER,
        right(RBAC, "clusterroles", "get", NO_OWNER),
    ),
    own(named(
        rolegate_core::names::CONTROLLER,
        right(RBAC, "roles", "get", NO_OWNER),
    )),
];

/// The rights of a controller with `--startup-taint`.
const STARTUP_TAINTS: &[Right] = &[
    right("", "nodes", "get", NO_TAINTS),
    right("", "nodes", "list", NO_TAINTS),
    right("", "nodes", "watch", NO_TAINTS),
    right("", "nodes", "patch", NO_TAINTS),
];

impl Process {
    /// Returns the rights that the process needs with the flags of its workload. Agents with a
    /// broker need none.
    pub(crate) fn rights(self, flags: ProcessFlags) -> impl Iterator<Item = &'static Right> {
        let parts: &[&[Right]] = match self {
            Self::Agent if flags.is_brokered => &[],
            Self::Agent => &[PODS, READ_RULES, EVENTS],
            Self::Broker => &[PODS, READ_RULES, EVENTS, TOKEN_REVIEWS],
            Self::Admission => &[READ_RULES, CERTIFICATE],
            Self::Controller if flags.removes_taints => &[CONTROLLER, STARTUP_TAINTS],
            Self::Controller => &[CONTROLLER],
        };
        parts.iter().copied().flatten()
    }
}

impl Right {
    /// Returns the SubjectAccessReview of a service account in `namespace`.
    pub(crate) fn review(&self, namespace: &str, account: &str) -> Value {
        let (resource, subresource) = match self.resource.split_once('/') {
            Some((resource, subresource)) => (resource, subresource),
            None => (self.resource, ""),
        };
        json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{namespace}:{account}"),
                "groups": [
                    "system:serviceaccounts",
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated",
                ],
                "resourceAttributes": {
                    "group": self.group,
                    "resource": resource,
                    "subresource": subresource,
                    "verb": self.verb,
                    "name": self.name.unwrap_or_default(),
                    "namespace": if self.is_own_namespace { namespace } else { "" },
                },
            },
        })
    }

    /// Formats the right as RBAC has it, such as `watch pods`.
    pub(crate) fn named(&self) -> String {
        let Self {
            group,
            resource,
            verb,
            ..
        } = self;
        let group = match *group {
            "" => String::new(),
            group => format!(".{group}"),
        };
        let name = self.name.map(|name| format!(" (name {name})"));
        format!("{verb} {resource}{group}{}", name.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manifest of a process, and its ClusterRoles and Roles.
    fn manifest(process: Process) -> Vec<Value> {
        let name = match process {
            Process::Agent => "rolegate-agent",
            Process::Broker => "rolegate-broker",
            Process::Admission | Process::Controller => "rolegate-admission",
        };
        let path = format!("{}/../../deploy/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        serde_saphyr::from_multiple(&text).unwrap()
    }

    fn is_granted(objects: &[Value], process: Process, right: &Right) -> bool {
        let is_bound = |object: &&Value| {
            let kind = object["kind"].as_str().unwrap_or_default();
            let subjects = object["subjects"].as_array().cloned().unwrap_or_default();
            kind.ends_with("RoleBinding")
                && subjects.iter().any(|one| one["name"] == process.name())
        };
        let roles = objects.iter().filter(is_bound).map(|one| &one["roleRef"]);
        let holds = |list: &Value, text: &str| {
            let list = list.as_array();
            list.is_some_and(|list| list.iter().any(|one| one == text))
        };
        roles.into_iter().any(|role| {
            let object = objects
                .iter()
                .find(|one| one["kind"] == role["kind"] && one["metadata"]["name"] == role["name"]);
            let rules = object.map(|object| &object["rules"]);
            let rules = rules.and_then(Value::as_array).cloned().unwrap_or_default();
            rules.iter().any(|rule| {
                let names = &rule["resourceNames"];
                holds(&rule["apiGroups"], right.group)
                    && holds(&rule["resources"], right.resource)
                    && holds(&rule["verbs"], right.verb)
                    && (names.is_null() || right.name.is_some_and(|name| holds(names, name)))
            })
        })
    }

    #[test]
    fn the_manifests_grant_every_right() {
        for process in Process::ALL {
            let objects = manifest(process);
            for right in process.rights(ProcessFlags::default()) {
                let granted = is_granted(&objects, process, right);
                assert!(granted, "{process:?}: {}", right.named());
            }
        }
        let brokered = ProcessFlags {
            is_brokered: true,
            ..ProcessFlags::default()
        };
        assert!(Process::Agent.rights(brokered).next().is_none());
    }

    #[test]
    fn nodes_are_for_controllers_that_remove_taints() {
        let on_nodes = |removes_taints| {
            let flags = ProcessFlags {
                removes_taints,
                ..ProcessFlags::default()
            };
            let rights = Process::Controller.rights(flags);
            let rights = rights.filter(|right| right.resource == "nodes");
            rights.map(|right| right.verb).collect::<Vec<_>>()
        };
        assert_eq!(on_nodes(false), Vec::<&str>::new());
        assert_eq!(on_nodes(true), ["get", "list", "watch", "patch"]);
        // The chart grants these rights with the taint only.
        let chart = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../charts/rolegate/templates/controller-rbac.yaml"
        );
        let text = std::fs::read_to_string(chart).unwrap();
        let rule = "resources: [nodes]\n    verbs: [get, list, watch, patch]";
        assert!(text.contains(rule), "{chart}");
    }

    #[test]
    fn a_review_names_the_account_and_the_subresource() {
        let review = CONTROLLER[0].review("n", "a");
        assert_eq!(review["spec"]["user"], "system:serviceaccount:n:a");
        let attributes = &review["spec"]["resourceAttributes"];
        assert_eq!(attributes["resource"], "rolegrants");
        assert_eq!(attributes["subresource"], "status");
        assert_eq!(attributes["namespace"], "");
    }
}
