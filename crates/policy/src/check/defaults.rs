//! Default values of the API server, so that policies see offline what they see at admission. Only
//! fields of pods, workloads and Services that policies read.

use serde_json::{Map, Value, json};

/// Kinds of group `apps` with a pod template at `spec.template`.
const APPS: &[&str] = &["DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"];

/// Adds defaults to an object of Kubernetes' own groups. Others stay unchanged.
pub(super) fn fill(object: &mut Value, group: &str, kind: &str) {
    match (group, kind) {
        ("", "Pod") => {
            pod_spec(object.get_mut("spec"));
            // Admission adds the account to pods, but not to templates.
            account(object.get_mut("spec"));
        }
        ("", "PodTemplate") => template(object.get_mut("template")),
        ("", "Service") => service(object.get_mut("spec")),
        ("", "ReplicationController") => workload(object.get_mut("spec"), kind),
        ("apps", kind) if APPS.contains(&kind) => workload(object.get_mut("spec"), kind),
        ("batch", "Job") => job(object.get_mut("spec")),
        ("batch", "CronJob") => {
            if let Some(Value::Object(spec)) = object.get_mut("spec") {
                set(spec, "concurrencyPolicy", json!("Allow"));
                set(spec, "suspend", json!(false));
                set(spec, "successfulJobsHistoryLimit", json!(3));
                set(spec, "failedJobsHistoryLimit", json!(1));
                job(spec
                    .get_mut("jobTemplate")
                    .and_then(|job| job.get_mut("spec")));
            }
        }
        _ => {}
    }
}

/// Sets a field that is absent or null.
fn set(fields: &mut Map<String, Value>, name: &str, value: Value) {
    let field = fields.entry(name).or_insert(Value::Null);
    if field.is_null() {
        *field = value;
    }
}

fn workload(spec: Option<&mut Value>, kind: &str) {
    let Some(Value::Object(spec)) = spec else {
        return;
    };
    if kind != "DaemonSet" {
        set(spec, "replicas", json!(1));
    }
    match kind {
        "Deployment" => {
            let rolling = json!({"type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}});
            set(spec, "strategy", rolling);
            set(spec, "revisionHistoryLimit", json!(10));
            set(spec, "progressDeadlineSeconds", json!(600));
        }
        "StatefulSet" => {
            set(spec, "podManagementPolicy", json!("OrderedReady"));
            set(spec, "revisionHistoryLimit", json!(10));
            let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
            set(spec, "updateStrategy", rolling);
        }
        "DaemonSet" => {
            set(spec, "revisionHistoryLimit", json!(10));
            let rolling = json!({"type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}});
            set(spec, "updateStrategy", rolling);
        }
        _ => {}
    }
    template(spec.get_mut("template"));
}

fn job(spec: Option<&mut Value>) {
    let Some(Value::Object(spec)) = spec else {
        return;
    };
    set(spec, "backoffLimit", json!(6));
    set(spec, "completionMode", json!("NonIndexed"));
    set(spec, "suspend", json!(false));
    if spec.get("parallelism").is_none_or(Value::is_null) {
        set(spec, "completions", json!(1));
    }
    set(spec, "parallelism", json!(1));
    template(spec.get_mut("template"));
}

fn template(template: Option<&mut Value>) {
    pod_spec(template.and_then(|template| template.get_mut("spec")));
}

fn account(spec: Option<&mut Value>) {
    if let Some(Value::Object(spec)) = spec {
        // The older of the two fields applies if the other is absent.
        let old = spec.get("serviceAccount").and_then(Value::as_str);
        let name = old
            .filter(|name| !name.is_empty())
            .unwrap_or("default")
            .to_owned();
        set(spec, "serviceAccountName", name.into());
        let name = spec.get("serviceAccountName").cloned().unwrap_or_default();
        set(spec, "serviceAccount", name);
    }
}

fn pod_spec(spec: Option<&mut Value>) {
    let Some(Value::Object(spec)) = spec else {
        return;
    };
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "schedulerName", json!("default-scheduler"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "enableServiceLinks", json!(true));
    set(spec, "securityContext", json!({}));
    for containers in ["initContainers", "containers"] {
        let containers = spec.get_mut(containers).and_then(Value::as_array_mut);
        for one in containers.into_iter().flatten() {
            container(one);
        }
    }
    let volumes = spec.get_mut("volumes").and_then(Value::as_array_mut);
    for one in volumes.into_iter().flatten() {
        for source in ["secret", "configMap", "projected", "downwardAPI"] {
            if let Some(Value::Object(source)) = one.get_mut(source) {
                set(source, "defaultMode", json!(420));
            }
        }
    }
}

fn container(container: &mut Value) {
    let Value::Object(container) = container else {
        return;
    };
    let image = container
        .get("image")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let pull = if is_latest(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set(container, "imagePullPolicy", json!(pull));
    set(
        container,
        "terminationMessagePath",
        json!("/dev/termination-log"),
    );
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    ports(container);
    // A missing resource request defaults to the limit.
    if let Some(Value::Object(resources)) = container.get_mut("resources")
        && let Some(Value::Object(limits)) = resources.get("limits").cloned()
    {
        set(resources, "requests", json!({}));
        if let Some(Value::Object(requests)) = resources.get_mut("requests") {
            limits
                .into_iter()
                .for_each(|(name, limit)| set(requests, &name, limit));
        }
    }
}

/// Returns whether an image has the tag `latest`, or neither tag nor digest.
fn is_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once('@') {
        Some(_) => false,
        None => name.split_once(':').is_none_or(|(_, tag)| tag == "latest"),
    }
}

fn ports(fields: &mut Map<String, Value>) {
    let ports = fields.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        if let Value::Object(port) = port {
            set(port, "protocol", json!("TCP"));
        }
    }
}

fn service(spec: Option<&mut Value>) {
    let Some(Value::Object(spec)) = spec else {
        return;
    };
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    ports(spec);
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        if let Value::Object(port) = port
            && let Some(number) = port.get("port").cloned()
        {
            set(port, "targetPort", number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(group: &str, kind: &str, spec: Value) -> Value {
        let mut object = json!({"kind": kind, "spec": spec});
        fill(&mut object, group, kind);
        object["spec"].take()
    }

    #[test]
    fn images_without_a_fixed_tag_are_always_pulled() {
        for (image, latest) in [
            ("nginx", true),
            ("registry.example:5000/nginx", true),
            ("nginx:latest", true),
            ("nginx:1.27", false),
            ("registry.example:5000/nginx:1", false),
            ("nginx@sha256:0", false),
            ("nginx:latest@sha256:0", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn a_pod_has_what_the_api_server_gives_it_and_keeps_what_it_says() {
        let spec = json!({"restartPolicy": "Never", "serviceAccount": "old", "containers": [
            {"image": "a", "ports": [{"containerPort": 1}], "resources": {"limits": {"cpu": "1"}}}]});
        let spec = filled("", "Pod", spec);
        assert_eq!(spec["restartPolicy"], "Never");
        assert_eq!(spec["serviceAccountName"], "old");
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        let empty = filled(
            "",
            "Pod",
            json!({"containers": [{}], "serviceAccountName": null}),
        );
        assert_eq!(empty["serviceAccountName"], "default");
    }

    #[test]
    fn templates_of_all_kinds_are_filled_in_and_name_no_account() {
        let template = json!({"template": {"spec": {"containers": [{"image": "a:1"}]}}});
        for (group, kind) in [
            ("apps", "Deployment"),
            ("apps", "StatefulSet"),
            ("apps", "DaemonSet"),
            ("apps", "ReplicaSet"),
            ("", "ReplicationController"),
            ("batch", "Job"),
        ] {
            let spec = filled(group, kind, template.clone());
            let pod = &spec["template"]["spec"];
            assert_eq!(
                pod["containers"][0]["imagePullPolicy"], "IfNotPresent",
                "{kind}"
            );
            assert!(pod.get("serviceAccountName").is_none(), "{kind}");
        }
        let spec = filled(
            "batch",
            "CronJob",
            json!({"jobTemplate": {"spec": template}}),
        );
        let pod = &spec["jobTemplate"]["spec"]["template"]["spec"];
        assert_eq!(pod["dnsPolicy"], "ClusterFirst");
        assert_eq!(filled("apps", "Deployment", json!({}))["replicas"], 1);
        let other = filled("example.com", "Deployment", template.clone());
        assert_eq!(other, template);
    }

    #[test]
    fn a_service_has_its_type_and_ports() {
        let spec = filled("", "Service", json!({"ports": [{"port": 80}]}));
        assert_eq!(spec["type"], "ClusterIP");
        assert_eq!(
            spec["ports"][0],
            json!({"port": 80, "targetPort": 80, "protocol": "TCP"})
        );
    }
}
