//! The MutatingWebhookConfiguration, which `rolegate controller` creates, updates and deletes with
//! the rights of the shipped manifests.

use anyhow::{Context, ensure};
use http::StatusCode;
use rolegate_testkit::admission::HOME;
use rolegate_testkit::{Cluster, Rolegate, eventually};
use serde_json::{Value, json};

use super::fixture::{DEADLINE, Fixture, MUTATING};

/// Starts the controller with these flags.
async fn controller(cluster: &Cluster, flags: &[&str]) -> Rolegate {
    let token = cluster
        .service_account_token(HOME, "rolegate-controller")
        .await;
    let kubeconfig = cluster
        .kubeconfig_for_token("controller", &token.unwrap())
        .unwrap();
    let namespace = format!("--namespace={HOME}");
    let flags = [
        &["controller", &*namespace, "--metrics-address=127.0.0.1:0"],
        flags,
    ]
    .concat();
    Rolegate::spawn(&flags, [("ROLEGATE_KUBECONFIG", kubeconfig)]).unwrap()
}

#[tokio::test]
async fn the_controller_registers_the_injection_and_removes_it() {
    let fixture = Fixture::installed().await.unwrap();
    // There is no controller of EndpointSlices: the webhook's Service has this endpoint.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "rolegate-admission-a", "namespace": HOME,
            "labels": {"kubernetes.io/service-name": "rolegate-admission"}},
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}],
    });
    fixture
        .cluster
        .apply_manifest(&slice.to_string())
        .await
        .unwrap();

    let mut process =
        controller(&fixture.cluster, &["--inject", "--require-injection=audit"]).await;
    let registered = process
        .until(DEADLINE, async || {
            fixture.driver.get(MUTATING).await?.object()
        })
        .await
        .unwrap();
    let webhooks = registered["webhooks"].as_array().unwrap();
    let policies: Vec<_> = webhooks
        .iter()
        .map(|webhook| &webhook["failurePolicy"])
        .collect();
    assert_eq!(policies, ["Fail", "Ignore"]);
    for webhook in webhooks {
        let client = &webhook["clientConfig"];
        assert_eq!(client["service"]["path"], "/mutate");
        assert!(client["caBundle"].is_string(), "{webhook}");
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
    }
    assert_eq!(
        registered["metadata"]["ownerReferences"][0]["kind"],
        "ClusterRole"
    );
    let validating = MUTATING.replace("mutating", "validating");
    process
        .until(DEADLINE, async || {
            let validating = fixture.driver.get(&validating).await?.object()?;
            let webhooks = validating["webhooks"].as_array().context("none")?;
            let is_injection = |it: &Value| it["name"] == "pod-injection.rolegate.dev";
            ensure!(webhooks.iter().any(is_injection), "{validating}");
            Ok(())
        })
        .await
        .unwrap();
    process.stop().await.unwrap();

    // Without the setting, the API server would deny pods because nothing serves `/mutate`.
    let mut process = controller(&fixture.cluster, &[]).await;
    process
        .until(DEADLINE, async || {
            let answer = fixture.driver.get(MUTATING).await?;
            ensure!(answer.status == StatusCode::NOT_FOUND, "{}", answer.status);
            Ok(())
        })
        .await
        .unwrap();
    // Pods are still created.
    fixture.account("api", None).await.unwrap();
    eventually(DEADLINE, async || {
        let pod = super::fixture::pod("api", "api");
        fixture.dry_run(&pod).await?.object().map(drop)
    })
    .await
    .unwrap();
}
