//! Intermediate roles: all calls use the last one's session, and no pod gets any of them.

use rolegate_aws::chain::IntermediateRole;
use rolegate_aws::identity::discover;
use rolegate_aws::imds::Imds;
use rolegate_aws::sts::{Sts, StsOptions};
use rolegate_core::arn::RoleArn;
use rolegate_core::session::{FailureKind, SessionKey, SessionLimits, TargetRole};
use rolegate_devkit as devkit;

use super::ANY;
use super::sts::{NODE, ROLE, SECRET, TOKEN, USER, key, options, service};

const FIRST: &str = "arn:aws:iam::123456789012:role/rolegate/broker";
const SECOND: &str = "arn:aws:iam::210987654321:role/hub";
/// Their names in trust policies: STS does not report the path of a session's role.
const FIRST_PRINCIPAL: &str = "arn:aws:iam::123456789012:role/broker";

fn link(role: &str, external_id: Option<&str>) -> IntermediateRole {
    IntermediateRole {
        role: RoleArn::parse(role).unwrap(),
        external_id: external_id.map(Into::into),
    }
}

fn chained(service: &devkit::Sts) -> Sts {
    Sts::new(StsOptions {
        chain: vec![link(FIRST, None), link(SECOND, Some("hub-id"))],
        ..options(&service.url())
    })
}

/// Starts an STS where each role trusts only the previous one.
async fn fixture() -> devkit::Sts {
    let service = service(NODE).await;
    service.trust_only(FIRST, &["arn:aws:iam::123456789012:role/node"]);
    service.trust_only(SECOND, &[FIRST_PRINCIPAL]);
    service.require_external_id(SECOND, Some("hub-id"));
    service.trust_only(ROLE, &[SECOND]);
    service
}

#[tokio::test]
async fn pods_roles_are_assumed_by_the_last_of_the_chain() {
    let service = fixture().await;
    let direct = Sts::new(options(&service.url()));
    direct.assume_role(&key()).await.unwrap_err();

    let sts = chained(&service);
    let before = service.count();
    let session = sts.assume_role(&key()).await.unwrap();
    assert!(session.access_key_id.starts_with("ASIA"));
    sts.assume_role(&key()).await.unwrap();
    let calls = service.calls().split_off(usize::try_from(before).unwrap());
    let roles: Vec<_> = calls.iter().map(|call| call.role_arn.as_str()).collect();
    assert_eq!(roles, [FIRST, SECOND, ROLE, ROLE], "each link is kept");
    let ids: Vec<_> = calls
        .iter()
        .map(|call| call.external_id.as_deref())
        .collect();
    assert_eq!(ids[..2], [None, Some("hub-id")]);
    assert!(calls.iter().all(|call| call.duration_seconds <= Some(3600)));
    // A role of another account with an external ID is assumed the same way.
    let customer = "arn:aws:iam::310987654321:role/customer";
    service.trust_only(customer, &[SECOND]);
    service.require_external_id(customer, Some("customer-a"));
    let theirs = |id: Option<&str>| SessionKey {
        role: RoleArn::parse(customer).unwrap(),
        external_id: id.map(Into::into),
        ..key()
    };
    sts.assume_role(&theirs(Some("customer-a"))).await.unwrap();
    let failure = sts.assume_role(&theirs(None)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Final, "{failure}");
    assert!(failure.message.contains("trust policy"), "{failure}");
    // No advice about a missing external ID.
    assert!(!failure.message.contains("external ID"), "{failure}");
}

#[tokio::test]
async fn no_pod_may_have_a_role_of_the_chain() {
    let service = fixture().await;
    let metadata = devkit::Imds::start(ANY, devkit::ImdsOptions::default());
    let metadata = metadata.await.unwrap();
    metadata.fail_with(Some(404));
    let imds = Imds::new(&metadata.url()).unwrap();
    let found = discover(&chained(&service), &imds).await;
    assert_eq!(found.caller.as_ref().unwrap().role_name(), Some("hub"));
    assert_eq!(found.max_session_seconds(), Some(3600));
    let own = found.reserved_roles();
    for role in [FIRST, SECOND, "arn:aws:iam::123456789012:role/node"] {
        let role = RoleArn::parse(role).unwrap();
        assert!(own.iter().any(|own| own.is(&role)), "{role} in {own:?}");
    }
    let pods = RoleArn::parse(ROLE).unwrap();
    assert!(!own.iter().any(|own| own.is(&pods)));
    // A user's own calls may request whatever duration each role allows.
    let user = super::sts::service(USER).await;
    let found = discover(&Sts::new(options(&user.url())), &imds).await;
    assert_eq!(found.max_session_seconds(), None);
}

#[tokio::test]
async fn a_chain_that_breaks_is_ours_to_mend() {
    let service = fixture().await;
    service.deny_role(SECOND);
    let sts = chained(&service);
    let before = service.count();
    for _ in 0..10 {
        let failure = sts.assume_role(&key()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Temporary, "{failure}");
        assert_eq!(failure.code, "IntermediateRole");
        let told = "rolegate cannot assume its intermediate role hub: AccessDenied";
        assert!(failure.message.contains(told), "{failure}");
        let shown = format!("{failure:?} {failure} {sts:?}");
        assert!(!shown.contains(SECRET) && !shown.contains(TOKEN), "{shown}");
    }
    assert_eq!(service.count(), before + 2, "one try, however many ask");

    service.allow_role(SECOND);
    let throttled = devkit::StsFailure::new(400, "Throttling", "Rate exceeded");
    service.fail_role(FIRST, Some(throttled));
    let failure = chained(&service).assume_role(&key()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Throttled, "{failure}");
}

#[tokio::test]
async fn inherited_tags_are_distinguished() {
    let service = service(USER).await;
    let tags = SessionLimits {
        tags: [("kubernetes-namespace", "rolegate")].into_iter().collect(),
        transitive: true,
        ..SessionLimits::default()
    };
    let tags = SessionKey {
        limits: Some(tags.into()),
        target: None,
        ..key()
    };
    // As issued by EKS Pod Identity.
    let own = Sts::new(options(&service.url()));
    let own = own.assume_role(&tags).await.unwrap();
    let own = aws_credential_types::Credentials::new(
        &*own.access_key_id,
        own.secret_access_key(),
        Some(own.session_token().to_owned()),
        None,
        "test",
    );
    let sts = Sts::new(StsOptions {
        credentials: Some(aws_credential_types::provider::SharedCredentialsProvider::new(own)),
        ..options(&service.url())
    });
    let failure = sts.assume_role(&tags).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Final, "{failure}");
    assert!(failure.message.contains("EKS Pod Identity"), "{failure}");
}

#[tokio::test]
async fn a_target_role_is_assumed_by_the_first_role() {
    const TARGET: &str = "arn:aws:iam::310987654321:role/target";
    const POLICY: &str = r#"{"Version":"2012-10-17","Statement":[]}"#;
    let service = service(NODE).await;
    // Without the path, as above.
    service.trust_only(TARGET, &["arn:aws:iam::123456789012:role/reader"]);
    service.require_external_id(TARGET, Some("customer"));
    let limits = SessionLimits {
        tags: [("team", "shop")].into_iter().collect(),
        source_identity: Some("shop.api".into()),
        policy: Some(POLICY.into()),
        ..SessionLimits::default()
    };
    let target = |external_id: Option<&str>| SessionKey {
        limits: Some(limits.clone().into()),
        target: Some(std::sync::Arc::new(TargetRole {
            role: RoleArn::parse(TARGET).unwrap(),
            external_id: external_id.map(Into::into),
        })),
        ..key()
    };
    let sts = Sts::new(options(&service.url()));
    let before = usize::try_from(service.count()).unwrap();
    let session = sts.assume_role(&target(Some("customer"))).await.unwrap();
    let calls = service.calls().split_off(before);
    let [first, last] = &*calls else {
        panic!("{calls:?}")
    };
    assert_eq!((&*first.role_arn, &*last.role_arn), (ROLE, TARGET));
    assert_eq!(first.session_name, last.session_name);
    assert_eq!(
        (first.external_id.as_deref(), last.external_id.as_deref()),
        (Some("customer-a"), Some("customer"))
    );
    // The tags reach the target role, and the policy restricts its session alone.
    assert_eq!(first.transitive_tag_keys, ["team"]);
    assert_eq!((first.tags.len(), last.tags.len()), (1, 0));
    assert_eq!(first.source_identity.as_deref(), Some("shop.api"));
    assert_eq!(last.source_identity, None);
    assert_eq!(
        (&first.policy, last.policy.as_deref()),
        (&None, Some(POLICY))
    );
    assert_ne!(last.access_key_id, first.access_key_id);
    assert_ne!(last.access_key_id.as_deref(), Some(&*session.access_key_id));
    // The error names the target role.
    let failure = sts.assume_role(&target(None)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Final, "{failure}");
}
