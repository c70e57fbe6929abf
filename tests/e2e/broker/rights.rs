//! An agent without any rights.

use anyhow::{Context, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use rolegate_testkit::eventually;
use serde_json::Value;

use super::harness::BrokerHarness;
use crate::ask::{self, CREDENTIALS};
use crate::fixture::{DEADLINE, no_secrets};
use crate::sdk::boto3;

#[tokio::test(flavor = "multi_thread")]
async fn agent_without_any_right_serves_its_node() -> anyhow::Result<()> {
    let harness = BrokerHarness::new("rights", 1).await?;
    let cluster = harness.cluster;
    let namespace = harness.named("a");
    let allowed = |roles| ("iam.amazonaws.com/allowed-roles", roles);
    cluster
        .create_namespace(&namespace, &[allowed(r#"["reader", "writer"]"#)])
        .await?;
    let node = harness.node(1).await?;
    let [reader, writer, greedy] = [5, 6, 7].map(|last| harness.pod(&node, last).unwrap());
    for (name, role, pod) in [
        ("reader", "reader", &reader),
        ("writer", "writer", &writer),
        ("greedy", "admin", &greedy),
    ] {
        let object = harness.object(&node, "a", name, pod).role(role);
        cluster.run_pod(&object).await?;
    }
    let restrictions = ["--layer=namespace=enforce"];
    let broker = harness.broker(1, &restrictions).await?;
    let agent = harness.agent(&node).await?;

    // Unmodified SDKs get only their pods' roles.
    let session = |role: &str| {
        Some(format!(
            "arn:aws:sts::123456789012:assumed-role/{role}/{namespace}.default"
        ))
    };
    let key = harness.served(&reader, "reader").await?;
    harness.served(&writer, "writer").await?;
    assert_eq!(boto3(&harness.sts, &reader)?, session("reader"));
    assert_eq!(boto3(&harness.sts, &writer)?, session("writer"));
    assert_eq!(boto3(&harness.sts, &greedy)?, None);
    let denied = ask::get(&greedy, CREDENTIALS)?;
    assert_eq!(denied.status, 403, "{denied:?}");
    let other = ask::get(&reader, &format!("{CREDENTIALS}writer"))?;
    assert_eq!(other.status, 403, "{other:?}");

    // The broker reports the denial on the pod.
    let events = Api::<Event>::namespaced(cluster.admin()?, &namespace);
    let event = eventually(DEADLINE, async || {
        let all = events.list(&ListParams::default()).await?.items;
        all.into_iter().next().context("no event yet")
    })
    .await?;
    let regarding = event.regarding.clone().unwrap_or_default();
    assert_eq!(regarding.name.as_deref(), Some("greedy"));
    assert_eq!(event.reason.as_deref(), Some("RoleForbidden"));
    let told = (event.reporting_controller, event.reporting_instance);
    let teller = |name: &str| Some(name.to_owned());
    assert_eq!(told, (teller("rolegate-broker"), teller("broker-1")));

    // The ledger finds the pod of an access key.
    let record = eventually(DEADLINE, async || {
        let answer = harness.ledger(1, &["--key", &key, "--output=json"])?;
        ensure!(answer.status.success(), "{answer:?}");
        Ok(serde_json::from_slice::<Value>(&answer.stdout)?)
    })
    .await?;
    let record = &record[0];
    assert_eq!(record["pod"], "reader", "{record}");
    assert_eq!(record["namespace"], *namespace, "{record}");
    assert_eq!(record["node"], *node.name, "{record}");
    assert_eq!(record["role"], "arn:aws:iam::123456789012:role/reader");
    let unknown = harness.ledger(1, &["--key", "ASIANOBODYS"])?;
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");

    // A revoked right ends at once, whatever sessions the agent has.
    cluster
        .annotate_namespace(&namespace, &[(allowed("").0, Some(r#"["admin"]"#))])
        .await?;
    eventually(DEADLINE, async || {
        let reply = ask::get(&reader, &format!("{CREDENTIALS}reader"))?;
        ensure!(reply.status == 403, "{reply:?}");
        Ok(())
    })
    .await?;
    harness.served(&greedy, "admin").await?;
    cluster.delete_pod(&namespace, "greedy").await?;
    eventually(DEADLINE, async || {
        let reply = ask::get(&greedy, &format!("{CREDENTIALS}admin"))?;
        ensure!(reply.status == 404, "{reply:?}");
        Ok(())
    })
    .await?;

    // The agent called only the broker, and did not request its node's role.
    assert!(!node.called_out(), "{}", agent.log());
    let asked = node.imds.requests();
    let paths: Vec<&str> = asked.iter().map(|request| &*request.path).collect();
    assert!(!paths.iter().any(|it| it.contains("iam")), "{paths:?}");
    no_secrets(&(agent.log() + &broker.log()))
}
