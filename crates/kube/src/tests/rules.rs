//! Tests of watches of rules, and of their status, with the API server's stand-in.

use k8s_openapi::jiff::Timestamp;
use rolegate_core::config::ResourceKind;
use rolegate_core::grant::Grant;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::rule_set_builder::ClusterConfig;
use serde_json::{Value, json};

use crate::cluster_config::{ConfigMode, watch_cluster_config};
use crate::config_maps::{ConfigMap, watch_config_maps};
use crate::events::recorder_as;
use crate::grants::watch_grants;
use crate::policy_status::{STATUS, write_policy_status};
use crate::replicated::{Replicated, watch_replicated};
use crate::status::{Written, write_config_status, write_grant_status};
use rolegate_api::Status;

use super::*;

const GRANTS: &str = "rolegate.dev/v1alpha1/rolegrants";
const CONFIGS: &str = "rolegate.dev/v1alpha1/rolegateconfigs";
const MAPS: &str = "v1/configmaps";

/// The messages and the status of a watch.
struct WatchHarness<M> {
    messages: mpsc::Receiver<M>,
    readiness: Readiness,
    connection: Connection,
    metrics: Metrics,
}

impl<M: Send + 'static> WatchHarness<M> {
    async fn start<F: Future<Output = ()> + Send + 'static>(
        api: &KubeApi,
        watch: impl FnOnce(Connection, WatchObserver, mpsc::Sender<M>) -> F,
    ) -> Self {
        let connection = connect(api.addr()).await;
        let (sender, messages) = mpsc::channel(16);
        let readiness = Readiness::new();
        let mut metrics = Metrics::new();
        let observer = WatchObserver {
            metrics: WatchMetrics::register(metrics.ours(), connection.freshness()),
            condition: readiness.condition("rules"),
        };
        tokio::spawn(watch(connection.clone(), observer, sender));
        Self {
            messages,
            readiness,
            connection,
            metrics,
        }
    }

    async fn next(&mut self) -> M {
        let next = timeout(LONG, self.messages.recv()).await;
        next.expect("no message arrived").expect("the watch exited")
    }

    async fn until_noted(&self, part: &str) {
        until(|| {
            let noted = self.readiness.report().noted;
            noted.get("rules").is_some_and(|why| why.contains(part))
        })
        .await;
    }

    async fn until_failing(&self, part: &str) {
        until(|| {
            let failing = self.readiness.report().failing;
            failing.get("rules").is_some_and(|why| why.contains(part))
        })
        .await;
    }
}

async fn grants(api: &KubeApi) -> WatchHarness<Change<Grant>> {
    WatchHarness::start(api, |connection, observer, sender| async move {
        watch_grants(&connection, observer, |change| change, sender).await;
    })
    .await
}

async fn config(api: &KubeApi, used: ConfigMode) -> WatchHarness<ClusterConfig> {
    WatchHarness::start(api, move |connection, observer, sender| async move {
        watch_cluster_config(&connection, used, observer, |config| config, sender).await;
    })
    .await
}

fn grant(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
        "metadata": {"name": name}, "spec": spec})
}

fn good_grant(name: &str) -> Value {
    let spec = json!({"roles": ["reader"], "subjects": [{"namespaces": ["shop"]}]});
    grant(name, spec)
}

fn configuration(spec: Value) -> Value {
    json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
        "metadata": {"name": "cluster"}, "spec": spec})
}

fn with_configs(api: &KubeApi) {
    api.enable(CONFIGS, "RolegateConfig", false);
}

#[tokio::test]
async fn grants_come_change_and_go() {
    let api = api(KubeApiOptions::default()).await;
    api.put(GRANTS, good_grant("one"));
    let mut harness = grants(&api).await;
    let Change::Snapshot(all) = harness.next().await else {
        panic!("no snapshot")
    };
    assert_eq!((&*all[0].name, &*all[0].roles[0]), ("one", "reader"));
    until(|| harness.readiness.is_ready()).await;
    api.put(GRANTS, good_grant("two"));
    assert!(matches!(harness.next().await, Change::Apply(grant) if &*grant.name == "two"));
    api.delete(GRANTS, None, "one");
    assert!(matches!(harness.next().await, Change::Delete(grant) if &*grant.name == "one"));
    let text = harness.metrics.encode().unwrap();
    let line = "kube_watch_age_seconds{resource=\"rolegrants\"}";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn an_unreadable_grant_replaces_its_previous_version() {
    let api = api(KubeApiOptions::default()).await;
    api.put(GRANTS, good_grant("one"));
    api.put(GRANTS, good_grant("other"));
    let mut harness = grants(&api).await;
    assert!(matches!(harness.next().await, Change::Snapshot(all) if all.len() == 2));
    // As from a later version with limits unknown to this one.
    let mut later = good_grant("one");
    later["spec"]["onlyOnSundays"] = json!(true);
    later["spec"]["subjects"] = json!([{"namespaceSelector": {"matchLabels": {"tier": "gold"}},
        "onlyOnSundays": true}, {"namespaceSelector": 7}]);
    api.put(GRANTS, later);
    let Change::Apply(one) = harness.next().await else {
        panic!("not applied")
    };
    assert!(one.unreadable.unwrap().contains("onlyOnSundays"));
    assert!(one.roles.is_empty());
    // The labels it would select by are still protected.
    let selector = one.subjects[0].namespace_selector.as_ref().unwrap();
    assert!(selector.keys().eq(["tier"]) && one.subjects.len() == 1);
    assert!(
        harness.readiness.is_ready(),
        "other grants are still watched"
    );
}

/// A finalizer, which every writer of the object can add, must not keep a revoked grant in force.
#[tokio::test]
async fn a_grant_that_is_being_deleted_grants_nothing() {
    let api = api(KubeApiOptions::default()).await;
    api.put(GRANTS, good_grant("one"));
    let mut harness = grants(&api).await;
    assert!(matches!(harness.next().await, Change::Snapshot(all) if all[0].unreadable.is_none()));
    let mut deleted = good_grant("one");
    deleted["metadata"]["finalizers"] = json!(["a.b/c"]);
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.put(GRANTS, deleted);
    let Change::Apply(one) = harness.next().await else {
        panic!("not applied")
    };
    assert!(one.unreadable.is_some() && one.roles.is_empty(), "{one:?}");
}

#[tokio::test]
async fn a_missing_kind_is_reported_with_advice_and_retried() {
    let api = api(KubeApiOptions::default()).await;
    let mut harness = grants(&api).await;
    harness.until_failing("install deploy/crds.yaml").await;
    api.put(GRANTS, good_grant("one"));
    assert!(matches!(harness.next().await, Change::Snapshot(all) if all.len() == 1));
    until(|| harness.readiness.is_ready()).await;
}

#[tokio::test]
async fn without_its_kind_flags_count_unless_it_is_required() {
    let api = api(KubeApiOptions::default()).await;
    with_configs(&api);
    api.fail_resource("rolegateconfigs", Some(404));
    let mut harness = config(&api, ConfigMode::Auto).await;
    assert_eq!(harness.next().await, ClusterConfig::Unused);
    assert!(harness.readiness.is_ready());
    let ages = harness.connection.freshness().by_resource();
    assert!(
        ages.contains_key("rolegateconfigs"),
        "it gets old: {ages:?}"
    );
    // It is checked again in a minute, not before.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(api.count("watch", "rolegateconfigs"), 1);
}

#[tokio::test]
async fn a_configuration_that_may_not_be_read_never_lets_flags_count() {
    let api = api(KubeApiOptions::default()).await;
    with_configs(&api);
    api.fail_resource("rolegateconfigs", Some(403));
    let mut harness = config(&api, ConfigMode::Auto).await;
    harness.until_failing("grant the ClusterRole").await;
    api.put(CONFIGS, configuration(json!({})));
    api.fail_resource("rolegateconfigs", None);
    let first = harness.next().await;
    assert!(matches!(first, ClusterConfig::Valid(_)), "{first:?}");
    until(|| harness.readiness.is_ready()).await;
}

#[tokio::test]
async fn flags_count_without_crd_even_if_the_configuration_may_not_be_read() {
    let api = api(KubeApiOptions::default()).await;
    api.fail_resource("rolegateconfigs", Some(403));
    let mut harness = config(&api, ConfigMode::Auto).await;
    assert_eq!(harness.next().await, ClusterConfig::Unused);
    until(|| harness.readiness.is_ready()).await;
}

#[tokio::test]
async fn a_required_configuration_is_missing_without_crd_or_access() {
    for refused in [404, 403] {
        let api = api(KubeApiOptions::default()).await;
        with_configs(&api);
        api.fail_resource("rolegateconfigs", Some(refused));
        let mut harness = config(&api, ConfigMode::Required).await;
        assert_eq!(harness.next().await, ClusterConfig::Missing);
        harness.until_noted("all requests are denied").await;
        api.put(CONFIGS, configuration(json!({})));
        api.fail_resource("rolegateconfigs", None);
        loop {
            match harness.next().await {
                ClusterConfig::Missing => {}
                other => break assert!(matches!(other, ClusterConfig::Valid(_)), "{other:?}"),
            }
        }
        until(|| harness.readiness.report().noted.is_empty()).await;
    }
}

#[tokio::test]
async fn flags_count_where_it_is_off() {
    let api = api(KubeApiOptions::default()).await;
    api.put(CONFIGS, configuration(json!({})));
    let mut harness = config(&api, ConfigMode::Off).await;
    assert_eq!(harness.next().await, ClusterConfig::Unused);
    assert!(harness.readiness.is_ready());
    assert_eq!(api.count("watch", "rolegateconfigs"), 0);
}

#[tokio::test]
async fn the_configuration_is_followed_and_errors_are_reported() {
    let api = api(KubeApiOptions::default()).await;
    api.put(
        CONFIGS,
        configuration(json!({"layers": {"grants": "enforce"}})),
    );
    let mut harness = config(&api, ConfigMode::Auto).await;
    let ClusterConfig::Valid(found) = harness.next().await else {
        panic!("not there")
    };
    assert_eq!(found.modes[LayerId::Grants], Mode::Enforce);
    until(|| harness.readiness.is_ready()).await;
    for (spec, word) in [
        (json!({"rego": {"label": "x"}}), "spec.rego.label"),
        (json!({"unknown": 1}), "unknown"),
    ] {
        api.put(CONFIGS, configuration(spec));
        let ClusterConfig::Invalid(why) = harness.next().await else {
            panic!("not broken")
        };
        assert!(why.reason.contains(word), "{why}");
        assert!(why.generation.is_some());
        until(|| harness.readiness.report().noted.contains_key("rules")).await;
    }
    api.put(CONFIGS, configuration(json!({})));
    assert!(matches!(harness.next().await, ClusterConfig::Valid(_)));
    until(|| harness.readiness.report().noted.is_empty()).await;
}

#[tokio::test]
async fn threat_10_without_the_configuration_everything_is_refused() {
    for used in [ConfigMode::Auto, ConfigMode::Required] {
        let api = api(KubeApiOptions::default()).await;
        with_configs(&api);
        // The definition exists, but the object does not; an object with another name is ignored.
        let mut other = configuration(json!({}));
        other["metadata"]["name"] = json!("other");
        api.put(CONFIGS, other);
        let mut harness = config(&api, used).await;
        assert_eq!(harness.next().await, ClusterConfig::Missing);
        // The watch itself is healthy: admission must be able to respond.
        harness.until_noted("no RolegateConfig named cluster").await;
        api.put(CONFIGS, configuration(json!({})));
        assert!(matches!(harness.next().await, ClusterConfig::Valid(_)));
        until(|| harness.readiness.report().noted.is_empty()).await;
        api.delete(CONFIGS, None, "cluster");
        assert_eq!(harness.next().await, ClusterConfig::Missing);
        harness.until_noted("no RolegateConfig named cluster").await;
        api.put(CONFIGS, configuration(json!({})));
        assert!(matches!(harness.next().await, ClusterConfig::Valid(_)));
        // The definition is deleted as well.
        api.disable(CONFIGS);
        assert_eq!(harness.next().await, ClusterConfig::Missing);
        harness.until_noted("install deploy/crds.yaml").await;
    }
}

/// If a permission is revoked while any watch is running, its data ages with each attempt, and
/// service ends after `--max-staleness`.
#[tokio::test]
async fn threat_33_what_may_not_be_read_any_more_gets_old() {
    async fn gets_old<M: Send + 'static>(
        api: &KubeApi,
        mut harness: WatchHarness<M>,
        resource: &'static str,
    ) {
        harness.next().await;
        let freshness = harness.connection.freshness().clone();
        until(|| harness.readiness.is_ready()).await;
        let label = match resource {
            "ingresses" => "replicated",
            resource => resource,
        };
        assert!(freshness.by_resource().contains_key(label), "{resource}");
        api.fail_resource(resource, Some(403));
        api.expire_watches();
        until(|| harness.readiness.report().noted.contains_key("rules")).await;
        let refused = tokio::time::Instant::now();
        // Counts lists and watches.
        let attempts = || api.count("watch", resource) + api.count("list", resource);
        let before = attempts();
        until(|| attempts() >= before + 2).await;
        // Since the last success, however often it was retried.
        let least = refused.elapsed();
        let age = freshness.by_resource().get(label).copied();
        assert!(age >= Some(least), "{resource}: {age:?} of {least:?}");
    }
    let api = api(KubeApiOptions::default()).await;
    api.put(CONFIGS, configuration(json!({})));
    api.put(GRANTS, good_grant("one"));
    api.put(MAPS, map("opa", "one", json!({})));
    api.enable("networking.k8s.io/v1/ingresses", "Ingress", true);
    for used in [ConfigMode::Auto, ConfigMode::Required] {
        gets_old(&api, config(&api, used).await, "rolegateconfigs").await;
        api.fail_resource("rolegateconfigs", None);
    }
    gets_old(&api, grants(&api).await, "rolegrants").await;
    gets_old(&api, config_maps(&api).await, "configmaps").await;
    let kind = ResourceKind::parse("networking.k8s.io/v1/ingresses").unwrap();
    let ingresses = WatchHarness::start(&api, |connection, observer, sender| async move {
        watch_replicated(&connection, &kind, observer, |change| change, sender).await;
    });
    gets_old::<Change<Replicated>>(&api, ingresses.await, "ingresses").await;
}

#[tokio::test]
async fn an_api_server_that_is_away_or_refuses_later_changes_nothing() {
    for status in [503, 403] {
        let api = api(KubeApiOptions::default()).await;
        api.fail_with(Some(503));
        let mut harness = config(&api, ConfigMode::Auto).await;
        harness.until_failing("503").await;
        assert!(harness.messages.try_recv().is_err(), "it stays unseen");
        api.put(CONFIGS, configuration(json!({})));
        api.fail_with(None);
        assert!(matches!(harness.next().await, ClusterConfig::Valid(_)));
        until(|| harness.readiness.is_ready()).await;
        api.fail_with(Some(status));
        api.expire_watches();
        until(|| harness.readiness.report().noted.contains_key("rules")).await;
        assert!(harness.readiness.is_ready() && harness.messages.try_recv().is_err());
        api.fail_with(None);
        assert!(matches!(harness.next().await, ClusterConfig::Valid(_)));
        until(|| harness.readiness.report().noted.is_empty()).await;
    }
}

fn map(namespace: &str, name: &str, annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a.rego": "package a"},
        "metadata": {"namespace": namespace, "name": name, "annotations": annotations,
            "labels": {"openpolicyagent.org/policy": "rego"}}})
}

async fn config_maps(api: &KubeApi) -> WatchHarness<Change<ConfigMap>> {
    WatchHarness::start(api, |connection, observer, sender| async move {
        watch_config_maps(&connection, "opa", observer, |change| change, sender).await;
    })
    .await
}

#[tokio::test]
async fn config_maps_of_one_namespace_and_their_status() {
    let api = api(KubeApiOptions::default()).await;
    let annotations = json!({"rolegate.dev/enforcement-points": "admission", "unrelated": "x"});
    api.put(MAPS, map("opa", "one", annotations));
    api.put(MAPS, map("elsewhere", "two", json!({})));
    let mut harness = config_maps(&api).await;
    let Change::Snapshot(mut all) = harness.next().await else {
        panic!("no snapshot")
    };
    let one = all.remove(0);
    assert!(all.is_empty(), "{all:?}");
    assert_eq!((&*one.namespace, &*one.name), ("opa", "one"));
    assert_eq!(one.data["a.rego"], "package a");
    assert_eq!(one.labels.get("openpolicyagent.org/policy"), Some("rego"));
    let annotations: Vec<_> = one.annotations.iter().collect();
    assert_eq!(
        annotations,
        [("rolegate.dev/enforcement-points", "admission")]
    );

    let client = harness.connection.client();
    let broken = json!({"status": "error", "error": {"message": "line 1"}});
    let written = write_policy_status(&client, &one, &broken).await.unwrap();
    assert_eq!(written, Written::Changed);
    let Change::Apply(marked) = harness.next().await else {
        panic!("not changed")
    };
    assert!(
        marked.has_same_content(&one),
        "a new status is not a change"
    );
    let status: Value = serde_json::from_str(marked.annotations.get(STATUS).unwrap()).unwrap();
    assert_eq!(status["status"], "error");
    assert_eq!(status["error"]["message"], "line 1");
    let again = write_policy_status(&client, &marked, &broken).await;
    assert_eq!(again.unwrap(), Written::Unchanged);
    assert_eq!(api.count("patch", "configmaps"), 1);
    let fine = write_policy_status(&client, &marked, &json!({"status": "ok"})).await;
    assert_eq!(fine.unwrap(), Written::Changed);
    let object = api.object(MAPS, Some("opa"), "one").unwrap();
    assert_eq!(
        object["metadata"]["annotations"][STATUS],
        r#"{"status":"ok"}"#
    );
    assert_eq!(object["data"]["a.rego"], "package a");
    api.delete(MAPS, Some("opa"), "one");
    let gone = write_policy_status(&client, &marked, &json!({"status": "ok"})).await;
    assert_eq!(gone.unwrap(), Written::Gone);

    let other = ConfigMap {
        data: [("a.rego".into(), "package b".into())].into(),
        ..one.clone()
    };
    assert!(!other.has_same_content(&one));
}

#[tokio::test]
async fn an_invalid_policy_causes_an_event_on_its_config_map() {
    let api = api(KubeApiOptions::default()).await;
    api.put(MAPS, map("opa", "one", json!({})));
    let mut harness = config_maps(&api).await;
    let Change::Snapshot(all) = harness.next().await else {
        panic!("no snapshot")
    };
    let mut metrics = Metrics::new();
    let client = harness.connection.client();
    let (recorder, writer) = recorder_as("rolegate-controller", client, "c".into(), metrics.ours());
    let writing = tokio::spawn(writer.run());
    for _ in 0..3 {
        recorder.report_invalid_policy(&all[0], "line 1");
    }
    drop(recorder);
    timeout(LONG, writing).await.unwrap().unwrap();
    let [event] = &api.events()[..] else {
        panic!("{:?}", api.events())
    };
    assert_eq!(event["reason"], "PolicyInvalid");
    assert_eq!(event["regarding"]["kind"], "ConfigMap");
    assert_eq!(event["regarding"]["uid"], *all[0].uid);
    assert_eq!(event["reportingController"], "rolegate-controller");
}

#[tokio::test]
async fn objects_are_replicated_whole_without_the_records_of_writers() {
    for streaming_lists in [true, false] {
        let api = api(KubeApiOptions {
            streaming_lists,
            ..KubeApiOptions::default()
        })
        .await;
        let path = "networking.k8s.io/v1/ingresses";
        let kind = ResourceKind::parse(path).unwrap();
        let mut harness: WatchHarness<Change<Replicated>> =
            WatchHarness::start(&api, |connection, observer, sender| async move {
                watch_replicated(&connection, &kind, observer, |change| change, sender).await;
            })
            .await;
        harness
            .until_failing("networking.k8s.io/v1/ingresses")
            .await;
        api.enable(path, "Ingress", true);
        // Lists leave out the kind of their objects.
        let object = json!({"spec": {"x": [1]}, "metadata": {"namespace": "shop", "name": "one",
            "managedFields": [{"manager": "m"}], "annotations": {"a": "b",
                "kubectl.kubernetes.io/last-applied-configuration": "{}"}}});
        api.put(path, object);
        let one = loop {
            match harness.next().await {
                Change::Snapshot(all) => {
                    if let Some(one) = all.into_iter().next() {
                        break one;
                    }
                }
                Change::Apply(one) => break one,
                Change::Delete(one) => panic!("{one:?}"),
            }
        };
        assert_eq!(
            (one.namespace.as_deref(), &*one.name),
            (Some("shop"), "one")
        );
        let object: Value = serde_json::from_str(&one.object).unwrap();
        assert_eq!(object["kind"], "Ingress");
        assert_eq!(object["apiVersion"], "networking.k8s.io/v1");
        assert_eq!(object["spec"], json!({"x": [1]}));
        assert_eq!(object["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(object["metadata"].get("managedFields"), None);
        until(|| harness.readiness.is_ready()).await;
    }
}

#[tokio::test]
async fn only_changed_statuses_are_written() {
    let api = api(KubeApiOptions::default()).await;
    api.put(GRANTS, good_grant("one"));
    api.put(CONFIGS, configuration(json!({})));
    let client = connect(api.addr()).await.client();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let status = Status {
        ready: false,
        reason: "NoSubjects",
        message: "name one".into(),
        generation: Some(1),
    };
    let write = async |name, workloads| {
        let written = write_grant_status(&client, name, &status, workloads, now).await;
        written.unwrap().written
    };
    assert_eq!(write("one", 3).await, Written::Changed);
    assert_eq!(write("one", 3).await, Written::Unchanged);
    assert_eq!(write("one", 4).await, Written::Changed);
    assert_eq!(write("none", 0).await, Written::Gone);
    assert_eq!(api.count("patch", "rolegrants"), 2);
    let one = api.object(GRANTS, None, "one").unwrap();
    let condition = json!({"type": "Ready", "status": "False", "reason": "NoSubjects",
        "message": "name one", "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1});
    let expected = json!({"conditions": [condition], "workloads": 4, "observedGeneration": 1});
    assert_eq!(one["status"], expected);
    assert_eq!(one["spec"], good_grant("one")["spec"]);
    assert_eq!(one["metadata"]["generation"], 1);
    let write = write_config_status(&client, &status, now).await.unwrap();
    assert_eq!(write.written, Written::Changed);
    assert!(write.uid.is_some());
    api.fail_resource("rolegateconfigs", Some(403));
    let error = write_config_status(&client, &status, now)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("status"), "{error}");
}
