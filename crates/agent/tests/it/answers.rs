//! Tests of the responses to pods, and their format.

use std::time::Duration;

use rolegate_agent::metadata::ImdsV2;
use rolegate_core::metadata::AllowList;
use rolegate_devkit::StsFailure;

use crate::harness::{CREDENTIALS, TestAgent, alone, arn, pod_with_role};

const TOKEN: &str = "/latest/api/token";

#[tokio::test]
async fn an_agent_does_not_end_by_itself() {
    let mut harness = TestAgent::new().await;
    let ended = harness.agent.ended();
    let ended = tokio::time::timeout(Duration::from_millis(200), ended).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn a_role_is_listed_and_served_as_by_the_real_service() {
    let harness = TestAgent::new().await;
    for path in [CREDENTIALS, CREDENTIALS.strip_suffix('/').unwrap()] {
        for version in ["/latest/", "/2021-07-15/", "/1.0/"] {
            let reply = harness.get(1, &path.replace("/latest/", version)).await;
            assert_eq!(
                (reply.status, reply.body.as_str()),
                (200, "reader"),
                "{path}"
            );
            assert_eq!(reply.header("content-type"), Some("text/plain"));
            assert_eq!(reply.header("server"), Some("EC2ws"));
        }
    }
    for role in ["reader".to_owned(), arn("reader")] {
        let reply = harness.get(1, &format!("{CREDENTIALS}{role}")).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let document = reply.json();
        assert_eq!(document["Code"], "Success");
        assert_eq!(document["Type"], "AWS-HMAC");
        assert!(
            document["AccessKeyId"]
                .as_str()
                .unwrap()
                .starts_with("ASIA")
        );
        for time in ["LastUpdated", "Expiration"] {
            let time = document[time].as_str().unwrap();
            assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
        }
    }
    let info = harness.get(1, "/latest/meta-data/iam/info").await.json();
    let profile = "arn:aws:iam::123456789012:instance-profile/reader";
    assert_eq!(info["InstanceProfileArn"], profile);
}

#[tokio::test]
async fn each_refusal_has_its_status_and_a_sentence() {
    let harness = TestAgent::new().await;
    harness
        .kube
        .put_pod(pod_with_role("refused", 4, "reader-refused"));
    harness
        .kube
        .put_pod(pod_with_role("failing", 5, "reader-failing"));
    harness.sts.deny_role(&arn("reader-refused"));
    let failure = StsFailure::new(500, "InternalFailure", "told to fail");
    harness.sts.fail_role(&arn("reader-failing"), Some(failure));
    for (pod, path, status, sentence) in [
        (1, "writer", 403, "Invalid role writer"),
        (
            2,
            "writer",
            403,
            "role arn:aws:iam::123456789012:role/writer is refused by namespace",
        ),
        (
            2,
            "",
            403,
            "the namespace does not allow the role; to allow it, an administrator of the namespace",
        ),
        (3, "", 404, "has no role"),
        (3, "reader", 404, "has no role"),
        (
            9,
            "",
            404,
            "no pod on this node is known to have the address 127.1.0.9",
        ),
        (4, "reader-refused", 403, "STS denies role"),
        (5, "reader-failing", 503, "right now (InternalFailure)"),
    ] {
        let reply = harness.get(pod, &format!("{CREDENTIALS}{path}")).await;
        assert_eq!(reply.status, status, "{pod} {path} {reply:?}");
        assert!(reply.body.contains(sentence), "{}", reply.body);
        assert_eq!(reply.body.lines().count(), 1, "{}", reply.body);
        // AWS's own message contains the node's role.
        assert!(!reply.body.contains("assumed-role"), "{}", reply.body);
    }
}

#[tokio::test]
async fn what_sts_says_is_missing_reaches_the_pods_owner() {
    let harness =
        TestAgent::with(|options| alone(options).decisions.rules.cluster = Some("prod-1".into()))
            .await;
    harness.sts.deny_tagging(&arn("reader-tagged"), true);
    harness
        .kube
        .put_pod(pod_with_role("tagged", 4, "reader-tagged"));
    let path = format!("{CREDENTIALS}reader-tagged");
    let reply = harness.until(4, &path, |reply| reply.status == 403).await;
    let told = "(AccessDenied): the session has tags, so the trust policy of role reader-tagged \
                must allow rolegate sts:TagSession in addition to sts:AssumeRole\n";
    assert!(reply.body.ends_with(told), "{}", reply.body);
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let harness = TestAgent::new().await;
    let get = harness.get(1, CREDENTIALS).await;
    let mut stream = harness.connect(1).await;
    let request = format!(
        "HEAD {CREDENTIALS} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n"
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    let head = crate::harness::reply(&mut stream).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), get.header("content-length"));
    for path in [CREDENTIALS, "/latest/meta-data/instance-id"] {
        for method in ["POST", "DELETE", "PUT", "OPTIONS", "PATCH", "TRACE"] {
            let reply = harness
                .request(1, &format!("{method} {path} HTTP/1.1"))
                .await;
            assert_eq!(reply.status, 405, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn pain_13_tokens_as_by_the_real_service() {
    let harness = TestAgent::new().await;
    let put = async |pod, headers: &str| {
        harness
            .request(pod, &format!("PUT {TOKEN} HTTP/1.1{headers}"))
            .await
    };
    let ttl = "\r\nX-aws-ec2-metadata-token-ttl-seconds: ";
    for bad in ["", "0", "21601", "-1", "x", "99999999999"] {
        let headers = if bad.is_empty() {
            String::new()
        } else {
            format!("{ttl}{bad}")
        };
        assert_eq!(put(1, &headers).await.status, 400, "{bad}");
    }
    let proxied = format!("{ttl}60\r\nX-Forwarded-For: 1.2.3.4");
    assert_eq!(put(1, &proxied).await.status, 403);
    assert_eq!(harness.get(1, TOKEN).await.status, 405);
    let reply = put(1, &format!("{ttl}21600")).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("x-aws-ec2-metadata-token-ttl-seconds"),
        Some("21600")
    );
    let with = async |pod, token: &str| {
        let head = format!("GET {CREDENTIALS} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}");
        harness.request(pod, &head).await.status
    };
    assert_eq!(with(1, &reply.body).await, 200);
    assert_eq!(with(1, "wrong").await, 401);
    assert_eq!(with(1, "").await, 401);
    harness.kube.put_pod(pod_with_role("other", 4, "reader"));
    harness
        .until(4, CREDENTIALS, |reply| reply.status == 200)
        .await;
    assert_eq!(with(4, &reply.body).await, 401);
    // Tokens are checked for forwarded paths too.
    let forwarded = "GET /latest/meta-data/instance-id HTTP/1.1\r\nX-aws-ec2-metadata-token: x";
    assert_eq!(harness.request(1, forwarded).await.status, 401);
}

#[tokio::test]
async fn tokens_can_be_demanded() {
    let harness = TestAgent::with(|options| options.metadata.imds_v2 = ImdsV2::Required).await;
    for path in [
        CREDENTIALS,
        "/latest/meta-data/instance-id",
        "/latest/meta-data/iam/info",
    ] {
        assert_eq!(harness.get(1, path).await.status, 401, "{path}");
    }
    let put = format!("PUT {TOKEN} HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60");
    let token = harness.request(1, &put).await.body;
    let get = format!("GET {CREDENTIALS} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}");
    assert_eq!(harness.request(1, &get).await.status, 200);
}

#[tokio::test]
async fn safe_paths_are_forwarded_and_others_if_allowed() {
    let more = AllowList::new(&["meta-data/ami-id".into()]).unwrap();
    let harness = TestAgent::with(|options| options.metadata.allow = more).await;
    for path in [
        "meta-data/placement/region",
        "meta-data/instance-id",
        "meta-data/services/domain",
        "meta-data/ami-id",
        "dynamic/instance-identity/document",
    ] {
        let reply = harness.get(1, &format!("/latest/{path}")).await;
        assert_eq!(reply.status, 200, "{path} {reply:?}");
        assert!(!reply.body.is_empty());
    }
    // Cached: requested once, returned twice.
    let asked = |path: &str| {
        harness
            .imds
            .requests()
            .iter()
            .filter(|request| request.path == path)
            .count()
    };
    harness.get(1, "/latest/meta-data/instance-id").await;
    assert_eq!(asked("/latest/meta-data/instance-id"), 1);
    harness.get(1, "/latest/meta-data/ami-id").await;
    assert_eq!(asked("/latest/meta-data/ami-id"), 2);
    assert_eq!(
        harness
            .get(1, "/latest/meta-data/public-keys/")
            .await
            .status,
        403
    );
    assert_eq!(
        harness.get(9, "/latest/meta-data/instance-id").await.status,
        404
    );
}

#[tokio::test]
async fn rule_10_kube2iams_health_page_and_nothing_more_is_on_the_pods_port() {
    let harness = TestAgent::with(|options| options.debug = true).await;
    let health = harness
        .raw(1, "GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:8181\r\n\r\n")
        .await;
    assert_eq!(health.status, 200);
    assert_eq!(health.json()["hostIP"], "127.0.0.1");
    assert!(
        health.json()["instanceId"]
            .as_str()
            .unwrap()
            .starts_with("i-")
    );
    for path in [
        "/metrics",
        "/readyz",
        "/debug/store",
        "/debug/",
        "/healthz/",
        "/healthz?x",
    ] {
        let reply = harness.get(1, path).await;
        assert!((400..500).contains(&reply.status), "{path} {reply:?}");
    }
    assert_eq!(harness.admin("/healthz").await.status, 200);
    assert_eq!(harness.admin("/readyz").await.status, 200);
    assert!(
        harness
            .admin("/metrics")
            .await
            .body
            .contains("rolegate_pods 3")
    );
    let store = harness.admin("/debug/store").await.json();
    assert_eq!(store["rolesByIP"]["127.1.0.1"], arn("reader"));
    assert_eq!(store["namespaceByIP"]["127.1.0.1"], "default");
}

#[tokio::test]
async fn kube2iams_metric_names_on_demand() {
    let harness = TestAgent::with(|options| options.kube2iam_metrics = true).await;
    harness.key_id(1, "reader").await;
    harness.get(1, "/healthz").await;
    let metrics = harness.admin("/metrics").await.body;
    for line in [
        r#"kube2iam_http_request_duration_seconds_count{code="200",handler="roleHandler",method="GET"} 1"#,
        "kube2iam_iam_cache_hits_total 1",
        "kube2iam_healthcheck_status 1",
        r#"kube2iam_iam_request_duration_seconds_count{code="Success",role_arn="arn:aws:iam::123456789012:role/reader"} 1"#,
        "kube2iam_info{",
    ] {
        assert!(metrics.contains(line), "{line} not in\n{metrics}");
    }
    let plain = TestAgent::new().await;
    assert!(!plain.admin("/metrics").await.body.contains("kube2iam"));
}
