//! The agent's watches against a real API server, with no more rights than the shipped manifest
//! grants.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use rolegate_core::annotation::{ALLOWED_ROLES, AnnotationKeys};
use rolegate_core::needs::Needs;
use rolegate_core::workload::{Change, Phase, Update, Workload};
use rolegate_kube::client::{ClientOptions, Connection};
use rolegate_kube::events::{EventReason, recorder};
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::node::find_node;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_testkit::{Cluster, TestPod, eventually};
use tokio::sync::{mpsc, watch};

const DEADLINE: Duration = Duration::from_secs(120);

/// A connection as the agent's service account; the manifest is applied first.
async fn connect(cluster: &Cluster) -> Connection {
    cluster.install(&["rolegate-agent"]).await.unwrap();
    let token = cluster.service_account_token("rolegate-system", "rolegate-agent");
    let token = token.await.unwrap();
    let kubeconfig = cluster.kubeconfig_for_token("agent", &token).unwrap();
    connect_as(kubeconfig).await
}

async fn connect_as(kubeconfig: PathBuf) -> Connection {
    let options = ClientOptions {
        kubeconfig: Some(kubeconfig),
        ..ClientOptions::default()
    };
    Connection::new(&options).await.unwrap()
}

/// A connection with the rights that an agent without --node-name needs, which the manifest grants.
async fn finder(cluster: &Cluster, namespace: &str) -> Connection {
    cluster
        .create_service_account(namespace, "finder")
        .await
        .unwrap();
    let rights = format!(
        r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{ name: {namespace}-finder }}
rules: [{{ apiGroups: [""], resources: [nodes], verbs: [get, list] }}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{ name: {namespace}-finder }}
roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}-finder }}
subjects: [{{ kind: ServiceAccount, name: finder, namespace: {namespace} }}]
"#
    );
    cluster.apply_manifest(&rights).await.unwrap();
    let token = cluster.service_account_token(namespace, "finder").await;
    let kubeconfig = cluster.kubeconfig_for_token("finder", &token.unwrap());
    connect_as(kubeconfig.unwrap()).await
}

/// Both watches of one node's agent.
struct Agent {
    updates: mpsc::Receiver<Update>,
    readiness: Readiness,
}

impl Agent {
    fn start(connection: &Connection, node: &str) -> Self {
        let (sender, updates) = mpsc::channel(64);
        let readiness = Readiness::new();
        let reporting = |name| WatchObserver {
            metrics: WatchMetrics::default(),
            condition: readiness.condition(name),
        };
        let (pods, namespaces) = (reporting("pods"), reporting("namespaces"));
        let (connection, to_pods) = (connection.clone(), sender.clone());
        let scope = Scope::Node(node.into());
        tokio::spawn(async move {
            let keys = AnnotationKeys::default();
            let (_rules, needs) = watch::channel(Some(Needs::everything()));
            let to_namespaces = needs.clone();
            tokio::join!(
                watch_pods(&connection, &scope, keys.clone(), needs, pods, to_pods),
                watch_namespaces(&connection, keys, to_namespaces, namespaces, sender),
            );
        });
        Self { updates, readiness }
    }

    /// Waits for the next update about pods for which `wanted` returns a value.
    async fn pods<T>(&mut self, mut wanted: impl FnMut(Change<Workload>) -> Option<T>) -> T {
        self.find(|update| match update {
            Update::Workloads(change) => wanted(change),
            _ => None,
        })
        .await
    }

    async fn find<T>(&mut self, mut wanted: impl FnMut(Update) -> Option<T>) -> T {
        let found = async {
            loop {
                let update = self.updates.recv().await.expect("the watches ended");
                if let Some(found) = wanted(update) {
                    return found;
                }
            }
        };
        let found = tokio::time::timeout(DEADLINE, found).await;
        found.unwrap_or_else(|_| panic!("never came: {:?}", self.readiness.report()))
    }

    async fn applied(&mut self, name: &str, phase: Phase) -> Workload {
        self.pods(|change| match change {
            Change::Apply(pod) if &*pod.name == name && pod.phase == phase => Some(pod),
            _ => None,
        })
        .await
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn this_nodes_pods_come_change_and_go() {
    let cluster = Cluster::shared().await.unwrap();
    cluster.create_namespace("watch-pods", &[]).await.unwrap();
    let pod = |name, node| TestPod::new("watch-pods", name, node).role(name);
    let here = pod("here", "watch-a").address(ip("10.0.0.1"));
    cluster.run_pod(&here.address(ip("fd00::1"))).await.unwrap();
    let there = pod("there", "watch-b").address(ip("10.0.1.1"));
    cluster.run_pod(&there).await.unwrap();

    let connection = connect(cluster).await;
    let mut agent = Agent::start(&connection, "watch-a");
    let [here] = agent
        .pods(|change| match change {
            Change::Snapshot(pods) => Some(pods),
            _ => None,
        })
        .await
        .try_into()
        .expect("this node's pod alone");
    assert_eq!((&*here.namespace, &*here.name), ("watch-pods", "here"));
    assert_eq!(here.addresses, [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!(here.node.as_deref(), Some("watch-a"));
    assert_eq!(here.role_request.role.as_deref(), Some("here"));
    assert_eq!(here.phase, Phase::Running);

    // A pod of another node, which must not be sent; then a pod of this node, first without an
    // address.
    cluster.run_pod(&pod("far", "watch-b")).await.unwrap();
    let new = pod("new", "watch-a").address(ip("10.0.0.2"));
    cluster.run_pod(&new).await.unwrap();
    let pending = agent
        .pods(|change| match change {
            Change::Apply(pod) => Some(pod),
            _ => None,
        })
        .await;
    assert_eq!((&*pending.name, pending.phase), ("new", Phase::Pending));
    assert!(pending.addresses.is_empty());
    let running = agent.applied("new", Phase::Running).await;
    assert_eq!(running.addresses, [ip("10.0.0.2")]);
    assert_eq!(running.uid, pending.uid);

    let status = ("Succeeded", [ip("10.0.0.2")]);
    let finished = cluster.set_pod_status("watch-pods", "new", status.0, &status.1);
    finished.await.unwrap();
    // A finished pod counts as deleted.
    let finished = agent
        .pods(|change| match change {
            Change::Delete(pod) => Some(pod),
            _ => None,
        })
        .await;
    assert_eq!(
        (&finished.uid, finished.phase),
        (&running.uid, Phase::Succeeded)
    );

    cluster.delete_pod("watch-pods", "here").await.unwrap();
    let gone = agent
        .pods(|change| match change {
            Change::Delete(pod) => Some(pod),
            _ => None,
        })
        .await;
    assert_eq!(gone.uid, here.uid);
    assert!(agent.readiness.is_ready());
    assert!(connection.freshness().age().is_some());
}

#[tokio::test]
async fn a_namespaces_annotations_arrive_and_go() {
    let cluster = Cluster::shared().await.unwrap();
    let before = [(ALLOWED_ROLES, "[\"a\"]")];
    cluster
        .create_namespace("watch-rules", &before)
        .await
        .unwrap();
    let mut agent = Agent::start(&connect(cluster).await, "watch-none");
    let found = agent.find(|update| match update {
        Update::Namespaces(Change::Snapshot(all)) => {
            all.into_iter().find(|one| &*one.name == "watch-rules")
        }
        _ => None,
    });
    assert_eq!(found.await.allowed_roles.as_deref(), Some("[\"a\"]"));
    for value in [Some("[\"b\"]"), None] {
        let annotations = [(ALLOWED_ROLES, value)];
        let changed = cluster.annotate_namespace("watch-rules", &annotations);
        changed.await.unwrap();
        let found = agent.find(|update| match update {
            Update::Namespaces(Change::Apply(one)) if &*one.name == "watch-rules" => Some(one),
            _ => None,
        });
        assert_eq!(found.await.allowed_roles.as_deref(), value);
    }
}

#[tokio::test]
async fn the_node_is_found_and_events_reach_the_pod() {
    let cluster = Cluster::shared().await.unwrap();
    cluster
        .create_node("watch-node", ip("192.0.2.77"))
        .await
        .unwrap();
    cluster.create_namespace("watch-events", &[]).await.unwrap();
    let connection = connect(cluster).await;
    let finder = finder(cluster, "watch-events").await;
    // A binding takes effect a moment after its creation.
    eventually(DEADLINE, async || {
        let found = find_node(&finder, &[ip("127.0.0.1"), ip("192.0.2.77")]).await?;
        anyhow::ensure!(found == "watch-node", "{found}");
        Ok(())
    })
    .await
    .unwrap();

    let pod = TestPod::new("watch-events", "app", "watch-node").address(ip("10.0.0.3"));
    cluster.run_pod(&pod).await.unwrap();
    let mut agent = Agent::start(&connection, "watch-node");
    let pods = agent.pods(|change| match change {
        Change::Snapshot(pods) => Some(pods),
        _ => None,
    });
    let app = pods.await.remove(0);

    let mut metrics = Metrics::new();
    let (recorder, writer) = recorder(connection.client(), "watch-node".into(), metrics.ours());
    tokio::spawn(writer.run());
    recorder.publish(&app, EventReason::RoleForbidden, "may not have the role x");
    let events = Api::<Event>::namespaced(cluster.admin().unwrap(), "watch-events");
    let event = eventually(DEADLINE, async || {
        let all = events.list(&Default::default()).await?;
        let found = all.items.into_iter().next();
        found.ok_or_else(|| anyhow::anyhow!("no event: {:?}", metrics.encode()))
    });
    let event = event.await.unwrap();
    assert_eq!(event.reason.as_deref(), Some("RoleForbidden"));
    assert_eq!(event.note.as_deref(), Some("may not have the role x"));
    assert_eq!(event.regarding.unwrap().uid.as_deref(), Some(&*app.uid));
}

#[tokio::test]
async fn starts_before_the_api_server_and_survives_its_restart() {
    let cluster = Cluster::start().await.unwrap();
    let connection = connect(&cluster).await;
    cluster.create_namespace("shop", &[]).await.unwrap();
    let pod = |name| TestPod::new("shop", name, "node").address(ip("10.0.0.1"));
    cluster.run_pod(&pod("first")).await.unwrap();

    cluster.stop_apiserver();
    let mut agent = Agent::start(&connection, "node");
    eventually(DEADLINE, async || {
        let failing = agent.readiness.report().failing;
        anyhow::ensure!(
            failing
                .get("pods")
                .is_some_and(|why| why.contains("reached"))
        );
        Ok(())
    })
    .await
    .unwrap();
    cluster.start_apiserver().await.unwrap();
    let pods = agent.pods(|change| match change {
        Change::Snapshot(pods) => Some(pods),
        _ => None,
    });
    let [first] = pods.await.try_into().expect("one pod");
    let first = first.uid;

    // While the API server is down, known pods stay, and changes right after its restart are not
    // missed.
    cluster.stop_apiserver();
    eventually(DEADLINE, async || {
        anyhow::ensure!(agent.readiness.report().noted.contains_key("pods"));
        Ok(())
    })
    .await
    .unwrap();
    assert!(agent.readiness.is_ready());
    cluster.start_apiserver().await.unwrap();
    cluster.delete_pod("shop", "first").await.unwrap();
    cluster.run_pod(&pod("second")).await.unwrap();
    let mut known: BTreeMap<_, _> = [(first, "first".to_owned())].into();
    let end = agent.find(|update| {
        match update {
            Update::Workloads(Change::Apply(pod)) => {
                known.insert(pod.uid, pod.name.to_string());
            }
            Update::Workloads(Change::Delete(pod)) => drop(known.remove(&pod.uid)),
            Update::RetainWorkloads(uids) => known.retain(|uid, _| uids.contains(uid)),
            Update::Workloads(Change::Snapshot(pods)) => panic!("a second first list: {pods:?}"),
            Update::Namespaces(_) | Update::RetainNamespaces(_) => {}
        }
        known.values().eq(["second"]).then_some(())
    });
    end.await;
    eventually(DEADLINE, async || {
        anyhow::ensure!(agent.readiness.report().noted.is_empty());
        Ok(())
    })
    .await
    .unwrap();
}
