//! Two brokers, of which one goes away: no pod notices.

use anyhow::{Context, ensure};
use rolegate_testkit::{Rolegate, eventually};

use super::place::{Node, Place};
use crate::asking::Asking;
use crate::site::DEADLINE;

const FLAGS: [&str; 1] = ["--layer=namespace=off"];

const STREAMS: [&str; 2] = [
    r#"rolegate_broker_streams{use="serving"}"#,
    r#"rolegate_broker_streams{use="warm"}"#,
];

/// Streams of agents to a broker: serving, and warm.
fn streams(place: &Place, broker: u8) -> anyhow::Result<(u64, u64)> {
    let [serving, warm] = STREAMS.map(|series| place.metric(broker, series));
    Ok((serving?, warm?))
}

/// Waits until the node's agent has one stream to each broker; gives the one that serves.
async fn settled(place: &Place) -> anyhow::Result<u8> {
    eventually(DEADLINE, async || {
        let both = (streams(place, 1)?, streams(place, 2)?);
        match both {
            ((1, 0), (0, 1)) => Ok(1),
            ((0, 1), (1, 0)) => Ok(2),
            other => anyhow::bail!("streams are {other:?}"),
        }
    })
    .await
}

/// A pod that appears gets its role.
async fn appears(place: &Place, node: &Node, last: u8) -> anyhow::Result<()> {
    let pod = place.pod(node, last)?;
    let object = place.object(node, "a", &format!("new-{last}"), &pod);
    place.cluster.run_pod(&object.role("fresh")).await?;
    place.served(&pod, "fresh").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_brokers_go_and_come() -> anyhow::Result<()> {
    let place = Place::new("failover", 2).await?;
    place
        .cluster
        .create_namespace(&place.named("a"), &[])
        .await?;
    let node = place.node(1).await?;
    let pod = place.pod(&node, 5)?;
    let object = place.object(&node, "a", "asking", &pod).role("reader");
    place.cluster.run_pod(&object).await?;
    let first = place.broker(1, &FLAGS).await?;
    let second = place.broker(2, &FLAGS).await?;
    let agent = place.agent(&node).await?;
    place.served(&pod, "reader").await?;

    let brokers = [first, second];
    Asking::during(&pod, "reader", &[], async |asking| {
        fail_over(&place, &node, asking, brokers).await
    })?;
    let log = agent.log();
    ensure!(!log.contains("ERROR"), "{log}");
    Ok(())
}

async fn fail_over(
    place: &Place,
    node: &Node,
    asking: &Asking,
    mut brokers: [Rolegate; 2],
) -> anyhow::Result<()> {
    // Killed: its agents go over to the other at once.
    let serving = settled(place).await?;
    asking.more(50).await?;
    let killed = brokers.get_mut(usize::from(serving) - 1);
    killed.context("a broker")?.kill();
    let other = 3 - serving;
    appears(place, node, 6).await?;
    assert_eq!(streams(place, other)?.0, 1);
    asking.more(50).await?;
    // All of them: what is there is served on.
    brokers.iter_mut().for_each(|broker| broker.kill());
    asking.more(50).await?;
    for (number, broker) in (1..).zip(&mut brokers) {
        *broker = place.broker(number, &FLAGS).await?;
    }
    appears(place, node, 7).await?;

    // A rolling restart: one after the other, when there is a stream to the one before.
    for (number, broker) in (1..).zip(&mut brokers) {
        settled(place).await?;
        ensure!(broker.stop().await?.success(), "{}", broker.log());
        asking.more(50).await?;
        *broker = place.broker(number, &FLAGS).await?;
        appears(place, node, 10 + number).await?;
    }
    settled(place).await?;
    asking.more(50).await
}
