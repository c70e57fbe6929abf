//! An agent whose API server starts late, stops and returns.

use anyhow::ensure;
use rolegate_testkit::{Cluster, eventually};

use crate::ask;
use crate::fixture::{AgentFixture, DEADLINE, credentials, served};

#[tokio::test(flavor = "multi_thread")]
async fn agent_survives_api_server_restart_and_slow_start() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let fixture = AgentFixture::new("slow", &cluster).await?;
    cluster
        .create_namespace(&fixture.namespace("a"), &[])
        .await?;
    let pod = fixture.pod("10.1.0.5")?;
    cluster
        .run_pod(&fixture.object("a", "first", &pod).role("first"))
        .await?;
    cluster.stop_apiserver();

    let mut agent = fixture.agent(&["--redirect=nftables"])?;
    let reasons = agent
        .until(DEADLINE, async || {
            let reply = fixture.admin("/readyz")?;
            ensure!(
                !reply.body.contains("redirect is not installed"),
                "{}",
                reply.body
            );
            ensure!(
                !reply.body.contains("identity is not known"),
                "{}",
                reply.body
            );
            Ok(reply)
        })
        .await?;
    assert_eq!(reasons.status, 503, "{}", reasons.body);
    for waiting in [
        "workloads are not loaded",
        "namespaces: the API server cannot be reached",
    ] {
        assert!(reasons.body.contains(waiting), "{}", reasons.body);
    }
    // Pods also need paths of the metadata service other than roles; those work already.
    let region = ask::get(&pod, "/latest/meta-data/placement/region")?;
    assert_eq!((region.status, region.body.as_str()), (200, "eu-west-1"));
    let early = ask::get(&pod, ask::CREDENTIALS)?;
    assert_eq!(early.status, 503, "{early:?}");
    assert!(!fixture.reached("user-data") && ask::get(&pod, "/latest/user-data")?.status == 403);

    cluster.start_apiserver().await?;
    fixture.ready(&mut agent).await?;
    served(&fixture, &pod, "first").await?;

    cluster.stop_apiserver();
    agent
        .until(DEADLINE, async || {
            let reply = fixture.admin("/readyz?verbose")?;
            credentials(&pod, "first")?;
            ensure!(reply.body.contains("pods:"), "{}", reply.body);
            // Known sessions are still served, so that no pod is interrupted.
            ensure!(reply.status == 200, "{}", reply.body);
            Ok(())
        })
        .await?;
    cluster.start_apiserver().await?;
    let second = fixture.pod("10.1.0.6")?;
    cluster
        .run_pod(&fixture.object("a", "second", &second).role("second"))
        .await?;
    served(&fixture, &second, "second").await?;
    eventually(DEADLINE, async || {
        let reply = fixture.admin("/readyz?verbose")?;
        ensure!(!reply.body.contains("pods:"), "{}", reply.body);
        credentials(&pod, "first")
    })
    .await?;
    Ok(())
}
