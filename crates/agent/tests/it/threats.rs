//! Tests of attacks, by their number in docs/security/threat-model.md. Attacks on the network (2, 3,
//! 15, 16, 21) are tested in real network namespaces, those on an address's owner (1) also with the
//! pod reconciler alone.

use std::time::Duration;

use rolegate_agent::app::SourceOptions;
use rolegate_agent::limits::LimitOptions;
use rolegate_core::engine::EngineOptions;
use rolegate_devkit::Namespace;

use crate::harness::{CREDENTIALS, TestAgent, alone, arn, pod_with_role, reply};

#[tokio::test]
async fn threat_02_an_old_picture_serves_nobody() {
    let harness = TestAgent::with(|options| options.max_staleness = Duration::ZERO).await;
    let reply = harness.get(1, &format!("{CREDENTIALS}reader")).await;
    assert_eq!(reply.status, 503);
    assert!(
        reply.body.contains("no update from the cluster"),
        "{}",
        reply.body
    );
}

#[tokio::test]
async fn threat_06_our_own_roles_are_refused_under_any_rule() {
    let harness = TestAgent::new().await;
    harness.kube.put_namespace(
        Namespace::new("default")
            .annotation("iam.amazonaws.com/allowed-roles", r#"["*"]"#)
            .annotation("iam.amazonaws.com/permitted", ".*"),
    );
    // The stand-in's node has the role `node`.
    for (n, role) in [
        (4, "node".to_owned()),
        (5, arn("node")),
        (6, arn("path/NODE")),
    ] {
        harness
            .kube
            .put_pod(pod_with_role(&format!("thief-{n}"), n, &role));
        let denied = harness
            .until(n, CREDENTIALS, |reply| reply.status == 403)
            .await;
        assert!(
            denied.body.contains("so no pod may assume it"),
            "{}",
            denied.body
        );
    }
    assert!(
        harness
            .assumed()
            .iter()
            .all(|call| !call.role_arn.to_lowercase().contains("node"))
    );
}

#[tokio::test]
async fn threat_06_not_even_as_the_default() {
    let harness = TestAgent::with(|options| {
        alone(options).decisions.rules.default_role = Some("node".into())
    })
    .await;
    assert_eq!(harness.get(3, CREDENTIALS).await.status, 403);
}

#[tokio::test]
async fn threat_12_a_session_name_cannot_be_forged() {
    let harness = TestAgent::new().await;
    let forger = pod_with_role("forger", 4, "reader")
        .annotation("iam.amazonaws.com/session-name", "payments.api");
    harness.kube.put_pod(forger);
    let denied = harness
        .until(4, CREDENTIALS, |reply| reply.status == 403)
        .await;
    assert!(denied.body.contains("another namespace"), "{}", denied.body);
    assert!(
        harness
            .assumed()
            .iter()
            .all(|call| call.session_name != "payments.api")
    );
}

#[tokio::test]
async fn threat_17_a_browser_that_dns_pointed_here_is_refused() {
    let harness = TestAgent::new().await;
    for host in [
        "evil.example",
        "evil.example:80",
        "169.254.169.254.evil.example",
        "169.254.169.254:8080",
        "localhost",
        "",
        "[::ffff:169.254.169.254]",
        "2852039166",
    ] {
        for line in [
            format!("GET {CREDENTIALS}reader HTTP/1.1"),
            "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60".into(),
        ] {
            let answer = harness
                .raw(1, &format!("{line}\r\nHost: {host}\r\n\r\n"))
                .await;
            assert!(matches!(answer.status, 400 | 403), "{host} {answer:?}");
        }
    }
    let origin = format!("GET {CREDENTIALS} HTTP/1.1\r\nOrigin: http://169.254.169.254");
    assert_eq!(harness.request(1, &origin).await.status, 403);
    let twice = format!("GET {CREDENTIALS} HTTP/1.1\r\nHost: evil.example");
    assert!(matches!(harness.request(1, &twice).await.status, 400 | 403));
    let none = harness
        .raw(1, &format!("GET {CREDENTIALS} HTTP/1.1\r\n\r\n"))
        .await;
    assert!(matches!(none.status, 400 | 403));
    for fine in [
        "169.254.169.254:80",
        "[fd00:ec2::254]",
        "[fd00:ec2::254]:80",
        "127.0.0.1:8181",
    ] {
        let answer = harness
            .raw(
                1,
                &format!("GET {CREDENTIALS} HTTP/1.1\r\nHost: {fine}\r\n\r\n"),
            )
            .await;
        assert_eq!(answer.status, 200, "{fine}");
    }
}

#[tokio::test]
async fn threat_18_flipping_annotations_burns_no_quota_but_its_own() {
    let harness = TestAgent::with(|options| {
        alone(options).decisions.engine = EngineOptions {
            namespace_burst: 10,
            namespace_rate: 0.1,
            ..EngineOptions::default()
        };
    })
    .await;
    for flip in 0..60 {
        harness
            .kube
            .put_pod(pod_with_role("flipper", 4, &format!("reader-{flip}")));
        let shown = format!("reader-{flip}");
        harness
            .until(4, CREDENTIALS, |reply| reply.body == shown)
            .await;
    }
    assert!(harness.assumed().len() <= 12, "{}", harness.assumed().len());
    // Another namespace has its own budget.
    let other = Namespace::new("other").annotation("iam.amazonaws.com/permitted", ".*");
    harness.kube.put_namespace(other);
    let pod = rolegate_devkit::Pod::new("other", "app")
        .node(crate::harness::NODE)
        .ip("127.1.0.5")
        .annotation("iam.amazonaws.com/role", "else");
    harness.kube.put_pod(pod);
    harness
        .until(5, &format!("{CREDENTIALS}else"), |reply| {
            reply.status == 200
        })
        .await;
}

#[tokio::test]
async fn threat_19_a_noisy_pod_takes_nothing_from_its_neighbours() {
    let harness = TestAgent::with(|options| {
        options.metadata.limits = LimitOptions {
            connections: 40,
            connections_per_pod: 8,
            waiters_per_pod: 2,
            forwards_per_second: 5,
            forwards_in_all: 50,
        };
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(harness.connect(2).await);
    }
    // The neighbor is served while the other pod uses its full limits.
    harness.key_id(1, "reader").await;
    drop(held);
    // Invented names, since missing paths are cached too.
    let forwarded = async |n, place| {
        let path = format!("/latest/meta-data/placement/{place}");
        harness.get(n, &path).await.status
    };
    let mut limited = 0;
    for place in 0..40 {
        if forwarded(3, place).await == 429 {
            limited += 1;
        }
    }
    assert!(limited > 0);
    assert_ne!(forwarded(1, 99).await, 429);
}

#[tokio::test]
async fn threat_19_a_connection_is_bounded_in_size_and_time() {
    let harness =
        TestAgent::with(|options| options.metadata.header_time = Duration::from_millis(50)).await;
    // One that sends nothing, and one that sends slowly.
    for begun in ["", "GET /latest/meta-data/ HTTP/1.1\r\nHost:"] {
        let mut slow = harness.connect(1).await;
        tokio::io::AsyncWriteExt::write_all(&mut slow, begun.as_bytes())
            .await
            .unwrap();
        let ended = reply(&mut slow).await;
        assert!(matches!(ended.status, 0 | 408), "{ended:?}");
    }
    let head = |length| {
        let line = format!("GET {CREDENTIALS}reader HTTP/1.1");
        format!("{line}\r\nX-Long: {}", "a".repeat(length))
    };
    assert_eq!(harness.request(1, &head(7000)).await.status, 200);
    let long = harness.request(1, &head(9000)).await;
    assert!(matches!(long.status, 0 | 431), "{long:?}");
}

#[tokio::test]
async fn threat_19_before_pods_are_known_each_address_may_be_one() {
    let limits = LimitOptions {
        connections: 8,
        ..LimitOptions::default()
    };
    let harness = TestAgent::unready(|options| {
        options.metadata.limits = limits;
        if let SourceOptions::Kubernetes { client, .. } = &mut alone(options).source {
            // No server listens on that port.
            client.api_server = Some("http://127.0.0.1:9".into());
        }
    })
    .await;
    let mut held = Vec::new();
    for n in 1..9 {
        held.push(harness.connect(n).await);
    }
    // Served, and so accepted after all others: no limit of unknown peers was reached.
    assert_eq!(harness.get(100, "/").await.status, 200);
    let metrics = harness.admin("/metrics").await.body;
    for (limit, reached) in [("unknown_peer_connections", 0), ("connections", 1)] {
        let line = format!("rolegate_limit_reached_total{{limit=\"{limit}\"}} {reached}\n");
        assert!(metrics.contains(&line), "{line} not in {metrics}");
    }
}

#[tokio::test]
async fn threat_19_waiting_is_bounded_for_each_pod() {
    let limits = LimitOptions {
        waiters_per_pod: 2,
        ..LimitOptions::default()
    };
    let harness = TestAgent::with(|options| options.metadata.limits = limits).await;
    let asking = (0..10).map(|_| harness.get(9, CREDENTIALS));
    let mut statuses: Vec<_> = futures::future::join_all(asking)
        .await
        .into_iter()
        .map(|reply| reply.status)
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [404, 404, 429, 429, 429, 429, 429, 429, 429, 429]);
}

#[tokio::test]
async fn threat_18_sessions_that_nobody_needs_are_not_hoarded() {
    let harness = TestAgent::new().await;
    for flip in 0..40 {
        let name = format!("flip-{flip}");
        let pod = pod_with_role("flipper", 4, "reader")
            .annotation("iam.amazonaws.com/session-name", &name);
        harness.kube.put_pod(pod);
        harness
            .until(4, &format!("{CREDENTIALS}reader"), |reply| {
                reply.status == 200
            })
            .await;
    }
    let metrics = harness.admin("/metrics").await.body;
    let kept = metrics
        .lines()
        .find_map(|line| line.strip_prefix("rolegate_sessions "));
    let kept: u32 = kept.unwrap().parse().unwrap();
    assert!(kept <= 12, "{kept} sessions");
}

#[tokio::test]
async fn threat_19_costly_rules_of_a_namespace_hurt_only_itself() {
    let harness = TestAgent::new().await;
    let patterns: Vec<_> = (0..256)
        .map(|n| format!("\\w{{5}}x{n}|reader{n}"))
        .collect();
    for (name, allowed) in [
        ("far", serde_json::to_string(&patterns).unwrap()),
        ("default", format!("[\"{}reader\"]", "*".repeat(9000))),
    ] {
        let namespace =
            Namespace::new(name).annotation("iam.amazonaws.com/allowed-roles", &allowed);
        harness.kube.put_namespace(namespace);
    }
    // A list that is too long is denied rather than truncated.
    let denied = harness
        .until(1, CREDENTIALS, |reply| reply.status == 403)
        .await;
    assert!(denied.body.contains("longer than 8192"), "{}", denied.body);
}

#[tokio::test]
async fn threat_19_strangers_leave_room_for_pods() {
    let limits = LimitOptions {
        connections: 32,
        ..LimitOptions::default()
    };
    let harness = TestAgent::with(|options| options.metadata.limits = limits).await;
    let mut held = Vec::new();
    for n in 100..160 {
        held.push(harness.connect(n).await);
    }
    harness.key_id(1, "reader").await;
    drop(held);
}

#[tokio::test]
async fn pain_02_a_connection_belongs_to_the_pod_that_opened_it() {
    use tokio::io::AsyncWriteExt;
    let harness = TestAgent::new().await;
    let request = format!("GET {CREDENTIALS} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
    let mut kept = harness.connect(1).await;
    kept.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(reply(&mut kept).await.body, "reader");
    harness.kube.delete_pod("default", "reader");
    harness
        .kube
        .put_pod(pod_with_role("next", 1, "reader-next"));
    harness
        .until(1, CREDENTIALS, |reply| reply.body == "reader-next")
        .await;
    kept.write_all(request.as_bytes()).await.unwrap();
    let refused = reply(&mut kept).await;
    assert_eq!(refused.status, 404, "{refused:?}");
    assert_eq!(refused.header("connection"), Some("close"));
}

#[tokio::test]
async fn threat_25_strings_of_tenants_stay_out_of_labels_and_hints() {
    let harness = TestAgent::new().await;
    let nasty = "x\" } evil{\u{1b}[31m\r\nSet-Cookie: a";
    harness.kube.put_pod(pod_with_role("nasty", 4, nasty));
    let denied = harness
        .until(4, CREDENTIALS, |reply| reply.status == 403)
        .await;
    assert!(!denied.head.contains("Set-Cookie"), "{}", denied.head);
    assert!(!denied.body.contains('\u{1b}'), "{}", denied.body);
    let metrics = harness.admin("/metrics").await.body;
    assert!(
        !metrics.contains("evil") && !metrics.contains("reader"),
        "{metrics}"
    );
    // The response contains nothing of another namespace's rules.
    let other = Namespace::new("other").annotation("iam.amazonaws.com/permitted", "secret-role");
    harness.kube.put_namespace(other);
    let denied = harness.get(2, CREDENTIALS).await;
    assert!(!denied.body.contains("secret-role"), "{}", denied.body);
    let mut stream = harness.connect(2).await;
    let request = format!(
        "GET {CREDENTIALS}{} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        "a".repeat(600)
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    assert!(reply(&mut stream).await.body.len() < 1000);
}
