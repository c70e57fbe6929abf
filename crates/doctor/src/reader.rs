//! Reads the API server, with limits on time and size.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Limits;
use crate::reading::{Reading, Unread};

/// Number of objects per request.
const PAGE_SIZE: usize = 500;
/// Maximum number of objects of one list.
const MAX_OBJECTS: usize = 50_000;
/// Maximum size of a response, in bytes: a page of nodes with long lists of images.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// Maximum size of a page of a pod, in bytes.
const MAX_PAGE_BYTES: usize = 256 * 1024;

/// The reason why an examination cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// No cluster is configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The API server does not respond.
    #[error("cannot reach the API server at {url}: {why}; check --context and --kubeconfig")]
    Unreachable {
        /// Its URL.
        url: String,
        /// The cause.
        why: String,
    },
}

/// Objects of one kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind<'a> {
    /// The group and version, such as `apps/v1` or `v1`.
    pub(crate) version: &'static str,
    /// The name of the resource.
    pub(crate) plural: &'static str,
    /// The namespace; `None` for all.
    pub(crate) namespace: Option<&'a str>,
}

/// Returns a cluster-scoped kind, or a kind in all namespaces.
pub(crate) fn everywhere(version: &'static str, plural: &'static str) -> Kind<'static> {
    Kind {
        version,
        plural,
        namespace: None,
    }
}

/// Returns a kind in one namespace.
pub(crate) fn within<'a>(
    version: &'static str,
    plural: &'static str,
    namespace: &'a str,
) -> Kind<'a> {
    Kind {
        version,
        plural,
        namespace: Some(namespace),
    }
}

impl Kind<'_> {
    fn path(&self) -> String {
        let Self {
            version, plural, ..
        } = self;
        let root = if version.contains('/') { "apis" } else { "api" };
        let namespace = self.namespace.map(|name| format!("namespaces/{name}/"));
        format!(
            "/{root}/{version}/{}{plural}",
            namespace.unwrap_or_default()
        )
    }

    /// Returns the name of the resource as RBAC has it, with the namespace.
    fn named(&self) -> String {
        let name = match self.version.split_once('/') {
            Some((group, _)) => format!("{}.{group}", self.plural),
            None => self.plural.to_owned(),
        };
        match self.namespace {
            Some(namespace) => format!("{name} in namespace {namespace}"),
            None => name,
        }
    }
}

/// A response that is not one of the API server's errors.
pub(crate) struct Page {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body.
    pub(crate) body: Bytes,
}

/// The reader of one cluster.
pub(crate) struct Reader {
    client: Client,
    url: String,
    context: Option<String>,
    namespace: String,
    request: Duration,
    deadline: Instant,
}

impl Reader {
    /// Connects, and reads the version of the API server.
    ///
    /// # Errors
    /// Returns [`DoctorError`] if no cluster is configured, or it does not respond.
    pub(crate) async fn connect<V: DeserializeOwned>(
        client: &ClientOptions,
        limits: Limits,
    ) -> Result<(Self, Reading<V>), DoctorError> {
        let connection = Connection::new(client).await?;
        let reader = Self {
            client: connection.client(),
            url: connection.url().to_owned(),
            context: connection.context().map(str::to_owned),
            namespace: connection.namespace().to_owned(),
            request: limits.request,
            deadline: Instant::now() + limits.total,
        };
        let unreachable = |why: String| DoctorError::Unreachable {
            url: reader.url.clone(),
            why,
        };
        let what = "the version of the API server";
        let version = reader.read("get", what, "/version").await;
        match version {
            Err(Unread::Failed { why, .. }) => Err(unreachable(why)),
            Err(Unread::TimedOut(_)) => Err(unreachable("no response in time".into())),
            version => Ok((reader, version)),
        }
    }

    /// Returns the cluster's name for the report.
    pub(crate) fn subject(&self) -> String {
        let url = self.url.trim_end_matches('/');
        match &self.context {
            Some(context) => format!("cluster {url} (context {context})"),
            None => format!("cluster {url}"),
        }
    }

    /// Returns the namespace of the kubeconfig's context.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Reads one object; `None` if it does not exist.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        kind: Kind<'_>,
        name: &str,
    ) -> Reading<Option<T>> {
        let path = format!("{}/{name}", kind.path());
        let what = format!("{} (name {name})", kind.named());
        match self.read("get", &what, &path).await {
            Ok(object) => Ok(Some(object)),
            Err(Unread::NotInstalled(_)) => Ok(None),
            Err(unread) => Err(unread),
        }
    }

    /// Lists objects. `selector` is a query such as `labelSelector=…`, encoded.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        kind: Kind<'_>,
        selector: &str,
    ) -> Reading<Vec<T>> {
        #[derive(Deserialize)]
        struct List<T> {
            #[serde(default)]
            metadata: ListMetadata,
            #[serde(default = "Vec::new")]
            items: Vec<T>,
        }
        #[derive(Default, Deserialize)]
        struct ListMetadata {
            #[serde(default, rename = "continue")]
            next: String,
        }
        let what = kind.named();
        let first = format!("{}?limit={PAGE_SIZE}&{selector}", kind.path());
        let mut path = first.clone();
        let mut all = Vec::new();
        loop {
            let list: List<T> = self.read("list", &what, &path).await?;
            all.extend(list.items);
            if all.len() > MAX_OBJECTS {
                let why = format!("there are more than {MAX_OBJECTS}");
                return Err(Unread::Failed { what, why });
            }
            if list.metadata.next.is_empty() {
                return Ok(all);
            }
            path = format!("{first}&continue={}", list.metadata.next);
        }
    }

    /// Posts an object that the API server answers and does not keep, such as a review.
    pub(crate) async fn review<T: DeserializeOwned>(
        &self,
        kind: Kind<'_>,
        body: &serde_json::Value,
    ) -> Reading<T> {
        let what = kind.named();
        let request = Request::post(kind.path())
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string().into_bytes()));
        let page = self.exchange(&what, request, MAX_RESPONSE_BYTES).await?;
        decoded("create", what, &page)
    }

    /// Requests a page of a pod through the API server's proxy, as JSON where it has it. Any status
    /// is a page, unless the API server itself denies the request.
    pub(crate) async fn page(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Reading<Page> {
        let kind = within("v1", "pods", namespace);
        let what = format!("pods/proxy in namespace {namespace} (name {pod})");
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("{}/{pod}:{port}/proxy{path}", kind.path()))
            .header(ACCEPT, "application/json")
            .body(Body::empty());
        let page = self.exchange(&what, request, MAX_PAGE_BYTES).await?;
        match status_of(&page) {
            Some(StatusCode::FORBIDDEN) => Err(Unread::Forbidden { verb: "get", what }),
            Some(_) => Err(failed(what, &page)),
            None => Ok(page),
        }
    }

    async fn read<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        what: &str,
        path: &str,
    ) -> Reading<T> {
        let request = Request::get(path).body(Body::empty());
        let page = self.exchange(what, request, MAX_RESPONSE_BYTES).await?;
        decoded(verb, what.to_owned(), &page)
    }

    /// Runs one request within its timeout and before the deadline.
    async fn exchange(
        &self,
        what: &str,
        request: http::Result<Request<Body>>,
        limit: usize,
    ) -> Reading<Page> {
        let failed = |why: String| Unread::Failed {
            what: what.to_owned(),
            why,
        };
        let request = request.map_err(|error| failed(error.to_string()))?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let work = async {
            let response = self.client.send(request).await;
            let response = response.map_err(|error| failed(rolegate_kube::chain(&error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), limit).collect().await;
            let body = body.map_err(|error| failed(error.to_string()))?;
            Ok(Page {
                status,
                body: body.to_bytes(),
            })
        };
        let page = tokio::time::timeout(self.request.min(left), work).await;
        page.unwrap_or_else(|_| Err(Unread::TimedOut(what.to_owned())))
    }
}

fn decoded<T: DeserializeOwned>(verb: &'static str, what: String, page: &Page) -> Reading<T> {
    match page.status {
        StatusCode::FORBIDDEN => Err(Unread::Forbidden { verb, what }),
        StatusCode::NOT_FOUND => Err(Unread::NotInstalled(what)),
        status if status.is_success() => {
            serde_json::from_slice(&page.body).map_err(|error| Unread::Failed {
                what,
                why: format!("the response is malformed: {error}"),
            })
        }
        _ => Err(failed(what, page)),
    }
}

/// Returns the error of the API server.
fn failed(what: String, page: &Page) -> Unread {
    let why = match message(page) {
        Some(message) => message,
        None => format!("the API server responds {}", page.status),
    };
    Unread::Failed { what, why }
}

fn message(page: &Page) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(&page.body).ok()?;
    Some(value.get("message")?.as_str()?.to_owned())
}

/// Returns the status of an error of the API server itself, rather than of a proxied pod.
fn status_of(page: &Page) -> Option<StatusCode> {
    let value: serde_json::Value = serde_json::from_slice(&page.body).ok()?;
    let is_status = value.get("kind").is_some_and(|kind| kind == "Status");
    is_status.then_some(page.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(status: u16, body: &'static str) -> Page {
        Page {
            status: StatusCode::from_u16(status).unwrap(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn paths_and_names_of_kinds() {
        let kind = within("apps/v1", "daemonsets", "a");
        assert_eq!(kind.path(), "/apis/apps/v1/namespaces/a/daemonsets");
        assert_eq!(kind.named(), "daemonsets.apps in namespace a");
        let kind = everywhere("v1", "nodes");
        assert_eq!(
            (kind.path(), kind.named()),
            ("/api/v1/nodes".into(), "nodes".into())
        );
    }

    #[test]
    fn errors_name_the_missing_verb() {
        let denied = decoded::<u8>("list", "nodes".into(), &page(403, "{}")).unwrap_err();
        assert_eq!(denied.to_string(), "not permitted to list nodes");
        assert!(denied.advice().unwrap().contains("list nodes"));
        let error = page(500, r#"{"kind":"Status","message":"etcd is gone"}"#);
        let failed = decoded::<u8>("list", "nodes".into(), &error).unwrap_err();
        assert_eq!(failed.to_string(), "cannot read nodes: etcd is gone");
        let none = decoded::<u8>("list", "x".into(), &page(404, "")).unwrap_err();
        assert!(matches!(none, Unread::NotInstalled(_)));
        let odd = decoded::<u8>("list", "x".into(), &page(200, "[")).unwrap_err();
        assert!(odd.to_string().contains("malformed"), "{odd}");
    }

    #[test]
    fn a_pods_own_error_is_a_page() {
        assert_eq!(status_of(&page(503, r#"{"ready":false}"#)), None);
        assert_eq!(status_of(&page(200, "ready")), None);
        let denied = page(403, r#"{"kind":"Status"}"#);
        assert_eq!(status_of(&denied), Some(StatusCode::FORBIDDEN));
    }
}
