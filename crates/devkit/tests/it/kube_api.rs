//! The Kubernetes API over plain HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use rolegate_devkit::{KubeApi, KubeApiOptions, Namespace, Node, Pod};
use serde_json::{Value, json};

use tokio::time::Instant;

use super::{ANY, DEADLINE, call, get, open, until};

pub(super) async fn start() -> KubeApi {
    KubeApi::start(ANY, KubeApiOptions::default())
        .await
        .unwrap()
}

/// Starts the API with pods `a` and `b` of namespace `one` on node `n1`, `c` of `two` on `n2`.
pub(super) async fn with_pods() -> KubeApi {
    let api = start().await;
    api.put_pod(Pod::new("one", "a").node("n1").ip("10.0.0.1"));
    api.put_pod(
        Pod::new("one", "b")
            .node("n1")
            .ips(["10.0.0.2", "fd00::2"])
            .phase("Pending"),
    );
    api.put_pod(
        Pod::new("two", "c")
            .node("n2")
            .ip("10.0.0.3")
            .host_network(),
    );
    api.put_namespace(Namespace::new("one").annotation("iam.amazonaws.com/permitted", ".*"));
    api.put_node(Node::new("n1").address("InternalIP", "192.0.2.1"));
    api
}

async fn json(api: &KubeApi, path: &str) -> Value {
    serde_json::from_str(&get(&format!("{}{path}", api.url())).await.body).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

/// An open watch, line by line.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    async fn open(api: &KubeApi, path: &str) -> Self {
        let request = Request::get(format!("{}{path}", api.url()))
            .body(Full::default())
            .unwrap();
        let response = open(request).await;
        assert_eq!(response.status(), 200, "{path}");
        Self {
            body: response.into_body(),
            buffer: BytesMut::new(),
        }
    }

    /// Returns the next event, or `None` at the end of the watch.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                return Some(serde_json::from_slice(&self.buffer.split_to(end + 1)).unwrap());
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame())
                .await
                .expect("an event");
            self.buffer.extend(frame?.unwrap().into_data().unwrap());
        }
    }

    /// Returns the next event's type and object name.
    async fn told(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }

    async fn tells(&mut self, kind: &str, name: &str) {
        assert_eq!(self.told().await, (kind.to_owned(), name.to_owned()));
    }
}

#[tokio::test]
async fn lists_by_path_and_selector() {
    let api = with_pods().await;
    let pods = "/api/v1/pods?fieldSelector=";
    for (path, expected) in [
        ("/api/v1/pods", vec!["a", "b", "c"]),
        ("/api/v1/namespaces/one/pods", vec!["a", "b"]),
        ("/api/v1/namespaces/none/pods", vec![]),
        ("/api/v1/namespaces", vec!["one"]),
        ("/api/v1/nodes", vec!["n1"]),
        (&format!("{pods}spec.nodeName%3Dn1"), vec!["a", "b"]),
        (&format!("{pods}spec.nodeName==n2"), vec!["c"]),
        (&format!("{pods}spec.nodeName!=n1"), vec!["c"]),
        (&format!("{pods}status.podIP=10.0.0.2"), vec!["b"]),
        (&format!("{pods}metadata.name=a"), vec!["a"]),
        (
            &format!("{pods}spec.nodeName=n1,status.phase=Running"),
            vec!["a"],
        ),
        (&format!("{pods}spec.hostNetwork=false"), vec!["a", "b"]),
    ] {
        let list = json(&api, path).await;
        assert_eq!(names(&list), expected, "{path}");
        assert!(list["kind"].as_str().unwrap().ends_with("List"));
        assert!(
            list["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .is_ok()
        );
    }
    for (path, code, reason) in [
        ("/api/v1/pods?fieldSelector=spec.image=x", 400, "BadRequest"),
        ("/api/v1/pods?fieldSelector=spec", 400, "BadRequest"),
        ("/api/v1/pods?labelSelector=a", 400, "BadRequest"),
        ("/api/v1/pods?continue=x", 400, "BadRequest"),
        ("/api/v1/secrets", 404, "NotFound"),
        ("/api/v1/secrets?watch=1", 404, "NotFound"),
        ("/api/v1/namespaces/one/pods/z", 404, "NotFound"),
        ("/metrics", 404, "NotFound"),
    ] {
        let status = json(&api, path).await;
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&json!(code), &json!(reason)),
            "{path}"
        );
        assert_eq!(status["kind"], "Status");
    }
    let pod = json(&api, "/api/v1/namespaces/one/pods/b").await;
    assert_eq!(
        pod["status"]["podIPs"],
        json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}])
    );
    let node = json(&api, "/api/v1/nodes/n1").await;
    assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.1");
    assert_eq!(json(&api, "/version").await["minor"], "33");
    for path in ["/healthz", "/readyz", "/livez"] {
        assert_eq!(get(&format!("{}{path}", api.url())).await.body, "ok");
    }
    assert_eq!(
        call("DELETE", &format!("{}/api/v1/nodes/n1", api.url()), &[], "")
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn lists_in_pages_of_one_version() {
    let api = with_pods().await;
    let first = json(&api, "/api/v1/pods?limit=2").await;
    assert_eq!(names(&first), ["a", "b"]);
    api.put_pod(Pod::new("zoo", "late"));
    let next = first["metadata"]["continue"].as_str().unwrap();
    let second = json(&api, &format!("/api/v1/pods?limit=2&continue={next}")).await;
    assert_eq!(names(&second), ["c", "late"]);
    assert_eq!(second["metadata"]["continue"], "");
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    api.expire_watches();
    let late = json(&api, &format!("/api/v1/pods?limit=2&continue={next}")).await;
    assert_eq!(late["code"], 410);
}

#[tokio::test]
async fn identity_of_objects() {
    let api = start().await;
    let id = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap().to_owned();
    let version = |pod: &Value| -> u64 {
        pod["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    let first = api.put_pod(Pod::new("one", "a"));
    let second = api.put_pod(Pod::new("one", "a").ip("10.0.0.1"));
    assert_eq!(id(&first), id(&second));
    assert!(version(&second) > version(&first));
    assert!(api.delete_pod("one", "a"));
    assert!(!api.delete_pod("one", "a"));
    let third = api.put_pod(Pod::new("one", "a"));
    assert_ne!(id(&first), id(&third));
    assert_eq!(json(&api, "/api/v1/namespaces/one/pods/a").await, third);

    api.put_namespace(Namespace::new("one"));
    api.put_node(Node::new("n1"));
    assert!(api.delete_namespace("one") && api.delete_node("n1"));
    assert!(names(&json(&api, "/api/v1/namespaces").await).is_empty());
}

#[tokio::test]
async fn watches_show_changes_as_the_selector_sees_them() {
    let api = with_pods().await;
    let version = json(&api, "/api/v1/pods").await["metadata"]["resourceVersion"].clone();
    let version = version.as_str().unwrap();
    let path = "/api/v1/pods?watch=true&fieldSelector=spec.nodeName=n1";
    let mut resumed = Lines::open(&api, &format!("{path}&resourceVersion={version}")).await;
    let mut fresh = Lines::open(&api, &format!("{path}&resourceVersion=0")).await;
    until("both are open", || api.watches() == 2).await;

    api.put_pod(Pod::new("two", "c").node("n2").ip("10.0.0.9"));
    api.put_pod(Pod::new("one", "d").node("n1"));
    api.put_pod(Pod::new("one", "d").node("n1").ip("10.0.0.4"));
    api.put_pod(Pod::new("one", "a").node("elsewhere"));
    api.delete_pod("one", "d");

    fresh.tells("ADDED", "a").await;
    fresh.tells("ADDED", "b").await;
    for lines in [&mut fresh, &mut resumed] {
        lines.tells("ADDED", "d").await;
        lines.tells("MODIFIED", "d").await;
        lines.tells("DELETED", "a").await;
        let gone = lines.next().await.unwrap();
        assert_eq!(gone["type"], "DELETED");
        assert_eq!(gone["object"]["status"]["podIP"], "10.0.0.4");
        let now = json(&api, "/api/v1/pods").await["metadata"]["resourceVersion"].clone();
        assert_eq!(gone["object"]["metadata"]["resourceVersion"], now);
    }
    drop((fresh, resumed));
    until("clients that go away end their watches", || {
        api.watches() == 0
    })
    .await;
}

#[tokio::test]
async fn streaming_lists_and_bookmarks() {
    let options = KubeApiOptions {
        bookmark_interval: Duration::from_millis(10),
        ..KubeApiOptions::default()
    };
    let api = KubeApi::start(ANY, options).await.unwrap();
    api.put_pod(Pod::new("one", "a"));
    let path = "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                &allowWatchBookmarks=true";
    let mut lines = Lines::open(&api, path).await;
    lines.tells("ADDED", "a").await;
    let end = lines.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["kind"], "Pod");
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    // Changes of other resources advance the version, which bookmarks report.
    api.put_node(Node::new("n1"));
    let now = json(&api, "/api/v1/nodes").await["metadata"]["resourceVersion"].clone();
    let end = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < end, "no bookmark tells of {now}");
        let mark = lines.next().await.unwrap();
        assert_eq!(mark["type"], "BOOKMARK");
        if mark["object"]["metadata"]["resourceVersion"] == now {
            assert_eq!(mark["object"]["metadata"]["annotations"], json!({}));
            break;
        }
    }
    for refused in [
        "/api/v1/pods?watch=1&sendInitialEvents=true&allowWatchBookmarks=true",
        "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
    ] {
        assert_eq!(json(&api, refused).await["code"], 422, "{refused}");
    }
    let options = KubeApiOptions {
        streaming_lists: false,
        ..KubeApiOptions::default()
    };
    let older = KubeApi::start(ANY, options).await.unwrap();
    assert_eq!(json(&older, path).await["code"], 422);
}

#[tokio::test]
async fn watches_end_when_told_or_too_old() {
    let options = KubeApiOptions {
        history: 2,
        ..KubeApiOptions::default()
    };
    let api = KubeApi::start(ANY, options).await.unwrap();
    let first = api.put_pod(Pod::new("one", "a"))["metadata"]["resourceVersion"].clone();
    let from = |version: &Value| {
        format!(
            "/api/v1/pods?watch=1&resourceVersion={}",
            version.as_str().unwrap()
        )
    };

    let mut dropped = Lines::open(&api, &from(&first)).await;
    api.drop_watches();
    assert_eq!(dropped.next().await, None);
    api.put_pod(Pod::new("one", "b"));
    Lines::open(&api, &from(&first))
        .await
        .tells("ADDED", "b")
        .await;

    for name in ["c", "d"] {
        api.put_pod(Pod::new("one", name));
    }
    let mut old = Lines::open(&api, &from(&first)).await;
    let error = old.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(error["object"]["reason"], "Expired");
    assert_eq!(old.next().await, None);

    let newest = api.put_pod(Pod::new("one", "e"))["metadata"]["resourceVersion"].clone();
    let mut open = Lines::open(&api, &from(&newest)).await;
    api.expire_watches();
    assert_eq!(open.next().await, None);
    let error = Lines::open(&api, &from(&newest))
        .await
        .next()
        .await
        .unwrap();
    assert_eq!(error["object"]["code"], 410);

    let mut short = Lines::open(&api, "/api/v1/nodes?watch=1&timeoutSeconds=1").await;
    assert_eq!(short.next().await, None);
}

#[tokio::test]
async fn delays_events_but_not_lists() {
    let api = start().await;
    let mut lines = Lines::open(&api, "/api/v1/pods?watch=1").await;
    api.delay_events(Duration::from_secs(3600));
    api.put_pod(Pod::new("one", "a"));
    assert_eq!(names(&json(&api, "/api/v1/pods").await), ["a"]);
    let told = tokio::time::timeout(Duration::from_millis(50), lines.next()).await;
    assert!(told.is_err(), "told too early: {told:?}");

    let api = start().await;
    let mut lines = Lines::open(&api, "/api/v1/pods?watch=1").await;
    api.delay_events(Duration::from_millis(20));
    api.put_pod(Pod::new("one", "a"));
    lines.tells("ADDED", "a").await;
}

#[tokio::test]
async fn failures_and_memory() {
    let api = with_pods().await;
    api.fail_with(Some(503));
    let status = json(&api, "/api/v1/pods?fieldSelector=spec.nodeName=n1").await;
    assert_eq!(
        (&status["code"], &status["reason"]),
        (&json!(503), &json!("ServiceUnavailable"))
    );
    assert_eq!(get(&format!("{}/readyz", api.url())).await.status, 503);
    api.fail_with(None);
    assert_eq!(get(&format!("{}/readyz", api.url())).await.status, 200);
    json(&api, "/api/v1/namespaces/one/pods/a").await;
    drop(Lines::open(&api, "/api/v1/nodes?watch=1").await);

    let request = api.requests().remove(0);
    assert_eq!(
        (request.verb.as_str(), request.resource.as_str()),
        ("list", "pods")
    );
    let query = BTreeMap::from([("fieldSelector".to_owned(), "spec.nodeName=n1".to_owned())]);
    assert_eq!(request.query, query);
    for (verb, resource, count) in [
        ("list", "pods", 1),
        ("get", "pods", 1),
        ("watch", "nodes", 1),
        ("GET", "/readyz", 2),
    ] {
        assert_eq!(api.count(verb, resource), count, "{verb} {resource}");
    }
}

#[tokio::test]
async fn events_are_kept() {
    let api = start().await;
    let url = api.url();
    let event =
        |name: &str| json!({"metadata": {"name": name, "namespace": "one"}, "reason": "Denied"});
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = r#"{"series": {"count": 2}}"#;
    for (method, path, headers, body, status) in [
        (
            "POST",
            "/api/v1/namespaces/one/events",
            &[][..],
            event("e1").to_string(),
            201,
        ),
        (
            "POST",
            "/api/v1/namespaces/one/events",
            &[],
            event("e1").to_string(),
            409,
        ),
        (
            "POST",
            "/apis/events.k8s.io/v1/namespaces/one/events",
            &[],
            event("e2").to_string(),
            201,
        ),
        (
            "POST",
            "/api/v1/namespaces/two/events",
            &[],
            event("e3").to_string(),
            400,
        ),
        (
            "POST",
            "/api/v1/namespaces/one/events",
            &[],
            r#"{"metadata":{}}"#.into(),
            422,
        ),
        (
            "POST",
            "/api/v1/namespaces/one/events",
            &[],
            r#"{"metadata":{"generateName":"g-"}}"#.into(),
            201,
        ),
        (
            "POST",
            "/api/v1/namespaces/one/events",
            &[],
            "{".into(),
            400,
        ),
        (
            "PATCH",
            "/apis/events.k8s.io/v1/namespaces/one/events/e2",
            &merge,
            patch.into(),
            200,
        ),
        (
            "PATCH",
            "/apis/events.k8s.io/v1/namespaces/one/events/e9",
            &merge,
            patch.into(),
            404,
        ),
        (
            "PATCH",
            "/apis/events.k8s.io/v1/namespaces/one/events/e2",
            &[],
            patch.into(),
            415,
        ),
        (
            "GET",
            "/api/v1/namespaces/one/events/e2",
            &[],
            String::new(),
            200,
        ),
    ] {
        let reply = call(method, &format!("{url}{path}"), headers, &body).await;
        assert_eq!(
            reply.status, status,
            "{method} {path} {body}: {}",
            reply.body
        );
    }
    let events = api.events();
    assert_eq!(events.len(), 3);
    assert_eq!(events[1]["reason"], "Denied");
    assert_eq!(events[1]["series"]["count"], 2);
    assert!(
        events[2]["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("g-")
    );
    assert_eq!(api.count("create", "events"), 7);
}

#[tokio::test]
async fn builders_make_real_pods() {
    let pod = Pod::new("kube-system", "static")
        .service_account("sa")
        .label("app", "x")
        .mirror()
        .terminating()
        .host_network()
        .build();
    let pod: core::Pod = serde_json::from_value(pod).unwrap();
    assert!(
        pod.annotations()
            .contains_key("kubernetes.io/config.mirror")
    );
    assert_eq!(pod.labels()["app"], "x");
    assert!(pod.metadata.deletion_timestamp.is_some());
    let spec = pod.spec.unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("sa"));
    assert_eq!(spec.host_network, Some(true));
    let node: core::Node =
        serde_json::from_value(Node::new("n").label("zone", "z").build()).unwrap();
    assert_eq!(node.labels()["zone"], "z");
    let namespace: core::Namespace =
        serde_json::from_value(Namespace::new("n").label("team", "t").build()).unwrap();
    assert_eq!(namespace.labels()["team"], "t");
}
