//! Sessions from STS, and each error.

use std::collections::HashMap;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{SharedCredentialsProvider, future};
use rolegate_aws::sts::{Sts, StsOptions};
use rolegate_core::arn::RoleArn;
use rolegate_core::session::{Failure, FailureKind, SessionKey};
use rolegate_devkit as devkit;
use rolegate_runtime::clock::Clock;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::ANY;
use super::raw::{Raw, answer};

pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/team/reader";
pub(crate) const SECRET: &str = "our-own-secret-access-key";
pub(crate) const TOKEN: &str = "our-own-session-token";

pub(crate) fn key() -> SessionKey {
    SessionKey {
        role: RoleArn::parse(ROLE).unwrap(),
        name: "payments.api".into(),
        external_id: Some("customer-a".into()),
        duration_seconds: 1800,
        limits: None,
        target: None,
    }
}

pub(crate) fn options(url: &str) -> StsOptions {
    let own = Credentials::new("AKIDOWN", SECRET, Some(TOKEN.into()), None, "test");
    StsOptions {
        region: Some("eu-west-1".into()),
        endpoint_url: Some(url.into()),
        credentials: Some(SharedCredentialsProvider::new(own)),
        ..StsOptions::default()
    }
}

/// Starts a service that checks signatures, called as `caller`.
pub(crate) async fn service(caller: &str) -> devkit::Sts {
    let own = devkit::AccessKey {
        secret_access_key: SECRET.into(),
        session_token: Some(TOKEN.into()),
        caller_arn: caller.into(),
    };
    let options = devkit::StsOptions {
        keys: Some(HashMap::from([("AKIDOWN".into(), own)])),
        ..devkit::StsOptions::default()
    };
    devkit::Sts::start(ANY, options).await.unwrap()
}

pub(crate) const USER: &str = "arn:aws:iam::123456789012:user/rolegate";
pub(crate) const NODE: &str = "arn:aws:sts::123456789012:assumed-role/node/i-0";

async fn failure(options: StsOptions) -> Failure {
    Sts::new(options).assume_role(&key()).await.unwrap_err()
}

#[tokio::test]
async fn the_call_is_signed_and_made_from_the_key() {
    let service = service(USER).await;
    let clock = Clock::system();
    let before = clock.now();
    let session = Sts::new(options(&service.url()))
        .assume_role(&key())
        .await
        .unwrap();

    let [call] = &service.calls()[..] else {
        panic!("{:?}", service.calls())
    };
    assert_eq!(call.role_arn, ROLE);
    assert_eq!(call.session_name, "payments.api");
    assert_eq!(call.external_id.as_deref(), Some("customer-a"));
    assert_eq!(call.duration_seconds, Some(1800));
    assert_eq!(call.region.as_deref(), Some("eu-west-1"));
    assert_eq!(call.access_key_id.as_deref(), Some("AKIDOWN"));
    assert!(call.tags.is_empty() && call.policy.is_none() && call.policy_arns.is_empty());

    assert!(session.access_key_id.starts_with("ASIA"), "{session:?}");
    assert!(!session.secret_access_key().is_empty() && !session.session_token().is_empty());
    let validity = session.validity;
    assert!(validity.not_before >= before && validity.not_before <= clock.now());
    let seconds = validity
        .not_before
        .duration_until(validity.not_after)
        .as_secs();
    assert!((1790..=1810).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn the_session_works_and_belongs_to_the_role() {
    let service = service(USER).await;
    let session = Sts::new(options(&service.url()))
        .assume_role(&key())
        .await
        .unwrap();
    let theirs = Credentials::new(
        &*session.access_key_id,
        session.secret_access_key(),
        Some(session.session_token().to_owned()),
        None,
        "test",
    );
    let identity = Sts::new(StsOptions {
        credentials: Some(SharedCredentialsProvider::new(theirs)),
        ..options(&service.url())
    })
    .caller_identity()
    .await
    .unwrap();
    assert_eq!(identity.account, "123456789012");
    assert_eq!(identity.role_name(), Some("reader"));
    assert_eq!(identity.partition(), Some("aws"));
    assert!(identity.arn.ends_with("/payments.api"), "{identity:?}");
}

#[tokio::test]
async fn without_an_external_id_none_is_sent() {
    let service = service(USER).await;
    let key = SessionKey {
        external_id: None,
        ..key()
    };
    Sts::new(options(&service.url()))
        .assume_role(&key)
        .await
        .unwrap();
    assert_eq!(service.calls()[0].external_id, None);
}

#[tokio::test]
async fn refusals_are_classified_and_not_retried() {
    use FailureKind::{Final, Temporary, Throttled};
    let service = service(USER).await;
    let sts = Sts::new(options(&service.url()));
    for (status, code, kind) in [
        (403, "AccessDenied", Final),
        (400, "MalformedPolicyDocument", Final),
        (400, "PackedPolicyTooLarge", Final),
        (403, "RegionDisabledException", Final),
        (400, "ValidationError", Final),
        (400, "InvalidParameterValue", Final),
        (400, "Throttling", Throttled),
        (503, "RequestLimitExceeded", Throttled),
        (429, "Anything", Throttled),
        (500, "InternalFailure", Temporary),
        (503, "ServiceUnavailable", Temporary),
        (403, "ExpiredToken", Temporary),
        (403, "InvalidClientTokenId", Temporary),
        (403, "SignatureDoesNotMatch", Temporary),
    ] {
        let before = service.count();
        service.fail_with(Some(devkit::StsFailure::new(status, code, "a reason")));
        let failure = sts.assume_role(&key()).await.unwrap_err();
        assert_eq!(
            (failure.kind, failure.code.as_str()),
            (kind, code),
            "{failure}"
        );
        assert_eq!(service.count(), before + 1, "retried {code}");
    }
}

#[tokio::test]
async fn a_wrong_secret_is_ours_to_mend() {
    let service = service(USER).await;
    let wrong = Credentials::new("AKIDOWN", "another", Some(TOKEN.into()), None, "test");
    let failure = failure(StsOptions {
        credentials: Some(SharedCredentialsProvider::new(wrong)),
        ..options(&service.url())
    })
    .await;
    assert_eq!(failure.kind, FailureKind::Temporary);
    assert_eq!(failure.code, "SignatureDoesNotMatch");
    assert!(
        failure.message.contains("rolegate's own credentials"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_denied_role_names_the_principal_to_trust() {
    let service = service(USER).await;
    service.require_external_id(ROLE, Some("another"));
    let failure = failure(options(&service.url())).await;
    assert_eq!(failure.kind, FailureKind::Final);
    assert!(
        failure.message.contains(USER) && failure.message.contains("external ID"),
        "{failure}"
    );
}

#[tokio::test]
async fn too_long_durations_say_what_to_set() {
    let by_user = service(USER).await;
    by_user.set_max_session_duration(ROLE, 900);
    let failure = failure(options(&by_user.url())).await;
    assert_eq!(failure.kind, FailureKind::Final);
    assert!(
        failure
            .message
            .contains("raise MaxSessionDuration of role reader"),
        "{failure}"
    );

    let by_role = service(NODE).await;
    let long = SessionKey {
        duration_seconds: 7200,
        limits: None,
        target: None,
        ..key()
    };
    let failure = Sts::new(options(&by_role.url()))
        .assume_role(&long)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Final);
    assert!(failure.message.contains("3600 s or less"), "{failure}");
}

#[tokio::test]
async fn a_session_that_is_over_already_is_a_matter_of_clocks() {
    let service = service(USER).await;
    let ahead = Clock::tokio(Clock::system().now() + Duration::from_secs(86_400));
    let failure = failure(StsOptions {
        clock: ahead,
        ..options(&service.url())
    })
    .await;
    assert_eq!(
        (failure.kind, failure.code.as_str()),
        (FailureKind::Temporary, "ClockSkew")
    );
    assert!(failure.message.contains("clock"), "{failure}");
}

#[tokio::test]
async fn silence_ends_at_the_limit() {
    let service = service(USER).await;
    service.set_latency(Duration::from_secs(3600));
    let stalled = Raw::start(|_| "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<".into()).await;
    for url in [service.url(), format!("http://{}", stalled.addr)] {
        let failure = failure(StsOptions {
            timeout: Duration::from_millis(300),
            ..options(&url)
        })
        .await;
        assert_eq!(
            (failure.kind, failure.code.as_str()),
            (FailureKind::Temporary, "Timeout")
        );
    }
}

#[tokio::test]
async fn credentials_that_never_come_end_at_the_limit_too() {
    #[derive(Debug)]
    struct PendingCredentials;
    impl aws_credential_types::provider::ProvideCredentials for PendingCredentials {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(std::future::pending())
        }
    }
    let service = service(USER).await;
    let failure = failure(StsOptions {
        timeout: Duration::from_millis(300),
        credentials: Some(SharedCredentialsProvider::new(PendingCredentials)),
        ..options(&service.url())
    })
    .await;
    assert_eq!(
        (failure.kind, failure.code.as_str()),
        (FailureKind::Temporary, "Timeout")
    );
}

#[tokio::test]
async fn an_unreachable_service_is_temporary() {
    let port = TcpListener::bind(ANY).await.unwrap().local_addr().unwrap();
    let failure = failure(options(&format!("http://{port}"))).await;
    assert_eq!(
        (failure.kind, failure.code.as_str()),
        (FailureKind::Temporary, "Unreachable")
    );
    assert!(failure.message.contains("refused"), "{failure}");
}

#[tokio::test]
async fn no_credentials_of_our_own_are_temporary() {
    #[derive(Debug)]
    struct NoCredentials;
    impl aws_credential_types::provider::ProvideCredentials for NoCredentials {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("none here")))
        }
    }
    let service = service(USER).await;
    let failure = failure(StsOptions {
        credentials: Some(SharedCredentialsProvider::new(NoCredentials)),
        ..options(&service.url())
    })
    .await;
    assert_eq!(
        (failure.kind, failure.code.as_str()),
        (FailureKind::Temporary, "NoCredentials")
    );
    assert_eq!(service.count(), 0);
}

#[tokio::test]
async fn responses_of_other_servers_are_temporary() {
    let empty = "<AssumeRoleResponse><AssumeRoleResult/></AssumeRoleResponse>";
    for (status, body) in [
        (403, "<html>a proxy</html>"),
        (502, ""),
        (200, "nonsense"),
        (200, empty),
    ] {
        let service = Raw::start(move |_| answer(status, "", body)).await;
        let failure = failure(options(&format!("http://{}", service.addr))).await;
        assert_eq!(failure.kind, FailureKind::Temporary, "{status} {failure}");
    }
}

#[tokio::test]
async fn https_endpoints_use_tls() {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let first_byte = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap()
    });
    let failure = failure(options(&url)).await;
    let first_byte = tokio::time::timeout(Duration::from_secs(10), first_byte).await;
    assert_eq!(first_byte.unwrap().unwrap(), 0x16, "no TLS handshake");
    assert_eq!(
        (failure.kind, failure.code.as_str()),
        (FailureKind::Temporary, "Unreachable")
    );
}
