use json_patch::Patch;
use proptest::prelude::*;
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

use super::*;

const ROLE: &str = "arn:aws:iam::123456789012:role/team/reader";

fn web_identity() -> Identity {
    Identity {
        method: Method::WebIdentity { role: ROLE.into() },
        audience: None,
        regional: None,
        expiration: None,
    }
}

fn container_credentials() -> Identity {
    Identity {
        method: Method::ContainerCredentials,
        ..web_identity()
    }
}

fn all_settings() -> InjectionSettings {
    InjectionSettings {
        region: Some("eu-west-1".into()),
        regional_sts: true,
        no_proxy: true,
        ..InjectionSettings::default()
    }
}

fn mutation(pod: &Value, identity: &Identity, settings: &InjectionSettings) -> Mutation {
    let pod = to_raw_value(pod).unwrap();
    let change = PodChange {
        pod: &Pod::parse(&pod).unwrap(),
        old: None,
        namespace: "shop",
        jitter: 7,
    };
    inject(&change, identity, settings).unwrap()
}

/// Applies the patch as the API server does.
fn patched(pod: &Value, mutation: &Mutation) -> Value {
    let patch: Patch = serde_json::from_value(json!(mutation.patch)).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

/// Undoes the additions, last one first.
fn without_additions(mut pod: Value, mutation: &Mutation) -> Value {
    for AddOperation { path, value } in mutation.patch.iter().rev() {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let removed = match pod.pointer_mut(parent).unwrap() {
            Value::Array(list) => list.pop(),
            Value::Object(fields) => fields.remove(&key.replace("~1", "/").replace("~0", "~")),
            other => panic!("{other}"),
        };
        assert_eq!(removed.as_ref(), Some(value), "{path}");
    }
    pod
}

fn variable<'a>(pod: &'a Value, container: &str, name: &str) -> Option<&'a Value> {
    let env = pod.pointer(container)?.get("env")?.as_array()?;
    env.iter().find(|variable| variable["name"] == name)
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api"}, "spec": spec})
}

/// Any JSON, as fields that this program does not know.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-zA-Z~/ .é-]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z~/]{1,6}", inner, 0..4)
                .prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

fn with_unknown(mut object: Value, unknown: Vec<Value>) -> Value {
    for (number, value) in unknown.into_iter().enumerate() {
        object[format!("unknown{number}")] = value;
    }
    object
}

fn unknown_fields() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec(any_json(), 0..3)
}

fn any_container() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "OTHER",
        "AWS_ROLE_ARN",
        "AWS_REGION",
        "AWS_STS_REGIONAL_ENDPOINTS",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_ROLE_SESSION_NAME",
        "ROLEGATE_POD_NAME",
        "HTTP_PROXY",
        "no_proxy",
    ]);
    let variable = (names, unknown_fields())
        .prop_map(|(name, unknown)| with_unknown(json!({"name": name, "value": "x"}), unknown));
    let mounts = prop::sample::select(vec![
        json!({"name": "data", "mountPath": "/data"}),
        json!({"name": "data", "mountPath": "/var/run/secrets/eks.amazonaws.com/serviceaccount/"}),
        json!({"name": "aws-iam-token", "mountPath": "/mine"}),
        json!({"name": "eks-pod-identity-token", "mountPath": "/x", "subPath": "y"}),
    ]);
    (
        "[a-z]{1,4}",
        prop::option::of(prop::collection::vec(variable, 0..4)),
        prop::option::of(prop::collection::vec(mounts, 0..3)),
        prop::option::of(prop::sample::select(vec!["", "APP_", "AWS_"])),
        unknown_fields(),
    )
        .prop_map(|(name, env, mounts, prefix, unknown)| {
            let mut container = json!({"name": name});
            if let Some(env) = env {
                container["env"] = env.into();
            }
            if let Some(mounts) = mounts {
                container["volumeMounts"] = mounts.into();
            }
            if let Some(prefix) = prefix {
                container["envFrom"] = json!([{"prefix": prefix, "secretRef": {"name": "s"}}]);
            }
            with_unknown(container, unknown)
        })
}

fn any_volume() -> impl Strategy<Value = Value> {
    let token = |name: &str, audience: &str, path: &str| {
        json!({"name": name, "projected": {"sources": [
            {"serviceAccountToken": {"audience": audience, "path": path}}]}})
    };
    prop::sample::select(vec![
        json!({"name": "data", "emptyDir": {}}),
        json!({"name": "aws-iam-token", "emptyDir": {}}),
        json!({"name": "rolegate-aws-iam-token", "secret": {"secretName": "s"}}),
        json!({"name": "eks-pod-identity-token", "futureVolume": {"a": 1}}),
        token("aws-iam-token", "sts.amazonaws.com", "token"),
        token("eks-pod-identity-token", "other", "eks-pod-identity-token"),
    ])
}

prop_compose! {
    fn any_pod()(
        containers in prop::collection::vec(any_container(), 1..4),
        inits in prop::option::of(prop::collection::vec(any_container(), 0..3)),
        volumes in prop::option::of(prop::collection::vec(any_volume(), 0..4)),
        labels in prop::option::of(prop::collection::btree_map("[a-z./]{1,5}", "[a-z]{0,3}", 0..3)),
        skipped in prop::option::of("[a-z,\" ]{0,6}"),
        expiration in prop::option::of("[0-9a-]{0,6}"),
        is_generated in any::<bool>(),
        unknown in unknown_fields(),
    ) -> Value {
        let mut metadata = if is_generated {
            json!({"generateName": "api-"})
        } else {
            json!({"name": "api-0"})
        };
        if let Some(labels) = labels {
            metadata["labels"] = json!(labels);
        }
        if let Some(skipped) = skipped {
            metadata["annotations"]["eks.amazonaws.com/skip-containers"] = skipped.into();
        }
        if let Some(expiration) = expiration {
            metadata["annotations"]["eks.amazonaws.com/token-expiration"] = expiration.into();
        }
        let mut spec = with_unknown(json!({"containers": containers}), unknown.clone());
        if let Some(inits) = inits {
            spec["initContainers"] = inits.into();
        }
        if let Some(volumes) = volumes {
            spec["volumes"] = volumes.into();
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        with_unknown(pod, unknown)
    }
}

proptest! {
    #[test]
    fn only_additions_change_a_pod(pod in any_pod(), by_token in any::<bool>(), all in any::<bool>()) {
        let identity = if by_token { web_identity() } else { container_credentials() };
        let settings = if all { all_settings() } else { InjectionSettings::default() };
        let first = mutation(&pod, &identity, &settings);
        let result = patched(&pod, &first);
        prop_assert_eq!(without_additions(result.clone(), &first), pod);
        // Called again, it adds nothing.
        let again = mutation(&result, &identity, &settings);
        prop_assert_eq!(again.patch, vec![]);
    }

    #[test]
    fn no_object_makes_it_panic(pod in any_json()) {
        let pod = to_raw_value(&pod).unwrap();
        let pod = Pod::parse(&pod).unwrap();
        let change = PodChange { pod: &pod, old: None, namespace: "shop", jitter: 0 };
        drop(inject(&change, &web_identity(), &InjectionSettings::default()));
        drop((pod.service_account(), pod.is_skipped()));
    }
}

#[test]
fn a_container_added_later_gets_the_variables() {
    let first = pod(json!({"containers": [{"name": "api"}]}));
    let settings = InjectionSettings::default();
    let mut result = patched(&first, &mutation(&first, &web_identity(), &settings));
    let sidecar = json!({"name": "istio-proxy"});
    result["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .insert(0, sidecar);
    let again = mutation(&result, &web_identity(), &settings);
    let result = patched(&result, &again);
    for container in ["/spec/containers/0", "/spec/containers/1"] {
        assert_eq!(
            variable(&result, container, "AWS_ROLE_ARN").unwrap()["value"],
            ROLE
        );
    }
    assert_eq!(result["spec"]["volumes"].as_array().unwrap().len(), 1);
}

#[test]
fn session_names_are_those_of_pods() {
    let name_of = |metadata: Value, namespace: &str| {
        let pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "api"}]}});
        let raw = to_raw_value(&pod).unwrap();
        let change = PodChange {
            pod: &Pod::parse(&raw).unwrap(),
            old: None,
            namespace,
            jitter: 0,
        };
        let mutation = inject(&change, &web_identity(), &InjectionSettings::default()).unwrap();
        let pod = patched(&pod, &mutation);
        let value = variable(&pod, "/spec/containers/0", "AWS_ROLE_SESSION_NAME").unwrap();
        value["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(name_of(json!({"name": "api-0"}), "shop"), "shop.api-0");
    let long = name_of(json!({"name": "a".repeat(100)}), "shop");
    assert!(long.len() == 64 && long.starts_with("shop.aaa"), "{long}");
    let generated = |base: &str, namespace: &str| {
        let name = name_of(json!({"generateName": base}), namespace);
        // The API server keeps 58 characters and adds five.
        let pod = format!("{}xxxxx", &base[..base.len().min(58)]);
        let completed = name.replace("$(ROLEGATE_POD_NAME)", &pod);
        assert!(
            completed.len() <= 64 && completed.ends_with(&pod),
            "{completed}"
        );
        completed
    };
    assert_eq!(generated("api-7d9f-", "shop"), "shop.api-7d9f-xxxxx");
    assert_eq!(generated(&"a".repeat(70), "shop").len(), 63);
    assert_eq!(generated(&"a".repeat(50), &"n".repeat(63)).len(), 64);
}

#[test]
fn ephemeral_containers_use_the_token_that_the_pod_has() {
    let settings = InjectionSettings::default();
    let old = pod(json!({"containers": [{"name": "api"}],
        "ephemeralContainers": [{"name": "first"}]}));
    let injected = patched(&old, &mutation(&old, &web_identity(), &settings));
    let patch = |old: &Value| {
        let mut new = old.clone();
        let ephemeral = &mut new["spec"]["ephemeralContainers"];
        ephemeral
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "debug"}));
        let (new_raw, old_raw) = (to_raw_value(&new).unwrap(), to_raw_value(old).unwrap());
        let change = PodChange {
            pod: &Pod::parse(&new_raw).unwrap(),
            old: Some(&Pod::parse(&old_raw).unwrap()),
            namespace: "shop",
            jitter: 0,
        };
        let mutation = inject(&change, &web_identity(), &settings).unwrap();
        patched(&new, &mutation)
    };
    let changed = patch(&injected);
    let debug = &changed["spec"]["ephemeralContainers"];
    assert!(variable(&changed, "/spec/ephemeralContainers/1", "AWS_ROLE_ARN").is_some());
    assert_eq!(debug[1]["volumeMounts"][0]["name"], "aws-iam-token");
    assert_eq!(debug[0], json!({"name": "first"}));
    assert_eq!(
        changed["spec"]["containers"],
        injected["spec"]["containers"]
    );
    // Without the token's volume there is nothing to mount.
    let plain = patch(&old);
    assert_eq!(
        plain["spec"]["ephemeralContainers"][1],
        json!({"name": "debug"})
    );
}

#[test]
fn expirations_are_bounded() {
    let settings = InjectionSettings::default();
    let expiration = |identity: &Identity, asked: Option<&str>| {
        let mut pod = pod(json!({"containers": [{"name": "api"}]}));
        if let Some(asked) = asked {
            pod["metadata"]["annotations"] = json!({"eks.amazonaws.com/token-expiration": asked});
        }
        let result = patched(&pod, &mutation(&pod, identity, &settings));
        let token = "/spec/volumes/0/projected/sources/0/serviceAccountToken/expirationSeconds";
        result.pointer(token).unwrap().as_u64().unwrap()
    };
    let by_account = Identity {
        expiration: Some(3600),
        ..web_identity()
    };
    assert_eq!(expiration(&web_identity(), None), 86_400);
    assert_eq!(expiration(&by_account, None), 3600);
    assert_eq!(expiration(&by_account, Some("7200")), 7200);
    assert_eq!(expiration(&by_account, Some("1")), 600);
    assert_eq!(expiration(&by_account, Some("999999")), 86_400);
    assert_eq!(expiration(&by_account, Some("soon")), 3600);
    assert_eq!(expiration(&container_credentials(), None), 79_207);
    assert_eq!(expiration(&container_credentials(), Some("7200")), 7200);
}

#[test]
fn pods_opt_out_by_label_and_mirror_pods_are_left_alone() {
    let skipped = |metadata: Value| {
        let pod = to_raw_value(&json!({"metadata": metadata})).unwrap();
        Pod::parse(&pod).unwrap().is_skipped()
    };
    assert!(skipped(json!({"labels": {SKIP_LABEL: "false"}})));
    assert!(skipped(json!({"annotations": {MIRROR: "x"}})));
    assert!(!skipped(
        json!({"labels": {"other": "true"}, "annotations": null})
    ));
}
