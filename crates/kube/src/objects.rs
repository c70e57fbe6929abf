//! Partial types of the objects we read. Other fields, which make up most of a pod, are skipped
//! while parsing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::Resource;
use kube::core::ObjectMeta;
use rolegate_core::labels::Labels;
use rolegate_core::needs::Keys;
use serde::{Deserialize, Deserializer};

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Pod {
    #[serde(deserialize_with = "trimmed")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: PodSpec,
    #[serde(default)]
    pub(crate) status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    pub(crate) service_account_name: Option<String>,
    pub(crate) host_network: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    pub(crate) phase: Option<String>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(crate) pod_ips: Option<Vec<PodIp>>,
}

impl PodStatus {
    /// Returns the address of the pod's node, as reported by its kubelet.
    pub(crate) fn host(&self) -> Option<IpAddr> {
        let address: IpAddr = self.host_ip.as_ref()?.parse().ok()?;
        Some(address.to_canonical())
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PodIp {
    #[serde(default)]
    pub(crate) ip: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Namespace {
    #[serde(deserialize_with = "trimmed")]
    pub(crate) metadata: ObjectMeta,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServiceAccount {
    #[serde(deserialize_with = "trimmed")]
    pub(crate) metadata: ObjectMeta,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Node {
    #[serde(deserialize_with = "trimmed")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    pub(crate) addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeAddress {
    #[serde(default)]
    pub(crate) address: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConfigMap {
    #[serde(deserialize_with = "trimmed")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) data: Option<BTreeMap<String, String>>,
}

fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, Text>>,
        annotations: Option<BTreeMap<String, Text>>,
    }
    let texts = |all: Option<BTreeMap<String, Text>>| {
        let texts = all?.into_iter().map(|(key, text)| (key, text.0));
        Some(texts.collect::<BTreeMap<_, _>>())
    };
    let metadata = Metadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        labels: texts(metadata.labels),
        annotations: texts(metadata.annotations),
        ..ObjectMeta::default()
    })
}

/// A value of a string map. The API server reads null as an empty string.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(|text| Self(text.unwrap_or_default()))
    }
}

macro_rules! resource {
    ($kind:ident, $plural:literal, $scope:ty) => {
        impl Resource for $kind {
            type DynamicType = ();
            type Scope = $scope;

            fn kind(_: &()) -> Cow<'_, str> {
                stringify!($kind).into()
            }

            fn group(_: &()) -> Cow<'_, str> {
                "".into()
            }

            fn version(_: &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Pod, "pods", NamespaceResourceScope);
resource!(ConfigMap, "configmaps", NamespaceResourceScope);
resource!(Namespace, "namespaces", ClusterResourceScope);
resource!(ServiceAccount, "serviceaccounts", NamespaceResourceScope);
resource!(Node, "nodes", ClusterResourceScope);

/// Returns the labels with these `keys`.
pub(crate) fn labels(metadata: &ObjectMeta, keys: &Keys) -> Labels {
    Labels::from_object(metadata.labels.iter().flatten(), keys)
}
