//! Tests of the security rules, by their number in docs/security/guarantees.md. Rules 7 (redirect)
//! and 11 are tested in real network namespaces and with the certificates.

use std::time::Duration;

use rolegate_core::metadata::AllowList;
use rolegate_devkit::{NODE_ACCESS_KEY_ID, NODE_SECRET_MARKER, Namespace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{CREDENTIALS, TestAgent, pod, pod_with_role};

fn assert_clean(text: &str) {
    assert!(!text.contains(NODE_SECRET_MARKER), "{text}");
    assert!(!text.contains(NODE_ACCESS_KEY_ID), "{text}");
}

#[tokio::test]
async fn rule_01_who_is_not_identified_gets_nothing() {
    let harness = TestAgent::new().await;
    harness.kube.put_pod(pod_with_role("twin", 1, "reader"));
    let twin = harness
        .until(1, CREDENTIALS, |reply| reply.status == 404)
        .await;
    assert!(twin.body.contains("several live pods"), "{}", twin.body);
    harness
        .kube
        .put_pod(pod_with_role("host", 4, "reader").host_network());
    harness
        .kube
        .put_pod(pod_with_role("mirror", 5, "reader").mirror());
    harness
        .kube
        .put_pod(pod_with_role("done", 6, "reader").phase("Failed"));
    harness.kube.put_pod(pod_with_role("marker", 7, "reader"));
    harness
        .until(7, CREDENTIALS, |reply| reply.status == 200)
        .await;
    for n in [4, 5, 6] {
        for path in [
            CREDENTIALS,
            "/latest/meta-data/iam/info",
            "/latest/meta-data/instance-id",
        ] {
            assert_eq!(harness.get(n, path).await.status, 404, "{n} {path}");
        }
    }
}

#[tokio::test]
async fn rule_02_the_nodes_credentials_never_leave_in_any_spelling() {
    // Even if an administrator opens everything that can be opened.
    let everything = AllowList::new(&[".*".into()]).unwrap();
    let harness = TestAgent::with(|options| options.metadata.allow = everything).await;
    let node = "iam/security-credentials/node";
    let paths = [
        "iam",
        "iam/",
        "iam/security-credentials",
        "iam/security-credentials/",
        "iam/security-credentials//",
        node,
        "iam/security-credentials/node/",
        "iam//security-credentials/node",
        "/iam/security-credentials/node",
        "./iam/security-credentials/node",
        "x/../iam/security-credentials/node",
        "iam/security-credentials/../security-credentials/node",
        "iam/security-credentials/./node",
        "%69am/security-credentials/node",
        "iam%2fsecurity-credentials%2fnode",
        "iam%2Fsecurity-credentials/node",
        "iam/security%2dcredentials/node",
        "iam/security-credentials/%6e%6f%64%65",
        "%2e/iam/security-credentials/node",
        "%252e/iam/security-credentials/node",
        "IAM/security-credentials/node",
        "Iam/Security-Credentials/Node",
        "iam/security-credentials/node?x=y",
        "iam/security-credentials/node?",
        "iam/security-credentials/node#x",
        "iam/security-credentials/node;x=y",
        "iam\\security-credentials\\node",
        "iam/security-credentials/node%00",
        "iam/security-credentials/node%20",
        "iam/info",
        "identity-credentials/ec2/security-credentials/ec2-instance",
        "identity-credentials/ec2/security-credentials/ec2-instance/",
        "Identity-Credentials/ec2/security-credentials/ec2-instance",
        "identity%2dcredentials/ec2/security-credentials/ec2-instance",
        "identity-credentials//ec2/security-credentials/ec2-instance",
        "placement/../iam/security-credentials/node",
        "placement/%2e%2e/iam/security-credentials/node",
        "placement/..%2fiam/security-credentials/node",
        "../user-data",
        "../meta-data/iam/security-credentials/node",
        "../../latest/meta-data/iam/security-credentials/node",
    ];
    let mut targets: Vec<String> = Vec::new();
    for path in paths {
        for version in [
            "/latest/meta-data/",
            "/2021-07-15/meta-data/",
            "/1.0/meta-data/",
        ] {
            targets.push(format!("{version}{path}"));
        }
        targets.push(format!("/LATEST/meta-data/{path}"));
        targets.push(format!("/latest/Meta-Data/{path}"));
        targets.push(format!("//latest/meta-data/{path}"));
        targets.push(format!("/latest//meta-data/{path}"));
        targets.push(format!("/latest/meta%2ddata/{path}"));
        targets.push(format!("http://169.254.169.254/latest/meta-data/{path}"));
        targets.push(format!("http://x/latest/meta-data/{path}"));
    }
    for path in [
        "user-data",
        "user-data/",
        "User-Data",
        "user%2ddata",
        "/user-data",
        "./user-data",
    ] {
        targets.push(format!("/latest/{path}"));
        targets.push(format!("/1.0/{path}"));
    }
    targets.push("*".into());
    targets.push("169.254.169.254:80".into());
    for target in &targets {
        for method in ["GET", "HEAD", "POST", "get", "CONNECT", "PROPFIND"] {
            for pod in [1, 2, 3, 9] {
                // Unknown clients are only checked once: wait for each response.
                if pod == 9 && method != "GET" {
                    continue;
                }
                let mut stream = harness.connect(pod).await;
                let request = format!(
                    "{method} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await.unwrap();
                if pod == 9 {
                    continue;
                }
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.unwrap();
                assert_clean(&String::from_utf8_lossy(&answer));
            }
        }
    }
    // The real service received requests for discovery, and for paths that pods may read.
    let own = [
        "/latest/meta-data/iam/info",
        "/latest/meta-data/iam/security-credentials/",
    ];
    for request in harness.imds.requests() {
        let lower = request.path.to_ascii_lowercase();
        let secret = ["iam", "credentials", "user-data", "%"]
            .iter()
            .any(|word| lower.contains(word));
        assert!(
            !secret || own.contains(&request.path.as_str()),
            "{}",
            request.path
        );
    }
}

#[tokio::test]
async fn rule_03_a_denial_makes_no_call_and_is_told() {
    let harness = TestAgent::new().await;
    for _ in 0..5 {
        let reply = harness.get(2, &format!("{CREDENTIALS}writer")).await;
        assert_eq!(reply.status, 403);
        assert!(
            reply.body.contains("iam.amazonaws.com/allowed-roles"),
            "{}",
            reply.body
        );
    }
    assert!(
        harness
            .assumed()
            .iter()
            .all(|call| !call.role_arn.ends_with("writer"))
    );
    let metrics = harness.admin("/metrics").await.body;
    let line =
        r#"rolegate_request_duration_seconds_count{handler="credentials",outcome="denied"} 5"#;
    assert!(metrics.contains(line), "{metrics}");
    let told = async {
        while harness.kube.events().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told)
        .await
        .unwrap();
    let event = harness.kube.events()[0].to_string();
    assert!(
        event.contains("RoleForbidden") && event.contains("\"writer\""),
        "{event}"
    );
}

#[tokio::test]
async fn rule_04_a_right_taken_away_is_gone_though_the_session_is_kept() {
    let harness = TestAgent::new().await;
    harness.key_id(1, "reader").await;
    let rules =
        |allowed| Namespace::new("default").annotation("iam.amazonaws.com/allowed-roles", allowed);
    harness.kube.put_namespace(rules(r#"["other"]"#));
    let path = format!("{CREDENTIALS}reader");
    harness.until(1, &path, |reply| reply.status == 403).await;
    assert_eq!(harness.get(1, &path).await.status, 403);
    harness.kube.put_pod(pod("reader", 1));
    harness.until(1, &path, |reply| reply.status == 404).await;
    harness.kube.delete_pod("default", "reader");
    harness
        .until(1, &path, |reply| reply.body.contains("no pod on this node"))
        .await;
}

#[tokio::test]
async fn rule_05_forwarding_headers_are_not_believed_and_not_sent_on() {
    let harness = TestAgent::new().await;
    let spoofed = "\r\nX-Forwarded-For: 127.1.0.1\r\nForwarded: for=127.1.0.1\r\nX-Real-IP: 127.1.0.1\
                   \r\nVia: 1.1 x\r\nX-aws-ec2-metadata-token-ttl-seconds: 5\r\nAuthorization: secret";
    let reply = harness
        .request(3, &format!("GET {CREDENTIALS} HTTP/1.1{spoofed}"))
        .await;
    assert_eq!(reply.status, 404);
    let path = "/latest/meta-data/placement/region";
    let reply = harness
        .request(3, &format!("GET {path} HTTP/1.1{spoofed}"))
        .await;
    assert_eq!(reply.status, 200);
    let requests = harness.imds.requests();
    let request = requests
        .iter()
        .rfind(|request| request.path == path)
        .unwrap();
    let headers = format!("{:?}", request.headers).to_ascii_lowercase();
    for header in [
        "forwarded",
        "x-real-ip",
        "via",
        "authorization",
        "127.1.0.1",
    ] {
        assert!(!headers.contains(header), "{headers}");
    }
}

#[tokio::test]
async fn rule_06_no_secret_is_in_metrics_debug_pages_or_events() {
    let harness = TestAgent::with(|options| options.debug = true).await;
    let document = harness.get(1, &format!("{CREDENTIALS}reader")).await.json();
    harness.get(2, CREDENTIALS).await;
    for path in ["/metrics", "/readyz?verbose", "/debug/store"] {
        let page = harness.admin(path).await.body;
        assert_clean(&page);
        for secret in ["SecretAccessKey", "Token"] {
            assert!(!page.contains(document[secret].as_str().unwrap()), "{path}");
        }
    }
}

#[tokio::test]
async fn rule_09_slow_and_large_requests_are_cut_off() {
    let harness =
        TestAgent::with(|options| options.metadata.header_time = Duration::from_millis(200)).await;
    let mut slow = harness.connect(1).await;
    slow.write_all(b"GET /latest/meta-data/iam/info HTTP/1.1\r\nHost: 169.254")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection is held");
    assert_clean(&String::from_utf8_lossy(&rest));
    let mut idle = harness.connect(1).await;
    let closed = tokio::time::timeout(Duration::from_secs(20), idle.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "an idle connection is held");
    for large in [
        format!("GET /latest/{} HTTP/1.1", "x".repeat(4000)),
        format!(
            "GET {CREDENTIALS} HTTP/1.1\r\nX-Large: {}",
            "x".repeat(60_000)
        ),
        format!("GET {CREDENTIALS} HTTP/1.1{}", "\r\nX-Many: y".repeat(500)),
    ] {
        let mut stream = harness.connect(1).await;
        let request = format!("{large}\r\nHost: 169.254.169.254\r\n\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let reply = crate::harness::reply(&mut stream).await;
        assert_ne!(reply.status, 200, "{}", reply.head);
    }
    // The pod is served after all that.
    harness.key_id(1, "reader").await;
}

#[tokio::test]
async fn rule_12_a_token_is_worth_nothing_to_another_pod_or_the_next_at_its_address() {
    let harness = TestAgent::new().await;
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 600";
    let token = harness.request(1, put).await.body;
    let get = format!("GET {CREDENTIALS} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}");
    assert_eq!(harness.request(1, &get).await.status, 200);
    assert_eq!(harness.request(3, &get).await.status, 401);
    harness.kube.delete_pod("default", "reader");
    harness
        .kube
        .put_pod(pod_with_role("next", 1, "reader-next"));
    let next = |reply: &crate::harness::Reply| reply.body == "reader-next";
    harness.until(1, CREDENTIALS, next).await;
    assert_eq!(harness.request(1, &get).await.status, 401);
}
