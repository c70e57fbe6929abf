//! Tests of watches with a scripted API server on paused time, for behaviour that no proper server
//! shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use kube::client::{Body, ClientBuilder, DynBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::{BoxError, service_fn};

use super::*;

/// A scripted response: a status, lines of JSON, and whether the connection then stays open.
struct Answer {
    status: u16,
    lines: Vec<Value>,
    stays: bool,
}

impl Answer {
    fn list(pods: &[&str]) -> Self {
        let items: Vec<_> = pods.iter().map(|name| object(name)).collect();
        let list = json!({"kind": "PodList", "apiVersion": "v1",
            "metadata": {"resourceVersion": "5"}, "items": items});
        Self {
            status: 200,
            lines: vec![list],
            stays: false,
        }
    }

    fn watch(events: Vec<Value>) -> Self {
        Self {
            status: 200,
            lines: events,
            stays: true,
        }
    }

    fn status(code: u16) -> Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": "told so", "reason": "Told", "code": code});
        Self {
            status: code,
            lines: vec![status],
            stays: false,
        }
    }
}

fn object(name: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "5"},
        "spec": {"nodeName": "node-a"}})
}

fn added(name: &str) -> Value {
    json!({"type": "ADDED", "object": object(name)})
}

fn end_of_list() -> Value {
    json!({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {
        "resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}}}})
}

fn error(code: u16) -> Value {
    json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": "told so", "reason": "Told", "code": code}})
}

/// Starts a watch of all pods. `script` responds by the request's query and number.
fn play(
    script: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
) -> (Watching, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (script, count) = (Arc::new(script), Arc::clone(&asked));
    let service = service_fn(move |request: Request<Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let answer = script(&query, count.fetch_add(1, SeqCst));
        async move {
            let text: Vec<_> = answer
                .lines
                .iter()
                .map(|line| format!("{line}\n"))
                .collect();
            let frames =
                stream::iter(text).map(|line| Ok::<_, BoxError>(Frame::data(Bytes::from(line))));
            let rest = if answer.stays {
                stream::pending().boxed()
            } else {
                stream::empty().boxed()
            };
            let body = StreamBody::new(frames.chain(rest)).boxed_unsync();
            let body: Box<DynBody> = Box::new(body);
            Ok::<_, BoxError>(
                Response::builder()
                    .status(answer.status)
                    .body(body)
                    .unwrap(),
            )
        }
    });
    let builder = ClientBuilder::new(service, "default");
    let connection = Connection::over(builder, "http://script".into());
    (Watching::over(connection, Scope::Cluster), asked)
}

fn streams(query: &str) -> bool {
    query.contains("sendInitialEvents=true")
}

fn watches(query: &str) -> bool {
    query.contains("watch=true")
}

#[tokio::test(start_paused = true)]
async fn half_a_list_never_passes_for_all_there_is() {
    for broken in [
        error(500),
        json!({"type": "ADDED", "object": {"metadata": "wrong"}}),
    ] {
        let (mut watching, _) = play(move |_, number| {
            Answer::watch(match number {
                0 => vec![added("one"), broken.clone(), end_of_list()],
                _ => vec![added("one"), added("two"), end_of_list()],
            })
        });
        assert_eq!(watching.snapshot().await, ["one", "two"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_is_not_skipped() {
    let broken = json!({"type": "MODIFIED", "object": {"metadata": {"name": 5}}});
    let (mut watching, _) = play(move |_, number| {
        Answer::watch(match number {
            0 => vec![added("old"), end_of_list(), broken.clone()],
            _ => vec![added("new"), end_of_list()],
        })
    });
    assert_eq!(watching.snapshot().await, ["old"]);
    until(|| watching.readiness.report().noted.contains_key("pods")).await;
    assert!(watching.readiness.report().noted["pods"].contains("cannot be read"));
    assert_eq!(watching.relisted().await, ["new"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ignores_streamed_lists_is_listed() {
    let (mut watching, _) = play(|query, _| match (streams(query), watches(query)) {
        // As before Kubernetes 1.19: the parameter is ignored, and no bookmark ends the list.
        (true, _) => Answer::watch(vec![added("one")]),
        (false, true) => Answer::watch(vec![added("two")]),
        (false, false) => Answer::list(&["one"]),
    });
    assert_eq!(watching.snapshot().await, ["one"]);
    assert_eq!(&*watching.applied().await.name, "two");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_streamed_lists_is_listed_at_once() {
    for code in [400, 422] {
        let (mut watching, asked) = play(move |query, _| match (streams(query), watches(query)) {
            (true, _) => Answer::status(code),
            (false, true) => Answer::watch(vec![]),
            (false, false) => Answer::list(&["one"]),
        });
        assert_eq!(watching.snapshot().await, ["one"]);
        assert!(asked.load(SeqCst) <= 3);
        let text = watching.metrics.encode().unwrap();
        assert!(
            text.contains("watch_errors_total{resource=\"pods\"} 0"),
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_slow_down_even_if_lists_work_and_only_watches_fail() {
    let (mut watching, asked) = play(|query, _| match (watches(query), streams(query)) {
        (true, true) => Answer::status(422),
        (true, false) => Answer::status(403),
        (false, _) => Answer::list(&["one"]),
    });
    assert_eq!(watching.snapshot().await, ["one"]);
    let drained = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&drained);
    let mut updates = std::mem::replace(&mut watching.updates, mpsc::channel(1).1);
    tokio::spawn(async move {
        while updates.recv().await.is_some() {
            *counted.lock() += 1;
        }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    // Two requests every 2.6 to 5.1 seconds, and a few more at the start.
    let made = asked.load(SeqCst);
    assert!((20..70).contains(&made), "{made}");
    assert!(watching.readiness.report().noted["pods"].contains("ClusterRole"));
    assert!(*drained.lock() > 5, "lists still come");
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_at_once_are_not_begun_in_a_loop() {
    let (mut watching, asked) = play(|query, _| {
        if streams(query) {
            Answer::watch(vec![end_of_list()])
        } else {
            Answer {
                stays: false,
                ..Answer::watch(vec![])
            }
        }
    });
    watching.snapshot().await;
    let (mut ending, asked_then) = play(|query, _| {
        if streams(query) {
            Answer {
                stays: false,
                ..Answer::watch(vec![end_of_list()])
            }
        } else {
            Answer {
                stays: false,
                ..Answer::watch(vec![])
            }
        }
    });
    ending.snapshot().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(asked.load(SeqCst), 1, "an open watch is left alone");
    let made = asked_then.load(SeqCst);
    assert!((10..=51).contains(&made), "{made} in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_at_the_start_of_a_watch_causes_a_list() {
    let (mut watching, _) = play(|query, number| match (streams(query), number) {
        (true, 0) => Answer {
            stays: false,
            ..Answer::watch(vec![added("old"), end_of_list()])
        },
        (true, _) => Answer::watch(vec![added("new"), end_of_list()]),
        // A status instead of an event: resuming would be rejected for ever.
        (false, _) => Answer::status(410),
    });
    assert_eq!(watching.snapshot().await, ["old"]);
    assert_eq!(watching.relisted().await, ["new"]);
}
