//! A test cluster restores the machine's state, however the test process ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use rolegate_testkit::eventually;
use rolegate_testkit::nodes::machine::{leftovers, state, state_at_first};

use crate::ask::DEADLINE;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_cluster_is_left_when_its_process_ends_or_is_killed() -> anyhow::Result<()> {
    let before = state_at_first()?;
    for killed in [false, true] {
        let (mut process, name) = cluster()?;
        let running = leftovers(&name)?;
        for kind in ["path /run/netns", "path /sys/fs/cgroup", "process"] {
            ensure!(
                running.iter().any(|line| line.starts_with(kind)),
                "no {kind}"
            );
        }
        if killed {
            process.kill()?;
        } else {
            drop(process.stdin.take());
        }
        process.wait()?;
        eventually(DEADLINE, async || {
            let left = leftovers(&name)?;
            ensure!(left.is_empty(), "{}", left.join("\n"));
            Ok(())
        })
        .await?;
        for (path, value) in state()? {
            let was = before.get(&path);
            ensure!(was == Some(&value), "{path} is {value}, and was {was:?}");
        }
    }
    Ok(())
}

/// A cluster of another process, with agents, and its name.
fn cluster() -> anyhow::Result<(Child, String)> {
    let test = std::env::current_exe()?;
    // target/PROFILE/deps/NAME-HASH
    let profile = test.ancestors().nth(2).context("no target folder")?;
    let mut process = Command::new(profile.join("examples/nodes"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("the example `nodes` is missing: run `make test-nodes`")?;
    let output = process.stdout.take().context("no output")?;
    let mut lines = BufReader::new(output).lines();
    let name = lines.next().context("the cluster does not start")??;
    lines.next().context("the agents do not start")??;
    Ok((process, name))
}
