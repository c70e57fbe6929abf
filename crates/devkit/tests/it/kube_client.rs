//! Tests of the Kubernetes API with rolegate's client.

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event as NewEvent, EventType, Recorder};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, ResourceExt};
use rolegate_devkit::KubeApi;

use super::DEADLINE;
use super::kube_api::{start, with_pods};

fn client(api: &KubeApi) -> Client {
    Client::try_from(Config::new(api.url().parse().unwrap())).unwrap()
}

/// Returns a watcher's next event, without errors that it recovers from.
async fn told<K: ResourceExt>(
    stream: &mut (impl Stream<Item = watcher::Result<Event<K>>> + Unpin),
) -> String {
    loop {
        let event = tokio::time::timeout(DEADLINE, stream.next())
            .await
            .expect("an event");
        match event.expect("a watcher never ends") {
            Ok(Event::Init) => return "init".into(),
            Ok(Event::InitApply(object)) => return format!("init {}", object.name_any()),
            Ok(Event::InitDone) => return "done".into(),
            Ok(Event::Apply(object)) => return format!("apply {}", object.name_any()),
            Ok(Event::Delete(object)) => return format!("delete {}", object.name_any()),
            Err(_) => {}
        }
    }
}

/// Tests the watcher that rolegate uses: both ways to start, changes, a dropped watch, an expired
/// one.
#[tokio::test]
async fn works_with_the_watcher() {
    let lists = watcher::Config::default().page_size(1);
    let streams = watcher::Config::default().streaming_lists();
    for config in [lists, streams] {
        let api = with_pods().await;
        let pods: Api<Pod> = Api::all(client(&api));
        let config = config.fields("spec.nodeName=n1");
        let mut stream = Box::pin(watcher(pods, config));
        for expected in ["init", "init a", "init b", "done"] {
            assert_eq!(told(&mut stream).await, expected);
        }
        api.put_pod(rolegate_devkit::Pod::new("one", "d").node("n1"));
        assert_eq!(told(&mut stream).await, "apply d");
        api.drop_watches();
        api.delete_pod("one", "d");
        assert_eq!(told(&mut stream).await, "delete d");
        api.expire_watches();
        api.delete_pod("one", "a");
        for expected in ["init", "init b", "done"] {
            assert_eq!(told(&mut stream).await, expected);
        }
    }
}

#[tokio::test]
async fn works_with_metadata_only_clients() {
    let api = with_pods().await;
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client(&api));
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let mut stream = Box::pin(watcher(namespaces.clone(), config));
        for expected in ["init", "init one", "done"] {
            assert_eq!(told(&mut stream).await, expected);
        }
    }
    let one = namespaces.get("one").await.unwrap();
    assert!(
        one.annotations()
            .contains_key("iam.amazonaws.com/permitted")
    );
}

#[tokio::test]
async fn works_with_the_event_recorder() {
    let api = start().await;
    let recorder = Recorder::new(client(&api), "rolegate".into());
    let pod = ObjectReference {
        kind: Some("Pod".into()),
        name: Some("a".into()),
        namespace: Some("one".into()),
        ..ObjectReference::default()
    };
    let event = NewEvent {
        type_: EventType::Warning,
        reason: "RoleDenied".into(),
        note: Some("no".into()),
        action: "Deny".into(),
        secondary: None,
    };
    recorder.publish(&event, &pod).await.unwrap();
    recorder.publish(&event, &pod).await.unwrap();
    let events = api.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["series"]["count"], 2);
}
