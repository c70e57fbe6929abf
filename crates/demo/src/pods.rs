//! The pods of the demo's node, their namespaces, and the namespaces' rules.

use rolegate_devkit as devkit;
use serde_json::{Value, json};

/// The node's name in Kubernetes.
pub(super) const NODE: &str = "demo-node";
/// Another node of the cluster, which runs nothing here.
pub(super) const OTHER_NODE: &str = "other-node";
/// The node's role, which no pod may get.
pub(super) const NODE_ROLE: &str = "node";
/// The annotation of a pod that names its role.
const ROLE: &str = "iam.amazonaws.com/role";
/// The annotation of a namespace's allowed roles.
const ALLOWED_ROLES: &str = "iam.amazonaws.com/allowed-roles";

/// A pod of the demo.
#[derive(Debug)]
pub(super) struct Pod {
    /// Its namespace.
    pub(super) namespace: &'static str,
    /// The name of the pod and of its service account.
    pub(super) name: &'static str,
    /// The role in its annotation.
    pub(super) role: Option<&'static str>,
    /// The last byte of its address.
    pub(super) number: u8,
}

/// A pod that may have its role.
pub(super) const CHECKOUT: Pod = Pod {
    namespace: "shop",
    name: "checkout",
    role: Some("checkout"),
    number: 1,
};
/// A pod that requests a role that its namespace does not allow.
pub(super) const RETURNS: Pod = Pod {
    namespace: "shop",
    name: "returns",
    role: Some("payments-admin"),
    number: 2,
};
/// A pod that requests no role.
pub(super) const FRONTEND: Pod = Pod {
    namespace: "web",
    name: "frontend",
    role: None,
    number: 3,
};
/// A pod that requests the node's own role, in a namespace that allows every role.
pub(super) const SHELL: Pod = Pod {
    namespace: "tools",
    name: "shell",
    role: Some(NODE_ROLE),
    number: 4,
};
/// A pod that starts later, while STS issues short sessions.
pub(super) const REPORTS: Pod = Pod {
    namespace: "shop",
    name: "reports",
    role: Some("reports-reader"),
    number: 5,
};
/// All pods.
pub(super) const ALL: [&Pod; 5] = [&CHECKOUT, &RETURNS, &FRONTEND, &SHELL, &REPORTS];

/// The roles that namespace `shop` allows first, and those after its owner removed `checkout`.
pub(super) const SHOP_ALLOWS: &str = r#"["checkout", "reports-*"]"#;
pub(super) const SHOP_ALLOWS_LESS: &str = r#"["reports-*"]"#;

impl Pod {
    /// Returns `NAMESPACE/NAME`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns the pod as an object of Kubernetes.
    pub(super) fn object(&self, address: std::net::Ipv4Addr) -> devkit::Pod {
        let pod = devkit::Pod::new(self.namespace, self.name)
            .node(NODE)
            .ip(&address.to_string())
            .service_account(self.name);
        match self.role {
            Some(role) => pod.annotation(ROLE, role),
            None => pod,
        }
    }
}

/// Returns a pod of the other node, with a role that its namespace allows.
pub(super) fn elsewhere() -> devkit::Pod {
    devkit::Pod::new("shop", "ledger")
        .node(OTHER_NODE)
        .ip("10.99.0.1")
        .service_account("ledger")
        .annotation(ROLE, "reports-ledger")
}

/// Returns a namespace as an object of Kubernetes.
pub(super) fn namespace(name: &str, allowed_roles: &str) -> devkit::Namespace {
    devkit::Namespace::new(name).annotation(ALLOWED_ROLES, allowed_roles)
}

/// Returns the central rules, which require a grant in addition to a namespace's annotation.
pub(super) fn rules() -> [(&'static str, Value); 2] {
    [
        (
            "rolegate.dev/v1alpha1/rolegateconfigs",
            json!({
                "apiVersion": "rolegate.dev/v1alpha1",
                "kind": "RolegateConfig",
                "metadata": {"name": "cluster"},
                "spec": {
                    "baseRoleArn": "arn:aws:iam::123456789012:role/",
                    "layers": {"namespace": "enforce", "grants": "enforce"},
                },
            }),
        ),
        (
            "rolegate.dev/v1alpha1/rolegrants",
            json!({
                "apiVersion": "rolegate.dev/v1alpha1",
                "kind": "RoleGrant",
                "metadata": {"name": "shop"},
                "spec": {
                    "roles": ["checkout", "reports-*"],
                    "subjects": [{"namespaces": ["shop"]}],
                },
            }),
        ),
    ]
}

/// Returns a Deployment whose pods request a role.
pub(super) fn deployment(namespace: &str, role: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "shopper", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": "shopper"}},
            "template": {
                "metadata": {"labels": {"app": "shopper"}, "annotations": {ROLE: role}},
                "spec": {"containers": [{"name": "main", "image": "example.com/shopper"}]},
            },
        },
    })
}
