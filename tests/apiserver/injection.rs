//! The injection of credentials into pods by a real API server, which calls `POST /mutate` of
//! `rolegate admission` or of `rolegate pod-identity-webhook`.

mod fixture;
mod policy;
mod race;
mod registration;

use std::time::Duration;

use anyhow::ensure;
use http::StatusCode;
use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_testkit::eventually;
use rolegate_testkit::request::PatchKind;
use serde_json::json;

use fixture::{DEADLINE, Fixture, REGION, ROLE, Sidecars, container, pod, role_of, variable};

const OTHER_ROLE: &str = "arn:aws:iam::123456789012:role/other";

#[tokio::test]
async fn pods_get_credentials_in_both_versions_of_reviews() {
    let mut fixture = Fixture::start(&[]).await.unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    fixture.account("plain", None).await.unwrap();
    for version in ["v1", "v1beta1"] {
        fixture.register(|webhook| webhook["admissionReviewVersions"] = json!([version]));
        fixture.until_called().await.unwrap();
        let name = format!("api-{version}");
        let mut submitted = pod(&name, "api");
        submitted["spec"]["initContainers"] =
            json!([{"name": "proxy", "image": "i", "restartPolicy": "Always"}]);
        let answer = fixture.create(&submitted).await.unwrap();
        assert!(answer.warnings.is_empty(), "{:?}", answer.warnings);
        let stored = answer.object().unwrap();
        for list in ["containers", "initContainers"] {
            let container = &stored["spec"][list][0];
            assert_eq!(variable(container, "AWS_ROLE_ARN"), ROLE);
            assert_eq!(variable(container, "AWS_REGION"), REGION);
            assert_eq!(
                variable(container, "AWS_ROLE_SESSION_NAME"),
                format!("shop.{name}")
            );
        }
        // A field that older webhooks drop.
        assert_eq!(
            stored["spec"]["initContainers"][0]["restartPolicy"],
            "Always"
        );
        let volumes = stored["spec"]["volumes"].as_array().unwrap();
        let token = volumes
            .iter()
            .find(|volume| volume["name"] == "aws-iam-token");
        let token = token
            .unwrap()
            .pointer("/projected/sources/0/serviceAccountToken");
        assert_eq!(token.unwrap()["audience"], "sts.amazonaws.com");
        let plain = pod(&format!("plain-{version}"), "plain");
        let plain = fixture.created(&plain).await.unwrap();
        assert_eq!(role_of(container(&plain, 0)), None);
    }
}

#[tokio::test]
async fn an_invalid_role_warns_the_user() {
    let mut fixture = Fixture::start(&[]).await.unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    fixture
        .account("broken", Some("arn:aws:iam::1:user/x"))
        .await
        .unwrap();
    fixture.register(|_| {});
    fixture.until_called().await.unwrap();
    let answer = fixture.create(&pod("broken", "broken")).await.unwrap();
    assert!(
        answer
            .warnings
            .iter()
            .any(|warning| warning.contains("is not a role ARN")),
        "{:?}",
        answer.warnings
    );
    assert_eq!(role_of(container(&answer.object().unwrap(), 0)), None);
}

#[tokio::test]
async fn generated_names_complete_the_session_name() {
    let mut fixture = Fixture::start(&[]).await.unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    fixture.register(|_| {});
    fixture.until_called().await.unwrap();
    let mut submitted = pod("", "api");
    submitted["metadata"] = json!({"generateName": "api-"});
    let stored = fixture.created(&submitted).await.unwrap();
    assert!(stored["metadata"]["name"].as_str().unwrap().len() > 4);
    let name = variable(container(&stored, 0), "AWS_ROLE_SESSION_NAME");
    assert_eq!(name, "shop.$(ROLEGATE_POD_NAME)");
}

#[tokio::test]
async fn a_sidecar_injected_later_gets_variables_by_reinvocation() {
    let mut fixture = Fixture::start(&[]).await.unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    let _sidecars = Sidecars::start(&mut fixture).await.unwrap();
    fixture.register(|_| {});
    fixture.until_called().await.unwrap();
    let stored = fixture.create(&pod("api", "api")).await.unwrap();
    let stored = stored.object().unwrap();
    let containers = stored["spec"]["containers"].as_array().unwrap();
    let names: Vec<_> = containers
        .iter()
        .map(|container| &container["name"])
        .collect();
    assert_eq!(names, ["istio-proxy", "main"]);
    for container in containers {
        assert_eq!(role_of(container), Some(ROLE), "{container}");
    }
    // Without reinvocation the sidecar has none, as with EKS's webhook.
    fixture.register(|webhook| webhook["reinvocationPolicy"] = "Never".into());
    fixture.apply_registration().await.unwrap();
    eventually(DEADLINE, async || {
        let answer = fixture.dry_run(&pod("probe", "api")).await?.object()?;
        ensure!(role_of(container(&answer, 0)).is_none(), "{answer}");
        ensure!(role_of(container(&answer, 1)).is_some(), "{answer}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn ephemeral_containers_get_variables() {
    let mut fixture = Fixture::start(&[]).await.unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    fixture.register(|_| {});
    fixture.until_called().await.unwrap();
    fixture.created(&pod("api", "api")).await.unwrap();
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "i"}]}});
    let path = "/api/v1/namespaces/shop/pods/api/ephemeralcontainers";
    let answer = fixture
        .driver
        .patch(path, PatchKind::Merge, &debug)
        .await
        .unwrap();
    let stored = answer.object().unwrap();
    assert_eq!(
        role_of(&stored["spec"]["ephemeralContainers"][0]),
        Some(ROLE)
    );
}

#[tokio::test]
async fn pods_without_injection_can_be_refused() {
    let mut fixture = Fixture::start(&["--require-injection=enforce"])
        .await
        .unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    fixture
        .require_injection(&RuleConfig::default())
        .await
        .unwrap();
    // The mutating webhook is not registered.
    eventually(DEADLINE, async || {
        let answer = fixture.dry_run(&pod("probe", "api")).await?;
        ensure!(answer.is_refused_by_webhook(), "{}", answer.status);
        ensure!(
            answer.message().contains("without its credentials"),
            "{}",
            answer.message()
        );
        Ok(())
    })
    .await
    .unwrap();
    let mut skipped = pod("skipped", "api");
    skipped["metadata"]["labels"] = json!({"eks.amazonaws.com/skip-pod-identity-webhook": ""});
    let answer = fixture.create(&skipped).await.unwrap();
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.message());
    fixture.account("plain", None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    fixture.created(&pod("plain", "plain")).await.unwrap();
    fixture.register(|_| {});
    fixture.until_called().await.unwrap();
    let stored = fixture.created(&pod("api", "api")).await.unwrap();
    assert_eq!(role_of(container(&stored, 0)), Some(ROLE));
}

#[tokio::test]
async fn container_credentials_need_a_grant_as_other_roles_do() {
    let mut fixture = Fixture::start(&["--require-injection=enforce"])
        .await
        .unwrap();
    for account in ["api", "denied"] {
        fixture.account(account, None).await.unwrap();
    }
    let rules = [
        json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
            "metadata": {"name": "shop"},
            "spec": {"associations": [
                {"namespace": "shop", "serviceAccount": "api", "role": ROLE}]}}),
        json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
            "metadata": {"name": "cluster"}, "spec": {"layers": {"namespace": "off", "grants": "enforce", "rego": "off"}}}),
    ];
    for rule in rules {
        fixture
            .cluster
            .apply_manifest(&rule.to_string())
            .await
            .unwrap();
    }
    let ungranted = json!({"metadata": {"annotations": {"rolegate.dev/role": OTHER_ROLE}}});
    let path = "/api/v1/namespaces/shop/serviceaccounts/denied";
    fixture
        .driver
        .patch(path, PatchKind::Merge, &ungranted)
        .await
        .unwrap()
        .object()
        .unwrap();
    let config = RuleConfig {
        modes: Modes::default().with(LayerId::Grants, Mode::Enforce),
        ..RuleConfig::default()
    };
    fixture.require_injection(&config).await.unwrap();
    fixture.register(|_| {});
    fixture.apply_registration().await.unwrap();
    eventually(DEADLINE, async || {
        let answer = fixture.dry_run(&pod("probe", "api")).await?.object()?;
        let uri = variable(container(&answer, 0), "AWS_CONTAINER_CREDENTIALS_FULL_URI");
        ensure!(uri == "http://169.254.170.23/v1/credentials", "{answer}");
        Ok(())
    })
    .await
    .unwrap();
    let stored = fixture.created(&pod("api", "api")).await.unwrap();
    assert_eq!(
        stored["metadata"]["labels"]["eks.amazonaws.com/pod-identity"],
        "enabled"
    );
    eventually(DEADLINE, async || {
        let answer = fixture.dry_run(&pod("denied", "denied")).await?;
        ensure!(answer.is_refused_by_webhook(), "{}", answer.status);
        ensure!(
            answer.message().contains(OTHER_ROLE),
            "{}",
            answer.message()
        );
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_eks_webhooks_flags_rights_and_registration_work() {
    let fixture = Fixture::compatible().await.unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    fixture.account("mapped", None).await.unwrap();
    let entry = json!({"test-*/mapped": {"RoleARN": "other"}, "sh*/mapped": {"RoleARN": ROLE}});
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "pod-identity-webhook", "namespace": "eks"},
        "data": {"config": entry.to_string()},
    });
    fixture
        .cluster
        .apply_manifest(&config_map.to_string())
        .await
        .unwrap();
    fixture.until_called().await.unwrap();
    let stored = fixture.created(&pod("api", "api")).await.unwrap();
    let container_of = container(&stored, 0);
    assert_eq!(role_of(container_of), Some(ROLE));
    assert_eq!(
        variable(container_of, "AWS_STS_REGIONAL_ENDPOINTS"),
        "regional"
    );
    let token = "/projected/sources/0/serviceAccountToken/audience";
    let volumes = stored["spec"]["volumes"].as_array().unwrap();
    assert!(
        volumes
            .iter()
            .any(|volume| volume.pointer(token) == Some(&"amazonaws.com".into())),
        "{volumes:?}"
    );
    eventually(DEADLINE, async || {
        let answer = fixture.dry_run(&pod("mapped", "mapped")).await?.object()?;
        ensure!(role_of(container(&answer, 0)) == Some(ROLE), "{answer}");
        Ok(())
    })
    .await
    .unwrap();
    let metrics = fixture.metrics().await.unwrap();
    for line in [
        r#"http_request_count{verb="POST",path="/mutate",code="200"}"#,
        r#"pod_identity_webhook_pod_count{method="sts_web_identity"}"#,
        "pod_identity_webhook_used 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}
