//! Verifies the data of the pod table: that it is not stale, and that an address is still attached
//! to its pod.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rolegate_authorizer::pod::PodEntry;
use rolegate_core::workload::Workload;
use rolegate_kube::freshness::FreshnessSet;
use rolegate_netlink::Error as NetlinkError;
use rolegate_runtime::staleness::Staleness;

use crate::attachment::{Attachment, Attachments, PodId, Verdict};
use crate::pod_table::PodTable;

/// The attachments of addresses to this host, as far as a verifier needs them.
pub(crate) trait AttachmentLookup: fmt::Debug + Send + Sync {
    /// See [`Attachments::seen`].
    fn seen(&self, pod: PodId, addresses: &[IpAddr]);
    /// See [`Attachments::recorded_owner`].
    fn recorded_owner(&self, address: IpAddr) -> Option<Arc<str>>;
    /// See [`Attachments::adopt`].
    fn adopt(&self, pod: PodId, address: IpAddr) -> Result<bool, NetlinkError>;
    /// See [`Attachments::check`].
    fn check(&self, uid: &str, address: IpAddr, accepted: Instant)
    -> Result<Verdict, NetlinkError>;
    /// See [`Attachments::resolve`].
    fn resolve(&self, address: IpAddr) -> Result<Option<Attachment>, NetlinkError>;
    /// See [`Attachments::is_home`].
    fn is_home(&self, uid: &str, address: IpAddr, place: Option<&Attachment>) -> bool;
    /// See [`Attachments::forget`].
    fn forget(&self, uid: &str);
    /// See [`Attachments::generation`].
    fn generation(&self) -> u64;
}

impl AttachmentLookup for Attachments {
    fn seen(&self, pod: PodId, addresses: &[IpAddr]) {
        Self::seen(self, pod, addresses);
    }

    fn recorded_owner(&self, address: IpAddr) -> Option<Arc<str>> {
        Self::recorded_owner(self, address)
    }

    fn adopt(&self, pod: PodId, address: IpAddr) -> Result<bool, NetlinkError> {
        Self::adopt(self, pod, address)
    }

    fn check(
        &self,
        uid: &str,
        address: IpAddr,
        accepted: Instant,
    ) -> Result<Verdict, NetlinkError> {
        Self::check(self, uid, address, accepted)
    }

    fn resolve(&self, address: IpAddr) -> Result<Option<Attachment>, NetlinkError> {
        Self::resolve(self, address)
    }

    fn is_home(&self, uid: &str, address: IpAddr, place: Option<&Attachment>) -> bool {
        Self::is_home(self, uid, address, place)
    }

    fn forget(&self, uid: &str) {
        Self::forget(self, uid);
    }

    fn generation(&self) -> u64 {
        Self::generation(self)
    }
}

/// Checks the kernel's state and the staleness of the pod table. Cloning is cheap; clones share
/// state.
#[derive(Debug, Clone, Default)]
pub struct AddressVerifier(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The staleness of the cluster state; `None` if the source is never stale.
    age: Option<Age>,
    /// The attachments; `None` if addresses are not tied to interfaces.
    attachments: Option<Arc<dyn AttachmentLookup>>,
    /// The second in which the pod table was last found to be fresh.
    young: AtomicI64,
}

/// The source of the pod table's staleness.
#[derive(Debug)]
pub(crate) enum Age {
    /// The watches of the API server.
    Cluster(FreshnessSet),
    /// The broker.
    Broker(Arc<Staleness>),
}

/// A connection's last verified state, so that the kernel is queried once per connection and
/// change, not per request.
#[derive(Debug)]
pub struct VerifiedAt {
    /// The time when the connection was accepted: events that the kernel lost since then count
    /// against it.
    accepted: Instant,
    /// The attachment of its address at that time. Events before the address belongs to a known pod
    /// do not count.
    opened: Option<Attachment>,
    /// The generation of the last successful check; 0 before the first one.
    good: AtomicU64,
    /// The UID of the pod that the address was found detached from.
    taken: OnceLock<Arc<str>>,
}

impl AddressVerifier {
    /// Creates a verifier. Both parts are optional.
    pub(crate) fn new(age: Option<Age>, attachments: Option<Arc<dyn AttachmentLookup>>) -> Self {
        Self(Arc::new(Inner {
            age,
            attachments,
            young: AtomicI64::new(i64::MIN),
        }))
    }

    /// Returns the time since the last update from the cluster; zero if the source is never stale.
    pub fn staleness(&self) -> Duration {
        let age = match &self.0.age {
            Some(Age::Cluster(freshness)) => freshness.age(),
            Some(Age::Broker(staleness)) => staleness.age(),
            None => None,
        };
        age.unwrap_or_default()
    }

    /// Returns whether the last update from the cluster is within `most`; computed once a second.
    pub fn is_fresh(&self, most: Duration, now: Timestamp) -> bool {
        let second = now.as_second();
        if self.0.young.load(Ordering::Relaxed) == second {
            return true;
        }
        let young = self.staleness() <= most;
        if young {
            self.0.young.store(second, Ordering::Relaxed);
        }
        young
    }

    /// Sets the complete list of a pod's addresses. Call it before the pod table publishes them.
    pub(crate) fn seen(&self, pod: &Workload, addresses: &[IpAddr]) {
        if let Some(attachments) = &self.0.attachments {
            attachments.seen(pod.into(), addresses);
        }
    }

    /// Returns the pod to which the container runtime assigned an address that the API server has
    /// not reported for any pod. A kubelet that starts many pods reports their addresses seconds
    /// after their first requests.
    ///
    /// The API server's addresses take precedence: call it only for an address without owner.
    pub(crate) fn recorded(&self, address: IpAddr, pod_table: &PodTable) -> Option<Arc<PodEntry>> {
        let attachments = self.0.attachments.as_ref()?;
        let entry = pod_table.pod(&attachments.recorded_owner(address)?)?;
        let workload = &*entry.workload;
        // An error from the kernel counts as unknown.
        let adopted = workload.may_own_addresses()
            && attachments
                .adopt(workload.into(), address)
                .unwrap_or_default();
        adopted.then_some(entry)
    }

    /// Creates the state of a connection from `address` that is accepted now.
    pub fn opened(&self, address: IpAddr) -> VerifiedAt {
        let accepted = Instant::now();
        let attachments = self.0.attachments.as_ref();
        // An error from the kernel counts as unknown.
        let place = attachments.and_then(|attachments| attachments.resolve(address).ok().flatten());
        VerifiedAt {
            accepted,
            opened: place,
            good: AtomicU64::new(0),
            taken: OnceLock::new(),
        }
    }

    /// Removes a pod.
    pub(crate) fn forget(&self, uid: &str) {
        if let Some(attachments) = &self.0.attachments {
            attachments.forget(uid);
        }
    }

    /// Compares the attachment of `address` with that of the pod `uid`. Only [`Verdict::Same`]
    /// permits credentials. A connection on which the address was elsewhere once, or that was
    /// opened while it was, is never valid for that pod again. One whose events were lost is never
    /// valid, since a neighbor may have opened it.
    pub fn check(&self, uid: &str, address: IpAddr, last: &VerifiedAt) -> Verdict {
        let Some(attachments) = &self.0.attachments else {
            return Verdict::Same;
        };
        // Read before the check: a change in between makes the next request check again.
        let generation = attachments.generation();
        if last.good.load(Ordering::Relaxed) == generation {
            return Verdict::Same;
        }
        if last.taken.get().is_some_and(|taken| **taken == *uid) {
            return Verdict::Changed;
        }
        // An error from the kernel counts as unknown.
        let verdict = attachments
            .check(uid, address, last.accepted)
            .unwrap_or(Verdict::Unknown);
        let is_own = || attachments.is_home(uid, address, last.opened.as_ref());
        let verdict = match verdict {
            // Opened before the pod was known to have the address, so by another client.
            Verdict::Same if !is_own() => Verdict::Changed,
            verdict => verdict,
        };
        match verdict {
            Verdict::Same => last.good.store(generation, Ordering::Relaxed),
            Verdict::Changed => {
                // The address's next pod, which the watch may not have reported yet, is not
                // affected.
                let _ = last.taken.set(uid.into());
            }
            // A loss is permanent.
            Verdict::EventsLost | Verdict::Unrecorded | Verdict::Unknown => {}
        }
        verdict
    }
}

#[cfg(test)]
pub(crate) mod tests;
