//! The objects that tests create in a cluster: manifests, namespaces, nodes, pods and tokens.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt, discovery};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Cluster;

/// The field manager of the tests' server-side applies.
const MANAGER: &str = "rolegate-test";

/// A pod for a test. It is placed on its node at once, since there is no scheduler, and deleted
/// without grace, since there is no kubelet to end it.
#[derive(Debug, Clone)]
pub struct TestPod {
    namespace: String,
    name: String,
    node: String,
    addresses: Vec<IpAddr>,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    service_account: String,
    host_network: bool,
}

impl TestPod {
    /// Creates a pod on `node`, without address or annotations, with the service account `default`.
    pub fn new(namespace: &str, name: &str, node: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            addresses: Vec::new(),
            annotations: BTreeMap::new(),
            labels: BTreeMap::new(),
            service_account: "default".to_owned(),
            host_network: false,
        }
    }

    /// Adds an address. The first is the primary one.
    #[must_use]
    pub fn address(mut self, address: impl Into<IpAddr>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds `iam.amazonaws.com/role`.
    #[must_use]
    pub fn role(self, role: &str) -> Self {
        self.annotation("iam.amazonaws.com/role", role)
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets a service account other than `default`.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Uses the node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.namespace,
                "annotations": self.annotations, "labels": self.labels,
            },
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.service_account,
                "hostNetwork": self.host_network,
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "main", "image": "none" }],
            },
        })
    }
}

impl Cluster {
    /// Creates the pod as a scheduler leaves it: on its node, pending, without address.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn create_pod(&self, pod: &TestPod) -> anyhow::Result<Pod> {
        create(&self.namespaced(&pod.namespace)?, pod.object()).await
    }

    /// Creates the pod and reports, as its kubelet would, that it runs at its addresses.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn run_pod(&self, pod: &TestPod) -> anyhow::Result<Pod> {
        self.create_pod(pod).await?;
        self.set_pod_status(&pod.namespace, &pod.name, "Running", &pod.addresses)
            .await
    }

    /// Sets a pod's status, as its kubelet would.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn set_pod_status(
        &self,
        namespace: &str,
        name: &str,
        phase: &str,
        addresses: &[IpAddr],
    ) -> anyhow::Result<Pod> {
        let all: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "phase": phase, "podIP": addresses.first(), "podIPs": all });
        let pods = self.namespaced::<Pod>(namespace)?;
        let patch = Patch::Merge(json!({ "status": status }));
        Ok(pods
            .patch_status(name, &PatchParams::default(), &patch)
            .await?)
    }

    /// Deletes a pod at once.
    ///
    /// # Errors
    /// Returns an error if there is no such pod.
    pub async fn delete_pod(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let now = DeleteParams::default().grace_period(0);
        self.namespaced::<Pod>(namespace)?
            .delete(name, &now)
            .await?;
        Ok(())
    }

    /// Sets annotations of a pod. `None` removes one.
    ///
    /// # Errors
    /// Returns an error if there is no such pod.
    pub async fn annotate_pod(
        &self,
        namespace: &str,
        name: &str,
        annotations: &[(&str, Option<&str>)],
    ) -> anyhow::Result<()> {
        annotate(&self.namespaced::<Pod>(namespace)?, name, annotations).await
    }

    /// Creates a namespace with annotations, and its service account `default`, which pods need and
    /// a controller would create.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn create_namespace(
        &self,
        name: &str,
        annotations: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let namespace = json!({ "metadata": { "name": name, "annotations": annotations } });
        create(&Api::<Namespace>::all(self.admin()?), namespace).await?;
        self.create_service_account(name, "default").await
    }

    /// Sets annotations of a namespace. `None` removes one.
    ///
    /// # Errors
    /// Returns an error if there is no such namespace.
    pub async fn annotate_namespace(
        &self,
        name: &str,
        annotations: &[(&str, Option<&str>)],
    ) -> anyhow::Result<()> {
        annotate(&Api::<Namespace>::all(self.admin()?), name, annotations).await
    }

    /// Ensures that a service account exists.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn create_service_account(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let accounts = self.namespaced::<ServiceAccount>(namespace)?;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name },
        });
        let params = PatchParams::apply(MANAGER);
        accounts
            .patch(name, &params, &Patch::Apply(account))
            .await?;
        Ok(())
    }

    /// Creates a node with this address as its `InternalIP`.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn create_node(&self, name: &str, address: IpAddr) -> anyhow::Result<Node> {
        let nodes = Api::<Node>::all(self.admin()?);
        create(&nodes, json!({ "metadata": { "name": name } })).await?;
        let status = json!({ "status": { "addresses": [
            { "type": "Hostname", "address": name },
            { "type": "InternalIP", "address": address },
        ]}});
        let params = PatchParams::default();
        Ok(nodes
            .patch_status(name, &params, &Patch::Merge(status))
            .await?)
    }

    /// Requests a service account's token for the API server.
    ///
    /// # Errors
    /// Returns an error if there is no such service account.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<String> {
        self.request_token(namespace, name, &self.url(), None).await
    }

    /// Requests a token of a pod's service account, bound to the pod, as its kubelet projects it.
    ///
    /// # Errors
    /// Returns an error if the pod is gone.
    pub async fn pod_token(&self, pod: &Pod, audience: &str) -> anyhow::Result<String> {
        let spec = pod.spec.as_ref().context("a pod without spec")?;
        let account = spec.service_account_name.as_deref().unwrap_or("default");
        let namespace = pod.namespace().context("a pod without namespace")?;
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        };
        self.request_token(&namespace, account, audience, Some(bound))
            .await
    }

    /// Requests a service account's token for an audience, optionally bound to an object.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn request_token(
        &self,
        namespace: &str,
        name: &str,
        audience: &str,
        bound: Option<BoundObjectReference>,
    ) -> anyhow::Result<String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                expiration_seconds: Some(3600),
                bound_object_ref: bound,
            },
            ..TokenRequest::default()
        };
        let answer = self
            .namespaced::<ServiceAccount>(namespace)?
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        Ok(answer
            .status
            .context("a token request without status")?
            .token)
    }

    /// Applies each document of a YAML file with server-side apply.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, otherwise as [`Self::apply_manifest`].
    pub async fn apply_file(&self, path: &Path) -> anyhow::Result<Vec<DynamicObject>> {
        let manifest = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        self.apply_manifest(&manifest).await
    }

    /// Applies each document of a YAML text with strict server-side apply: unknown fields are
    /// rejected, not dropped. Returns the objects as stored.
    ///
    /// # Errors
    /// Returns an error with the name of the first document that the API server refuses.
    pub async fn apply_manifest(&self, manifest: &str) -> anyhow::Result<Vec<DynamicObject>> {
        let documents: Vec<DynamicObject> = serde_saphyr::from_multiple(manifest)?;
        let mut applied = Vec::with_capacity(documents.len());
        for object in documents {
            let types = object.types.as_ref().context("a document without kind")?;
            let what = format!("{} {}", types.kind, object.name_any());
            let done = self.apply(GroupVersionKind::try_from(types)?, &object);
            applied.push(done.await.with_context(|| format!("{what} was refused"))?);
        }
        Ok(applied)
    }

    async fn apply(
        &self,
        kind: GroupVersionKind,
        object: &DynamicObject,
    ) -> anyhow::Result<DynamicObject> {
        let client = self.admin()?;
        let (resource, capabilities) = discovery::pinned_kind(&client, &kind).await?;
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client, &namespace, &resource),
            None if capabilities.scope == discovery::Scope::Cluster => {
                Api::all_with(client, &resource)
            }
            None => Api::default_namespaced_with(client, &resource),
        };
        let mut params = PatchParams::apply(MANAGER).force();
        params.field_validation = Some(kube::api::ValidationDirective::Strict);
        let patch = Patch::Apply(object);
        Ok(api.patch(&object.name_any(), &params, &patch).await?)
    }

    fn namespaced<K>(&self, namespace: &str) -> anyhow::Result<Api<K>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Ok(Api::namespaced(self.admin()?, namespace))
    }
}

async fn create<K>(api: &Api<K>, object: Value) -> anyhow::Result<K>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let object: K = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await?)
}

async fn annotate<K>(
    api: &Api<K>,
    name: &str,
    annotations: &[(&str, Option<&str>)],
) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
    api.patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}
