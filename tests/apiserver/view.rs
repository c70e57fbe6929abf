//! `rolegate policy explain` on a real API server with RBAC, as a user who has `view` in one
//! namespace and the rights of `deploy/rolegate-view.yaml`.

use std::process::Output;

use anyhow::ensure;
use rolegate_testkit::{Cluster, Rolegate, TestPod, eventually, repository};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// A user of namespace `shop`. On a real cluster, a controller aggregates `view` from this role.
const DEVELOPER: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:aggregate-to-view'}
subjects: [{kind: ServiceAccount, name: developer, namespace: shop}]
";

const BINDINGS: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: rolegate-view}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: rolegate-view}
subjects: [{kind: ServiceAccount, name: developer, namespace: shop}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: rolegate-view, namespace: rolegate-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: rolegate-view}
subjects: [{kind: ServiceAccount, name: developer, namespace: shop}]
";

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata:
      labels: {app: api}
      annotations: {iam.amazonaws.com/role: 'arn:aws:iam::123456789012:role/reader'}
    spec: {containers: [{name: app, image: app}]}
";

const READER: &str = "arn:aws:iam::123456789012:role/reader";
const ADMIN: &str = "arn:aws:iam::123456789012:role/admin";

struct Developer {
    kubeconfig: String,
}

impl Developer {
    async fn explain(&self, words: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let flags = ["policy", "explain", "--kubeconfig", &self.kubeconfig];
        let Output {
            status,
            stdout,
            stderr,
        } = Rolegate::output(&[&flags, words].concat()).await?;
        let said = String::from_utf8([stdout, stderr].concat())?;
        Ok((status.code(), said))
    }
}

#[tokio::test]
async fn a_developer_explains_pods_of_an_own_namespace_and_no_other() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    for name in ["rolegate-system", "other"] {
        cluster.create_namespace(name, &[]).await?;
    }
    let allowed = format!("[\"{READER}\"]");
    let annotations = [("iam.amazonaws.com/allowed-roles", &*allowed)];
    cluster.create_namespace("shop", &annotations).await?;
    cluster.create_node("node", [192, 0, 2, 1].into()).await?;
    for (namespace, name, role) in [
        ("shop", "a", READER),
        ("shop", "b", ADMIN),
        ("other", "c", ADMIN),
    ] {
        let pod = TestPod::new(namespace, name, "node").annotation("iam.amazonaws.com/role", role);
        cluster.run_pod(&pod).await?;
    }
    cluster.apply_manifest(DEPLOYMENT).await?;
    let agents = repository().join("deploy/rolegate-agent.yaml");
    let agents = std::fs::read_to_string(agents)?;
    // The rules are those of the agents' flags.
    let first = "- agent\n";
    ensure!(agents.contains(first), "{agents}");
    let flags = format!("{first}            - --namespace-restrictions\n");
    cluster
        .apply_manifest(&agents.replace(first, &flags))
        .await?;
    cluster.create_service_account("shop", "developer").await?;
    cluster.apply_manifest(DEVELOPER).await?;
    let token = cluster.service_account_token("shop", "developer").await?;
    let kubeconfig = cluster.kubeconfig_for_token("developer", &token)?;
    let developer = Developer {
        kubeconfig: kubeconfig.display().to_string(),
    };
    // Without the roles, the error names them.
    eventually(DEADLINE, async || {
        let (code, said) = developer.explain(&["pod", "a", "-n", "shop"]).await?;
        ensure!(
            code == Some(1) && said.contains("rolegate-view.yaml"),
            "{code:?} {said}"
        );
        Ok(())
    })
    .await?;
    let roles = repository().join("deploy/rolegate-view.yaml");
    ensure!(cluster.apply_file(&roles).await?.len() == 2, "two roles");
    cluster.apply_manifest(BINDINGS).await?;
    eventually(DEADLINE, async || {
        let (code, said) = developer.explain(&["pod", "a", "-n", "shop"]).await?;
        ensure!(code == Some(0), "{code:?} {said}");
        Ok(())
    })
    .await?;
    for (words, expected, part) in [
        (&["deploy/api"][..], 0, "allowed"),
        (&["pod/b"], 3, "denied"),
        (&["--denied"], 3, ADMIN),
        (&["pods", "-o", "name"], 3, "pod/a\npod/b\n"),
    ] {
        let (code, said) = developer
            .explain(&[words, &["-n", "shop"]].concat())
            .await?;
        ensure!(
            code == Some(expected) && said.contains(part),
            "{words:?}: {code:?} {said}"
        );
        ensure!(!said.contains("not known: flags"), "{said}");
    }
    // The user cannot read pods of other namespaces.
    for words in [
        &["pod/c", "-n", "other"][..],
        &["--denied", "-n", "other"],
        &["-A"],
    ] {
        let (code, said) = developer.explain(words).await?;
        ensure!(
            code == Some(1) && said.contains("not permitted to read pods"),
            "{words:?}: {code:?} {said}"
        );
    }
    Ok(())
}
