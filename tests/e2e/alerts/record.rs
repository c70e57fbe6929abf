//! The metrics of the real processes at work: webhook, controller, a standalone agent, a broker and
//! its agent, and of the API server that calls the webhook.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use rolegate_testkit::lab::Namespace;
use rolegate_testkit::{Cluster, eventually};

use crate::admission::harness::{WebhookHarness, alone};
use crate::ask::{self, ADMIN, CREDENTIALS};
use crate::broker::harness::BrokerHarness;
use crate::fixture::{AgentFixture, DEADLINE};

/// The name of the API server, whose metrics are not ours to lint.
pub(super) const API_SERVER: &str = "the API server";
/// A configuration in which one layer is enforced and one is in audit mode.
const RULES: &str = r#"
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: { name: cluster }
spec:
  baseRoleArn: "arn:aws:iam::123456789012:role/"
  layers: { namespace: audit, grants: enforce, rego: "off" }
"#;

/// Returns the metrics of each process, in the text format.
pub(super) async fn all() -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut all = admission().await?;
    all.extend(broker().await?);
    Ok(all)
}

/// Reads metrics from inside a namespace once they contain each of these series.
async fn metrics(netns: &Namespace, port: SocketAddr, series: &[&str]) -> anyhow::Result<String> {
    let text = [("Accept", "text/plain")];
    eventually(DEADLINE, async || {
        let reply = ask::request(netns, port, "GET", "/metrics", &text)?;
        for series in series {
            ensure!(reply.body.contains(series), "no {series} in {}", reply.body);
        }
        Ok(reply.body)
    })
    .await
}

/// Returns the metrics of webhook, controller, API server and a standalone agent.
async fn admission() -> anyhow::Result<Vec<(&'static str, String)>> {
    let _alone = alone().await?;
    let mut harness = WebhookHarness::start(Cluster::start().await?, RULES).await?;
    let fixture = AgentFixture::new("alerts", &harness.cluster).await?;
    let _agent = fixture.ready_agent(&[]).await?;
    let agent = metrics(
        fixture.lab.node(),
        ADMIN,
        &[
            "rolegate_redirect_in_place 1",
            "rolegate_kube_watch_age_seconds{",
        ],
    );
    let mut all = vec![("the standalone agent", agent.await?)];

    let controller = eventually(DEADLINE, async || {
        let metrics = harness.test_admission.controller_metrics().await?;
        ensure!(
            metrics.contains("rolegate_leader_election_status 1"),
            "{metrics}"
        );
        Ok(metrics)
    });
    all.push(("the controller", body(&controller.await?)?));
    all.push((
        "the webhook",
        body(&harness.test_admission.metrics().await?)?,
    ));

    harness.cluster.create_namespace("alerts", &[]).await?;
    harness.test_admission.kill_admission();
    all.push((API_SERVER, failed_calls(&harness).await?));
    Ok(all)
}

/// Returns the API server's metrics about webhooks once a call has failed.
async fn failed_calls(harness: &WebhookHarness) -> anyhow::Result<String> {
    eventually(DEADLINE, async || {
        harness.try_pod("alerts", "reader").await?;
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let metrics = harness.cluster.admin()?.request_text(request).await?;
        let ours = metrics
            .lines()
            .filter(|line| line.contains("apiserver_admission_webhook_"));
        let ours: String = ours.flat_map(|line| [line, "\n"]).collect();
        ensure!(
            ours.contains("error_type=\"calling_webhook_error\""),
            "{ours}"
        );
        Ok(ours)
    })
    .await
}

/// Returns the body of an HTTP response.
fn body(response: &str) -> anyhow::Result<String> {
    let (_, body) = response.split_once("\r\n\r\n").context("no head")?;
    Ok(body.to_owned())
}

/// Returns the metrics of a broker and its agent, which serves one pod and denies another.
async fn broker() -> anyhow::Result<Vec<(&'static str, String)>> {
    let harness = BrokerHarness::new("alerts", 44).await?;
    let namespace = harness.named("a");
    let allowed = [("iam.amazonaws.com/allowed-roles", r#"["reader"]"#)];
    harness
        .cluster
        .create_namespace(&namespace, &allowed)
        .await?;
    let node = harness.node(1).await?;
    let (reader, greedy) = (harness.pod(&node, 5)?, harness.pod(&node, 6)?);
    for (role, pod) in [("reader", &reader), ("admin", &greedy)] {
        let object = harness.object(&node, "a", role, pod).role(role);
        harness.cluster.run_pod(&object).await?;
    }
    let layers = ["--layer=namespace=enforce", "--layer=grants=off"];
    let _broker = harness.broker(1, &layers).await?;
    let _agent = harness.agent(&node).await?;
    harness.served(&reader, "reader").await?;
    let denied = ask::get(&greedy, CREDENTIALS)?;
    ensure!(denied.status == 403, "{denied:?}");

    let port = SocketAddr::from(([10, 9, 0, 1], 9092));
    let broker = metrics(
        harness.lab.node(),
        port,
        &[
            "rolegate_broker_streams{use=\"serving\"} 1",
            "closed_total{port=\"agents\"",
        ],
    );
    let agent = metrics(
        node.lab.node(),
        ADMIN,
        &[
            "result=\"denied\"} ",
            "rolegate_session_earliest_expiration",
        ],
    );
    Ok(vec![
        ("the broker", broker.await?),
        ("the broker's agent", agent.await?),
    ])
}
