//! The injection exported as a MutatingAdmissionPolicy, applied by a real API server without
//! rolegate.

use std::collections::BTreeMap;

use anyhow::ensure;
use rolegate_policy::injection::{InjectionInput, export};
use rolegate_review::mutation::InjectionSettings;
use rolegate_testkit::admission::HOME;
use rolegate_testkit::eventually;
use serde_json::json;

use super::fixture::{DEADLINE, Fixture, REGION, ROLE, container, pod, role_of, variable};

#[tokio::test]
async fn the_exported_policy_injects_without_a_webhook() {
    let fixture = Fixture::bare().await.unwrap();
    fixture
        .cluster
        .apply_manifest(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
                .to_string(),
        )
        .await
        .unwrap();
    for account in ["api", "plain"] {
        fixture.account(account, None).await.unwrap();
    }
    let settings = InjectionSettings {
        region: Some(REGION.into()),
        regional_sts: true,
        ..InjectionSettings::default()
    };
    let account = ("shop".to_owned(), "api".to_owned());
    let exported = export(&InjectionInput {
        roles: BTreeMap::from([(account, ROLE.to_owned())]),
        without: Vec::new(),
        settings: &settings,
        namespace: HOME,
    })
    .unwrap();
    for document in &exported.documents {
        fixture
            .cluster
            .apply_manifest(&document.to_string())
            .await
            .unwrap();
    }
    let mut submitted = pod("api", "api");
    submitted["metadata"]["annotations"] =
        json!({"eks.amazonaws.com/skip-containers": "other, skipped"});
    submitted["spec"]["containers"] = json!([
        {"name": "main", "image": "i", "env": [{"name": "A", "value": "b"}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "livenessProbe": {"grpc": {"port": 1, "service": "s"}}},
        {"name": "skipped", "image": "i"},
        {"name": "own", "image": "i", "env": [{"name": "AWS_ROLE_ARN", "value": "own"}]},
    ]);
    submitted["spec"]["initContainers"] =
        json!([{"name": "proxy", "image": "i", "restartPolicy": "Always"}]);
    submitted["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    // The API server compiles policies a moment after they are applied.
    eventually(DEADLINE, async || {
        let answer = fixture.dry_run(&submitted).await?;
        let message = answer.message().to_owned();
        let object = answer.object()?;
        ensure!(
            role_of(container(&object, 0)).is_some(),
            "{message} {object}"
        );
        Ok(())
    })
    .await
    .unwrap();
    let stored = fixture.created(&submitted).await.unwrap();
    let main = container(&stored, 0);
    for (name, value) in [
        ("A", "b"),
        ("AWS_ROLE_ARN", ROLE),
        (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "/var/run/secrets/eks.amazonaws.com/serviceaccount/token",
        ),
        ("AWS_ROLE_SESSION_NAME", "shop.api"),
        ("AWS_STS_REGIONAL_ENDPOINTS", "regional"),
        ("AWS_REGION", REGION),
    ] {
        assert_eq!(variable(main, name), value, "{name}: {main}");
    }
    assert_eq!(main["livenessProbe"]["grpc"]["service"], "s");
    let mounts = |container: &serde_json::Value| {
        let mounts = container["volumeMounts"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        mounts.iter().any(|mount| mount["name"] == "aws-iam-token")
    };
    assert!(
        mounts(main) && main["volumeMounts"][0]["mountPath"] == "/data",
        "{main}"
    );
    assert_eq!(role_of(container(&stored, 1)), None);
    assert!(!mounts(container(&stored, 1)));
    assert_eq!(role_of(container(&stored, 2)), Some("own"));
    let init = &stored["spec"]["initContainers"][0];
    assert_eq!(
        (role_of(init), &init["restartPolicy"]),
        (Some(ROLE), &"Always".into())
    );
    let volumes = stored["spec"]["volumes"].as_array().unwrap();
    let token = volumes
        .iter()
        .find(|volume| volume["name"] == "aws-iam-token")
        .unwrap();
    let token = &token["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "sts.amazonaws.com");
    assert!(volumes.iter().any(|volume| volume["name"] == "data"));
    // Without a role, or with the label, nothing changes.
    let plain = fixture.created(&pod("plain", "plain")).await.unwrap();
    assert_eq!(role_of(container(&plain, 0)), None);
    let mut skipped = pod("skipped", "api");
    skipped["metadata"]["labels"] = json!({"eks.amazonaws.com/skip-pod-identity-webhook": "x"});
    let skipped = fixture.created(&skipped).await.unwrap();
    assert_eq!(role_of(container(&skipped, 0)), None);
}
