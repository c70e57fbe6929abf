//! `rolegate policy` when the effective rules cannot be determined, and the RolegateConfig that is
//! equivalent to the flags. The API server is real, and only the command reads it.

use std::path::PathBuf;

use rolegate_testkit::{Cluster, TestPod, eventually, repository};
use serde_json::{Value, json};

use crate::fixture::DEADLINE;
use crate::policy_command::{Ran, run_as};

const HOME: &str = "rolegate-system";
const BASE: &str = "--base-role-arn=arn:aws:iam::123456789012:role/";

/// A user who may read rules and pods, but no workloads.
const READER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: rules-reader }
rules:
- { apiGroups: [""], resources: [namespaces, pods], verbs: [get, list] }
- { apiGroups: [rolegate.dev], resources: [rolegrants, rolegateconfigs], verbs: [get, list] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: rules-reader }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: rules-reader }
subjects: [{ kind: ServiceAccount, name: default, namespace: shop }]
"#;

struct Fixture {
    cluster: Cluster,
    kubeconfig: PathBuf,
}

impl Fixture {
    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.create_namespace(HOME, &[]).await?;
        let allowed = [("iam.amazonaws.com/allowed-roles", r#"["reader"]"#)];
        cluster.create_namespace("shop", &allowed).await?;
        cluster.apply_manifest(READER).await?;
        let pods = [
            TestPod::new("shop", "reader", "node").role("reader"),
            TestPod::new("shop", "admin", "node").role("admin"),
            TestPod::new("shop", "whole", "node").role("arn:aws:iam::123456789012:role/reader"),
            TestPod::new("shop", "plain", "node"),
        ];
        for (number, pod) in (10..).zip(pods) {
            cluster.run_pod(&pod.address([10, 9, 0, number])).await?;
        }
        Ok(Self {
            kubeconfig: cluster.admin_kubeconfig()?,
            cluster,
        })
    }

    async fn daemon_set(&self, name: &str, container: Value) -> anyhow::Result<()> {
        let labels = json!({"app.kubernetes.io/name": "rolegate-agent"});
        let mut container = container;
        container["name"] = "agent".into();
        container["image"] = "rolegate:1".into();
        let object = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": HOME, "labels": labels},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels}, "spec": {"containers": [container]}}},
        });
        self.cluster.apply_manifest(&object.to_string()).await?;
        Ok(())
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        run_as(&self.kubeconfig, arguments).await
    }

    async fn explain(&self, pod: &str, flags: &[&str]) -> anyhow::Result<Ran> {
        let pod = format!("pod/{pod}");
        let explain = ["explain", &pod, "-n", "shop", "-ojson"];
        self.run(&[&explain[..], flags].concat()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_force_is_read_or_asked_for_and_never_guessed() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let folder = tempfile::tempdir()?;
    let manifest = folder.path().join("pod.yaml");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "shop",
        "annotations": {"iam.amazonaws.com/role": "admin"}}, "spec": {"containers": []}});
    std::fs::write(&manifest, pod.to_string())?;
    let manifest = manifest.display().to_string();
    // No agents: every command names the flags to set.
    for command in [
        &["explain", "pod/reader", "-n", "shop"][..],
        &["check", "-f", &manifest],
        &["simulate", "--rules", &manifest],
        &["suggest"],
        &["adopt"],
    ] {
        let ran = fixture.run(command).await?;
        ran.fails_for("cannot find DaemonSet rolegate-agent in namespace rolegate-system");
    }
    let flags = [BASE, "--namespace-restrictions"];
    let told = fixture.explain("admin", &flags).await?.ended(3).json()?;
    assert_eq!(told["rules"]["source"]["kind"], "Flags");

    // The shipped flags: agents detect the base ARN.
    let restricted = json!({"args": ["agent", "--namespace-restrictions", "--auto-discover-base-arn",
        "--node=$(NODE_NAME)"],
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]});
    fixture.daemon_set("rolegate-agent", restricted).await?;
    for pod in ["reader", "admin", "whole"] {
        let ran = fixture.explain(pod, &[]).await?;
        ran.fails_for("the answer depends on the base ARN");
    }
    for command in [&["suggest"][..], &["check", "-f", &manifest]] {
        let ran = fixture.run(command).await?;
        ran.fails_for("the answer depends on the base ARN");
    }
    let plain = fixture.explain("plain", &[]).await?.ended(3).json()?;
    assert_eq!(plain["decision"], "noRole");
    assert_eq!(plain["rules"]["baseRoleArn"], Value::Null);
    for (pod, code) in [("reader", 0), ("admin", 3), ("whole", 0)] {
        let told = fixture.explain(pod, &[BASE]).await?.ended(code).json()?;
        assert_eq!(told["rules"]["source"]["kind"], "Workloads", "{told:#}");
        assert_eq!(told["rules"]["layers"]["namespace"], "enforce");
        assert_eq!(told["rules"]["flags"], json!(["--base-role-arn"]));
    }
    let checked = fixture
        .run(&["check", "-f", &manifest, BASE])
        .await?
        .ended(3);
    let says = "flags of DaemonSet rolegate-system/rolegate-agent, generation 1";
    assert!(checked.out.contains(says), "{}", checked.out);

    // A user who may not read workloads.
    let token = fixture
        .cluster
        .service_account_token("shop", "default")
        .await?;
    let reader = fixture.cluster.kubeconfig_for_token("reader", &token)?;
    let explain = ["explain", "pod/reader", "-n", "shop"];
    eventually(DEADLINE, async || {
        let ran = run_as(&reader, &explain).await?;
        anyhow::ensure!(
            ran.err.contains("not permitted to read daemonsets"),
            "{}",
            ran.err
        );
        assert_eq!(ran.code, 1);
        Ok(())
    })
    .await?;

    // Agents with different flags, and flags that come from other objects.
    fixture
        .daemon_set("other", json!({"args": ["agent", BASE]}))
        .await?;
    fixture
        .explain("reader", &[])
        .await?
        .fails_for("have different flags");
    let one = fixture
        .explain("admin", &["--agent-daemonset=other"])
        .await?;
    assert_eq!(one.ended(0).json()?["rules"]["layers"]["namespace"], "off");
    let other = ["--agent-daemonset=other"];
    let file = json!({"args": ["agent", "--config=/etc/rolegate.yaml"]});
    fixture.daemon_set("other", file).await?;
    fixture
        .explain("reader", &other)
        .await?
        .fails_for("--config");
    let secret = json!({"args": ["agent", BASE, "--default-role=$(ROLE)"],
        "env": [{"name": "ROLE", "valueFrom": {"secretKeyRef": {"name": "role", "key": "x"}}}]});
    fixture.daemon_set("other", secret).await?;
    fixture
        .explain("plain", &other)
        .await?
        .fails_for("Secret role");
    let named = ["--agent-daemonset=other", "--default-role=basic"];
    let told = fixture.explain("plain", &named).await?.ended(0).json()?;
    assert_eq!(
        told["session"]["roleArn"],
        "arn:aws:iam::123456789012:role/basic"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adopted_config_decides_as_the_flags_do() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let flags = json!({
        "args": ["--default-role=basic", "--reserved-role=admin", "--session-scope=pod"],
        "env": [{"name": "ROLEGATE_NAMESPACE_RESTRICTIONS", "value": "true"},
            {"name": "ROLEGATE_BASE_ROLE_ARN", "value": "arn:aws:iam::123456789012:role/"}],
    });
    fixture.daemon_set("rolegate-agent", flags).await?;
    let pods = ["reader", "admin", "whole", "plain"];
    let mut before = Vec::new();
    for pod in pods {
        let mut told = fixture.explain(pod, &[]).await?.json()?;
        assert_eq!(told["rules"]["source"]["kind"], "Workloads");
        told["rules"] = Value::Null;
        before.push(told);
    }
    let adopted = fixture.run(&["adopt"]).await?.ended(0);
    assert!(adopted.err.contains("--session-scope"), "{}", adopted.err);
    // The command wrote nothing.
    let kinds = fixture.cluster.requests()?;
    let path = "/apis/rolegate.dev/v1alpha1/rolegateconfigs";
    assert_eq!(kinds.get(path).await?.status, 404);

    let definitions = repository().join("deploy/crds.yaml");
    fixture.cluster.apply_file(&definitions).await?;
    eventually(DEADLINE, async || kinds.get(path).await?.object().map(drop)).await?;
    // The definition without an object: agents deny everything, and the explanation reports that.
    let missing = fixture.explain("reader", &[]).await?.ended(3).json()?;
    assert_eq!(missing["denial"]["layer"], "rules");
    assert_eq!(missing["rules"]["source"]["kind"], "Missing");
    fixture.cluster.apply_manifest(&adopted.out).await?;
    for (pod, before) in pods.iter().zip(before) {
        let mut told = fixture.explain(pod, &[]).await?.json()?;
        let source = &told["rules"]["source"];
        assert_eq!(source["kind"], "RolegateConfig");
        assert_eq!(source["generation"], 1);
        told["rules"] = Value::Null;
        assert_eq!(told, before, "{pod}");
    }
    let again = fixture.run(&["adopt"]).await?;
    again.fails_for("a RolegateConfig exists already");
    let idle = fixture
        .explain("reader", &["--layer=grants=audit"])
        .await?
        .ended(64);
    assert!(idle.err.contains("--layer has no effect"), "{}", idle.err);
    // The error names the context if nothing is found.
    let lost = fixture.run(&["explain", "pod/reader"]).await?;
    lost.fails_for("cannot find pod reader in namespace default (context test)");
    Ok(())
}

/// The layer is off, so no objects are read for policies. The simulation still has to see whole
/// pods.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposed_policy_is_simulated_while_its_layer_is_off() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.cluster.create_namespace("opa", &[]).await?;
    let map = |name: &str, text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "opa",
                "labels": {"openpolicyagent.org/policy": "rego"}},
            "data": {"main.rego": text}})
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("policy.yaml");
    let path = file.display().to_string();
    let simulate = [
        "simulate",
        BASE,
        "--layer=namespace=off",
        "--rules",
        &path,
        "-ojson",
    ];
    let images = "package kubernetes.admission\n\n\
        deny[msg] { input.request.object.spec.containers[_].image; msg := \"no images\" }\n";
    std::fs::write(&file, map("images", images).to_string())?;
    let found = fixture.run(&simulate).await?.ended(3).json()?;
    assert!(found.to_string().contains("no images"), "{found:#}");

    // An existing policy that was never evaluated is included as well.
    fixture
        .cluster
        .apply_manifest(&map("images", images).to_string())
        .await?;
    let nothing = "package kubernetes.admission\n\ndeny[msg] { false; msg := \"\" }\n";
    std::fs::write(&file, map("nothing", nothing).to_string())?;
    let found = fixture.run(&simulate).await?.ended(3).json()?;
    assert!(found.to_string().contains("no images"), "{found:#}");
    Ok(())
}
