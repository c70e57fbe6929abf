//! A stolen node: an attacker with all secrets of node 1, including its agent's token and its
//! kubelet's rights, gets the credentials of node 1's own pods, and none of node 2.

use anyhow::{Context, ensure};
use k8s_openapi::api::authentication::v1::BoundObjectReference;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use rolegate_proto::v1::{self, from_agent, outcome, pod, to_agent};
use rolegate_proto::wire;
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Rolegate, TestPod, eventually};
use serde_json::{Value, json};

use super::harness::{AUDIENCE, BrokerHarness, HOME, Node};
use super::stream::{Stream, refused};
use crate::fixture::{DEADLINE, Pod};
use crate::sdk::boto3;

const ROLE: &str = "iam.amazonaws.com/role";

/// Two nodes with one pod each: `web` may have the role reader, `job` the role writer.
struct Fixture {
    harness: BrokerHarness,
    namespace: String,
    nodes: [Node; 2],
    /// The network namespaces of `web` and `job`.
    pods: [Pod; 2],
    _broker: Rolegate,
}

impl Fixture {
    async fn new(name: &'static str, third: u8) -> anyhow::Result<Self> {
        let harness = BrokerHarness::new(name, third).await?;
        let cluster = harness.cluster;
        let namespace = harness.named("a");
        cluster.create_namespace(&namespace, &[]).await?;
        let nodes = [harness.node(1).await?, harness.node(2).await?];
        let pods = [harness.pod(&nodes[0], 5)?, harness.pod(&nodes[1], 6)?];
        for (((pod, name), role), node) in pods
            .iter()
            .zip(["web", "job"])
            .zip(["reader", "writer"])
            .zip(&nodes)
        {
            cluster.create_service_account(&namespace, name).await?;
            let grant = json!({
                "apiVersion": "rolegate.dev/v1alpha1",
                "kind": "RoleGrant",
                "metadata": { "name": format!("{namespace}-{name}") },
                "spec": {
                    "roles": [role],
                    "subjects": [{ "namespaces": [namespace], "serviceAccounts": [name] }],
                },
            });
            cluster.apply_manifest(&grant.to_string()).await?;
            let object = harness.object(node, "a", name, pod);
            let object = object.role(role).service_account(name);
            cluster.run_pod(&object).await?;
        }
        let layers = "--layer=namespace=off,grants=enforce";
        Ok(Self {
            _broker: harness.broker(1, &[layers]).await?,
            harness,
            namespace,
            nodes,
            pods,
        })
    }

    /// Opens a stream as node 1's agent does, and receives the node's pods.
    async fn stream(&self) -> anyhow::Result<Stream> {
        let node = &self.nodes[0];
        let mut stream =
            Stream::open(&self.harness, node.lab.node(), &node.name, &node.token).await?;
        stream
            .until("welcome", |body| matches!(body, to_agent::Body::Welcome(_)))
            .await?;
        stream.send(from_agent::Body::Activate(v1::Activate {}))?;
        let complete =
            |body: &to_agent::Body| matches!(body, to_agent::Body::Update(it) if it.complete);
        stream.until("the whole picture", complete).await?;
        Ok(stream)
    }

    /// Writes a pod's status, with annotations, as the kubelet of node 1.
    async fn rewrite(&self, pod: &str, patch: &Value) -> anyhow::Result<Value> {
        let kubelet = self.nodes[0].kubelet(self.harness.cluster)?;
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/status", self.namespace);
        kubelet
            .patch(&path, PatchKind::Merge, patch)
            .await?
            .object()
    }

    /// Waits until the stream contains a pod in the wanted state.
    async fn told(
        &self,
        stream: &mut Stream,
        pod: &str,
        wanted: impl Fn(&v1::Pod) -> bool,
    ) -> anyhow::Result<()> {
        let is = |body: &to_agent::Body| match body {
            to_agent::Body::Update(update) => {
                update.pods.iter().any(|it| it.name == pod && wanted(it))
            }
            _ => false,
        };
        stream.until(pod, is).await
    }
}

fn is_allowed(entry: &v1::Pod) -> bool {
    matches!(entry.authorization, Some(pod::Authorization::Allowed(_)))
}

fn is_denied(entry: &v1::Pod) -> bool {
    matches!(entry.authorization, Some(pod::Authorization::Denied(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_prove_nothing_open_no_stream() -> anyhow::Result<()> {
    let fixture = Box::pin(Fixture::new("tokens", 3)).await?;
    let (harness, cluster) = (&fixture.harness, fixture.harness.cluster);
    let [own, other] = &fixture.nodes;
    let gone = TestPod::new(HOME, "agent-gone", &own.name).service_account("rolegate-agent");
    let gone = cluster.create_pod(&gone).await?;
    let of_gone = cluster.pod_token(&gone, AUDIENCE).await?;
    cluster.delete_pod(HOME, "agent-gone").await?;
    let over = TestPod::new(HOME, "agent-over", &own.name).service_account("rolegate-agent");
    let over = cluster.run_pod(&over).await?;
    let of_over = cluster.pod_token(&over, AUDIENCE).await?;
    cluster
        .set_pod_status(HOME, "agent-over", "Failed", &[])
        .await?;
    let pods =
        Api::<k8s_openapi::api::core::v1::Pod>::namespaced(cluster.admin()?, &fixture.namespace);
    let of_web = cluster.pod_token(&pods.get("web").await?, AUDIENCE).await?;
    let minted = async |bound| {
        cluster
            .request_token(HOME, "rolegate-agent", AUDIENCE, bound)
            .await
    };
    let to_node = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(other.name.clone()),
        uid: Some(other.uid.clone()),
    };
    let (head, _) = own.token.rsplit_once('.').context("no JWT")?;
    let forged = format!("{head}.{}", "A".repeat(342));
    let elsewhere = cluster.pod_token(&own.agent, "somebody-else").await?;
    let for_the_api_server = cluster.pod_token(&own.agent, &cluster.url()).await?;
    // A client that may request tokens in rolegate's namespace gets a token of the other node's
    // agent.
    let stolen = cluster.pod_token(&other.agent, AUDIENCE).await?;
    let here = own.lab.node();
    let table = [
        (
            "its own, for another node",
            here,
            &*other.name,
            &*own.token,
            "node",
        ),
        ("forged", here, &own.name, &forged, "unknown"),
        ("of a deleted pod", here, &own.name, &of_gone, "gone"),
        ("of a pod that is over", here, &own.name, &of_over, "gone"),
        (
            "for another audience",
            here,
            &own.name,
            &elsewhere,
            "audience",
        ),
        (
            "for the API server",
            here,
            &own.name,
            &for_the_api_server,
            "audience",
        ),
        (
            "of another service account",
            here,
            &own.name,
            &of_web,
            "account",
        ),
        (
            "bound to nothing",
            here,
            &other.name,
            &minted(None).await?,
            "unbound",
        ),
        (
            "bound to a node",
            here,
            &other.name,
            &minted(Some(to_node)).await?,
            "unbound",
        ),
        (
            "of another node's agent",
            here,
            &other.name,
            &stolen,
            "address",
        ),
        (
            "of another node's agent, for its own",
            here,
            &own.name,
            &stolen,
            "node",
        ),
        (
            "its own, on another node",
            other.lab.node(),
            &own.name,
            &own.token,
            "address",
        ),
        ("none", here, &own.name, "", "nothing"),
    ];
    for (what, from, node, token, reason) in table {
        let series = format!(r#"rolegate_broker_refused_total{{reason="{reason}"}}"#);
        let before = harness.metric(1, &series)?;
        let why = refused(harness, from, node, token).await;
        let why = why.with_context(|| format!("a token {what}"))?;
        let after = harness.metric(1, &series)?;
        ensure!(after == before + 1, "a token {what}: {reason}, not {why}");
    }
    // No session was fetched, because no stream was activated.
    assert!(harness.sts.assumed().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stolen_node_gets_only_its_own_pods() -> anyhow::Result<()> {
    let fixture = Box::pin(Fixture::new("stolen", 4)).await?;
    let (harness, cluster) = (&fixture.harness, fixture.harness.cluster);
    let [web, job] = &fixture.pods;
    let _agent = harness.agent(&fixture.nodes[1]).await?;
    let key = harness.served(job, "writer").await?;
    let pods =
        Api::<k8s_openapi::api::core::v1::Pod>::namespaced(cluster.admin()?, &fixture.namespace);
    let uid = |pod: k8s_openapi::api::core::v1::Pod| pod.uid().context("a pod without UID");
    let (own_uid, other_uid) = (uid(pods.get("web").await?)?, uid(pods.get("job").await?)?);

    // First everything that an unmodified agent gets, then further requests.
    let mut stream = fixture.stream().await?;
    let pods = stream.pods();
    let names: Vec<_> = pods.keys().map(String::as_str).collect();
    assert_eq!(names, [&*fixture.nodes[0].agent.name_any(), "web"]);
    assert!(is_allowed(&pods["web"]));
    for session in 0..50 {
        stream.send(from_agent::Body::PrioritizeSession(v1::PrioritizeSession {
            session,
        }))?;
    }
    lie(&stream, [&own_uid, &other_uid], &key)?;

    // The kubelet can write annotations of its own pods; the grants decide about them.
    fixture
        .rewrite(
            "web",
            &json!({ "metadata": { "annotations": { ROLE: "writer" } } }),
        )
        .await?;
    fixture.told(&mut stream, "web", is_denied).await?;
    fixture
        .rewrite(
            "web",
            &json!({ "metadata": { "annotations": { ROLE: "reader" } } }),
        )
        .await?;
    fixture.told(&mut stream, "web", is_allowed).await?;
    mirror(&fixture, &mut stream).await?;

    // The other pod's address: it is reported, and does not affect the other node.
    let alarm = "rolegate_broker_address_claimed_twice_total";
    let before = harness.metric(1, alarm)?;
    let address = json!({ "podIP": job.v4, "podIPs": [{ "ip": job.v4 }] });
    fixture
        .rewrite("web", &json!({ "status": address }))
        .await?;
    let claims = wire::address_bytes(job.v4.into());
    fixture
        .told(&mut stream, "web", |it| it.addresses == [&claims[..]])
        .await?;
    assert!(harness.metric(1, alarm)? > before);
    let arn = format!(
        "arn:aws:sts::123456789012:assumed-role/writer/{}.job",
        fixture.namespace
    );
    assert_eq!(boto3(&harness.sts, job)?, Some(arn));

    // Changes on the other node, then one on its own node: earlier changes of the other node would
    // have been sent first.
    cluster
        .annotate_pod(&fixture.namespace, "job", &[(ROLE, None)])
        .await?;
    eventually(DEADLINE, async || {
        let reply = crate::ask::get(job, crate::ask::CREDENTIALS)?;
        ensure!(reply.status == 404, "{reply:?}");
        Ok(())
    })
    .await?;
    let own = json!({ "podIP": web.v4, "podIPs": [{ "ip": web.v4 }] });
    fixture.rewrite("web", &json!({ "status": own })).await?;
    let own = wire::address_bytes(web.v4.into());
    fixture
        .told(&mut stream, "web", |it| it.addresses == [&own[..]])
        .await?;
    let heard = stream.text();
    let other = &fixture.nodes[1];
    let session = format!("{}.job", fixture.namespace);
    for secret in [&key, &other_uid, &other.name, &other.uid, &session] {
        ensure!(!heard.contains(secret), "{secret} in {heard}");
    }
    let address = wire::address_bytes(job.v6.into());
    let told = |it: &v1::Update| it.pods.iter().any(|it| it.addresses.contains(&address));
    assert!(!stream.updates().any(told));
    // The text that was searched has the secrets of the node's own session.
    let own = stream
        .updates()
        .flat_map(|update| &update.sessions)
        .find_map(|session| session.credentials.as_ref())
        .context("no session was sent")?;
    assert!(heard.contains(&own.secret_access_key), "{heard}");
    assert!(!stream.pods().contains_key("job"));

    // The attacker's reports about other pods are not recorded.
    let records = harness.ledger(1, &["--key", &key, "--output=json"])?;
    let records: Value = serde_json::from_slice(&records.stdout)?;
    let records = records.as_array().context("no list")?;
    let of_job = |record: &Value| record["pod"] == "job" && record["node"] == *other.name;
    assert!(
        records.len() == 1 && records.iter().all(of_job),
        "{records:?}"
    );
    let events = Api::<Event>::namespaced(cluster.admin()?, &fixture.namespace);
    let events = events.list(&ListParams::default()).await?.items;
    let named = |event: &Event| event.regarding.as_ref().and_then(|it| it.name.clone());
    assert!(events.iter().all(|it| named(it).as_deref() != Some("job")));
    ends(&fixture, stream).await
}

/// Reports sessions and pods that do not belong to the node.
fn lie(stream: &Stream, uids: [&str; 2], key: &str) -> anyhow::Result<()> {
    let outcomes = [
        outcome::Result::Served(key.into()),
        outcome::Result::Denied(v1::Empty {}),
        outcome::Result::Failing(v1::Empty {}),
        outcome::Result::Served("ASIAINVENTED".into()),
    ];
    let outcomes = uids.into_iter().flat_map(|uid| {
        outcomes.clone().map(|outcome| v1::Outcome {
            pod_uid: uid.into(),
            result: Some(outcome),
            service_account: None,
        })
    });
    let outcomes = outcomes.collect();
    stream.send(from_agent::Body::Outcomes(v1::Outcomes { outcomes }))
}

/// A mirror pod with a role and another pod's address gets no credentials, and cannot become
/// another kind of pod.
async fn mirror(fixture: &Fixture, stream: &mut Stream) -> anyhow::Result<()> {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    let node = &fixture.nodes[0];
    let kubelet = node.kubelet(fixture.harness.cluster)?;
    let path = format!("/api/v1/namespaces/{}/pods", fixture.namespace);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "mirror",
            "annotations": { MIRROR: "abc", ROLE: "reader" },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "controller": true,
                "name": node.name, "uid": node.uid,
            }],
        },
        "spec": {
            "nodeName": node.name,
            "containers": [{ "name": "main", "image": "none" }],
        },
    });
    kubelet.post(&path, &pod).await?.object()?;
    fixture.told(stream, "mirror", is_denied).await?;
    let address = fixture.pods[1].v4;
    let status = json!({
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
    });
    let changes = [
        json!({ "status": status }),
        json!({ "metadata": { "annotations": { ROLE: "writer" } } }),
    ];
    for change in &changes {
        fixture.rewrite("mirror", change).await?;
    }
    let unmasked = json!({ "metadata": { "annotations": { MIRROR: null } } });
    let unmasked = fixture.rewrite("mirror", &unmasked).await;
    ensure!(unmasked.is_err(), "it is no longer a mirror: {unmasked:?}");
    fixture
        .told(stream, "mirror", |it| {
            format!("{it:?}").contains("role/writer") && is_denied(it) && it.addresses.is_empty()
        })
        .await
}

/// A stream ends if the agent authenticates again with another agent's token, and when its agent's
/// pod is deleted.
async fn ends(fixture: &Fixture, mut stream: Stream) -> anyhow::Result<()> {
    let [own, other] = &fixture.nodes;
    let mut second = fixture.stream().await?;
    let token = other.token.clone();
    second.send(from_agent::Body::Reauthenticate(v1::Reauthenticate {
        token,
    }))?;
    let status = second.end().await?;
    ensure!(status.code() == tonic::Code::Unauthenticated, "{status:?}");

    let name = own.agent.name_any();
    fixture.harness.cluster.delete_pod(HOME, &name).await?;
    let status = stream.end().await?;
    ensure!(
        status
            .message()
            .contains("does not exist or has not been observed"),
        "{status:?}"
    );
    refused(&fixture.harness, own.lab.node(), &own.name, &own.token).await?;
    Ok(())
}
