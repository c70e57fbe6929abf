//! A stand-in for the Kubernetes API server. It serves get, list, watch, patch and create for pods,
//! namespaces, nodes, ConfigMaps and any enabled resource, calls registered webhooks, and supports
//! Events and TokenReview. It has no authentication and no TLS.

mod admission;
mod discovery;
mod events;
mod patch;
mod select;
mod store;
mod target;
mod tokens;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue, WARNING};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use crate::http::{Answer, Server, answer, read_body, status};
use crate::recent::{Recent, lock};
use events::Events;
use select::Selector;
use store::{NAMESPACES, NODES, PODS, Store};
use target::{Target, table_of};
use tokens::{TokenKeys, Tokens};
use watch::Watch;

const MAX_BODY: usize = 1024 * 1024;
/// The path of webhook configurations.
const WEBHOOKS: &str = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// The behavior of the API server.
#[derive(Clone, Debug)]
pub struct KubeApiOptions {
    /// Interval of bookmarks in watches that requested them.
    pub bookmark_interval: Duration,
    /// True if `sendInitialEvents` is supported (Kubernetes 1.32 and later).
    pub streaming_lists: bool,
    /// Number of changes from which watches can resume. Older versions get 410.
    pub history: usize,
}

impl Default for KubeApiOptions {
    fn default() -> Self {
        Self {
            bookmark_interval: Duration::from_secs(5),
            streaming_lists: true,
            history: 100_000,
        }
    }
}

/// A received request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRequest {
    /// `get`, `list`, `watch`, `create` or `patch`, as in RBAC. For other requests, the HTTP
    /// method.
    pub verb: String,
    /// The resource, such as `pods`. For other paths, the path.
    pub resource: String,
    /// The namespace in the path.
    pub namespace: Option<String>,
    /// The object's name in the path.
    pub name: Option<String>,
    /// The decoded query.
    pub query: BTreeMap<String, String>,
}

/// A running API server. It stops when dropped.
#[derive(Debug)]
pub struct KubeApi {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    store: Mutex<Store>,
    /// Wakes the watches after each change of the store.
    changed: tokio::sync::watch::Sender<()>,
    options: KubeApiOptions,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    failing: Option<u16>,
    /// Status codes for single resources, by their plural.
    failing_resources: BTreeMap<String, u16>,
    events: Events,
    tokens: Tokens,
    token_keys: Option<TokenKeys>,
    requests: Recent<ApiRequest>,
    counts: HashMap<(String, String), u64>,
}

impl KubeApi {
    /// Starts an API server without objects on `bind`.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound.
    pub async fn start(bind: SocketAddr, options: KubeApiOptions) -> io::Result<Self> {
        let state = Arc::new(State {
            store: Mutex::new(Store::new(options.history)),
            changed: tokio::sync::watch::Sender::new(()),
            options,
            inner: Mutex::default(),
        });
        let served = state.clone();
        let server = Server::start(bind, move |request| {
            let state = served.clone();
            async move {
                state
                    .answer(request)
                    .await
                    .unwrap_or_else(|failure| failure.answer())
            }
        })
        .await?;
        Ok(Self { server, state })
    }

    /// Returns the bound address.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Returns `http://` and the address, without a trailing slash.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Stops the server and waits until its port is free.
    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// Publishes the issuer of ServiceAccount tokens, and the JSON Web Key Set that verifies them.
    pub fn set_token_keys(&self, issuer: &str, key_set: &str) {
        lock(&self.state.inner).token_keys = Some(TokenKeys::new(issuer, key_set));
    }

    /// Adds or replaces a pod and returns it with UID and version.
    pub fn put_pod(&self, pod: impl Into<Value>) -> Value {
        self.change(|store| store.put(PODS, pod.into()))
    }

    /// Adds or replaces a namespace and returns it with UID and version.
    pub fn put_namespace(&self, namespace: impl Into<Value>) -> Value {
        self.change(|store| store.put(NAMESPACES, namespace.into()))
    }

    /// Adds or replaces a node and returns it with UID and version.
    pub fn put_node(&self, node: impl Into<Value>) -> Value {
        self.change(|store| store.put(NODES, node.into()))
    }

    /// Removes a pod. Returns false if it does not exist.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> bool {
        self.change(|store| store.delete(PODS, Some(namespace), name))
    }

    /// Removes a namespace, but not its pods. Returns false if it does not exist.
    pub fn delete_namespace(&self, name: &str) -> bool {
        self.change(|store| store.delete(NAMESPACES, None, name))
    }

    /// Removes a node. Returns false if it does not exist.
    pub fn delete_node(&self, name: &str) -> bool {
        self.change(|store| store.delete(NODES, None, name))
    }

    /// Enables another resource. Paths of unknown resources get 404. `path` is
    /// `[GROUP/]VERSION/RESOURCE`, as in `rolegate.dev/v1alpha1/rolegrants`.
    pub fn enable(&self, path: &str, kind: &str, namespaced: bool) {
        let (table, version) = table_of(path);
        self.change(|store| store.enable(&table, &version, kind, namespaced));
    }

    /// Removes a resource and all of its objects, as if its definition had been deleted. Returns
    /// false if it is unknown.
    pub fn disable(&self, path: &str) -> bool {
        self.change(|store| store.disable(&table_of(path).0))
    }

    /// Adds or replaces an object of any resource and returns it with UID and version. It enables
    /// an unknown resource.
    pub fn put(&self, path: &str, object: impl Into<Value>) -> Value {
        let object = object.into();
        let (table, version) = table_of(path);
        let kind = object
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or("Object")
            .to_owned();
        let namespaced = object.pointer("/metadata/namespace").is_some();
        self.change(|store| {
            store.enable(&table, &version, &kind, namespaced);
            store.put(&table, object)
        })
    }

    /// Removes an object of any resource. Returns false if it does not exist.
    pub fn delete(&self, path: &str, namespace: Option<&str>, name: &str) -> bool {
        self.change(|store| store.delete(&table_of(path).0, namespace, name))
    }

    /// Returns the current object of any resource.
    pub fn object(&self, path: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        let store = lock(&self.state.store);
        let object = store.table(&table_of(path).0).ok()?.get(namespace, name)?;
        Some((*object).clone())
    }

    /// Ends all open watches.
    pub fn drop_watches(&self) {
        self.change(Store::drop_watches);
    }

    /// Ends all open watches and clears the history: resuming gets 410, so clients must list again.
    pub fn expire_watches(&self) {
        self.change(Store::expire);
    }

    /// Delays later changes in watches. Lists contain them at once.
    pub fn delay_events(&self, delay: Duration) {
        lock(&self.state.store).set_delay(delay);
    }

    /// Responds to new requests with this HTTP status; `None` resets it. Open watches continue.
    pub fn fail_with(&self, status: Option<u16>) {
        lock(&self.state.inner).failing = status;
    }

    /// Responds to new requests for this resource, such as `configmaps`, with this HTTP status;
    /// `None` resets it. Open watches continue.
    pub fn fail_resource(&self, resource: &str, status: Option<u16>) {
        let failing = &mut lock(&self.state.inner).failing_resources;
        match status {
            Some(status) => failing.insert(resource.to_owned(), status),
            None => failing.remove(resource),
        };
    }

    /// Returns the Events that clients created, of both API groups, oldest first.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.state.inner).events.to_vec()
    }

    /// Returns the last 10,000 requests, oldest first.
    pub fn requests(&self) -> Vec<ApiRequest> {
        lock(&self.state.inner).requests.to_vec()
    }

    /// Returns the number of requests with this verb and resource, as in [`ApiRequest`].
    pub fn count(&self, verb: &str, resource: &str) -> u64 {
        let key = (verb.to_owned(), resource.to_owned());
        lock(&self.state.inner)
            .counts
            .get(&key)
            .copied()
            .unwrap_or_default()
    }

    /// Returns the number of open watches.
    pub fn watches(&self) -> usize {
        self.state.changed.receiver_count()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut lock(&self.state.store));
        self.state.changed.send_replace(());
        result
    }
}

/// A `Status` object that reports a failure.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    reason: &'static str,
    message: String,
}

impl Failure {
    fn new(number: u16, message: impl Into<String>) -> Self {
        let reason = match number {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            409 => "AlreadyExists",
            410 => "Expired",
            413 => "RequestEntityTooLarge",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self {
            status: status(number),
            reason,
            message: message.into(),
        }
    }

    fn not_found(resource: &str, name: &str) -> Self {
        Self::new(404, format!("{resource} \"{name}\" not found"))
    }

    fn to_value(&self) -> Value {
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.status.as_u16(),
        })
    }

    fn answer(&self) -> Answer {
        json_answer(self.status, &self.to_value())
    }
}

fn json_answer(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, "application/json", body),
        Err(error) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string(),
        ),
    }
}

/// The parameters of a list or a watch.
type Query = BTreeMap<String, String>;

fn flag(query: &Query, name: &str) -> bool {
    query
        .get(name)
        .is_some_and(|value| matches!(value.as_str(), "true" | "1"))
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, Failure> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let query = parts.uri.query().unwrap_or_default();
        let query: Query = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let target = Target::parse(path);
        if let Some(number) = self.record(&parts.method, path, target, &query) {
            return Err(Failure::new(number, "the stand-in is configured to fail"));
        }
        let Some(target) = target else {
            let keys = &lock(&self.inner).token_keys;
            return match keys.as_ref().and_then(|keys| keys.document(path)) {
                Some(document) => Ok(answer(StatusCode::OK, "application/json", document)),
                None => other_path(&lock(&self.store), path),
            };
        };
        if target.resource == "events" {
            let body = whole(body).await?;
            return lock(&self.inner).events.answer(&parts, target, &body);
        }
        if target.resource == "tokenreviews" {
            let body = whole(body).await?;
            return lock(&self.inner).tokens.review(&body);
        }
        let metadata_only = parts
            .headers
            .get(ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains("as=PartialObjectMetadata"));
        if let (&Method::PATCH, Some(name)) = (&parts.method, target.name) {
            let body = whole(body).await?;
            let object = patch::patch(&mut lock(&self.store), &parts, target, name, &body)?;
            self.changed.send_replace(());
            let view = store::view(&object, metadata_only);
            return Ok(json_answer(StatusCode::OK, &*view));
        }
        if (&parts.method, target.name) == (&Method::POST, None) {
            let object = whole(body).await?;
            return self.create(target, &object).await;
        }
        if parts.method != Method::GET {
            return Err(Failure::new(
                405,
                "the stand-in takes new objects, patches and changes of its own process only",
            ));
        }
        match target.name {
            Some(name) => self.get(target, name, metadata_only),
            None if flag(&query, "watch") => {
                let selector = Selector::parse(target, &query)?;
                Ok(Watch::open(self, target.table(), selector, &query, metadata_only)?.answer())
            }
            None => self.list(target, &query, metadata_only),
        }
    }

    /// Creates an object, if the registered webhooks allow it.
    async fn create(&self, target: Target<'_>, body: &[u8]) -> Result<Answer, Failure> {
        let mut object: Value = serde_json::from_slice(body)
            .map_err(|error| Failure::new(400, format!("the object is not JSON: {error}")))?;
        let table = target.table();
        let name = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .ok_or_else(|| Failure::new(422, "metadata.name is missing"))?;
        let configurations: Vec<_> = {
            let store = lock(&self.store);
            if store.table(&table)?.get(target.namespace, name).is_some() {
                let message = format!("{} \"{name}\" already exists", target.resource);
                return Err(Failure::new(409, message));
            }
            let registered = store.table(WEBHOOKS);
            registered
                .map(|all| all.objects().cloned().collect())
                .unwrap_or_default()
        };
        if let (Some(namespace), Some(metadata)) = (
            target.namespace,
            object.get_mut("metadata").and_then(Value::as_object_mut),
        ) {
            metadata.insert("namespace".into(), namespace.into());
        }
        let (group, version) = target.group_version();
        let asked = admission::Asked {
            group,
            version,
            resource: target.resource,
            namespace: target.namespace,
            object: &object,
        };
        let warnings = admission::ask(&configurations, &asked).await?;
        let created = lock(&self.store).put(&table, object);
        self.changed.send_replace(());
        let mut answer = json_answer(StatusCode::CREATED, &created);
        for warning in warnings {
            // The format of RFC 7234: code, agent, quoted text.
            let text = format!("299 - {warning:?}");
            if let Ok(text) = HeaderValue::from_str(&text) {
                answer.headers_mut().append(WARNING, text);
            }
        }
        Ok(answer)
    }

    /// Records a request, and returns the status with which it should fail, if any.
    fn record(
        &self,
        method: &Method,
        path: &str,
        target: Option<Target<'_>>,
        query: &Query,
    ) -> Option<u16> {
        let verb = match (method, target) {
            (&Method::GET, Some(Target { name: Some(_), .. })) => "get",
            (&Method::GET, Some(_)) if flag(query, "watch") => "watch",
            (&Method::GET, Some(_)) => "list",
            (&Method::POST, Some(_)) => "create",
            (&Method::PATCH, Some(_)) => "patch",
            _ => method.as_str(),
        };
        let target = target.unwrap_or_else(|| Target::other(path));
        let request = ApiRequest {
            verb: verb.to_owned(),
            resource: target.resource.to_owned(),
            namespace: target.namespace.map(Into::into),
            name: target.name.map(Into::into),
            query: query.clone(),
        };
        let mut inner = lock(&self.inner);
        let key = (request.verb.clone(), request.resource.clone());
        // Bounded, since a client may request any number of paths.
        if inner.counts.len() < 1000 || inner.counts.contains_key(&key) {
            *inner.counts.entry(key).or_default() += 1;
        }
        let failing = inner.failing_resources.get(&request.resource).copied();
        inner.requests.push(request);
        inner.failing.or(failing)
    }

    fn get(&self, target: Target<'_>, name: &str, metadata_only: bool) -> Result<Answer, Failure> {
        let object = lock(&self.store)
            .table(&target.table())?
            .get(target.namespace, name);
        let object = object.ok_or_else(|| Failure::not_found(target.resource, name))?;
        Ok(json_answer(
            StatusCode::OK,
            &*store::view(&object, metadata_only),
        ))
    }

    fn list(
        &self,
        target: Target<'_>,
        query: &Query,
        metadata_only: bool,
    ) -> Result<Answer, Failure> {
        let selector = Selector::parse(target, query)?;
        let page = lock(&self.store).page(&target.table(), &selector, query)?;
        let (api_version, kind) = if metadata_only {
            (
                "meta.k8s.io/v1".to_owned(),
                "PartialObjectMetadataList".to_owned(),
            )
        } else {
            (page.api_version, format!("{}List", page.kind))
        };
        let list = List {
            kind,
            api_version,
            metadata: json!({
                "resourceVersion": page.version.to_string(),
                "continue": page.next,
            }),
            items: page
                .objects
                .iter()
                .map(|object| store::view(object, metadata_only))
                .collect(),
        };
        Ok(json_answer(StatusCode::OK, &list))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    kind: String,
    api_version: String,
    metadata: Value,
    items: Vec<std::borrow::Cow<'a, Value>>,
}

async fn whole(body: Incoming) -> Result<Bytes, Failure> {
    let body = read_body(body, MAX_BODY).await;
    body.ok_or_else(|| Failure::new(413, "the body is too long or broke off"))
}

fn other_path(store: &Store, path: &str) -> Result<Answer, Failure> {
    match path {
        "/healthz" | "/livez" | "/readyz" => Ok(answer(StatusCode::OK, "text/plain", "ok")),
        "/version" => {
            let version = json!({
                "major": "1",
                "minor": "33",
                "gitVersion": "v1.33.0+devkit",
                "gitCommit": "",
                "gitTreeState": "clean",
                "buildDate": "2026-01-01T00:00:00Z",
                "goVersion": "",
                "compiler": "",
                "platform": "linux/amd64",
            });
            Ok(json_answer(StatusCode::OK, &version))
        }
        _ => match discovery::resources(store, path) {
            Some(list) => Ok(json_answer(StatusCode::OK, &list)),
            None => Err(Failure::new(
                404,
                "the server could not find the requested resource",
            )),
        },
    }
}
