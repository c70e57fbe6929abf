//! The harness of the webhook's tests: users, the webhook that most tests share, and their requests.

use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_testkit::cases::User;
use rolegate_testkit::request::{Answer, Requests};
use rolegate_testkit::{Cluster, TestAdmission, eventually};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

/// Timeout for events on a machine that may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// The role annotation.
pub(crate) const ROLE: &str = "iam.amazonaws.com/role";

/// A configuration in which only the layer of grants is on.
pub(crate) const GRANTS: &str = r#"
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: { name: cluster }
spec:
  baseRoleArn: "arn:aws:iam::123456789012:role/"
  layers: { namespace: "off", grants: enforce, rego: "off" }
  exemptNamespaces: [kube-system, rolegate-system]
  namespaceWriters: { groups: [platform] }
  ruleWriters: { groups: [platform] }
  workloadKinds:
    - { group: example.com, kind: Batch, resource: batches, paths: [spec.workers.*.template] }
"#;

/// A cluster with its webhook.
pub(crate) struct WebhookHarness {
    pub(crate) cluster: Cluster,
    pub(crate) test_admission: TestAdmission,
}

/// Limits the clusters of single tests: the next one starts when earlier ones are gone.
pub(crate) async fn alone() -> anyhow::Result<SemaphorePermit<'static>> {
    static PLACES: Semaphore = Semaphore::const_new(1);
    Ok(PLACES.acquire().await?)
}

impl WebhookHarness {
    /// Returns the shared harness of tests that need only grants, each in its own namespaces.
    pub(crate) async fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceCell<WebhookHarness> = OnceCell::const_new();
        SHARED
            .get_or_try_init(|| async {
                let cluster = Cluster::start_with_controllers().await?;
                Self::start(cluster, GRANTS).await
            })
            .await
    }

    /// Creates a harness on this cluster with these rules.
    pub(crate) async fn start(cluster: Cluster, rules: &str) -> anyhow::Result<Self> {
        let test_admission = TestAdmission::start(&cluster, rules).await?;
        Ok(Self {
            cluster,
            test_admission,
        })
    }

    /// Creates a namespace with a grant of all roles that begin with `shop-`, and waits until it is
    /// in effect.
    pub(crate) async fn shop(&self, namespace: &str) -> anyhow::Result<()> {
        self.cluster.create_namespace(namespace, &[]).await?;
        self.grant(namespace, &["shop-*"]).await?;
        self.until_allowed(namespace, "shop-reader").await
    }

    /// Creates or changes the grant of a namespace.
    pub(crate) async fn grant(&self, namespace: &str, roles: &[&str]) -> anyhow::Result<()> {
        let grant = json!({
            "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
            "metadata": { "name": namespace },
            "spec": { "roles": roles, "subjects": [{ "namespaces": [namespace] }] },
        });
        self.cluster.apply_manifest(&grant.to_string()).await?;
        Ok(())
    }

    /// Returns a client that acts as a developer who is not a rule writer.
    pub(crate) fn jane(&self) -> anyhow::Result<Requests> {
        Ok(self.cluster.requests()?.as_user(&User::default()))
    }

    /// Returns a client that makes requests as a member of a group.
    pub(crate) fn member(&self, group: &str) -> anyhow::Result<Requests> {
        Ok(self.cluster.requests()?.as_user(&User {
            name: "ann".into(),
            groups: vec![group.into()],
        }))
    }

    /// Creates a pod with this role as a dry run.
    pub(crate) async fn try_pod(&self, namespace: &str, role: &str) -> anyhow::Result<Answer> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        self.jane()?.post(&path, &pod("trial", Some(role))).await
    }

    /// Waits until a pod may have the role.
    pub(crate) async fn until_allowed(&self, namespace: &str, role: &str) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            self.try_pod(namespace, role).await?.object().map(drop)
        })
        .await
        .with_context(|| format!("a pod of {namespace} should get {role}"))
    }

    /// Waits until a pod may not have the role.
    pub(crate) async fn until_refused(
        &self,
        namespace: &str,
        role: &str,
    ) -> anyhow::Result<Answer> {
        eventually(DEADLINE, async || {
            let answer = self.try_pod(namespace, role).await?;
            ensure!(
                answer.is_refused_by_webhook(),
                "{} {}",
                answer.status,
                answer.body
            );
            Ok(answer)
        })
        .await
        .with_context(|| format!("a pod of {namespace} should not get {role}"))
    }
}

/// Returns the metadata and spec of a template's pods.
pub(crate) fn template(role: Option<&str>) -> Value {
    let annotations = role.map_or(json!({}), |role| json!({ ROLE: role }));
    json!({
        "metadata": { "labels": { "app": "app" }, "annotations": annotations },
        "spec": { "containers": [{ "name": "main", "image": "none" }] },
    })
}

/// Returns a pod.
pub(crate) fn pod(name: &str, role: Option<&str>) -> Value {
    let mut pod = template(role);
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = name.into();
    pod
}

/// Returns a Deployment.
pub(crate) fn deployment(name: &str, replicas: u32, role: Option<&str>) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "app" } },
            "template": template(role),
        },
    })
}

/// Fails unless the webhook itself denied the request, with these texts.
pub(crate) fn refused(what: &str, answer: &Answer, says: &[&str]) -> anyhow::Result<()> {
    ensure!(
        answer.is_refused_by_webhook(),
        "{what} should be denied by the webhook: {} {}",
        answer.status,
        answer.body
    );
    ensure!(answer.status == 403, "{what}: {}", answer.status);
    for text in says {
        ensure!(
            answer.message().contains(text),
            "{what}: the refusal does not say {text:?}: {}",
            answer.message()
        );
    }
    Ok(())
}

/// Fails unless the request was accepted.
pub(crate) fn taken(what: &str, answer: Answer) -> anyhow::Result<Value> {
    answer
        .object()
        .with_context(|| format!("{what} should pass"))
}
