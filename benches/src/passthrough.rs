//! Forwarding to the node's metadata service: a cached path, since it does not change while an
//! instance runs, and a path that is forwarded each time.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client;
use crate::harness::{Harness, NAMESPACE, Settings, pods};
use crate::load::{self, Closed};
use crate::report::{Row, median};
use crate::stand_ins::Roles;

const PODS: u32 = 16;
const ROUNDS: usize = 3;
const CACHED_PATH: &str = "/latest/meta-data/instance-id";
const STREAMED: &str = "/latest/meta-data/ami-id";
/// Flags that open the forwarded path, and lift the limit that protects the node's request quota.
const FLAGS: [&str; 3] = [
    "--metadata-allow=meta-data/ami-id",
    "--max-forwards-per-pod=1000000",
    "--max-forwards=1000000",
];

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let mut harness = settings.harness(&[pods(NAMESPACE, 0, PODS, Roles::OneEach)], &FLAGS)?;
    harness.settle(usize::try_from(PODS)?)?;
    Ok(vec![
        measure(
            &harness,
            CACHED_PATH,
            "pass-through of a cached path, 16 in flight: CPU per request",
        )?,
        measure(
            &harness,
            STREAMED,
            "pass-through of an uncached path, 16 in flight: CPU per request",
        )?,
    ])
}

fn measure(harness: &Harness, path: &str, what: &'static str) -> anyhow::Result<Row> {
    let connections = usize::try_from(PODS)?;
    let open = |server, count| client::open(server, 0..PODS, count, |_| path.to_owned());
    let mut direct = open(harness.stand_ins.addresses.imds, 1)?;
    load::burst(&mut direct, || Ok(()))?;
    let mut clients = open(harness.agent.pods, connections)?;
    load::burst(&mut clients, || Ok(()))?;
    let direct = direct.first().context("no connection")?.answered(200)?;
    for client in &clients {
        let same = client.answered(200)?.body == direct.body;
        ensure!(same, "{path} differs from the metadata service's response");
    }
    let load = Closed {
        in_flight: connections,
        warm_up: Duration::from_millis(300),
        duration: Duration::from_millis(1500),
        status: 200,
        pid: harness.agent.pid(),
    };
    let runs = (0..ROUNDS)
        .map(|_| load::closed(&mut clients, load))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let cpu = median(runs.iter().map(load::Run::cpu_per_request));
    let per_second = median(runs.iter().map(load::Run::per_second));
    Ok(Row {
        what,
        target: "≤ 60 µs",
        measured: format!("{cpu:.1} µs ({per_second:.0} requests per second)"),
        met: cpu <= 60.0,
        values: [("cpu_us", cpu), ("per_second", per_second)].into(),
    })
}
