//! `rolegate policy` against a live cluster, with the real binary, a kubeconfig and only the
//! documented rights. The results are compared with the webhook of the same cluster.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use rolegate_testkit::request::Requests;
use rolegate_testkit::{Cluster, TestPod, eventually};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::admission::harness::{DEADLINE, WebhookHarness, deployment, pod, taken};
use crate::policy_command::{Ran, run_as};

/// Grants, and a policy for all enforcement points, which reads objects of the cluster.
const RULES: &str = r#"
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: { name: cluster }
spec:
  baseRoleArn: "arn:aws:iam::123456789012:role/"
  reservedRoles: [eks-node]
  layers: { namespace: "off", grants: enforce, rego: enforce }
  rego: { replicate: [v1/services] }
---
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata: { name: shop }
spec:
  roles: ["shop-*"]
  subjects: [{ namespaces: [shop], serviceAccounts: [default] }]
  session: { durationSeconds: 1800 }
---
apiVersion: v1
kind: Namespace
metadata: { name: opa }
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: legacy
  namespace: opa
  labels: { openpolicyagent.org/policy: rego }
  annotations: { rolegate.dev/enforcement-points: "admission,agent" }
data:
  main: |
    package kubernetes.admission

    deny[msg] {
      input.request.object.metadata.annotations["iam.amazonaws.com/role"] == "shop-legacy"
      count(data.kubernetes.services[input.request.namespace]) > 0
      msg := "shop-legacy is not for namespaces with Services"
    }
"#;

/// A user with the rights that the commands need.
const READER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: policy-reader }
rules:
- { apiGroups: [""], resources: [namespaces, pods, serviceaccounts, configmaps, services], verbs: [get, list] }
- { apiGroups: [apps], resources: [deployments], verbs: [get] }
- { apiGroups: [rolegate.dev], resources: [rolegrants, rolegateconfigs], verbs: [get, list] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: policy-reader }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: policy-reader }
subjects: [{ kind: ServiceAccount, name: reader, namespace: people }]
"#;

/// The webhook and the controller may read the kinds that policies replicate. The manifest cannot
/// list them.
const REPLICATED: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: replicated }
rules:
- { apiGroups: [""], resources: [services], verbs: [get, list, watch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: replicated }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: replicated }
subjects: [{ kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:serviceaccounts:rolegate-system" }]
"#;

/// A cluster with its webhook, its workloads, and a user's kubeconfig.
struct Fixture {
    harness: WebhookHarness,
    kubeconfig: PathBuf,
}

impl Fixture {
    async fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceCell<Fixture> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.create_namespace("people", &[]).await?;
        cluster.create_service_account("people", "reader").await?;
        cluster.apply_manifest(READER).await?;
        cluster.apply_manifest(REPLICATED).await?;
        let token = cluster.service_account_token("people", "reader").await?;
        let kubeconfig = cluster.kubeconfig_for_token("reader", &token)?;
        for namespace in ["shop", "web"] {
            cluster.create_namespace(namespace, &[]).await?;
        }
        cluster.create_service_account("web", "front").await?;
        let service = json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "shop", "namespace": "shop" },
            "spec": { "ports": [{ "port": 80 }] } });
        cluster.apply_manifest(&service.to_string()).await?;
        let owner = json!({ "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "owner", "namespace": "shop" },
            "spec": { "selector": { "matchLabels": { "app": "web" } }, "template": {
                "metadata": { "labels": { "app": "web" },
                    "annotations": { "iam.amazonaws.com/role": "shop-reader" } },
                "spec": { "containers": [{ "name": "app", "image": "app" }] } } } });
        cluster.apply_manifest(&owner.to_string()).await?;
        // They exist before the webhook starts.
        let pods = [
            TestPod::new("shop", "api", "node").role("shop-reader"),
            TestPod::new("shop", "old", "node").role("shop-legacy"),
            TestPod::new("web", "front", "node")
                .role("web-reader")
                .service_account("front"),
            TestPod::new("web", "thief", "node").role("eks-node"),
            TestPod::new("web", "plain", "node"),
        ];
        for (number, pod) in (10..).zip(pods) {
            cluster.run_pod(&pod.address([10, 9, 0, number])).await?;
        }
        let harness = WebhookHarness::start(cluster, RULES).await?;
        let fixture = Self {
            harness,
            kubeconfig,
        };
        // A new binding may take effect a moment later.
        eventually(DEADLINE, async || {
            let ran = fixture.run(&["explain", "pod/api", "-n", "shop"]).await?;
            ensure!(ran.code == 0, "{}{}", ran.out, ran.err);
            Ok(())
        })
        .await?;
        Ok(fixture)
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        run_as(&self.kubeconfig, arguments).await
    }

    fn admin(&self) -> anyhow::Result<Requests> {
        self.harness.cluster.requests()
    }

    /// Returns the explanation of a pod, as JSON.
    async fn explained(&self, pod: &str, namespace: &str, code: i32) -> anyhow::Result<Value> {
        let pod = format!("pod/{pod}");
        let explain = ["explain", &pod, "-n", namespace, "-o", "json"];
        self.run(&explain).await?.ended(code).json()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_of_pods_of_a_cluster_and_of_thoughts() -> anyhow::Result<()> {
    let fixture = Fixture::shared().await?;
    let api = fixture.explained("api", "shop", 0).await?;
    assert_eq!(api["decision"], "allowed");
    assert_eq!(
        api["session"]["roleArn"],
        "arn:aws:iam::123456789012:role/shop-reader"
    );
    assert_eq!(api["session"]["sessionName"], "shop.default");
    assert_eq!(api["session"]["durationSeconds"], 1800);
    assert_eq!(api["layers"][0]["layer"], "grants");
    assert_eq!(api["policies"][0]["name"], "opa/legacy");

    let old = fixture.explained("old", "shop", 3).await?;
    assert_eq!(old["denial"]["layer"], "rego");
    let reason = old["denial"]["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("not for namespaces with Services"),
        "{reason}"
    );
    let thief = fixture.explained("thief", "web", 3).await?;
    assert_eq!(thief["denial"]["layer"], "reserved-role");
    assert_eq!(thief["grant"], Value::Null);
    let plain = fixture.explained("plain", "web", 3).await?;
    assert_eq!(plain["decision"], "noRole");

    // The missing grant is ready to apply, and then takes effect.
    let ask = ["explain", "--role=lab-reader", "-n", "shop", "-o", "json"];
    let thought = fixture.run(&ask).await?.ended(3).json()?;
    assert_eq!(thought["workload"]["name"], "");
    let refused = fixture.harness.try_pod("shop", "lab-reader").await?;
    assert!(refused.is_refused_by_webhook());
    let grant = &thought["grant"];
    fixture
        .harness
        .cluster
        .apply_manifest(&grant.to_string())
        .await?;
    let thought = fixture.run(&ask).await?.ended(0).json()?;
    assert_eq!(thought["decision"], "allowed");
    fixture.harness.until_allowed("shop", "lab-reader").await?;

    let text = fixture.run(&["explain", "pod/api", "-n", "shop"]).await?;
    assert!(text.ended(0).out.contains("shop-reader"));
    let stranger = fixture
        .run(&["explain", "pod/stranger", "-n", "shop"])
        .await?;
    let stranger = stranger.ended(1);
    assert!(
        stranger
            .err
            .contains("cannot find pod stranger in namespace shop"),
        "{}",
        stranger.err
    );
    let absent = fixture.run(&["explain", "deployment/x"]).await?.ended(1);
    let told = "cannot find deployment x in namespace default";
    assert!(absent.err.contains(told), "{}", absent.err);
    let owner = ["explain", "deployment/owner", "-n", "shop", "-o", "json"];
    let owner = fixture.run(&owner).await?.ended(0).json()?;
    assert_eq!(owner["session"]["sessionName"], "shop.default");
    fixture.run(&["explain", "service/x"]).await?.ended(64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_of_manifests_what_the_gate_says() -> anyhow::Result<()> {
    let fixture = Fixture::shared().await?;
    let folder = tempfile::tempdir()?;
    let write = |name: &str, objects: &[Value]| -> anyhow::Result<String> {
        let path = folder.path().join(name);
        let texts: Vec<_> = objects.iter().map(ToString::to_string).collect();
        std::fs::write(&path, texts.join("\n---\n"))?;
        Ok(path.display().to_string())
    };
    let jane = fixture.harness.jane()?;
    let pods = "/api/v1/namespaces/shop/pods?dryRun=All";
    let deployments = "/apis/apps/v1/namespaces/shop/deployments?dryRun=All";
    let objects = [
        (pods, pod("fine", Some("shop-reader"))),
        (pods, pod("plain", None)),
        (pods, pod("greedy", Some("admin"))),
        (pods, pod("node", Some("eks-node"))),
        (pods, pod("legacy", Some("shop-legacy"))),
        (pods, pod("malformed", Some("../x"))),
        (deployments, deployment("web", 1, Some("shop-reader"))),
        (deployments, deployment("shopper", 1, Some("payments-db"))),
    ];
    let mut all = Vec::new();
    for (path, object) in &objects {
        all.push(object.clone());
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let file = write("one.yaml", std::slice::from_ref(object))?;
        let check = ["check", "-f", &file, "-n", "shop", "-o", "json"];
        let ran = fixture.run(&check).await?;
        let answer = jane.post(path, object).await?;
        ensure!(
            answer.status.is_success() || answer.is_refused_by_webhook(),
            "{name}: {}",
            answer.message()
        );
        let refused = !answer.status.is_success();
        let report = ran.ended(if refused { 3 } else { 0 }).json()?;
        assert_eq!(report["checked"], 1, "{name}");
        for finding in report["findings"].as_array().into_iter().flatten() {
            let message = finding["message"].as_str().unwrap_or_default();
            assert!(
                !message.is_empty() && answer.message().contains(message),
                "{name}: {message} is not what the gate says: {}",
                answer.message()
            );
        }
    }
    let file = write("all.yaml", &all)?;
    let ran = fixture
        .run(&["check", "-f", &file, "-n", "shop", "-o", "json"])
        .await?;
    let report = ran.ended(3).json()?;
    assert_eq!(
        (&report["checked"], &report["refused"]),
        (&json!(8), &json!(5))
    );
    for (format, says) in [
        ("text", "would be denied"),
        ("sarif", "\"version\": \"2.1.0\""),
        ("github", "::error file="),
    ] {
        let ran = fixture
            .run(&["check", "-f", &file, "-n", "shop", "-o", format])
            .await?;
        let ran = ran.ended(3);
        assert!(ran.out.contains(says), "{format}: {}", ran.out);
    }
    let nowhere = fixture.run(&["check", "-f", "/nowhere"]).await?;
    assert!(matches!(nowhere.code, 1 | 64), "{}", nowhere.err);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn simulate_tells_whom_a_change_cuts_off_before_it_does() -> anyhow::Result<()> {
    let fixture = Fixture::shared().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("change.yaml");
    let path = file.display().to_string();
    let simulate = async |change: Value, code: i32| {
        std::fs::write(&file, change.to_string())?;
        let ran = fixture
            .run(&["simulate", "--rules", &path, "-o", "json"])
            .await?;
        ran.ended(code).json()
    };
    let grant = |name: &str, role: &str, namespace: &str| {
        json!({
            "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
            "metadata": { "name": name },
            "spec": { "roles": [role], "subjects": [{ "namespaces": [namespace] }] },
        })
    };
    let cuts = simulate(grant("shop", "shop-writer", "shop"), 3).await?;
    assert_eq!(cuts["newlyDenied"][0]["pods"], json!(["api"]), "{cuts:#}");
    let lets = simulate(grant("more", "web-*", "web"), 0).await?;
    assert_eq!(
        lets["newlyAllowed"][0]["pods"],
        json!(["front"]),
        "{lets:#}"
    );
    assert_eq!(lets["newlyAllowed"][0]["serviceAccount"], "front");
    let same = simulate(grant("other", "nobodys", "web"), 0).await?;
    assert_eq!(same["pods"], same["unchanged"], "{same:#}");

    // Without the configuration all requests are denied, which is reported too.
    let ran = fixture
        .run(&["simulate", "--rules", &path, "--replace", "-o", "json"])
        .await?;
    let gone = ran.ended(3).json()?;
    let reason = gone["newlyDenied"][0]["reason"]
        .as_str()
        .unwrap_or_default();
    assert!(reason.contains("RolegateConfig"), "{gone:#}");
    // The command wrote nothing.
    fixture.explained("api", "shop", 0).await?;
    fixture.explained("front", "web", 3).await?;
    let text = fixture.run(&["simulate", "--rules", &path]).await?;
    assert!(text.ended(0).out.starts_with("nothing changes"));
    fixture.run(&["simulate"]).await?.ended(64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn suggest_covers_what_runs_and_nothing_else() -> anyhow::Result<()> {
    let fixture = Fixture::shared().await?;
    // Pods that run while nothing is restricted.
    let open = [
        "suggest",
        "--cluster-config=off",
        "--base-role-arn=arn:aws:iam::123456789012:role/",
        "--reserved-role=eks-node",
    ];
    let suggested = fixture.run(&open).await?.ended(0);
    let grants = suggested.objects()?;
    let front: Vec<_> = grants
        .iter()
        .filter(|grant| grant["spec"]["subjects"][0]["namespaces"] == json!(["web"]))
        .collect();
    assert_eq!(front.len(), 1, "{}", suggested.out);
    let front = front.first().context("none")?;
    assert_eq!(front["spec"]["roles"], json!(["web-reader"]));
    assert_eq!(
        front["spec"]["subjects"][0]["serviceAccounts"],
        json!(["front"])
    );
    assert!(
        !suggested.out.contains("eks-node"),
        "our own role is suggested: {}",
        suggested.out
    );
    // The output is JSON, which the API server accepts unchanged.
    let role_name = open.iter().chain(&["-o", "json"]).copied();
    let role_name = fixture
        .run(&role_name.collect::<Vec<_>>())
        .await?
        .ended(0)
        .json()?;
    let items = role_name["items"].as_array().context("no list")?;
    assert_eq!(items.len(), grants.len());
    let path = "/apis/rolegate.dev/v1alpha1/rolegrants?dryRun=All";
    for grant in items {
        taken(
            "a suggested grant",
            fixture.admin()?.post(path, grant).await?,
        )?;
    }
    // By the current rules, each pod with a role is covered.
    let now = fixture.run(&["suggest"]).await?.ended(0);
    assert_eq!(now.objects()?.len(), 0, "{}", now.out);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn export_writes_what_the_api_server_takes() -> anyhow::Result<()> {
    let fixture = Fixture::shared().await?;
    let admin = fixture.admin()?;
    let vap = fixture.run(&["export", "--format=vap"]).await?.ended(0);
    assert!(
        vap.err.contains("Rego policies are not enforced"),
        "{}",
        vap.err
    );
    let documents = vap.objects()?;
    let of_kind = |kind: &str| {
        let of_kind = documents.iter().filter(move |one| one["kind"] == kind);
        of_kind.cloned().collect::<Vec<_>>()
    };
    let policies = of_kind("ValidatingAdmissionPolicy");
    assert!(policies.len() >= 5, "{}", policies.len());
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies?dryRun=All";
    for policy in &policies {
        taken("an exported policy", admin.post(path, policy).await?)?;
    }
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings?dryRun=All";
    for binding in of_kind("ValidatingAdmissionPolicyBinding") {
        taken("an exported binding", admin.post(path, &binding).await?)?;
    }
    assert!(vap.out.contains("eks-node"), "our own roles are left out");

    // The exported configuration is the controller's, except for the webhook's address.
    let bare = |mut registration: Value| {
        for webhook in registration["webhooks"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            webhook["clientConfig"] = Value::Null;
            // Fields that the API server fills in.
            if webhook["objectSelector"] == json!({}) {
                webhook["objectSelector"] = Value::Null;
            }
            if webhook["namespaceSelector"] == json!({}) {
                webhook["namespaceSelector"] = Value::Null;
            }
        }
        let webhooks = registration["webhooks"].take();
        without_nulls(webhooks)
    };
    eventually(DEADLINE, async || {
        let exported = fixture.run(&["export", "--format=webhook"]).await?.ended(0);
        let exported = exported.objects()?.into_iter().next().context("nothing")?;
        let kept = admin.get(rolegate_testkit::admission::REGISTRATION).await?;
        let kept = taken("the registration", kept)?;
        let (exported, kept) = (bare(exported), bare(kept));
        ensure!(exported == kept, "{exported:#}\nis not\n{kept:#}");
        Ok(())
    })
    .await?;

    let crds = fixture.run(&["export", "--format=crds"]).await?.ended(0);
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All";
    for definition in crds.objects()? {
        let answer = admin.post(path, &definition).await?;
        // The object exists already, and has no other fault.
        ensure!(answer.status == 409, "{}", answer.message());
    }
    fixture.run(&["export"]).await?.ended(64);
    Ok(())
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(all) => all.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn convert_reads_the_annotations_of_a_cluster() -> anyhow::Result<()> {
    let fixture = Fixture::shared().await?;
    let allowed = [("iam.amazonaws.com/allowed-roles", r#"["old-*"]"#)];
    fixture
        .harness
        .cluster
        .create_namespace("annotated", &allowed)
        .await?;
    let converted = fixture
        .run(&["convert", "-o", "json"])
        .await?
        .ended(0)
        .json()?;
    let items = converted["items"].as_array().context("no list")?;
    let one = items
        .iter()
        .find(|grant| grant["spec"]["subjects"][0]["namespaces"] == json!(["annotated"]));
    let one = one.with_context(|| converted.to_string())?;
    assert_eq!(one["spec"]["roles"], json!(["old-*"]));
    let path = "/apis/rolegate.dev/v1alpha1/rolegrants?dryRun=All";
    taken("a converted grant", fixture.admin()?.post(path, one).await?)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_and_who_is_away_is_told() -> anyhow::Result<()> {
    let fixture = Fixture::shared().await?;
    let cluster = &fixture.harness.cluster;
    cluster.create_service_account("people", "stranger").await?;
    let token = cluster.service_account_token("people", "stranger").await?;
    let stranger = cluster.kubeconfig_for_token("stranger", &token)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pod.yaml");
    std::fs::write(&file, pod("app", Some("x")).to_string())?;
    let file = file.display().to_string();
    let away = folder.path().join("away");
    let text = std::fs::read_to_string(&stranger)?;
    std::fs::write(&away, text.replace(&cluster.url(), "https://127.0.0.1:1"))?;
    for arguments in [
        &["explain", "pod/api", "-n", "shop"][..],
        &["explain", "--role=x", "-n", "shop"],
        &["check", "-f", &file],
        &["simulate", "--rules", &file],
        &["suggest"],
        &["convert"],
        &["export", "--format=vap"],
        &["export", "--format=webhook"],
    ] {
        let ran = run_as(&stranger, arguments).await?.ended(1);
        assert!(ran.err.contains("not permitted to read"), "{}", ran.err);
        assert_eq!(ran.out, "", "{arguments:?}");
        let ran = run_as(&away, arguments).await?.ended(1);
        assert!(ran.err.contains("cannot read"), "{}", ran.err);
    }
    Ok(())
}
