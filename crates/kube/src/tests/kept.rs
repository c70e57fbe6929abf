//! Tests of what watches keep: running pods, and only those annotations and labels that rules read.

use rolegate_core::needs::Keys;

use super::*;

fn reading(labels: &[&str]) -> Option<Needs> {
    Some(Needs {
        pod_labels: labels.iter().collect(),
        namespace_labels: labels.iter().collect(),
        ..Needs::default()
    })
}

/// Returns a pod with labels and annotations of 64 KiB in total.
fn large(name: &str) -> Pod {
    let half = "x".repeat(400);
    let labels = (0..80).fold(Pod::new("shop", name), |pod, n| {
        pod.label(&format!("rt.example/{n}"), &half)
    });
    (0..80).fold(labels, |pod, n| {
        pod.annotation(&format!("rolegate.dev/{n}"), &half)
    })
}

fn labels(pod: &Workload) -> Vec<(&str, &str)> {
    pod.labels.iter().collect()
}

#[tokio::test]
async fn threat_28_pods_that_may_not_run_are_not_told() {
    for streaming_lists in [true, false] {
        let api = api(KubeApiOptions {
            streaming_lists,
            ..KubeApiOptions::default()
        })
        .await;
        let over = |name| large(name).node("node-a");
        api.put_pod(over("failed").phase("Failed"));
        api.put_pod(over("succeeded").phase("Succeeded"));
        api.put_pod(large("pending").phase("Pending"));
        api.put_pod(pod("runs", "node-a", "10.0.0.1"));
        let mut watching = Watching::start(api.addr(), Scope::Cluster).await;
        assert_eq!(watching.snapshot().await, ["runs"]);
        until(|| api.watches() > 0).await;
        api.put_pod(over("pending").phase("Pending"));
        assert_eq!(&*watching.applied().await.name, "pending");
        // A finished pod counts as deleted.
        api.put_pod(pod("runs", "node-a", "10.0.0.1").phase("Succeeded"));
        assert!(matches!(watching.next().await, Change::Delete(pod) if &*pod.name == "runs"));
        api.expire_watches();
        assert_eq!(watching.relisted().await, ["pending"]);
    }
}

#[tokio::test]
async fn threat_28_what_no_rule_reads_is_not_kept_and_is_there_once_one_does() {
    let api = api(KubeApiOptions::default()).await;
    let one = pod("one", "node-a", "10.0.0.1").annotation("rolegate.dev/x", "y");
    api.put_pod(one.label("team", "shop").label("app", "api"));
    let (rules, needs) = watch::channel(reading(&["team"]));
    let connection = connect(api.addr()).await;
    let mut watching = Watching::reading(connection, Scope::Node("node-a".into()), needs);
    let Change::Snapshot(pods) = watching.next().await else {
        panic!("no snapshot")
    };
    let [one] = &*pods else { panic!("{pods:?}") };
    assert_eq!(labels(one), [("team", "shop")]);
    assert!(one.annotations.is_empty() && !one.labels.cover(&Keys::All));
    assert_eq!(one.role_request.role.as_deref(), Some("one"));

    // Another rule reads more, also of known pods.
    rules.send_replace(reading(&["team", "app"]));
    let one = watching.applied().await;
    assert_eq!(labels(&one), [("app", "api"), ("team", "shop")]);
    let Some(Update::RetainWorkloads(uids)) = watching.updates.recv().await else {
        panic!("no end of the list")
    };
    assert_eq!(uids, [one.uid.clone()].into());
    // A rule that reads less does not cause a new list.
    let before = api.count("watch", "pods");
    rules.send_replace(reading(&["app"]));
    until(|| api.watches() > 0).await;
    api.put_pod(pod("two", "node-a", "10.0.0.2").label("team", "x"));
    assert_eq!(labels(&watching.applied().await), [("team", "x")]);
    assert_eq!(api.count("watch", "pods"), before);
}

#[tokio::test]
async fn threat_28_of_a_namespace_what_no_rule_reads_is_not_kept() {
    let api = api(KubeApiOptions::default()).await;
    let shop = Namespace::new("shop").label("team", "shop").label("x", "y");
    api.put_namespace(
        shop.annotation("iam.amazonaws.com/allowed-roles", "[\"a\"]")
            .annotation("iam.amazonaws.com/default-role", "reader"),
    );
    let connection = connect(api.addr()).await;
    let (sender, mut updates) = mpsc::channel(16);
    let observer = WatchObserver {
        metrics: WatchMetrics::default(),
        condition: Readiness::new().condition("namespaces"),
    };
    let (rules, needs) = watch::channel(reading(&["team"]));
    tokio::spawn(async move {
        watch_namespaces(
            &connection,
            AnnotationKeys::default(),
            needs,
            observer,
            sender,
        )
        .await;
    });
    let Some(Update::Namespaces(Change::Snapshot(all))) = updates.recv().await else {
        panic!("no snapshot");
    };
    assert_eq!(all[0].labels.iter().collect::<Vec<_>>(), [("team", "shop")]);
    assert!(all[0].allowed_roles.is_none() && all[0].without_roles);
    assert_eq!(all[0].default_role.as_deref(), Some("reader"));
    rules.send_replace(Some(Needs::everything()));
    let Some(Update::Namespaces(Change::Apply(shop))) = updates.recv().await else {
        panic!("no change");
    };
    assert_eq!(shop.labels.len(), 3, "with the name's: {:?}", shop.labels);
    assert!(shop.allowed_roles.is_some() && !shop.without_roles);
}

#[tokio::test]
async fn the_first_list_waits_for_rules() {
    let api = api(KubeApiOptions::default()).await;
    api.put_pod(pod("one", "node-a", "10.0.0.1").label("team", "shop"));
    let (rules, needs) = watch::channel(None);
    let connection = connect(api.addr()).await;
    let mut watching = Watching::reading(connection, Scope::Cluster, needs);
    tokio::task::yield_now().await;
    rules.send_replace(reading(&["team"]));
    let Change::Snapshot(pods) = watching.next().await else {
        panic!("no snapshot")
    };
    assert_eq!(labels(&pods[0]), [("team", "shop")]);
    assert_eq!(api.count("watch", "pods"), 1);
}

#[tokio::test]
async fn a_pod_of_the_hosts_network_keeps_no_address_on_its_own_node() {
    let api = api(KubeApiOptions::default()).await;
    let host = pod("host", "node-a", "192.0.2.1").service_account("proxy");
    api.put_pod(host.host_network().label("team", "net"));
    for (scope, addresses) in [(Scope::Node("node-a".into()), 0), (Scope::Cluster, 1)] {
        let (_rules, needs) = watch::channel(reading(&["team"]));
        let connection = connect(api.addr()).await;
        let mut watching = Watching::reading(connection, scope, needs);
        let Change::Snapshot(pods) = watching.next().await else {
            panic!("no snapshot")
        };
        let host = &pods[0];
        assert_eq!(
            (&*host.namespace, &*host.service_account),
            ("shop", "proxy")
        );
        assert_eq!(labels(host), [("team", "net")]);
        assert_eq!(host.addresses.len(), addresses);
    }
}
