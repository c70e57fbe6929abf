//! Trust policies, inherited tags and size limits in role chains.

use rolegate_devkit::{Sts, StsOptions};

use super::ANY;
use super::sts::{ROLE, Signed, assume, checked, element, post, unchecked};

const NODE_ROLE: &str = "arn:aws:iam::123456789012:role/node";

fn node<'a>() -> Signed<'a> {
    Signed::by("ASIANODE", "secret", Some("token"))
}

fn user<'a>() -> Signed<'a> {
    Signed::by("AKIAUSER", "secret", None)
}

#[tokio::test]
async fn a_trust_policy_names_users_and_roles() {
    let sts = checked().await;
    sts.trust_only(ROLE, &[NODE_ROLE]);
    assert_eq!(node().post(&sts, &assume(&[])).await.status, 200);
    let refused = user().post(&sts, &assume(&[])).await;
    assert_eq!(element(&refused.body, "Code"), "AccessDenied");
    sts.trust_only(ROLE, &[]);
    assert_eq!(user().post(&sts, &assume(&[])).await.status, 200);

    sts.deny_source_identity(ROLE, true);
    let refused = user()
        .post(&sts, &assume(&[("SourceIdentity", "default.app")]))
        .await;
    let message = element(&refused.body, "Message");
    assert!(message.contains("sts:SetSourceIdentity"), "{message}");
    assert_eq!(user().post(&sts, &assume(&[])).await.status, 200);
}

#[tokio::test]
async fn transitive_tags_stay_and_cannot_be_set_again() {
    let sts = checked().await;
    let tags = [
        ("Tags.member.1.Key", "team"),
        ("Tags.member.1.Value", "payments"),
        ("Tags.member.2.Key", "passing"),
        ("Tags.member.2.Value", "x"),
        ("TransitiveTagKeys.member.1", "team"),
    ];
    let first = user().post(&sts, &assume(&tags)).await.body;
    let chained = Signed::by(
        element(&first, "AccessKeyId"),
        element(&first, "SecretAccessKey"),
        Some(element(&first, "SessionToken")),
    );
    let again = |key: &'static str| assume(&[("Tags.member.1.Key", key)]);
    let refused = chained.post(&sts, &again("Team")).await;
    assert_eq!(element(&refused.body, "Code"), "InvalidParameterValue");
    assert_eq!(chained.post(&sts, &again("passing")).await.status, 200);
    // A call without tags still has inherited ones.
    sts.deny_tagging(ROLE, true);
    let refused = chained.post(&sts, &assume(&[])).await;
    assert!(element(&refused.body, "Message").contains("sts:TagSession"));
}

#[tokio::test]
async fn what_is_too_large_says_by_how_much() {
    let sts = unchecked().await;
    let value = "x".repeat(256);
    let names: Vec<_> = (1..=17)
        .map(|n| {
            let name = |part| format!("Tags.member.{n}.{part}");
            (name("Key"), format!("key-{n}"), name("Value"))
        })
        .collect();
    let mut tags = Vec::new();
    for (key_name, key, value_name) in &names {
        tags.push((key_name.as_str(), key.as_str()));
        tags.push((value_name.as_str(), value.as_str()));
    }
    let refused = post(&sts, &assume(&tags)).await;
    assert_eq!(element(&refused.body, "Code"), "PackedPolicyTooLarge");
    assert_eq!(
        element(&refused.body, "Message"),
        "Packed size of session tags consumes 108% of allotted space."
    );
    assert_eq!(post(&sts, &assume(&tags[..20])).await.status, 200);
}

#[tokio::test]
async fn a_quota_throttles_what_is_beyond() {
    let sts = Sts::start(ANY, StsOptions::default()).await.unwrap();
    sts.set_quota(Some(0));
    let refused = post(&sts, &assume(&[])).await;
    assert_eq!(element(&refused.body, "Code"), "Throttling");
    sts.set_quota(None);
    assert_eq!(post(&sts, &assume(&[])).await.status, 200);
}
