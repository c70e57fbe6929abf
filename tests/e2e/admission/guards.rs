//! The ways to bypass a pod's own endpoint, or the rules: each is closed for users who are not rule
//! writers.

use anyhow::ensure;
use rolegate_testkit::TestPod;
use rolegate_testkit::request::PatchKind;
use serde_json::json;

use super::harness::{ROLE, WebhookHarness, refused, taken};

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_role_is_not_set_through_its_status_or_its_binding() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "guards";
    harness.shop(namespace).await?;
    let jane = harness.jane()?;
    let live = TestPod::new(namespace, "live", "node");
    harness.cluster.run_pod(&live).await?;
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    taken(
        "the pod to be bound",
        jane.post(&pods, &super::harness::pod("new", None)).await?,
    )?;

    // A role that a grant covers is denied too, because the grant was not evaluated for the pod
    // that would use the role.
    for role in ["admin", "shop-reader"] {
        let annotated = json!({ "metadata": { "annotations": { ROLE: role } } });
        let status = format!("{pods}/live/status");
        let answer = jane.patch(&status, PatchKind::Merge, &annotated).await?;
        let says = [
            "metadata.annotations[iam.amazonaws.com/role]",
            "(layer guard, rule pod status)",
        ];
        refused("a role through the status", &answer, &says)?;

        let mut binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": "new", "annotations": { ROLE: role } },
            "target": { "kind": "Node", "name": "node" },
        });
        let says = [
            "metadata.annotations[iam.amazonaws.com/role]",
            "(layer guard, rule binding)",
        ];
        for path in [
            format!("{pods}/new/binding"),
            format!("/api/v1/namespaces/{namespace}/bindings"),
        ] {
            let answer = jane.post(&path, &binding).await?;
            refused(&format!("a role through {path}"), &answer, &says)?;
        }
        binding["metadata"]["annotations"] = json!({ "other": "x" });
        let path = format!("{pods}/new/binding?dryRun=All");
        taken(
            "a binding without a role",
            jane.post(&path, &binding).await?,
        )?;
    }
    for name in ["live", "new"] {
        let pod = taken(name, jane.get(&format!("{pods}/{name}")).await?)?;
        let role = &pod["metadata"]["annotations"][ROLE];
        ensure!(role.is_null(), "pod {name} has got role {role}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespaces_role_annotations_are_for_namespace_writers() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let name = "guarded";
    harness.cluster.create_namespace(name, &[]).await?;
    let grant = json!({
        "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
        "metadata": { "name": name },
        "spec": { "roles": ["blue-*"], "subjects": [
            { "namespaceSelector": { "matchLabels": { "guarded-team": "blue" } } }] },
    });
    harness.cluster.apply_manifest(&grant.to_string()).await?;
    let (jane, ann) = (harness.jane()?, harness.member("platform")?);
    let path = format!("/api/v1/namespaces/{name}");
    let says = [
        "(layer guard, rule namespace writers)",
        "ask your cluster's administrator",
    ];

    for (key, value) in [
        ("iam.amazonaws.com/allowed-roles", r#"["*"]"#),
        ("iam.amazonaws.com/permitted", ".*"),
        ("iam.amazonaws.com/default-role", "admin"),
    ] {
        let change = json!({ "metadata": { "annotations": { key: value } } });
        for path in [path.clone(), format!("{path}/status")] {
            let answer = jane.patch(&path, PatchKind::Merge, &change).await?;
            refused(&format!("{key} at {path}"), &answer, &says)?;
        }
        let new = json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": "guarded-new", "annotations": { key: value } } });
        let answer = jane.post("/api/v1/namespaces", &new).await?;
        refused(&format!("a namespace with {key}"), &answer, &says)?;
        let dry = format!("{path}?dryRun=All");
        let answer = ann.patch(&dry, PatchKind::Merge, &change).await?;
        taken(&format!("{key} by a namespace writer"), answer)?;
    }
    // The webhook may receive the grant a moment after its creation.
    let blue = json!({ "metadata": { "labels": { "guarded-team": "blue" } } });
    let dry = format!("{path}?dryRun=All");
    rolegate_testkit::eventually(super::harness::DEADLINE, async || {
        let answer = jane.patch(&dry, PatchKind::Merge, &blue).await?;
        refused("a label that a grant looks at", &answer, &says)
    })
    .await?;
    for (what, change) in [
        (
            "another label",
            json!({ "metadata": { "labels": { "other": "x" } } }),
        ),
        (
            "another annotation",
            json!({ "metadata": { "annotations": { "other": "x" } } }),
        ),
    ] {
        taken(what, jane.patch(&path, PatchKind::Merge, &change).await?)?;
    }
    harness.until_refused(name, "blue-reader").await?;
    let answer = ann.patch(&path, PatchKind::Merge, &blue).await?;
    taken("the label by a namespace writer", answer)?;
    harness.until_allowed(name, "blue-reader").await
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_07_a_namespace_takes_no_name_that_a_grant_waits_for() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let grant = json!({
        "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
        "metadata": { "name": "waiting" },
        "spec": { "roles": ["waiting-*"], "subjects": [
            { "namespaces": ["awaited", "sandbox-*", "*-lab"] },
            { "namespaces": ["by-label-*"],
              "namespaceSelector": { "matchLabels": { "guarded-team": "red" } } },
        ] },
    });
    harness.cluster.apply_manifest(&grant.to_string()).await?;
    let (jane, ann) = (harness.jane()?, harness.member("platform")?);
    let path = "/api/v1/namespaces?dryRun=All";
    let named = |field: &str, name: &str| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { field: name } });
    let says = ["metadata.name", "(layer grants, rule namespace writers)"];
    // The webhook may receive the grant a moment after its creation.
    rolegate_testkit::eventually(super::harness::DEADLINE, async || {
        let answer = jane.post(path, &named("name", "awaited")).await?;
        refused("a name that a grant names", &answer, &says)
    })
    .await?;
    for (field, name) in [
        ("name", "sandbox-evil"),
        ("name", "evil-lab"),
        // The API server generates the end of the name.
        ("generateName", "sandbox-"),
    ] {
        let namespace = named(field, name);
        let answer = jane.post(path, &namespace).await?;
        refused(&format!("a namespace by {field} {name}"), &answer, &says)?;
        let answer = ann.post(path, &namespace).await?;
        taken(&format!("{name} by a namespace writer"), answer)?;
    }
    for (field, name) in [
        ("name", "unrelated"),
        ("name", "my-sandbox"),
        ("name", "by-label-without-it"),
        ("generateName", "unrelated-"),
    ] {
        let answer = jane.post(path, &named(field, name)).await?;
        taken(&format!("a namespace by {field} {name}"), answer)?;
    }
    // Creating the namespace first gives no rights: users who are not writers may still change only
    // what they could before.
    taken(
        "the namespace",
        ann.post("/api/v1/namespaces", &named("name", "sandbox-fine"))
            .await?,
    )?;
    let label = json!({ "metadata": { "labels": { "other": "x" } } });
    let mine = "/api/v1/namespaces/sandbox-fine";
    let answer = jane.patch(mine, PatchKind::Merge, &label).await?;
    taken("another label", answer)?;
    harness
        .until_allowed("sandbox-fine", "waiting-reader")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_aws_would_take_is_not_for_everybody() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "tokens";
    harness.shop(namespace).await?;
    let jane = harness.jane()?;
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token");
    let request = |audiences: &[&str]| {
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": audiences } })
    };
    for audience in [
        "sts.amazonaws.com",
        "STS.amazonaws.com.cn",
        "pods.eks.amazonaws.com",
    ] {
        let answer = jane.post(&path, &request(&["vault", audience])).await?;
        let says = ["spec.audiences[1]", "(layer grants, rule web identity)"];
        refused(&format!("a token for {audience}"), &answer, &says)?;
    }
    for audiences in [&["vault"][..], &[]] {
        let answer = jane.post(&path, &request(audiences)).await?;
        taken(&format!("a token for {audiences:?}"), answer)?;
    }
    let writer = harness.member("platform")?;
    let answer = writer.post(&path, &request(&["sts.amazonaws.com"])).await?;
    taken("a token for STS, by a writer of the rules", answer)?;
    Ok(())
}
