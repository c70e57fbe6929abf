//! Session tags, policies and source identity are sent, and an error names them if STS or a trust
//! policy rejects them.

use std::sync::Arc;

use rolegate_aws::sts::Sts;
use rolegate_core::session::{
    Failure, FailureKind, MissingAction, RefusalCause, SessionKey, SessionLimits,
};
use rolegate_devkit as devkit;

use super::sts::{ROLE, USER, key, options, service};

fn with(limits: SessionLimits) -> SessionKey {
    SessionKey {
        limits: Some(Arc::new(limits)),
        target: None,
        ..key()
    }
}

fn tagged() -> SessionLimits {
    SessionLimits {
        tags: [
            ("team", "payments"),
            ("eks-cluster-name", "prod-1"),
            ("kubernetes-namespace", "payments"),
        ]
        .into_iter()
        .collect(),
        ..SessionLimits::default()
    }
}

async fn refused(service: &devkit::Sts, limits: SessionLimits) -> Failure {
    let sts = Sts::new(options(&service.url()));
    let failure = sts.assume_role(&with(limits)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Final, "{failure}");
    failure
}

#[tokio::test]
async fn attribution_of_sessions_is_sent() {
    let service = service(USER).await;
    let arn = "arn:aws:iam::aws:policy/ReadOnlyAccess";
    let limits = SessionLimits {
        transitive: true,
        source_identity: Some("payments.api".into()),
        policy_arns: vec![arn.into()],
        policy: Some(r#"{"Version":"2012-10-17","Statement":[]}"#.into()),
        ..tagged()
    };
    let sts = Sts::new(options(&service.url()));
    sts.assume_role(&with(limits)).await.unwrap();
    sts.assume_role(&with(tagged())).await.unwrap();
    let calls = service.calls();
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let tags = [
        tag("eks-cluster-name", "prod-1"),
        tag("kubernetes-namespace", "payments"),
        tag("team", "payments"),
    ];
    assert_eq!(calls[0].tags, tags);
    let keys = ["eks-cluster-name", "kubernetes-namespace", "team"];
    assert_eq!(calls[0].transitive_tag_keys, keys);
    assert_eq!(calls[0].source_identity.as_deref(), Some("payments.api"));
    assert_eq!(calls[0].policy_arns, [arn]);
    assert!(calls[0].policy.as_deref().unwrap().contains("2012-10-17"));
    assert_eq!(calls[1].tags, tags);
    assert!(calls[1].transitive_tag_keys.is_empty() && calls[1].source_identity.is_none());
}

#[tokio::test]
async fn a_trust_policy_without_tag_session_is_named() {
    let service = service(USER).await;
    service.deny_tagging(ROLE, true);
    let failure = refused(&service, tagged()).await;
    let told = "the session has tags, so the trust policy of role reader must allow rolegate \
                sts:TagSession";
    assert!(failure.message.contains(told), "{failure}");
    assert_eq!(
        failure.cause,
        Some(RefusalCause::Missing(MissingAction::TagSession))
    );
    // STS does not say what is missing, so the error lists what was sent.
    service.deny_role(ROLE);
    let failure = refused(&service, tagged()).await;
    assert!(failure.message.contains("with sts:TagSession"), "{failure}");
    let untrusted = RefusalCause::Untrusted { external_id: true };
    assert_eq!(failure.cause, Some(untrusted));
    let failure = refused(&service, SessionLimits::default()).await;
    assert!(!failure.message.contains("TagSession"), "{failure}");
}

#[tokio::test]
async fn a_trust_policy_without_set_source_identity_is_named() {
    let service = service(USER).await;
    service.deny_source_identity(ROLE, true);
    let marked = SessionLimits {
        source_identity: Some("payments.api".into()),
        ..SessionLimits::default()
    };
    let failure = refused(&service, marked).await;
    let told = "role reader must allow rolegate sts:SetSourceIdentity";
    assert!(failure.message.contains(told), "{failure}");
    assert_eq!(
        failure.cause,
        Some(RefusalCause::Missing(MissingAction::SetSourceIdentity))
    );
}

#[tokio::test]
async fn oversized_sessions_are_reported_with_their_size() {
    let service = service(USER).await;
    let tags = (0..17).map(|n| (format!("key-{n:02}"), "x".repeat(256)));
    let large = SessionLimits {
        tags: tags.collect(),
        ..SessionLimits::default()
    };
    let failure = refused(&service, large).await;
    assert_eq!(failure.code, "PackedPolicyTooLarge");
    assert!(failure.message.contains("17 tags"), "{failure}");
    assert!(
        failure.message.contains("use 108 % of the packed size"),
        "{failure}"
    );
}
