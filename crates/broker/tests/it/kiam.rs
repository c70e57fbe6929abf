//! The kiam-compatible interface, called as kiam's agents do.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rolegate_broker::app::{Broker, BrokerOptions, KiamOptions};
use rolegate_broker::subscription::MAX_PER_NODE;
use rolegate_devkit::{Namespace, Pod};
use rolegate_proto::kiam::kiam_service_client::KiamServiceClient;
use rolegate_proto::kiam::{
    Credentials, GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest,
};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::ClientTls;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::harness::{LOOPBACK, TestBrokers, ledger, metric, pod};
use crate::raw::{Requests, connect, eventually, origin};

/// The addresses of nodes 1 and 2.
const NODE_1: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const NODE_2: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 2);

fn agent(node: u8, address: Ipv4Addr) -> Pod {
    Pod::new("kube-system", &format!("kiam-agent-{node}"))
        .node(&format!("node-{node}"))
        .ip(&address.to_string())
        .host_network()
}

#[derive(Clone)]
struct Kiam {
    client: KiamServiceClient<Requests>,
    _connection: tokio::task::AbortHandle,
}

impl Kiam {
    async fn connect(harness: &TestBrokers, to: SocketAddr, from: Ipv4Addr) -> Self {
        // kiam's agents share one certificate, which names no node.
        let tls = harness.tls(Some(harness.client_pair("kiam-agent")));
        Self::with(&tls, to, from).await
    }

    async fn with(tls: &ClientTls, to: SocketAddr, from: Ipv4Addr) -> Self {
        let (requests, connection) = connect(tls, from, to).await.unwrap();
        Self {
            client: KiamServiceClient::with_origin(requests, origin()),
            _connection: connection,
        }
    }

    async fn role(&mut self, ip: &str) -> Result<String, Status> {
        let request = GetPodRoleRequest { ip: ip.into() };
        let role = self.client.get_pod_role(request).await?;
        Ok(role.into_inner().name)
    }

    async fn credentials(&mut self, ip: &str, role: &str) -> Result<Credentials, Status> {
        let request = GetPodCredentialsRequest {
            ip: ip.into(),
            role: role.into(),
        };
        Ok(self.client.get_pod_credentials(request).await?.into_inner())
    }

    /// Starts a request for the credentials of a new pod, 127.1.0.4 with the role `writer`, that
    /// waits for STS.
    async fn waits_for_sts(
        &mut self,
        harness: &TestBrokers,
    ) -> JoinHandle<Result<Credentials, Status>> {
        // The node is served; the next requests have no session yet.
        self.credentials("127.1.0.1", "reader").await.unwrap();
        harness.sts.set_latency(Duration::from_secs(2));
        harness.kube.put_pod(pod("slow", 1, 4, "writer"));
        eventually("the call", || async { harness.sts.in_flight() > 0 }).await;
        let mut waiting = self.clone();
        let waiting = tokio::spawn(async move { waiting.credentials("127.1.0.4", "writer").await });
        // The server handles the requests of a connection one after another, so the previous
        // request is done.
        assert_eq!(self.role("127.1.0.4").await.unwrap(), "writer");
        waiting
    }
}

async fn harness() -> (TestBrokers, Broker, SocketAddr) {
    stage_with(Clock::system()).await
}

async fn stage_with(clock: Clock) -> (TestBrokers, Broker, SocketAddr) {
    stage_of(clock, |_| ()).await
}

async fn stage_of(
    clock: Clock,
    change: impl FnOnce(&mut BrokerOptions),
) -> (TestBrokers, Broker, SocketAddr) {
    let harness = TestBrokers::with_clock(clock).await;
    harness.kube.put_pod(agent(1, NODE_1));
    harness.kube.put_pod(agent(2, NODE_2));
    harness.kube.put_pod(pod("denied", 1, 2, "admin"));
    harness
        .kube
        .put_pod(Pod::new("default", "plain").node("node-1").ip("127.1.0.3"));
    let mut options = harness.broker_options("broker-a");
    options.kiam = Some(KiamOptions {
        listen: LOOPBACK,
        client_ca: harness.path("ca.pem"),
        max_staleness: Duration::from_secs(3600),
    });
    change(&mut options);
    let broker = harness.start(options).await;
    let to = broker.addresses().kiam.unwrap();
    (harness, broker, to)
}

#[tokio::test]
async fn kiams_agents_get_what_their_own_nodes_pods_may_have() {
    let (harness, broker, to) = harness().await;
    let mut one = Kiam::connect(&harness, to, NODE_1).await;
    let health = one.client.get_health(GetHealthRequest {}).await.unwrap();
    assert_eq!(health.into_inner().message, "ok");
    // No sessions are held for a node before its agent requests a pod.
    assert!(
        harness
            .sts
            .calls()
            .iter()
            .all(|it| it.action != "AssumeRole")
    );
    assert_eq!(one.role("127.1.0.1").await.unwrap(), "reader");
    let credentials = one.credentials("127.1.0.1", "reader").await.unwrap();
    assert_eq!(
        (&*credentials.code, &*credentials.r#type),
        ("Success", "AWS-HMAC")
    );
    assert!(
        credentials.access_key_id.starts_with("ASIA"),
        "{credentials:?}"
    );
    assert!(!credentials.secret_access_key.is_empty() && !credentials.token.is_empty());
    for time in [&credentials.expiration, &credentials.last_updated] {
        assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
    }
    // The same until it is refreshed. A full ARN, or a name with a leading slash, is the same role.
    for same in ["arn:aws:iam::123456789012:role/reader", "/reader"] {
        let again = one.credentials("127.1.0.1", same).await.unwrap();
        assert_eq!(again.access_key_id, credentials.access_key_id);
    }
    let entries = ledger(&broker).await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["accessKeyId"], *credentials.access_key_id);
    assert_eq!(entries[0]["pod"], "one");

    // Denials look like kiam's.
    assert_eq!(one.role("127.1.0.3").await.unwrap(), "");
    assert_eq!(one.role("127.1.0.2").await.unwrap(), "admin");
    for (ip, role) in [
        ("127.1.0.2", "admin"),
        ("127.1.0.1", "writer"),
        ("127.1.0.3", "reader"),
    ] {
        let refused = one.credentials(ip, role).await.unwrap_err();
        assert_eq!(refused.message(), "forbidden by policy", "{ip} {role}");
    }
    eventually("the Event", || async { !harness.kube.events().is_empty() }).await;
    let events = harness.kube.events();
    assert_eq!(
        (events.len(), &events[0]["reason"]),
        (1, &"RoleForbidden".into())
    );

    // The recorder reports who used it.
    assert_eq!(
        metric(&broker, "rolegate_broker_kiam_connections").await,
        Some(1)
    );
    one._connection.abort();
    eventually("its end", || async {
        metric(&broker, "rolegate_broker_kiam_connections").await == Some(0)
    })
    .await;
}

#[tokio::test]
async fn rule_08_kiams_agents_of_one_node_learn_nothing_of_another() {
    let (harness, broker, to) = harness().await;
    let mut one = Kiam::connect(&harness, to, NODE_1).await;
    let mut two = Kiam::connect(&harness, to, NODE_2).await;
    assert_eq!(
        two.credentials("127.2.0.1", "writer").await.unwrap().code,
        "Success"
    );
    // The pod's existence is not revealed.
    let theirs = one.credentials("127.2.0.1", "writer").await.unwrap_err();
    let nobodys = one.credentials("127.9.9.9", "writer").await.unwrap_err();
    assert_eq!(
        (theirs.code(), theirs.message()),
        (nobodys.code(), nobodys.message())
    );
    assert_eq!(
        one.role("127.2.0.1").await.unwrap_err().message(),
        "pod not found"
    );
    assert_eq!(
        one.role("no address").await.unwrap_err().message(),
        "pod not found"
    );

    // Pods on a node are not the node.
    let mut pod = Kiam::connect(&harness, to, Ipv4Addr::new(127, 1, 0, 1)).await;
    let refused = pod.role("127.1.0.1").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // A kubelet that claims another node's address stops service for it, but gets nothing.
    harness.kube.put_pod(agent(1, NODE_2));
    eventually("the clash", || {
        let mut client = two.client.clone();
        async move {
            let request = GetPodRoleRequest {
                ip: "127.2.0.1".into(),
            };
            let refused = client.get_pod_role(request).await.err();
            refused.is_some_and(|it| it.code() == Code::PermissionDenied)
        }
    })
    .await;
    assert_eq!(
        metric(&broker, "rolegate_broker_kiam_connections").await,
        Some(2)
    );
}

#[tokio::test]
async fn threat_02_kiams_agents_get_nothing_from_an_old_picture() {
    let (harness, _broker, to) = stage_of(Clock::system(), |options| {
        let kiam = options.kiam.as_mut().unwrap();
        kiam.max_staleness = Duration::ZERO;
    })
    .await;
    let mut one = Kiam::connect(&harness, to, NODE_1).await;
    let refused = one.role("127.1.0.1").await.unwrap_err();
    assert!(
        refused
            .message()
            .contains("no update from the API server for too long"),
        "{refused}"
    );
}

#[tokio::test]
async fn kiam_agents_get_advice_but_not_the_message_from_sts() {
    let harness = TestBrokers::new().await;
    harness.kube.put_pod(agent(1, NODE_1));
    let mut options = harness.broker_options("broker-a");
    options.decisions.rules.cluster = Some("prod-1".into());
    options.kiam = Some(KiamOptions {
        listen: LOOPBACK,
        client_ca: harness.path("ca.pem"),
        max_staleness: Duration::from_secs(3600),
    });
    let role = "arn:aws:iam::123456789012:role/reader";
    harness.sts.deny_tagging(role, true);
    let broker = harness.start(options).await;
    let to = broker.addresses().kiam.unwrap();
    let mut one = Kiam::connect(&harness, to, NODE_1).await;
    let refused = one.credentials("127.1.0.1", "reader").await.unwrap_err();
    let told = "STS denies role arn:aws:iam::123456789012:role/reader (AccessDenied): the session \
                has tags, so the trust policy of role reader must allow rolegate sts:TagSession in \
                addition to sts:AssumeRole";
    assert_eq!(refused.message(), told);
}

#[tokio::test]
async fn kiams_port_wants_a_certificate_of_kiams_authority() {
    let (harness, broker, to) = harness().await;
    let opened = connect(&harness.tls(None), NODE_1, to).await;
    let (requests, _connection) = opened.unwrap();
    let mut client = KiamServiceClient::with_origin(requests, origin());
    assert!(client.get_health(GetHealthRequest {}).await.is_err());
    // The agents' port does not speak kiam's protocol, and the kiam port is off by default.
    let tls = harness.tls(Some(harness.client_pair("kiam-agent")));
    let (requests, _connection) = connect(&tls, NODE_1, broker.addresses().agents)
        .await
        .unwrap();
    let mut client = KiamServiceClient::with_origin(requests, origin());
    let refused = client.get_health(GetHealthRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let other = harness.broker("broker-b").await;
    assert!(other.addresses().kiam.is_none());
}

#[tokio::test]
async fn rule_04_a_right_withdrawn_while_kiams_agent_waits_is_not_served() {
    let (harness, _broker, to) = harness().await;
    let mut one = Kiam::connect(&harness, to, NODE_1).await;
    let waiting = one.waits_for_sts(&harness).await;
    harness.kube.put_namespace(
        Namespace::new("default").annotation("iam.amazonaws.com/allowed-roles", r#"["reader"]"#),
    );
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.message(), "forbidden by policy");
}

#[tokio::test]
async fn a_waiting_request_is_not_answered_for_the_next_pod_at_its_address() {
    let (harness, _broker, to) = harness().await;
    let mut one = Kiam::connect(&harness, to, NODE_1).await;
    let waiting = one.waits_for_sts(&harness).await;
    // The next pod has the same role, service account and therefore session.
    harness.kube.delete_pod("default", "slow");
    harness.kube.put_pod(pod("next", 1, 4, "writer"));
    let refused = waiting.await.unwrap().unwrap_err();
    assert!(refused.message().contains("changed"), "{refused}");
    harness.sts.set_latency(Duration::ZERO);
    eventually("the next pod's credentials", || {
        let mut one = one.clone();
        async move { one.credentials("127.1.0.4", "writer").await.is_ok() }
    })
    .await;
}

#[tokio::test]
async fn threat_09_a_kiam_connection_does_not_outlive_its_certificate() {
    let (clock, hand) = Clock::ahead();
    let (harness, broker, to) = stage_with(clock).await;
    let pair = harness.client_pair_for("kiam-agent", Duration::from_secs(86_400));
    let mut one = Kiam::with(&harness.tls(Some(pair)), to, NODE_1).await;
    assert_eq!(one.role("127.1.0.1").await.unwrap(), "reader");
    hand.send_replace(Duration::from_secs(86_500));
    let refused = one.role("127.1.0.1").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = one.credentials("127.1.0.1", "reader").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let counted = r#"rolegate_broker_kiam_requests_total{outcome="refused"}"#;
    assert_eq!(metric(&broker, counted).await, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_27_kiams_certificate_from_many_addresses_keeps_no_nodes_agent_out() {
    let (harness, broker, to) = stage_of(Clock::system(), |options| options.connections = 48).await;
    let tls = harness.tls(Some(harness.client_pair("kiam-agent")));
    // Addresses of unknown nodes, and the maximum number of connections of one node.
    let mut held = Vec::new();
    for n in 1..60 {
        let from = Ipv4Addr::new(127, 0, 3, n);
        held.push(connect(&tls, from, to).await.unwrap());
    }
    for _ in 0..12 {
        held.extend(connect(&tls, NODE_1, to).await);
    }
    let of =
        |state: &str| format!("rolegate_broker_connections{{port=\"kiam\",state=\"{state}\"}}");
    let (broker, of) = (&broker, &of);
    eventually("no more than its node's", || async move {
        metric(broker, &of("authenticated")).await == Some(u64::try_from(MAX_PER_NODE).unwrap())
            && metric(broker, &of("unauthenticated")).await <= Some(6)
    })
    .await;
    let mut two = Kiam::connect(&harness, to, NODE_2).await;
    let served = two.credentials("127.2.0.1", "writer").await.unwrap();
    assert_eq!(served.code, "Success");
    assert!(
        broker
            .readiness()
            .report()
            .noted
            .contains_key("kiam connections")
    );
}
