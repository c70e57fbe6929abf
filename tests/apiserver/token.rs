//! The owner of a token, according to the API server's review and the token itself.

use jiff::{SignedDuration, Timestamp};
use rolegate_kube::token_review::review;
use rolegate_testkit::{Cluster, TestPod};

#[tokio::test]
async fn a_projected_token_says_its_pod_and_its_end() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.create_namespace("tokens", &[]).await?;
    cluster
        .create_node("tokens-node", [192, 0, 2, 1].into())
        .await?;
    let pod = TestPod::new("tokens", "agent", "tokens-node");
    let pod = cluster.run_pod(&pod).await?;
    let before = Timestamp::now();
    let token = cluster.pod_token(&pod, "rolegate").await?;
    let reviewed = review(cluster.admin()?, &token, "rolegate").await;
    let reviewed = reviewed.map_err(anyhow::Error::msg)?;
    assert!(reviewed.authenticated, "{reviewed:?}");
    assert_eq!(reviewed.pod_uid, pod.metadata.uid);
    assert_eq!(reviewed.node_name.as_deref(), Some("tokens-node"));
    // The token was requested for an hour.
    let until = reviewed.until.expect("a token without end");
    let lives = until.duration_since(before);
    let hour = SignedDuration::from_hours(1);
    assert!(
        (lives - hour).abs() < SignedDuration::from_mins(5),
        "{lives}"
    );
    Ok(())
}
