//! Records of a container runtime: libcni's cache file for each network of a pod.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::{Namespace, Pod};

/// A pod instance, as the kubelet names it to the runtime.
#[derive(Debug, Clone, Copy)]
pub struct PodName<'a> {
    /// Its Kubernetes namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
}

impl Namespace {
    /// Returns the MAC address of an interface.
    ///
    /// # Errors
    /// Returns an error if there is no such interface.
    pub fn mac(&self, interface: &str) -> anyhow::Result<String> {
        let link = self.exec(&format!("ip -o link show dev {interface}"))?;
        let (_, rest) = link.split_once("link/ether ").context("no MAC address")?;
        Ok(rest.split(' ').next().unwrap_or_default().to_owned())
    }
}

impl Pod {
    /// Returns the pod's record as libcni and containerd write it, for a pod of that name.
    ///
    /// # Errors
    /// Returns an error if the pod's interfaces are gone.
    pub fn cni_result(&self, node: &Namespace, of: PodName<'_>) -> anyhow::Result<Value> {
        let mut interfaces = Vec::new();
        let host = [Some(&self.interface), self.port.as_ref()];
        for name in host.into_iter().flatten() {
            interfaces.push(json!({ "name": name, "mac": node.mac(name)? }));
        }
        let inside = interfaces.len();
        let sandbox = format!("/var/run/netns/{}", self.name());
        interfaces.push(json!({ "name": "eth0", "mac": self.mac("eth0")?, "sandbox": sandbox }));
        let ip = |address: String| json!({ "address": address, "interface": inside });
        Ok(json!({
            "kind": "cniCacheV1",
            "containerId": self.name(),
            "config": "e30=",
            "ifName": "eth0",
            "networkName": "lab",
            "cniArgs": [
                ["IgnoreUnknown", "1"],
                ["K8S_POD_NAMESPACE", of.namespace],
                ["K8S_POD_NAME", of.name],
                ["K8S_POD_INFRA_CONTAINER_ID", self.name()],
                ["K8S_POD_UID", of.uid],
            ],
            "capabilityArgs": { "portMappings": [] },
            "result": {
                "cniVersion": "1.0.0",
                "interfaces": interfaces,
                "ips": [ip(format!("{}/16", self.v4)), ip(format!("{}/64", self.v6))],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                "dns": {},
            },
        }))
    }

    /// Writes the pod's record into `folder`, as the runtime does before it reports the pod's
    /// address, and returns its path.
    ///
    /// # Errors
    /// Returns an error if the pod's interfaces are gone, or the file cannot be written.
    pub fn record(
        &self,
        node: &Namespace,
        folder: &Path,
        of: PodName<'_>,
    ) -> anyhow::Result<PathBuf> {
        let file = folder.join(format!("lab-{}-eth0", self.name()));
        write_record(&file, &self.cni_result(node, of)?)?;
        Ok(file)
    }
}

/// Writes a record as libcni does.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_record(file: &Path, record: &Value) -> anyhow::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    serde_json::to_writer(file, record)?;
    Ok(())
}
