//! Authenticates nodes. The functions are pure: they decide from the API server's token review, or
//! from the client certificate.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use rolegate_core::workload::{Phase, Workload};
use rolegate_kube::token_review::Reviewed;

/// The service account that agents run as, and requirements on its tokens.
#[derive(Debug, Clone)]
pub struct AgentAccount {
    /// The namespace of the agents' service account.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The required audience of tokens.
    pub audience: String,
    /// Require connections to come from the IP of the agent's pod. Agents use the host network, so
    /// this must be off where NAT rewrites source addresses.
    pub check_address: bool,
}

/// A node whose agent has authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthenticatedNode {
    /// `metadata.name` of the node.
    pub node: Arc<str>,
    /// The agent's pod, if a token named it. The stream ends when the pod does.
    pub pod_uid: Option<Arc<str>>,
    /// Expiry of the token or certificate, if it has one.
    pub until: Option<Timestamp>,
}

/// The reason why authentication failed. The peer sees this text, so it must not reveal anything
/// that the token or certificate does not contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthnRejection {
    /// The API server does not recognize the token, or the token has expired.
    #[error("the token was not issued by this cluster or has expired")]
    Unknown,
    /// The token is for another audience.
    #[error("the token is not for the broker's audience")]
    Audience,
    /// The token belongs to another service account.
    #[error("the token does not belong to the agents' service account")]
    Account,
    /// The token is not bound to a pod, so any client may have requested it.
    #[error("the token is not bound to a pod: mount a projected token")]
    Unbound,
    /// The pod was deleted, has finished, or has not been observed yet.
    #[error("the token's pod does not exist or has not been observed yet")]
    Gone,
    /// The pod runs on another node than the token or the agent claims.
    #[error("the token or certificate belongs to another node")]
    Node,
    /// The connection comes from another address.
    #[error("the connection does not come from the address of the token's pod")]
    Address,
    /// The credentials have expired.
    #[error("the token or certificate has expired, or the agent did not reauthenticate in time")]
    Ended,
    /// The peer presented neither a token nor a certificate.
    #[error("the agent presented neither a token nor a client certificate that names a node")]
    Nothing,
}

impl AuthnRejection {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Audience,
        Self::Account,
        Self::Unbound,
        Self::Gone,
        Self::Node,
        Self::Address,
        Self::Ended,
        Self::Nothing,
    ];

    /// Returns the value of the metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Audience => "audience",
            Self::Account => "account",
            Self::Unbound => "unbound",
            Self::Gone => "gone",
            Self::Node => "node",
            Self::Address => "address",
            Self::Ended => "ended",
            Self::Nothing => "nothing",
        }
    }

    /// Returns `true` if a retry may succeed: the broker's watch may lag behind the agent.
    pub fn is_retriable(self) -> bool {
        matches!(self, Self::Gone | Self::Address)
    }
}

/// Checks that the `reviewed` token belongs to the agent of node `claimed` and was sent from
/// `peer`. `pod` is the pod that the token is bound to, as the broker's own watch reports it.
///
/// # Errors
/// Returns [`AuthnRejection`] if the token does not authenticate the node.
pub fn by_token(
    reviewed: &Reviewed,
    account: &AgentAccount,
    claimed: &str,
    peer: IpAddr,
    pod: Option<&Workload>,
) -> Result<AuthenticatedNode, AuthnRejection> {
    if !reviewed.authenticated {
        return Err(AuthnRejection::Unknown);
    }
    // An API server that does not validate audiences reports none.
    if !reviewed.audiences.contains(&account.audience) {
        return Err(AuthnRejection::Audience);
    }
    let username = format!(
        "system:serviceaccount:{}:{}",
        account.namespace, account.name
    );
    if reviewed.username != username {
        return Err(AuthnRejection::Account);
    }
    let uid = reviewed.pod_uid.as_deref().ok_or(AuthnRejection::Unbound)?;
    let pod = pod
        .filter(|pod| is_live_agent(pod, account) && *pod.uid == *uid)
        .ok_or(AuthnRejection::Gone)?;
    let node = pod.node.clone().ok_or(AuthnRejection::Node)?;
    let said = reviewed.node_name.as_deref();
    if *node != *claimed || said.is_some_and(|said| *said != *node) {
        return Err(AuthnRejection::Node);
    }
    if account.check_address && !pod.addresses.contains(&peer.to_canonical()) {
        return Err(AuthnRejection::Address);
    }
    Ok(AuthenticatedNode {
        node,
        pod_uid: Some(pod.uid.clone()),
        until: reviewed.until,
    })
}

/// Checks that `nodes`, the nodes named by a client certificate that expires at `until`, consist of
/// `claimed` alone.
///
/// # Errors
/// Returns [`AuthnRejection`] if the certificate does not authenticate the node.
pub fn by_certificate(
    named: &[String],
    until: Option<Timestamp>,
    claimed: &str,
) -> Result<AuthenticatedNode, AuthnRejection> {
    match named {
        [node] if node == claimed => Ok(AuthenticatedNode {
            node: claimed.into(),
            pod_uid: None,
            until,
        }),
        [] => Err(AuthnRejection::Nothing),
        // A certificate must name exactly one node.
        _ => Err(AuthnRejection::Node),
    }
}

/// Returns `true` if the pod belongs to the agents' service account and is running. Mirror pods are
/// excluded, because a kubelet controls their whole content.
pub fn is_live_agent(pod: &Workload, account: &AgentAccount) -> bool {
    pod.namespace == account.namespace
        && pod.service_account == account.name
        && !pod.mirror
        && !matches!(pod.phase, Phase::Succeeded | Phase::Failed)
}

#[cfg(test)]
pub(crate) mod tests {
    use rolegate_core::test_util::pod;

    use super::*;

    const NODE: &str = "node-a";

    pub(crate) fn account() -> AgentAccount {
        AgentAccount {
            namespace: "rolegate".into(),
            name: "rolegate-agent".into(),
            audience: "rolegate".into(),
            check_address: true,
        }
    }

    pub(crate) fn peer() -> IpAddr {
        [192, 0, 2, 1].into()
    }

    pub(crate) fn agent() -> Workload {
        Workload {
            namespace: "rolegate".into(),
            name: "rolegate-agent-x".into(),
            uid: "uid-agent".into(),
            node: Some(NODE.into()),
            service_account: "rolegate-agent".into(),
            addresses: vec![peer()],
            host_network: true,
            ..pod(None)
        }
    }

    fn reviewed() -> Reviewed {
        Reviewed {
            authenticated: true,
            username: "system:serviceaccount:rolegate:rolegate-agent".into(),
            audiences: vec!["rolegate".into()],
            pod_name: Some("rolegate-agent-x".into()),
            pod_uid: Some("uid-agent".into()),
            node_name: Some(NODE.into()),
            until: None,
        }
    }

    #[test]
    fn the_agent_of_a_node_is_believed() {
        let proven = by_token(&reviewed(), &account(), NODE, peer(), Some(&agent())).unwrap();
        assert_eq!(
            (&*proven.node, proven.pod_uid.as_deref()),
            (NODE, Some("uid-agent"))
        );
        // Tokens issued before Kubernetes 1.30 name no node, so the pod's node is used.
        let older = Reviewed {
            node_name: None,
            ..reviewed()
        };
        assert!(by_token(&older, &account(), NODE, peer(), Some(&agent())).is_ok());
    }

    #[test]
    fn rule_08_a_token_is_good_for_one_living_agent_on_its_own_node() {
        let review = |change: &dyn Fn(&mut Reviewed)| {
            let mut review = reviewed();
            change(&mut review);
            by_token(&review, &account(), NODE, peer(), Some(&agent())).err()
        };
        assert_eq!(
            review(&|it| it.authenticated = false),
            Some(AuthnRejection::Unknown)
        );
        assert_eq!(
            review(&|it| it.audiences.clear()),
            Some(AuthnRejection::Audience)
        );
        assert_eq!(
            review(&|it| it.audiences = vec!["other".into()]),
            Some(AuthnRejection::Audience)
        );
        assert_eq!(
            review(&|it| it.username = "system:serviceaccount:rolegate:default".into()),
            Some(AuthnRejection::Account)
        );
        assert_eq!(
            review(&|it| it.username = "system:serviceaccount:shop:rolegate-agent".into()),
            Some(AuthnRejection::Account)
        );
        assert_eq!(
            review(&|it| it.pod_uid = None),
            Some(AuthnRejection::Unbound)
        );
        assert_eq!(
            review(&|it| it.pod_uid = Some("uid-other".into())),
            Some(AuthnRejection::Gone)
        );
        assert_eq!(
            review(&|it| it.node_name = Some("node-b".into())),
            Some(AuthnRejection::Node)
        );

        let pod = |change: &dyn Fn(&mut Workload)| {
            let mut pod = agent();
            change(&mut pod);
            by_token(&reviewed(), &account(), NODE, peer(), Some(&pod)).err()
        };
        assert_eq!(
            pod(&|it| it.phase = Phase::Failed),
            Some(AuthnRejection::Gone)
        );
        assert_eq!(pod(&|it| it.mirror = true), Some(AuthnRejection::Gone));
        assert_eq!(
            pod(&|it| it.service_account = "default".into()),
            Some(AuthnRejection::Gone)
        );
        assert_eq!(
            pod(&|it| it.node = Some("node-b".into())),
            Some(AuthnRejection::Node)
        );
        assert_eq!(pod(&|it| it.node = None), Some(AuthnRejection::Node));
        assert_eq!(
            pod(&|it| it.addresses.clear()),
            Some(AuthnRejection::Address)
        );

        let unseen = by_token(&reviewed(), &account(), NODE, peer(), None);
        assert_eq!(unseen, Err(AuthnRejection::Gone));
        let elsewhere = by_token(&reviewed(), &account(), "node-b", peer(), Some(&agent()));
        assert_eq!(elsewhere, Err(AuthnRejection::Node));
        let replayed = by_token(
            &reviewed(),
            &account(),
            NODE,
            [192, 0, 2, 2].into(),
            Some(&agent()),
        );
        assert_eq!(replayed, Err(AuthnRejection::Address));
    }

    #[test]
    fn rule_08_a_certificate_is_good_for_the_one_node_that_it_names() {
        let named = |nodes: &[&str]| {
            let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            by_certificate(&nodes, None, NODE)
        };
        assert!(named(&[NODE]).is_ok());
        assert_eq!(named(&[]), Err(AuthnRejection::Nothing));
        assert_eq!(named(&["node-b"]), Err(AuthnRejection::Node));
        assert_eq!(named(&[NODE, "node-b"]), Err(AuthnRejection::Node));
    }

    #[test]
    fn only_errors_that_a_later_watch_event_may_fix_are_retriable() {
        for refused in [AuthnRejection::Gone, AuthnRejection::Address] {
            assert!(refused.is_retriable(), "{refused:?}");
        }
        for refused in [
            AuthnRejection::Unknown,
            AuthnRejection::Audience,
            AuthnRejection::Account,
            AuthnRejection::Unbound,
            AuthnRejection::Node,
            AuthnRejection::Ended,
            AuthnRejection::Nothing,
        ] {
            assert!(!refused.is_retriable(), "{refused:?}");
        }
    }
}
