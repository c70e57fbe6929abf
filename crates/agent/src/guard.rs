//! Whether what the picture says can be relied on: that it is not too old, and that an address
//! still is on the interface where its pod was first seen.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rolegate_kube::picture::Pictures;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::attachment::{AttachmentError, Attachments, Verdict};
use crate::broker::BrokerAge;

/// Looks at the kernel and at the age of the picture. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Guard(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// When the cluster was last heard of; `None` where the source has no age.
    age: Option<Age>,
    /// `None` where addresses are not tied to interfaces.
    attachments: Option<Attachments>,
    /// Grows with each change that makes earlier looks at the kernel worthless.
    generation: AtomicU64,
    /// A pod's address that a neighbour could take was seen.
    forgeable: AtomicBool,
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

/// A connection's memory of the last look at the kernel, so that it is one for each connection
/// and change, not for each request.
#[derive(Debug, Default)]
pub struct LastLook(AtomicU64);

impl Guard {
    /// A guard of these two; either may be absent.
    pub(crate) fn new(age: Option<Age>, attachments: Option<Attachments>) -> Self {
        Self(Arc::new(Inner {
            age,
            attachments,
            // A last look of 0 is none.
            generation: AtomicU64::new(1),
            forgeable: AtomicBool::new(false),
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

    /// Whether only a MAC address tells some pod from its neighbours.
    pub fn has_forgeable(&self) -> bool {
        self.0.forgeable.load(Ordering::Relaxed)
    }

    /// A pod was seen with these addresses; to be called before the picture shows it.
    pub(crate) fn seen(&self, uid: &str, addresses: &[IpAddr]) {
        let Some(attachments) = &self.0.attachments else {
            return;
        };
        for address in addresses {
            if let Err(error) = attachments.seen(uid, *address) {
                warn!(%address, %error, "cannot ask the kernel where a pod's address is");
            }
            if let Ok(Some(attachment)) = attachments.resolve(*address)
                && attachment.can_be_forged()
                && !self.0.forgeable.swap(true, Ordering::Relaxed)
            {
                warn!(
                    interface = attachment.name,
                    "pods share an interface on which a neighbour can take another's address, unless the network plugin prevents it"
                );
            }
        }
        self.0.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A pod is gone.
    pub(crate) fn forget(&self, uid: &str) {
        if let Some(attachments) = &self.0.attachments {
            attachments.forget(uid);
            self.0.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether `address` is where the pod `uid` was first seen. What the kernel cannot tell
    /// counts as no.
    pub fn is_at_home(&self, uid: &str, address: IpAddr, last: &LastLook) -> bool {
        let Some(attachments) = &self.0.attachments else {
            return true;
        };
        // Read before the look: a change in between makes the next request look again.
        let generation = self.0.generation.load(Ordering::Acquire);
        if last.0.load(Ordering::Relaxed) == generation {
            return true;
        }
        let same = matches!(attachments.check(uid, address), Ok(Verdict::Same));
        if same {
            last.0.store(generation, Ordering::Relaxed);
        }
        same
    }

    /// Follows the kernel's events until `cancel`.
    ///
    /// # Errors
    /// When the kernel gives no events; [`Self::is_at_home`] then still looks at each new
    /// connection.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), AttachmentError> {
        let Some(attachments) = &self.0.attachments else {
            return Ok(());
        };
        let changed = |_| {
            self.0.generation.fetch_add(1, Ordering::AcqRel);
        };
        attachments.run(changed, cancel).await
    }
}
