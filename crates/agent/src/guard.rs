//! Whether what the picture says can be relied on: that it is not too old, and that an address
//! still is at its pod's place.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rolegate_core::workload::Workload;
use rolegate_kube::picture::Pictures;

use crate::attachment::{Attachment, AttachmentError, Attachments, PodId, Verdict};
use crate::broker::BrokerAge;

/// The places of addresses on this host, as far as a guard needs them.
pub(crate) trait Places: fmt::Debug + Send + Sync {
    /// See [`Attachments::seen`].
    fn seen(&self, pod: PodId, addresses: &[IpAddr]);
    /// See [`Attachments::check`].
    fn check(
        &self,
        uid: &str,
        address: IpAddr,
        accepted: Instant,
    ) -> Result<Verdict, AttachmentError>;
    /// See [`Attachments::resolve`].
    fn resolve(&self, address: IpAddr) -> Result<Option<Attachment>, AttachmentError>;
    /// See [`Attachments::is_home`].
    fn is_home(&self, uid: &str, address: IpAddr, place: Option<&Attachment>) -> bool;
    /// See [`Attachments::forget`].
    fn forget(&self, uid: &str);
    /// See [`Attachments::generation`].
    fn generation(&self) -> u64;
    /// See [`Attachments::concern`].
    fn concern(&self) -> Option<String>;
}

impl Places for Attachments {
    fn seen(&self, pod: PodId, addresses: &[IpAddr]) {
        Self::seen(self, pod, addresses);
    }

    fn check(
        &self,
        uid: &str,
        address: IpAddr,
        accepted: Instant,
    ) -> Result<Verdict, AttachmentError> {
        Self::check(self, uid, address, accepted)
    }

    fn resolve(&self, address: IpAddr) -> Result<Option<Attachment>, AttachmentError> {
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

    fn concern(&self) -> Option<String> {
        Self::concern(self)
    }
}

/// Looks at the kernel and at the age of the picture. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Guard(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// When the cluster was last heard of; `None` where the source has no age.
    age: Option<Age>,
    /// `None` where addresses are not tied to places.
    places: Option<Arc<dyn Places>>,
    /// The second in which the picture was last found to be young enough.
    young: AtomicI64,
}

/// What tells how old the picture is.
#[derive(Debug)]
pub(crate) enum Age {
    /// The watches of the API server.
    Cluster(Pictures),
    /// The broker.
    Broker(BrokerAge),
}

/// A connection's memory of its looks at the kernel, so that there is one for each connection
/// and change, not for each request.
#[derive(Debug)]
pub struct LastLook {
    /// When the connection was accepted: what the kernel lost since counts against it.
    accepted: Instant,
    /// Where its address was then: events before a pod's address is known are not held against it.
    opened: Option<Attachment>,
    /// The generation that was last found good; 0 before the first look.
    good: AtomicU64,
    /// The UID of the pod that the address was found elsewhere than.
    taken: OnceLock<Arc<str>>,
}

impl Guard {
    /// A guard of these two; either may be absent.
    pub(crate) fn new(age: Option<Age>, places: Option<Arc<dyn Places>>) -> Self {
        Self(Arc::new(Inner {
            age,
            places,
            young: AtomicI64::new(i64::MIN),
        }))
    }

    /// How long ago the cluster was last heard of; zero where the source has no age.
    pub fn picture_age(&self) -> Duration {
        match &self.0.age {
            Some(Age::Cluster(pictures)) => pictures.age().unwrap_or_default(),
            Some(Age::Broker(age)) => age.age(),
            None => Duration::ZERO,
        }
    }

    /// Whether the cluster was heard of within `most`; looked at once a second.
    pub fn is_young(&self, most: Duration, now: Timestamp) -> bool {
        let second = now.as_second();
        if self.0.young.load(Ordering::Relaxed) == second {
            return true;
        }
        let young = self.picture_age() <= most;
        if young {
            self.0.young.store(second, Ordering::Relaxed);
        }
        young
    }

    /// Returns anything an operator should know about the pods' addresses.
    pub fn concern(&self) -> Option<String> {
        self.0.places.as_ref()?.concern()
    }

    /// A pod has these addresses and no others; to be called before the picture shows it.
    pub(crate) fn seen(&self, pod: &Workload, addresses: &[IpAddr]) {
        if let Some(places) = &self.0.places {
            places.seen(pod.into(), addresses);
        }
    }

    /// The memory of a connection from `address` that is accepted now.
    pub fn opened(&self, address: IpAddr) -> LastLook {
        let accepted = Instant::now();
        let places = self.0.places.as_ref();
        // An error from the kernel counts as unknown.
        let place = places.and_then(|places| places.resolve(address).ok().flatten());
        LastLook {
            accepted,
            opened: place,
            good: AtomicU64::new(0),
            taken: OnceLock::new(),
        }
    }

    /// A pod is gone.
    pub(crate) fn forget(&self, uid: &str) {
        if let Some(places) = &self.0.places {
            places.forget(uid);
        }
    }

    /// Compares where `address` is with the place of the pod `uid`. Only [`Verdict::Same`] is good
    /// for credentials. A connection on which the address was elsewhere once, or that was opened when
    /// it was, is never good for that pod again, and one whose events were lost is never good: it may be the one that a neighbour
    /// opened.
    pub fn check(&self, uid: &str, address: IpAddr, last: &LastLook) -> Verdict {
        let Some(places) = &self.0.places else {
            return Verdict::Same;
        };
        // Read before the look: a change in between makes the next request look again.
        let generation = places.generation();
        if last.good.load(Ordering::Relaxed) == generation {
            return Verdict::Same;
        }
        if last.taken.get().is_some_and(|taken| **taken == *uid) {
            return Verdict::Changed;
        }
        // An error from the kernel counts as unknown.
        let verdict = places
            .check(uid, address, last.accepted)
            .unwrap_or(Verdict::Unknown);
        let is_own = || places.is_home(uid, address, last.opened.as_ref());
        let verdict = match verdict {
            // Opened before the pod was known to have the address, by somebody else.
            Verdict::Same if !is_own() => Verdict::Changed,
            verdict => verdict,
        };
        match verdict {
            Verdict::Same => last.good.store(generation, Ordering::Relaxed),
            Verdict::Changed => {
                // The address's next pod, which the watch may not have brought yet, is not
                // concerned.
                let _ = last.taken.set(uid.into());
            }
            // The places don't take a loss back.
            Verdict::EventsLost | Verdict::Unrecorded | Verdict::Unknown => {}
        }
        verdict
    }
}

#[cfg(test)]
pub(crate) mod tests;
