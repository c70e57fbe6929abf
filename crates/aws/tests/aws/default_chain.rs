//! Defaults from the environment and the node: Region, credentials, endpoint.
//!
//! The test runs itself again as a child process, whose environment it can set.

use std::collections::HashMap;
use std::time::Duration;

use http::Method;
use rolegate_aws::sts::{Sts, StsOptions};
use rolegate_devkit as devkit;
use tokio::process::Command;

use super::ANY;

const TEST: &str = "default_chain::late_region_and_credentials_of_the_node_are_found";
const CHILD: &str = "ROLEGATE_TEST_CHILD";
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn late_region_and_credentials_of_the_node_are_found() {
    if std::env::var_os(CHILD).is_some() {
        return child().await;
    }
    let metadata = devkit::Imds::start(ANY, devkit::ImdsOptions::default())
        .await
        .unwrap();
    let sts_options = devkit::StsOptions {
        keys: Some(HashMap::from([metadata.node_key()])),
        ..devkit::StsOptions::default()
    };
    let sts = devkit::Sts::start(ANY, sts_options).await.unwrap();
    metadata.fail_with(Some(403));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture"])
        .env_clear()
        .env(CHILD, "1")
        .env("HOME", "/nonexistent")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url())
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        // Plain requests must not use a proxy, which would see the node's credentials.
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let asked = async {
        while !metadata
            .requests()
            .iter()
            .any(|request| request.method == Method::PUT)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.unwrap();
    metadata.fail_with(None);
    let status = tokio::time::timeout(DEADLINE, child.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(status.success());
    let call = sts.calls().pop().unwrap();
    assert_eq!(call.region.as_deref(), Some("eu-west-1"));
    assert_eq!(
        call.access_key_id.as_deref(),
        Some(devkit::NODE_ACCESS_KEY_ID)
    );
}

async fn child() {
    let sts = Sts::new(StsOptions::default());
    let first = sts.caller_identity().await.unwrap_err();
    assert_eq!(first.code, "NoRegion", "{first}");
    let found = async {
        loop {
            match sts.caller_identity().await {
                Ok(identity) => return identity,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let identity = tokio::time::timeout(DEADLINE, found).await.unwrap();
    assert_eq!(identity.role_name(), Some("node"));
}
