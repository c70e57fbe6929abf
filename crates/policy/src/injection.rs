//! The injection of web identity without a webhook: a MutatingAdmissionPolicy
//! (`admissionregistration.k8s.io/v1`, Kubernetes 1.36), which the API server applies itself.
//!
//! CEL cannot look up a pod's service account, so its role comes from a parameter object: a ConfigMap
//! that maps `NAMESPACE.SERVICEACCOUNT` to a role. The rest of what CEL cannot do is in
//! [`Export::unsaid`](crate::vap::Export::unsaid).

use std::collections::BTreeMap;

use rolegate_core::text::bounded;
use rolegate_review::mutation::{InjectionSettings, SKIP_LABEL};
use serde_json::{Map, Value, json};

use crate::document::{comment_line, yaml_in_blocks};
use crate::vap::{Export, VapError};

/// The name of the policy, its binding and its parameters.
pub const NAME: &str = "rolegate-injection";
/// Maximum size of all roles, in bytes. A ConfigMap has at most 1 MiB.
const MAX_BYTES: usize = 1_000_000;
/// Maximum number of characters of a name in a sentence.
const MAX_SHOWN_CHARS: usize = 100;

/// The input of the export.
#[derive(Debug, Clone)]
pub struct InjectionInput<'a> {
    /// Role ARNs by namespace and service account.
    pub roles: BTreeMap<(String, String), String>,
    /// Service accounts, as `NAMESPACE/NAME`, whose role cannot be exported, with the reason.
    pub without: Vec<(String, String)>,
    /// The settings of the injection.
    pub settings: &'a InjectionSettings,
    /// The namespace of the parameter object.
    pub namespace: &'a str,
}

/// Exports the injection.
///
/// # Errors
/// Returns [`VapError::TooLarge`] if the roles do not fit into one ConfigMap.
pub fn export(input: &InjectionInput<'_>) -> Result<Export, VapError> {
    let mut data = Map::new();
    for ((namespace, account), role) in &input.roles {
        data.insert(format!("{namespace}.{account}"), role.as_str().into());
    }
    let bytes: usize = data
        .iter()
        .map(|(key, role)| key.len() + role.as_str().map_or(0, str::len))
        .sum();
    if bytes > MAX_BYTES {
        return Err(VapError::TooLarge { bytes });
    }
    let parameters = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": input.namespace},
        "data": data,
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": NAME},
        "spec": {
            "policyName": NAME,
            "paramRef": {
                "name": NAME, "namespace": input.namespace, "parameterNotFoundAction": "Deny",
            },
        },
    });
    Ok(Export {
        documents: vec![parameters, policy(input.settings), binding],
        unsaid: unsaid(input),
    })
}

/// Formats an export as YAML with its comments.
///
/// # Errors
/// Returns [`VapError::Yaml`].
pub fn yaml(export: &Export) -> Result<String, VapError> {
    let mut text = comment_line(
        "Written by `rolegate policy export --format injection`. Apply it with `kubectl apply \
         --server-side`. Kubernetes 1.36 or newer enforces it without a webhook.",
    );
    for sentence in &export.unsaid {
        text.push_str(&comment_line(&format!("Not expressed here: {sentence}.")));
    }
    for document in &export.documents {
        text.push_str("---\n");
        let yaml = yaml_in_blocks(document).map_err(|error| VapError::Yaml(error.to_string()))?;
        text.push_str(&yaml);
    }
    Ok(text)
}

/// Returns a CEL string literal.
fn text(value: &str) -> String {
    // JSON's escapes are CEL's.
    Value::from(value).to_string()
}

fn policy(settings: &InjectionSettings) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
                    "operations": ["CREATE"], "scope": "Namespaced",
                }],
                "objectSelector": {"matchExpressions": [
                    {"key": SKIP_LABEL, "operator": "DoesNotExist"},
                ]},
            },
            "matchConditions": [{
                "name": "has-role",
                "expression": "has(params.data) && (request.namespace + '.' + \
                    (has(object.spec.serviceAccountName) ? object.spec.serviceAccountName : \
                    'default')) in params.data",
            }],
            "variables": variables(settings),
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "mutations": [
                {"patchType": "JSONPatch", "jsonPatch": {"expression": volume(settings)}},
                {"patchType": "ApplyConfiguration",
                    "applyConfiguration": {"expression": containers(settings)}},
            ],
        },
    })
}

fn variables(settings: &InjectionSettings) -> Vec<Value> {
    let annotation = text(&format!("{}/skip-containers", settings.annotation_prefix));
    let label = "kubernetes.io/os";
    let variable = |name: &str, expression: String| json!({"name": name, "expression": expression});
    vec![
        variable(
            "role",
            "params.data[request.namespace + '.' + (has(object.spec.serviceAccountName) ? \
             object.spec.serviceAccountName : 'default')]"
                .to_owned(),
        ),
        variable(
            "skipped",
            format!(
                "has(object.metadata.annotations) && {annotation} in object.metadata.annotations ? \
                 object.metadata.annotations[{annotation}].split(',').map(n, n.trim()) : []"
            ),
        ),
        variable(
            "windows",
            format!(
                "has(object.spec.os) ? object.spec.os.name == 'windows' : \
                 has(object.spec.nodeSelector) && '{label}' in object.spec.nodeSelector && \
                 object.spec.nodeSelector['{label}'] == 'windows'"
            ),
        ),
        variable(
            "session",
            "has(object.metadata.name) && object.metadata.name != '' ? \
             (request.namespace + '.' + object.metadata.name) : ''"
                .to_owned(),
        ),
    ]
}

/// Returns the expression that adds the volume. It is a JSON patch, because the sources of a
/// projected volume are an atomic list, which an apply configuration cannot set.
fn volume(settings: &InjectionSettings) -> String {
    let token = &settings.web_identity;
    let value = format!(
        "Object.spec.volumes{{name: {name}, projected: Object.spec.volumes.projected{{sources: [\
         Object.spec.volumes.projected.sources{{serviceAccountToken: \
         Object.spec.volumes.projected.sources.serviceAccountToken{{audience: {audience}, \
         expirationSeconds: {expiration}, path: {path}}}}}]}}}}",
        name = text(&token.volume),
        audience = text(&token.audience),
        expiration = settings.expiration_seconds,
        path = text(&token.file),
    );
    format!(
        "!has(object.spec.volumes) ? [JSONPatch{{op: \"add\", path: \"/spec/volumes\", value: \
         [{value}]}}] : (object.spec.volumes.exists(v, v.name == {name}) ? [] : [JSONPatch{{op: \
         \"add\", path: \"/spec/volumes/-\", value: {value}}}])",
        name = text(&token.volume),
    )
}

fn containers(settings: &InjectionSettings) -> String {
    format!(
        "Object{{spec: Object.spec{{containers: {}, initContainers: {}}}}}",
        list(settings, "containers"),
        list(settings, "initContainers")
    )
}

/// Returns the additions to a list of containers. An apply configuration merges containers and
/// variables by name, and mounts by path, so nothing else changes.
fn list(settings: &InjectionSettings, list: &str) -> String {
    let token = &settings.web_identity;
    let of = format!("Object.spec.{list}");
    let path = format!("{}/{}", token.mount_path.trim_end_matches('/'), token.file);
    let lacks = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| text(name)).collect();
        format!(
            "!(has(c.env) && c.env.exists(e, e.name in [{}]))",
            names.join(", ")
        )
    };
    let variable =
        |name: &str, value: &str| format!("{of}.env{{name: {}, value: {value}}}", text(name));
    let when = |condition: &str, variables: &[String]| {
        format!("({condition} ? [{}] : [])", variables.join(", "))
    };
    let pair = lacks(&["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"]);
    let file = format!(
        "(variables.windows ? {} : {})",
        text(&format!("C:{}", path.replace('/', "\\"))),
        text(&path)
    );
    let mut env = vec![when(
        &pair,
        &[
            variable("AWS_ROLE_ARN", "variables.role"),
            variable("AWS_WEB_IDENTITY_TOKEN_FILE", &file),
        ],
    )];
    if settings.session_name {
        let named = "variables.session != '' && size(variables.session) <= 64";
        let condition = format!("{pair} && {named} && {}", lacks(&["AWS_ROLE_SESSION_NAME"]));
        env.push(when(
            &condition,
            &[variable("AWS_ROLE_SESSION_NAME", "variables.session")],
        ));
    }
    if settings.regional_sts {
        let name = "AWS_STS_REGIONAL_ENDPOINTS";
        env.push(when(&lacks(&[name]), &[variable(name, "\"regional\"")]));
    }
    if let Some(region) = &settings.region {
        let names = ["AWS_DEFAULT_REGION", "AWS_REGION"];
        env.push(when(
            &lacks(&names),
            &names.map(|name| variable(name, &text(region))),
        ));
    }
    let mount = format!(
        "{of}.volumeMounts{{name: {}, mountPath: {}, readOnly: true}}",
        text(&token.volume),
        text(&token.mount_path)
    );
    let taken = format!(
        "has(c.volumeMounts) && c.volumeMounts.exists(m, m.name == {} || m.mountPath == {})",
        text(&token.volume),
        text(&token.mount_path)
    );
    format!(
        "(has(object.spec.{list}) ? object.spec.{list} : []).filter(c, !(c.name in \
         variables.skipped)).map(c, {of}{{name: c.name, env: {}, volumeMounts: {taken} ? [] : \
         [{mount}]}})",
        env.join(" + ")
    )
}

fn unsaid(input: &InjectionInput<'_>) -> Vec<String> {
    let mut unsaid = vec![
        "CEL cannot read service accounts: export again after each change of an annotation, or \
         maintain the ConfigMap yourself"
            .to_owned(),
        "a pod does not wait for a service account or a role that arrives a moment later".to_owned(),
        "the annotations audience, token-expiration and sts-regional-endpoints of service accounts \
         and pods are not read"
            .to_owned(),
        "container credentials, associations with stars, target roles and the files of EKS's webhook \
         are not exported"
            .to_owned(),
        "another volume of the token's name or mount path, a proxy and envFrom are not reported"
            .to_owned(),
        "Windows is recognized by spec.os and the node selector only".to_owned(),
        "ephemeral containers get no variables".to_owned(),
    ];
    if input.settings.session_name {
        unsaid.push("pods with a generated or long name have no AWS_ROLE_SESSION_NAME".to_owned());
    }
    for (account, reason) in &input.without {
        unsaid.push(format!(
            "service account {}: {reason}",
            bounded(account, MAX_SHOWN_CHARS)
        ));
    }
    unsaid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(settings: &InjectionSettings, roles: usize) -> InjectionInput<'_> {
        let role = |number: usize| {
            let account = ("shop".to_owned(), format!("api-{number}"));
            (
                account,
                format!("arn:aws:iam::123456789012:role/{}", "r".repeat(64)),
            )
        };
        InjectionInput {
            roles: (0..roles).map(role).collect(),
            without: vec![("shop/web".to_owned(), "its role is not an ARN".to_owned())],
            settings,
            namespace: "rolegate-system",
        }
    }

    #[test]
    fn parameters_come_first_and_the_rest_is_listed() {
        let settings = InjectionSettings::default();
        let exported = export(&input(&settings, 1)).unwrap();
        let kinds: Vec<_> = exported
            .documents
            .iter()
            .map(|it| it["kind"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            [
                "ConfigMap",
                "MutatingAdmissionPolicy",
                "MutatingAdmissionPolicyBinding"
            ]
        );
        assert!(exported.documents[0]["data"]["shop.api-0"].is_string());
        let text = yaml(&exported).unwrap();
        assert!(
            text.contains("# Not expressed here: service account shop/web: its role"),
            "{text}"
        );
    }

    #[test]
    fn too_many_roles_are_an_error() {
        let settings = InjectionSettings::default();
        assert!(matches!(
            export(&input(&settings, 12_000)),
            Err(VapError::TooLarge { .. })
        ));
    }
}
