//! The container credentials endpoint, with tokens that the test signs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use rolegate_agent::container_credentials::ContainerCredentialsOptions;
use rolegate_agent::limits::LimitOptions;
use rolegate_core::service_account::CONTAINER_CREDENTIALS_AUDIENCE;
use rolegate_devkit::{Namespace, Pod};
use rolegate_service_account_token::Algorithm;
use rolegate_service_account_token::test_util::{Signer, claims};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::harness::{NODE, Reply, TestAgent, reply};

const ACCOUNTS: &str = "v1/serviceaccounts";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An agent with the endpoint, and the key of its cluster.
struct Fixture {
    harness: TestAgent,
    signer: Signer,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(LimitOptions::default()).await
    }

    async fn with(limits: LimitOptions) -> Self {
        let harness = TestAgent::unready(|options| {
            options.container_credentials = Some(ContainerCredentialsOptions {
                listen: vec![LOOPBACK],
                audience: CONTAINER_CREDENTIALS_AUDIENCE.into(),
                node: NODE.into(),
                limits,
                header_time: Duration::from_secs(10),
            });
        })
        .await;
        // Until the keys are known, the agent is not ready.
        let report = harness.agent.readiness().report();
        assert!(
            report.failing.contains_key("service-account-keys"),
            "{report:?}"
        );
        let signer = Signer::generate("k1", Algorithm::Es256);
        harness
            .kube
            .set_token_keys(ISSUER, &Signer::key_set(&[&signer]));
        harness.kube.enable(ACCOUNTS, "ServiceAccount", true);
        harness.kube.put_namespace(
            Namespace::new("shop").annotation("iam.amazonaws.com/allowed-roles", r#"["reader*"]"#),
        );
        harness.ready().await;
        Self { harness, signer }
    }

    /// Adds a ServiceAccount, with a role unless it is empty, and returns its UID.
    fn account(&self, name: &str, role: &str) -> String {
        let annotations = match role {
            "" => json!({}),
            role => json!({"rolegate.dev/role": role}),
        };
        let account = json!({"kind": "ServiceAccount", "metadata": {
            "namespace": "shop", "name": name, "annotations": annotations}});
        let stored = self.harness.kube.put(ACCOUNTS, account);
        stored["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Adds a pod with a ServiceAccount of its own name, and returns the claims of its token.
    fn pod(&self, name: &str, role: &str, change: impl FnOnce(Pod) -> Pod) -> Value {
        let account = self.account(name, role);
        let pod = Pod::new("shop", name).service_account(name).node(NODE);
        let stored = self.harness.kube.put_pod(change(pod));
        let uid = stored["metadata"]["uid"].as_str().unwrap();
        let mut claims = claims(ISSUER, name, uid, Timestamp::now().as_second());
        claims["sub"] = json!(format!("system:serviceaccount:shop:{name}"));
        claims["kubernetes.io"]["serviceaccount"] = json!({"name": name, "uid": account});
        claims["kubernetes.io"]["node"]["name"] = json!(NODE);
        claims
    }

    fn reader(&self) -> Value {
        self.pod("web-1", "reader", |pod| pod)
    }

    fn endpoint(&self) -> SocketAddr {
        self.harness.agent.addresses().container_credentials[0].unwrap()
    }

    async fn send(&self, head: &str) -> Reply {
        let mut stream = TcpStream::connect(self.endpoint()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        reply(&mut stream).await
    }

    /// Presents a token until it is refused with 404. Each response before that has credentials.
    async fn until_refused(&self, token: &str) {
        let refused = async {
            loop {
                let reply = self.present(token).await;
                if reply.status == 404 {
                    return;
                }
                assert_eq!(reply.status, 200, "{reply:?}");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), refused)
            .await
            .unwrap();
    }

    /// Presents a token.
    async fn present(&self, token: &str) -> Reply {
        let to = self.endpoint();
        self.send(&format!(
            "GET /v1/credentials HTTP/1.1\r\nHost: {to}\r\nAuthorization: {token}\r\n\r\n"
        ))
        .await
    }

    async fn present_claims(&self, claims: &Value) -> Reply {
        self.present(&self.signer.sign(claims)).await
    }
}

/// Checks a refusal in the format that the SDKs for Go and Java read.
#[track_caller]
fn assert_refused(reply: &Reply, status: u16, code: &str, text: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let body = reply.json();
    assert_eq!(body["code"], code, "{body}");
    assert!(body["message"].as_str().unwrap().contains(text), "{body}");
}

#[tokio::test]
async fn pods_get_credentials_by_token_and_not_by_address() {
    let fixture = Fixture::new().await;
    for (name, change) in [
        ("plain", (|pod| pod) as fn(Pod) -> Pod),
        ("pending", |pod| pod.phase("Pending")),
        ("host", |pod| pod.host_network().ip("127.0.0.1")),
    ] {
        let claims = fixture.pod(name, "reader", change);
        let reply = fixture.present_claims(&claims).await;
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let document = reply.json();
        let members = ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"];
        for member in members {
            assert!(document[member].is_string(), "{member}");
        }
        assert_eq!(document["AccountId"], "123456789012");
        let end: Timestamp = document["Expiration"].as_str().unwrap().parse().unwrap();
        assert!(end > Timestamp::now());
        assert!(reply.body.len() < 10_000);
    }
}

#[tokio::test]
async fn threat_17_requests_of_browsers_and_proxies_are_refused() {
    let fixture = Fixture::new().await;
    let token = fixture.signer.sign(&fixture.reader());
    let to = fixture.endpoint();
    let (ip, port) = (to.ip(), to.port());
    for (line, headers, status) in [
        ("GET /v1/credentials", format!("Host: {to}"), 200),
        ("GET /v1/credentials", format!("Host: {ip}"), 200),
        (
            "GET /v1/credentials",
            format!("Host: rebound.example:{port}"),
            403,
        ),
        (
            "GET /v1/credentials",
            format!("Host: localhost:{port}"),
            403,
        ),
        ("GET /v1/credentials", "Host: 169.254.169.254".into(), 403),
        ("GET /v1/credentials", format!("Host: {ip}:1"), 403),
        (
            "GET /v1/credentials",
            format!("Host: {to}\r\nHost: {to}"),
            403,
        ),
        (
            "GET /v1/credentials",
            format!("Host: {to}\r\nOrigin: http://{to}"),
            403,
        ),
        (
            "GET /v1/credentials",
            format!("Host: {to}\r\nX-Forwarded-For: 10.0.0.1"),
            403,
        ),
        ("GET /v1/credentials/", format!("Host: {to}"), 404),
        ("GET /v1/credentials?a", format!("Host: {to}"), 404),
        ("GET /V1/credentials", format!("Host: {to}"), 404),
        ("GET /", format!("Host: {to}"), 404),
        ("GET /healthz", format!("Host: {to}"), 404),
        (
            "POST /v1/credentials",
            format!("Host: {to}\r\nContent-Length: 0"),
            405,
        ),
        (
            "PUT /v1/credentials",
            format!("Host: {to}\r\nContent-Length: 0"),
            405,
        ),
    ] {
        let head = format!("{line} HTTP/1.1\r\n{headers}\r\nAuthorization: {token}\r\n\r\n");
        let reply = fixture.send(&head).await;
        assert_eq!(reply.status, status, "{line} {headers}: {reply:?}");
    }
    for headers in [
        String::new(),
        "Authorization: \r\n".into(),
        format!("Authorization: {token}\r\nAuthorization: {token}\r\n"),
    ] {
        let head = format!("GET /v1/credentials HTTP/1.1\r\nHost: {to}\r\n{headers}\r\n");
        let reply = fixture.send(&head).await;
        assert_refused(
            &reply,
            400,
            "InvalidToken",
            "Service account token cannot be empty",
        );
    }
}

#[tokio::test]
async fn tokens_that_do_not_match_their_pod_are_refused() {
    let fixture = Fixture::new().await;
    let good = fixture.reader();
    assert_eq!(fixture.present_claims(&good).await.status, 200);
    for (pointer, value, code, text) in [
        (
            "/kubernetes.io/pod/name",
            "web-2",
            "AccessDenied",
            "another name",
        ),
        (
            "/kubernetes.io/node/name",
            "node-b",
            "AccessDenied",
            "another node",
        ),
        (
            "/kubernetes.io/pod/uid",
            "gone",
            "ResourceNotFound",
            "does not exist on this node",
        ),
        ("/iss", "https://other", "InvalidToken", "issuer"),
    ] {
        let mut claims = good.clone();
        *claims.pointer_mut(pointer).unwrap() = json!(value);
        let reply = fixture.present_claims(&claims).await;
        let status = match code {
            "AccessDenied" => 403,
            "ResourceNotFound" => 404,
            _ => 400,
        };
        assert_refused(&reply, status, code, text);
    }
    let mut other = good.clone();
    other["sub"] = json!("system:serviceaccount:shop:admin");
    other["kubernetes.io"]["serviceaccount"]["name"] = json!("admin");
    let reply = fixture.present_claims(&other).await;
    assert_refused(&reply, 403, "AccessDenied", "ServiceAccount");
    let mut expired = good.clone();
    let second = Timestamp::now().as_second();
    (expired["iat"], expired["nbf"]) = (json!(second - 700), json!(second - 700));
    expired["exp"] = json!(second - 1);
    let reply = fixture.present_claims(&expired).await;
    assert_refused(&reply, 400, "ExpiredToken", "token is expired");
    // A ServiceAccount that was created again under the same name.
    let mut stale = good.clone();
    stale["kubernetes.io"]["serviceaccount"]["uid"] = json!("earlier");
    let reply = fixture.present_claims(&stale).await;
    assert_refused(&reply, 403, "AccessDenied", "ServiceAccount");
    // A token without the node's claim, as from API servers before 1.30.
    let mut old = good;
    old["kubernetes.io"].as_object_mut().unwrap().remove("node");
    assert_eq!(fixture.present_claims(&old).await.status, 200);
}

#[tokio::test]
async fn refusals_are_final_or_temporary_and_say_why() {
    let fixture = Fixture::new().await;
    let plain = fixture.pod("plain", "", |pod| pod);
    let reply = fixture.present_claims(&plain).await;
    assert_refused(&reply, 404, "ResourceNotFound", "has no role");
    let denied = fixture.pod("denied", "admin", |pod| pod);
    let reply = fixture.present_claims(&denied).await;
    assert_refused(&reply, 403, "AccessDenied", "admin");
    fixture.harness.event_note("admin").await;
    let metrics = fixture.harness.admin("/metrics").await.body;
    for outcome in ["no_role", "denied"] {
        let line = format!(r#"handler="container_credentials",outcome="{outcome}"#);
        assert!(metrics.contains(&line), "{line}");
    }
    let failure = rolegate_devkit::StsFailure::new(503, "ServiceUnavailable", "down");
    fixture.harness.sts.fail_with(Some(failure));
    let reader = fixture.reader();
    let reply = fixture.present_claims(&reader).await;
    assert_eq!(reply.status, 503, "{reply:?}");
}

#[tokio::test]
async fn service_ends_with_the_service_account() {
    let fixture = Fixture::new().await;
    let token = fixture.signer.sign(&fixture.reader());
    assert_eq!(fixture.present(&token).await.status, 200);
    assert!(fixture.harness.kube.delete(ACCOUNTS, Some("shop"), "web-1"));
    fixture.until_refused(&token).await;
}

#[tokio::test]
async fn service_ends_with_the_pod() {
    let fixture = Fixture::new().await;
    let reader = fixture.reader();
    let token = fixture.signer.sign(&reader);
    assert_eq!(fixture.present(&token).await.status, 200);
    assert!(fixture.harness.kube.delete_pod("shop", "web-1"));
    fixture.until_refused(&token).await;
}

#[tokio::test]
async fn threat_19_a_flood_of_tokens_is_refused_for_its_pod_alone() {
    let limits = LimitOptions {
        forwards_per_second: 5,
        ..LimitOptions::default()
    };
    let fixture = Fixture::with(limits).await;
    let reader = fixture.reader();
    let token = fixture.signer.sign(&reader);
    assert_eq!(fixture.present(&token).await.status, 200);
    let mut limited = 0;
    for n in 0..50 {
        let mut claims = reader.clone();
        claims["jti"] = json!(n.to_string());
        let reply = fixture.present_claims(&claims).await;
        if reply.status == 429 {
            assert_refused(&reply, 429, "TooManyRequests", "new tokens");
            limited += 1;
        }
    }
    assert!(limited > 0);
    // A token that is known costs no verification.
    assert_eq!(fixture.present(&token).await.status, 200);
    let report = fixture.harness.agent.readiness().report();
    assert!(report.ready, "{report:?}");
}
