//! Requests of the API server to a webhook: AdmissionReviews of about 4 KB.

use serde_json::{Value, json};

/// Returns the review of a new, realistic Deployment: two containers with probes, variables and
/// limits, whose pods have `role`.
pub(crate) fn deployment(namespace: &str, service_account: &str, role: &str) -> Value {
    let name = "checkout";
    let labels = json!({
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/version": "3.41.2",
        "app.kubernetes.io/managed-by": "Helm",
    });
    let resource = json!({"group": "apps", "version": "v1", "resource": "deployments"});
    let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "name": name,
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:delivery:deployer",
                "uid": "0df28fbd-5f5f-4b2c-8a5e-2b1f6f0e6c11",
                "groups": [
                    "system:serviceaccounts",
                    "system:serviceaccounts:delivery",
                    "system:authenticated",
                ],
                "extra": {"authentication.kubernetes.io/credential-id": ["JTI=7b0c"]},
            },
            "object": {
                "kind": "Deployment",
                "apiVersion": "apps/v1",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "uid": "b4d36f0a-2f6d-4b07-a0ad-3a0b1f1d6f8e",
                    "creationTimestamp": "2026-03-02T09:14:07Z",
                    "labels": labels,
                    "annotations": {"meta.helm.sh/release-name": name},
                },
                "spec": {
                    "replicas": 3,
                    "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
                    "template": {
                        "metadata": {
                            "creationTimestamp": null,
                            "labels": labels,
                            "annotations": {
                                "iam.amazonaws.com/role": role,
                                "prometheus.io/scrape": "true",
                                "prometheus.io/port": "9102",
                            },
                        },
                        "spec": pod(name, service_account),
                    },
                    "strategy": {
                        "type": "RollingUpdate",
                        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
                    },
                    "revisionHistoryLimit": 10,
                    "progressDeadlineSeconds": 600,
                },
                "status": {},
            },
            "oldObject": null,
            "dryRun": false,
            "options": {
                "kind": "CreateOptions",
                "apiVersion": "meta.k8s.io/v1",
                "fieldManager": "helm",
            },
        },
    })
}

fn pod(name: &str, service_account: &str) -> Value {
    json!({
        "volumes": [
            {"name": "config", "configMap": {"name": "checkout-config", "defaultMode": 420}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        ],
        "containers": [
            {
                "name": name,
                "image": "registry.example.com/shop/checkout:3.41.2",
                "args": ["serve", "--config=/etc/checkout/config.yaml"],
                "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9102, "protocol": "TCP"},
                ],
                "env": [
                    {"name": "AWS_REGION", "value": "eu-west-1"},
                    {"name": "ORDERS_QUEUE", "value": "https://sqs.eu-west-1.amazonaws.com/123456789012/orders"},
                    {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "checkout-db", "key": "url"}}},
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                    {"name": "LOG_LEVEL", "value": "info"},
                ],
                "resources": {
                    "limits": {"cpu": "1", "memory": "512Mi"},
                    "requests": {"cpu": "250m", "memory": "512Mi"},
                },
                "volumeMounts": [
                    {"name": "config", "readOnly": true, "mountPath": "/etc/checkout"},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
                "livenessProbe": probe("/healthz", 20),
                "readinessProbe": probe("/readyz", 5),
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
                "securityContext": restricted(),
            },
            {
                "name": "envoy",
                "image": "registry.example.com/mesh/envoy:1.33.0",
                "args": ["-c", "/etc/envoy/envoy.yaml", "--log-level", "warning"],
                "ports": [{"name": "mesh", "containerPort": 15001, "protocol": "TCP"}],
                "resources": {
                    "limits": {"cpu": "500m", "memory": "128Mi"},
                    "requests": {"cpu": "50m", "memory": "128Mi"},
                },
                "readinessProbe": probe("/ready", 10),
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
                "securityContext": restricted(),
            },
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": service_account,
        "serviceAccount": service_account,
        "securityContext": {"runAsNonRoot": true, "fsGroup": 1000},
        "schedulerName": "default-scheduler",
    })
}

fn probe(path: &str, period: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": "http", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": period,
        "successThreshold": 1,
        "failureThreshold": 3,
    })
}

fn restricted() -> Value {
    json!({"capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_has_about_4_kb() {
        let length = deployment("team-500", "app", "team-500-writer")
            .to_string()
            .len();
        assert!((3_900..=4_300).contains(&length), "{length}");
    }
}
