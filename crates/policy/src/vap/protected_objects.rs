//! CEL that protects the objects that rules are made of, and blocks bypasses of a pod's own
//! endpoint: annotations and labels of namespaces, changes of pods by bindings and status updates,
//! Services that would divert the metadata address, tokens for AWS, the scheduling of pods, and the
//! rules themselves.

use rolegate_core::annotation::{ALLOWED_ROLES, DEFAULT_ROLE, MIRROR, PERMITTED, SESSION_NAME};
use rolegate_core::config::{DATA_LABEL, RuleConfig, Subjects};
use rolegate_core::namespace::NAME_LABEL;
use rolegate_review::audience;
use rolegate_review::validate::{CONTROLLERS, STARTUP_TAINTS};
use serde_json::Value;

use super::VapInput;
use super::cel::{items, list, quote, text};
use super::role_requests::variable;

/// The annotation with the state of a policy, which is not part of it.
const STATUS_ANNOTATION: &str = "openpolicyagent.org/kube-mgmt-status";
/// The metadata and credential addresses of pods: EC2's and EKS's link-local and IPv6 addresses.
const METADATA_ADDRESSES: &[&str] = &[
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "fd00:ec2::23",
    "fd00:ec2::254",
];

/// Returns CEL for whether the user of the request is one of `subjects`.
fn is_one_of(subjects: &Subjects) -> String {
    let groups = subjects.groups.iter().map(|group| &**group);
    format!(
        r#"(request.userInfo.username in {} || request.userInfo.?groups.orValue([]).exists(g, g in {}))"#,
        list(subjects.users.iter().map(|user| &**user)),
        list(groups.chain(["system:masters"])),
    )
}

fn is_rule_writer(config: &RuleConfig) -> String {
    is_one_of(&config.rule_writers.clone().unwrap_or_default())
}

/// Returns CEL for those of `keys` whose values in `metadata.FIELD` changed. Optionals are
/// compared, so that absent and empty values differ.
fn changed(keys: &str, field: &str) -> String {
    format!(
        "{keys}.filter(k, object.?metadata.?{field}[?k] != (oldObject == null ? optional.none() : oldObject.?metadata.?{field}[?k]))"
    )
}

/// Returns the protection of namespaces: who may change the roles that their pods may have.
pub(super) fn namespaces(input: &VapInput<'_>, labels: &[String]) -> Vec<Value> {
    let mut annotations = vec![
        &*input.keys.allowed_roles,
        ALLOWED_ROLES,
        PERMITTED,
        DEFAULT_ROLE,
    ];
    annotations.sort_unstable();
    annotations.dedup();
    let labels = labels
        .iter()
        .map(String::as_str)
        .filter(|key| *key != NAME_LABEL);
    vec![variable(
        "refusals",
        format!(
            r#"{} ? [] : ({}.map(k, "annotation " + k) + {}.map(k, "label " + k)).map(c, "only the configuration's namespaceWriters may set, change or remove " + c + " of a namespace: ask your cluster's administrator")"#,
            is_one_of(&input.config.namespace_writers.clone().unwrap_or_default()),
            changed(&list(annotations), "annotations"),
            changed(&list(labels), "labels"),
        ),
    )]
}

/// Returns the protection against bindings and updates of pods' status that would change a
/// validated pod.
pub(super) fn pod_metadata(input: &VapInput<'_>, pod_labels: &[String]) -> Vec<Value> {
    let annotations = [
        &*input.keys.role,
        &*input.keys.external_id,
        SESSION_NAME,
        MIRROR,
    ];
    vec![variable(
        "refusals",
        format!(
            r#"({}.map(k, "annotation " + k) + {}.map(k, "label " + k)).map(c, c + " determines the pod's role and cannot be set through a binding or a status: set it on the pod itself")"#,
            changed(&list(annotations), "annotations"),
            changed(&list(pod_labels), "labels"),
        ),
    )]
}

/// Returns the protection against Services with new addresses of the metadata service. A text that
/// looks like an address but cannot be parsed here is denied too, since a service proxy might parse
/// it.
pub(super) fn services() -> Vec<Value> {
    let addresses = |root: &str| {
        format!(
            "({root} == null ? [] : {root}.?spec.?externalIPs.orValue([]) + [?{root}.?spec.?loadBalancerIP] + {root}.?status.?loadBalancer.?ingress.orValue([]).filter(i, has(i.ip)).map(i, i.ip))"
        )
    };
    let is_metadata: Vec<_> = METADATA_ADDRESSES
        .iter()
        .map(|address| format!("ip(x) == ip({})", quote(address)))
        .collect();
    vec![
        variable("before", addresses("oldObject")),
        variable(
            "refusals",
            format!(
                r#"{}.filter(x, !(x in variables.before)).map(x, x.trim()).filter(x, isIP(x) ? {} : x.matches("^[0-9a-fA-F:.]*[:.][0-9a-fA-F:.]*$")).map(x, "pods fetch their credentials at the metadata address, and a Service at " + x + " might hand them out instead: use another address")"#,
                addresses("object"),
                is_metadata.join(" || "),
            ),
        ),
    ]
}

/// Returns the protection of tokens for AWS, which name no role: only kubelets get one, for
/// validated pods.
pub(super) fn tokens(input: &VapInput<'_>) -> Vec<Value> {
    vec![variable(
        "refusals",
        format!(
            r#"{} || "system:nodes" in request.userInfo.?groups.orValue([]) && object.?spec.?boundObjectRef.?kind.orValue("") == "Pod" ? [] : object.?spec.?audiences.orValue([]).filter(x, {}).map(x, "a token that AWS accepts names no role that could be validated: run a pod that names one, or ask your cluster's administrator")"#,
            is_rule_writer(input.config),
            audience::cel("x", &input.config.web_identity_audiences),
        ),
    )]
}

/// Returns the protection against pods that start where, or before, the agent can cover them.
pub(super) fn scheduling(input: &VapInput<'_>) -> Vec<Value> {
    let controllers = CONTROLLERS
        .iter()
        .map(|name| format!("system:serviceaccount:kube-system:{name}"));
    let control_plane: Vec<_> = [
        "system:kube-controller-manager",
        "system:kube-scheduler",
        "system:apiserver",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(controllers)
    .collect();
    let tolerates = |at: &str| {
        format!(
            r#"{}.exists(x, {} == "" && {} == "Exists")"#,
            items(&format!("{at}.?spec.?tolerations")),
            text("x.?key"),
            text("x.?operator"),
        )
    };
    let early = |at: &str| {
        format!(
            r#"{}.exists(x, {} in {} && {} in ["", "NoSchedule"])"#,
            items(&format!("{at}.?spec.?tolerations")),
            text("x.?key"),
            list(STARTUP_TAINTS),
            text("x.?effect"),
        )
    };
    let node_name = |at: &str| text(&format!("{at}.?spec.?nodeName"));
    // The names that each node selector term selects.
    let picked = |at: &str| {
        format!(
            r#"{}.map(n, {}.filter(f, {} == "In").map(f, f.?values)).filter(l, l.size() > 0)"#,
            items(&format!(
                "{at}.?spec.?affinity.?nodeAffinity.?requiredDuringSchedulingIgnoredDuringExecution.?nodeSelectorTerms"
            )),
            items("n.?matchFields"),
            text("f.?operator"),
        )
    };
    let not_ready = r#""a pod that tolerates a taint of nodes that are not ready may start on a node before the agent runs: remove the toleration, or ask your cluster's administrator""#;
    let node = r#""a pod that selects its node may start there before the agent runs: leave it out, or ask your cluster's administrator""#;
    let tolerant = r#""a pod that tolerates every taint may start on a node before the agent runs: list the taints that it tolerates, or ask your cluster's administrator""#;
    vec![
        variable(
            "maySchedule",
            format!(
                r#"request.userInfo.username in {} || request.userInfo.?groups.orValue([]).exists(g, g == "system:nodes") || {}"#,
                list(control_plane),
                is_rule_writer(input.config)
            ),
        ),
        variable(
            "refusals",
            format!(
                r#"variables.maySchedule ? [] : (request.kind.kind == "Binding" ? (object.?target.?name.orValue("") != "" ? [{node}] : []) : variables.isPod && oldObject != null ? [] : variables.changed.filter(t, {new_name} != "" && !variables.before.exists(b, {old_name} == {new_name})).map(t, {node})) + variables.changed.filter(t, {new_picks}.size() > 0 && !variables.before.exists(b, {old_picks} == {new_picks})).map(t, {node}) + (variables.before.exists(b, {}) ? [] : variables.changed.filter(t, {}).map(t, {tolerant})) + (variables.before.exists(b, {}) ? [] : variables.changed.filter(t, {}).map(t, {not_ready}))"#,
                tolerates("b"),
                tolerates("t"),
                early("b"),
                early("t"),
                new_name = node_name("t"),
                old_name = node_name("b"),
                new_picks = picked("t"),
                old_picks = picked("b"),
            ),
        ),
    ]
}

/// Returns the protection of grants and their table, the configuration, and ConfigMaps of policies.
pub(super) fn rules(input: &VapInput<'_>) -> Vec<Value> {
    let rego = &input.config.rego;
    let namespaces = list(rego.namespaces.iter().map(|name| &**name));
    let required = rego
        .required
        .iter()
        .map(|(namespace, name)| format!("{namespace}/{name}"));
    let of_policy = |at: &str| match &rego.label {
        None => format!("({at} != null)"),
        Some((key, value)) => {
            let label = |key: &str, value: &str| {
                format!(
                    "{at}.?metadata.?labels[?{}].orValue(\"\") == {}",
                    quote(key),
                    quote(value)
                )
            };
            format!(
                "({at} != null && ({} || {}))",
                label(key, value),
                label(DATA_LABEL.0, DATA_LABEL.1)
            )
        }
    };
    let name = r#"[request.?name.orValue("")].map(n, n != "" ? n : object.?metadata.?name.orValue(""))[0]"#;
    let controllers = r#"(request.operation == "DELETE" ? request.userInfo.username == "system:serviceaccount:kube-system:namespace-controller" : request.userInfo.username == "system:serviceaccount:kube-system:root-ca-cert-publisher" && variables.name == "kube-root-ca.crt")"#;
    let fields = ["spec", "data", "binaryData", "immutable"]
        .map(|field| format!("object.?{field} == oldObject.?{field}"));
    let metadata = ["labels", "ownerReferences"]
        .map(|field| format!("object.?metadata.?{field} == oldObject.?metadata.?{field}"));
    let annotations = |a: &str, b: &str| {
        format!(
            "{a}.?metadata.?annotations.orValue({{}}).all(k, k == {} || {b}.?metadata.?annotations[?k] == {a}.?metadata.?annotations[?k])",
            quote(STATUS_ANNOTATION)
        )
    };
    let both = [
        annotations("object", "oldObject"),
        annotations("oldObject", "object"),
    ];
    let same: Vec<_> = fields.into_iter().chain(metadata).chain(both).collect();
    vec![
        variable("name", name),
        variable(
            "isPolicy",
            format!(
                r#"request.namespace in {namespaces} && !{controllers} && (request.namespace + "/" + variables.name in {} || {} || {})"#,
                list(required),
                of_policy("object"),
                of_policy("oldObject"),
            ),
        ),
        variable(
            "isGuarded",
            format!(
                r#"request.kind.kind == "ConfigMap" ? variables.isPolicy : request.kind.kind == "Namespace" ? variables.name in {namespaces} : true"#
            ),
        ),
        variable(
            "isSame",
            format!(
                "object != null && oldObject != null && {}",
                same.join(" && ")
            ),
        ),
        variable(
            "refusals",
            format!(
                r#"{} || !variables.isGuarded || variables.isSame ? [] : ["only the configuration's ruleWriters may write or delete rule objects: ask your cluster's administrator"]"#,
                is_rule_writer(input.config)
            ),
        ),
    ]
}
