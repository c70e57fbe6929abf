//! Role shopping: a user who may create pods names a role that was granted to another user. The
//! webhook denies this for each kind of object that creates pods, at creation and at updates.

use anyhow::ensure;
use rolegate_testkit::request::{PatchKind, Requests};
use rolegate_testkit::{TestPod, eventually};
use serde_json::{Value, json};

use super::harness::{DEADLINE, ROLE, WebhookHarness, deployment, pod, refused, taken, template};

/// Custom resources.
const CUSTOM: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: { name: batches.example.com }
spec:
  group: example.com
  scope: Namespaced
  names: { plural: batches, kind: Batch }
  versions:
    - name: v1
      served: true
      storage: true
      schema: { openAPIV3Schema: { type: object, x-kubernetes-preserve-unknown-fields: true } }
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: { name: awsiamroles.zalando.org }
spec:
  group: zalando.org
  scope: Namespaced
  names: { plural: awsiamroles, kind: AWSIAMRole }
  versions:
    - name: v1
      served: true
      storage: true
      schema: { openAPIV3Schema: { type: object, x-kubernetes-preserve-unknown-fields: true } }
"#;

/// The roles that the grants of a shop cover.
const GRANTED: [&str; 2] = ["shop-reader", "shop-writer"];
/// A role that no grant covers.
const OTHERS: &str = "admin";

/// A kind whose objects lead to a role.
struct Kind {
    /// The group and version, and the plural, as in URLs.
    url: &'static str,
    /// The fields that lead to the role.
    fields: &'static [&'static str],
    /// An object without a role.
    object: Value,
}

const PODS: &[&str] = &["metadata", "annotations", ROLE];
const TEMPLATE: &[&str] = &["spec", "template", "metadata", "annotations", ROLE];

fn workload(version: &str, kind: &str, spec: Value) -> Value {
    let mut object = json!({ "apiVersion": version, "kind": kind, "spec": spec });
    if object.pointer("/spec/template").is_none() {
        object["spec"]["template"] = template(None);
    }
    object
}

/// The pods of a Job do not restart.
fn ending() -> Value {
    let mut template = template(None);
    template["spec"]["restartPolicy"] = "Never".into();
    template
}

fn kinds() -> Vec<Kind> {
    let kind = |url, fields, object| Kind {
        url,
        fields,
        object,
    };
    let selector = || json!({ "matchLabels": { "app": "app" } });
    let none = json!({ "replicas": 0, "selector": selector() });
    let job = json!({ "suspend": true, "template": ending() });
    let cron =
        json!({ "schedule": "0 0 1 1 *", "jobTemplate": { "spec": { "template": ending() } } });
    vec![
        kind("api/v1/pods", PODS, pod("", None)),
        kind(
            "apis/apps/v1/deployments",
            TEMPLATE,
            workload("apps/v1", "Deployment", none.clone()),
        ),
        kind(
            "apis/apps/v1/replicasets",
            TEMPLATE,
            workload("apps/v1", "ReplicaSet", none.clone()),
        ),
        kind(
            "apis/apps/v1/statefulsets",
            TEMPLATE,
            workload("apps/v1", "StatefulSet", none),
        ),
        kind(
            "apis/apps/v1/daemonsets",
            TEMPLATE,
            workload("apps/v1", "DaemonSet", json!({ "selector": selector() })),
        ),
        kind(
            "apis/batch/v1/jobs",
            TEMPLATE,
            workload("batch/v1", "Job", job),
        ),
        kind(
            "apis/batch/v1/cronjobs",
            &[
                "spec",
                "jobTemplate",
                "spec",
                "template",
                "metadata",
                "annotations",
                ROLE,
            ],
            json!({ "apiVersion": "batch/v1", "kind": "CronJob", "spec": cron }),
        ),
        kind(
            "api/v1/replicationcontrollers",
            TEMPLATE,
            workload("v1", "ReplicationController", json!({ "replicas": 0 })),
        ),
        kind(
            "api/v1/podtemplates",
            &["template", "metadata", "annotations", ROLE],
            json!({ "apiVersion": "v1", "kind": "PodTemplate", "template": template(None) }),
        ),
        kind(
            "apis/example.com/v1/batches",
            &[
                "spec",
                "workers",
                "main",
                "template",
                "metadata",
                "annotations",
                ROLE,
            ],
            json!({ "apiVersion": "example.com/v1", "kind": "Batch",
                "spec": { "workers": { "main": { "template": template(None) } } } }),
        ),
        kind(
            "api/v1/serviceaccounts",
            &["metadata", "annotations", "eks.amazonaws.com/role-arn"],
            json!({ "apiVersion": "v1", "kind": "ServiceAccount" }),
        ),
        kind(
            "apis/zalando.org/v1/awsiamroles",
            &["spec", "roleReference"],
            json!({ "apiVersion": "zalando.org/v1", "kind": "AWSIAMRole" }),
        ),
    ]
}

impl Kind {
    fn path(&self, namespace: &str) -> String {
        let (version, plural) = self.url.rsplit_once('/').unwrap();
        format!("/{version}/namespaces/{namespace}/{plural}")
    }

    /// Returns the path of the role in the webhook's message.
    fn place(&self) -> String {
        let (last, rest) = self.fields.split_last().unwrap();
        if last.contains('/') {
            format!("{}[{last}]", rest.join("."))
        } else {
            self.fields.join(".")
        }
    }

    /// Returns a patch with only the role.
    fn role(&self, role: &str) -> Value {
        // The configuration's base ARN completes the name of a role, but not for web identity.
        let role = if self.url.ends_with("serviceaccounts") {
            format!("arn:aws:iam::123456789012:role/{role}")
        } else {
            role.to_owned()
        };
        let fields = self.fields.iter().rev();
        fields.fold(role.into(), |value, field| json!({ *field: value }))
    }

    fn named(&self, name: &str, role: &str) -> Value {
        let mut object = self.object.clone();
        object["metadata"]["name"] = name.into();
        merge(&mut object, self.role(role));
        object
    }

    /// Creates and changes an object, as `jane`.
    async fn try_all(&self, jane: &Requests, namespace: &str) -> anyhow::Result<()> {
        let path = self.path(namespace);
        let (place, url) = (self.place(), self.url);
        let says = [
            &*place,
            "arn:aws:iam::123456789012:role/admin",
            "(layer grants, rule default deny)",
        ];
        let [reader, writer] = GRANTED;

        let answer = jane.post(&path, &self.named("mine", OTHERS)).await?;
        refused(&format!("a creation of {url}"), &answer, &says)?;
        let one = format!("{path}/mine");
        ensure!(
            jane.get(&one).await?.status == 404,
            "{url} was made after all"
        );
        let answer = jane.post(&path, &self.named("mine", reader)).await?;
        taken(&format!("a creation of {url} with a granted role"), answer)?;

        let answer = jane
            .patch(&one, PatchKind::Merge, &self.role(OTHERS))
            .await?;
        refused(&format!("a patch of {url}"), &answer, &says)?;
        let answer = eventually(DEADLINE, async || {
            let mut whole = taken(url, jane.get(&one).await?)?;
            merge(&mut whole, self.role(OTHERS));
            let answer = jane.put(&one, &whole).await?;
            // The object's controller may have written in between.
            ensure!(answer.status != 409, "{}", answer.message());
            Ok(answer)
        })
        .await?;
        refused(&format!("a replacement of {url}"), &answer, &says)?;
        let applied = format!("{one}?fieldManager=jane&force=true");
        let answer = jane
            .patch(&applied, PatchKind::Apply, &self.named("mine", OTHERS))
            .await?;
        refused(&format!("an apply of {url}"), &answer, &says)?;
        let answer = jane
            .patch(&one, PatchKind::Merge, &self.role(writer))
            .await?;
        taken(&format!("a patch of {url} to another granted role"), answer)?;
        let answer = jane
            .patch(&applied, PatchKind::Apply, &self.named("mine", reader))
            .await?;
        taken(&format!("an apply of {url} with a granted role"), answer)?;

        let dry = jane
            .post(&format!("{path}?dryRun=All"), &self.named("dry", OTHERS))
            .await?;
        refused(&format!("a dry run of {url}"), &dry, &says)?;
        let dry = jane
            .post(&format!("{path}?dryRun=All"), &self.named("dry", reader))
            .await?;
        taken(&format!("a dry run of {url} with a granted role"), dry)?;
        let new = format!("{path}/new?fieldManager=jane");
        let answer = jane
            .patch(&new, PatchKind::Apply, &self.named("new", OTHERS))
            .await?;
        refused(&format!("an apply that makes {url}"), &answer, &says)?;
        taken(&format!("the deletion of {url}"), jane.delete(&one).await?)?;
        Ok(())
    }
}

/// Merges the fields of a patch without nulls into an object.
fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            for (name, value) in fields {
                merge(&mut target[name], value);
            }
        }
        other => *target = other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn role_shopping_is_refused_for_every_kind() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "every-kind";
    harness.cluster.apply_manifest(CUSTOM).await?;
    harness.shop(namespace).await?;
    let jane = harness.jane()?;
    let kinds = kinds();
    // The webhook configuration covers a newly configured kind.
    for kind in kinds.iter().filter(|kind| kind.url.contains("example.com")) {
        eventually(DEADLINE, async || {
            let path = format!("{}?dryRun=All", kind.path(namespace));
            let answer = jane.post(&path, &kind.named("probe", OTHERS)).await?;
            refused(kind.url, &answer, &[])
        })
        .await?;
    }
    let mut faults = Vec::new();
    for kind in &kinds {
        if let Err(error) = kind.try_all(&jane, namespace).await {
            faults.push(format!("{error:#}"));
        }
    }
    ensure!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_runs_is_not_annotated_with_somebody_elses_role() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "live";
    harness.shop(namespace).await?;
    let jane = harness.jane()?;
    let app = TestPod::new(namespace, "app", "node").address([10, 1, 0, 5]);
    let bare = TestPod::new(namespace, "bare", "node").address([10, 1, 0, 6]);
    harness.cluster.run_pod(&app.role("shop-reader")).await?;
    harness.cluster.run_pod(&bare).await?;
    let annotation = |role| json!({ "metadata": { "annotations": { ROLE: role } } });
    for name in ["app", "bare"] {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let before = taken(name, jane.get(&path).await?)?;
        let answer = jane
            .patch(&path, PatchKind::Merge, &annotation(Some(OTHERS)))
            .await?;
        let says = ["metadata.annotations[iam.amazonaws.com/role]", "role/admin"];
        refused(&format!("annotating pod {name}"), &answer, &says)?;
        let after = taken(name, jane.get(&path).await?)?;
        ensure!(before == after, "pod {name} was changed: {after}");
        for role in [Some("shop-writer"), None] {
            let answer = jane
                .patch(&path, PatchKind::Merge, &annotation(role))
                .await?;
            taken(&format!("annotating pod {name} with {role:?}"), answer)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_taken_away_blocks_no_scale_no_finalizer_and_no_deletion()
-> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "revoked";
    harness.shop(namespace).await?;
    let jane = harness.jane()?;
    let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let web = deployment("web", 1, Some("shop-reader"));
    taken("the Deployment", jane.post(&deployments, &web).await?)?;
    let made = eventually(DEADLINE, async || {
        let all = taken("the list of pods", jane.get(&pods).await?)?;
        let name = all["items"][0]["metadata"]["name"].as_str();
        let name = name.map(str::to_owned);
        name.ok_or_else(|| anyhow::anyhow!("the Deployment has made no pod yet"))
    })
    .await?;

    harness.grant(namespace, &["other"]).await?;
    harness.until_refused(namespace, "shop-reader").await?;
    let (web, pod) = (format!("{deployments}/web"), format!("{pods}/{made}"));
    let replicas = |number: u32| json!({ "spec": { "replicas": number } });
    let metadata = |fields: Value| json!({ "metadata": fields });
    for (what, path, change) in [
        ("a scale", format!("{web}/scale"), replicas(2)),
        ("other replicas", web.clone(), replicas(1)),
        (
            "a Deployment's label",
            web.clone(),
            metadata(json!({ "labels": { "a": "b" } })),
        ),
        (
            "a Deployment's finalizer",
            web.clone(),
            metadata(json!({ "finalizers": ["example.com/f"] })),
        ),
        (
            "no finalizer of a Deployment",
            web.clone(),
            metadata(json!({ "finalizers": null })),
        ),
        (
            "a pod's finalizer",
            pod.clone(),
            metadata(json!({ "finalizers": ["example.com/f"] })),
        ),
        (
            "a pod's annotation",
            pod.clone(),
            metadata(json!({ "annotations": { "a": "b" } })),
        ),
        (
            "a pod's status",
            format!("{pod}/status"),
            json!({ "status": { "phase": "Running" } }),
        ),
    ] {
        let answer = jane.patch(&path, PatchKind::Merge, &change).await?;
        taken(what, answer)?;
    }
    // Changes that would create new pods with the role are denied.
    let image = json!({ "spec": { "template": { "metadata": { "labels": { "new": "x" } } } } });
    let answer = jane.patch(&web, PatchKind::Merge, &image).await?;
    refused("a new template", &answer, &["role/shop-reader"])?;

    taken("the Deployment's deletion", jane.delete(&web).await?)?;
    let now = format!("{pod}?gracePeriodSeconds=0");
    taken("the pod's deletion", jane.delete(&now).await?)?;
    let none = metadata(json!({ "finalizers": null }));
    let answer = jane.patch(&pod, PatchKind::Merge, &none).await?;
    taken("the last finalizer of a pod that is deleted", answer)?;
    eventually(DEADLINE, async || {
        let all = taken("the list of pods", jane.get(&pods).await?)?;
        ensure!(
            all["items"] == json!([]),
            "there are pods yet: {}",
            all["items"]
        );
        Ok(())
    })
    .await
}
