//! The table of cases through a real API server. It calls `rolegate admission` by the
//! ValidatingWebhookConfiguration of each world, so the conditions of that configuration may only
//! skip requests that the webhook allows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::StatusCode;
use rolegate_api::RolegateConfig;
use rolegate_core::annotation::{AnnotationKeys, DEFAULT_ROLE};
use rolegate_core::config::RuleConfig;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_review::webhook_configuration::{Endpoint, Registration, webhook_configuration};
use rolegate_testkit::admission::{Certificate, HOME, REGISTRATION};
use rolegate_testkit::cases::{Case, Verdict, World, load_all};
use rolegate_testkit::request::{Answer, PatchKind, Requests};
use rolegate_testkit::{Cluster, TestAdmission, eventually};
use serde_json::{Value, json};

use crate::merge_patch::difference;

const DEADLINE: Duration = Duration::from_secs(120);
/// Groups whose kinds an API server knows, or that the webhook's manifest defines.
const KNOWN: &[&str] = &[
    "",
    "apps",
    "batch",
    "policy",
    "autoscaling",
    "authentication.k8s.io",
    "rolegate.dev",
];

const MALFORMED: &str = "the API server can't read such metadata";
const LINK_LOCAL: &str = "the API server takes no link-local address for a Service";

/// Cases that cannot occur on an API server, with the reason. They are sent to the webhook
/// directly.
const IMPOSSIBLE: &[(&str, &str)] = &[
    ("a Service is deleted", LINK_LOCAL),
    (
        "a Service that is there already loses a finalizer",
        LINK_LOCAL,
    ),
    (
        "a connection is let through",
        "nothing is registered for it, and there is no kubelet",
    ),
    ("a role that is not a string is a fault", MALFORMED),
    (
        "a scale is let through",
        "its kind has no objects; scales of Deployments are tried elsewhere",
    ),
    (
        "a service account's annotations that are not a map",
        MALFORMED,
    ),
    ("annotations that are not a map are a fault", MALFORMED),
    ("labels that are not a map are a fault", MALFORMED),
    ("threat 21, IPv4 within IPv6", LINK_LOCAL),
    ("threat 21, a Service at the metadata address", LINK_LOCAL),
    (
        "threat 21, a Service is changed to the metadata address",
        LINK_LOCAL,
    ),
    (
        "threat 21, the address of container credentials",
        LINK_LOCAL,
    ),
    ("threat 21, the addresses of Pod Identity", LINK_LOCAL),
];

/// Cases that the webhook would deny, and for which the conditions skip the webhook. Their
/// templates name no role: these are custom resources from which their own controller cannot create
/// a pod.
const UNASKED: &[&str] = &[
    "a template that is not an object is a fault",
    "annotations of a template that are not a map are a fault",
];

/// An API server, its webhook, and a client that creates objects in the state before a change.
struct Fixture {
    cluster: Cluster,
    driver: Requests,
    test_admission: Option<TestAdmission>,
    certificate: Certificate,
}

impl Fixture {
    async fn start(cases: &[Case]) -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.install_admission().await?;
        cluster.open_to(&["system:authenticated"]).await?;
        let (chain, key) = cluster.serving_pair("webhook", &["127.0.0.1"])?;
        let fixture = Self {
            driver: cluster.requests()?,
            cluster,
            test_admission: None,
            certificate: Certificate::Files(chain, key),
        };
        fixture.define_kinds(cases).await?;
        Ok(fixture)
    }

    /// Custom resources of the table that the API server does not know.
    async fn define_kinds(&self, cases: &[Case]) -> anyhow::Result<()> {
        let mut kinds = BTreeMap::new();
        for case in cases {
            let (group, version) = group_version(case.subject());
            if !KNOWN.contains(&group) {
                kinds.insert((group, version, case.kind()), case.resource());
            }
        }
        for ((group, version, kind), plural) in kinds {
            let definition = json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": format!("{plural}.{group}"),
                    // Groups of k8s.io require an annotation about their approval.
                    "annotations": { "api-approved.kubernetes.io": "unapproved, a stand-in" },
                },
                "spec": {
                    "group": group, "scope": "Namespaced",
                    "names": { "plural": plural, "kind": kind },
                    "versions": [{ "name": version, "served": true, "storage": true,
                        "schema": { "openAPIV3Schema": {
                            "type": "object", "x-kubernetes-preserve-unknown-fields": true }}}],
                },
            });
            self.cluster.apply_manifest(&definition.to_string()).await?;
            let path = format!("/apis/{group}/{version}/{plural}");
            eventually(DEADLINE, async || {
                self.driver.get(&path).await?.object().map(drop)
            })
            .await?;
        }
        Ok(())
    }

    /// Replaces the current world with another.
    async fn enter(&mut self, world: &World) -> anyhow::Result<()> {
        self.driver.delete(REGISTRATION).await?;
        self.test_admission = None;
        for kind in ["rolegrants", "rolegateconfigs"] {
            let path = format!("/apis/rolegate.dev/v1alpha1/{kind}");
            self.driver.delete(&path).await?.object()?;
        }
        for document in &world.documents {
            self.cluster.apply_manifest(&document.to_string()).await?;
            if document["kind"] == "Namespace" {
                let name = document["metadata"]["name"].as_str().unwrap_or_default();
                for account in ["default", "api", "web"] {
                    self.cluster.create_service_account(name, account).await?;
                }
            }
        }
        let mut test_admission =
            TestAdmission::bare(&self.cluster, self.certificate.clone()).await?;
        test_admission.ready().await?;
        self.register(&test_admission, world).await?;
        self.test_admission = Some(test_admission);
        Ok(())
    }

    /// Registers the webhook for a world, and waits until the configuration is in effect.
    async fn register(&self, test_admission: &TestAdmission, world: &World) -> anyhow::Result<()> {
        let mut documents = world.documents.iter();
        let config = documents.find(|document| document["kind"] == "RolegateConfig");
        let config: RolegateConfig = serde_json::from_value(config.context("no config")?.clone())?;
        let config = RuleConfig::try_from(&config)?;
        let has_default = |document: &Value| {
            let default = &document["metadata"]["annotations"][DEFAULT_ROLE];
            document["kind"] == "Namespace" && default.is_string()
        };
        let ca = self.cluster.ca_pem();
        let mut registration = webhook_configuration(&Registration {
            config: &config,
            keys: &AnnotationKeys::default(),
            has_default_role: config.default_role.is_some()
                || world.documents.iter().any(has_default),
            has_rego: config.modes[LayerId::Rego] != Mode::Off,
            endpoint: Endpoint::Url(&test_admission.url()),
            ca_bundle: ca.as_bytes(),
            own_namespace: HOME,
            requires_injection: Mode::Off,
        });
        let webhooks = registration["webhooks"].as_array_mut();
        let webhooks = webhooks.context("no webhooks")?;
        for webhook in webhooks.iter_mut() {
            let mine = json!({ "name": "not-the-driver",
                "expression": "request.userInfo.username != 'admin'" });
            match webhook["matchConditions"].as_array_mut() {
                Some(conditions) => conditions.push(mine),
                None => webhook["matchConditions"] = json!([mine]),
            }
        }
        // The API server loads all webhooks at once: if this one is in effect, the others are too.
        let mut probe = webhooks.first().context("no webhook")?.clone();
        let name = format!("probe-{}", world.name);
        probe["name"] = format!("{name}.rolegate.dev").into();
        probe["rules"] = json!([{ "apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CREATE"], "resources": ["configmaps"] }]);
        probe["matchConditions"] = json!([{ "name": "probe",
            "expression": format!("object.metadata.name == '{name}'") }]);
        probe["clientConfig"] = json!({ "url": "https://127.0.0.1:1/" });
        webhooks.push(probe);
        self.cluster
            .apply_manifest(&registration.to_string())
            .await?;
        let object = json!({ "metadata": { "name": name } });
        eventually(DEADLINE, async || {
            let path = "/api/v1/namespaces/default/configmaps?dryRun=All";
            let answer = self.driver.post(path, &object).await?;
            ensure!(answer.message().contains(&name), "{}", answer.body);
            Ok(())
        })
        .await
        .context("the API server does not read the registration")
    }

    /// Sends the request of a case; `None` if the API server does not accept it as a request at
    /// all.
    async fn run(&self, case: &Case) -> anyhow::Result<Option<Answer>> {
        let mut user = case.user.clone();
        // A real node has so few rights that another admission plugin would reject the request
        // first.
        user.name = user.name.replace("system:node:", "kubelet-");
        let user = self.cluster.requests()?.as_user(&user);
        let object = case.object.clone().map(valid);
        let neighbour = |path: &str| match &*case.subresource {
            "" => format!("{path}?dryRun=All"),
            subresource => format!("{path}/{subresource}?dryRun=All"),
        };
        if case.operation == "CREATE" {
            let object = object.context("a creation of nothing")?;
            let mut path = collection(case);
            if !case.subresource.is_empty() {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                path = format!("{path}/{name}");
            }
            return Ok(heard(user.post(&neighbour(&path), &object).await?));
        }
        let Some(old) = case.old_object.clone().map(valid) else {
            return Ok(None);
        };
        let name = old["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("{}/{name}", collection(case));
        let existed = self.driver.get(&path).await?.status.is_success();
        let Some(before) = self.make(&old, &path, &collection(case), existed).await? else {
            return Ok(None);
        };
        let answer = if case.operation == "DELETE" {
            user.delete(&neighbour(&path)).await?
        } else {
            let mut patch = difference(&old, &object.context("an update to nothing")?);
            // Fields that the API server has added to a pod are immutable.
            if let Some(wanted) = patch
                .pointer_mut("/spec/tolerations")
                .and_then(Value::as_array_mut)
            {
                let added = before["spec"]["tolerations"].as_array();
                wanted.extend(added.into_iter().flatten().cloned());
            }
            if case.subresource == "finalize" {
                let mut whole = before;
                json_patch::merge(&mut whole, &patch);
                user.put(&neighbour(&path), &whole).await?
            } else {
                user.patch(&neighbour(&path), PatchKind::Merge, &patch)
                    .await?
            }
        };
        self.clear(case, &path, existed).await?;
        Ok(heard(answer))
    }

    /// Creates an object in the state before a change.
    async fn make(
        &self,
        old: &Value,
        path: &str,
        collection: &str,
        existed: bool,
    ) -> anyhow::Result<Option<Value>> {
        let mut seed = old.clone();
        let metadata = seed["metadata"].as_object_mut();
        let going = metadata.is_some_and(|all| all.remove("deletionTimestamp").is_some());
        let made = if existed {
            self.driver.patch(path, PatchKind::Merge, &seed).await?
        } else {
            self.driver.post(collection, &seed).await?
        };
        if matches!(made.status.as_u16(), 400 | 404 | 422) {
            return Ok(None);
        }
        let made = made.object().context("what was there before a change")?;
        if going {
            let now = format!("{path}?gracePeriodSeconds=0");
            self.driver.delete(&now).await?.object()?;
        }
        Ok(Some(made))
    }

    /// Deletes the objects that a case has left.
    async fn clear(&self, case: &Case, path: &str, existed: bool) -> anyhow::Result<()> {
        let bare =
            json!({ "metadata": { "finalizers": null, "annotations": null, "labels": null } });
        self.driver.patch(path, PatchKind::Merge, &bare).await?;
        if existed {
            return Ok(());
        }
        let now = format!("{path}?gracePeriodSeconds=0&propagationPolicy=Background");
        self.driver.delete(&now).await?;
        if case.kind() == "Namespace" {
            // No controller runs that would empty the namespace.
            let mut gone = self.driver.get(path).await?.body;
            gone["spec"]["finalizers"] = json!([]);
            self.driver.put(&format!("{path}/finalize"), &gone).await?;
        }
        Ok(())
    }
}

/// Returns the response to a request that reached admission.
fn heard(answer: Answer) -> Option<Answer> {
    let is_none = matches!(answer.status.as_u16(), 400 | 422);
    (answer.is_refused_by_webhook() || !is_none).then_some(answer)
}

/// Adds the fields that the API server's own validation requires to the object of a case.
fn valid(mut object: Value) -> Value {
    let mirror = "kubernetes.io/config.mirror";
    if object["kind"] == "Pod" && object["metadata"]["annotations"][mirror].is_string() {
        object["spec"]["nodeName"] = "a".into();
    }
    // The template of a running object is immutable.
    if object["kind"] == "Job" {
        object["spec"]["suspend"] = true.into();
    }
    object
}

fn group_version(object: &Value) -> (&str, &str) {
    let text = object["apiVersion"].as_str().unwrap_or_default();
    text.split_once('/').unwrap_or(("", text))
}

/// The path of all objects of a case's kind.
fn collection(case: &Case) -> String {
    let (group, version) = match &*case.subresource {
        "token" | "binding" | "eviction" => ("", "v1"),
        _ => group_version(case.subject()),
    };
    let plural = match &*case.subresource {
        "eviction" => "pods".into(),
        _ => case.resource(),
    };
    let root = match group {
        "" => "/api".to_owned(),
        group => format!("/apis/{group}"),
    };
    match case.namespace() {
        "" => format!("{root}/{version}/{plural}"),
        namespace => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
    }
}

/// Returns the differences between a response and the expected verdict.
fn faults(case: &Case, answer: &Answer) -> Vec<String> {
    let message = answer.message();
    // Steps after admission fail in a dry run.
    let is_late = matches!(answer.status, StatusCode::CONFLICT | StatusCode::NOT_FOUND);
    let is_allowed = answer.status.is_success() || is_late;
    let mut faults = Vec::new();
    if UNASKED.contains(&&*case.name) {
        if !is_allowed {
            faults.push(format!(
                "the API server called the webhook after all: {message}"
            ));
        }
        return faults;
    }
    match case.expect.admission {
        Verdict::Allow if !is_allowed => faults.push(format!("refused: {message}")),
        Verdict::Deny if !answer.is_refused_by_webhook() => {
            faults.push(format!("not refused: {} {message}", answer.status));
        }
        _ => {}
    }
    let warnings = answer.warnings.join("\n");
    let ours = warnings.contains("rolegate would deny");
    for text in &case.expect.says {
        if !message.contains(text) {
            faults.push(format!("{text:?} is not said: {message}"));
        }
    }
    for text in &case.expect.warns {
        if !warnings.contains(text) {
            faults.push(format!("{text:?} is not warned about: {warnings:?}"));
        }
    }
    if case.expect.warns.is_empty() && ours {
        faults.push(format!("unexpected warnings: {warnings}"));
    }
    faults
}

#[tokio::test]
async fn threat_23_the_table_of_cases_holds_at_the_api_server() -> anyhow::Result<()> {
    let cases = load_all()?;
    let mut fixture = Fixture::start(&cases).await?;
    let worlds: BTreeMap<_, _> = cases
        .iter()
        .map(|case| (&case.world.name, &case.world))
        .collect();
    let (mut wrong, mut impossible) = (Vec::new(), BTreeSet::new());
    for (name, world) in worlds {
        fixture
            .enter(world)
            .await
            .with_context(|| format!("world {name}"))?;
        for case in cases.iter().filter(|case| case.world.name == *name) {
            let answer = fixture.run(case).await;
            match answer.with_context(|| format!("{}: {}", case.file, case.name))? {
                None => drop(impossible.insert(&*case.name)),
                Some(answer) => {
                    let faults = faults(case, &answer).into_iter();
                    wrong.extend(
                        faults.map(|fault| format!("{}: {}: {fault}", case.file, case.name)),
                    );
                }
            }
        }
    }
    let known: BTreeSet<_> = IMPOSSIBLE.iter().map(|(name, _)| *name).collect();
    ensure!(
        wrong.is_empty(),
        "{} wrong:\n{}\nimpossible: {impossible:#?}",
        wrong.len(),
        wrong.join("\n")
    );
    ensure!(
        impossible == known,
        "what can't come about is {impossible:#?}, not {known:#?}"
    );
    Ok(())
}
