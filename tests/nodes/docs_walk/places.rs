//! A reader's cluster: the table of replacements for the pages, and the pods that exist before the
//! first step.

use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::CLIENT;

use crate::ask::CREDENTIALS;

/// A pod that requests credentials while a reader follows pages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) namespace: &'static str,
    /// The name by which pages announce changes of its credentials.
    pub(super) name: &'static str,
    /// The role in its annotation; without an annotation the pod requests the node's role.
    pub(super) role: Option<&'static str>,
    pub(super) node: &'static str,
    /// True if the pod may have credentials. Other pods must get none while agents run.
    pub(super) entitled: bool,
}

impl Case {
    const fn new(namespace: &'static str, name: &'static str, role: Option<&'static str>) -> Self {
        Self {
            namespace,
            name,
            role,
            node: NODE,
            entitled: true,
        }
    }

    const fn on(self, node: &'static str) -> Self {
        Self { node, ..self }
    }

    const fn without_right(self) -> Self {
        Self {
            entitled: false,
            ..self
        }
    }

    /// Returns the name of the requested role.
    pub(super) fn asks(&self) -> &'static str {
        let role = self.role.unwrap_or("node");
        // As agents list it: the role's name with its path below the path of the base ARN.
        role.rsplit_once("role/k8s/").map_or(role, |(_, name)| name)
    }
}

/// The namespaces and pods that exist before a reader starts with this page.
pub(super) struct PageFixture {
    pub(super) page: &'static str,
    /// The objects that are created first.
    pub(super) objects: &'static str,
    pub(super) cases: &'static [Case],
}

/// The fixtures of each page that starts on a new cluster.
pub(super) const PAGE_FIXTURES: [PageFixture; 2] = [
    PageFixture {
        page: "docs/tutorial.md",
        objects: r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cases", "annotations":
                {"iam.amazonaws.com/allowed-roles": "[\"case-*\", \"lost\"]"}}},
            {"apiVersion": "apps/v1", "kind": "Deployment",
             "metadata": {"name": "app", "namespace": "cases"},
             "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "app"}}, "template": {
                "metadata": {"labels": {"app": "app"},
                    "annotations": {"iam.amazonaws.com/role": "case-reader"}},
                "spec": {"containers": [{"name": "app", "image": "localhost/client:1"}]}}}}]}"#,
        cases: &[
            Case::new("cases", "by-name", Some("case-reader")),
            Case::new(
                "cases",
                "by-arn",
                Some("arn:aws:iam::123456789012:role/k8s/case-writer"),
            )
            .on("node-2"),
            Case::new("cases", "no-role", None).without_right(),
            Case::new("cases", "not-allowed", Some("admin")).without_right(),
            Case::new("cases", "not-at-aws", Some("lost")).without_right(),
        ],
    },
    PageFixture {
        page: "docs/how-to/install.md",
        objects: r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}]}"#,
        cases: &[
            Case::new("shop", "by-name", Some("shop-reader")),
            Case::new(
                "shop",
                "by-arn",
                Some("arn:aws:iam::123456789012:role/k8s/shared/reader"),
            )
            .on("node-2"),
            Case::new("other", "elsewhere", Some("other-reader")),
            Case::new("shop", "no-role", None).without_right(),
        ],
    },
];

/// A role that STS refuses.
pub(super) const LOST: &str = "arn:aws:iam::123456789012:role/k8s/lost";

/// The node that pages call "the node".
pub(super) const NODE: &str = "node-1";
/// The other node.
pub(super) const SECOND: &str = "node-2";
/// The image in the manifests, which the nodes have.
pub(super) const IMAGE: &str = "ghcr.io/rolegate/rolegate:0.1.0";
/// The image of a new version, which the nodes have in addition to the installed one.
pub(super) const NEW_IMAGE: &str = "registry.example/rolegate:0.2.0";

/// Returns the replacements in commands and files.
pub(super) fn table(cluster: &TestCluster) -> Vec<(&'static str, String)> {
    let interface = cluster.host_interface();
    let of = |what: &str| {
        format!(
            "$(kubectl -n rolegate-system get pods -l app.kubernetes.io/name={what} \
             --field-selector status.phase=Running,spec.nodeName={NODE} -o jsonpath='{{.items[0].metadata.name}}')"
        )
    };
    vec![
        // A registry, and an image with the AWS CLI: the nodes cannot pull images.
        ("REGISTRY/rolegate:0.1.0", IMAGE.to_owned()),
        ("REGISTRY/rolegate:VERSION", NEW_IMAGE.to_owned()),
        ("--image=amazon/aws-cli", format!("--image={CLIENT}")),
        // The host's end of the pods' interfaces.
        ("=eni+", format!("={interface}")),
        // Names that differ per cluster or account.
        (
            "--instance-id i-…",
            "--instance-id $(aws ec2 describe-instances --query Reservations[0].Instances[0].InstanceId --output text)"
                .to_owned(),
        ),
        ("rolegate-agent-…", of("rolegate-agent")),
        ("AGENT", of("rolegate-agent")),
        (
            "ASIA…",
            format!(
                "$(kubectl -n shop exec by-name -- curl -s {CREDENTIALS}shop-reader | \
                 grep -o 'ASIA[A-Z0-9]*')"
            ),
        ),
        ("=NODE", format!("={NODE}")),
        ("cni-…", "$(basename \"$(find /run/netns -name 'cni-*' | sort | head -n1)\")".to_owned()),
        ("pod/api-7d4b9 -n payments", "pod/by-name -n cases".to_owned()),
        ("--user YOU --group YOUR-GROUP", "--user admin --group platform-team".to_owned()),
        ("--role ROLE", "--role case-reader".to_owned()),
        ("--namespace NAMESPACE", "--namespace cases".to_owned()),
        ("--service-account NAME", "--service-account default".to_owned()),
        ("pod/POD", "pod/not-allowed".to_owned()),
        ("NAMESPACE/POD", "cases/not-allowed".to_owned()),
        ("LOST", "not-at-aws".to_owned()),
        ("POD", "not-allowed".to_owned()),
        ("-n NAMESPACE", "-n cases".to_owned()),
        ("deployment/NAME", "deployment/app".to_owned()),
        // A command that exits by itself instead of one that keeps running.
        ("make demo", "rolegate demo --once".to_owned()),
        // A command that needs no chart.
        ("helm template shop ./chart", "cat chart.yaml".to_owned()),
    ]
}
