//! Tests of the problems of kube2iam's and kiam's users, by number. Those of the redirect (3, 4)
//! are tested in real network namespaces; those of the session driver (6, 7, 9) also with paused
//! time in its own tests.

use std::time::Duration;

use rolegate_agent::app::SourceOptions;
use rolegate_core::arn::BaseArn;
use rolegate_core::session_name::SessionScope;
use rolegate_devkit::{Imds, Namespace, Pod, StsFailure};

use crate::harness::{CREDENTIALS, NODE, TestAgent, address, alone, arn, pod, pod_with_role};

#[tokio::test]
async fn pain_01_a_pod_that_asks_before_the_watch_shows_it_waits_for_the_event() {
    let harness = TestAgent::new().await;
    harness.kube.delay_events(Duration::from_millis(200));
    harness.kube.put_pod(pod_with_role("early", 4, "reader"));
    let reply = harness.get(4, CREDENTIALS).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "reader"));
}

#[tokio::test]
async fn pain_02_a_reused_address_never_serves_the_pod_before() {
    let harness = TestAgent::new().await;
    let first = harness.key_id(1, "reader").await;
    harness
        .kube
        .put_pod(pod_with_role("reader", 1, "reader").phase("Succeeded"));
    harness
        .until(1, CREDENTIALS, |reply| reply.status == 404)
        .await;
    harness
        .kube
        .put_pod(pod_with_role("next", 1, "reader-next"));
    let reply = harness
        .until(1, CREDENTIALS, |reply| reply.status == 200)
        .await;
    assert_eq!(reply.body, "reader-next");
    assert_ne!(harness.key_id(1, "reader-next").await, first);
    assert_eq!(
        harness.get(1, &format!("{CREDENTIALS}reader")).await.status,
        403
    );
}

#[tokio::test]
async fn pain_05_a_herd_is_one_call_and_quick_while_sts_is_slow() {
    // However busy the machine is, all wait for the same call.
    let harness = TestAgent::with(|options| options.wait = Duration::from_secs(60)).await;
    harness.sts.set_latency(Duration::from_millis(300));
    for n in 10..110 {
        harness
            .kube
            .put_pod(pod_with_role(&format!("herd-{n}"), n, "reader-herd"));
    }
    let path = format!("{CREDENTIALS}reader-herd");
    let asking = (10..110).map(|n| harness.get(n, &path));
    for reply in futures::future::join_all(asking).await {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let calls = harness.assumed();
    let herd = calls
        .iter()
        .filter(|call| call.role_arn == arn("reader-herd"))
        .count();
    assert_eq!(herd, 1);
}

#[tokio::test]
async fn pain_06_a_failing_role_is_asked_for_once_and_answered_at_once() {
    let harness = TestAgent::new().await;
    harness.sts.deny_role(&arn("reader-failing"));
    harness
        .kube
        .put_pod(pod_with_role("failing", 4, "reader-failing"));
    let path = format!("{CREDENTIALS}reader-failing");
    harness.until(4, &path, |reply| reply.status == 403).await;
    for _ in 0..50 {
        assert_eq!(harness.get(4, &path).await.status, 403);
    }
    let count = |harness: &TestAgent| {
        let calls = harness.assumed();
        calls
            .iter()
            .filter(|call| call.role_arn == arn("reader-failing"))
            .count()
    };
    assert_eq!(count(&harness), 1);
    // The trust policy is fixed and the pod updated: no waiting for the next retry.
    harness.sts.allow_role(&arn("reader-failing"));
    harness
        .kube
        .put_pod(pod_with_role("failing", 4, "reader-failing").service_account("other"));
    harness.until(4, &path, |reply| reply.status == 200).await;
    assert_eq!(count(&harness), 2);
}

#[tokio::test]
async fn pain_07_valid_credentials_are_served_while_sts_is_down() {
    let harness = TestAgent::new().await;
    let before = harness.key_id(1, "reader").await;
    harness.sts.fail_with(Some(StsFailure::new(
        503,
        "ServiceUnavailable",
        "told to fail",
    )));
    for _ in 0..20 {
        assert_eq!(harness.key_id(1, "reader").await, before);
    }
}

#[tokio::test]
async fn pain_07_a_shorter_life_than_asked_is_believed() {
    let harness = TestAgent::new().await;
    harness.sts.set_lifetime(Some(Duration::from_secs(2)));
    harness
        .kube
        .put_pod(pod_with_role("short", 4, "reader-short"));
    let path = format!("{CREDENTIALS}reader-short");
    harness.until(4, &path, |reply| reply.status == 200).await;
    harness.sts.fail_with(Some(StsFailure::new(
        503,
        "ServiceUnavailable",
        "told to fail",
    )));
    // No response after the expiry that STS returned.
    let over = harness.until(4, &path, |reply| {
        if reply.status == 200 {
            let end: jiff::Timestamp = reply.json()["Expiration"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            assert!(
                jiff::Timestamp::now() < end + Duration::from_secs(1),
                "{reply:?}"
            );
        }
        reply.status != 200
    });
    assert_eq!(over.await.status, 503);
}

#[tokio::test]
async fn pain_08_external_ids_do_not_share_credentials() {
    let harness = TestAgent::new().await;
    let with_id = |name, n, id| {
        pod_with_role(name, n, "reader-ext").annotation("iam.amazonaws.com/external-id", id)
    };
    harness
        .sts
        .require_external_id(&arn("reader-ext"), Some("id-a"));
    harness.kube.put_pod(with_id("a", 4, "id-a"));
    harness.kube.put_pod(with_id("b", 5, "id-b"));
    let path = format!("{CREDENTIALS}reader-ext");
    harness.until(4, &path, |reply| reply.status == 200).await;
    harness.until(5, &path, |reply| reply.status == 403).await;
    let ids: Vec<_> = harness
        .assumed()
        .into_iter()
        .filter_map(|call| call.external_id)
        .collect();
    assert!(
        ids.contains(&"id-a".into()) && ids.contains(&"id-b".into()),
        "{ids:?}"
    );
}

#[tokio::test]
async fn pain_12_patterns_are_anchored() {
    let harness = TestAgent::new().await;
    let namespace = Namespace::new("other").annotation("iam.amazonaws.com/permitted", "team-a");
    harness.kube.put_namespace(namespace);
    let of = |name, n: u8, role| {
        Pod::new("other", name)
            .node(NODE)
            .ip(&address(n).to_string())
            .annotation("iam.amazonaws.com/role", role)
    };
    harness.kube.put_pod(of("a", 4, "team-a"));
    harness.kube.put_pod(of("b", 5, "team-a-admin"));
    harness
        .until(4, CREDENTIALS, |reply| reply.status == 200)
        .await;
    harness
        .until(5, CREDENTIALS, |reply| reply.status == 403)
        .await;
}

#[tokio::test]
async fn pain_14_session_names_name_the_pod() {
    let harness =
        TestAgent::with(|options| alone(options).decisions.scope = SessionScope::Pod).await;
    harness.key_id(1, "reader").await;
    assert_eq!(harness.assumed()[0].session_name, "default.reader");
    let harness = TestAgent::new().await;
    harness.key_id(1, "reader").await;
    assert_eq!(harness.assumed()[0].session_name, "default.default");
    let chosen = pod_with_role("chosen", 4, "reader")
        .annotation("iam.amazonaws.com/session-name", "billing-run");
    harness.kube.put_pod(chosen);
    harness
        .until(4, &format!("{CREDENTIALS}reader"), |reply| {
            reply.status == 200
        })
        .await;
    assert!(
        harness
            .assumed()
            .iter()
            .any(|call| call.session_name == "billing-run")
    );
}

#[tokio::test]
async fn pain_15_other_partitions() {
    let base = BaseArn::parse("arn:aws-cn:iam::123456789012:role/").unwrap();
    let harness = TestAgent::with(|options| alone(options).decisions.rules.base = Some(base)).await;
    harness.kube.put_namespace(
        Namespace::new("default").annotation("iam.amazonaws.com/allowed-roles", r#"["reader"]"#),
    );
    harness
        .until(1, &format!("{CREDENTIALS}reader"), |reply| {
            reply.status == 200
        })
        .await;
    assert_eq!(
        harness.assumed()[0].role_arn,
        "arn:aws-cn:iam::123456789012:role/reader"
    );
}

#[tokio::test]
async fn pain_15_the_base_arn_is_found_in_its_partition() {
    let harness = TestAgent::with(|options| {
        let alone = alone(options);
        alone.decisions.base_required = true;
        alone.decisions.rules.base = None;
    })
    .await;
    harness.key_id(1, "reader").await;
    assert_eq!(harness.assumed()[0].role_arn, arn("reader"));
}

#[tokio::test]
async fn pain_16_only_this_nodes_pods_are_watched() {
    let harness = TestAgent::new().await;
    let elsewhere = Pod::new("default", "far").node("node-b").ip("127.1.0.1");
    harness.kube.put_pod(elsewhere);
    harness.kube.put_pod(pod("marker", 7));
    harness
        .until(7, CREDENTIALS, |reply| reply.body.contains("has no role"))
        .await;
    assert_eq!(harness.get(1, CREDENTIALS).await.body, "reader");
    let pods = harness
        .kube
        .requests()
        .into_iter()
        .filter(|request| request.resource == "pods");
    for request in pods {
        assert_eq!(
            request.query["fieldSelector"],
            format!("spec.nodeName={NODE}")
        );
    }
}

#[tokio::test]
async fn pain_16_without_a_node_name_pods_of_other_hosts_are_dropped() {
    let harness = TestAgent::unready(|options| {
        if let SourceOptions::Kubernetes { node, .. } = &mut alone(options).source {
            *node = None;
        }
    })
    .await;
    let on_host = |pod: Pod, host: &str| {
        let mut pod = pod.build();
        pod["status"]["hostIP"] = host.into();
        pod
    };
    // A pod of another node claims the address of one on this node: pods here are not affected.
    harness
        .kube
        .put_pod(on_host(pod_with_role("ours", 4, "reader"), "127.0.0.1"));
    harness
        .kube
        .put_pod(on_host(pod_with_role("far", 4, "reader-far"), "10.9.9.9"));
    harness
        .kube
        .put_pod(on_host(pod_with_role("far-alone", 5, "reader"), "10.9.9.9"));
    harness.ready().await;
    assert_eq!(harness.get(4, CREDENTIALS).await.body, "reader");
    assert_eq!(harness.get(5, CREDENTIALS).await.status, 404);
}

#[tokio::test]
async fn pain_17_without_the_api_server_it_listens_and_says_so() {
    let closed = Imds::start("127.0.0.1:0".parse().unwrap(), Default::default())
        .await
        .unwrap();
    let nowhere = closed.url();
    closed.stop().await;
    let harness = TestAgent::unready(|options| {
        if let SourceOptions::Kubernetes { client, .. } = &mut alone(options).source {
            client.api_server = Some(nowhere);
        }
    })
    .await;
    assert_eq!(
        harness.get(1, "/latest/meta-data/instance-id").await.status,
        200
    );
    assert_eq!(harness.get(1, CREDENTIALS).await.status, 503);
    let ready = harness.admin("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(
        ready.body.contains("workloads are not loaded"),
        "{}",
        ready.body
    );
    assert_eq!(harness.admin("/healthz").await.status, 200);
}

#[tokio::test]
async fn pain_17_dropped_and_expired_watches_are_taken_up_again() {
    let harness = TestAgent::new().await;
    for (n, end) in [(4, false), (5, true)] {
        if end {
            harness.kube.expire_watches();
        } else {
            harness.kube.drop_watches();
        }
        harness
            .kube
            .put_pod(pod_with_role(&format!("pod-{n}"), n, "reader"));
        harness
            .until(n, CREDENTIALS, |reply| reply.status == 200)
            .await;
    }
}
