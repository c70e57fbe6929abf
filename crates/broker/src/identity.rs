//! Whether somebody is the agent of a node: pure, of what the API server said of its token or of
//! what stands in its certificate.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use rolegate_core::workload::{Phase, Workload};
use rolegate_kube::token_review::Reviewed;

/// Who is taken for an agent.
#[derive(Debug, Clone)]
pub struct AgentAccount {
    /// The namespace of the agents' service account.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The audience that tokens must be for.
    pub audience: String,
    /// Whether a connection must come from an address of the agent's pod. Agents are on their
    /// host's network; where something between rewrites addresses, this cannot be looked at.
    pub check_address: bool,
}

/// Somebody who was found to be the agent of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// `metadata.name` of the node.
    pub node: Arc<str>,
    /// The agent's pod, where a token named it: the stream ends with it.
    pub pod_uid: Option<Arc<str>>,
    /// When the token or the certificate ends, as far as it says so.
    pub until: Option<Timestamp>,
}

/// Why somebody is not taken for the agent of the node. It is told to whoever showed the token or
/// certificate, and names nothing that isn't in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The API server doesn't know the token, or it has ended.
    #[error("the token is none of this cluster's, or has ended")]
    Unknown,
    /// It is for somebody else.
    #[error("the token is not for the broker's audience")]
    Audience,
    /// It is of another service account.
    #[error("the token is not of the agents' service account")]
    Account,
    /// It is not bound to a pod, so that anybody may have asked for it.
    #[error("the token is not bound to a pod: mount a projected token")]
    Unbound,
    /// The pod is not there, not seen yet, or over.
    #[error("the token's pod is not there any more, or not seen yet")]
    Gone,
    /// The pod is on another node than the token or the agent says.
    #[error("the token or certificate is of another node")]
    Node,
    /// The connection comes from elsewhere.
    #[error("the connection does not come from the address of the token's pod")]
    Address,
    /// What was proven once counts no longer.
    #[error(
        "the token or certificate has ended, or the agent did not prove again in time who it is"
    )]
    Ended,
    /// There is neither a token nor a certificate.
    #[error("there is neither a token nor a client certificate that names a node")]
    Nothing,
}

impl Refused {
    /// A word for metrics.
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

    /// Whether it may be better in a moment: the broker's own watch may lag behind the agent.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Gone | Self::Address)
    }
}

/// Whether the token that `reviewed` is about is that of the agent of node `claimed`, shown from
/// `peer`. `pod` is the pod that it is bound to, as the broker's own watch knows it.
///
/// # Errors
/// [`Refused`].
pub fn by_token(
    reviewed: &Reviewed,
    account: &AgentAccount,
    claimed: &str,
    peer: IpAddr,
    pod: Option<&Workload>,
) -> Result<Proven, Refused> {
    if !reviewed.authenticated {
        return Err(Refused::Unknown);
    }
    // An API server that checked no audience names none.
    if !reviewed.audiences.contains(&account.audience) {
        return Err(Refused::Audience);
    }
    let username = format!(
        "system:serviceaccount:{}:{}",
        account.namespace, account.name
    );
    if reviewed.username != username {
        return Err(Refused::Account);
    }
    let uid = reviewed.pod_uid.as_deref().ok_or(Refused::Unbound)?;
    let pod = pod.filter(|pod| is_live_agent(pod, account) && *pod.uid == *uid);
    let pod = pod.ok_or(Refused::Gone)?;
    let node = pod.node.clone().ok_or(Refused::Node)?;
    let said = reviewed.node_name.as_deref();
    if *node != *claimed || said.is_some_and(|said| *said != *node) {
        return Err(Refused::Node);
    }
    if account.check_address && !pod.addresses.contains(&peer.to_canonical()) {
        return Err(Refused::Address);
    }
    Ok(Proven {
        node,
        pod_uid: Some(pod.uid.clone()),
        until: reviewed.until,
    })
}

/// Whether the nodes that a client certificate, good `until` then, names are the one that is
/// `claimed`.
///
/// # Errors
/// [`Refused`].
pub fn by_certificate(
    named: &[String],
    until: Option<Timestamp>,
    claimed: &str,
) -> Result<Proven, Refused> {
    match named {
        [node] if node == claimed => Ok(Proven {
            node: claimed.into(),
            pod_uid: None,
            until,
        }),
        [] => Err(Refused::Nothing),
        // One certificate is one node's.
        _ => Err(Refused::Node),
    }
}

/// Whether a pod is of the agents' service account and lives. A mirror pod is not: a kubelet
/// writes into it what it likes.
pub fn is_live_agent(pod: &Workload, account: &AgentAccount) -> bool {
    pod.namespace == account.namespace
        && pod.service_account == account.name
        && !pod.mirror
        && !matches!(pod.phase, Phase::Succeeded | Phase::Failed)
}

#[cfg(test)]
pub(crate) mod tests {
    use rolegate_core::key_values::KeyValues;
    use rolegate_core::workload::Wish;

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
            phase: Phase::Running,
            host_network: true,
            mirror: false,
            wish: Wish::default(),
            labels: KeyValues::default(),
            annotations: KeyValues::default(),
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
        // Before Kubernetes 1.30 tokens name no node: the pod's own counts.
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
            Some(Refused::Unknown)
        );
        assert_eq!(review(&|it| it.audiences.clear()), Some(Refused::Audience));
        assert_eq!(
            review(&|it| it.audiences = vec!["other".into()]),
            Some(Refused::Audience)
        );
        assert_eq!(
            review(&|it| it.username = "system:serviceaccount:rolegate:default".into()),
            Some(Refused::Account)
        );
        assert_eq!(
            review(&|it| it.username = "system:serviceaccount:shop:rolegate-agent".into()),
            Some(Refused::Account)
        );
        assert_eq!(review(&|it| it.pod_uid = None), Some(Refused::Unbound));
        assert_eq!(
            review(&|it| it.pod_uid = Some("uid-other".into())),
            Some(Refused::Gone)
        );
        assert_eq!(
            review(&|it| it.node_name = Some("node-b".into())),
            Some(Refused::Node)
        );

        let pod = |change: &dyn Fn(&mut Workload)| {
            let mut pod = agent();
            change(&mut pod);
            by_token(&reviewed(), &account(), NODE, peer(), Some(&pod)).err()
        };
        assert_eq!(pod(&|it| it.phase = Phase::Failed), Some(Refused::Gone));
        assert_eq!(pod(&|it| it.mirror = true), Some(Refused::Gone));
        assert_eq!(
            pod(&|it| it.service_account = "default".into()),
            Some(Refused::Gone)
        );
        assert_eq!(
            pod(&|it| it.node = Some("node-b".into())),
            Some(Refused::Node)
        );
        assert_eq!(pod(&|it| it.node = None), Some(Refused::Node));
        assert_eq!(pod(&|it| it.addresses.clear()), Some(Refused::Address));

        let unseen = by_token(&reviewed(), &account(), NODE, peer(), None);
        assert_eq!(unseen, Err(Refused::Gone));
        let elsewhere = by_token(&reviewed(), &account(), "node-b", peer(), Some(&agent()));
        assert_eq!(elsewhere, Err(Refused::Node));
        let replayed = by_token(
            &reviewed(),
            &account(),
            NODE,
            [192, 0, 2, 2].into(),
            Some(&agent()),
        );
        assert_eq!(replayed, Err(Refused::Address));
    }

    #[test]
    fn rule_08_a_certificate_is_good_for_the_one_node_that_it_names() {
        let named = |nodes: &[&str]| {
            let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            by_certificate(&nodes, None, NODE)
        };
        assert!(named(&[NODE]).is_ok());
        assert_eq!(named(&[]), Err(Refused::Nothing));
        assert_eq!(named(&["node-b"]), Err(Refused::Node));
        assert_eq!(named(&[NODE, "node-b"]), Err(Refused::Node));
    }

    #[test]
    fn what_the_watch_may_bring_in_a_moment_is_waited_for_and_nothing_else() {
        for refused in [Refused::Gone, Refused::Address] {
            assert!(refused.may_pass(), "{refused:?}");
        }
        for refused in [
            Refused::Unknown,
            Refused::Audience,
            Refused::Account,
            Refused::Unbound,
            Refused::Node,
            Refused::Ended,
            Refused::Nothing,
        ] {
            assert!(!refused.may_pass(), "{refused:?}");
        }
    }
}
