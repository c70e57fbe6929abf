//! A real API server with exported policies, to which the cases of the table are sent as requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use rolegate_policy::vap::Export;
use rolegate_testkit::cases::{Case, User};
use rolegate_testkit::{Cluster, eventually};
use serde_json::{Value, json};

use crate::merge_patch::difference;

pub(super) const DEADLINE: Duration = Duration::from_secs(120);
/// The namespace of the parameter object.
pub(super) const HOME: &str = "rolegate-system";
/// A label with which the driver creates objects in the state before a change.
const SEED: &str = "seed";
/// Groups of the API server's own kinds.
const BUILTIN: &[&str] = &[
    "",
    "apps",
    "batch",
    "policy",
    "autoscaling",
    "authentication.k8s.io",
];
/// A response of the API server.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Value,
    pub(super) warnings: Vec<String>,
}

impl Answer {
    pub(super) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    pub(super) fn is_refused_by_policy(&self) -> bool {
        self.message()
            .contains("ValidatingAdmissionPolicy 'rolegate-")
    }
}

/// The API server and clients that act as the user of each case.
pub(super) struct Server {
    pub(super) cluster: Cluster,
    client: Client,
}

impl Server {
    pub(super) async fn start() -> Self {
        let cluster = Cluster::start().await.unwrap();
        let client = cluster.admin().unwrap();
        // All users have all rights in RBAC, so that only policies deny.
        let manifest = format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\n\
             metadata: {{ name: all-users }}\n\
             roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin }}\n\
             subjects: [{{ apiGroup: rbac.authorization.k8s.io, kind: Group, name: system:authenticated }}]\n\
             ---\napiVersion: v1\nkind: Namespace\nmetadata: {{ name: {HOME} }}\n"
        );
        cluster.apply_manifest(&manifest).await.unwrap();
        let server = Self { cluster, client };
        let user = User::default();
        eventually(DEADLINE, async || {
            let answer = server
                .ask(Method::GET, "/api/v1/pods", None, Some(&user))
                .await;
            anyhow::ensure!(answer.status.is_success(), "{}", answer.message());
            Ok(())
        })
        .await
        .unwrap();
        server
    }

    /// Sends one request, as the administrator or as `user`.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        user: Option<&User>,
    ) -> Answer {
        let content = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content);
        if let Some(user) = user {
            // A real node has so few rights that another admission plugin would reject the request
            // first.
            let name = user.name.replace("system:node:", "kubelet-");
            request = request.header("impersonate-user", name);
            for group in &user.groups {
                request = request.header("impersonate-group", group);
            }
        }
        let body = body.map_or_else(Vec::new, |body| serde_json::to_vec(body).unwrap());
        let request = request.body(Body::from(body)).unwrap();
        let response = self.client.send(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let warnings = parts.headers.get_all("warning").iter();
        Answer {
            status: parts.status,
            warnings: warnings
                .map(|text| text.to_str().unwrap().to_owned())
                .collect(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        }
    }

    pub(super) async fn admin(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.ask(method, path, body, None).await
    }

    /// Custom resources of the table that the API server does not know.
    pub(super) async fn define_kinds(&self, cases: &[Case]) {
        let mut kinds = BTreeMap::new();
        for case in cases {
            let (group, version) = group_version(case.subject());
            if !BUILTIN.contains(&group) {
                let scoped = !case.namespace().is_empty();
                kinds.insert((group, version, case.kind()), (case.resource(), scoped));
            }
        }
        let mut paths = Vec::new();
        for ((group, version, kind), (plural, scoped)) in kinds {
            let definition = json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": format!("{plural}.{group}"),
                    // Groups of k8s.io require an annotation about their approval.
                    "annotations": { "api-approved.kubernetes.io": "unapproved, a stand-in" },
                },
                "spec": {
                    "group": group,
                    "scope": if scoped { "Namespaced" } else { "Cluster" },
                    "names": { "plural": plural, "kind": kind },
                    "versions": [{ "name": version, "served": true, "storage": true,
                        "subresources": { "status": {} },
                        "schema": { "openAPIV3Schema": {
                            "type": "object", "x-kubernetes-preserve-unknown-fields": true }}}],
                },
            });
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            let answer = self.admin(Method::POST, path, Some(&definition)).await;
            assert!(answer.status.is_success(), "{}", answer.message());
            paths.push(format!("/apis/{group}/{version}/{plural}"));
        }
        for path in paths {
            eventually(DEADLINE, async || {
                let answer = self.admin(Method::GET, &path, None).await;
                anyhow::ensure!(answer.status.is_success(), "{path}: {}", answer.message());
                Ok(())
            })
            .await
            .unwrap();
        }
    }

    /// Applies a manifest, and retries while the API server does not know a kind of it yet.
    pub(super) async fn apply_all(&self, manifest: &str) {
        eventually(DEADLINE, async || {
            self.cluster.apply_manifest(manifest).await?;
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Replaces the enforced export, and waits until the new one is in effect.
    pub(super) async fn enforce(&self, name: &str, export: &Export, before: &mut BTreeSet<String>) {
        let base = "/apis/admissionregistration.k8s.io/v1";
        for name in std::mem::take(before) {
            for kind in [
                "validatingadmissionpolicybindings",
                "validatingadmissionpolicies",
            ] {
                self.admin(Method::DELETE, &format!("{base}/{kind}/{name}"), None)
                    .await;
            }
        }
        self.apply_all(&export.yaml().unwrap()).await;
        for document in &export.documents {
            let binding = document["metadata"]["name"].as_str().unwrap();
            if document["kind"] == "ValidatingAdmissionPolicyBinding" {
                before.insert(binding.to_owned());
                let patch = json!({ "spec": { "matchResources": { "objectSelector": {
                    "matchExpressions": [{ "key": SEED, "operator": "DoesNotExist" }]}}}});
                let path = format!("{base}/validatingadmissionpolicybindings/{binding}");
                let answer = self.admin(Method::PATCH, &path, Some(&patch)).await;
                assert!(answer.status.is_success(), "{}", answer.message());
            }
        }
        // The last object of each kind: a policy that denies it has loaded the objects before it.
        // This policy reads a table as well.
        let probe = format!(
            r#"
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrantTable
metadata: {{ name: probe, namespace: {HOME} }}
data: {{ world: "{name}" }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{ name: probe }}
spec:
  paramKind: {{ apiVersion: rolegate.dev/v1alpha1, kind: RoleGrantTable }}
  matchConstraints:
    resourceRules: [{{ apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps] }}]
  validations: [{{ expression: "object.metadata.name != 'probe-{name}'", messageExpression: "'world ' + params.data.world" }}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{ name: probe }}
spec:
  policyName: probe
  validationActions: [Deny]
  paramRef: {{ name: probe, namespace: {HOME}, parameterNotFoundAction: Deny }}
"#
        );
        before.insert("probe".into());
        self.apply_all(&probe).await;
        let path = format!("/api/v1/namespaces/{HOME}/configmaps?dryRun=All");
        let object = json!({ "metadata": { "name": format!("probe-{name}") } });
        eventually(DEADLINE, async || {
            let answer = self.admin(Method::POST, &path, Some(&object)).await;
            let wanted = format!("world {name}");
            anyhow::ensure!(answer.message().contains(&wanted), "{}", answer.message());
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Sends the request of a case; `None` if it cannot occur on a real API server.
    pub(super) async fn run(&self, case: &Case) -> Option<Answer> {
        let object = case.object.clone().map(valid);
        let user = Some(&case.user);
        if case.operation == "CREATE" {
            let object = object.unwrap();
            let name = object["metadata"]["name"].as_str();
            let path = match &*case.subresource {
                "" => collection(case),
                subresource => format!("{}/{}/{subresource}", collection(case), name.unwrap()),
            };
            let answer = self
                .ask(
                    Method::POST,
                    &format!("{path}?dryRun=All"),
                    Some(&object),
                    user,
                )
                .await;
            return possible(answer);
        }
        let old = valid(case.old_object.clone().unwrap());
        let path = format!(
            "{}/{}",
            collection(case),
            old["metadata"]["name"].as_str().unwrap()
        );
        let existed = self
            .admin(Method::GET, &path, None)
            .await
            .status
            .is_success();
        let mut seed = old.clone();
        let going = seed["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("deletionTimestamp")
            .is_some();
        seed["metadata"]["labels"][SEED] = "x".into();
        if existed {
            let label = json!({ "metadata": { "labels": { SEED: "x" } } });
            self.admin(Method::PATCH, &path, Some(&label)).await;
        }
        let (method, at) = if existed {
            (Method::PATCH, path.clone())
        } else {
            (Method::POST, collection(case))
        };
        let seeded = self.admin(method, &at, Some(&seed)).await;
        if seeded.status == StatusCode::UNPROCESSABLE_ENTITY {
            return None;
        }
        assert!(
            seeded.status.is_success(),
            "{}: {}",
            case.name,
            seeded.message()
        );
        if going {
            self.admin(
                Method::DELETE,
                &format!("{path}?gracePeriodSeconds=0&propagationPolicy=Background"),
                None,
            )
            .await;
        }
        let dry = match &*case.subresource {
            "" => format!("{path}?dryRun=All"),
            subresource => format!("{path}/{subresource}?dryRun=All"),
        };
        // This change does not affect the rules, so the API server accepts it.
        let unseed = json!({ "metadata": { "labels": { SEED: null } } });
        let unseeded = self.admin(Method::PATCH, &path, Some(&unseed)).await;
        let message = unseeded.message();
        assert!(unseeded.status.is_success(), "{}: {message}", case.name);
        let answer = match (object, &*case.subresource) {
            (None, _) => self.ask(Method::DELETE, &dry, None, user).await,
            (Some(object), "finalize") => {
                let mut whole = unseeded.body.clone();
                json_patch::merge(&mut whole, &difference(&old, &object));
                self.ask(Method::PUT, &dry, Some(&whole), user).await
            }
            (Some(object), _) => {
                let patch = difference(&old, &object);
                self.ask(Method::PATCH, &dry, Some(&patch), user).await
            }
        };
        self.clean(case, &path, existed).await;
        possible(answer)
    }

    /// Deletes the objects that a case needed.
    async fn clean(&self, case: &Case, path: &str, existed: bool) {
        let bare =
            json!({ "metadata": { "finalizers": null, "annotations": null, "labels": null } });
        self.admin(Method::PATCH, path, Some(&bare)).await;
        if !existed {
            self.admin(
                Method::DELETE,
                &format!("{path}?gracePeriodSeconds=0&propagationPolicy=Background"),
                None,
            )
            .await;
            if case.kind() == "Namespace" {
                // No controller runs that would empty the namespace.
                let mut gone = self.admin(Method::GET, path, None).await.body;
                gone["spec"]["finalizers"] = json!([]);
                self.admin(Method::PUT, &format!("{path}/finalize"), Some(&gone))
                    .await;
            }
        }
    }
}

/// Returns the response, unless the API server's own validation rejected the object.
fn possible(answer: Answer) -> Option<Answer> {
    let is_invalid = answer.status == StatusCode::UNPROCESSABLE_ENTITY;
    (!is_invalid || answer.is_refused_by_policy()).then_some(answer)
}

/// Adds the fields that the API server's own validation requires to the object of a case.
fn valid(mut object: Value) -> Value {
    let mirror = "kubernetes.io/config.mirror";
    if object["kind"] == "Pod" && object["metadata"]["annotations"][mirror].is_string() {
        object["spec"]["nodeName"] = "a".into();
    }
    object
}

fn group_version(object: &Value) -> (&str, &str) {
    let text = object["apiVersion"].as_str().unwrap_or_default();
    text.split_once('/').unwrap_or(("", text))
}

/// The URL of all objects of a case's kind.
fn collection(case: &Case) -> String {
    let subject = case.subject();
    let (group, version) = match &*case.subresource {
        "token" | "binding" => ("", "v1"),
        _ => group_version(subject),
    };
    let root = if group.is_empty() {
        "/api".to_owned()
    } else {
        format!("/apis/{group}")
    };
    match case.namespace() {
        "" => format!("{root}/{version}/{}", case.resource()),
        namespace => format!(
            "{root}/{version}/namespaces/{namespace}/{}",
            case.resource()
        ),
    }
}
