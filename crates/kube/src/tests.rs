//! Tests of watches, node lookup and Events with the API server's stand-in, which can produce rare
//! behaviour on demand.

mod kept;
mod rules;
mod scripted;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::needs::Needs;
use rolegate_core::test_util;
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_devkit::{KubeApi, KubeApiOptions, Namespace, Node, Pod};
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::client::{ClientOptions, Connection};
use crate::events::{EventReason, recorder};
use crate::namespaces::watch_namespaces;
use crate::node::{NodeUnknown, find_node};
use crate::watch::{WatchMetrics, WatchObserver};
use crate::workloads::{Scope, watch_pods};

const LONG: Duration = Duration::from_secs(60);

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn api(options: KubeApiOptions) -> KubeApi {
    KubeApi::start(any_port(), options).await.unwrap()
}

async fn connect(address: SocketAddr) -> Connection {
    let api_server = Some(format!("http://{address}"));
    Connection::new(&ClientOptions {
        api_server,
        ..ClientOptions::default()
    })
    .await
    .unwrap()
}

fn pod(name: &str, node: &str, ip: &str) -> Pod {
    Pod::new("shop", name)
        .node(node)
        .ip(ip)
        .annotation("iam.amazonaws.com/role", name)
}

/// The needs of the rules.
type Reading = watch::Receiver<Option<Needs>>;

fn reading_everything() -> Reading {
    let (sender, needs) = watch::channel(Some(Needs::everything()));
    // The value remains.
    drop(sender);
    needs
}

/// A running watch of the pods of `node-a`.
struct Watching {
    connection: Connection,
    updates: mpsc::Receiver<Update>,
    readiness: Readiness,
    metrics: Metrics,
}

impl Watching {
    async fn start(address: SocketAddr, scope: Scope) -> Self {
        Self::over(connect(address).await, scope)
    }

    fn over(connection: Connection, scope: Scope) -> Self {
        Self::reading(connection, scope, reading_everything())
    }

    fn reading(connection: Connection, scope: Scope, needs: Reading) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let (readiness, mut metrics) = (Readiness::new(), Metrics::new());
        let observer = WatchObserver {
            metrics: WatchMetrics::register(metrics.ours(), connection.freshness()),
            condition: readiness.condition("pods"),
        };
        let watched = connection.clone();
        tokio::spawn(async move {
            watch_pods(
                &watched,
                &scope,
                AnnotationKeys::default(),
                needs,
                observer,
                sender,
            )
            .await;
        });
        Self {
            connection,
            updates,
            readiness,
            metrics,
        }
    }

    async fn of_node_a(address: SocketAddr) -> Self {
        Self::start(address, Scope::Node("node-a".into())).await
    }

    async fn next(&mut self) -> Change<Workload> {
        match timeout(LONG, self.updates.recv())
            .await
            .expect("no update")
            .expect("ended")
        {
            Update::Workloads(change) => change,
            other => panic!("no change of a pod: {other:?}"),
        }
    }

    /// Returns the names in a list after a gap: each pod as it arrives, then the UIDs.
    async fn relisted(&mut self) -> Vec<String> {
        let mut pods = Vec::new();
        loop {
            let update = timeout(LONG, self.updates.recv()).await;
            match update.expect("no update").expect("ended") {
                Update::Workloads(Change::Apply(pod)) => pods.push(pod),
                Update::RetainWorkloads(uids) => {
                    assert_eq!(uids, pods.iter().map(|pod| pod.uid.clone()).collect());
                    let names = pods.iter().map(|pod| pod.name.to_string());
                    return names.collect();
                }
                other => panic!("nothing of a list: {other:?}"),
            }
        }
    }

    /// Returns the names in the next update, which must be a snapshot.
    async fn snapshot(&mut self) -> Vec<String> {
        match self.next().await {
            Change::Snapshot(pods) => {
                let mut names: Vec<_> = pods.iter().map(|pod| pod.name.to_string()).collect();
                names.sort();
                names
            }
            other => panic!("no snapshot: {other:?}"),
        }
    }

    async fn applied(&mut self) -> Workload {
        match self.next().await {
            Change::Apply(pod) => pod,
            other => panic!("nothing new: {other:?}"),
        }
    }

    async fn until_metric(&self, line: &str) {
        until(|| {
            self.metrics
                .encode()
                .unwrap()
                .lines()
                .any(|found| found == line)
        })
        .await;
    }
}

async fn until(mut what: impl FnMut() -> bool) {
    timeout(LONG, async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("never happened");
}

#[tokio::test]
async fn a_snapshot_of_this_nodes_pods_then_changes() {
    for streaming_lists in [true, false] {
        let api = api(KubeApiOptions {
            streaming_lists,
            ..KubeApiOptions::default()
        })
        .await;
        api.put_pod(pod("one", "node-a", "10.0.0.1"));
        api.put_pod(pod("elsewhere", "node-b", "10.0.1.1"));
        let mut watching = Watching::of_node_a(api.addr()).await;
        assert_eq!(watching.snapshot().await, ["one"]);
        assert!(watching.connection.freshness().pods.age().is_some());
        until(|| watching.readiness.is_ready()).await;

        until(|| api.watches() > 0).await;
        api.put_pod(pod("not-ours", "node-b", "10.0.1.2"));
        api.put_pod(pod("two", "node-a", "10.0.0.2"));
        let two = watching.applied().await;
        assert_eq!(
            (&*two.name, two.role_request.role.as_deref()),
            ("two", Some("two"))
        );
        api.delete_pod("shop", "one");
        assert!(matches!(watching.next().await, Change::Delete(pod) if &*pod.name == "one"));
    }
}

#[tokio::test]
async fn all_pods_come_in_pages() {
    let options = KubeApiOptions {
        streaming_lists: false,
        ..KubeApiOptions::default()
    };
    let api = api(options).await;
    for number in 0..1234 {
        api.put_pod(pod(&format!("p{number}"), "node-a", "10.0.0.1"));
    }
    let mut watching = Watching::start(api.addr(), Scope::Cluster).await;
    assert_eq!(watching.snapshot().await.len(), 1234);
    assert_eq!(api.count("list", "pods"), 3);
}

#[tokio::test]
async fn a_dropped_watch_resumes() {
    let api = api(KubeApiOptions::default()).await;
    let mut watching = Watching::of_node_a(api.addr()).await;
    assert!(watching.snapshot().await.is_empty());
    for round in 0..3 {
        api.drop_watches();
        let name = format!("during-{round}");
        api.put_pod(pod(&name, "node-a", "10.0.0.1"));
        assert_eq!(&*watching.applied().await.name, name, "no new list needed");
    }
    let text = watching.metrics.encode().unwrap();
    assert!(
        text.contains("kube_watch_restarts_total{resource=\"pods\"} 0"),
        "{text}"
    );
}

#[tokio::test]
async fn an_expired_watch_restarts_with_a_list() {
    for streaming_lists in [true, false] {
        let api = api(KubeApiOptions {
            streaming_lists,
            ..KubeApiOptions::default()
        })
        .await;
        api.put_pod(pod("old", "node-a", "10.0.0.1"));
        let mut watching = Watching::of_node_a(api.addr()).await;
        assert_eq!(watching.snapshot().await, ["old"]);
        until(|| api.watches() > 0).await;
        api.delay_events(LONG);
        api.delete_pod("shop", "old");
        api.put_pod(pod("new", "node-a", "10.0.0.1"));
        api.expire_watches();
        assert_eq!(
            watching.relisted().await,
            ["new"],
            "what was missed is gone"
        );
        watching
            .until_metric("rolegate_kube_watch_restarts_total{resource=\"pods\"} 1")
            .await;
        until(|| watching.readiness.report().noted.is_empty()).await;
    }
}

#[tokio::test]
async fn starts_without_the_api_server_and_survives_its_restart() {
    // A port that was free a moment ago.
    let address = api(KubeApiOptions::default()).await.addr();
    let mut watching = Watching::of_node_a(address).await;
    until(|| watching.readiness.report().failing["pods"].contains("cannot be reached")).await;

    let first = KubeApi::start(address, KubeApiOptions::default())
        .await
        .unwrap();
    first.put_pod(pod("one", "node-a", "10.0.0.1"));
    let mut names = watching.snapshot().await;
    if names.is_empty() {
        // It was listed before the pod was added.
        names.push(watching.applied().await.name.to_string());
    }
    assert_eq!(names, ["one"]);
    until(|| watching.readiness.is_ready()).await;

    first.stop().await;
    until(|| watching.readiness.report().noted.contains_key("pods")).await;
    assert!(watching.readiness.is_ready(), "what is known stays useful");
    assert!(
        watching.updates.try_recv().is_err(),
        "nothing is forgotten meanwhile"
    );

    let second = KubeApi::start(address, KubeApiOptions::default())
        .await
        .unwrap();
    assert!(
        watching.relisted().await.is_empty(),
        "the new server has other pods"
    );
    until(|| watching.readiness.report().noted.is_empty()).await;
    second.put_pod(pod("two", "node-a", "10.0.0.2"));
    assert_eq!(&*watching.applied().await.name, "two");
}

#[tokio::test]
async fn a_denied_request_is_reported_and_retried() {
    let api = api(KubeApiOptions::default()).await;
    api.fail_with(Some(403));
    let mut watching = Watching::of_node_a(api.addr()).await;
    until(|| watching.readiness.report().failing["pods"].contains("ClusterRole")).await;
    until(|| api.count("watch", "pods") >= 3).await;
    let text = watching.metrics.encode().unwrap();
    assert!(
        !text.contains("kube_watch_errors_total{resource=\"pods\"} 0"),
        "{text}"
    );
    api.fail_with(None);
    assert!(watching.snapshot().await.is_empty());
    until(|| watching.readiness.is_ready()).await;
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_noticed_and_begun_anew() {
    let bookmark_interval = LONG * 60;
    let api = api(KubeApiOptions {
        bookmark_interval,
        ..KubeApiOptions::default()
    })
    .await;
    let api_server = Some(api.url());
    let options = ClientOptions {
        api_server,
        ..ClientOptions::default()
    };
    let silence = Duration::from_millis(100);
    let connection = Connection::with_read_timeout(&options, silence)
        .await
        .unwrap();
    let mut watching = Watching::over(connection, Scope::Cluster);
    watching.snapshot().await;
    until(|| api.count("watch", "pods") >= 3).await;
    until(|| {
        !watching
            .metrics
            .encode()
            .unwrap()
            .contains("watch_errors_total{resource=\"pods\"} 0")
    })
    .await;
    assert!(watching.readiness.is_ready());
    api.put_pod(pod("one", "node-a", "10.0.0.1"));
    assert_eq!(&*watching.applied().await.name, "one");
}

#[tokio::test]
async fn bookmarks_keep_watches_fresh() {
    let bookmark_interval = Duration::from_millis(20);
    let api = api(KubeApiOptions {
        bookmark_interval,
        ..KubeApiOptions::default()
    })
    .await;
    let mut watching = Watching::of_node_a(api.addr()).await;
    watching.snapshot().await;
    let freshness = watching.connection.freshness().pods.clone();
    // Each of these is a bookmark: nothing else happens.
    for _ in 0..3 {
        timeout(LONG, freshness.heard())
            .await
            .expect("no bookmark noticed");
    }
    let text = watching.metrics.encode().unwrap();
    assert!(
        text.contains("rolegate_kube_watch_age_seconds{resource=\"pods\"}"),
        "{text}"
    );
    assert_eq!(
        watching.connection.freshness().age(),
        None,
        "namespaces aren't watched"
    );
}

#[tokio::test]
async fn the_watch_ends_with_its_receiver() {
    let api = api(KubeApiOptions::default()).await;
    let mut watching = Watching::of_node_a(api.addr()).await;
    watching.snapshot().await;
    until(|| api.watches() == 1).await;
    drop(watching);
    until(|| api.watches() == 0).await;
}

#[tokio::test]
async fn namespaces_and_their_annotations() {
    let api = api(KubeApiOptions::default()).await;
    let allowed = "iam.amazonaws.com/allowed-roles";
    api.put_namespace(Namespace::new("shop").annotation(allowed, "[\"a\"]"));
    let connection = connect(api.addr()).await;
    let (sender, mut updates) = mpsc::channel(16);
    let readiness = Readiness::new();
    let observer = WatchObserver {
        metrics: WatchMetrics::default(),
        condition: readiness.condition("namespaces"),
    };
    tokio::spawn(async move {
        let keys = AnnotationKeys::default();
        watch_namespaces(&connection, keys, reading_everything(), observer, sender).await;
    });
    let Some(Update::Namespaces(Change::Snapshot(all))) = updates.recv().await else {
        panic!("no snapshot");
    };
    assert_eq!(all[0].allowed_roles.as_deref(), Some("[\"a\"]"));
    api.put_namespace(Namespace::new("shop").annotation(allowed, "[\"b\"]"));
    let Some(Update::Namespaces(Change::Apply(shop))) = updates.recv().await else {
        panic!("no change");
    };
    assert_eq!(shop.allowed_roles.as_deref(), Some("[\"b\"]"));
}

#[tokio::test]
async fn the_node_is_found_by_the_hosts_addresses() {
    let api = api(KubeApiOptions::default()).await;
    let node = |name: &str, ip: &str| {
        Node::new(name)
            .address("Hostname", name)
            .address("InternalIP", ip)
    };
    api.put_node(node("node-a", "192.0.2.1"));
    api.put_node(node("node-b", "192.0.2.2").address("ExternalIP", "2001:db8::2"));
    let connection = connect(api.addr()).await;
    let find = async |addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        find_node(&connection, &addresses).await
    };
    assert_eq!(
        find(&["127.0.0.1", "192.0.2.2"]).await.as_deref(),
        Ok("node-b")
    );
    assert_eq!(find(&["2001:db8::2"]).await.as_deref(), Ok("node-b"));
    assert_eq!(find(&["::ffff:192.0.2.1"]).await.as_deref(), Ok("node-a"));
    assert!(matches!(
        find(&["192.0.2.9"]).await,
        Err(NodeUnknown::NotFound(_))
    ));
    assert_eq!(
        find(&["127.0.0.1", "::1"]).await,
        Err(NodeUnknown::NoAddress)
    );
    api.put_node(node("liar", "192.0.2.1"));
    assert!(matches!(
        find(&["192.0.2.1"]).await,
        Err(NodeUnknown::Ambiguous(_))
    ));
    api.fail_with(Some(403));
    assert!(matches!(
        find(&["192.0.2.2"]).await,
        Err(NodeUnknown::Refused(_))
    ));
    api.fail_with(Some(503));
    let recovers = async {
        until(|| api.count("list", "nodes") > 8).await;
        api.fail_with(None);
    };
    let (found, ()) = tokio::join!(find(&["192.0.2.2"]), recovers);
    assert_eq!(
        found.as_deref(),
        Ok("node-b"),
        "waits for an API server that is away"
    );
}

#[tokio::test]
async fn events_are_written_once() {
    let api = api(KubeApiOptions::default()).await;
    api.put_pod(pod("one", "node-a", "10.0.0.1"));
    let mut watching = Watching::of_node_a(api.addr()).await;
    let Change::Snapshot(pods) = watching.next().await else {
        panic!("no snapshot")
    };
    let mut metrics = Metrics::new();
    let client = watching.connection.client();
    let (recorder, writer) = recorder(client, "node-a".into(), metrics.ours());
    let writing = tokio::spawn(writer.run());
    let long = format!("not allowed\n{}", "é".repeat(2000));
    for _ in 0..100 {
        recorder.publish(&pods[0], EventReason::RoleForbidden, &long);
    }
    recorder.publish(&pods[0], EventReason::CredentialError, "STS refuses");
    until(|| api.events().len() >= 2).await;
    drop(recorder);
    timeout(LONG, writing)
        .await
        .expect("the writer ends")
        .unwrap();
    let events = api.events();
    assert_eq!(events.len(), 2, "{events:?}");
    let event = &events[0];
    assert_eq!(event["reason"], "RoleForbidden");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reportingController"], "rolegate-agent");
    assert_eq!(event["reportingInstance"], "node-a");
    assert_eq!(event["regarding"]["name"], "one");
    assert_eq!(event["regarding"]["uid"], *pods[0].uid);
    let note = event["note"].as_str().unwrap();
    assert!(
        note.starts_with("not allowed\\n") && note.len() <= 1000,
        "{note}"
    );
    assert_eq!(events[1]["reason"], "CredentialError");
    let text = metrics.encode().unwrap();
    assert!(
        text.contains("rolegate_kube_events_total{outcome=\"written\"} 2"),
        "{text}"
    );
}

#[tokio::test]
async fn events_never_block_and_are_counted_when_dropped() {
    let mut metrics = Metrics::new();
    // Nothing listens there and no writer runs.
    let connection = connect(any_port()).await;
    let (recorder, _writer) = recorder(connection.client(), "n".into(), metrics.ours());
    for number in 0..50 {
        let workload = Workload {
            uid: number.to_string().into(),
            ..test_util::pod(None)
        };
        recorder.publish(&workload, EventReason::RoleForbidden, "no");
    }
    let text = metrics.encode().unwrap();
    let dropped = text
        .lines()
        .find_map(|line| line.strip_prefix("rolegate_kube_events_total{outcome=\"dropped\"} "));
    assert!(dropped.unwrap().parse::<u32>().unwrap() >= 25, "{text}");
}
