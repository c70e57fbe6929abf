//! The definitions of `deploy/crds.yaml` on a real API server: it accepts them, rejects invalid
//! objects with advice, and rolegate's watches receive the objects.

use std::time::Duration;

use http::header::ACCEPT;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use rolegate_api::Status;
use rolegate_core::config::ResourceKind;
use rolegate_core::grant::Grant;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::rule_set_builder::ClusterConfig;
use rolegate_core::workload::Change;
use rolegate_kube::client::{ClientOptions, Connection};
use rolegate_kube::cluster_config::{ConfigMode, watch_cluster_config};
use rolegate_kube::config_maps::{ConfigMap, watch_config_maps};
use rolegate_kube::grants::watch_grants;
use rolegate_kube::policy_status::{STATUS, write_policy_status};
use rolegate_kube::replicated::{Replicated, watch_replicated};
use rolegate_kube::status::{Written, write_config_status, write_grant_status};
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_runtime::readiness::Readiness;
use rolegate_testkit::{Cluster, eventually, repository};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, mpsc};

const DEADLINE: Duration = Duration::from_secs(120);

/// An event of the watches.
#[derive(Debug)]
enum Message {
    Grants(Change<Grant>),
    Config(ClusterConfig),
    Maps(Change<ConfigMap>),
    Replicated(Change<Replicated>),
}

/// The definitions on a separate API server, since a RolegateConfig would apply to all tests.
async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    let start = async {
        let cluster = Cluster::start().await?;
        install(&cluster).await;
        anyhow::Ok(cluster)
    };
    CLUSTER.get_or_try_init(|| start).await.unwrap()
}

async fn install(cluster: &Cluster) {
    let path = repository().join("deploy/crds.yaml");
    assert_eq!(cluster.apply_file(&path).await.unwrap().len(), 3);
    let client = cluster.admin().unwrap();
    eventually(DEADLINE, async || {
        let known = client
            .list_api_group_resources("rolegate.dev/v1alpha1")
            .await?;
        let names: Vec<_> = known.resources.iter().map(|one| &*one.name).collect();
        for name in ["rolegrants", "rolegateconfigs"] {
            anyhow::ensure!(names.contains(&name), "{names:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
}

async fn connect(cluster: &Cluster) -> Connection {
    let options = ClientOptions {
        kubeconfig: Some(cluster.admin_kubeconfig().unwrap()),
        ..ClientOptions::default()
    };
    Connection::new(&options).await.unwrap()
}

fn reporting(readiness: &Readiness, name: &'static str) -> WatchObserver {
    WatchObserver {
        metrics: WatchMetrics::default(),
        condition: readiness.condition(name),
    }
}

async fn until<T>(
    messages: &mut mpsc::Receiver<Message>,
    mut wanted: impl FnMut(Message) -> Option<T>,
) -> T {
    let found = async {
        loop {
            let message = messages.recv().await.expect("the watch ended");
            if let Some(found) = wanted(message) {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(DEADLINE, found).await;
    found.expect("the update did not arrive")
}

fn object(kind: &str, name: &str, spec: Value) -> String {
    json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name}, "spec": spec})
    .to_string()
}

#[tokio::test]
async fn mistakes_are_refused_with_what_to_do() {
    let cluster = cluster().await;
    for file in ["rolegrant", "rolegateconfig-all-fields", "rolegateconfig"] {
        let path = repository().join(format!("deploy/examples/{file}.yaml"));
        cluster.apply_file(&path).await.unwrap();
    }
    let with = |field: &str, value: Value| {
        let mut spec = json!({"roles": ["a"], "subjects": [{"namespaces": ["n"]}]});
        spec[field] = value;
        spec
    };
    let association = |field: &str, value: Value| {
        let one = json!({"namespace": "n", "serviceAccount": "s*", "role": "a"});
        let mut spec = json!({"associations": [one]});
        spec[field] = value;
        spec
    };
    let associated = |field: &str, value: &str| {
        let mut one = json!({"namespace": "n", "serviceAccount": "s*", "role": "a"});
        one[field] = value.into();
        association("associations", json!([one]))
    };
    let alone = associated("audience", "uploader.example");
    let alone = object("RoleGrant", "associations", alone);
    cluster.apply_manifest(&alone).await.unwrap();
    let session = |session: Value| with("session", session);
    let subject = |subject: Value| with("subjects", json!([subject]));
    for (spec, part) in [
        (with("roles", json!([])), "name at least one role"),
        (with("roles", json!(vec!["r"; 65])), "Too many"),
        (with("subjects", json!([])), "name at least one subject"),
        (
            subject(json!({})),
            "needs namespaces or a namespaceSelector",
        ),
        (
            subject(json!({"serviceAccounts": ["a"]})),
            "needs namespaces or a namespaceSelector",
        ),
        (subject(json!({"namespaces": []})), "needs namespaces"),
        (
            subject(json!({"namespaceSelector": {}})),
            "an empty selector would select everything",
        ),
        (
            subject(json!({"namespaces": ["n"], "podSelector": {"matchLabels": {}}})),
            "an empty selector would select everything",
        ),
        (
            subject(json!({"namespaceSelector":
                {"matchExpressions": [{"key": "k", "operator": "In"}]}})),
            "In and NotIn need values",
        ),
        (session(json!({"durationSeconds": 899})), "900 to 43200"),
        (session(json!({"durationSeconds": 43201})), "900 to 43200"),
        (session(json!({"tags": {"aws:x": "y"}})), "are reserved"),
        (
            session(json!({"tags": {"rolegate.dev/cluster": "y"}})),
            "are reserved",
        ),
        (session(json!({"policy": "x".repeat(2049)})), "Too long"),
        (
            session(json!({"workloadTags": "node"})),
            "Unsupported value",
        ),
        (with("sesion", json!({})), "sesion"),
        (json!({"roles": ["a"]}), "name at least one subject"),
        (
            json!({"subjects": [{"namespaces": ["n"]}]}),
            "name at least one role",
        ),
        (json!({}), "name at least one role"),
        (json!({"associations": []}), "name at least one role"),
        (
            association("roles", json!(["a"])),
            "name at least one subject",
        ),
        (associated("role", "team-*"), "exactly one role"),
        (associated("targetRole", "*"), "exactly one target role"),
        (
            associated("audience", "sts.amazonaws.com"),
            "tokens for STS",
        ),
        (associated("audience", ""), "audience"),
        (associated("externalId", "x"), "externalId"),
        (associated("namespace", ""), "namespace"),
        (associated("roleArn", "a"), "roleArn"),
    ] {
        let wrong = object("RoleGrant", "wrong", spec);
        let refused = cluster.apply_manifest(&wrong).await;
        let error = format!("{:?}", refused.unwrap_err());
        assert!(error.contains(part), "{part:?} not in {error}");
    }
    for (name, spec, part) in [
        ("other", json!({}), "must be named cluster"),
        (
            "cluster",
            json!({"layers": {"grants": "on"}}),
            "Unsupported value",
        ),
        (
            "cluster",
            json!({"session": {"sourceIdentity": "pod"}}),
            "Unsupported value",
        ),
        (
            "cluster",
            json!({"workloadKinds": [{"preset": "knative", "kind": "X"}]}),
            "a preset alone",
        ),
        (
            "cluster",
            json!({"workloadKinds": [{"kind": "X"}]}),
            "a preset alone",
        ),
    ] {
        let wrong = object("RolegateConfig", name, spec);
        let refused = cluster.apply_manifest(&wrong).await;
        let error = format!("{:?}", refused.unwrap_err());
        assert!(error.contains(part), "{part:?} not in {error}");
    }
}

/// The rows of `kubectl get` with the names of their columns.
async fn table(client: &Client, path: &str) -> Vec<Value> {
    let request = http::Request::get(path)
        .header(ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .unwrap();
    let table: Value = client.request(request).await.unwrap();
    let columns = table["columnDefinitions"].as_array().unwrap();
    let rows = table["rows"].as_array().unwrap().iter();
    let named = rows.map(|row| {
        let cells = row["cells"].as_array().unwrap().iter();
        let pairs = columns
            .iter()
            .map(|column| column["name"].as_str().unwrap().to_owned())
            .zip(cells.cloned());
        Value::Object(pairs.collect())
    });
    named.collect()
}

#[tokio::test]
async fn grants_are_followed_and_their_status_is_shown() {
    let cluster = cluster().await;
    let connection = connect(cluster).await;
    let readiness = Readiness::new();
    let (sender, mut messages) = mpsc::channel(16);
    let (watched, told) = (connection.clone(), reporting(&readiness, "grants"));
    tokio::spawn(async move { watch_grants(&watched, told, Message::Grants, sender).await });
    let spec = json!({"roles": ["shown-*"], "subjects": [{"namespaces": ["shown"]}]});
    let shown = object("RoleGrant", "shown", spec);
    cluster.apply_manifest(&shown).await.unwrap();
    let grant = until(&mut messages, |message| match message {
        Message::Grants(Change::Snapshot(all)) => all.into_iter().find(|one| &*one.name == "shown"),
        Message::Grants(Change::Apply(one)) if &*one.name == "shown" => Some(one),
        _ => None,
    });
    assert_eq!(grant.await.roles, ["shown-*"]);

    let client = connection.client();
    let status = Status {
        ready: true,
        reason: "Valid",
        message: "in effect".into(),
        generation: Some(1),
    };
    let write = async || write_grant_status(&client, "shown", &status, 7, Timestamp::now()).await;
    assert_eq!(write().await.unwrap().written, Written::Changed);
    assert_eq!(write().await.unwrap().written, Written::Unchanged);
    let path = "/apis/rolegate.dev/v1alpha1/rolegrants/shown";
    let row = table(&client, path).await.remove(0);
    assert_eq!(row["Roles"], "[\"shown-*\"]");
    assert_eq!(
        (&row["Ready"], &row["Reason"]),
        (&json!("True"), &json!("Valid"))
    );
    assert_eq!(row["Workloads"], 7);
    assert!(row["Age"].is_string(), "{row}");
}

#[tokio::test]
async fn config_maps_and_other_objects_are_followed() {
    let cluster = cluster().await;
    cluster.create_namespace("opa", &[]).await.unwrap();
    let connection = connect(cluster).await;
    let readiness = Readiness::new();
    let (sender, mut messages) = mpsc::channel(16);
    let (to_maps, maps) = (sender.clone(), reporting(&readiness, "maps"));
    let (watched, others) = (connection.clone(), reporting(&readiness, "others"));
    let kind = ResourceKind::parse("v1/services").unwrap();
    tokio::spawn(async move {
        tokio::join!(
            watch_config_maps(&watched, "opa", maps, Message::Maps, to_maps),
            watch_replicated(&watched, &kind, others, Message::Replicated, sender),
        );
    });
    let manifest = "\
apiVersion: v1
kind: ConfigMap
metadata: { name: roles, namespace: opa, labels: { openpolicyagent.org/policy: rego } }
data: { main.rego: package a }
---
apiVersion: v1
kind: Service
metadata: { name: front, namespace: opa }
spec: { ports: [{ port: 80 }] }
";
    cluster.apply_manifest(manifest).await.unwrap();
    let (mut map, mut service) = (None, None);
    until(&mut messages, |message| {
        match message {
            Message::Maps(Change::Apply(one)) if &*one.name == "roles" => map = Some(one),
            Message::Maps(Change::Snapshot(all)) => {
                map = all.into_iter().find(|one| &*one.name == "roles");
            }
            Message::Replicated(Change::Apply(one)) if &*one.name == "front" => {
                service = Some(one);
            }
            Message::Replicated(Change::Snapshot(all)) => {
                service = all.into_iter().find(|one| &*one.name == "front");
            }
            _ => {}
        }
        (map.is_some() && service.is_some()).then_some(())
    })
    .await;
    let (map, service) = (map.unwrap(), service.unwrap());
    assert_eq!(map.data["main.rego"], "package a");
    let object: Value = serde_json::from_str(&service.object).unwrap();
    assert_eq!(object["kind"], "Service");
    assert_eq!(object["metadata"].get("managedFields"), None);
    let client = connection.client();
    let ok = json!({"status": "ok"});
    let written = write_policy_status(&client, &map, &ok).await;
    assert_eq!(written.unwrap(), Written::Changed);
    let marked = until(&mut messages, |message| match message {
        Message::Maps(Change::Apply(one)) => Some(one),
        _ => None,
    });
    let marked = marked.await;
    assert_eq!(marked.annotations.get(STATUS), Some(r#"{"status":"ok"}"#));
    assert!(marked.has_same_content(&map));
}

#[tokio::test]
async fn threat_10_a_configuration_that_is_deleted_or_its_kind_is_missing() {
    let cluster = Cluster::start().await.unwrap();
    let connection = connect(&cluster).await;
    let readiness = Readiness::new();
    let follow = |used| {
        let (sender, messages) = mpsc::channel(16);
        let (watched, told) = (connection.clone(), reporting(&readiness, "config"));
        tokio::spawn(async move {
            watch_cluster_config(&watched, used, told, Message::Config, sender).await;
        });
        messages
    };
    let next = |message| match message {
        Message::Config(config) => Some(config),
        _ => None,
    };
    let mut auto = follow(ConfigMode::Auto);
    assert_eq!(until(&mut auto, next).await, ClusterConfig::Unused);
    let mut required = follow(ConfigMode::Required);
    assert_eq!(until(&mut required, next).await, ClusterConfig::Missing);

    install(&cluster).await;
    let mut auto = follow(ConfigMode::Auto);
    assert_eq!(until(&mut auto, next).await, ClusterConfig::Missing);
    let spec = json!({"layers": {"grants": "enforce"}});
    let written = object("RolegateConfig", "cluster", spec);
    let is = |message| match message {
        Message::Config(ClusterConfig::Valid(config)) => Some(config),
        _ => None,
    };
    let missing = |message| match message {
        Message::Config(ClusterConfig::Missing) => Some(()),
        _ => None,
    };
    cluster.apply_manifest(&written).await.unwrap();
    assert_eq!(
        until(&mut auto, is).await.modes[LayerId::Grants],
        Mode::Enforce
    );
    assert_eq!(
        until(&mut required, is).await.modes[LayerId::Grants],
        Mode::Enforce
    );
    let status = Status {
        ready: true,
        reason: "Valid",
        message: "in effect".into(),
        generation: Some(1),
    };
    let done = write_config_status(&connection.client(), &status, Timestamp::now()).await;
    assert_eq!(done.unwrap().written, Written::Changed);

    let admin = cluster.admin().unwrap();
    let delete = async |path: &str| {
        let request = http::Request::delete(path).body(Vec::new()).unwrap();
        drop(admin.request::<Value>(request).await.unwrap());
    };
    delete("/apis/rolegate.dev/v1alpha1/rolegateconfigs/cluster").await;
    until(&mut auto, missing).await;
    until(&mut required, missing).await;
    cluster.apply_manifest(&written).await.unwrap();
    until(&mut auto, is).await;
    delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rolegateconfigs.rolegate.dev")
        .await;
    until(&mut auto, missing).await;
}
