//! The ValidatingWebhookConfiguration, which the controller adapts to the rules unless another
//! owner maintains it.

use anyhow::{Context, ensure};
use rolegate_testkit::admission::{Certificate, HOME, REGISTRATION};
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, TestAdmission, eventually, repository};
use serde_json::{Value, json};

use super::harness::{DEADLINE, GRANTS, WebhookHarness, alone, pod, taken};

const CONFIG: &str = "/apis/rolegate.dev/v1alpha1/rolegateconfigs/cluster";

/// Returns true if the configuration covers the kind, and the timeout of its first webhook.
async fn registered(harness: &WebhookHarness, resource: &str) -> anyhow::Result<(bool, u64)> {
    let admin = harness.cluster.requests()?;
    let registration: Value = taken("the registration", admin.get(REGISTRATION).await?)?;
    let seconds = registration["webhooks"][0]["timeoutSeconds"].as_u64();
    let named = registration
        .to_string()
        .contains(&format!("\"{resource}\""));
    Ok((named, seconds.context("no time-out")?))
}

/// Changes the timeout of the first webhook and the annotations with a JSON merge patch.
async fn change(harness: &WebhookHarness, seconds: u64, annotations: Value) -> anyhow::Result<()> {
    let admin = harness.cluster.requests()?;
    let mut registration = taken("the registration", admin.get(REGISTRATION).await?)?;
    registration["webhooks"][0]["timeoutSeconds"] = seconds.into();
    registration["metadata"]["annotations"] = annotations;
    let answer = admin.put(REGISTRATION, &registration).await?;
    taken("another registration", answer).map(drop)
}

async fn presets(harness: &WebhookHarness, names: &[&str]) -> anyhow::Result<()> {
    let kinds: Vec<_> = names.iter().map(|name| json!({ "preset": name })).collect();
    let kinds = json!({ "spec": { "workloadKinds": kinds } });
    let admin = harness.cluster.requests()?;
    let answer = admin.patch(CONFIG, PatchKind::Merge, &kinds).await?;
    taken("other custom kinds", answer).map(drop)
}

/// Waits for one more reconciliation of the controller. It updates the webhook configuration before
/// it writes the statuses of grants, so the status of a second grant shows that the configuration
/// was reconciled after the first.
async fn controller_looks(harness: &WebhookHarness, name: &str) -> anyhow::Result<()> {
    let admin = harness.cluster.requests()?;
    for part in ["a", "b"] {
        let name = format!("{name}-{part}");
        harness.grant(&name, &["any"]).await?;
        let path = format!("/apis/rolegate.dev/v1alpha1/rolegrants/{name}");
        eventually(DEADLINE, async || {
            let grant = taken("the grant", admin.get(&path).await?)?;
            ensure!(grant["status"]["conditions"][0].is_object(), "no status");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_is_unmanaged_is_left_alone() -> anyhow::Result<()> {
    let _alone = alone().await?;
    let harness = WebhookHarness::start(Cluster::start().await?, GRANTS).await?;
    // The controller reverts a manual change with the next change of the rules.
    change(&harness, 7, json!({})).await?;
    presets(&harness, &["argo-rollouts"]).await?;
    eventually(DEADLINE, async || {
        let found = registered(&harness, "rollouts").await?;
        ensure!(found == (true, 5), "{found:?}");
        Ok(())
    })
    .await?;

    change(&harness, 7, json!({ "rolegate.dev/unmanaged": "" })).await?;
    presets(&harness, &["argo-rollouts", "tekton"]).await?;
    controller_looks(&harness, "unmanaged").await?;
    assert_eq!(registered(&harness, "pipelineruns").await?, (false, 7));
    assert_eq!(registered(&harness, "rollouts").await?, (true, 7));

    // The annotation is removed.
    change(&harness, 7, json!({})).await?;
    controller_looks(&harness, "managed").await?;
    eventually(DEADLINE, async || {
        let found = registered(&harness, "pipelineruns").await?;
        ensure!(found == (true, 5), "{found:?}");
        Ok(())
    })
    .await
}

/// Returns the failure policies of all webhooks except `rule-validity`, which always has `Ignore`.
async fn failure_policies(harness: &WebhookHarness) -> anyhow::Result<Vec<String>> {
    let admin = harness.cluster.requests()?;
    let registration = taken("the registration", admin.get(REGISTRATION).await?)?;
    let webhooks = registration["webhooks"].as_array().context("no webhooks")?;
    let mut policies = Vec::new();
    for webhook in webhooks {
        let text = |field: &str| webhook[field].as_str().unwrap_or_default().to_owned();
        match (text("name"), text("failurePolicy")) {
            (name, policy) if name == "rule-validity.rolegate.dev" => ensure!(policy == "Ignore"),
            (_, policy) => policies.push(policy),
        }
    }
    policies.dedup();
    Ok(policies)
}

/// Requests that ordinary users made before the webhook was installed. None of them is rejected
/// while no layer is enforced, whether the webhook responds or not.
async fn nothing_is_refused(harness: &WebhookHarness, trial: &str) -> anyhow::Result<()> {
    let jane = harness.jane()?;
    let role = "arn:aws:iam::123456789012:role/any";
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": trial, "annotations": { "iam.amazonaws.com/allowed-roles": "[]" } } });
    taken(
        "a namespace",
        jane.post("/api/v1/namespaces", &namespace).await?,
    )?;
    let pods = format!("/api/v1/namespaces/{trial}/pods?dryRun=All");
    for role in [role, "not a role!", "node"] {
        // The service account does not exist yet, which the API server reports itself.
        let mut pod = pod("any", Some(role));
        pod["spec"]["automountServiceAccountToken"] = false.into();
        eventually(DEADLINE, async || {
            jane.post(&pods, &pod).await?.object().map(drop)
        })
        .await
        .with_context(|| format!("a pod with role {role:?}"))?;
    }
    let labels = json!({ "metadata": { "labels": { "team": "any" },
        "annotations": { "iam.amazonaws.com/allowed-roles": "[\"*\"]" } } });
    let path = format!("/api/v1/namespaces/{trial}");
    taken(
        "a label",
        jane.patch(&path, PatchKind::Merge, &labels).await?,
    )?;
    Ok(())
}

/// Returns the names of the conditions under which the API server sends pods.
async fn conditions_of_pods(harness: &WebhookHarness) -> anyhow::Result<Vec<String>> {
    let admin = harness.cluster.requests()?;
    let registration = taken("the registration", admin.get(REGISTRATION).await?)?;
    let mut webhooks = registration["webhooks"].as_array().into_iter().flatten();
    let pods = webhooks.find(|webhook| webhook["name"] == "pods.rolegate.dev");
    let conditions = &pods.context("no webhook of pods")?["matchConditions"];
    let conditions = conditions.as_array().into_iter().flatten();
    let name = |condition: &Value| condition["name"].as_str().unwrap_or_default().to_owned();
    Ok(conditions.map(name).collect())
}

/// A policy may apply to any object, so the API server sends all objects once a policy exists.
async fn a_policy_widens_the_registration(harness: &WebhookHarness) -> anyhow::Result<()> {
    let admin = harness.cluster.requests()?;
    let enforced = json!({ "spec": { "layers": { "rego": "enforce" } } });
    taken(
        "rego is enforced",
        admin.patch(CONFIG, PatchKind::Merge, &enforced).await?,
    )?;
    controller_looks(harness, "no-policy").await?;
    let conditions = conditions_of_pods(harness).await?;
    ensure!(conditions.contains(&"names-role".into()), "{conditions:?}");
    let policy = json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "none", "labels": { "openpolicyagent.org/policy": "rego" } },
        "data": { "main.rego": "package kubernetes.admission\n\ndeny[msg] { false; msg := \"\" }\n" } });
    let maps = "/api/v1/namespaces/opa/configmaps";
    taken("a policy", admin.post(maps, &policy).await?)?;
    eventually(DEADLINE, async || {
        let conditions = conditions_of_pods(harness).await?;
        ensure!(conditions.is_empty(), "{conditions:?}");
        Ok(())
    })
    .await
}

/// Without a configuration, the previously enforced rules are unknown: a controller that starts
/// then must not replace them by the flags' defaults.
async fn a_missing_configuration_loosens_nothing(
    harness: &mut WebhookHarness,
) -> anyhow::Result<()> {
    let admin = harness.cluster.requests()?;
    let config = taken("the configuration", admin.get(CONFIG).await?)?;
    let before = taken("the registration", admin.get(REGISTRATION).await?)?;
    taken("no configuration", admin.delete(CONFIG).await?)?;
    let name = "localhost";
    harness
        .test_admission
        .restart_controller(&harness.cluster, name)
        .await?;
    eventually(DEADLINE, async || {
        let told = harness.test_admission.controller_log();
        ensure!(told.contains("is left as it is"), "{told}");
        Ok(())
    })
    .await?;
    let after = taken("the registration", admin.get(REGISTRATION).await?)?;
    ensure!(after["webhooks"] == before["webhooks"], "{after}");
    let again = json!({ "apiVersion": config["apiVersion"], "kind": config["kind"],
        "metadata": { "name": "cluster" }, "spec": config["spec"] });
    let configs = CONFIG.trim_end_matches("/cluster");
    taken("restored", admin.post(configs, &again).await?)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_is_registered_when_it_answers_and_refuses_nothing_in_audit()
-> anyhow::Result<()> {
    let _alone = alone().await?;
    let cluster = Cluster::start_with_controllers().await?;
    cluster.install_admission().await?;
    cluster.open_to(&["developers", "platform"]).await?;
    let example = repository().join("deploy/examples/rolegateconfig.yaml");
    cluster.apply_file(&example).await?;
    let mut test_admission = TestAdmission::bare(&cluster, Certificate::Controller).await?;
    test_admission
        .restart_controller(&cluster, "localhost")
        .await?;
    let mut harness = WebhookHarness {
        cluster,
        test_admission,
    };
    let admin = harness.cluster.requests()?;

    let waits = format!("Service {HOME}/rolegate-admission has no ready endpoint");
    let told = async |harness: &WebhookHarness, words: &str| {
        eventually(DEADLINE, async || {
            let told = harness.test_admission.controller_log();
            ensure!(told.contains(words), "{told}");
            Ok(())
        })
        .await
    };
    told(&harness, &waits).await?;
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{HOME}/endpointslices");
    let slice = |ready: bool| {
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "by-hand", "labels": {
                "kubernetes.io/service-name": "rolegate-admission" } },
            "addressType": "IPv4", "ports": [{ "name": "webhook", "port": 8443 }],
            "endpoints": [{ "addresses": ["10.99.0.1"], "conditions": { "ready": ready } }] })
    };
    taken("endpoints", admin.post(&slices, &slice(false)).await?)?;
    // The status of one more grant shows that the controller has reconciled with these endpoints.
    controller_looks(&harness, "unready").await?;
    ensure!(
        admin.get(REGISTRATION).await?.status == 404,
        "it is registered"
    );
    nothing_is_refused(&harness, "before").await?;

    taken(
        "ready",
        admin
            .put(&format!("{slices}/by-hand"), &slice(true))
            .await?,
    )?;
    let registration = eventually(DEADLINE, async || {
        taken("the registration", admin.get(REGISTRATION).await?)
    })
    .await?;
    for webhook in registration["webhooks"].as_array().context("no webhooks")? {
        let client = &webhook["clientConfig"];
        ensure!(
            client["service"]["name"] == "rolegate-admission",
            "{client}"
        );
        ensure!(
            client["caBundle"].is_string(),
            "no API server would trust it: {client}"
        );
    }
    assert_eq!(failure_policies(&harness).await?, ["Ignore"]);
    // The cluster has no network of Services, so the API server gets no response.
    nothing_is_refused(&harness, "registered").await?;
    // A webhook that responds denies nothing either.
    harness.test_admission.ready().await?;
    eventually(DEADLINE, async || {
        let mut by_url = taken("the registration", admin.get(REGISTRATION).await?)?;
        for webhook in by_url["webhooks"].as_array_mut().context("no webhooks")? {
            let authority = webhook["clientConfig"]["caBundle"].take();
            webhook["clientConfig"] =
                json!({ "url": harness.test_admission.url(), "caBundle": authority });
        }
        taken("another address", admin.put(REGISTRATION, &by_url).await?)
    })
    .await?;
    harness
        .test_admission
        .until_called(&harness.cluster)
        .await?;
    nothing_is_refused(&harness, "answering").await?;

    let enforced = json!({ "spec": { "layers": { "grants": "enforce" } } });
    taken(
        "enforced",
        admin.patch(CONFIG, PatchKind::Merge, &enforced).await?,
    )?;
    eventually(DEADLINE, async || {
        let policies = failure_policies(&harness).await?;
        ensure!(policies == ["Fail"], "{policies:?}");
        Ok(())
    })
    .await?;

    a_policy_widens_the_registration(&harness).await?;
    a_missing_configuration_loosens_nothing(&mut harness).await?;
    let admin = harness.cluster.requests()?;

    // The configuration is re-created, and is deleted together with the controller's ClusterRole.
    taken("deleted", admin.delete(REGISTRATION).await?)?;
    eventually(DEADLINE, async || {
        taken("the registration", admin.get(REGISTRATION).await?)
    })
    .await?;
    let rights = "/apis/rbac.authorization.k8s.io/v1/clusterroles/rolegate-controller";
    taken("no rights", admin.delete(rights).await?)?;
    eventually(DEADLINE, async || {
        let answer = admin.get(REGISTRATION).await?;
        ensure!(answer.status == 404, "{} {}", answer.status, answer.body);
        Ok(())
    })
    .await
}
