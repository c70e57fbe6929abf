//! A cluster with two nodes and agents, for manual exploration. Prints how to enter it, and removes
//! it when standard input ends (Ctrl-D) or the process is killed.

use std::io::Read;

use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::Options;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "that is what it is for")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::start(Options::default()).await?;
    println!("{}", cluster.name());
    cluster.install_agents().await?;
    println!("{}", cluster.how_to_enter());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}
