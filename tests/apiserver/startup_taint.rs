//! The controller removes the startup taint of nodes at a real API server, with only the rights
//! that its documentation lists.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use rolegate_controller::app::{Controller, ControllerOptions};
use rolegate_controller::startup_taint::StartupTaintOptions;
use rolegate_testkit::{TestPod, eventually};
use serde_json::json;

use super::controller::{ControllerFixture, DEADLINE};

const NAMESPACE: &str = "startup-taint";
const KEY: &str = "rolegate.dev/startup-taint-test";

/// Rights on nodes and on the agents' pods.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: startup-taint-nodes }
rules:
- { apiGroups: [""], resources: [nodes], verbs: [get, list, watch, patch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: startup-taint-nodes }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: startup-taint-nodes }
subjects: [{ kind: ServiceAccount, name: default, namespace: startup-taint }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: startup-taint-pods, namespace: startup-taint }
rules:
- { apiGroups: [""], resources: [pods], verbs: [list, watch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: startup-taint-pods, namespace: startup-taint }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: startup-taint-pods }
subjects: [{ kind: ServiceAccount, name: default, namespace: startup-taint }]
"#;

struct Fixture(ControllerFixture);

impl Fixture {
    fn nodes(&self) -> anyhow::Result<Api<Node>> {
        Ok(Api::all(self.0.cluster.admin()?))
    }

    async fn set_taints(&self, node: &str, keys: &[&str]) -> anyhow::Result<()> {
        let taints = keys
            .iter()
            .map(|key| json!({"key": key, "effect": "NoSchedule"}));
        let taints: Vec<_> = taints.collect();
        let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
        self.nodes()?
            .patch(node, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn taints(&self, node: &str) -> anyhow::Result<Vec<String>> {
        let node = self.nodes()?.get(node).await?;
        let taints = node.spec.context("no spec")?.taints.unwrap_or_default();
        Ok(taints.into_iter().map(|taint| taint.key).collect())
    }

    async fn untainted(&self, node: &str) {
        eventually(DEADLINE, async || {
            let taints = self.taints(node).await?;
            ensure!(taints == ["other"], "{taints:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    async fn set_ready(&self, agent: &str) -> anyhow::Result<()> {
        let pods = Api::<Pod>::namespaced(self.0.cluster.admin()?, NAMESPACE);
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        let patch = Patch::Merge(json!({"status": {"phase": "Running", "conditions": conditions}}));
        pods.patch_status(agent, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }
}

#[tokio::test]
async fn startup_taint_goes_once_the_nodes_agent_is_ready() {
    let fixture = Fixture(ControllerFixture::new(NAMESPACE).await);
    let cluster = fixture.0.cluster;
    cluster.apply_manifest(RIGHTS).await.unwrap();
    for (node, address) in [("taint-a", "10.9.9.1"), ("taint-b", "10.9.9.2")] {
        cluster
            .create_node(node, address.parse().unwrap())
            .await
            .unwrap();
        fixture.set_taints(node, &["other", KEY]).await.unwrap();
        let agent = TestPod::new(NAMESPACE, node, node).label("app", "agent");
        cluster.create_pod(&agent).await.unwrap();
    }
    let options = ControllerOptions {
        startup_taint: Some(StartupTaintOptions {
            key: KEY.into(),
            namespace: NAMESPACE.into(),
            selector: "app=agent".into(),
        }),
        ..fixture.0.options("taints", fixture.0.self_signed())
    };
    let controller = Controller::start(options).await.unwrap();
    fixture.set_ready("taint-a").await.unwrap();
    fixture.untainted("taint-a").await;
    assert_eq!(fixture.taints("taint-b").await.unwrap(), ["other", KEY]);

    // A taint that appears later, such as when a node registers again.
    fixture
        .set_taints("taint-a", &[KEY, "other"])
        .await
        .unwrap();
    fixture.untainted("taint-a").await;
    fixture.set_ready("taint-b").await.unwrap();
    fixture.untainted("taint-b").await;
    drop(controller);
}
