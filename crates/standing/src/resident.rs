//! A pod with what was decided for it last.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use rolegate_aws::sessions::{Lease, Session};
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::workload::Workload;

use crate::pace::Pace;

/// A pod with what was decided for it last. A change of the pod makes a new one.
#[derive(Debug)]
pub struct Resident {
    /// The pod.
    pub workload: Arc<Workload>,
    /// What was decided last, which [`crate::decider::Decider::standing`] brings up to date.
    pub decided: ArcSwap<Decided>,
    /// Keeps what its owner is told of denials to a bearable rate.
    pub told: Pace,
    /// Which session it was last handed: a hash of its `AccessKeyId`, zero for none.
    served: AtomicU64,
}

impl Resident {
    /// A pod of which this was decided.
    pub fn new(workload: Arc<Workload>, decided: Decided) -> Self {
        Self {
            workload,
            decided: ArcSwap::from_pointee(decided),
            told: Pace::default(),
            served: AtomicU64::new(0),
        }
    }

    /// The same pod, with a change that its owner is not informed of.
    #[must_use]
    pub fn changed(&self, workload: Arc<Workload>, decided: Decided) -> Self {
        Self {
            workload,
            decided: ArcSwap::from_pointee(decided),
            told: self.told.clone(),
            served: AtomicU64::new(self.served.load(Ordering::Relaxed)),
        }
    }

    /// Whether it is handed `session` for the first time since it was handed another one; that
    /// one call says yes.
    pub fn is_first(&self, session: &Session) -> bool {
        let mut hasher = DefaultHasher::new();
        session.access_key_id.hash(&mut hasher);
        let hash = hasher.finish();
        // Looked at first, so that the line of memory stays shared between threads.
        self.served.load(Ordering::Relaxed) != hash
            && self.served.swap(hash, Ordering::Relaxed) != hash
    }
}

/// A decision, and how long it counts.
#[derive(Debug)]
pub struct Decided {
    /// The generation of the rules it was made by.
    pub generation: u64,
    /// When it must be made again though nothing changed, where rules read the time.
    pub until: Option<Timestamp>,
    /// What the pod may have.
    pub standing: Standing,
}

impl Decided {
    pub(crate) fn counts(&self, generation: u64, now: Timestamp) -> bool {
        self.generation == generation && self.until.is_none_or(|until| now < until)
    }
}

impl Decided {
    /// Whether a pod is answered the same by both.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        match (&self.standing, &other.standing) {
            (Standing::NoRole, Standing::NoRole) | (Standing::Undecided, Standing::Undecided) => {
                true
            }
            (Standing::Denied { denial, .. }, Standing::Denied { denial: other, .. }) => {
                denial == other
            }
            (Standing::Allowed(allowed), Standing::Allowed(other)) => {
                allowed.lease.cell().key() == other.lease.cell().key()
                    && allowed.listed == other.listed
                    && allowed.rules == other.rules
                    && allowed.audited == other.audited
            }
            _ => false,
        }
    }
}

/// What was decided for a pod.
#[derive(Debug)]
pub enum Standing {
    /// It may have this role.
    Allowed(Allowed),
    /// It wishes for none, and there is no default.
    NoRole,
    /// It is refused.
    Denied {
        /// By which rule.
        denial: Denial,
        /// The sentence for its owner, ready to send.
        body: Bytes,
    },
    /// Something that the decision needs has not been seen yet.
    Undecided,
}

/// A role and its session, ready to serve.
#[derive(Debug)]
pub struct Allowed {
    /// The role.
    pub role: RoleArn,
    /// The name by which the pod is told of it.
    pub listed: Bytes,
    /// When it was decided, which the document of `iam/info` tells.
    pub since: Timestamp,
    /// The rules that allowed it.
    pub rules: Arc<[String]>,
    /// What layers in audit mode would have refused.
    pub audited: Vec<Denial>,
    /// The need of its session, shared by the successive residents of one pod.
    pub lease: Arc<Lease>,
}
