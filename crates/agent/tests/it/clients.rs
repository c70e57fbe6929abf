//! Tests of clients that detect their environment, and of unusual clients that the real service
//! supports.

use std::net::SocketAddr;

use rolegate_agent::app::SourceOptions;
use rolegate_agent::metadata::ImdsV2;
use rolegate_core::metadata::AllowList;
use rolegate_devkit::{Imds, StsFailure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{CREDENTIALS, TestAgent, alone, arn, pod_with_role, reply};

const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 60";
const TOKEN: &str = "X-aws-ec2-metadata-token";
const PUT: &str = "PUT /latest/api/token HTTP/1.1";

#[tokio::test]
async fn probes_for_ec2_find_it() {
    let harness = TestAgent::new().await;
    let root = harness.get(1, "/").await;
    assert_eq!(root.status, 200);
    assert!(root.body.starts_with("1.0\n2007-01-19\n") && root.body.ends_with("\nlatest"));
    assert_eq!(root.header("server"), Some("EC2ws"));
    for path in ["/latest", "/latest/", "/2021-07-15/", "/1.0"] {
        let role_name = harness.get(1, path).await;
        assert_eq!(
            (role_name.status, role_name.body.as_str()),
            (200, "dynamic\nmeta-data"),
            "{path}"
        );
    }
    for path in ["/", "/latest/"] {
        let head = harness
            .request(1, &format!("HEAD {path} HTTP/1.1\r\nConnection: close"))
            .await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        let post = harness.request(1, &format!("POST {path} HTTP/1.1")).await;
        assert_eq!(post.status, 405, "{path}");
        // An unknown client gets the same listing, which belongs to no pod.
        assert_eq!(harness.get(9, path).await.status, 200, "{path}");
    }
    let token = harness.request(1, &format!("{PUT}\r\n{TTL}")).await.body;
    for (path, token, status) in [
        ("/", "INVALID", 401),
        ("/", "", 401),
        ("/latest/", "INVALID", 401),
        ("/", token.as_str(), 200),
        ("/latest/", token.as_str(), 200),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\n{TOKEN}: {token}");
        assert_eq!(
            harness.request(1, &head).await.status,
            status,
            "{path} {token}"
        );
    }
    let other = format!("GET / HTTP/1.1\r\n{TOKEN}: {token}");
    assert_eq!(harness.request(2, &other).await.status, 401);
}

#[tokio::test]
async fn probes_for_ec2_learn_that_tokens_are_required() {
    let harness = TestAgent::with(|options| options.metadata.imds_v2 = ImdsV2::Required).await;
    for path in ["/", "/latest", "/latest/"] {
        assert_eq!(harness.get(1, path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn probes_for_other_clouds_find_nothing() {
    let harness = TestAgent::new().await;
    for path in [
        "/computeMetadata/v1/",
        "/computeMetadata/v1/instance/service-accounts/default/token",
        "/0.1/meta-data/service-accounts/default/acquire",
        "/metadata/instance?api-version=2021-02-01",
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x",
        "/metadata/v1.json",
        "/metadata/v1/id",
        "/openstack",
        "/openstack/latest/meta_data.json",
        "/opc/v2/instance/",
        "/hetzner/v1/metadata",
        "/v1.json",
        "/latest.json",
        "/favicon.ico",
    ] {
        let answer = harness.get(1, path).await;
        assert_eq!(answer.status, 404, "{path} {answer:?}");
    }
    assert!(
        harness
            .imds
            .requests()
            .iter()
            .all(|request| request.path.starts_with("/latest/"))
    );
}

#[tokio::test]
async fn who_names_no_host_is_no_browser() {
    let harness = TestAgent::new().await;
    let path = format!("{CREDENTIALS}reader");
    for (request, status) in [
        ("HTTP/1.0\r\n\r\n", 200),
        ("HTTP/1.0\r\nHost:\r\n\r\n", 200),
        ("HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n", 200),
        ("HTTP/1.0\r\nHost: evil.example\r\n\r\n", 403),
        ("HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n", 403),
        (
            "HTTP/1.0\r\nHost: evil.example\r\nHost: 169.254.169.254\r\n\r\n",
            400,
        ),
        ("HTTP/1.1\r\n\r\n", 400),
        ("HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (
            "HTTP/1.1\r\nHost: 169.254.169.254\r\nHost: 169.254.169.254\r\n\r\n",
            400,
        ),
        ("HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    ] {
        let answer = harness.raw(1, &format!("GET {path} {request}")).await;
        assert_eq!(answer.status, status, "{request:?} {answer:?}");
    }
}

#[tokio::test]
async fn role_names_may_be_percent_encoded() {
    let harness = TestAgent::new().await;
    harness
        .kube
        .put_pod(pod_with_role("team", 4, "team/reader"));
    harness
        .until(4, CREDENTIALS, |reply| reply.status == 200)
        .await;
    let encoded = arn("team/reader").replace(':', "%3A").replace('/', "%2F");
    for role in [
        "team/reader",
        "team%2Freader",
        "team%2freader",
        encoded.as_str(),
    ] {
        let path = format!("{CREDENTIALS}{role}");
        let answer = harness.until(4, &path, |reply| reply.status != 503).await;
        assert_eq!(answer.status, 200, "{role}");
    }
    for (role, status) in [
        ("team%2Fwriter", 403),
        ("reader", 403),
        ("team%252Freader", 400),
        ("x%2F..%2Fteam%2Freader", 400),
        ("%2e%2e/info", 400),
        ("team%2Freader?x", 400),
        ("team%0d%0aX: y", 400),
    ] {
        let answer = harness.get(4, &format!("{CREDENTIALS}{role}")).await;
        assert_eq!(answer.status, status, "{role} {answer:?}");
    }
    let wrong = harness.get(4, &format!("{CREDENTIALS}team%2Fwriter")).await;
    assert_eq!(wrong.body, "Invalid role team/writer\n");
}

/// A metadata service that responds to each path below `placement` with the result of `answer`.
async fn service(answer: fn(&str, SocketAddr) -> String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let head = String::from_utf8(head).unwrap();
            let line = head.lines().next().unwrap_or_default();
            let path = line.split(' ').nth(1).unwrap_or_default();
            // A service without tokens.
            let text = if path.contains("/placement") {
                answer(path, own)
            } else {
                "404 Not Found\r\nContent-Length: 0".to_owned()
            };
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            let text = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body}");
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    own
}

/// Starts an agent for that service whose pods are not known yet, so that paths are forwarded.
async fn in_front_of(answer: fn(&str, SocketAddr) -> String) -> (TestAgent, SocketAddr) {
    let address = service(answer).await;
    let nowhere = Imds::start("127.0.0.1:0".parse().unwrap(), Default::default())
        .await
        .unwrap();
    let api = nowhere.url();
    nowhere.stop().await;
    let harness = TestAgent::unready(|options| {
        options.metadata_addr = address.to_string();
        options.metadata.allow = AllowList::new(&["meta-data/tags/.*".into()]).unwrap();
        if let SourceOptions::Kubernetes { client, .. } = &mut alone(options).source {
            client.api_server = Some(api);
        }
    })
    .await;
    (harness, address)
}

#[tokio::test]
async fn a_slash_at_the_end_reaches_the_service() {
    let (harness, _) =
        in_front_of(|path, _| format!("200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()))
            .await;
    // Each is cached separately.
    for _ in 0..2 {
        for path in [
            "/latest/meta-data/placement",
            "/latest/meta-data/placement/",
        ] {
            assert_eq!(harness.get(1, path).await.body, path);
        }
    }
}

#[tokio::test]
async fn redirects_contain_the_path_and_never_the_address() {
    let (harness, service) = in_front_of(|path, own| {
        let to = match path.rsplit('/').next().unwrap_or_default() {
            "absolute" => format!("http://{own}/latest/meta-data/placement/"),
            "relative" => "/latest/meta-data/placement/region".to_owned(),
            "closed" => format!("http://{own}/latest/user-data"),
            "elsewhere" => "http://169.254.170.2/latest/meta-data/placement/".to_owned(),
            "odd" => "/latest/meta-data/placement/../../user-data".to_owned(),
            "none" => return "304 Not Modified\r\nContent-Length: 0".to_owned(),
            _ => {
                let address = format!("http://{own}/");
                return format!(
                    "200 OK\r\nContent-Length: 2\r\nLocation: {address}\r\nContent-Location: {address}\r\nLink: <{address}>\r\nRefresh: 0; url={address}\r\n\r\nok"
                );
            }
        };
        format!("301 Moved\r\nLocation: {to}\r\nContent-Length: 4\r\n\r\n{}", own.port() % 9000 + 1000)
    })
    .await;
    let placement = "/latest/meta-data/placement";
    for (path, status, location) in [
        ("absolute", 301, Some("/latest/meta-data/placement/")),
        ("relative", 301, Some("/latest/meta-data/placement/region")),
        ("closed", 502, None),
        ("elsewhere", 502, None),
        ("odd", 502, None),
        ("none", 502, None),
        ("region", 200, None),
    ] {
        let answer = harness.get(1, &format!("{placement}/{path}")).await;
        assert_eq!(answer.status, status, "{path} {answer:?}");
        assert_eq!(answer.header("location"), location, "{path}");
        let whole = format!("{}{}", answer.head, answer.body);
        assert!(!whole.contains(&service.to_string()), "{path} {whole}");
        assert!(!whole.contains("169.254.170.2"), "{path} {whole}");
    }
}

#[tokio::test]
async fn only_complete_small_responses_are_cached() {
    let (harness, _) = in_front_of(|path, _| {
        static ASKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let asked = ASKED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let (status, size) = match path.rsplit('/').next().unwrap_or_default() {
            "failing" => ("500 Oops", 10),
            "large" => ("200 OK", 16 * 1024 + 1),
            "largest" => ("200 OK", 16 * 1024),
            "absent" => ("404 Not Found", 10),
            _ => ("200 OK", 10),
        };
        let body = format!("{asked:010}{}", "x".repeat(size - 10));
        format!("{status}\r\nContent-Length: {size}\r\n\r\n{body}")
    })
    .await;
    for (name, kept) in [
        ("failing", false),
        ("large", false),
        ("largest", true),
        ("absent", true),
        ("region", true),
    ] {
        let path = format!("/latest/meta-data/placement/{name}");
        // The response to a HEAD must not be cached for a GET.
        harness
            .request(1, &format!("HEAD {path} HTTP/1.1\r\nConnection: close"))
            .await;
        let first = harness.get(1, &path).await.body;
        assert!(first.len() >= 10, "{name} {first}");
        let again = harness.get(1, &path).await.body;
        assert_eq!(first == again, kept, "{name}");
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_is_answered() {
    let harness = TestAgent::new().await;
    harness
        .imds
        .set_latency(std::time::Duration::from_millis(50));
    for path in [
        "/latest/meta-data/instance-id",
        "/latest/meta-data/placement/availability-zone",
        CREDENTIALS,
    ] {
        let mut stream = harness.connect(1).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = reply(&mut stream).await;
        assert_eq!(answer.status, 200, "{path} {answer:?}");
    }
    // A client whose pod has not appeared yet, too.
    let mut stream = harness.connect(9).await;
    let request = format!("GET {CREDENTIALS} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(reply(&mut stream).await.status, 404);
}

#[tokio::test]
async fn kube2iams_page_is_alive_while_the_agent_serves() {
    let closed = Imds::start("127.0.0.1:0".parse().unwrap(), Default::default())
        .await
        .unwrap();
    let nowhere = closed.addr().to_string();
    closed.stop().await;
    let harness = TestAgent::with(|options| {
        options.metadata_addr = nowhere;
        options.kube2iam_metrics = true;
    })
    .await;
    harness.key_id(1, "reader").await;
    let page = harness.get(1, "/healthz").await;
    assert_eq!(page.status, 200, "{page:?}");
    assert_eq!(page.json()["hostIP"], "127.0.0.1");
    assert_eq!(page.json()["instanceId"], "");
    assert!(page.json()["reason"].is_string(), "{page:?}");
    // This metric contains the verdict of kube2iam's page.
    let metrics = harness.admin("/metrics").await.body;
    assert!(
        metrics.contains("kube2iam_healthcheck_status 0"),
        "{metrics}"
    );
}

#[tokio::test]
async fn tokens_are_issued_only_when_they_would_be_accepted() {
    let nowhere = Imds::start("127.0.0.1:0".parse().unwrap(), Default::default())
        .await
        .unwrap();
    let api = nowhere.url();
    nowhere.stop().await;
    let early = TestAgent::unready(|options| {
        if let SourceOptions::Kubernetes { client, .. } = &mut alone(options).source {
            client.api_server = Some(api);
        }
    })
    .await;
    let put = format!("{PUT}\r\n{TTL}");
    assert_eq!(early.request(1, &put).await.status, 503);
    // A token from before a restart is not rejected for good while its pod cannot be identified.
    let harness = TestAgent::new().await;
    let token = harness.request(1, &put).await;
    assert_eq!(token.status, 200);
    for (token, status) in [(token.body.as_str(), 503), ("INVALID", 401)] {
        for path in ["/", "/latest/meta-data/instance-id", CREDENTIALS] {
            let head = format!("GET {path} HTTP/1.1\r\n{TOKEN}: {token}");
            assert_eq!(early.request(1, &head).await.status, status, "{path}");
        }
    }
    // A pod that is not known to this node yet: 404 would tell its client that there are no tokens.
    let unknown = harness.request(9, &put).await;
    assert_eq!(unknown.status, 503, "{unknown:?}");
    assert!(unknown.body.contains("no pod on this node"), "{unknown:?}");
    harness.kube.put_pod(pod_with_role("late", 9, "reader"));
    harness
        .until(9, CREDENTIALS, |reply| reply.status == 200)
        .await;
    assert_eq!(harness.request(9, &put).await.status, 200);
}

#[tokio::test]
async fn the_cause_of_a_refusal_reaches_the_pods_owner() {
    let harness = TestAgent::new().await;
    let refusal = |code: &str, message: &str| Some(StsFailure::new(403, code, message));
    let denied = "User: arn:aws:sts::111122223333:assumed-role/node/i-0abc is not authorized to perform: sts:AssumeRole on resource: x";
    harness
        .sts
        .set_max_session_duration(&arn("reader-short"), 1800);
    harness
        .sts
        .fail_role(&arn("reader-trust"), refusal("AccessDenied", denied));
    let own = format!("{denied} because no identity-based policy allows the sts:AssumeRole action");
    harness
        .sts
        .fail_role(&arn("reader-own"), refusal("AccessDenied", &own));
    harness.sts.fail_role(
        &arn("reader-odd"),
        refusal("ValidationError", "1 validation error"),
    );
    harness
        .sts
        .require_external_id(&arn("reader-ext"), Some("id-a"));
    for (n, role, told) in [
        (
            4,
            "reader-short",
            "the requested duration is 3600 s: lower it, or raise MaxSessionDuration of role reader-short",
        ),
        (
            5,
            "reader-trust",
            "its trust policy must allow rolegate's role to assume it\n",
        ),
        (
            6,
            "reader-own",
            "a policy of rolegate's own role must allow sts:AssumeRole on role reader-own",
        ),
        (
            7,
            "reader-odd",
            "(ValidationError): see rolegate's log for the reason",
        ),
        (
            8,
            "reader-ext",
            "to assume it with this pod's external ID\n",
        ),
    ] {
        let mut pod = pod_with_role(role, n, role);
        if role == "reader-ext" {
            pod = pod.annotation("iam.amazonaws.com/external-id", "id-b");
        }
        harness.kube.put_pod(pod);
        let path = format!("{CREDENTIALS}{role}");
        let refused = harness.until(n, &path, |reply| reply.status == 403).await;
        assert!(refused.body.contains(told), "{}", refused.body);
        for secret in ["111122223333", "assumed-role", "id-b"] {
            assert!(!refused.body.contains(secret), "{}", refused.body);
        }
        let speaks = refused.body.contains("external ID");
        assert_eq!(speaks, role == "reader-ext", "{}", refused.body);
        // The Event on the pod contains the same and nothing else.
        let note = harness.event_note(&arn(role)).await;
        assert!(
            note.contains(told.trim_end()) || role == "reader-odd",
            "{note}"
        );
        assert!(!note.contains("assumed-role"), "{note}");
    }
}
