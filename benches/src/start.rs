//! The start of an agent on a node with existing pods.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::load;
use crate::report::{Row, median, milliseconds};
use crate::stage::{Bench, NAMESPACE, pods};
use crate::stand_ins::{Roles, STS_LATENCY};

const PODS: u32 = 110;
const STARTS: usize = 5;

/// One start, in milliseconds.
struct Start {
    ready: f64,
    /// The time from ready until the last prefetched session.
    prefetched: f64,
    /// The slowest of all pods' first responses after that.
    slowest: f64,
    /// The number of STS calls for those responses.
    calls: usize,
}

pub(crate) fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let starts = (0..STARTS)
        .map(|_| start(bench))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let ready = median(starts.iter().map(|start| start.ready));
    let prefetched = median(starts.iter().map(|start| start.prefetched));
    let slowest = median(starts.iter().map(|start| start.slowest));
    let calls: usize = starts.iter().map(|start| start.calls).sum();
    let at_once = milliseconds(at_once(bench)?);
    Ok(vec![
        Row {
            what: "start to ready, 110 pods",
            target: "≤ 100 ms",
            measured: format!("{ready:.0} ms from the start of the process"),
            met: ready <= 100.0,
            values: [("ready_ms", ready)].into(),
        },
        Row {
            what: "110 pods that existed before the agent, a role each: first request",
            target: "warm: no STS call, below STS's 50 ms",
            measured: format!(
                "{calls} STS calls, slowest {slowest:.1} ms (asked as soon as ready: {at_once:.0} ms)"
            ),
            met: calls == 0 && slowest < milliseconds(STS_LATENCY),
            values: [
                ("sts_calls", calls as f64),
                ("slowest_ms", slowest),
                ("slowest_asked_as_soon_as_ready_ms", at_once),
                ("prefetched_after_ready_ms", prefetched),
            ]
            .into(),
        },
    ])
}

fn start(bench: &Bench) -> anyhow::Result<Start> {
    let mut stage = bench.stage(&[pods(NAMESPACE, 0, PODS, Roles::OneEach)], &[])?;
    let ready = Instant::now();
    let before = stage.settle(usize::try_from(PODS)?)?.calls;
    let prefetched = ready.elapsed();
    // STS has responded; the agent may not have read the last response yet.
    std::thread::sleep(Duration::from_millis(20));
    let mut clients = stage.clients(0, PODS)?;
    let latencies = load::burst(&mut clients, || Ok(()))?;
    check(&clients)?;
    Ok(Start {
        ready: milliseconds(stage.agent.took()),
        prefetched: milliseconds(prefetched),
        slowest: milliseconds(latencies.slowest()),
        calls: stage.stand_ins.report()?.calls - before,
    })
}

/// Returns the slowest response if all pods send requests as soon as the agent is ready.
fn at_once(bench: &Bench) -> anyhow::Result<Duration> {
    let stage = bench.stage(&[pods(NAMESPACE, 0, PODS, Roles::OneEach)], &[])?;
    let mut clients = stage.clients(0, PODS)?;
    let latencies = load::burst(&mut clients, || Ok(()))?;
    check(&clients)?;
    Ok(latencies.slowest())
}

fn check(clients: &[Client]) -> anyhow::Result<()> {
    for client in clients {
        client.answered(200)?;
    }
    Ok(())
}
