//! Reads a cluster once: the objects that rules are made of, and pods.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Resource};
use rolegate_api::{CONFIG_NAME, GROUP, VERSION};
use rolegate_core::annotation::WEB_IDENTITY_ROLE;
use rolegate_core::config::{ResourceKind, RuleConfig};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_kube::client::Connection;
use rolegate_policy::overlay::is_core;
use rolegate_policy::text::plain;
use rolegate_review::ROLE_VARIABLE;
use serde_json::Value;

use super::kinds::Kind;
use super::load::Objects;
use crate::kubernetes_flags::ReadingFlags;
use crate::progress::Progress;

/// Number of objects per request.
const PAGE_SIZE: u32 = 500;
/// Maximum number of objects of one kind.
const MAX_OBJECTS: usize = 500_000;

/// A client that lists objects of one cluster.
pub(super) struct Cluster {
    connection: Connection,
    /// Timeout of one request.
    timeout: Option<Duration>,
    /// Verbosity of reads, with kubectl's levels.
    verbosity: u8,
}

/// The level of `-v` that prints object counts.
const COUNTS_LEVEL: u8 = 1;
/// The level of `-v` that prints each request.
const REQUESTS_LEVEL: u8 = 6;

impl Cluster {
    /// Connects to the cluster that the flags select.
    ///
    /// # Errors
    /// Returns an error if no cluster is configured.
    pub(super) async fn connect(flags: &ReadingFlags) -> anyhow::Result<Self> {
        Ok(Self {
            connection: Connection::new(&flags.client()).await?,
            timeout: flags.request_timeout(),
            verbosity: flags.verbosity(),
        })
    }

    /// Reads everything that decisions depend on, except pods: namespaces, grants, the
    /// configuration, the ConfigMaps and objects of policies, and whether the kind of the
    /// configuration is installed. `flags` apply if there is no configuration. The objects that a
    /// configuration in `change` needs are included, and policies whose layer is off if
    /// `with_off_policies` is set and `change` contains policies.
    ///
    /// # Errors
    /// Returns an error for objects that cannot be read.
    pub(super) async fn rules(
        &self,
        flags: &RuleConfig,
        change: &Objects,
        with_off_policies: bool,
    ) -> anyhow::Result<(Vec<Value>, bool)> {
        let mut objects = self.list(&core("Namespace", "namespaces"), None).await?;
        let grants = self.optional(&ours("RoleGrant", "rolegrants")).await?;
        objects.extend(grants.into_iter().flatten());
        let configs = self
            .optional(&ours("RolegateConfig", "rolegateconfigs"))
            .await?;
        let has_kind = configs.is_some();
        let configs = configs.unwrap_or_default();
        let of_both = |if_off| {
            let mut rego = Rego::of(&configs, flags, if_off);
            rego.extend(Rego::of(change.values(), flags, if_off));
            rego
        };
        let mut rego = of_both(false);
        if with_off_policies {
            let all = of_both(true);
            if change.has_policies(|namespace| all.namespaces.contains(namespace)) {
                rego = all;
            }
        }
        objects.extend(configs);
        for namespace in &rego.namespaces {
            let config_maps = core("ConfigMap", "configmaps");
            objects.extend(self.list(&config_maps, Some(namespace)).await?);
        }
        for kind in &rego.replicate {
            // The response names the kind.
            let gvk = GroupVersionKind::gvk(&kind.group, &kind.version, "");
            let resource = ApiResource::from_gvk_with_plural(&gvk, &kind.resource);
            objects.extend(self.list(&resource, None).await?);
        }
        Ok((objects, has_kind))
    }

    /// Returns whether a configuration exists.
    ///
    /// # Errors
    /// Returns an error if it cannot be read.
    pub(super) async fn has_config(&self) -> anyhow::Result<bool> {
        let kind = ours("RolegateConfig", "rolegateconfigs");
        let configs = self.optional(&kind).await?;
        Ok(configs.is_some_and(|configs| !configs.is_empty()))
    }

    /// Reads the users of roles in one namespace or all: pods, and service accounts that name a
    /// role. There may be very many, so only fields that decisions depend on are kept, and nearly
    /// all fields of pods if policies may read them (`whole_pods`).
    ///
    /// # Errors
    /// Returns an error for objects that cannot be read.
    pub(super) async fn users(
        &self,
        whole_pods: bool,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let trim = if whole_pods {
            without_history
        } else {
            trimmed_pod
        };
        let mut found = Vec::new();
        for (resource, trim) in [
            (core("Pod", "pods"), trim as fn(Value) -> Value),
            (core("ServiceAccount", "serviceaccounts"), trimmed_account),
        ] {
            let pages = self.pages(&resource, namespace, trim).await;
            found.extend(pages.map_err(|error| self.message(&resource, namespace, error))?);
        }
        // Most service accounts have no relevant field.
        found.retain(|object| {
            !is_core(object, "ServiceAccount") || object.pointer("/metadata/annotations").is_some()
        });
        Ok(found)
    }

    /// Returns the default namespace.
    pub(super) fn namespace(&self) -> &str {
        self.connection.namespace()
    }

    /// Reads one object of a Kubernetes kind.
    ///
    /// # Errors
    /// Returns an error if it does not exist or cannot be read.
    pub(super) async fn object(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Value> {
        let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
        let api =
            Api::<DynamicObject>::namespaced_with(self.connection.client(), namespace, &resource);
        let path = format!(
            "{}/{name}",
            DynamicObject::url_path(&resource, Some(namespace))
        );
        let object = self.read(&path, api.get_opt(name)).await;
        let object = object
            .map_err(|error| self.message(&resource, Some(namespace), Listing::Failed(error)))?;
        let kind = kind.kind.to_lowercase();
        let object = object.ok_or_else(|| {
            let place = self.place(namespace);
            anyhow!("cannot find {kind} {name} in {place}: set its namespace with -n")
        })?;
        named(object, &resource)
    }

    /// Formats a namespace and its cluster, for messages.
    fn place(&self, namespace: &str) -> String {
        match self.connection.context() {
            Some(context) => format!("namespace {namespace} (context {})", plain(context)),
            None => format!("namespace {namespace} at {}", self.connection.url()),
        }
    }

    /// Reads the objects of a kind of group `apps` in a namespace.
    ///
    /// # Errors
    /// Returns an error for objects that cannot be read.
    pub(super) async fn workloads(
        &self,
        kind: &str,
        plural: &str,
        namespace: &str,
    ) -> anyhow::Result<Vec<Value>> {
        let gvk = GroupVersionKind::gvk("apps", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        self.list(&resource, Some(namespace)).await
    }

    /// Lists objects of a custom resource; `None` if it is not installed.
    async fn optional(&self, resource: &ApiResource) -> anyhow::Result<Option<Vec<Value>>> {
        match self.pages(resource, None, whole).await {
            Err(Listing::Failed(ReadError::Api(kube::Error::Api(status))))
                if status.code == 404 =>
            {
                Ok(None)
            }
            Err(error) => Err(self.message(resource, None, error)),
            Ok(found) => Ok(Some(found)),
        }
    }

    async fn list(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let pages = self.pages(resource, namespace, whole).await;
        pages.map_err(|error| self.message(resource, namespace, error))
    }

    async fn pages(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        trim: fn(Value) -> Value,
    ) -> Result<Vec<Value>, Listing> {
        let client = self.connection.client();
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        };
        let mut progress = Progress::new(&resource.plural);
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE_SIZE);
        let path = DynamicObject::url_path(resource, namespace);
        loop {
            let list = self.read(&path, api.list(&page)).await;
            let list = list.map_err(Listing::Failed)?;
            let kind = list.types.kind.strip_suffix("List");
            let mut resource = resource.clone();
            if let (true, Some(kind)) = (resource.kind.is_empty(), kind) {
                resource.kind = kind.to_owned();
            }
            for object in list.items {
                found.push(trim(named(object, &resource).map_err(Listing::Unreadable)?));
            }
            if found.len() > MAX_OBJECTS {
                return Err(Listing::TooMany);
            }
            progress.show(found.len(), list.metadata.remaining_item_count);
            match list.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => {
                    drop(progress);
                    self.verbose(COUNTS_LEVEL, || {
                        format!("{} {}", found.len(), resource.plural)
                    });
                    return Ok(found);
                }
            }
        }
    }

    /// Runs one request with the timeout.
    async fn read<T>(
        &self,
        path: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ReadError> {
        let start = Instant::now();
        let result = match self.timeout {
            None => request.await.map_err(ReadError::Api),
            Some(time) => match tokio::time::timeout(time, request).await {
                Ok(result) => result.map_err(ReadError::Api),
                Err(_) => Err(ReadError::TimedOut(time)),
            },
        };
        self.verbose(REQUESTS_LEVEL, || {
            let outcome = match &result {
                Ok(_) => "OK".to_owned(),
                Err(ReadError::Api(kube::Error::Api(status))) => status.code.to_string(),
                Err(ReadError::Api(_)) => "failed".to_owned(),
                Err(ReadError::TimedOut(_)) => "timed out".to_owned(),
            };
            let url = self.connection.url().trim_end_matches('/');
            let time = start.elapsed().as_millis();
            format!("GET {url}{path} {outcome} in {time} ms")
        });
        result
    }

    fn verbose(&self, level: u8, text: impl FnOnce() -> String) {
        if self.verbosity >= level {
            let text = text();
            // Ignored: standard error may be closed.
            let _ = writeln!(std::io::stderr(), "{}", plain(&text));
        }
    }

    fn message(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        error: Listing,
    ) -> anyhow::Error {
        match error {
            Listing::Failed(error) => self.failed(&resource.plural, namespace, &error),
            Listing::Unreadable(error) => error,
            Listing::TooMany => anyhow!(
                "the cluster has more than {MAX_OBJECTS} {}",
                resource.plural
            ),
        }
    }

    fn failed(&self, plural: &str, namespace: Option<&str>, error: &ReadError) -> anyhow::Error {
        let place = namespace.map_or("of the cluster".to_owned(), |namespace| {
            format!("of namespace {namespace}")
        });
        let url = self.connection.url();
        let error = match error {
            ReadError::Api(error) => error,
            ReadError::TimedOut(time) => {
                return anyhow!(
                    "cannot read {plural} {place} at {url}: no response within {} ms \
                     (--request-timeout)",
                    time.as_millis()
                );
            }
        };
        match error {
            kube::Error::Api(status) if status.code == 403 => anyhow!(
                "not permitted to read {plural} {place} at {url}: request the verbs get and list on them \
                 (ClusterRole rolegate-view of deploy/rolegate-view.yaml grants them for the rules), or \
                 use manifests instead, with --rules and --offline"
            ),
            error => anyhow!(
                "cannot read {plural} {place} at {url}: {}",
                rolegate_kube::chain(error)
            ),
        }
    }
}

/// The reason why one request failed.
enum ReadError {
    Api(kube::Error),
    TimedOut(Duration),
}

enum Listing {
    Failed(ReadError),
    Unreadable(anyhow::Error),
    TooMany,
}

/// The kinds that policies need.
#[derive(Default)]
struct Rego {
    namespaces: BTreeSet<String>,
    replicate: BTreeSet<ResourceKind>,
}

impl Rego {
    /// Reads it from the configuration, which is validated later, or else from `flags`. Empty if the
    /// layer is off and `if_off` is not set.
    fn of(configs: &[Value], flags: &RuleConfig, if_off: bool) -> Self {
        let name = |object: &&Value| {
            let name = object.pointer("/metadata/name").and_then(Value::as_str);
            name == Some(CONFIG_NAME)
        };
        let mut ours = configs.iter().filter(|object| is_config(object));
        let Some(config) = ours.find(name) else {
            if flags.modes[LayerId::Rego] == Mode::Off && !if_off {
                return Self::default();
            }
            let namespaces = flags.rego.namespaces.iter();
            return Self {
                namespaces: namespaces.map(ToString::to_string).collect(),
                replicate: flags.rego.replicate.iter().cloned().collect(),
            };
        };
        let texts = |pointer: &str| -> Option<Vec<&str>> {
            let list = config.pointer(pointer)?.as_array()?;
            Some(list.iter().filter_map(Value::as_str).collect())
        };
        let mode = config.pointer("/spec/layers/rego").and_then(Value::as_str);
        if matches!(mode, None | Some("off")) && !if_off {
            return Self::default();
        }
        Self {
            namespaces: texts("/spec/rego/namespaces")
                .map_or_else(
                    || vec!["opa".to_owned()],
                    |names| names.into_iter().map(str::to_owned).collect(),
                )
                .into_iter()
                .collect(),
            replicate: texts("/spec/rego/replicate")
                .unwrap_or_default()
                .into_iter()
                .filter_map(ResourceKind::parse)
                .collect(),
        }
    }

    fn extend(&mut self, other: Self) {
        self.namespaces.extend(other.namespaces);
        self.replicate.extend(other.replicate);
    }
}

/// Returns whether an object is a `RolegateConfig`.
pub(super) fn is_config(object: &Value) -> bool {
    is_ours(object, "RolegateConfig")
}

/// Returns whether an object is of a kind of rolegate's API group.
pub(super) fn is_ours(object: &Value, kind: &str) -> bool {
    let text = |field| {
        object
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    text("kind") == kind && text("apiVersion").split('/').next() == Some(GROUP)
}

/// Returns an object with its kind, which lists omit.
fn named(object: DynamicObject, resource: &ApiResource) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(object).context("cannot serialize an object")?;
    let Value::Object(fields) = &mut value else {
        bail!("an object is not a JSON map");
    };
    fields.insert("apiVersion".into(), resource.api_version.as_str().into());
    fields.insert("kind".into(), resource.kind.as_str().into());
    if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    Ok(value)
}

fn whole(object: Value) -> Value {
    object
}

/// Returns a pod without most of its fields. Of containers and volumes it keeps the AWS settings
/// that request a role, see [`rolegate_review::WebIdentity`].
fn trimmed_pod(pod: Value) -> Value {
    let mut pod = without_history(pod);
    keep(
        pod.get_mut("spec"),
        &[
            "nodeName",
            "serviceAccountName",
            "hostNetwork",
            "initContainers",
            "containers",
            "ephemeralContainers",
            "volumes",
        ],
    );
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = pod.pointer_mut(&format!("/spec/{kind}"));
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            keep(Some(&mut *container), &["env"]);
            if let Some(Value::Array(variables)) = container.get_mut("env") {
                variables.retain(|one| one.get("name").is_some_and(|name| name == ROLE_VARIABLE));
            }
        }
    }
    if let Some(Value::Array(volumes)) = pod.pointer_mut("/spec/volumes") {
        volumes.retain(|volume| volume.get("projected").is_some());
    }
    pod
}

/// Returns a pod as it was created, with the status fields that decisions depend on.
fn without_history(mut pod: Value) -> Value {
    keep(pod.get_mut("status"), &["phase", "podIP", "podIPs"]);
    if let Some(Value::Object(annotations)) = pod.pointer_mut("/metadata/annotations") {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    pod
}

/// Returns a service account with its role only.
fn trimmed_account(mut account: Value) -> Value {
    keep(Some(&mut account), &["apiVersion", "kind", "metadata"]);
    keep(
        account.get_mut("metadata"),
        &["name", "namespace", "annotations"],
    );
    keep(
        account.pointer_mut("/metadata/annotations"),
        &[WEB_IDENTITY_ROLE],
    );
    if let Some(Value::Object(metadata)) = account.get_mut("metadata") {
        metadata.retain(|_, value| value.as_object().is_none_or(|fields| !fields.is_empty()));
    }
    account
}

fn keep(part: Option<&mut Value>, fields: &[&str]) {
    if let Some(Value::Object(part)) = part {
        part.retain(|field, _| fields.contains(&field.as_str()));
    }
}

fn core(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
}

fn ours(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind), plural)
}

#[cfg(test)]
mod tests {
    use rolegate_core::annotation::AnnotationKeys;
    use rolegate_review::WebIdentity;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_asks_aws_for_a_role_is_left_of_a_pod() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "api-0", "namespace": "shop", "labels": {"app": "api"}},
            "spec": {
                "serviceAccountName": "api", "restartPolicy": "Always",
                "containers": [{"name": "app", "image": "app", "env": [
                    {"name": "HOME", "value": "/"}, {"name": "AWS_ROLE_ARN", "value": "reader"}]}],
                "volumes": [{"name": "x", "emptyDir": {}}],
            },
            "status": {"phase": "Running", "conditions": []},
        });
        let trimmed = trimmed_pod(pod.clone());
        assert_eq!(
            trimmed["spec"],
            json!({
                "serviceAccountName": "api", "volumes": [],
                "containers": [{"env": [{"name": "AWS_ROLE_ARN", "value": "reader"}]}],
            })
        );
        assert_eq!(trimmed["status"], json!({"phase": "Running"}));
        let keys = AnnotationKeys::default();
        let none = BTreeSet::new();
        let asks = WebIdentity::of(&trimmed, &keys, &none);
        assert_eq!(
            (asks.is_some(), asks),
            (true, WebIdentity::of(&pod, &keys, &none))
        );
        let mut token = pod;
        token["spec"]["containers"] = json!([]);
        token["spec"]["volumes"] = json!([{"projected": {"sources": [
            {"serviceAccountToken": {"audience": "pods.eks.amazonaws.com"}}]}}]);
        let asks = WebIdentity::of(&trimmed_pod(token), &keys, &none).unwrap();
        assert!(asks.unnamed.is_some());
    }

    #[test]
    fn accounts_are_left_with_their_role() {
        let account = |annotations: Value| {
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "secrets": [],
                "metadata": {"name": "api", "namespace": "shop", "annotations": annotations}})
        };
        let role = json!({"eks.amazonaws.com/role-arn": "reader"});
        let trimmed = trimmed_account(account(role.clone()));
        assert_eq!(trimmed["metadata"]["annotations"], role);
        let trimmed = trimmed_account(account(json!({"x": "y"})));
        assert!(trimmed.pointer("/metadata/annotations").is_none());
    }
}
