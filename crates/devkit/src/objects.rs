//! Builders for the Kubernetes objects that [`KubeApi`](crate::KubeApi) holds.

use serde_json::{Value, json};

/// A pod. By default it is running and has a service account.
#[derive(Clone, Debug)]
pub struct Pod(Value);

/// A namespace.
#[derive(Clone, Debug)]
pub struct Namespace(Value);

/// A node.
#[derive(Clone, Debug)]
pub struct Node(Value);

/// Sets `object[path…] = value`, and creates the maps on the path.
fn set<const N: usize>(object: &mut Value, path: [&str; N], value: impl Into<Value>) {
    let mut at = object;
    for name in path {
        if !at.is_object() {
            *at = json!({});
        }
        let Some(map) = at.as_object_mut() else {
            return;
        };
        at = map.entry(name).or_insert(Value::Null);
    }
    *at = value.into();
}

impl Pod {
    /// Creates a running pod without a node and an address.
    pub fn new(namespace: &str, name: &str) -> Self {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "managedFields": [{
                    "manager": "kubelet", "operation": "Update", "apiVersion": "v1",
                    "fieldsType": "FieldsV1", "subresource": "status",
                    "fieldsV1": {"f:status": {"f:phase": {}, "f:podIP": {}}},
                }],
            },
            "spec": {
                "containers": [{"name": "app", "image": "registry.example/app:1"}],
                "serviceAccountName": "default",
                "restartPolicy": "Always",
                "schedulerName": "default-scheduler",
            },
            "status": {"phase": "Running"},
        });
        Self(pod)
    }

    /// Sets the node to which the pod is bound.
    pub fn node(mut self, node: &str) -> Self {
        set(&mut self.0, ["spec", "nodeName"], node);
        self
    }

    /// Sets the pod's only address.
    pub fn ip(self, ip: &str) -> Self {
        self.ips([ip])
    }

    /// Sets the pod's addresses, the primary one first.
    pub fn ips<'a>(mut self, ips: impl IntoIterator<Item = &'a str>) -> Self {
        let ips: Vec<_> = ips.into_iter().map(|ip| json!({"ip": ip})).collect();
        if let Some(first) = ips.first().and_then(|ip| ip.get("ip")) {
            set(&mut self.0, ["status", "podIP"], first.clone());
        }
        set(&mut self.0, ["status", "podIPs"], ips);
        self
    }

    /// Sets the service account (default: `default`).
    pub fn service_account(mut self, name: &str) -> Self {
        set(&mut self.0, ["spec", "serviceAccountName"], name);
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        set(&mut self.0, ["metadata", "annotations", key], value);
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        set(&mut self.0, ["metadata", "labels", key], value);
        self
    }

    /// Sets the phase (default: `Running`).
    pub fn phase(mut self, phase: &str) -> Self {
        set(&mut self.0, ["status", "phase"], phase);
        self
    }

    /// Puts the pod on the host network.
    pub fn host_network(mut self) -> Self {
        set(&mut self.0, ["spec", "hostNetwork"], true);
        self
    }

    /// Makes it the mirror of a static pod, as created by the kubelet.
    pub fn mirror(self) -> Self {
        let hash = "a3b1c0ffee";
        self.annotation("kubernetes.io/config.mirror", hash)
            .annotation("kubernetes.io/config.hash", hash)
            .annotation("kubernetes.io/config.source", "file")
    }

    /// Marks it as deleted, with containers that are still running.
    pub fn terminating(mut self) -> Self {
        let now = format!("{:.0}", jiff::Timestamp::now());
        set(&mut self.0, ["metadata", "deletionTimestamp"], now);
        set(&mut self.0, ["metadata", "deletionGracePeriodSeconds"], 30);
        self
    }

    /// Returns the object.
    pub fn build(self) -> Value {
        self.0
    }
}

impl Namespace {
    /// Creates an active namespace.
    pub fn new(name: &str) -> Self {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        });
        Self(namespace)
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        set(&mut self.0, ["metadata", "annotations", key], value);
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        set(&mut self.0, ["metadata", "labels", key], value);
        self
    }

    /// Returns the object.
    pub fn build(self) -> Value {
        self.0
    }
}

impl Node {
    /// Creates a node without addresses.
    pub fn new(name: &str) -> Self {
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {"addresses": []},
        });
        Self(node)
    }

    /// Adds an address. `kind` is `InternalIP`, `ExternalIP`, `Hostname`, ….
    pub fn address(mut self, kind: &str, address: &str) -> Self {
        if let Some(addresses) = self
            .0
            .pointer_mut("/status/addresses")
            .and_then(Value::as_array_mut)
        {
            addresses.push(json!({"type": kind, "address": address}));
        }
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        set(&mut self.0, ["metadata", "labels", key], value);
        self
    }

    /// Returns the object.
    pub fn build(self) -> Value {
        self.0
    }
}

macro_rules! into_value {
    ($($object:ty),*) => {$(
        impl From<$object> for Value {
            fn from(object: $object) -> Self {
                object.build()
            }
        }
    )*};
}
into_value!(Pod, Namespace, Node);
