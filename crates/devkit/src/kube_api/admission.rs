//! Calls registered webhooks before an object is created, as an API server does: each matching
//! webhook is called over HTTPS, with the URL and CA of its registration. `matchConditions`, which
//! need CEL, are not evaluated: webhooks are called more often here, never less.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Uri};
use http_body_util::Full;
use serde_json::{Value, json};

use super::Failure;
use crate::https::{self, trusting};

/// Timeout of a webhook.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// The label by which webhooks exempt namespaces.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The object to be created, and its resource.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    /// The API group; empty for the core group.
    pub(super) group: &'a str,
    /// The version.
    pub(super) version: &'a str,
    /// The plural.
    pub(super) resource: &'a str,
    /// The namespace.
    pub(super) namespace: Option<&'a str>,
    /// The object.
    pub(super) object: &'a Value,
}

/// Calls every registered webhook of these configurations. The first denial counts. Returns the
/// warnings of all.
pub(super) async fn ask(
    configurations: &[Arc<Value>],
    asked: &Asked<'_>,
) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    for webhook in configurations.iter().flat_map(|all| webhooks(all)) {
        if !is_registered(webhook, asked) {
            continue;
        }
        let name = webhook.get("name").and_then(Value::as_str).unwrap_or("?");
        let call = tokio::time::timeout(WEBHOOK_TIMEOUT, call(webhook, asked));
        let answer = call
            .await
            .unwrap_or_else(|_| Err("it took too long".into()))
            .map_err(|error| {
                Failure::new(500, format!("failed calling webhook \"{name}\": {error}"))
            })?;
        if let Some(all) = answer.get("warnings").and_then(Value::as_array) {
            warnings.extend(all.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        if answer.get("allowed") != Some(&Value::Bool(true)) {
            let text = answer
                .pointer("/status/message")
                .and_then(Value::as_str)
                .unwrap_or("without explanation");
            let message = format!("admission webhook \"{name}\" denied the request: {text}");
            return Err(Failure::new(403, message));
        }
    }
    Ok(warnings)
}

fn webhooks(configuration: &Value) -> impl Iterator<Item = &Value> {
    let webhooks = configuration.get("webhooks").and_then(Value::as_array);
    webhooks.into_iter().flatten()
}

fn is_registered(webhook: &Value, asked: &Asked<'_>) -> bool {
    let rules = webhook.get("rules").and_then(Value::as_array);
    let named = rules.into_iter().flatten().any(|rule| {
        let has = |field, value: &str| {
            let all = rule.get(field).and_then(Value::as_array);
            all.into_iter()
                .flatten()
                .any(|one| one == "*" || one == value)
        };
        has("apiGroups", asked.group)
            && has("apiVersions", asked.version)
            && has("resources", asked.resource)
            && has("operations", "CREATE")
    });
    named && !is_exempt(webhook, asked.namespace.unwrap_or_default())
}

fn is_exempt(webhook: &Value, namespace: &str) -> bool {
    let requirements = webhook
        .pointer("/namespaceSelector/matchExpressions")
        .and_then(Value::as_array);
    requirements.into_iter().flatten().any(|requirement| {
        let values = requirement.get("values").and_then(Value::as_array);
        let named = values.is_some_and(|all| all.iter().any(|value| value == namespace));
        requirement.get("key").is_some_and(|key| key == NAME_LABEL)
            && match requirement.get("operator").and_then(Value::as_str) {
                Some("NotIn") => named,
                Some("In") => !named,
                _ => false,
            }
    })
}

/// Sends one review, and returns its `response`.
async fn call(webhook: &Value, asked: &Asked<'_>) -> Result<Value, String> {
    let text = |path: &str| webhook.pointer(path).and_then(Value::as_str);
    let url: Uri = text("/clientConfig/url")
        .ok_or("it has no URL, and Services are not supported")?
        .parse()
        .map_err(|_| "its URL is invalid")?;
    let bundle = text("/clientConfig/caBundle").unwrap_or_default();
    let bundle = STANDARD.decode(bundle).map_err(|error| error.to_string())?;
    let host = url.host().ok_or("its URL has no host")?.to_owned();
    let kind = asked.object.get("kind").cloned().unwrap_or_default();
    let name = asked.object.pointer("/metadata/name").cloned();
    let group_version = |name: &str, value: Value| json!({"group": asked.group, "version": asked.version, name: value});
    let review = json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": format!("{:032x}", fastrand::u128(..)),
            "kind": group_version("kind", kind.clone()),
            "resource": group_version("resource", asked.resource.into()),
            "requestKind": group_version("kind", kind),
            "requestResource": group_version("resource", asked.resource.into()),
            "name": name,
            "namespace": asked.namespace,
            "operation": "CREATE",
            "userInfo": {"username": "developer", "groups": ["developers", "system:authenticated"]},
            "object": asked.object,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    });
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(HOST, &host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| error.to_string())?;
    let tls = trusting(&bundle)?;
    let port = url.port_u16().unwrap_or(443);
    let response = https::send(tls, &host, (host.as_str(), port), request)
        .await
        .map_err(|error| error.to_string())?;
    let body = response.body();
    let answer: Value = serde_json::from_slice(body)
        .map_err(|_| format!("it answered {}", String::from_utf8_lossy(body)))?;
    let response = answer.get("response").cloned();
    response.ok_or_else(|| "its answer has no response".to_owned())
}
