//! Reads a cluster once: the objects that rules are made of, and pods.

mod error;
mod needs;
mod trim;

use std::future::Future;
use std::time::{Duration, Instant};

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Resource};
use rolegate_api::{GROUP, VERSION};
use rolegate_core::config::RuleConfig;
use rolegate_core::text::plain;
use rolegate_kube::client::{ClientOptions, Connection};
use serde_json::Value;

pub use error::ClusterError;
use error::ReadError;
use needs::PolicyNeeds;
use trim::{trimmed_account, trimmed_pod, whole, without_history};

use crate::kinds::Kind;
use crate::object::is_core;
use crate::objects::Objects;

/// Number of objects per request.
const PAGE_SIZE: u32 = 500;
/// Maximum number of objects of one kind.
const MAX_OBJECTS: usize = 500_000;

/// The reader of one cluster.
pub struct Cluster {
    connection: Connection,
    /// Timeout of one request.
    timeout: Option<Duration>,
    observer: Box<dyn ReadObserver>,
}

/// Receives the progress of reads, for people who wait.
pub trait ReadObserver: Send + Sync {
    /// Returns the observer of one list, which is dropped at the end of the list.
    fn list(&self, plural: &str) -> Box<dyn ListObserver>;

    /// Receives the number of objects of a kind that were read.
    fn listed(&self, plural: &str, count: usize);

    /// Receives the outcome of a request, such as `OK` or its status code.
    fn requested(&self, url: &str, outcome: &str, time: Duration);
}

/// Receives the progress of one list.
pub trait ListObserver: Send {
    /// Receives the number of objects that were read so far and of those that remain, if known.
    fn page(&mut self, count: usize, remaining: Option<i64>);
}

impl Cluster {
    /// Connects to a cluster. `timeout` is that of one request.
    ///
    /// # Errors
    /// Returns [`ClusterError::Client`] if no cluster is configured.
    pub async fn connect(
        client: &ClientOptions,
        timeout: Option<Duration>,
        observer: Box<dyn ReadObserver>,
    ) -> Result<Self, ClusterError> {
        Ok(Self {
            connection: Connection::new(client).await?,
            timeout,
            observer,
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
    pub async fn rules(
        &self,
        flags: &RuleConfig,
        change: &Objects,
        with_off_policies: bool,
    ) -> Result<(Vec<Value>, bool), ClusterError> {
        let mut objects = self.list(&core("Namespace", "namespaces"), None).await?;
        let grants = self.optional(&ours("RoleGrant", "rolegrants")).await?;
        objects.extend(grants.into_iter().flatten());
        let configs = self
            .optional(&ours("RolegateConfig", "rolegateconfigs"))
            .await?;
        let has_kind = configs.is_some();
        let configs = configs.unwrap_or_default();
        let of_both = |if_off| {
            let mut rego = PolicyNeeds::of(&configs, flags, if_off);
            rego.extend(PolicyNeeds::of(change.values(), flags, if_off));
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
    pub async fn has_config(&self) -> Result<bool, ClusterError> {
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
    pub async fn users(
        &self,
        whole_pods: bool,
        namespace: Option<&str>,
    ) -> Result<Vec<Value>, ClusterError> {
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
            found.extend(self.pages(&resource, namespace, trim).await?);
        }
        // Most service accounts have no relevant field.
        found.retain(|object| {
            !is_core(object, "ServiceAccount") || object.pointer("/metadata/annotations").is_some()
        });
        Ok(found)
    }

    /// Returns the default namespace.
    pub fn namespace(&self) -> &str {
        self.connection.namespace()
    }

    /// Reads one object of a Kubernetes kind.
    ///
    /// # Errors
    /// Returns an error if it does not exist or cannot be read.
    pub async fn object(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Value, ClusterError> {
        let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
        let api =
            Api::<DynamicObject>::namespaced_with(self.connection.client(), namespace, &resource);
        let path = format!(
            "{}/{name}",
            DynamicObject::url_path(&resource, Some(namespace))
        );
        let object = self.read(&path, api.get_opt(name)).await;
        let object =
            object.map_err(|error| self.failed(&resource.plural, Some(namespace), error))?;
        let object = object.ok_or_else(|| ClusterError::NotFound {
            kind: kind.kind.to_lowercase(),
            name: name.to_owned(),
            place: self.place(namespace),
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
    pub async fn workloads(
        &self,
        kind: &str,
        plural: &str,
        namespace: &str,
    ) -> Result<Vec<Value>, ClusterError> {
        let gvk = GroupVersionKind::gvk("apps", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        self.list(&resource, Some(namespace)).await
    }

    /// Lists objects of a custom resource; `None` if it is not installed.
    async fn optional(&self, resource: &ApiResource) -> Result<Option<Vec<Value>>, ClusterError> {
        match self.pages(resource, None, whole).await {
            Err(ClusterError::NotInstalled { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    async fn list(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
    ) -> Result<Vec<Value>, ClusterError> {
        self.pages(resource, namespace, whole).await
    }

    async fn pages(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        trim: fn(Value) -> Value,
    ) -> Result<Vec<Value>, ClusterError> {
        let client = self.connection.client();
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        };
        let mut progress = self.observer.list(&resource.plural);
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE_SIZE);
        let path = DynamicObject::url_path(resource, namespace);
        loop {
            let list = self.read(&path, api.list(&page)).await;
            let list = list.map_err(|error| self.failed(&resource.plural, namespace, error))?;
            let kind = list.types.kind.strip_suffix("List");
            let mut resource = resource.clone();
            if let (true, Some(kind)) = (resource.kind.is_empty(), kind) {
                resource.kind = kind.to_owned();
            }
            for object in list.items {
                found.push(trim(named(object, &resource)?));
            }
            if found.len() > MAX_OBJECTS {
                return Err(ClusterError::TooMany(resource.plural.clone()));
            }
            progress.page(found.len(), list.metadata.remaining_item_count);
            match list.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => {
                    drop(progress);
                    self.observer.listed(&resource.plural, found.len());
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
        let outcome = match &result {
            Ok(_) => "OK".to_owned(),
            Err(ReadError::Api(kube::Error::Api(status))) => status.code.to_string(),
            Err(ReadError::Api(_)) => "failed".to_owned(),
            Err(ReadError::TimedOut(_)) => "timed out".to_owned(),
        };
        let url = self.connection.url().trim_end_matches('/');
        self.observer
            .requested(&format!("{url}{path}"), &outcome, start.elapsed());
        result
    }

    fn failed(&self, plural: &str, namespace: Option<&str>, error: ReadError) -> ClusterError {
        let place = namespace.map_or("of the cluster".to_owned(), |namespace| {
            format!("of namespace {namespace}")
        });
        ClusterError::of(
            format!("{plural} {place} at {}", self.connection.url()),
            &error,
        )
    }
}

/// Returns an object with its kind, which lists omit.
fn named(object: DynamicObject, resource: &ApiResource) -> Result<Value, ClusterError> {
    let mut value = serde_json::to_value(object).map_err(ClusterError::Serialize)?;
    let Value::Object(fields) = &mut value else {
        return Err(ClusterError::NotAMap);
    };
    fields.insert("apiVersion".into(), resource.api_version.as_str().into());
    fields.insert("kind".into(), resource.kind.as_str().into());
    if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    Ok(value)
}

fn core(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
}

fn ours(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind), plural)
}
