//! Manifests of kube2iam with rolegate's image.

use anyhow::ensure;
use rolegate_testkit::nodes::{ClientPod, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};

use crate::ask::{Asking, CREDENTIALS, DEADLINE};

const NAMESPACE: &str = "default";
/// The manifest and the RBAC rules of kube2iam's documentation, with the image, the pull policy
/// (there is no registry), the account and the interface of this cluster.
const KUBE2IAM: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: kube2iam, namespace: kube-system }
---
apiVersion: v1
kind: List
items:
  - apiVersion: rbac.authorization.k8s.io/v1
    kind: ClusterRole
    metadata: { name: kube2iam }
    rules:
      - apiGroups: [""]
        resources: ["namespaces", "pods"]
        verbs: ["get", "watch", "list"]
  - apiVersion: rbac.authorization.k8s.io/v1
    kind: ClusterRoleBinding
    metadata: { name: kube2iam }
    subjects:
      - { kind: ServiceAccount, name: kube2iam, namespace: kube-system }
    roleRef: { kind: ClusterRole, name: kube2iam, apiGroup: rbac.authorization.k8s.io }
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: kube2iam
  namespace: kube-system
  labels: { app: kube2iam }
spec:
  selector: { matchLabels: { name: kube2iam } }
  template:
    metadata: { labels: { name: kube2iam } }
    spec:
      serviceAccountName: kube2iam
      hostNetwork: true
      containers:
        - image: ghcr.io/rolegate/rolegate:0.1.0
          imagePullPolicy: Never
          name: kube2iam
          args:
            - "--app-port=8181"
            - "--base-role-arn=arn:aws:iam::123456789012:role/"
            - "--iptables=true"
            - "--host-ip=$(HOST_IP)"
            - "--host-interface=veth+"
            - "--verbose"
          env:
            - name: HOST_IP
              valueFrom: { fieldRef: { fieldPath: status.podIP } }
          ports:
            - { containerPort: 8181, hostPort: 8181, name: http }
          securityContext: { privileged: true }
"#;

/// What the manifest also needs if pods share a bridge.
const RECORDS: &str = r#"          volumeMounts:
            - name: netns
              mountPath: /run/netns
              mountPropagation: HostToContainer
              readOnly: true
            - name: cni-results
              mountPath: /var/lib/cni/results
              mountPropagation: HostToContainer
              readOnly: true
      volumes:
        - { name: netns, hostPath: { path: /run/netns, type: DirectoryOrCreate } }
        - { name: cni-results, hostPath: { path: /var/lib/cni/results, type: DirectoryOrCreate } }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn kube2iams_manifest_serves_with_the_image_changed() -> anyhow::Result<()> {
    serves(Cni::Ptp, KUBE2IAM).await
}

#[tokio::test(flavor = "multi_thread")]
async fn kube2iams_manifest_serves_on_a_bridge_with_the_runtimes_records() -> anyhow::Result<()> {
    let manifest = KUBE2IAM.replace("veth+", "cni0") + RECORDS;
    serves(Cni::Bridge, &manifest).await
}

async fn serves(cni: Cni, manifest: &str) -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni,
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    cluster.apply(manifest).await?;
    cluster
        .rolled_out("kube-system", "daemonset/kube2iam")
        .await?;
    for (name, role) in [("reader", Some("reader")), ("plain", None)] {
        let client = ClientPod {
            namespace: NAMESPACE,
            name,
            role,
            ..ClientPod::default()
        };
        cluster.run_client(&client).await?;
    }
    let asking = |pod| Asking {
        cluster: &cluster,
        namespace: NAMESPACE,
        pod,
    };
    asking("reader").has_role("reader").await?;
    let names = asking("reader").get(CREDENTIALS).await?;
    ensure!(names == (200, "reader".to_owned()), "{names:?}");
    asking("plain").gets_nothing("reader").await?;
    // kube2iam's manifests with a probe request this path on the pods' port.
    let node = cluster.node("node-1")?;
    let health = format!("curl -sS --fail {}:8181/healthz", node.address());
    let health = eventually(DEADLINE, async || node.shell(&health).await?.ok()).await?;
    ensure!(health.contains("instanceId"), "{health}");
    Ok(())
}
