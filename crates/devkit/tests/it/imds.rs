//! The metadata service over plain HTTP.

use rolegate_devkit::{
    Imds, ImdsOptions, NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SECRET_MARKER,
    NODE_SESSION_TOKEN,
};
use serde_json::Value;

use super::{ANY, call, get};

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

async fn start() -> Imds {
    Imds::start(ANY, ImdsOptions::default()).await.unwrap()
}

#[tokio::test]
async fn answers_by_path() {
    let imds = start().await;
    let ok = 200;
    for (path, status, body) in [
        ("/latest/meta-data/iam/security-credentials", ok, "node"),
        ("/latest/meta-data/iam/security-credentials/", ok, "node"),
        ("/1.0/meta-data/instance-id", ok, "i-0de0de0de0de0de0d"),
        (
            "/2021-07-15/meta-data/instance-id/",
            ok,
            "i-0de0de0de0de0de0d",
        ),
        (
            "/latest//meta-data/%70lacement/x/../region",
            ok,
            "eu-west-1",
        ),
        (
            "/latest/meta-data/placement/availability-zone",
            ok,
            "eu-west-1a",
        ),
        (
            "/latest/meta-data/placement",
            ok,
            "availability-zone\navailability-zone-id\nregion",
        ),
        ("/latest/meta-data/services/domain", ok, "amazonaws.com"),
        ("/latest/meta-data/services/partition", ok, "aws"),
        ("/latest/meta-data/local-ipv4", ok, "10.0.0.10"),
        ("/latest/meta-data/mac", ok, "02:de:00:00:00:0a"),
        ("/latest/meta-data/ami-id", ok, "ami-0de0de0de0de0de0d"),
        ("/latest/meta-data/instance-type", ok, "m5.large"),
        ("/latest", ok, "dynamic/\nmeta-data/\nuser-data"),
        ("/2021-7-15/meta-data/instance-id", 404, "404 - Not Found"),
        ("/newest/meta-data/instance-id", 404, "404 - Not Found"),
        (
            "/latest/meta-data/iam/security-credentials/other",
            404,
            "404 - Not Found",
        ),
        ("/latest/meta-data/instance-ids", 404, "404 - Not Found"),
    ] {
        let reply = get(&format!("{}{path}", imds.url())).await;
        assert_eq!(reply.status, status, "{path}");
        assert_eq!(reply.header("server"), "EC2ws");
        if status == ok {
            assert_eq!(reply.body, body, "{path}");
            assert_eq!(reply.header("content-type"), "text/plain");
        } else {
            assert!(reply.body.contains(body), "{path}: {}", reply.body);
            assert_eq!(reply.header("content-type"), "text/html");
        }
    }
    let head = call(
        "HEAD",
        &format!("{}/latest/meta-data/mac", imds.url()),
        &[],
        "",
    )
    .await;
    assert_eq!(
        (head.body.as_str(), head.header("content-length")),
        ("", "17")
    );
}

#[tokio::test]
async fn token_rules() {
    let imds = start().await;
    for (method, headers, status) in [
        ("PUT", vec![(TTL, "1")], 200),
        ("PUT", vec![(TTL, "21600")], 200),
        ("PUT", vec![(TTL, "0")], 400),
        ("PUT", vec![(TTL, "21601")], 400),
        ("PUT", vec![(TTL, "soon")], 400),
        ("PUT", vec![], 400),
        (
            "PUT",
            vec![(TTL, "60"), ("x-forwarded-for", "10.1.2.3")],
            403,
        ),
        ("GET", vec![(TTL, "60")], 405),
        ("POST", vec![(TTL, "60")], 405),
    ] {
        let reply = call(
            method,
            &format!("{}/latest/api/token", imds.url()),
            &headers,
            "",
        )
        .await;
        assert_eq!(reply.status, status, "{method} {headers:?}");
        if status == 200 {
            assert_eq!(reply.header(TTL), headers[0].1);
            assert_eq!(reply.header("content-type"), "text/plain");
            assert_eq!(reply.body.len(), 56);
        }
    }
}

#[tokio::test]
async fn versions_one_and_two() {
    let imds = start().await;
    let url = format!("{}/latest/meta-data/mac", imds.url());
    let token = call(
        "PUT",
        &format!("{}/latest/api/token", imds.url()),
        &[(TTL, "60")],
        "",
    )
    .await;
    let token = token.body.as_str();
    for (v2_only, sent, status) in [
        (false, None, 200),
        (false, Some(token), 200),
        (false, Some("wrong"), 401),
        (true, None, 401),
        (true, Some(token), 200),
        (true, Some("wrong"), 401),
    ] {
        imds.set_v2_only(v2_only);
        let headers: Vec<_> = sent.map(|token| (TOKEN, token)).into_iter().collect();
        assert_eq!(
            call("GET", &url, &headers, "").await.status,
            status,
            "{v2_only} {sent:?}"
        );
    }
    assert_eq!(
        call("DELETE", &url, &[(TOKEN, token)], "").await.status,
        405
    );
    imds.revoke_tokens();
    assert_eq!(call("GET", &url, &[(TOKEN, token)], "").await.status, 401);
}

#[tokio::test]
async fn documents_have_the_real_shape() {
    let imds = start().await;
    let path = "/latest/meta-data/iam/security-credentials/node";
    let text = get(&format!("{}{path}", imds.url())).await.body;
    assert!(
        text.starts_with("{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"20"),
        "{text}"
    );
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["Type"], "AWS-HMAC");
    assert_eq!(document["AccessKeyId"], NODE_ACCESS_KEY_ID);
    assert_eq!(document["SecretAccessKey"], NODE_SECRET_ACCESS_KEY);
    assert_eq!(document["Token"], NODE_SESSION_TOKEN);
    let expiration = document["Expiration"].as_str().unwrap();
    assert_eq!(expiration.len(), "2026-11-22T03:00:00Z".len());
    assert!(expiration.parse::<jiff::Timestamp>().unwrap() > jiff::Timestamp::now());

    let info = get(&format!("{}/latest/meta-data/iam/info", imds.url()))
        .await
        .body;
    let info: Value = serde_json::from_str(&info).unwrap();
    let arn = "arn:aws:iam::123456789012:instance-profile/node";
    assert_eq!(info["InstanceProfileArn"], arn);

    let path = "/latest/dynamic/instance-identity/document";
    let document = get(&format!("{}{path}", imds.url())).await.body;
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["region"], "eu-west-1");
    assert_eq!(document["accountId"], "123456789012");
    assert_eq!(document["kernelId"], Value::Null);
}

#[tokio::test]
async fn every_secret_bears_the_marker() {
    let imds = start().await;
    for path in [
        "/latest/user-data",
        "/latest/meta-data/iam/security-credentials/node",
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "/latest/dynamic/instance-identity/pkcs7",
        "/latest/dynamic/instance-identity/rsa2048",
        "/latest/dynamic/instance-identity/signature",
    ] {
        let reply = get(&format!("{}{path}", imds.url())).await;
        assert!(
            reply.body.contains(NODE_SECRET_MARKER),
            "{path}: {}",
            reply.body
        );
    }
    let (_, key) = imds.node_key();
    assert!(
        !format!("{key:?}").contains(NODE_SECRET_MARKER),
        "Debug must not tell the secret"
    );
}

#[tokio::test]
async fn options_failures_and_memory() {
    let options = ImdsOptions {
        node_role: None,
        partition: "aws-cn".into(),
        region: "cn-north-1".into(),
        v2_only: true,
        ..ImdsOptions::default()
    };
    let imds = Imds::start(ANY, options).await.unwrap();
    imds.set_v2_only(false);
    let url = imds.url();
    let path = "/latest/meta-data/iam/security-credentials/?why";
    assert_eq!(get(&format!("{url}{path}")).await.status, 404);
    let domain = get(&format!("{url}/latest/meta-data/services/domain")).await;
    assert_eq!(domain.body, "amazonaws.com.cn");
    imds.fail_with(Some(503));
    assert_eq!(get(&url).await.status, 503);
    imds.fail_with(None);
    call("GET", &url, &[("x-forwarded-for", "10.1.2.3")], "").await;

    let seen = imds.requests();
    assert_eq!(
        (seen[0].method.as_str(), seen[0].path.as_str()),
        ("GET", path)
    );
    assert_eq!(seen[3].headers["x-forwarded-for"], "10.1.2.3");
    assert_eq!(seen.len(), 4);
}
