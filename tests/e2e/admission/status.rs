//! The status of rules, reported to their authors in the objects and in Events.

use anyhow::{Context, ensure};
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, eventually};
use serde_json::{Value, json};

use super::harness::{DEADLINE, WebhookHarness, alone, pod, taken};

const KINDS: &str = "/apis/rolegate.dev/v1alpha1";
/// A configuration without a base ARN.
const RULES: &str = r#"
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: { name: cluster }
spec:
  layers: { namespace: "off", grants: enforce, rego: enforce }
"#;

/// Waits until the object's condition has this `Ready` status, this reason and this part of the
/// message.
async fn says(
    harness: &WebhookHarness,
    path: &str,
    wanted: (&str, &str, &str),
) -> anyhow::Result<Value> {
    let admin = harness.cluster.requests()?;
    let path = format!("{KINDS}/{path}");
    eventually(DEADLINE, async || {
        let object = taken("the object", admin.get(&path).await?)?;
        let condition = &object["status"]["conditions"][0];
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        let fits = text("type") == "Ready"
            && (&*text("status"), &*text("reason")) == (wanted.0, wanted.1)
            && text("message").contains(wanted.2);
        ensure!(fits, "{condition} is not {wanted:?}");
        Ok(object)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn how_rules_fare_is_written_into_their_status() -> anyhow::Result<()> {
    let _alone = alone().await?;
    let harness = WebhookHarness::start(Cluster::start().await?, RULES).await?;
    let admin = harness.cluster.requests()?;
    harness.cluster.create_namespace("shop", &[]).await?;

    // A name that no base ARN completes here, which is not a fault of the grant.
    harness.grant("shop", &["reader"]).await?;
    let base = "no base ARN is known";
    says(&harness, "rolegrants/shop", ("False", "NoBaseArn", base)).await?;
    says(
        &harness,
        "rolegateconfigs/cluster",
        ("True", "Valid", "in effect"),
    )
    .await?;
    let change = async |spec: Value| {
        let path = format!("{KINDS}/rolegateconfigs/cluster");
        let change = json!({ "spec": spec });
        taken(
            "a change",
            admin.patch(&path, PatchKind::Merge, &change).await?,
        )
    };
    change(json!({ "baseRoleArn": "arn:aws:iam::123456789012:role/" })).await?;
    says(&harness, "rolegrants/shop", ("True", "Valid", "in effect")).await?;
    change(json!({ "layers": { "grants": "audit" } })).await?;
    says(
        &harness,
        "rolegrants/shop",
        ("True", "Valid", "grants is audit"),
    )
    .await?;

    // Live pods are counted while they exist; finished pods are not.
    let pods = "/api/v1/namespaces/shop/pods";
    for (name, role) in [("api", Some("reader")), ("other", None)] {
        let mut pod = pod(name, role);
        pod["spec"]["nodeName"] = "node-1".into();
        taken(name, admin.post(pods, &pod).await?)?;
    }
    let counted = async |wanted: i64| {
        eventually(DEADLINE, async || {
            let grant = taken("it", admin.get(&format!("{KINDS}/rolegrants/shop")).await?)?;
            let workloads = grant["status"]["workloads"].as_i64();
            ensure!(workloads == Some(wanted), "{workloads:?} and not {wanted}");
            Ok(())
        })
        .await
    };
    counted(1).await?;
    harness
        .cluster
        .set_pod_status("shop", "api", "Succeeded", &[])
        .await?;
    counted(0).await?;

    // The configuration's status contains the reason why the rules are not in effect.
    let required = json!([{ "namespace": "opa", "name": "must" }]);
    change(json!({ "rego": { "required": required } })).await?;
    let missing = ("False", "Invalid", "opa/must");
    says(&harness, "rolegateconfigs/cluster", missing).await?;
    change(json!({ "rego": { "required": [] } })).await?;
    says(
        &harness,
        "rolegateconfigs/cluster",
        ("True", "Valid", "in effect"),
    )
    .await?;

    // A policy that cannot be parsed is reported by an Event too.
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "broken", "labels": { "openpolicyagent.org/policy": "rego" } },
        "data": { "main": "package kubernetes.admission\n\ndeny[msg] {\n" },
    });
    let maps = "/api/v1/namespaces/opa/configmaps";
    taken("a policy", admin.post(maps, &map).await?)?;
    eventually(DEADLINE, async || {
        let events = "/apis/events.k8s.io/v1/namespaces/opa/events";
        let events = taken("the Events", admin.get(events).await?)?;
        let events = events["items"].as_array().context("no list")?;
        let told = events
            .iter()
            .find(|event| event["reason"] == "PolicyInvalid");
        let told = told.with_context(|| format!("no Event among {}", events.len()))?;
        ensure!(told["regarding"]["name"] == "broken", "{told}");
        ensure!(
            told["note"]
                .as_str()
                .is_some_and(|note| note.contains("main")),
            "{told}"
        );
        Ok(())
    })
    .await
}

/// Returns an Event about one of rolegate's objects.
async fn reported(
    harness: &WebhookHarness,
    reason: &str,
    object: &Value,
) -> anyhow::Result<String> {
    let admin = harness.cluster.requests()?;
    eventually(DEADLINE, async || {
        let events = "/apis/events.k8s.io/v1/namespaces/default/events";
        let events = taken("the Events", admin.get(events).await?)?;
        let events = events["items"].as_array().context("no list")?.clone();
        let mut of_reason = events.iter().filter(|event| event["reason"] == reason);
        let event = of_reason.next().with_context(|| format!("no {reason}"))?;
        let about = &event["regarding"];
        ensure!(about["kind"] == object["kind"], "{about}");
        ensure!(about["uid"] == object["metadata"]["uid"], "{about}");
        Ok(event["note"].as_str().context("no note")?.to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_cannot_be_used_are_refused_and_those_that_are_there_are_reported()
-> anyhow::Result<()> {
    let _alone = alone().await?;
    let mut harness = WebhookHarness::start(Cluster::start().await?, RULES).await?;
    let admin = harness.cluster.requests()?;
    let grants = format!("{KINDS}/rolegrants");
    let grant = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["subjects"] = json!([{ "namespaces": ["shop"] }]);
        json!({ "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
            "metadata": { "name": name }, "spec": spec })
    };
    let role = "arn:aws:iam::123456789012:role/reader";
    let policy = |policy: &str| json!({ "roles": [role], "session": { "policy": policy } });
    // Objects of the administrator, who has all rights, are reviewed as well.
    for requests in [harness.jane()?, harness.cluster.requests()?] {
        for (spec, words) in [
            (policy("{"), "spec.session"),
            (json!({ "roles": ["arn:aws:iam::12:role/a"] }), "spec.roles"),
            (json!({ "roles": ["a role"] }), "spec.roles"),
        ] {
            let answer = eventually(DEADLINE, async || {
                let answer = requests
                    .post(&grants, &grant("wrong", spec.clone()))
                    .await?;
                if answer.status.is_success() {
                    // The webhook configuration may not be up to date yet.
                    taken(
                        "it is gone",
                        admin.delete(&format!("{grants}/wrong")).await?,
                    )?;
                }
                ensure!(answer.status == 403, "{spec} {}", answer.status);
                Ok(answer)
            })
            .await?;
            let message = answer.message();
            ensure!(
                message.contains("would grant nothing") && message.contains(words),
                "{message}"
            );
        }
        let wrong = json!({ "spec": { "rego": { "label": "x" } } });
        let path = format!("{KINDS}/rolegateconfigs/cluster");
        let answer = requests.patch(&path, PatchKind::Merge, &wrong).await?;
        let message = answer.message();
        ensure!(
            answer.status == 403 && message.contains("spec.rego.label"),
            "{message}"
        );
        // An agent may know a base ARN that completes a name which admission cannot complete.
        let fine = grant("fine", json!({ "roles": ["reader"] }));
        let path = format!("{grants}?dryRun=All");
        taken("a grant", requests.post(&path, &fine).await?)?;
    }

    // An invalid object that bypassed the webhook is reported.
    harness.test_admission.kill_admission();
    let made = taken(
        "a grant",
        admin.post(&grants, &grant("wrong", policy("{"))).await?,
    )?;
    let invalid = ("False", "Invalid", "it grants nothing");
    let found = says(&harness, "rolegrants/wrong", invalid).await?;
    assert_eq!(found["status"]["observedGeneration"], 1);
    assert_eq!(found["status"]["conditions"][0]["observedGeneration"], 1);
    let note = reported(&harness, "GrantInvalid", &made).await?;
    assert!(note.contains("spec.session"), "{note}");
    let told = harness.test_admission.controller_log();
    assert!(
        told.contains("name=\"wrong\"") && told.contains("a rule is invalid"),
        "{told}"
    );
    let path = format!("{KINDS}/rolegateconfigs/cluster");
    let wrong = json!({ "spec": { "rego": { "label": "x" } } });
    let config = taken("it", admin.patch(&path, PatchKind::Merge, &wrong).await?)?;
    assert_eq!(config["metadata"]["generation"], 2);
    let invalid = ("False", "Invalid", "spec.rego.label");
    let found = says(&harness, "rolegateconfigs/cluster", invalid).await?;
    assert_eq!(found["status"]["observedGeneration"], 2);
    assert_eq!(found["status"]["conditions"][0]["observedGeneration"], 2);
    reported(&harness, "ConfigurationInvalid", &config).await?;

    // The change that fixes the object has the next generation.
    let fixed = json!({ "spec": { "session": { "policy": "" } } });
    let path = format!("{grants}/wrong");
    taken("it", admin.patch(&path, PatchKind::Merge, &fixed).await?)?;
    let found = says(&harness, "rolegrants/wrong", ("True", "Valid", "in effect")).await?;
    assert_eq!(found["status"]["observedGeneration"], 2);
    Ok(())
}
