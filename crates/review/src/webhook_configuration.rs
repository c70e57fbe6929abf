//! Builds the ValidatingWebhookConfiguration from the rules. Its match conditions keep objects that
//! need no validation from leaving the API server.
//!
//! There is one webhook for each subject, each with match conditions for its objects. They fail
//! closed as soon as a layer is enforced ([`RuleConfig::guards`]); until then an unavailable
//! webhook must not deny what the rules would allow. Invalid rules are denied on a best-effort
//! basis, since they grant nothing in any case.

mod cel;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rolegate_core::annotation::{
    ALLOWED_ROLES, AnnotationKeys, DEFAULT_ROLE, MIRROR, PERMITTED, SESSION_NAME, WEB_IDENTITY_ROLE,
};
use rolegate_core::config::{ResourceKind, RuleConfig, TemplateKind};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::NAME_LABEL;
use rolegate_core::template_kinds::BUILTIN_TEMPLATE_KINDS;
use serde_json::{Map, Value, json};

use crate::audience;
use crate::mutation::SKIP_LABEL;
use crate::target::{OURS, RULES, ZALANDO};

/// The name of the configuration.
pub const NAME: &str = "rolegate";
/// The API server's timeout for a response, in seconds.
const TIMEOUT_SECONDS: u32 = 5;

/// The endpoint of the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint<'a> {
    /// A Service of the cluster.
    Service {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
        /// The path of the URL.
        path: &'a str,
        /// The port of the Service.
        port: u16,
    },
    /// A URL, `https://…`.
    Url(&'a str),
}

/// The inputs of the webhook configuration.
#[derive(Debug, Clone)]
pub struct Registration<'a> {
    /// The configuration of the rules.
    pub config: &'a RuleConfig,
    /// The annotation keys.
    pub keys: &'a AnnotationKeys,
    /// `true` if pods may get a role that they do not name: there is a default role, or a namespace
    /// has one.
    pub has_default_role: bool,
    /// `true` if there are policies to evaluate.
    pub has_rego: bool,
    /// The endpoint of the webhook.
    pub endpoint: Endpoint<'a>,
    /// The CA bundle of the webhook's certificate, PEM. Empty if another controller fills it in.
    pub ca_bundle: &'a [u8],
    /// The webhook's own namespace, which is exempt: the webhook must be able to start without
    /// itself.
    pub own_namespace: &'a str,
    /// The mode of the check that pods have the credentials of their service accounts.
    pub requires_injection: Mode,
}

/// The namespaces of a webhook.
#[derive(Clone, Copy)]
enum Where {
    /// All namespaces that are not exempt.
    NotExempt,
    /// Namespaces of policies.
    Policies,
    /// All namespaces, and cluster-scoped objects.
    Everywhere,
}

/// A webhook of the configuration.
struct Webhook {
    name: String,
    rules: Vec<Value>,
    place: Where,
    /// Names and CEL expressions. All must hold.
    conditions: Vec<(&'static str, String)>,
    on_failure: OnFailure,
}

/// The failure policy of a webhook.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnFailure {
    /// Requests are denied as soon as a layer is enforced.
    ByGuards,
    /// Requests are allowed.
    Ignore,
    /// Requests are denied.
    Fail,
}

/// Returns the ValidatingWebhookConfiguration as JSON.
pub fn webhook_configuration(registration: &Registration<'_>) -> Value {
    let webhooks = registration
        .webhooks()
        .into_iter()
        .map(|webhook| registration.value(webhook));
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": "rolegate-admission"}},
        "webhooks": webhooks.collect::<Vec<_>>(),
    })
}

/// Returns the client configuration of a webhook.
pub(crate) fn client_config(endpoint: &Endpoint<'_>, ca_bundle: &[u8]) -> Value {
    let mut client = Map::new();
    match endpoint {
        Endpoint::Url(url) => {
            client.insert("url".into(), (*url).into());
        }
        Endpoint::Service {
            namespace,
            name,
            path,
            port,
        } => {
            let service = json!({"namespace": namespace, "name": name, "path": path, "port": port});
            client.insert("service".into(), service);
        }
    }
    if !ca_bundle.is_empty() {
        client.insert("caBundle".into(), STANDARD.encode(ca_bundle).into());
    }
    client.into()
}

fn rule(group: &str, resources: &[&str], operations: &[&str], scope: &str) -> Value {
    json!({
        "apiGroups": [group],
        "apiVersions": ["*"],
        "resources": resources,
        "operations": operations,
        "scope": scope,
    })
}

const WRITES: &[&str] = &["CREATE", "UPDATE"];
const ALL: &[&str] = &["CREATE", "UPDATE", "DELETE"];
const NAMESPACED: &str = "Namespaced";
const CLUSTER: &str = "Cluster";

impl Registration<'_> {
    fn webhooks(&self) -> Vec<Webhook> {
        let mut all = vec![self.pods(), self.pod_status(), self.bindings()];
        all.extend(self.templates());
        all.extend(self.config.templates.iter().map(|kind| self.custom(kind)));
        all.extend([self.service_accounts(), self.services(), self.namespaces()]);
        all.push(Webhook {
            name: "awsiamroles".into(),
            rules: vec![rule(ZALANDO, &["awsiamroles"], WRITES, NAMESPACED)],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: Vec::new(),
        });
        if self.config.modes[LayerId::Grants] != Mode::Off {
            all.push(self.token_requests());
        }
        if self.config.rule_writers.is_some() {
            all.extend(self.rules());
        }
        all.push(rule_validity());
        all.extend(self.injection());
        all.extend(self.others());
        all
    }

    fn failure_policy(&self, on_failure: OnFailure) -> &'static str {
        match (on_failure, self.config.guards()) {
            (OnFailure::ByGuards, Mode::Enforce) | (OnFailure::Fail, _) => "Fail",
            (OnFailure::ByGuards, Mode::Audit | Mode::Off) | (OnFailure::Ignore, _) => "Ignore",
        }
    }

    fn value(&self, webhook: Webhook) -> Value {
        let mut value = json!({
            "name": format!("{}.rolegate.dev", webhook.name),
            "admissionReviewVersions": ["v1"],
            "clientConfig": client_config(&self.endpoint, self.ca_bundle),
            "failurePolicy": self.failure_policy(webhook.on_failure),
            "matchPolicy": "Equivalent",
            "rules": webhook.rules,
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECONDS,
        });
        let conditions: Vec<_> = webhook
            .conditions
            .iter()
            .map(|(name, expression)| json!({"name": name, "expression": expression}))
            .collect();
        if let Value::Object(fields) = &mut value {
            if let Some(selector) = self.selector(webhook.place) {
                fields.insert("namespaceSelector".into(), selector);
            }
            if !conditions.is_empty() {
                fields.insert("matchConditions".into(), conditions.into());
            }
        }
        value
    }

    fn selector(&self, place: Where) -> Option<Value> {
        let (operator, mut names): (_, Vec<&str>) = match place {
            Where::Everywhere => return None,
            Where::NotExempt => {
                let exempt = self.config.exempt_namespaces.iter().map(|name| &**name);
                ("NotIn", exempt.chain([self.own_namespace]).collect())
            }
            Where::Policies => {
                let namespaces = &self.config.rego.namespaces;
                ("In", namespaces.iter().map(|name| &**name).collect())
            }
        };
        names.sort_unstable();
        names.dedup();
        Some(json!({"matchExpressions": [
            {"key": NAME_LABEL, "operator": operator, "values": names},
        ]}))
    }

    /// Returns the match conditions for pods and templates. Empty if policies need to see all of
    /// them.
    fn conditions(&self, changed: String, names_role: String) -> Vec<(&'static str, String)> {
        if self.has_rego {
            return Vec::new();
        }
        let mut conditions = vec![("changed", cel::unless_created(&changed))];
        if !self.has_default_role {
            conditions.push(("names-role", names_role));
        }
        conditions
    }

    fn names_role(&self, object: &str) -> String {
        let audiences = &self.config.web_identity_audiences;
        let names_role = cel::names_role(object, &self.keys.role, audiences);
        if self.config.guard_scheduling {
            format!("{names_role} || {}", cel::chooses_node(object))
        } else {
            names_role
        }
    }

    /// Returns the keys of pod annotations that decide about the role.
    fn pod_annotations(&self) -> [&str; 4] {
        let keys = self.keys;
        [&keys.role, &keys.external_id, SESSION_NAME, MIRROR]
    }

    /// Grants define which labels count, and change more often than the webhook configuration, so
    /// all labels are compared.
    fn pod_metadata_differs(&self) -> String {
        format!(
            "{} || {}",
            cel::differs("annotations", &self.pod_annotations()),
            cel::all_differ("labels")
        )
    }

    fn pods(&self) -> Webhook {
        let changed = format!(
            "{} || object.spec != oldObject.spec",
            self.pod_metadata_differs()
        );
        let resources = ["pods", "pods/ephemeralcontainers"];
        Webhook {
            name: "pods".into(),
            rules: vec![rule("", &resources, WRITES, NAMESPACED)],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: self.conditions(changed, self.names_role("object")),
        }
    }

    fn pod_status(&self) -> Webhook {
        Webhook {
            name: "pod-status".into(),
            rules: vec![rule("", &["pods/status"], &["UPDATE"], NAMESPACED)],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: vec![("changed", cel::unless_created(&self.pod_metadata_differs()))],
        }
    }

    fn bindings(&self) -> Webhook {
        let copies = format!(
            "{} || {}",
            cel::has_any("object", "annotations", &self.pod_annotations()),
            cel::has_others("object", "labels", "")
        );
        Webhook {
            name: "bindings".into(),
            rules: vec![rule(
                "",
                &["bindings", "pods/binding"],
                &["CREATE"],
                NAMESPACED,
            )],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: if self.config.guard_scheduling {
                vec![(
                    "not-the-scheduler",
                    format!("request.userInfo.username != \"system:kube-scheduler\" || {copies}"),
                )]
            } else {
                vec![("copies", copies)]
            },
        }
    }

    /// Returns one webhook for each template path.
    fn templates(&self) -> Vec<Webhook> {
        let mut all: Vec<(&[&str], Webhook)> = Vec::new();
        for template in BUILTIN_TEMPLATE_KINDS {
            let rule = rule(template.group, &[template.resource], WRITES, NAMESPACED);
            if let Some((_, webhook)) = all.iter_mut().find(|(path, _)| *path == template.path) {
                webhook.rules.push(rule);
                continue;
            }
            let path = || template.path.iter().copied();
            let changed = cel::any("object", path(), |new| {
                let old = cel::any("oldObject", path(), |old| format!("{old} == new"));
                format!("[{new}].exists(new, !({old}))")
            });
            let names = cel::any("object", path(), |new| self.names_role(new));
            let webhook = Webhook {
                name: match template.path {
                    ["template"] => "pod-templates".into(),
                    ["spec", "template"] => "workloads".into(),
                    _ => template.resource.into(),
                },
                rules: vec![rule],
                place: Where::NotExempt,
                on_failure: OnFailure::ByGuards,
                conditions: self.conditions(changed, names),
            };
            all.push((template.path, webhook));
        }
        all.into_iter().map(|(_, webhook)| webhook).collect()
    }

    fn custom(&self, kind: &TemplateKind) -> Webhook {
        let mut names = Vec::new();
        for path in &kind.paths {
            names.push(if &**path == "." {
                cel::has_any("object", "annotations", &[&self.keys.role])
            } else {
                let steps = path.split('.').filter(|step| !step.is_empty());
                cel::any("object", steps, |template| self.names_role(template))
            });
        }
        for path in &kind.metadata {
            let steps = path.split('.').filter(|step| !step.is_empty());
            names.push(cel::any("object", steps, |metadata| {
                cel::holds_any(metadata, "annotations", &[&self.keys.role])
            }));
        }
        // The validator matches old and new templates where there are several.
        let paths = kind.paths.iter().chain(&kind.metadata);
        let mut begins: Vec<_> = paths.map(|path| begin(path)).collect();
        begins.sort_unstable();
        begins.dedup();
        let changed = begins
            .iter()
            .fold(self.pod_metadata_differs(), |changed, field| {
                format!("{changed} || {}", cel::field_differs(field))
            });
        let names: Vec<_> = names.iter().map(|name| format!("({name})")).collect();
        Webhook {
            name: format!("{}.{}", kind.resource, kind.group),
            rules: vec![rule(&kind.group, &[&kind.resource], WRITES, NAMESPACED)],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: self.conditions(changed, names.join(" || ")),
        }
    }

    fn service_accounts(&self) -> Webhook {
        let key = [WEB_IDENTITY_ROLE];
        Webhook {
            name: "service-accounts".into(),
            rules: vec![rule("", &["serviceaccounts"], WRITES, NAMESPACED)],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: if self.has_rego {
                Vec::new()
            } else {
                vec![
                    (
                        "changed",
                        cel::unless_created(&cel::differs("annotations", &key)),
                    ),
                    ("names-role", cel::has_any("object", "annotations", &key)),
                ]
            },
        }
    }

    fn token_requests(&self) -> Webhook {
        let audiences = &self.config.web_identity_audiences;
        let aws = format!(
            "has(object.spec.audiences) && object.spec.audiences.exists(a, {})",
            audience::cel("a", audiences)
        );
        let kubelet = "has(request.userInfo.groups) && \"system:nodes\" in request.userInfo.groups \
                       && has(object.spec.boundObjectRef) && has(object.spec.boundObjectRef.kind) \
                       && object.spec.boundObjectRef.kind == \"Pod\"";
        Webhook {
            name: "tokens".into(),
            rules: vec![rule(
                "",
                &["serviceaccounts/token"],
                &["CREATE"],
                NAMESPACED,
            )],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: vec![("for-aws", aws), ("not-a-kubelet", format!("!({kubelet})"))],
        }
    }

    fn services(&self) -> Webhook {
        let addresses = "has(object.spec.externalIPs) && object.spec.externalIPs.size() > 0 || \
                         has(object.spec.loadBalancerIP) && object.spec.loadBalancerIP != \"\" || \
                         has(object.status) && has(object.status.loadBalancer) && \
                         has(object.status.loadBalancer.ingress) && \
                         object.status.loadBalancer.ingress.exists(i, has(i.ip))";
        Webhook {
            name: "services".into(),
            rules: vec![rule(
                "",
                &["services", "services/status"],
                WRITES,
                NAMESPACED,
            )],
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: vec![("has-addresses", addresses.into())],
        }
    }

    /// Namespaces are protected even if they are exempt, since a label of theirs exempts them.
    /// Grants may select by any other label, now or later.
    fn namespaces(&self) -> Webhook {
        let allowed = &*self.keys.allowed_roles;
        let mut annotations = vec![allowed, ALLOWED_ROLES, PERMITTED, DEFAULT_ROLE];
        annotations.sort_unstable();
        annotations.dedup();
        // Where grants apply, they may select the name itself.
        let created = match self.config.modes[LayerId::Grants] {
            Mode::Off => format!(
                "({} || {})",
                cel::has_any("object", "annotations", &annotations),
                cel::has_others("object", "labels", NAME_LABEL)
            ),
            Mode::Enforce | Mode::Audit => "true".to_owned(),
        };
        let changed = format!(
            "{} || {}",
            cel::differs("annotations", &annotations),
            cel::all_differ("labels")
        );
        let mut guarded = format!("oldObject == null ? {created} : ({changed})");
        let resources = ["namespaces", "namespaces/status", "namespaces/finalize"];
        let mut rules = vec![rule("", &resources, WRITES, CLUSTER)];
        if self.config.rule_writers.is_some() {
            rules.push(rule("", &["namespaces"], &["DELETE"], CLUSTER));
            let namespaces = self.config.rego.namespaces.iter().map(|name| &**name);
            guarded = format!(
                "request.operation == \"DELETE\" ? request.name in {} : ({guarded})",
                cel::texts(namespaces)
            );
        }
        Webhook {
            name: "namespaces".into(),
            rules,
            place: Where::Everywhere,
            on_failure: OnFailure::ByGuards,
            conditions: vec![not_a_master(), ("guarded", guarded)],
        }
    }

    /// Returns the webhooks for objects that hold rules.
    fn rules(&self) -> Vec<Webhook> {
        let mut all = vec![Webhook {
            name: "rules".into(),
            rules: vec![rule(OURS, &rule_resources(), ALL, CLUSTER)],
            place: Where::Everywhere,
            on_failure: OnFailure::ByGuards,
            conditions: vec![not_a_master()],
        }];
        if !self.config.rego.namespaces.is_empty() {
            all.push(Webhook {
                name: "policies".into(),
                rules: vec![rule("", &["configmaps"], ALL, NAMESPACED)],
                place: Where::Policies,
                on_failure: OnFailure::ByGuards,
                conditions: vec![not_a_master()],
            });
        }
        all
    }

    /// Returns the webhook for pods that must have the credentials of their service accounts. Such
    /// pods name no role, so the webhook of pods does not receive them.
    fn injection(&self) -> Option<Webhook> {
        let on_failure = match self.requires_injection {
            Mode::Enforce => OnFailure::Fail,
            Mode::Audit => OnFailure::Ignore,
            Mode::Off => return None,
        };
        let mirror = cel::has_any("object", "annotations", &[MIRROR]);
        let skipped = cel::has_any("object", "labels", &[SKIP_LABEL]);
        Some(Webhook {
            name: "pod-injection".into(),
            rules: vec![rule("", &["pods"], &["CREATE"], NAMESPACED)],
            place: Where::NotExempt,
            on_failure,
            conditions: vec![("not-skipped", format!("!({mirror} || {skipped})"))],
        })
    }

    /// Returns the webhook for kinds that only policies evaluate.
    fn others(&self) -> Option<Webhook> {
        let resources = self.config.rego.resources.iter();
        let rules: Vec<_> = resources
            .filter(|kind| self.has_rego && !is_validated(kind))
            .map(|kind| rule(&kind.group, &[&kind.resource], WRITES, "*"))
            .collect();
        (!rules.is_empty()).then(|| Webhook {
            name: "others".into(),
            rules,
            place: Where::NotExempt,
            on_failure: OnFailure::ByGuards,
            conditions: Vec::new(),
        })
    }
}

fn rule_resources() -> Vec<&'static str> {
    RULES.iter().map(|(_, resource)| *resource).collect()
}

/// Returns the webhook for invalid grants and configurations, by any user.
fn rule_validity() -> Webhook {
    let changed = "oldObject == null || object.spec != oldObject.spec";
    Webhook {
        name: "rule-validity".into(),
        rules: vec![rule(OURS, &rule_resources(), WRITES, CLUSTER)],
        place: Where::Everywhere,
        on_failure: OnFailure::Ignore,
        conditions: vec![("changed", changed.into())],
    }
}

/// Returns the first field of the path of a pod template. The path is empty if the object itself is
/// the template; the result is then `spec`, which contains the service account.
fn begin(path: &str) -> &str {
    let mut steps = path.split('.').filter(|step| !step.is_empty());
    steps.next().unwrap_or("spec")
}

/// Exempts `system:masters`, also while the webhook is unavailable, so that a cluster can be
/// recovered.
fn not_a_master() -> (&'static str, String) {
    let master = "has(request.userInfo.groups) && \"system:masters\" in request.userInfo.groups";
    ("not-a-master", format!("!({master})"))
}

fn is_validated(kind: &ResourceKind) -> bool {
    BUILTIN_TEMPLATE_KINDS
        .iter()
        .any(|known| *kind.group == *known.group && *kind.resource == *known.resource)
        || kind.group.is_empty() && matches!(&*kind.resource, "pods" | "serviceaccounts")
}
