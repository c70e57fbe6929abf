//! Enforcement without a webhook: the rules as ValidatingAdmissionPolicy objects
//! (`admissionregistration.k8s.io/v1`), which API servers from version 1.30 on enforce themselves.
//!
//! Each layer has one policy with one binding, so that modes are independent. Another policy
//! contains the checks before all layers, and others protect rule objects. All grants are in one
//! object ([`PARAMETERS`]). Policies fail closed: an error, an exceeded budget or a missing
//! parameter object is a denial. Policies of layers in audit mode warn and deny nothing.
//!
//! Rules that CEL cannot express are listed in [`Export::unsaid`], and never silently allowed where
//! a denial is possible. The objects only affect admission: they do not decide about existing pods,
//! and the API server does not let policies protect the policies themselves.

mod cel;
mod layers;
mod protected_objects;
mod role_requests;
mod table;

use std::sync::Arc;

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::grant::Grant;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::pattern::PatternFormat;
use rolegate_core::template_kinds::{self, BUILTIN_TEMPLATE_KINDS};
use serde_json::{Map, Value, json};

use crate::document::{comment_line, yaml_in_blocks};
use role_requests::RoleRequests;
pub use table::PARAMETERS;
use table::Table;

/// The rules to export.
#[derive(Debug, Clone, Copy)]
pub struct VapInput<'a> {
    /// The configuration. Its base ARN completes names. Discovered values must be filled in, since
    /// a policy cannot discover them.
    pub config: &'a RuleConfig,
    /// The annotation keys in use.
    pub keys: &'a AnnotationKeys,
    /// All grants.
    pub grants: &'a [Grant],
    /// The namespace of the parameter object.
    pub namespace: &'a str,
}

/// The objects, and the rules that they do not express.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// Kubernetes objects, in the order in which to apply them.
    pub documents: Vec<Value>,
    /// Sentences about rules that CEL cannot express, or expresses more strictly.
    pub unsaid: Vec<String>,
}

/// The reason why rules cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VapError {
    /// The grants do not fit into one object.
    #[error(
        "the grants have {bytes} bytes, too many for one object: only the webhook can enforce them"
    )]
    TooLarge {
        /// Their size.
        bytes: usize,
    },
    /// Too many grants may apply in one namespace for CEL's budget.
    #[error(
        "up to {rows} subjects ({bytes} bytes) of grants may apply in one namespace, more than CEL's \
         budget allows: use namespaces without stars, or enforce the grants with the webhook"
    )]
    TooMany {
        /// The number of rows.
        rows: usize,
        /// Their total size.
        bytes: usize,
    },
    /// A document cannot be serialized as YAML.
    #[error("cannot serialize the objects as YAML: {0}")]
    Yaml(String),
}

/// The requests that a policy applies to.
#[derive(Debug, Clone, Copy)]
struct Rule<'a> {
    group: &'a str,
    version: &'a str,
    resources: &'a [&'a str],
    operations: &'a [&'a str],
    scope: &'a str,
}

impl Rule<'_> {
    fn value(&self) -> Value {
        json!({
            "apiGroups": [self.group],
            "apiVersions": [self.version],
            "operations": self.operations,
            "resources": self.resources,
            "scope": self.scope,
        })
    }
}

const WRITES: &[&str] = &["CREATE", "UPDATE"];
const CHANGES: &[&str] = &["CREATE", "UPDATE", "DELETE"];

/// Resources of the core group that name roles, other than those with a pod template.
const CORE_RESOURCES: [&str; 3] = ["pods", "pods/ephemeralcontainers", "serviceaccounts"];

/// A policy and its binding.
struct Policy {
    name: &'static str,
    mode: Mode,
    /// True if namespaces that the configuration exempts are allowed.
    exempts: bool,
    /// True if it reads the parameter object.
    reads_grants: bool,
    rules: Vec<Value>,
    variables: Vec<Value>,
}

/// Exports the rules.
///
/// # Errors
/// Returns a [`VapError`] if they exceed the API server's budget. No rule is omitted for that
/// reason.
pub fn export(input: &VapInput<'_>) -> Result<Export, VapError> {
    let config = input.config;
    let table = Table::new(input.grants, config);
    let mut documents = Vec::new();
    if config.modes[LayerId::Grants] != Mode::Off {
        documents.push(table.document(input.namespace)?);
    }
    let (policies, bindings): (Vec<_>, Vec<_>) = policies(input, &table)
        .into_iter()
        .map(|policy| -> (Value, Value) { policy.documents(input).into() })
        .unzip();
    documents.extend(policies);
    // A policy takes effect with its binding, so its parameters come first.
    documents.extend(bindings);
    Ok(Export {
        documents,
        unsaid: unsaid(input, &table),
    })
}

/// Returns a rule for core resources.
fn core(resources: &[&str], operations: &[&str], scope: &str) -> Value {
    let rule = Rule {
        group: "",
        version: "v1",
        resources,
        operations,
        scope,
    };
    rule.value()
}

fn policies(input: &VapInput<'_>, table: &Table) -> Vec<Policy> {
    let workloads = workloads(input.config);
    let role_requests = RoleRequests::new(input, &table.pod_labels);
    let mut policies = guard_policies(input, table, &workloads, &role_requests);
    for layer in LayerId::ALL {
        policies.extend(layer_policies(layer, input, &workloads, &role_requests));
    }
    policies.retain(|policy| policy.mode != Mode::Off);
    policies
}

/// Returns the policies that precede the layers and protect the inputs of decisions.
fn guard_policies(
    input: &VapInput<'_>,
    table: &Table,
    workloads: &[Value],
    role_requests: &RoleRequests<'_>,
) -> Vec<Policy> {
    let config = input.config;
    let guard = |name, rules, variables| Policy::new(name, config.guards(), rules, variables);
    // Rules decide for pods of all namespaces, so no namespace is exempt from their protection.
    let everywhere = |name, rules, variables| Policy {
        exempts: false,
        ..guard(name, rules, variables)
    };
    let bindings = core(&["bindings", "pods/binding"], &["CREATE"], "Namespaced");
    let statuses = core(&["pods/status"], &["UPDATE"], "Namespaced");
    let services = core(&["services", "services/status"], WRITES, "Namespaced");
    let namespaces = ["namespaces", "namespaces/status", "namespaces/finalize"];
    let mut policies = vec![
        guard(
            "rolegate-request",
            workloads.to_vec(),
            [role_requests.variables(), layers::request(input)].concat(),
        ),
        guard(
            "rolegate-pod-metadata",
            vec![bindings.clone(), statuses],
            protected_objects::pod_metadata(input, &table.pod_labels),
        ),
        guard(
            "rolegate-services",
            vec![services],
            protected_objects::services(),
        ),
        everywhere(
            "rolegate-namespaces",
            vec![core(&namespaces, WRITES, "Cluster")],
            protected_objects::namespaces(input, &table.namespace_labels),
        ),
    ];
    if config.guard_scheduling {
        policies.push(guard(
            "rolegate-scheduling",
            [workloads, &[bindings]].concat(),
            [
                role_requests.templates(),
                protected_objects::scheduling(input),
            ]
            .concat(),
        ));
    }
    if config.rule_writers.is_some() {
        policies.push(everywhere(
            "rolegate-rules",
            rule_objects(),
            protected_objects::rules(input),
        ));
    }
    policies
}

/// Returns the policies of a layer, which have its mode.
fn layer_policies(
    layer: LayerId,
    input: &VapInput<'_>,
    workloads: &[Value],
    role_requests: &RoleRequests<'_>,
) -> Vec<Policy> {
    let mode = input.config.modes[layer];
    let policy = |name, variables| {
        let variables = [role_requests.variables(), variables].concat();
        Policy::new(name, mode, workloads.to_vec(), variables)
    };
    match layer {
        LayerId::Namespace => vec![policy("rolegate-layer-namespace", layers::namespace(input))],
        LayerId::Grants => {
            let grants = Policy {
                reads_grants: true,
                ..policy("rolegate-layer-grants", layers::grants())
            };
            let tokens = Policy::new(
                "rolegate-tokens",
                mode,
                vec![core(&["serviceaccounts/token"], &["CREATE"], "Namespaced")],
                protected_objects::tokens(input),
            );
            vec![grants, tokens]
        }
        LayerId::Rego => Vec::new(),
    }
}

/// Returns the reason why a layer has no policies.
fn not_expressed(layer: LayerId) -> Option<&'static str> {
    match layer {
        LayerId::Namespace | LayerId::Grants => None,
        LayerId::Rego => Some("Rego policies are not enforced: CEL cannot run them"),
    }
}

/// Returns the rules for kinds that contain pod templates or name roles.
fn workloads(config: &RuleConfig) -> Vec<Value> {
    let mut groups: Vec<(&str, Vec<&str>)> = vec![("", CORE_RESOURCES.to_vec())];
    for kind in BUILTIN_TEMPLATE_KINDS {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, resources)) => resources.push(kind.resource),
            None => groups.push((kind.group, vec![kind.resource])),
        }
    }
    let rule = |group, version, resources: &[&str]| {
        let rule = Rule {
            group,
            version,
            resources,
            operations: WRITES,
            scope: "Namespaced",
        };
        rule.value()
    };
    let builtin = groups.iter();
    let mut rules: Vec<_> = builtin
        .map(|(group, resources)| rule(group, template_kinds::VERSION, resources))
        .collect();
    rules.push(rule("zalando.org", "*", &["awsiamroles"]));
    let custom = config.templates.iter();
    rules.extend(custom.map(|kind| rule(&kind.group, "*", &[&*kind.resource])));
    rules
}

/// Returns the rules for rule objects.
fn rule_objects() -> Vec<Value> {
    let ours = Rule {
        group: table::API.0,
        version: "*",
        resources: &["rolegrants", "rolegateconfigs", table::KIND.1],
        operations: CHANGES,
        scope: "*",
    };
    vec![
        ours.value(),
        core(&["configmaps"], CHANGES, "Namespaced"),
        core(&["namespaces"], &["DELETE"], "Cluster"),
    ]
}

impl Policy {
    fn new(name: &'static str, mode: Mode, rules: Vec<Value>, variables: Vec<Value>) -> Self {
        Self {
            name,
            mode,
            exempts: true,
            reads_grants: false,
            rules,
            variables,
        }
    }

    fn documents(self, input: &VapInput<'_>) -> [Value; 2] {
        let is_audit = self.mode == Mode::Audit;
        let mut spec = Map::new();
        // Audit mode denies nothing, not even if it cannot be evaluated.
        let on_failure = if is_audit { "Ignore" } else { "Fail" };
        spec.insert("failurePolicy".into(), on_failure.into());
        if self.reads_grants {
            let kind = json!({
                "apiVersion": format!("{}/{}", table::API.0, table::API.1),
                "kind": table::KIND.0,
            });
            spec.insert("paramKind".into(), kind);
        }
        let constraints = json!({ "matchPolicy": "Equivalent", "resourceRules": self.rules });
        spec.insert("matchConstraints".into(), constraints);
        spec.insert("variables".into(), self.variables.into());
        let validation = json!({
            "expression": "variables.refusals.size() == 0",
            "messageExpression": "variables.refusals[0]",
            "message": "the rules about AWS roles deny this request: ask your cluster's administrator",
            "reason": "Forbidden",
        });
        spec.insert("validations".into(), json!([validation]));

        let mut binding = Map::new();
        binding.insert("policyName".into(), self.name.into());
        let actions = if is_audit {
            json!(["Warn", "Audit"])
        } else {
            json!(["Deny"])
        };
        binding.insert("validationActions".into(), actions);
        if self.reads_grants {
            let reference = json!({
                "name": PARAMETERS,
                "namespace": input.namespace,
                "parameterNotFoundAction": if is_audit { "Allow" } else { "Deny" },
            });
            binding.insert("paramRef".into(), reference);
        }
        let exempt = &input.config.exempt_namespaces;
        if self.exempts && !exempt.is_empty() {
            let others = outside_of(exempt.iter().map(|name| &**name));
            binding.insert("matchResources".into(), others);
        }
        [
            ("ValidatingAdmissionPolicy", spec),
            ("ValidatingAdmissionPolicyBinding", binding),
        ]
        .map(|(kind, spec)| {
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": kind,
                "metadata": { "name": self.name },
                "spec": spec,
            })
        })
    }
}

/// Returns a selector for all namespaces but these, with the one label that users cannot choose.
fn outside_of<'a>(names: impl IntoIterator<Item = &'a str>) -> Value {
    let names: Vec<_> = names.into_iter().collect();
    json!({ "namespaceSelector": { "matchExpressions": [{
        "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": names,
    }]}})
}

fn unsaid(input: &VapInput<'_>, table: &Table) -> Vec<String> {
    let config = input.config;
    let mut unsaid = table.left_out.clone();
    let mut say = |condition: bool, sentence: &str| {
        if condition {
            unsaid.push(sentence.to_owned());
        }
    };
    for layer in LayerId::ALL {
        if let Some(sentence) = not_expressed(layer) {
            say(config.modes[layer] != Mode::Off, sentence);
        }
    }
    say(
        config.base.is_none(),
        "no base ARN is known, so every bare role name is denied: export with a base ARN",
    );
    say(
        config.reserved_roles.is_empty(),
        "no roles are reserved (spec.reservedRoles of the RolegateConfig), so only agents deny the nodes' and rolegate's roles",
    );
    say(
        config.modes[LayerId::Namespace] != Mode::Off,
        "lists of allowed roles with escapes (a backslash) are denied, although rolegate accepts them",
    );
    say(
        config.modes[LayerId::Namespace] != Mode::Off,
        match config.restriction_format {
            PatternFormat::Glob => {
                "permitted roles are regular expressions: those that the API server (Go) and rolegate \
                 could interpret differently are denied, such as flags other than (?i), \\b, \\s, nested \
                 classes and counts over 99"
            }
            PatternFormat::Regexp => {
                "allowed and permitted roles are regular expressions: those that the API server (Go) and \
                 rolegate could interpret differently are denied, such as flags other than (?i), \\b, \\s, \
                 nested classes and counts over 99"
            }
        },
    );
    say(
        config.modes[LayerId::Grants] != Mode::Off,
        "users who may create namespaces may choose a name that has grants: only the webhook \
         prevents that",
    );
    say(
        config.modes[LayerId::Grants] != Mode::Off
            && input
                .grants
                .iter()
                .any(|grant| !grant.session.names.is_empty()),
        "rolegate adds a hash to session names that STS would reject; if a grant \
         limits names, they are denied",
    );
    say(
        config.modes[LayerId::Grants] == Mode::Enforce && config.rule_writers.is_none(),
        "no ruleWriters are configured, so only RBAC limits who may change the table of grants",
    );
    say(
        true,
        "addresses of Services that CEL cannot parse (leading zeros, IPv4 within IPv6) are denied",
    );
    for kind in &config.templates {
        let unfollowed =
            |path: &&Arc<str>| ***path != *"." && role_requests::at("object", path).is_none();
        for path in kind.paths.iter().chain(&kind.metadata).filter(unfollowed) {
            unsaid.push(format!(
                "{} is not validated at {path}, since CEL supports only one star in a path; its pods are validated",
                kind.kind
            ));
        }
    }
    unsaid.push(
        "users who may write ValidatingAdmissionPolicies and their bindings can disable these rules: no \
         policy can protect them"
            .to_owned(),
    );
    unsaid
}

impl Export {
    /// Formats the objects as a stream of YAML, starting with comments about unsupported rules.
    ///
    /// # Errors
    /// Returns [`VapError::Yaml`].
    pub fn yaml(&self) -> Result<String, VapError> {
        let mut text = comment_line(
            "Written by `rolegate policy export --format vap`. Apply it with `kubectl apply \
             --server-side`, since the grants may be too large for an annotation.",
        );
        if self
            .documents
            .iter()
            .any(|document| document["kind"] == table::KIND.0)
        {
            text.push_str(&comment_line(
                "Apply it twice the first time: until the API server knows the kind of the grants' \
                 table, it rejects the table, and without the table everything is denied.",
            ));
        }
        for sentence in &self.unsaid {
            text.push_str(&comment_line(&format!("Not expressed here: {sentence}.")));
        }
        for document in &self.documents {
            text.push_str("---\n");
            let yaml = yaml_in_blocks(document);
            text.push_str(&yaml.map_err(|error| VapError::Yaml(error.to_string()))?);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
