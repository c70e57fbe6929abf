use rolegate_core::config::presets::preset;
use serde_json::json;

use super::*;

fn told(object: &Value) -> Vec<String> {
    told_with(object, &RuleConfig::default())
}

fn told_with(object: &Value, config: &RuleConfig) -> Vec<String> {
    let hints = hints(object, "shop", config, &AnnotationKeys::default());
    let told = hints.iter();
    told.map(|hint| {
        format!(
            "{} at {}: {}",
            hint.rule,
            hint.steps.join("/"),
            hint.message
        )
    })
    .collect()
}

fn one(object: &Value) -> String {
    let told = told(object);
    assert_eq!(told.len(), 1, "{object}: {told:?}");
    told.into_iter().next().unwrap_or_default()
}

fn containers() -> Value {
    json!({"containers": [{"name": "app", "image": "app"}]})
}

#[test]
fn kinds_that_no_api_server_knows_are_told_with_their_right_name() {
    for (version, kind, part) in [
        ("v1", "pod", "write Pod"),
        ("v1", "PODS", "write Pod"),
        ("apps/v1", "deployment", "write Deployment"),
        ("batch/v1", "Cronjob", "write CronJob"),
        ("v1", "Serviceaccount", "write ServiceAccount"),
        ("extensions/v1beta1", "Deployment", "apiVersion: apps/v1"),
        ("extensions/v1beta1", "DaemonSet", "apiVersion: apps/v1"),
        ("v1", "Deployment", "apiVersion: apps/v1"),
        ("apps/v1", "Pod", "apiVersion: v1"),
        ("apps/v1", "Job", "apiVersion: batch/v1"),
    ] {
        let object = json!({"apiVersion": version, "kind": kind, "spec": containers()});
        let told = one(&object);
        assert!(
            told.starts_with("not validated") && told.contains(part),
            "{told}"
        );
    }
    for (version, kind) in [
        ("v1", "Pod"),
        ("apps/v1", "Deployment"),
        ("batch/v1beta1", "CronJob"),
        ("serving.knative.dev/v1", "Service"),
        ("v1", "Endpoints"),
    ] {
        let object = json!({"apiVersion": version, "kind": kind});
        assert!(told(&object).is_empty(), "{kind}");
    }
}

#[test]
fn custom_resources_that_make_pods_are_told() {
    let template = json!({"spec": containers()});
    for (version, kind, spec) in [
        (
            "apps.openshift.io/v1",
            "DeploymentConfig",
            json!({"template": template}),
        ),
        (
            "apps.kruise.io/v1alpha1",
            "CloneSet",
            json!({"template": template}),
        ),
        (
            "ray.io/v1",
            "RayCluster",
            json!({"headGroupSpec": {"template": template}}),
        ),
        (
            "jobset.x-k8s.io/v1alpha2",
            "JobSet",
            json!({"replicatedJobs": [{"template": {"spec": {"template": template}}}]}),
        ),
        (
            "leaderworkerset.x-k8s.io/v1",
            "LeaderWorkerSet",
            json!({"leaderWorkerTemplate": {"workerTemplate": template}}),
        ),
        ("kubeflow.org/v1", "Notebook", json!({"template": template})),
        (
            "argoproj.io/v1alpha1",
            "Workflow",
            json!({"templates": [{"name": "a", "container": {"image": "app"}}]}),
        ),
        (
            "argoproj.io/v1alpha1",
            "Workflow",
            json!({"podMetadata": {"annotations": {}}}),
        ),
        (
            "sparkoperator.k8s.io/v1beta2",
            "SparkApplication",
            json!({"image": "spark", "mainApplicationFile": "x", "driver": {}}),
        ),
        (
            "sparkoperator.k8s.io/v1beta2",
            "SparkApplication",
            json!({"driver": {"serviceAccount": "spark"}}),
        ),
        (
            "sparkoperator.k8s.io/v1beta2",
            "SparkApplication",
            json!({"driver": {"annotations": {"iam.amazonaws.com/role": "x"}}}),
        ),
        (
            "trainer.kubeflow.org/v1alpha1",
            "TrainJob",
            json!({"trainer": {"image": "train", "numNodes": 2}}),
        ),
        (
            "trainer.kubeflow.org/v1alpha1",
            "TrainJob",
            json!({"podTemplateOverrides": [{}]}),
        ),
        (
            "example.com/v1",
            "Unheard",
            json!({"a": [{"b": {"initContainers": [{"image": "x"}]}}]}),
        ),
    ] {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {}, "spec": spec});
        let told = one(&object);
        assert!(
            told.starts_with("not validated at spec/")
                || told.starts_with("not validated at spec:"),
            "{told}"
        );
        assert!(told.contains("workloadKinds"), "{told}");
    }
}

#[test]
fn kinds_that_make_no_pods_or_that_the_gate_knows_are_not() {
    for (version, kind, spec) in [
        ("example.com/v1", "Bucket", json!({"image": "logo.png"})),
        (
            "example.com/v1",
            "Bucket",
            json!({"containers": 3, "container": "blobs"}),
        ),
        (
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            json!({"versions": [{"schema": {"properties": {"containers": {"items": {}}}}}]}),
        ),
        ("networking.k8s.io/v1", "Ingress", json!({"rules": []})),
        ("rbac.authorization.k8s.io/v1", "RoleBinding", json!({})),
    ] {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {}, "spec": spec});
        assert!(told(&object).is_empty(), "{:?}", told(&object));
    }
    let rollout = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
        "spec": {"template": {"spec": containers()}}});
    assert!(one(&rollout).contains("{ preset: argo-rollouts } into workloadKinds"));
    let config = RuleConfig {
        templates: preset("argo-rollouts").unwrap(),
        ..RuleConfig::default()
    };
    assert!(told_with(&rollout, &config).is_empty());
}

#[test]
fn annotations_are_told_where_they_count_for_nothing() {
    let role = json!({"iam.amazonaws.com/role": "reader"});
    let deployment = |owner: Value, template: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"annotations": owner},
            "spec": {"template": {"metadata": {"annotations": template}, "spec": containers()}}})
    };
    let told_of = one(&deployment(role.clone(), json!({})));
    assert!(
        told_of.contains("metadata/annotations/iam.amazonaws.com/role")
            && told_of.contains("spec.template.metadata.annotations"),
        "{told_of}"
    );
    assert!(told(&deployment(role.clone(), role.clone())).is_empty());
    assert!(told(&deployment(json!({}), role.clone())).is_empty());
    let nested = json!({"apiVersion": "batch/v1", "kind": "CronJob",
        "spec": {"jobTemplate": {"metadata": {"annotations": role},
            "spec": {"template": {"spec": containers()}}}}});
    assert!(one(&nested).contains("spec.jobTemplate.spec.template.metadata.annotations"));
    let label = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": role}});
    assert!(one(&label).contains("write it into metadata.annotations"));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"annotations": role}});
    assert!(one(&account).contains("on pods and pod templates"));
    let irsa = json!({"eks.amazonaws.com/role-arn": "x"});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": irsa}});
    assert!(one(&pod).contains("of a ServiceAccount"));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"annotations": irsa}});
    assert!(told(&account).is_empty());
    let allowed = json!({"iam.amazonaws.com/allowed-roles": "[]"});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": allowed}});
    assert!(one(&pod).contains("of a Namespace"));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"annotations": allowed}});
    assert!(told(&namespace).is_empty());
}

#[test]
fn annotations_of_custom_resources_count_where_the_configuration_says() {
    let role = json!({"iam.amazonaws.com/role": "reader"});
    let config = RuleConfig {
        templates: ["tekton", "kubeflow"]
            .iter()
            .flat_map(|name| preset(name).unwrap())
            .collect(),
        ..RuleConfig::default()
    };
    let task = json!({"apiVersion": "tekton.dev/v1", "kind": "Task",
        "metadata": {"annotations": role}});
    assert!(told_with(&task, &config).is_empty());
    let job = |owner: Value| {
        json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
            "metadata": {"annotations": owner}, "spec": {"pytorchReplicaSpecs":
            {"Worker": {"template": {"metadata": {"annotations": role}, "spec": containers()}}}}})
    };
    assert!(told_with(&job(json!({})), &config).is_empty());
    let other = json!({"iam.amazonaws.com/external-id": "x"});
    let told = told_with(&job(other), &config);
    assert!(
        told[0].contains("spec.pytorchReplicaSpecs.*.template.metadata"),
        "{told:?}"
    );
}

#[test]
fn what_is_rules_for_another_program_is_told() {
    for (version, kind, part) in [
        (
            "templates.gatekeeper.sh/v1",
            "ConstraintTemplate",
            "kubernetes.admission",
        ),
        (
            "constraints.gatekeeper.sh/v1beta1",
            "K8sRequiredLabels",
            "kubernetes.admission",
        ),
        ("kyverno.io/v1", "ClusterPolicy", "Kyverno"),
        (
            "kustomize.config.k8s.io/v1beta1",
            "Kustomization",
            "kubectl kustomize",
        ),
    ] {
        let object = json!({"apiVersion": version, "kind": kind});
        assert!(one(&object).contains(part), "{kind}");
    }
}

#[test]
fn pods_in_exempt_namespaces_have_a_note() {
    let config = RuleConfig::default();
    let keys = AnnotationKeys::default();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": containers()});
    let found = hints(&pod, "kube-system", &config, &keys);
    assert_eq!((found.len(), found[0].level), (1, Level::Note));
    let service = json!({"apiVersion": "v1", "kind": "Service"});
    assert!(hints(&service, "kube-system", &config, &keys).is_empty());
}

#[test]
fn metadata_without_a_template_is_where_annotations_count_too() {
    let role = json!({"iam.amazonaws.com/role": "reader"});
    let config = RuleConfig {
        templates: ["spark", "argo-workflows"]
            .iter()
            .flat_map(|name| preset(name).unwrap())
            .collect(),
        ..RuleConfig::default()
    };
    let spark = |spec: Value| {
        json!({"apiVersion": "sparkoperator.k8s.io/v1beta2", "kind": "SparkApplication",
            "spec": spec})
    };
    assert!(told_with(&spark(json!({"driver": {"annotations": role}})), &config).is_empty());
    let told = told_with(&spark(json!({"annotations": role})), &config);
    assert!(told[0].contains("spec.driver.annotations or "), "{told:?}");
    let workflow = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
        "spec": {"templates": [{"metadata": {"annotations": role}}]}});
    assert!(told_with(&workflow, &config).is_empty());
}
