//! CNI configurations: which interface of the node the packets of pods arrive on.

use serde_json::Value;

use crate::rules::InterfacePattern;

/// Prefixes of the node's side of pods' interfaces, by network plugins that create one for each pod.
pub(super) const POD_PREFIXES: [&str; 7] = ["eni", "cali", "lxc", "azv", "gke", "nic", "veth"];
/// Bridges that network plugins create by default.
pub(super) const BRIDGES: [&str; 5] = ["cni0", "cbr0", "docker0", "kube-bridge", "weave"];

/// The network of pods that a CNI configuration describes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PodNetwork {
    /// The type of the plugin that creates the interfaces.
    pub(super) plugin: String,
    /// The interfaces on which packets from pods arrive.
    pub(super) interface: InterfacePattern,
}

/// The reason why a CNI configuration does not say where packets from pods arrive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CniConfigError {
    /// The file is not a CNI configuration.
    #[error("it is not a CNI configuration")]
    Malformed,
    /// The configuration only refers to another one, such as that of Multus.
    #[error("its plugin {0:?} uses another configuration")]
    Delegates(String),
    /// The plugin is not known here.
    #[error("its plugin {0:?} is not one that rolegate knows")]
    UnknownPlugin(String),
    /// Pods of the plugin do not send their packets through the node's network stack.
    #[error("pods of its plugin {0:?} bypass the node's network, so nothing can redirect them")]
    Bypass(String),
    /// The interface that the configuration names is invalid.
    #[error("it names the interface {0:?}, which is not a valid name")]
    Interface(String),
}

/// Returns the network of a configuration or a list of them, as libcni defines both: the first
/// plugin of a list creates the interface, the others change it.
pub(super) fn pod_network(text: &[u8]) -> Result<PodNetwork, CniConfigError> {
    let config: Value = serde_json::from_slice(text).map_err(|_| CniConfigError::Malformed)?;
    let plugins = config.get("plugins").and_then(Value::as_array);
    let first = match plugins {
        Some(plugins) => plugins.first(),
        None => Some(&config),
    };
    network(first.ok_or(CniConfigError::Malformed)?, true)
}

/// Returns the network of a plugin, or of its first delegate.
fn network(plugin: &Value, delegates: bool) -> Result<PodNetwork, CniConfigError> {
    let text = |key| plugin.get(key).and_then(Value::as_str);
    let kind = text("type").ok_or(CniConfigError::Malformed)?;
    let name = |key, default: &str| text(key).unwrap_or(default).to_owned();
    let prefix = |key, default| format!("{}+", name(key, default));
    let pattern = match kind {
        // https://github.com/aws/amazon-vpc-cni-k8s: AWS_VPC_K8S_CNI_VETHPREFIX
        "aws-cni" => prefix("vethPrefix", "eni"),
        // Felix's InterfacePrefix, which no CNI configuration has.
        "calico" => "cali+".to_owned(),
        "cilium-cni" => "lxc+".to_owned(),
        "azure-vnet" => "azv+".to_owned(),
        "ptp" => "veth+".to_owned(),
        "bridge" => name("bridge", "cni0"),
        "weave-net" => "weave".to_owned(),
        "antrea" => "antrea-gw0".to_owned(),
        "ovn-k8s-cni-overlay" => "ovn-k8s-mp0".to_owned(),
        "openshift-sdn" => "tun0".to_owned(),
        "macvlan" | "ipvlan" | "host-device" | "sriov" => {
            return Err(CniConfigError::Bypass(kind.to_owned()));
        }
        "flannel" => return flannel(plugin),
        "multus" | "multus-shim" => {
            let delegate = plugin.pointer("/delegates/0");
            // Its delegates are configurations or lists of them.
            let delegate =
                delegate.map(|delegate| delegate.pointer("/plugins/0").unwrap_or(delegate));
            return match delegate {
                Some(delegate) if delegates => network(delegate, false),
                _ => Err(CniConfigError::Delegates(kind.to_owned())),
            };
        }
        _ => return Err(CniConfigError::UnknownPlugin(kind.to_owned())),
    };
    parsed(kind, &pattern)
}

/// Flannel delegates to `bridge`, with the bridge `cni0`, unless its configuration says otherwise.
fn flannel(plugin: &Value) -> Result<PodNetwork, CniConfigError> {
    let text = |key: &str| plugin.pointer(key).and_then(Value::as_str);
    match text("/delegate/type").unwrap_or("bridge") {
        "bridge" => parsed("flannel", text("/delegate/bridge").unwrap_or("cni0")),
        "ptp" => parsed("flannel", "veth+"),
        other => Err(CniConfigError::UnknownPlugin(other.to_owned())),
    }
}

fn parsed(plugin: &str, pattern: &str) -> Result<PodNetwork, CniConfigError> {
    let interface = pattern
        .parse()
        .map_err(|_| CniConfigError::Interface(pattern.to_owned()))?;
    Ok(PodNetwork {
        plugin: plugin.to_owned(),
        interface,
    })
}
