//! Addresses that the API server has not reported yet.
//!
//! A kubelet reports a pod's address seconds after the pod's first request, when it starts many
//! pods at once. The container runtime records the address, with the pod's UID, before it starts the
//! pod's first container. So the record identifies the pod until the API server does.

use std::net::IpAddr;
use std::sync::Arc;

use rolegate_netlink::Error as NetlinkError;

use super::{Attachments, Kind, PodId, lock};

impl Attachments {
    /// Returns the UID of the pod to which the container runtime assigned an address, for addresses
    /// that the API server has not reported yet.
    pub fn recorded_owner(&self, addr: IpAddr) -> Option<Arc<str>> {
        let records = lock(&self.records).clone();
        if !records.has(addr) {
            self.wanted.notify_one();
        }
        let (uid, _) = records.owner(addr, |netns| self.exists(netns))?;
        Some(uid.into())
    }

    /// Adds an address that the API server has not reported yet to a pod's addresses, if the
    /// container runtime assigned it to this pod and the kernel's route leads there. Returns whether
    /// the pod has the address. The claim ends with the record.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn adopt(&self, pod: PodId, addr: IpAddr) -> Result<bool, NetlinkError> {
        let records = lock(&self.records).clone();
        let owner = records.owner(addr, |netns| self.exists(netns));
        let Some((_, record)) = owner.filter(|(uid, _)| *uid == &*pod.uid) else {
            return Ok(false);
        };
        let Some(place) = self.kernel.place(addr)? else {
            return Ok(false);
        };
        // A stale route may lead to the address's previous pod. On shared networks `bind` compares
        // the record with the kernel.
        if place.kind == Kind::PointToPoint
            && !self
                .host_links(record)?
                .iter()
                .any(|link| link.ifindex == place.ifindex)
        {
            return Ok(false);
        }
        if lock(&self.bindings).adopt(pod.clone(), addr) {
            self.try_bind(&pod, addr);
            self.moved();
        }
        Ok(true)
    }
}
