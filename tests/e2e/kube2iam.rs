//! kube2iam's DaemonSet with only the image changed.

use std::net::SocketAddr;

use anyhow::ensure;
use rolegate_testkit::lab::NODE_V4;
use rolegate_testkit::{Cluster, eventually};

use crate::ask;
use crate::fixture::{AgentFixture, DEADLINE, served};

#[tokio::test(flavor = "multi_thread")]
async fn kube2iam_daemonset_flags_work_with_the_image_changed() -> anyhow::Result<()> {
    const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_V4), 8182);
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("kube2iam", cluster).await?;
    let annotations = [("iam.amazonaws.com/allowed-roles", r#"["reader"]"#)];
    cluster
        .create_namespace(&fixture.namespace("a"), &annotations)
        .await?;
    let pods = [fixture.pod("10.1.0.5")?, fixture.pod("10.1.0.6")?];
    for (name, pod, role) in [("reader", &pods[0], "reader"), ("admin", &pods[1], "admin")] {
        cluster
            .run_pod(&fixture.object("a", name, pod).role(role))
            .await?;
    }

    let mut agent = fixture.spawn(&[
        "--app-port=8181",
        "--auto-discover-base-arn",
        "--iptables=true",
        "--host-interface=eni+",
        "--host-ip=10.0.0.1",
        "--node=kube2iam",
        "--namespace-restrictions",
        "--namespace-restriction-format=glob",
        "--iam-role-session-ttl=15m",
        "--backoff-max-elapsed-time=2s",
        "--backoff-max-interval=1s",
        "--cache-resync-period=30m",
        "--resolve-duplicate-cache-ips",
        "--use-regional-sts-endpoint",
        "--metrics-port=8182",
        "--log-level=info",
        "--log-format=text",
        "--debug",
    ])?;
    agent
        .until(DEADLINE, async || {
            let reply = ask::get_at(fixture.lab.node(), METRICS, "/readyz")?;
            ensure!(reply.status == 200, "{}", reply.body);
            Ok(())
        })
        .await?;
    let role = served(&fixture, &pods[0], "reader").await?;
    assert_eq!(role, "arn:aws:iam::123456789012:role/reader");
    let names = ask::get(&pods[0], ask::CREDENTIALS.trim_end_matches('/'))?;
    assert_eq!((names.status, names.body.as_str()), (200, "reader"));
    assert!(
        names.head.to_lowercase().contains("server: ec2ws"),
        "{names:?}"
    );
    assert_eq!(ask::get(&pods[1], ask::CREDENTIALS)?.status, 403);

    // The DaemonSet's probe requests the pods' port at the node's address.
    let probed = (NODE_V4, 8181).into();
    let health = eventually(DEADLINE, async || {
        let reply = ask::get_at(fixture.lab.node(), probed, "/healthz")?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(reply)
    });
    let health = health.await?.json()?;
    assert_eq!(health["hostIP"], "10.0.0.1");
    assert_eq!(health["instanceId"], "i-0de0de0de0de0de0d");

    let store = ask::get_at(fixture.lab.node(), METRICS, "/debug/store")?;
    assert_eq!(store.status, 200);
    let store = store.json()?;
    assert_eq!(store["namespaceByIP"]["10.1.0.5"], fixture.namespace("a"));
    assert_eq!(store["rolesByIP"]["10.1.0.5"], role);
    for (netns, target) in [(&**pods[0], ask::METADATA), (fixture.lab.node(), probed)] {
        for path in ["/debug/store", "/metrics", "/readyz"] {
            let reply = ask::get_at(netns, target, path)?;
            assert!(reply.status >= 400, "{path}: {reply:?}");
        }
    }
    assert!(!fixture.reached("/debug") && !fixture.reached("/metrics"));
    Ok(())
}
