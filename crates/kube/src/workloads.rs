//! Watches pods and converts them to workloads.

use std::net::IpAddr;

use kube::Api;
use kube::core::ObjectMeta;
use rolegate_core::annotation::{AnnotationKeys, MIRROR, cut, is_kept};
use rolegate_core::labels::Labels;
use rolegate_core::needs::{Keys, Needs};
use rolegate_core::workload::{Phase, RoleRequest, Update, Workload};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::client::Connection;
use crate::objects::{Pod, labels};
use crate::watch::{Kept, Relist, Source, WatchObserver, never, usual};
use crate::watch_status::WatchStatus;

/// The pods to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Pods bound to one node.
    Node(String),
    /// Pods with this `status.hostIP`, filtered from all pods of the cluster.
    Host(IpAddr),
    /// All pods of the cluster.
    Cluster,
}

/// Watches pods and sends them as [`Update::Workloads`]: first a snapshot, then changes, and the
/// current state after each gap. Pods that are finished, or have no node, count as deleted. Only
/// the labels and annotations that rules read (`needs`) are kept; when rules read more, all pods
/// are listed again. Returns only when `updates` is closed.
pub async fn watch_pods(
    connection: &Connection,
    scope: &Scope,
    keys: AnnotationKeys,
    needs: watch::Receiver<Option<Needs>>,
    observer: WatchObserver,
    updates: mpsc::Sender<Update>,
) {
    let config = match scope {
        // The API server serves this from an in-memory index. Without `any_semantic`, an older one
        // would read every pod of the cluster from etcd.
        Scope::Node(node) => usual()
            .fields(&format!("spec.nodeName={node}"))
            .any_semantic(),
        Scope::Host(_) | Scope::Cluster => usual(),
    };
    let host = match scope {
        Scope::Host(address) => Some(address.to_canonical()),
        Scope::Node(_) | Scope::Cluster => None,
    };
    // Addresses of nodes are needed for the whole cluster only.
    let of_cluster = *scope == Scope::Cluster;
    let kept = Kept::new(needs);
    let now = kept.clone();
    let freshness = connection.freshness().pods.clone();
    let source = Source {
        api: Api::<Pod>::all(connection.watching(&freshness)),
        config,
        parse: move |pod: Pod| {
            let elsewhere = host.is_some_and(|host| pod.status.host() != Some(host));
            if elsewhere {
                return None;
            }
            let mut pod = workload(pod, &keys, &now.now())?;
            if pod.host_network && !of_cluster {
                pod.addresses = Vec::new();
            }
            Some(pod)
        },
        wrap: Update::Workloads,
        freshness,
        ends_on: never,
        relist: Some(Relist {
            identity: |pod: &Workload| &pod.uid,
            is_reported: Workload::may_run,
            retain: Update::RetainWorkloads,
        }),
        size_limit: None,
        kept: Some(kept),
    };
    let mut health = WatchStatus::new("pods", "pods", "", observer);
    source.run(&mut health, &updates).await;
}

/// Parses a pod.
///
/// # Errors
/// Returns a message if the document is malformed.
pub fn read(document: &Value, keys: &AnnotationKeys) -> Result<Workload, String> {
    let pod = Pod::deserialize(document).map_err(|error| error.to_string())?;
    workload(pod, keys, &Needs::everything())
        .ok_or_else(|| "it has no metadata.name, namespace or uid".into())
}

/// Trims a pod. `None` for one without name or UID, which no API server sends.
fn workload(pod: Pod, keys: &AnnotationKeys, needs: &Needs) -> Option<Workload> {
    let addresses = addresses(&pod);
    let labels = labels(&pod.metadata, &needs.pod_labels);
    let annotations = annotations(&pod.metadata, keys, &needs.pod_annotations);
    let Pod {
        metadata,
        spec,
        status,
    } = pod;
    let raw = |key: &str| metadata.annotations.as_ref()?.get(key).map(String::as_str);
    Some(Workload {
        role_request: RoleRequest::from_annotations(keys, raw),
        mirror: metadata
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(MIRROR)),
        namespace: metadata.namespace?.into(),
        name: metadata.name?.into(),
        uid: metadata.uid?.into(),
        node: spec
            .node_name
            .filter(|node| !node.is_empty())
            .map(Into::into),
        service_account: match spec.service_account_name {
            Some(name) if !name.is_empty() => name.into(),
            _ => "default".into(),
        },
        addresses,
        phase: match status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => Phase::Pending,
        },
        host_network: spec.host_network.unwrap_or(false),
        labels,
        annotations,
    })
}

/// Returns the annotations that rules read. Others, which may be large, are dropped and not
/// compared.
fn annotations(metadata: &ObjectMeta, keys: &AnnotationKeys, needed: &Keys) -> Labels {
    let kept =
        |key: &str| is_kept(key) || [&keys.role, &keys.external_id].iter().any(|k| *k == key);
    let all = metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(key, _)| kept(key));
    Labels::from_object(all.map(|(key, value)| (key, cut(value))), needed)
}

/// Returns the addresses of both fields without duplicates. The kubelet writes these fields, so
/// they may contain invalid addresses.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let all = pod.status.pod_ips.iter().flatten().map(|entry| &entry.ip);
    let mut addresses = Vec::new();
    for text in all
        .chain(&pod.status.pod_ip)
        .filter(|text| !text.is_empty())
    {
        match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if address.is_unspecified() || address.is_multicast() => skipped(pod, text),
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => skipped(pod, text),
        }
    }
    addresses
}

fn skipped(pod: &Pod, address: &str) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    tracing::warn!(
        namespace,
        name,
        address,
        "ignoring invalid IP in pod status"
    );
}

#[cfg(test)]
mod tests {
    use rolegate_core::annotation::ROLE;
    use serde_json::json;

    use super::*;

    fn parse(object: Value) -> Workload {
        let pod = serde_json::from_value(object).unwrap();
        workload(pod, &AnnotationKeys::default(), &Needs::everything()).unwrap()
    }

    fn pod(annotations: Value, status: Value) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "api-0", "uid": "u1", "resourceVersion": "7",
                "annotations": annotations, "managedFields": [{"manager": "kubelet"}]},
            "spec": {"nodeName": "node-a", "containers": [{"name": "app", "image": "app:1"}]},
            "status": status,
        })
    }

    #[test]
    fn everything_a_decision_needs() {
        let mut object = pod(
            json!({
                "iam.amazonaws.com/role": " reader\n",
                "iam.amazonaws.com/external-id": "x-1",
                "iam.amazonaws.com/session-name": "me",
            }),
            json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
        );
        object["spec"]["serviceAccountName"] = json!("api");
        let workload = parse(object);
        assert_eq!(
            (&*workload.namespace, &*workload.name, &*workload.uid),
            ("shop", "api-0", "u1")
        );
        assert_eq!(workload.node.as_deref(), Some("node-a"));
        assert_eq!(&*workload.service_account, "api");
        assert_eq!(workload.phase, Phase::Running);
        let addresses: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(workload.addresses, addresses);
        assert_eq!(workload.role_request.role.as_deref(), Some("reader"));
        assert_eq!(workload.role_request.external_id.as_deref(), Some("x-1"));
        assert_eq!(workload.role_request.session_name.as_deref(), Some("me"));
        assert!(!workload.mirror && !workload.host_network);
    }

    #[test]
    fn only_labels_and_readable_annotations_are_kept() {
        let keys = AnnotationKeys {
            role: "example.com/role".into(),
            ..AnnotationKeys::default()
        };
        let long = "x".repeat(100_000);
        let mut object = pod(
            json!({
                "iam.amazonaws.com/role": " raw\n",
                "eks.amazonaws.com/audience": "a",
                "rolegate.dev/x": long,
                "example.com/role": "reader",
                "kubectl.kubernetes.io/last-applied-configuration": long,
            }),
            json!({}),
        );
        object["metadata"]["labels"] = json!({"app": "api", "empty": ""});
        let pod = serde_json::from_value(object).unwrap();
        let workload = workload(pod, &keys, &Needs::everything()).unwrap();
        let labels: Vec<_> = workload.labels.iter().collect();
        assert_eq!(labels, [("app", "api"), ("empty", "")]);
        let kept: Vec<_> = workload.annotations.iter().map(|(key, _)| key).collect();
        assert_eq!(
            kept,
            [
                "eks.amazonaws.com/audience",
                "example.com/role",
                "iam.amazonaws.com/role",
                "rolegate.dev/x"
            ]
        );
        assert_eq!(
            workload.annotations.get("iam.amazonaws.com/role"),
            Some(" raw\n")
        );
        let cut = workload.annotations.get("rolegate.dev/x").unwrap();
        assert_eq!(cut.len(), 2048);
    }

    #[test]
    fn missing_fields_stay_missing() {
        let workload = parse(json!({"metadata": {"namespace": "a", "name": "b", "uid": "c"}}));
        assert_eq!(workload.phase, Phase::Pending);
        assert_eq!(&*workload.service_account, "default");
        assert!(workload.addresses.is_empty() && workload.node.is_none());
        assert_eq!(workload.role_request, RoleRequest::default());
        let nulls = parse(pod(
            json!(null),
            json!({"phase": null, "podIPs": null, "podIP": null}),
        ));
        assert!(nulls.addresses.is_empty());
    }

    #[test]
    fn an_empty_role_declines_and_is_not_the_same_as_none() {
        for empty in ["", " ", "\n\t"] {
            let workload = parse(pod(json!({ROLE: empty}), json!({})));
            assert_eq!(workload.role_request.role.as_deref(), Some(""), "{empty:?}");
        }
        let others = json!({"iam.amazonaws.com/external-id": " ", "unrelated": ""});
        assert_eq!(
            parse(pod(others, json!({}))).role_request,
            RoleRequest::default()
        );
    }

    #[test]
    fn invalid_addresses_are_ignored() {
        let ips = [
            "10.0.0.1",
            "nonsense",
            "",
            "0.0.0.0",
            "224.0.0.1",
            "010.0.0.2",
            "::",
            "10.0.0.1",
        ];
        let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let workload = parse(pod(
            json!({}),
            json!({"podIPs": ips, "podIP": "::ffff:10.0.0.3"}),
        ));
        let expected: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.3".parse().unwrap()];
        assert_eq!(workload.addresses, expected);
    }

    #[test]
    fn host_network_and_mirror_are_known() {
        let mut object = pod(json!({MIRROR: ""}), json!({}));
        object["spec"]["hostNetwork"] = json!(true);
        let workload = parse(object);
        assert!(workload.mirror && workload.host_network);
    }

    #[test]
    fn renamed_annotations_and_bounded_values() {
        let keys = AnnotationKeys {
            role: "example.com/role".into(),
            ..AnnotationKeys::default()
        };
        let long = "é".repeat(100_000);
        let object = pod(json!({"example.com/role": long, ROLE: "other"}), json!({}));
        let pod = serde_json::from_value(object).unwrap();
        let workload = workload(pod, &keys, &Needs::everything()).unwrap();
        let role = workload.role_request.role.unwrap();
        assert!(role.starts_with('é') && role.len() <= 2048 && role.len() > 2000);
    }
}
