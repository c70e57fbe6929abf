//! The brokers' certificate: the controller creates it if the cluster has brokers, and publishes
//! its authorities to agents.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use rolegate_controller::certificates::SelfSigned;
use rolegate_testkit::eventually;

use super::controller::{ControllerFixture, DEADLINE};

const NAMESPACE: &str = "broker-certificate";

#[tokio::test]
async fn rule_11_the_brokers_certificate_is_made_with_their_service_and_renewed_without_a_gap() {
    let fixture = ControllerFixture::new(NAMESPACE).await;
    let broker = SelfSigned {
        lifetime: Duration::from_secs(20),
        settle: Duration::from_secs(2),
        ..SelfSigned::of_broker(NAMESPACE)
    };
    let controller = fixture.controller_of_broker("only", broker).await;
    let admin = || fixture.cluster.admin().unwrap();
    let secrets = Api::<Secret>::namespaced(admin(), NAMESPACE);
    let maps = Api::<ConfigMap>::namespaced(admin(), NAMESPACE);
    eventually(DEADLINE, async || {
        ensure!(controller.readiness().is_ready(), "not ready yet");
        Ok(())
    })
    .await
    .unwrap();
    let secret = secrets.get_opt("rolegate-broker-tls").await.unwrap();
    assert!(secret.is_none(), "made though there is no broker");

    let manifest = include_str!("broker_certificate.yaml");
    fixture.cluster.apply_manifest(manifest).await.unwrap();
    let look = async || {
        let secret = secrets.get("rolegate-broker-tls").await?;
        let data = secret.data.context("an empty Secret")?;
        let value = |key: &str| anyhow::Ok(String::from_utf8(data[key].0.clone())?);
        let map = maps.get("rolegate-broker-ca").await?;
        let told = map.data.context("an empty ConfigMap")?["ca.crt"].clone();
        anyhow::Ok((value("tls.crt")?, value("ca.crt")?, told))
    };
    let (first, ..) = eventually(Duration::from_secs(180), look).await.unwrap();
    // Each served certificate is issued by an authority that was published to agents before.
    let mut seen = BTreeSet::from([first]);
    let mut most = 0;
    let renewed = async {
        while seen.len() < 3 {
            let (certificate, authorities, told) = look().await.unwrap();
            most = most.max(told.matches("BEGIN CERTIFICATE").count());
            let newest = authorities
                .split_inclusive("-----END CERTIFICATE-----")
                .next();
            assert!(
                told.contains(newest.unwrap().trim()),
                "not told of what is served"
            );
            seen.insert(certificate);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let renewed = tokio::time::timeout(DEADLINE, renewed).await;
    renewed.expect("it is not renewed");
    assert!(most >= 2, "old and new are never trusted together");
    controller.stop(Duration::from_secs(10)).await;
}
