//! The start of an agent on a node with existing pods.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::harness::{NAMESPACE, Settings, pods};
use crate::load;
use crate::report::{Row, median, milliseconds};
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

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let starts = (0..STARTS)
        .map(|_| start(settings))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let ready = median(starts.iter().map(|start| start.ready));
    let prefetched = median(starts.iter().map(|start| start.prefetched));
    let slowest = median(starts.iter().map(|start| start.slowest));
    let calls: usize = starts.iter().map(|start| start.calls).sum();
    let at_once = milliseconds(at_once(settings)?);
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

fn start(settings: &Settings) -> anyhow::Result<Start> {
    let mut harness = settings.harness(&[pods(NAMESPACE, 0, PODS, Roles::OneEach)], &[])?;
    let ready = Instant::now();
    let before = harness.settle(usize::try_from(PODS)?)?.calls;
    let prefetched = ready.elapsed();
    // STS has responded; the agent may not have read the last response yet.
    std::thread::sleep(Duration::from_millis(20));
    let mut clients = harness.clients(0, PODS)?;
    let latencies = load::burst(&mut clients, || Ok(()))?;
    check(&clients)?;
    Ok(Start {
        ready: milliseconds(harness.agent.took()),
        prefetched: milliseconds(prefetched),
        slowest: milliseconds(latencies.slowest()),
        calls: harness.stand_ins.report()?.calls - before,
    })
}

/// Returns the slowest response if all pods send requests as soon as the agent is ready.
fn at_once(settings: &Settings) -> anyhow::Result<Duration> {
    let harness = settings.harness(&[pods(NAMESPACE, 0, PODS, Roles::OneEach)], &[])?;
    let mut clients = harness.clients(0, PODS)?;
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
