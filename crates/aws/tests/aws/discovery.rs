//! Detection of the AWS environment.

use std::time::Duration;

use rolegate_aws::identity::discover;
use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_aws::sts::{Sts, StsOptions};
use rolegate_core::decision::ReservedRole;
use rolegate_devkit as devkit;
use tokio::net::TcpListener;

use super::ANY;
use super::sts::{options, service};

const CALLER: &str = "arn:aws-cn:sts::123456789012:assumed-role/rolegate/session";

#[tokio::test]
async fn a_node_with_a_role_is_detected_completely() {
    let node = devkit::ImdsOptions {
        partition: "aws-cn".into(),
        region: "cn-north-1".into(),
        v2_only: true,
        ..devkit::ImdsOptions::default()
    };
    let metadata = devkit::Imds::start(ANY, node).await.unwrap();
    let sts = service(CALLER).await;
    let found = discover(
        &Sts::new(options(&sts.url())),
        &Imds::new(&metadata.url()).unwrap(),
    )
    .await;
    assert_eq!(found.node_role, Ok(Some("node".into())));
    assert_eq!(found.partition, Ok("aws-cn".into()));
    assert_eq!(found.region(), Some("cn-north-1"));
    assert!(found.instance.as_ref().unwrap().id.starts_with("i-"));
    assert_eq!(found.caller.as_ref().unwrap().arn, CALLER);
    let base = found.base_arn().unwrap();
    assert_eq!(base.as_str(), "arn:aws-cn:iam::123456789012:role/");
    let own = |name: &str| ReservedRole {
        account: Some("123456789012".into()),
        name: name.into(),
    };
    assert_eq!(found.reserved_roles(), [own("node"), own("rolegate")]);
}

#[tokio::test]
async fn a_node_without_a_role_is_not_an_error() {
    let node = devkit::ImdsOptions {
        node_role: None,
        ..devkit::ImdsOptions::default()
    };
    let metadata = devkit::Imds::start(ANY, node).await.unwrap();
    let sts = service(CALLER).await;
    let found = discover(
        &Sts::new(options(&sts.url())),
        &Imds::new(&metadata.url()).unwrap(),
    )
    .await;
    assert_eq!(found.node_role, Ok(None));
    assert_eq!(found.profile, Ok(None));
    assert_eq!(
        found.base_arn().unwrap().as_str(),
        "arn:aws:iam::123456789012:role/"
    );
}

#[tokio::test]
async fn a_failed_part_does_not_hide_the_others() {
    let unreachable = TcpListener::bind(ANY)
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let sts = service(CALLER).await;
    let found = discover(
        &Sts::new(options(&sts.url())),
        &Imds::new(&unreachable).unwrap(),
    )
    .await;
    assert!(matches!(found.node_role, Err(ImdsError::Unreachable(_))));
    assert_eq!(
        found.base_arn().unwrap().as_str(),
        "arn:aws-cn:iam::123456789012:role/"
    );

    let metadata = devkit::Imds::start(ANY, devkit::ImdsOptions::default())
        .await
        .unwrap();
    let imds = Imds::new(&metadata.url()).unwrap();
    let found = discover(&Sts::new(options(&format!("http://{unreachable}"))), &imds).await;
    assert_eq!(found.caller.as_ref().unwrap_err().code, "Unreachable");
    assert_eq!(found.node_role, Ok(Some("node".into())));
}

#[tokio::test]
async fn discovery_has_a_timeout() {
    let metadata = devkit::Imds::start(ANY, devkit::ImdsOptions::default())
        .await
        .unwrap();
    let sts = service(CALLER).await;
    sts.set_latency(Duration::from_secs(3600));
    let patient = StsOptions {
        timeout: Duration::from_secs(3600),
        ..options(&sts.url())
    };
    let imds = Imds::new(&metadata.url()).unwrap();
    let found = discover(&Sts::new(patient), &imds).await;
    assert_eq!(found.caller.as_ref().unwrap_err().code, "Timeout");
    assert_eq!(found.node_role, Ok(Some("node".into())));
}
