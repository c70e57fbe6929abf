//! A new agent takes over from the old one while pods go on asking.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::ensure;
use rolegate_testkit::lab::Namespace;
use rolegate_testkit::{Cluster, Rolegate, eventually};
use tokio::runtime::Handle;

use crate::ask::{self, CREDENTIALS, METADATA};
use crate::site::{DEADLINE, Site, served};

/// A pod that asks on and on, over a new connection each time, with a token from long ago.
struct Asking {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Asking {
    fn on(&self, pod: &Namespace, token: &str) {
        let path = format!("{CREDENTIALS}reader");
        let headers = [("X-aws-ec2-metadata-token", token)];
        while !self.stop.load(Ordering::Relaxed) {
            match ask::request(pod, METADATA, "GET", &path, &headers) {
                Ok(reply) if reply.status == 200 && reply.body.contains("AccessKeyId") => {
                    self.answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(reply) => self.failed.lock().unwrap().push(format!("{reply:?}")),
                Err(error) => self.failed.lock().unwrap().push(format!("{error:#}")),
            }
        }
    }

    /// Waits until as many more requests were answered; the first that fails ends the wait.
    async fn more(&self, count: usize) -> anyhow::Result<()> {
        let enough = self.answered.load(Ordering::SeqCst) + count;
        eventually(DEADLINE, async || {
            let failed = !self.failed.lock().unwrap().is_empty();
            let answered = self.answered.load(Ordering::SeqCst);
            ensure!(failed || answered >= enough, "{answered} of {enough}");
            Ok(())
        })
        .await?;
        let failed = self.failed.lock().unwrap();
        ensure!(failed.is_empty(), "a request failed: {failed:?}");
        Ok(())
    }
}

/// Ends the asking however a test goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrade_without_a_gap() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let site = Site::new("upgrade", cluster).await?;
    cluster.create_namespace(&site.namespace("a"), &[]).await?;
    let pod = site.pod("10.1.0.5")?;
    cluster
        .run_pod(&site.object("a", "reader", &pod).role("reader"))
        .await?;
    // Whoever hands over must not take the rules away, though told to do so at its end.
    let flags = ["--imds-v2=required", "--redirect-remove-at-exit"];
    let old = site.ready_agent(&["--redirect-remove-at-exit"]).await?;
    served(&site, &pod, "reader").await?;
    let token = ask::token(&pod)?;

    let asking = Asking {
        stop: AtomicBool::new(false),
        answered: AtomicUsize::new(0),
        failed: Mutex::default(),
    };
    let runtime = Handle::current();
    let taken_over = tokio::task::block_in_place(|| {
        thread::scope(|scope| {
            let _stop = Stop(&asking.stop);
            for _ in 0..4 {
                scope.spawn(|| asking.on(&pod, &token));
            }
            runtime.block_on(take_over(&site, &asking, old, &flags))
        })
    });
    let mut new = taken_over?;
    let failed = asking.failed.into_inner()?;
    assert!(
        failed.is_empty(),
        "{} failed: {:?}",
        failed.len(),
        failed.first()
    );
    // It is the new one that answers, and the rules are still there.
    assert_eq!(ask::get(&pod, CREDENTIALS)?.status, 401);
    assert!(
        site.lab
            .node()
            .exec("nft list table inet rolegate")?
            .contains("8181")
    );
    assert_eq!(ask::get(&pod, "/latest/user-data")?.status, 401);
    assert!(!site.reached("user-data"));
    assert!(new.stop().await?.success());
    Ok(())
}

/// Starts the next agent, and ends the old one when the next is ready, as a rolling update does.
async fn take_over(
    site: &Site,
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
    let mut new = site.agent(&all)?;
    new.wait_for_line("took over", DEADLINE).await?;
    site.ready(&mut new).await?;
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
