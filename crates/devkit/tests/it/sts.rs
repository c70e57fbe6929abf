//! STS over plain HTTP, and through the SDK that rolegate uses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_sts::config::{BehaviorVersion, Region};
use aws_sdk_sts::error::ProvideErrorMetadata;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::Request;
use http_body_util::Full;
use rolegate_devkit::{AccessKey, Sts, StsFailure, StsOptions};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ANY, Reply, call, send, until};

pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/team/reader";
const CALLER: &str = "arn:aws:iam::123456789012:user/agent";
const NODE: &str = "arn:aws:sts::123456789012:assumed-role/node/i-0";

pub(crate) async fn unchecked() -> Sts {
    Sts::start(ANY, StsOptions::default()).await.unwrap()
}

/// Starts STS with the access keys `AKIAUSER` and, with a token, `ASIANODE`.
pub(crate) async fn checked() -> Sts {
    let key = |token: Option<&str>, caller: &str| AccessKey {
        secret_access_key: "secret".into(),
        session_token: token.map(Into::into),
        caller_arn: caller.into(),
    };
    let keys = HashMap::from([
        ("AKIAUSER".to_owned(), key(None, CALLER)),
        ("ASIANODE".to_owned(), key(Some("token"), NODE)),
    ]);
    Sts::start(
        ANY,
        StsOptions {
            keys: Some(keys),
            ..StsOptions::default()
        },
    )
    .await
    .unwrap()
}

pub(crate) fn form(parameters: &[(&str, &str)]) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    if !parameters.iter().any(|(name, _)| *name == "Version") {
        form.append_pair("Version", "2011-06-15");
    }
    form.extend_pairs(parameters).finish()
}

/// Returns `AssumeRole` of [`ROLE`] with changed parameters. `"-"` omits one.
pub(crate) fn assume(changes: &[(&str, &str)]) -> String {
    let mut parameters = vec![
        ("Action", "AssumeRole"),
        ("RoleArn", ROLE),
        ("RoleSessionName", "default.app"),
    ];
    parameters.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
    parameters.extend(changes.iter().filter(|(_, value)| *value != "-"));
    form(&parameters)
}

pub(crate) async fn post(sts: &Sts, body: &str) -> Reply {
    call("POST", &sts.url(), &[], body).await
}

/// Returns the text of the first element with this name.
pub(crate) fn element<'a>(xml: &'a str, name: &str) -> &'a str {
    let start = xml
        .find(&format!("<{name}>"))
        .unwrap_or_else(|| panic!("no {name} in {xml}"));
    let rest = &xml[start + name.len() + 2..];
    &rest[..rest.find(&format!("</{name}>")).unwrap()]
}

pub(crate) struct Signed<'a> {
    key: (&'a str, &'a str, Option<&'a str>),
    service: &'a str,
    at: SystemTime,
}

impl<'a> Signed<'a> {
    pub(crate) fn by(id: &'a str, secret: &'a str, token: Option<&'a str>) -> Self {
        Self {
            key: (id, secret, token),
            service: "sts",
            at: SystemTime::now(),
        }
    }

    fn request(&self, sts: &Sts, body: &str) -> Request<Full<bytes::Bytes>> {
        let (id, secret, token) = self.key;
        let identity = Credentials::new(id, secret, token.map(Into::into), None, "test").into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region("eu-west-1")
            .name(self.service)
            .time(self.at)
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let url = format!("{}/", sts.url());
        let form = "application/x-www-form-urlencoded";
        let signable = SignableRequest::new(
            "POST",
            &url,
            [("content-type", form)].into_iter(),
            SignableBody::Bytes(body.as_bytes()),
        )
        .unwrap();
        let (instructions, _) = sign(signable, &parameters).unwrap().into_parts();
        let mut request = Request::post(url)
            .header("content-type", form)
            .body(Full::from(body.to_owned()))
            .unwrap();
        instructions.apply_to_request_http1x(&mut request);
        request
    }

    pub(crate) async fn post(&self, sts: &Sts, body: &str) -> Reply {
        send(self.request(sts, body)).await
    }
}

#[tokio::test]
async fn answers_in_the_real_shape() {
    let sts = unchecked().await;
    let reply = post(&sts, &assume(&[("DurationSeconds", "900")])).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/xml");
    let xml = &reply.body;
    assert!(xml.starts_with(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROA"
    ));
    let arn = "arn:aws:sts::123456789012:assumed-role/reader/default.app";
    assert_eq!(element(xml, "Arn"), arn);
    assert!(element(xml, "AssumedRoleId").ends_with(":default.app"));
    assert!(element(xml, "AccessKeyId").starts_with("ASIA"));
    assert_eq!(element(xml, "SecretAccessKey").len(), 40);
    assert!(element(xml, "SessionToken").len() >= 400);
    assert_eq!(element(xml, "RequestId"), reply.header("x-amzn-requestid"));
    let expiration: jiff::Timestamp = element(xml, "Expiration").parse().unwrap();
    let left = expiration.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((800..=900).contains(&left), "{left}");
    assert!(!xml.contains("PackedPolicySize"));

    let other = post(&sts, &assume(&[])).await.body;
    for name in [
        "AccessKeyId",
        "SecretAccessKey",
        "SessionToken",
        "RequestId",
    ] {
        assert_ne!(element(xml, name), element(&other, name));
    }

    let who = post(&sts, &form(&[("Action", "GetCallerIdentity")]))
        .await
        .body;
    assert_eq!(
        element(&who, "Arn"),
        "arn:aws:iam::123456789012:user/devkit"
    );
    assert_eq!(element(&who, "Account"), "123456789012");
}

#[tokio::test]
async fn parameters_by_the_rules() {
    let sts = unchecked().await;
    let ones = |count| "x".repeat(count);
    let tags = |count| -> Vec<(String, String)> {
        (1..=count)
            .flat_map(|n| {
                [
                    (format!("Tags.member.{n}.Key"), format!("k{n}")),
                    (format!("Tags.member.{n}.Value"), "v".into()),
                ]
            })
            .collect()
    };
    let one = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let wrong = "ValidationError";
    for (changes, code, words) in [
        (one("RoleSessionName", "ab"), "", ""),
        (one("RoleSessionName", &ones(64)), "", ""),
        (one("RoleSessionName", "-"), wrong, "'roleSessionName'"),
        (
            one("RoleSessionName", "a"),
            wrong,
            "greater than or equal to 2",
        ),
        (
            one("RoleSessionName", &ones(65)),
            wrong,
            "less than or equal to 64",
        ),
        (
            one("RoleSessionName", "a/b"),
            wrong,
            r"pattern: [\w+=,.@-]*",
        ),
        (one("RoleSessionName", "größe"), wrong, "roleSessionName"),
        (one("RoleArn", "-"), wrong, "roleArn"),
        (
            one("RoleArn", "arn:aws:iam::1234:role/reader"),
            wrong,
            "is invalid",
        ),
        (
            one("RoleArn", "arn:aws-cn:iam::123456789012:role/r"),
            "",
            "",
        ),
        (one("ExternalId", "a:/b-@"), "", ""),
        (one("ExternalId", "a"), wrong, "externalId"),
        (one("ExternalId", "a b"), wrong, "externalId"),
        (one("ExternalId", &ones(1225)), wrong, "1224"),
        (one("DurationSeconds", "900"), "", ""),
        (one("DurationSeconds", "43200"), "", ""),
        (
            one("DurationSeconds", "899"),
            wrong,
            "greater than or equal to 900",
        ),
        (
            one("DurationSeconds", "43201"),
            wrong,
            "less than or equal to 43200",
        ),
        (one("DurationSeconds", "long"), wrong, "durationSeconds"),
        (one("SourceIdentity", "a"), wrong, "sourceIdentity"),
        (one("Policy", r#"{"Statement":[]}"#), "", ""),
        (one("Policy", &ones(2049)), wrong, "2048"),
        (one("Policy", "{"), "MalformedPolicyDocument", "JSON"),
        (tags(50), "", ""),
        (tags(51), wrong, "'tags'"),
        (one("Tags.member.1.Key", &ones(129)), wrong, "128"),
        (one("Tags.member.1.Key", "a!"), wrong, "tags.1.member.key"),
        (
            [
                one("Tags.member.1.Key", "Team"),
                one("Tags.member.2.Key", "team"),
            ]
            .concat(),
            wrong,
            "Duplicate tag keys",
        ),
        (
            one("TransitiveTagKeys.member.1", "team"),
            wrong,
            "transitive",
        ),
    ] {
        let pairs: Vec<_> = changes
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let reply = post(&sts, &assume(&pairs)).await;
        if code.is_empty() {
            assert_eq!(reply.status, 200, "{pairs:?}: {}", reply.body);
        } else {
            assert_eq!(reply.status, 400, "{pairs:?}");
            assert_eq!(element(&reply.body, "Code"), code, "{pairs:?}");
            let message = element(&reply.body, "Message");
            let message = message.replace("&apos;", "'");
            assert!(message.contains(words), "{pairs:?}: {message}");
        }
    }
    for (parameters, code) in [
        (form(&[]), "MissingAction"),
        (form(&[("Action", "GetSessionToken")]), "InvalidAction"),
        (
            form(&[("Action", "GetCallerIdentity"), ("Version", "2010-01-01")]),
            "InvalidAction",
        ),
    ] {
        assert_eq!(element(&post(&sts, &parameters).await.body, "Code"), code);
    }
    let long = post(&sts, &"x".repeat(300_000)).await;
    assert_eq!(long.status, 413);
}

#[tokio::test]
async fn signatures_are_checked() {
    let sts = checked().await;
    let body = form(&[("Action", "GetCallerIdentity")]);
    let old = SystemTime::now() - Duration::from_secs(1000);
    let early = SystemTime::now() + Duration::from_secs(1000);
    let user = || Signed::by("AKIAUSER", "secret", None);
    for (signed, status, outcome) in [
        (user(), 200, CALLER),
        (Signed::by("ASIANODE", "secret", Some("token")), 200, NODE),
        (
            Signed::by("AKIAUSER", "wrong", None),
            403,
            "SignatureDoesNotMatch",
        ),
        (
            Signed::by("AKIAOTHER", "secret", None),
            403,
            "InvalidClientTokenId",
        ),
        (
            Signed::by("ASIANODE", "secret", None),
            403,
            "InvalidClientTokenId",
        ),
        (
            Signed::by("ASIANODE", "secret", Some("other")),
            403,
            "InvalidClientTokenId",
        ),
        (
            Signed::by("AKIAUSER", "secret", Some("token")),
            403,
            "InvalidClientTokenId",
        ),
        (
            Signed {
                service: "s3",
                ..user()
            },
            403,
            "SignatureDoesNotMatch",
        ),
        (Signed { at: old, ..user() }, 403, "SignatureDoesNotMatch"),
        (
            Signed {
                at: early,
                ..user()
            },
            403,
            "SignatureDoesNotMatch",
        ),
    ] {
        let reply = signed.post(&sts, &body).await;
        assert_eq!(reply.status, status, "{outcome}: {}", reply.body);
        let name = if status == 200 { "Arn" } else { "Code" };
        assert_eq!(element(&reply.body, name), outcome);
    }

    let mut changed = user().request(&sts, &body);
    *changed.body_mut() = Full::from(form(&[("Action", "AssumeRole")]));
    assert_eq!(
        element(&send(changed).await.body, "Code"),
        "SignatureDoesNotMatch"
    );
    let mut added = user().request(&sts, &body);
    added
        .headers_mut()
        .insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(
        element(&send(added).await.body, "Code"),
        "SignatureDoesNotMatch"
    );
    for (header, code) in [
        (None, "MissingAuthenticationToken"),
        (Some("Basic eA=="), "IncompleteSignature"),
    ] {
        let headers: Vec<_> = header.map(|it| ("authorization", it)).into_iter().collect();
        let reply = call("POST", &sts.url(), &headers, &body).await;
        assert_eq!(element(&reply.body, "Code"), code);
    }
}

#[tokio::test]
async fn sessions_given_out_work_until_they_expire() {
    let sts = checked().await;
    let user = Signed::by("AKIAUSER", "secret", None);
    let xml = user
        .post(&sts, &assume(&[("DurationSeconds", "7200")]))
        .await
        .body;
    let session = Signed::by(
        element(&xml, "AccessKeyId"),
        element(&xml, "SecretAccessKey"),
        Some(element(&xml, "SessionToken")),
    );
    let whoami = form(&[("Action", "GetCallerIdentity")]);
    let who = session.post(&sts, &whoami).await.body;
    assert_eq!(element(&who, "Arn"), element(&xml, "Arn"));
    assert_eq!(element(&who, "UserId"), element(&xml, "AssumedRoleId"));

    let chained = session
        .post(&sts, &assume(&[("DurationSeconds", "3601")]))
        .await;
    assert_eq!(element(&chained.body, "Code"), "ValidationError");
    assert!(element(&chained.body, "Message").contains("role chaining"));
    assert_eq!(session.post(&sts, &assume(&[])).await.status, 200);

    sts.set_lifetime(Some(Duration::ZERO));
    let xml = user.post(&sts, &assume(&[])).await.body;
    let ended = Signed::by(
        element(&xml, "AccessKeyId"),
        element(&xml, "SecretAccessKey"),
        Some(element(&xml, "SessionToken")),
    );
    assert_eq!(
        element(&ended.post(&sts, &whoami).await.body, "Code"),
        "ExpiredToken"
    );
}

#[tokio::test]
async fn trust_of_each_role() {
    let sts = unchecked().await;
    let caller = "arn:aws:iam::123456789012:user/devkit";
    let refused = |action: &str| {
        format!("User: {caller} is not authorized to perform: sts:{action} on resource: {ROLE}")
    };
    let other = ("RoleArn", "arn:aws:iam::123456789012:role/other");

    sts.deny_role(ROLE);
    let reply = post(&sts, &assume(&[])).await;
    assert_eq!(reply.status, 403);
    assert_eq!(element(&reply.body, "Code"), "AccessDenied");
    assert_eq!(element(&reply.body, "Message"), refused("AssumeRole"));
    assert_eq!(post(&sts, &assume(&[other])).await.status, 200);
    sts.allow_role(ROLE);

    sts.require_external_id(ROLE, Some("customer-a"));
    for (id, status) in [("-", 403), ("customer-b", 403), ("customer-a", 200)] {
        assert_eq!(
            post(&sts, &assume(&[("ExternalId", id)])).await.status,
            status,
            "{id}"
        );
    }
    sts.require_external_id(ROLE, None);

    sts.deny_tagging(ROLE, true);
    let reply = post(&sts, &assume(&[("Tags.member.1.Key", "team")])).await;
    assert_eq!(element(&reply.body, "Message"), refused("TagSession"));
    sts.deny_tagging(ROLE, false);

    sts.set_max_session_duration(ROLE, 3600);
    let reply = post(&sts, &assume(&[("DurationSeconds", "3601")])).await;
    assert!(element(&reply.body, "Message").contains("MaxSessionDuration"));

    sts.fail_role(
        ROLE,
        Some(StsFailure::new(400, "PackedPolicyTooLarge", "too <big>").times(2)),
    );
    assert_eq!(post(&sts, &assume(&[other])).await.status, 200);
    for status in [400, 400, 200] {
        assert_eq!(post(&sts, &assume(&[])).await.status, status);
    }
}

#[tokio::test]
async fn failures_and_memory() {
    let sts = unchecked().await;
    sts.fail_with(Some(
        StsFailure::new(503, "ServiceUnavailable", "back & soon").times(1),
    ));
    let reply = post(&sts, &assume(&[("ExternalId", "customer-a")])).await;
    assert_eq!(reply.status, 503);
    assert_eq!(element(&reply.body, "Type"), "Receiver");
    assert_eq!(element(&reply.body, "Code"), "ServiceUnavailable");
    assert_eq!(element(&reply.body, "Message"), "back &amp; soon");
    assert_eq!(post(&sts, &assume(&[])).await.status, 200);
    sts.fail_with(Some(StsFailure::new(400, "Throttling", "Rate exceeded")));
    for _ in 0..2 {
        assert_eq!(
            element(&post(&sts, &assume(&[])).await.body, "Type"),
            "Sender"
        );
    }
    sts.fail_with(None);
    let changes = [
        ("DurationSeconds", "900"),
        ("Tags.member.1.Key", "a"),
        ("Tags.member.1.Value", "b"),
    ];
    assert!(
        post(&sts, &assume(&changes))
            .await
            .body
            .contains("<PackedPolicySize>")
    );

    let calls = sts.calls();
    assert_eq!((sts.count(), calls.len()), (5, 5));
    assert_eq!(calls[0].action, "AssumeRole");
    assert_eq!(calls[0].role_arn, ROLE);
    assert_eq!(calls[0].session_name, "default.app");
    assert_eq!(calls[0].external_id.as_deref(), Some("customer-a"));
    assert_eq!(calls[0].duration_seconds, None);
    assert_eq!(calls[4].duration_seconds, Some(900));
    assert_eq!(calls[4].tags, [("a".to_owned(), "b".to_owned())]);
}

#[tokio::test]
async fn counts_calls_in_flight() {
    let sts = Arc::new(unchecked().await);
    sts.set_latency(Duration::from_secs(3600));
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let sts = sts.clone();
            tokio::spawn(async move { post(&sts, &assume(&[])).await })
        })
        .collect();
    until("three calls at once", || sts.in_flight() == 3).await;
    waiting.iter().for_each(|call| call.abort());
    until("the cancelled calls are gone", || sts.in_flight() == 0).await;
    sts.set_latency(Duration::ZERO);
    assert_eq!(post(&sts, &assume(&[])).await.status, 200);
    assert_eq!((sts.max_in_flight(), sts.count()), (3, 4));
}

#[tokio::test]
async fn ends_when_dropped_and_frees_its_port() {
    let sts = unchecked().await;
    let addr = sts.addr();
    let mut open = tokio::net::TcpStream::connect(addr).await.unwrap();
    open.write_all(b"GET / HTTP/1.1\r\nhost: sts\r\n\r\n")
        .await
        .unwrap();
    assert!(open.read_u8().await.is_ok());
    drop(sts);
    let rest = tokio::time::timeout(super::DEADLINE, open.read_to_end(&mut vec![])).await;
    rest.expect("the connection ends").ok();
    let end = tokio::time::Instant::now() + super::DEADLINE;
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        assert!(tokio::time::Instant::now() < end, "still listening");
        tokio::task::yield_now().await;
    }
    let sts = Sts::start(addr, StsOptions::default()).await.unwrap();
    sts.stop().await;
    Sts::start(addr, StsOptions::default()).await.unwrap();
}

/// Tests that rolegate's client accepts responses and errors, and that its signatures are valid.
#[tokio::test]
async fn works_with_the_sdk() {
    let sts = checked().await;
    let client = |secret: &str| {
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .endpoint_url(sts.url())
            .credentials_provider(Credentials::new(
                "ASIANODE",
                secret,
                Some("token".into()),
                None,
                "test",
            ))
            .build();
        aws_sdk_sts::Client::from_conf(config)
    };
    let answer = client("secret")
        .assume_role()
        .role_arn(ROLE)
        .role_session_name("default.app")
        .send()
        .await
        .unwrap();
    assert!(
        answer
            .credentials
            .unwrap()
            .access_key_id
            .starts_with("ASIA")
    );
    let call = sts.calls().remove(0);
    assert_eq!(call.access_key_id.as_deref(), Some("ASIANODE"));
    assert_eq!(call.region.as_deref(), Some("eu-west-1"));

    let wrong = client("wrong")
        .get_caller_identity()
        .send()
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), Some("SignatureDoesNotMatch"));
    sts.deny_role(ROLE);
    let denied = client("secret")
        .assume_role()
        .role_arn(ROLE)
        .role_session_name("default.app");
    let denied = denied.send().await.unwrap_err();
    assert_eq!(denied.code(), Some("AccessDenied"));
    assert!(
        denied
            .message()
            .unwrap()
            .starts_with(&format!("User: {NODE} is not authorized"))
    );
}
