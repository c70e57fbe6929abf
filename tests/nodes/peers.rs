//! Manifests of kube2iam and kiam with rolegate's image.

use anyhow::ensure;
use rolegate_testkit::nodes::{CLIENT, ClientPod, Cni, Options};
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

/// The mounts that the manifest also needs if pods share a bridge.
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

/// The authority, the certificates and the Secrets of kiam's documentation.
const KIAM_SECRETS: &str = r#"
ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "$@" 2>/dev/null; }
ca -keyout ca-key.pem -out ca.pem -subj /CN=kiam-ca
for name in server agent; do
	ca -keyout $name-key.pem -out $name.pem -subj /CN=kiam-$name -CA ca.pem -CAkey ca-key.pem \
		-addext basicConstraints=critical,CA:FALSE \
		-addext subjectAltName=DNS:kiam-$name,DNS:kiam-$name:443,DNS:localhost,IP:127.0.0.1
	kubectl create secret generic kiam-$name-tls -n kube-system --from-file=ca.pem \
		--from-file=$name.pem --from-file=$name-key.pem
done
kubectl label node node-1 kubernetes.io/role=master
kubectl annotate namespace default 'iam.amazonaws.com/permitted=.*'
"#;
/// kiam's server and its RBAC rules, with what docs/from-kiam.md changes: the image, the command,
/// two more flags, and probes of the metrics' port in place of `kiam health`.
const KIAM_SERVER: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: kiam-server, namespace: kube-system }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: kiam-read }
rules:
  - apiGroups: [""]
    resources: [namespaces, pods]
    verbs: [watch, get, list]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: kiam-read }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kiam-read }
subjects:
  - { kind: ServiceAccount, name: kiam-server, namespace: kube-system }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { namespace: kube-system, name: kiam-server }
spec:
  selector: { matchLabels: { app: kiam, role: server } }
  template:
    metadata: { labels: { app: kiam, role: server } }
    spec:
      serviceAccountName: kiam-server
      nodeSelector: { kubernetes.io/role: master }
      volumes:
        - { name: tls, secret: { secretName: kiam-server-tls } }
      containers:
        - name: kiam
          image: ghcr.io/rolegate/rolegate:0.1.0
          imagePullPolicy: Never
          command: [rolegate]
          args:
            - broker
            - --certificate=files
            - --layer=namespace=enforce
            - --json-log
            - --level=warn
            - --bind=0.0.0.0:443
            - --cert=/etc/kiam/tls/server.pem
            - --key=/etc/kiam/tls/server-key.pem
            - --ca=/etc/kiam/tls/ca.pem
            - --role-base-arn-autodetect
            - --sync=1m
            - --prometheus-listen-addr=0.0.0.0:9620
            - --prometheus-sync-interval=5s
          volumeMounts:
            - { mountPath: /etc/kiam/tls, name: tls }
          livenessProbe: { httpGet: { path: /healthz, port: 9620 } }
          readinessProbe: { httpGet: { path: /readyz, port: 9620 }, periodSeconds: 2 }
"#;
/// A pod like kiam's agent: on the host's network, with its certificate.
const KIAM_AGENT: &str = r#"
apiVersion: v1
kind: Pod
metadata: { namespace: kube-system, name: kiam-agent, labels: { app: kiam, role: agent } }
spec:
  hostNetwork: true
  nodeSelector: { kubernetes.io/hostname: node-2 }
  volumes:
    - { name: tls, secret: { secretName: kiam-agent-tls } }
  containers:
    - name: kiam
      image: IMAGE
      volumeMounts:
        - { mountPath: /etc/kiam/tls, name: tls }
"#;
/// Calls a method of kiam's server, with the fields of its message, which are all strings, and
/// prints the response's printable characters.
const KIAM_CALL: &str = r#"
import subprocess, sys
server, method, *fields = sys.argv[1:]
message = b"".join(bytes([n << 3 | 2, len(f)]) + f.encode() for n, f in enumerate(fields, 1))
tls = "/etc/kiam/tls/"
curl = ["curl", "-sS", "--http2", "-m", "20", "--cacert", tls + "ca.pem", "--cert", tls + "agent.pem",
        "--key", tls + "agent-key.pem", "--connect-to", "::" + server + ":443",
        "-H", "content-type: application/grpc", "-H", "te: trailers", "-D", "/dev/stderr",
        "--data-binary", "@-", "https://kiam-server:443/kiam.KiamService/" + method]
body = b"\0" + len(message).to_bytes(4, "big") + message
answer = subprocess.run(curl, input=body, stdout=subprocess.PIPE, check=True).stdout
print("".join(chr(c) for c in answer if 32 <= c < 127))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn kiams_server_manifest_serves_kiams_agents() -> anyhow::Result<()> {
    let options = Options {
        cni: Cni::Ptp,
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    cluster.shell()?.run(KIAM_SECRETS).await?.ok()?;
    cluster.apply(KIAM_SERVER).await?;
    cluster.apply(&KIAM_AGENT.replace("IMAGE", CLIENT)).await?;
    let mut addresses = Vec::new();
    for (name, node) in [("own", "node-2"), ("other", "node-1")] {
        let client = ClientPod {
            namespace: NAMESPACE,
            name,
            role: Some("reader"),
            node: Some(node),
            ..ClientPod::default()
        };
        cluster.run_client(&client).await?;
        let pod = cluster.get(&["pod", name]).await?;
        addresses.push(
            pod["status"]["podIP"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
    }
    cluster
        .rolled_out("kube-system", "daemonset/kiam-server")
        .await?;
    cluster
        .wait("kube-system", "pod/kiam-agent", "condition=Ready")
        .await?;
    let server = "get pods -n kube-system -l role=server -o jsonpath={.items[0].status.podIP}";
    let server: Vec<&str> = server.split(' ').collect();
    let server = cluster.kubectl(&server).await?;
    let agent = Asking {
        cluster: &cluster,
        namespace: "kube-system",
        pod: "kiam-agent",
    };
    let call = async |method: &str, fields: &[&str]| {
        let program = ["python3", "-c", KIAM_CALL, &*server, method];
        agent.run(&[&program[..], fields].concat()).await
    };
    let [own, other] = &addresses[..] else {
        anyhow::bail!("{addresses:?}");
    };
    eventually(DEADLINE, async || {
        let role = call("GetPodRole", &[own]).await?;
        ensure!(role.contains("reader"), "{role}");
        let credentials = call("GetPodCredentials", &[own, "reader"]).await?;
        ensure!(credentials.contains("ASIA"), "{credentials}");
        Ok(())
    })
    .await?;
    // The certificate names no node: the broker finds only pods of the connection's node.
    let role = call("GetPodRole", &[other]).await?;
    ensure!(!role.contains("reader"), "{role}");
    let credentials = call("GetPodCredentials", &[other, "reader"]).await?;
    ensure!(!credentials.contains("ASIA"), "{credentials}");
    Ok(())
}
