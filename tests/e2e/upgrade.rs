//! A new agent takes over from the old one while pods continuously send requests.

use anyhow::ensure;
use rolegate_testkit::{Cluster, Rolegate};

use crate::ask::{self, CREDENTIALS};
use crate::asking::Asking;
use crate::fixture::{AgentFixture, DEADLINE, served};

#[tokio::test(flavor = "multi_thread")]
async fn upgrade_without_a_gap() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("upgrade", cluster).await?;
    cluster
        .create_namespace(&fixture.namespace("a"), &[])
        .await?;
    let pod = fixture.pod("10.1.0.5")?;
    cluster
        .run_pod(&fixture.object("a", "reader", &pod).role("reader"))
        .await?;
    // An agent that hands over must leave the rules in place despite --redirect-remove-at-exit.
    let flags = ["--imds-v2=required", "--redirect-remove-at-exit"];
    let old = fixture.ready_agent(&["--redirect-remove-at-exit"]).await?;
    served(&fixture, &pod, "reader").await?;
    let token = ask::token(&pod)?;

    let header = ("X-aws-ec2-metadata-token", token.as_str());
    let mut new = Asking::during(&pod, "reader", &[header], async |asking| {
        take_over(&fixture, asking, old, &flags).await
    })?;
    // The new agent responds, and the rules are still in place.
    assert_eq!(ask::get(&pod, CREDENTIALS)?.status, 401);
    assert!(
        fixture
            .lab
            .node()
            .exec("nft list table inet rolegate")?
            .contains("8181")
    );
    assert_eq!(ask::get(&pod, "/latest/user-data")?.status, 401);
    assert!(!fixture.reached("user-data"));
    assert!(new.stop().await?.success());
    Ok(())
}

/// Starts the next agent, and stops the old one when the next is ready, as a rolling update does.
async fn take_over(
    fixture: &AgentFixture,
    asking: &Asking,
    mut old: Rolegate,
    flags: &[&str],
) -> anyhow::Result<Rolegate> {
    asking.more(50).await?;
    let all: Vec<&str> = ["--redirect=nftables"]
        .iter()
        .chain(flags)
        .copied()
        .collect();
    let mut new = fixture.agent(&all)?;
    new.wait_for_line("took over", DEADLINE).await?;
    fixture.ready(&mut new).await?;
    asking.more(50).await?;
    ensure!(
        old.exited()?.is_none(),
        "it left by itself: it would be started again\n{}",
        old.log()
    );
    let status = old.stop().await?;
    ensure!(status.success(), "the old agent ended with {status}");
    asking.more(50).await?;
    Ok(new)
}
