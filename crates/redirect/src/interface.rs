//! The setting `--host-interface`: a pattern, or `auto`, which finds the pods' interfaces of this
//! node.
//!
//! `auto` reads the CNI configuration that the container runtime uses, and recognises the plugin.
//! If the plugin is unknown, or there is no configuration, it uses the interfaces on which packets
//! of the node's pods arrive.

mod cni;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use futures::TryStreamExt;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::RouteAttribute;
use rtnetlink::RouteMessageBuilder;
use tokio::time::{Instant, sleep};

use crate::check::pod_namespaces;
use crate::routing::connected;
use crate::rules::{InterfaceError, InterfacePattern, METADATA_V4};
use crate::{RedirectError, ingress_interfaces};
use cni::{CniConfigError, PodNetwork};

/// The directory of CNI configurations that containerd and CRI-O read by default.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";

/// Maximum size of a CNI configuration, in bytes.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;
/// Maximum number of pods whose interfaces are looked up.
const MAX_PODS: usize = 16;
/// Interval at which a missing CNI configuration is looked for.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The value of `--host-interface`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// Finds the interfaces of this node's pods.
    Auto,
    /// The interfaces that the pattern matches.
    Fixed(InterfacePattern),
}

impl FromStr for InterfaceChoice {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Fixed)
    }
}

/// The pods' interfaces of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The interfaces.
    pub interface: InterfacePattern,
    /// The evidence for them, as part of a sentence.
    pub source: String,
}

/// The reason why the pods' interfaces of this node are unknown.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// There is no CNI configuration yet, and no pod. No pod can start before there is one.
    #[error(
        "cannot find the interface of pods: {} has no CNI configuration, and no pod runs on this node. If the container runtime uses another directory, set --cni-conf-dir; otherwise set --host-interface (eni+ for the AWS VPC CNI, cali+ for Calico, lxc+ for Cilium)",
        dir.display()
    )]
    NoConfig {
        /// The directory.
        dir: PathBuf,
    },
    /// The CNI plugin is unknown, and there is no pod, or its pods' interfaces have no common name.
    #[error(
        "cannot find the interface of pods: {}: {reason}, and {pods}. Set --host-interface to the interfaces on which packets from pods arrive (`ip route get POD-IP` on a node names one)",
        path.display()
    )]
    Unknown {
        /// The CNI configuration.
        path: PathBuf,
        /// The reason why the configuration does not tell.
        reason: CniConfigError,
        /// The evidence from the node's pods, as part of a sentence.
        pods: String,
    },
    /// The directory or a file in it cannot be read.
    #[error("cannot find the interface of pods: cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A search for the pods' interfaces of this node.
#[derive(Debug, Clone)]
pub struct Detector {
    /// The directory of CNI configurations, usually [`CNI_CONF_DIR`].
    pub conf_dir: PathBuf,
    /// The directory of pods' network namespaces, usually [`crate::check::NETNS_DIR`].
    pub netns_dir: PathBuf,
}

impl Detector {
    /// Finds the pods' interfaces. While the node has no CNI configuration, which its network
    /// plugin may install after the agent starts, it tries again until `timeout`.
    ///
    /// # Errors
    /// Returns the last error, with advice.
    pub async fn wait(&self, timeout: Duration) -> Result<Detected, DetectError> {
        let deadline = Instant::now() + timeout;
        let mut logged = false;
        loop {
            match self.detect().await {
                Err(DetectError::NoConfig { dir }) if Instant::now() < deadline => {
                    if !logged {
                        tracing::info!(
                            dir = %dir.display(),
                            "waiting for a CNI configuration to find the interface of pods"
                        );
                        logged = true;
                    }
                    sleep(POLL_INTERVAL).await;
                }
                result => return result,
            }
        }
    }

    /// Finds the pods' interfaces.
    ///
    /// # Errors
    /// Returns an error with advice if neither the CNI configuration nor the node's pods show them.
    pub async fn detect(&self) -> Result<Detected, DetectError> {
        let unknown = match configured(&self.conf_dir)? {
            Some((path, Ok(network))) => {
                let source = format!("CNI plugin {} in {}", network.plugin, path.display());
                let interface = network.interface;
                return Ok(Detected { interface, source });
            }
            Some((path, Err(reason))) => Some((path, reason)),
            None => None,
        };
        let interfaces = self.pod_interfaces().await;
        if let Some(interface) = common_pattern(&interfaces) {
            let source = "the interfaces of the node's pods".to_owned();
            return Ok(Detected { interface, source });
        }
        let Some((path, reason)) = unknown else {
            let dir = self.conf_dir.clone();
            return Err(DetectError::NoConfig { dir });
        };
        let pods = match interfaces.len() {
            0 => "no pod with a network of its own runs on this node".to_owned(),
            _ => format!(
                "packets from its pods arrive on {}",
                interfaces.into_iter().collect::<Vec<_>>().join(", ")
            ),
        };
        Err(DetectError::Unknown { path, reason, pods })
    }

    /// Returns the interfaces on which packets from the node's pods arrive. A pod whose interface
    /// cannot be found is skipped: it may have just exited.
    async fn pod_interfaces(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let pods = pod_namespaces(&self.netns_dir).unwrap_or_default();
        for pod in pods.into_iter().take(MAX_PODS) {
            found.extend(ingress_interfaces(&pod).await.unwrap_or_default());
        }
        found
    }
}

/// Returns the pattern of everything but the interface that leads to the metadata service. A boot
/// unit uses it on a node whose network plugin is not installed yet: with these rules pods are
/// refused until the agent runs.
///
/// # Errors
/// Returns an error if the node has no route to the metadata service.
pub async fn all_but_uplink() -> Result<InterfacePattern, RedirectError> {
    let failed = |error: &dyn std::fmt::Display| RedirectError::Interfaces(error.to_string());
    let name = connected(async |handle| {
        let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(METADATA_V4, 32)
            .build();
        let mut routes = handle.route().get(route).execute();
        let route = routes.try_next().await.map_err(|error| failed(&error))?;
        let attributes = route.map(|route| route.attributes).unwrap_or_default();
        let index = attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(index),
                _ => None,
            });
        let index = index.ok_or_else(|| failed(&"no route leads to 169.254.169.254"))?;
        let mut links = handle.link().get().match_index(index).execute();
        let link = links.try_next().await.map_err(|error| failed(&error))?;
        let attributes = link.map(|link| link.attributes).unwrap_or_default();
        attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
            .ok_or_else(|| failed(&"the interface to 169.254.169.254 has no name"))
    })
    .await?;
    format!("!{name}").parse().map_err(|error| failed(&error))
}

type Configured = (PathBuf, Result<PodNetwork, CniConfigError>);

/// Returns what the first CNI configuration in the directory says, in the order of names, as libcni
/// reads them. A configuration that delegates to the next one is skipped.
fn configured(dir: &Path) -> Result<Option<Configured>, DetectError> {
    let io = |path: &Path, source| DetectError::Io {
        path: path.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(dir, error)),
    };
    let mut paths: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .collect();
    paths.sort();
    let mut first = None;
    for path in paths {
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut text))
            .map_err(|error| io(&path, error))?;
        match cni::pod_network(&text) {
            Err(CniConfigError::Delegates(plugin)) => {
                first.get_or_insert((path, Err(CniConfigError::Delegates(plugin))));
            }
            result => return Ok(Some((path, result))),
        }
    }
    Ok(first)
}

/// Returns the pattern of these interfaces: the name, if there is one only, or a prefix that known
/// network plugins use.
fn common_pattern(interfaces: &BTreeSet<String>) -> Option<InterfacePattern> {
    let mut names = interfaces.iter();
    let first = names.next()?;
    let prefix = cni::POD_PREFIXES
        .iter()
        .find(|prefix| interfaces.iter().all(|name| name.starts_with(**prefix)));
    match (prefix, names.next()) {
        (Some(prefix), _) => format!("{prefix}+").parse().ok(),
        (None, None) if cni::BRIDGES.contains(&first.as_str()) => first.parse().ok(),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests;
