//! The container runtime's records of pods' addresses: libcni stores the result of each network
//! attachment of a pod in a directory that only root can write.
//!
//! A file contains the pod's UID, the addresses, the MAC address, the network namespace and the
//! names of the host's interfaces. None of this comes from the pod's traffic. The file also
//! contains the pod's annotations, which are ignored. The number and size of files are limited, and
//! only files that only root can have written are read.

mod folder;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::{Mac, PodId};

pub use folder::{Folder, FolderError};

/// The default directory of libcni's results.
pub const CNI_RESULTS_DIR: &str = "/var/lib/cni/results";

/// The interface of a pod whose addresses containerd and CRI-O report to the kubelet, which
/// publishes them in `status.podIPs`.
const PRIMARY_INTERFACE: &str = "eth0";
/// The supported kind of file.
const KIND: &str = "cniCacheV1";
/// Maximum number of interfaces in one result.
const MAX_INTERFACES: usize = 64;
/// Maximum number of addresses in one result.
const MAX_ADDRESSES: usize = 64;

/// The runtime's record of one interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// `K8S_POD_UID`; older runtimes leave it out.
    uid: Option<String>,
    /// `K8S_POD_NAMESPACE`.
    namespace: String,
    /// `K8S_POD_NAME`.
    name: String,
    /// True for the interface whose addresses become `status.podIPs`. Addresses of other
    /// interfaces can be chosen by the pod's author, and may repeat those of other pods.
    is_primary: bool,
    /// The name of the network namespace: the last part of its path.
    pub netns: String,
    /// The MAC address, if the plugin reports it.
    pub mac: Option<Mac>,
    /// Names of the host's interfaces that the plugin reported: bridges and the host's ends.
    pub host_links: Arc<[String]>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

impl Recorded {
    /// Returns whether this is an interface of that pod. A later pod with the same name is a
    /// different one, if the runtime records UIDs.
    fn is_of(&self, pod: &PodId) -> bool {
        match &self.uid {
            Some(uid) => **uid == *pod.uid,
            None => *self.namespace == *pod.namespace && *self.name == *pod.name,
        }
    }
}

/// The owner of an address according to the records.
#[derive(Debug, Clone)]
pub enum Assigned {
    /// The pod, on this interface.
    To(Arc<Recorded>),
    /// Not the pod, according to the records.
    Unrecorded,
    /// Two existing network namespaces.
    Twice,
}

/// All records by address.
#[derive(Debug, Default, Clone)]
pub struct Records(HashMap<IpAddr, Vec<Arc<Recorded>>>);

impl Records {
    /// Creates records of these interfaces.
    pub fn new<'a>(interfaces: impl IntoIterator<Item = &'a Arc<Recorded>>) -> Self {
        let mut all: HashMap<IpAddr, Vec<Arc<Recorded>>> = HashMap::new();
        for interface in interfaces {
            for address in &interface.addresses {
                all.entry(*address).or_default().push(interface.clone());
            }
        }
        Self(all)
    }

    /// Returns whether the runtime assigned `address` to `pod`. A record can outlive its pod if the
    /// runtime could not clean up. So if several records contain one address, `exists` reports
    /// whether their network namespaces still exist.
    pub fn assigned(
        &self,
        pod: &PodId,
        address: IpAddr,
        mut exists: impl FnMut(&str) -> bool,
    ) -> Assigned {
        let all = self.0.get(&address).map_or(&[][..], Vec::as_slice);
        let live: Vec<_> = match all {
            [one] => vec![one],
            several => several.iter().filter(|of| exists(&of.netns)).collect(),
        };
        match live.as_slice() {
            [] => Assigned::Unrecorded,
            [one, rest @ ..] if rest.iter().all(|other| other.netns == one.netns) => live
                .iter()
                .find(|of| of.is_of(pod))
                .map_or(Assigned::Unrecorded, |of| Assigned::To(Arc::clone(of))),
            _ => Assigned::Twice,
        }
    }

    /// Returns the UID and the record of the pod to which the runtime assigned `address`, whatever
    /// the API server knows. Unlike [`assigned`](Self::assigned) this identifies a pod by the
    /// records alone, so it requires more: the network namespace exists, no other existing one has
    /// the address, and the record names the UID, because a name may belong to a later pod.
    pub fn owner(
        &self,
        address: IpAddr,
        mut exists: impl FnMut(&str) -> bool,
    ) -> Option<(&str, &Arc<Recorded>)> {
        let mut live = self
            .0
            .get(&address)?
            .iter()
            .filter(|record| exists(&record.netns));
        let first = live.next()?;
        let is_same = |other: &Arc<Recorded>| {
            other.is_primary && other.netns == first.netns && other.uid == first.uid
        };
        let uid = first.uid.as_deref()?;
        (first.is_primary && live.all(is_same)).then_some((uid, first))
    }

    /// Returns whether a record names this pod as the owner of `address`.
    pub fn names(&self, pod: &PodId, address: IpAddr) -> bool {
        let records = self.0.get(&address).map_or(&[][..], Vec::as_slice);
        records.iter().any(|record| record.is_of(pod))
    }

    /// Returns whether any record has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.0.contains_key(&address)
    }

    /// Returns whether these records assign an address that `earlier` did not, or assign one in
    /// another way. Records of files that did not change are shared with `earlier`.
    pub fn adds_to(&self, earlier: &Self) -> bool {
        self.0.iter().any(|(address, records)| {
            let before = earlier.0.get(address).map_or(&[][..], Vec::as_slice);
            let is_new = |of: &Arc<Recorded>| !before.iter().any(|old| Arc::ptr_eq(old, of));
            records.iter().any(is_new)
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    result: CniResult,
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<usize>,
}

/// Parses the pod's interfaces in one file of libcni. It is empty if the file does not belong to a
/// pod.
pub fn parse(file: &[u8]) -> Vec<Recorded> {
    let Ok(cached) = serde_json::from_slice::<Cached>(file) else {
        return Vec::new();
    };
    let CniResult { interfaces, ips } = cached.result;
    if cached.kind != KIND || interfaces.len() > MAX_INTERFACES || ips.len() > MAX_ADDRESSES {
        return Vec::new();
    }
    let is_primary = cached.if_name == PRIMARY_INTERFACE;
    let args = cached.cni_args.unwrap_or_default();
    // A duplicate key is ambiguous.
    let arg = |key: &str| {
        let mut values = args.iter().filter(|(of, _)| of == key);
        match (values.next(), values.next()) {
            (Some((_, value)), None) if !value.is_empty() => Some(value.clone()),
            _ => None,
        }
    };
    let uid = arg("K8S_POD_UID");
    let (Some(namespace), Some(name)) = (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME")) else {
        return Vec::new();
    };
    let host_links: Arc<[String]> = interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_empty())
        .map(|interface| interface.name.clone())
        .collect();
    let mut inside = interfaces
        .iter()
        .enumerate()
        .filter(|(_, interface)| !interface.sandbox.is_empty());
    // Some plugins omit the interface of an address. With a single interface it is certain.
    let only = match (inside.next(), inside.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    };
    let recorded = |(index, interface): (usize, &Interface)| {
        let addresses: Vec<IpAddr> = ips
            .iter()
            .filter(|ip| ip.interface.or(only) == Some(index))
            .filter_map(|ip| address(&ip.address))
            .filter(|address| !address.is_loopback())
            .collect();
        let netns = interface.sandbox.rsplit('/').next().unwrap_or_default();
        (!addresses.is_empty() && is_file_name(netns)).then(|| Recorded {
            uid: uid.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            is_primary: is_primary && interface.name == PRIMARY_INTERFACE,
            netns: netns.to_owned(),
            mac: mac(&interface.mac),
            host_links: host_links.clone(),
            addresses,
        })
    };
    interfaces
        .iter()
        .enumerate()
        .filter(|(_, interface)| !interface.sandbox.is_empty())
        .filter_map(recorded)
        .collect()
}

/// Parses an address without its prefix length.
fn address(text: &str) -> Option<IpAddr> {
    let (address, _) = text.split_once('/').unwrap_or((text, ""));
    address.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn is_file_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && !text.contains('\0')
}

fn mac(text: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(Mac(bytes))
}

#[cfg(test)]
mod tests;
