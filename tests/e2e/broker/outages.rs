//! What brokers need goes away and comes back: pods of both nodes ask all the time, and no request
//! fails. What happens meanwhile is there afterwards.

use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_testkit::{Cluster, Moto, Rolegate, eventually};
use tokio::sync::OnceCell;

use super::place::{Node, Place, install};
use crate::ask::{self, CREDENTIALS};
use crate::asking::Asking;
use crate::shim::Sts;
use crate::site::{DEADLINE, Pod, credentials};

const FLAGS: [&str; 1] = ["--layer=namespace=off"];
/// Calls of STS that had no answer.
const UNANSWERED: &str = r#"rolegate_sts_request_duration_seconds_count{outcome="temporary"}"#;

/// Two nodes, each with an agent and a pod that has its role, and their broker.
struct Scene {
    place: Place,
    nodes: [Node; 2],
    pods: [Pod; 2],
    _broker: Rolegate,
    _agents: [Rolegate; 2],
}

impl Scene {
    async fn new(place: Place) -> anyhow::Result<Self> {
        let namespace = place.named("a");
        place.cluster.create_namespace(&namespace, &[]).await?;
        let nodes = [place.node(1).await?, place.node(2).await?];
        let pods = [place.pod(&nodes[0], 5)?, place.pod(&nodes[1], 6)?];
        for ((node, pod), name) in nodes.iter().zip(&pods).zip(["reader", "writer"]) {
            let object = place.object(node, "a", name, pod).role(name);
            place.cluster.run_pod(&object).await?;
        }
        let broker = place.broker(1, &FLAGS).await?;
        let agents = [place.agent(&nodes[0]).await?, place.agent(&nodes[1]).await?];
        place.served(&pods[0], "reader").await?;
        place.served(&pods[1], "writer").await?;
        Ok(Self {
            place,
            nodes,
            pods,
            _broker: broker,
            _agents: agents,
        })
    }

    /// Does this while the pods ask.
    fn asking<T>(&self, work: impl AsyncFnOnce(&Asking) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let [first, second] = &self.pods;
        Asking::all_during(&[(first, "reader"), (second, "writer")], &[], work)
    }

    /// A pod appears on a node.
    async fn appears(&self, node: &Node, last: u8) -> anyhow::Result<Pod> {
        let pod = self.place.pod(node, last)?;
        let name = format!("new-{last}");
        let object = self.place.object(node, "a", &name, &pod).role("fresh");
        self.place.cluster.run_pod(&object).await?;
        Ok(pod)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_sts_is_away() -> anyhow::Result<()> {
    let (moto, next) = tokio::try_join!(Moto::start(), Moto::start())?;
    let sts = Sts::before(&moto).await?;
    // Refreshed after 12 s, or a little more.
    sts.set_life(Duration::from_secs(30));
    let cluster = super::place::cluster().await?;
    let scene = Scene::new(Place::with_sts(cluster, "sts-away", 10, sts).await?).await?;
    let place = &scene.place;
    let before = credentials(&scene.pods[0], "reader")?;
    scene.asking(async |asking| {
        assert_eq!(place.metric(1, UNANSWERED)?, 0);
        drop(moto);
        eventually(DEADLINE, async || {
            ensure!(place.metric(1, UNANSWERED)? > 0, "nothing is refreshed");
            Ok(())
        })
        .await?;
        let new = scene.appears(&scene.nodes[1], 7).await?;
        eventually(DEADLINE, async || {
            let reply = ask::get(&new, &format!("{CREDENTIALS}fresh"))?;
            ensure!(
                reply.status == 503 && reply.body.contains("STS"),
                "{reply:?}"
            );
            Ok(())
        })
        .await?;
        asking.more(20).await?;
        assert_eq!(credentials(&scene.pods[0], "reader")?, before);

        place.sts.lead_to(&next);
        place.served(&new, "fresh").await?;
        eventually(DEADLINE, async || {
            let now = credentials(&scene.pods[0], "reader")?;
            ensure!(now != before, "the session of before");
            Ok(())
        })
        .await?;
        asking.more(20).await
    })
}

/// A cluster of its own, whose API server is stopped.
async fn cluster() -> anyhow::Result<&'static Cluster> {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER
        .get_or_try_init(async || {
            let cluster = Cluster::start().await?;
            install(&cluster).await?;
            Ok(cluster)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_the_api_server_is_away() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let scene = Scene::new(Place::within(cluster, "api-away", 11).await?).await?;
    let place = &scene.place;
    scene.asking(async |asking| {
        // It hangs, and nobody is told.
        cluster.freeze_apiserver()?;
        asking.more(50).await?;
        cluster.thaw_apiserver()?;
        let new = scene.appears(&scene.nodes[0], 7).await?;
        place.served(&new, "fresh").await?;

        cluster.stop_apiserver();
        eventually(DEADLINE, async || {
            let report = place.admin(1, "/readyz?verbose")?;
            ensure!(report.status == 200, "{}", report.body);
            ensure!(report.body.contains("cannot be reached"), "{}", report.body);
            Ok(())
        })
        .await?;
        asking.more(50).await?;
        cluster.start_apiserver().await?;
        for (node, last) in scene.nodes.iter().zip([8, 9]) {
            let new = scene.appears(node, last).await?;
            place.served(&new, "fresh").await?;
        }
        asking.more(20).await
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_their_node_is_cut_off_from_the_brokers() -> anyhow::Result<()> {
    let scene = Scene::new(Place::new("cut-off", 12).await?).await?;
    let (place, [cut, other]) = (&scene.place, &scene.nodes);
    let tells = || {
        let report = cut.admin("/readyz?verbose")?;
        ensure!(report.status == 200, "{}", report.body);
        let mut lines = report.body.lines();
        Ok(lines
            .find(|line| line.contains("broker:"))
            .map(str::to_owned))
    };
    scene.asking(async |asking| {
        assert_eq!(tells()?, None);
        place.cut(cut)?;
        let missed = scene.appears(cut, 7).await?;
        let new = scene.appears(other, 8).await?;
        place.served(&new, "fresh").await?;
        // Nobody closes anything: the agent finds out.
        eventually(DEADLINE, async || {
            tells()?.context("it tells of no trouble")
        })
        .await?;
        asking.more(50).await?;
        assert_eq!(ask::get(&missed, CREDENTIALS)?.status, 404);
        place.mend(cut)?;
        place.served(&missed, "fresh").await?;
        asking.more(20).await
    })
}
