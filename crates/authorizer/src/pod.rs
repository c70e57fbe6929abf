//! A pod with its last decisions: for its own role, and for the roles of its service account.

mod assigned;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use jiff::Timestamp;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::workload::Workload;
use rolegate_sessions::{Lease, Session};
use serde::{Deserialize, Serialize};

use crate::throttle::LogThrottle;
pub use assigned::{AssignedLookup, AssignedRoles, Assignment};

/// A pod with its last decision. A change of the pod creates a new entry.
#[derive(Debug)]
pub struct PodEntry {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The last decision, which [`crate::authorizer::Authorizer::authorization`] updates.
    pub decided: ArcSwap<DecisionRecord>,
    /// The holder of the role that the entry is about.
    pub role_of: RoleOf,
    /// The role that the service account has, on which the decision is based; `None` for the pod's
    /// own role, and at brokered agents.
    pub(crate) assignment: Option<Box<Assignment>>,
    /// The roles of the pod's service account, in the entry of its own role; `None` until they are
    /// determined, and if no endpoint needs them.
    pub assigned: ArcSwapOption<AssignedRoles>,
    /// Limits the reports of denials to the pod's owner.
    pub report_throttle: LogThrottle,
    /// The session that the pod last received: a hash of its `AccessKeyId`, zero for none.
    served: AtomicU64,
}

impl PodEntry {
    /// Creates an entry.
    pub fn new(workload: Arc<Workload>, decided: DecisionRecord) -> Self {
        Self {
            workload,
            decided: ArcSwap::from_pointee(decided),
            role_of: RoleOf::Pod,
            assignment: None,
            assigned: ArcSwapOption::empty(),
            report_throttle: LogThrottle::default(),
            served: AtomicU64::new(0),
        }
    }

    /// Makes this the entry of a role of the pod's service account, for tokens of `audience`.
    #[must_use]
    pub fn for_service_account(self, audience: Option<Arc<str>>) -> Self {
        Self {
            role_of: RoleOf::ServiceAccount { audience },
            ..self
        }
    }

    pub(crate) fn with_assignment(self, assignment: Assignment) -> Self {
        Self {
            assignment: Some(Box::new(assignment)),
            ..self
        }
    }

    /// Creates an entry for the same pod after a change, and keeps the state of its reports.
    #[must_use]
    pub fn changed(&self, workload: Arc<Workload>, decided: DecisionRecord) -> Self {
        Self {
            workload,
            decided: ArcSwap::from_pointee(decided),
            role_of: self.role_of.clone(),
            assignment: self.assignment.clone(),
            assigned: ArcSwapOption::new(self.assigned.load_full()),
            report_throttle: self.report_throttle.clone(),
            served: AtomicU64::new(self.served.load(Ordering::Relaxed)),
        }
    }

    /// Records that `session` is sent to the pod. Returns false if it is the session that the pod
    /// received last, and true otherwise.
    pub fn mark_served(&self, session: &Session) -> bool {
        let mut hasher = DefaultHasher::new();
        session.credentials.access_key_id.hash(&mut hasher);
        let hash = hasher.finish();
        // Read first, so that the cache line stays shared between threads.
        self.served.load(Ordering::Relaxed) != hash
            && self.served.swap(hash, Ordering::Relaxed) != hash
    }
}

/// The holder of the role that an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RoleOf {
    /// The pod: the role in its annotations, or a default role.
    #[default]
    Pod,
    /// The pod's service account.
    ServiceAccount {
        /// The audience of the tokens that get the role; `None` for the endpoint's default audience.
        audience: Option<Arc<str>>,
    },
}

impl RoleOf {
    /// Returns the endpoint that serves these roles.
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Pod => Endpoint::Metadata,
            Self::ServiceAccount { .. } => Endpoint::ContainerCredentials,
        }
    }
}

/// An endpoint that serves credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// The metadata endpoint.
    #[default]
    Metadata,
    /// Container credentials.
    ContainerCredentials,
}

impl Endpoint {
    /// Returns the name in outputs and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::ContainerCredentials => "container-credentials",
        }
    }
}

/// A decision and its lifetime.
#[derive(Debug)]
pub struct DecisionRecord {
    /// The generation of the rules that the decision is based on.
    pub generation: u64,
    /// The time at which the decision expires without a change; `None` unless rules read the time.
    pub expires_at: Option<Timestamp>,
    /// The authorization of the pod.
    pub authorization: Authorization,
}

impl DecisionRecord {
    /// Returns true if the decision is based on this generation of the rules and has not expired.
    pub(crate) fn is_current(&self, generation: u64, now: Timestamp) -> bool {
        self.generation == generation && self.expires_at.is_none_or(|expires_at| now < expires_at)
    }

    /// Sends a request that STS refused again, if `retry` is true and the role is allowed.
    pub(crate) fn retry_if(&self, retry: bool) {
        if let (true, Authorization::Allowed(allowed)) = (retry, &self.authorization) {
            allowed.lease.retry();
        }
    }

    /// Returns the lease of the session, if the role is allowed.
    pub fn lease(&self) -> Option<&Arc<Lease>> {
        match &self.authorization {
            Authorization::Allowed(allowed) => Some(&allowed.lease),
            Authorization::NoRole | Authorization::Denied { .. } | Authorization::Pending => None,
        }
    }

    /// Returns true if the pod gets the same response from both decisions.
    pub fn same_response(&self, other: &Self) -> bool {
        match (&self.authorization, &other.authorization) {
            (Authorization::NoRole, Authorization::NoRole)
            | (Authorization::Pending, Authorization::Pending) => true,
            (Authorization::Denied { denial, .. }, Authorization::Denied { denial: other, .. }) => {
                denial == other
            }
            (Authorization::Allowed(allowed), Authorization::Allowed(other)) => {
                allowed.lease.cell().key() == other.lease.cell().key()
                    && allowed.role_name == other.role_name
                    && allowed.rules == other.rules
                    && allowed.audited == other.audited
            }
            _ => false,
        }
    }
}

/// The authorization of a pod.
#[derive(Debug)]
pub enum Authorization {
    /// The pod may assume the role.
    Allowed(Allowed),
    /// The pod requests no role, and there is no default.
    NoRole,
    /// The request is denied.
    Denied {
        /// The denial.
        denial: Denial,
        /// The message for the pod's owner, ready to send.
        body: Bytes,
    },
    /// Inputs of the decision have not been received yet.
    Pending,
}

/// An allowed role and its session, ready to serve.
#[derive(Debug)]
pub struct Allowed {
    /// The role.
    pub role: RoleArn,
    /// The role name that the metadata endpoint lists.
    pub role_name: Bytes,
    /// The time of the decision, which the `iam/info` document shows.
    pub since: Timestamp,
    /// The rules that allowed the role.
    pub rules: Arc<[String]>,
    /// Denials by layers in audit mode.
    pub audited: Vec<Denial>,
    /// The lease of the session, shared by the successive entries of one pod.
    pub lease: Arc<Lease>,
}
