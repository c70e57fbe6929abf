//! The registration, which the controller keeps up to the rules unless somebody else does.

use anyhow::{Context, ensure};
use rolegate_testkit::gate::REGISTRATION;
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, eventually};
use serde_json::{Value, json};

use super::stage::{DEADLINE, GRANTS, Stage, alone, taken};

const CONFIG: &str = "/apis/rolegate.dev/v1alpha1/rolegateconfigs/cluster";

/// Whether the registration names the kind, and how long the API server waits for its first webhook.
async fn registered(stage: &Stage, resource: &str) -> anyhow::Result<(bool, u64)> {
    let admin = stage.cluster.requests()?;
    let registration: Value = taken("the registration", admin.get(REGISTRATION).await?)?;
    let seconds = registration["webhooks"][0]["timeoutSeconds"].as_u64();
    let named = registration
        .to_string()
        .contains(&format!("\"{resource}\""));
    Ok((named, seconds.context("no time-out")?))
}

/// Changes the registration by a JSON merge patch of its first webhook's time-out and annotations.
async fn change(stage: &Stage, seconds: u64, annotations: Value) -> anyhow::Result<()> {
    let admin = stage.cluster.requests()?;
    let mut registration = taken("the registration", admin.get(REGISTRATION).await?)?;
    registration["webhooks"][0]["timeoutSeconds"] = seconds.into();
    registration["metadata"]["annotations"] = annotations;
    let answer = admin.put(REGISTRATION, &registration).await?;
    taken("another registration", answer).map(drop)
}

async fn presets(stage: &Stage, names: &[&str]) -> anyhow::Result<()> {
    let kinds: Vec<_> = names.iter().map(|name| json!({ "preset": name })).collect();
    let kinds = json!({ "spec": { "workloadKinds": kinds } });
    let admin = stage.cluster.requests()?;
    let answer = admin.patch(CONFIG, PatchKind::Merge, &kinds).await?;
    taken("other custom kinds", answer).map(drop)
}

/// Waits until the controller has gone through its work once more: it writes statuses of grants
/// before it looks at the registration, so when the second's is there it has looked.
async fn controller_looks(stage: &Stage, name: &str) -> anyhow::Result<()> {
    let admin = stage.cluster.requests()?;
    for part in ["a", "b"] {
        let name = format!("{name}-{part}");
        stage.grant(&name, &["any"]).await?;
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
    let stage = Stage::start(Cluster::start().await?, GRANTS).await?;
    // What somebody changes by hand is put back with the next change of the rules.
    change(&stage, 7, json!({})).await?;
    presets(&stage, &["argo-rollouts"]).await?;
    eventually(DEADLINE, async || {
        let found = registered(&stage, "rollouts").await?;
        ensure!(found == (true, 5), "{found:?}");
        Ok(())
    })
    .await?;

    change(&stage, 7, json!({ "rolegate.dev/unmanaged": "" })).await?;
    presets(&stage, &["argo-rollouts", "tekton"]).await?;
    controller_looks(&stage, "unmanaged").await?;
    assert_eq!(registered(&stage, "pipelineruns").await?, (false, 7));
    assert_eq!(registered(&stage, "rollouts").await?, (true, 7));

    // The annotation is taken away again.
    change(&stage, 7, json!({})).await?;
    controller_looks(&stage, "managed").await?;
    eventually(DEADLINE, async || {
        let found = registered(&stage, "pipelineruns").await?;
        ensure!(found == (true, 5), "{found:?}");
        Ok(())
    })
    .await
}
