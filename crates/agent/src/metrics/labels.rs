//! The values of metric labels.

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use rolegate_runtime::shares::Limit;

/// The kind of a request, used as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handler {
    /// An IMDSv2 token.
    Token,
    /// The name of the pod's role.
    RoleName,
    /// The pod's credentials.
    Credentials,
    /// `iam/info`.
    Info,
    /// A path of the node's metadata service.
    Forward,
    /// The credentials of the container credentials endpoint.
    ContainerCredentials,
    /// kube2iam's health page.
    Health,
    /// The list of versions, or of the entries below one.
    Root,
    /// Any other path.
    Other,
}

/// The outcome of a request, used as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Served.
    Ok,
    /// The pod has no role.
    NoRole,
    /// No pod is known to own the address.
    UnknownPod,
    /// The request was for another role than the pod's.
    WrongRole,
    /// Denied by a rule.
    Denied,
    /// STS permanently refuses the role.
    StsRefused,
    /// STS is temporarily unavailable or slow.
    StsUnavailable,
    /// Rules or workloads are not loaded, or are stale.
    NotReady,
    /// A malformed request.
    BadRequest,
    /// A missing or wrong token.
    BadToken,
    /// A path that pods may not read.
    ClosedPath,
    /// A limit was reached.
    Limited,
    /// The node's metadata service failed.
    Upstream,
}

impl Handler {
    /// Returns the label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::RoleName => "role_name",
            Self::Credentials => "credentials",
            Self::Info => "info",
            Self::Forward => "forward",
            Self::ContainerCredentials => "container_credentials",
            Self::Health => "health",
            Self::Root => "root",
            Self::Other => "other",
        }
    }
}

impl Outcome {
    /// Returns the label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoRole => "no_role",
            Self::UnknownPod => "unknown_pod",
            Self::WrongRole => "wrong_role",
            Self::Denied => "denied",
            Self::StsRefused => "sts_refused",
            Self::StsUnavailable => "sts_unavailable",
            Self::NotReady => "not_ready",
            Self::BadRequest => "bad_request",
            Self::BadToken => "bad_token",
            Self::ClosedPath => "closed_path",
            Self::Limited => "limited",
            Self::Upstream => "upstream",
        }
    }
}

impl EncodeLabelValue for Handler {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.as_str().encode(encoder)
    }
}

/// A limit of the agent, used as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AgentLimit {
    /// Connections of all pods.
    Connections,
    /// Connections of one pod.
    PodConnections,
    /// Connections of addresses that belong to no known pod.
    UnknownPeerConnections,
    /// Requests of one pod that wait.
    PodWaiters,
    /// Requests of one pod that are forwarded.
    PodForwards,
    /// Requests of all pods that are forwarded.
    Forwards,
    /// Tokens of one pod that are verified.
    PodVerifications,
    /// Tokens of all pods that are verified.
    Verifications,
}

impl AgentLimit {
    /// All limits, in order of their index.
    pub const ALL: [Self; 8] = [
        Self::Connections,
        Self::PodConnections,
        Self::UnknownPeerConnections,
        Self::PodWaiters,
        Self::PodForwards,
        Self::Forwards,
        Self::PodVerifications,
        Self::Verifications,
    ];

    /// Returns the label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::PodConnections => "pod_connections",
            Self::UnknownPeerConnections => "unknown_peer_connections",
            Self::PodWaiters => "pod_waiters",
            Self::PodForwards => "pod_forwards",
            Self::Forwards => "forwards",
            Self::PodVerifications => "pod_verifications",
            Self::Verifications => "verifications",
        }
    }
}

impl From<Limit> for AgentLimit {
    fn from(limit: Limit) -> Self {
        match limit {
            Limit::Total | Limit::Known => Self::Connections,
            Limit::Each => Self::PodConnections,
            Limit::UnknownPeers => Self::UnknownPeerConnections,
        }
    }
}
