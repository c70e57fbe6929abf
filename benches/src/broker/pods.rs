//! The time from the creation of pods until their agents have credentials.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Cluster;
use super::observed::since;
use crate::harness::Settings;
use crate::load::Latencies;
use crate::proc;
use crate::report::{Row, milliseconds};
use crate::stand_ins::Roles;

const NODES: u32 = 100;
const AT_ONCE: u32 = 5_000;
const TIMEOUT: Duration = Duration::from_secs(60);
/// The number of pods that are created individually, and the pause between them.
const SINGLY: u32 = 300;
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let flags = ["--sts-calls-in-flight=64", "--sts-calls-per-second=0"];
    let mut cluster = Cluster::new(settings, (NODES, 0, 1), Roles::OneEach, &flags)?;
    cluster.start_agents()?;
    cluster.fleet.observed.complete(0..NODES, TIMEOUT)?;
    let singly = singly(&mut cluster)?;
    Ok(vec![at_once(&mut cluster)?, singly])
}

fn singly(cluster: &mut Cluster) -> anyhow::Result<Row> {
    let mut created = Vec::new();
    for pod in 0..SINGLY {
        created.push(Instant::now());
        cluster.add(pod, 1)?;
        std::thread::sleep(PAUSE);
    }
    let delivered = cluster.fleet.observed.delivered(0..SINGLY, TIMEOUT)?;
    let times = created.iter().zip(&delivered);
    let times = Latencies::new(times.map(|(created, delivered)| *delivered - *created));
    let (p50, p99) = (milliseconds(times.at(0.5)), milliseconds(times.at(0.99)));
    let slowest = milliseconds(times.slowest());
    Ok(Row {
        what: "pod created → credentials at its agent, STS at 50 ms, 300 pods of a role each",
        target: "p99 ≤ 250 ms",
        measured: format!("p50 {p50:.0} ms, p99 {p99:.0} (slowest {slowest:.0})"),
        met: p99 <= 250.0,
        values: [("p50_ms", p50), ("p99_ms", p99), ("slowest_ms", slowest)].into(),
    })
}

fn at_once(cluster: &mut Cluster) -> anyhow::Result<Row> {
    let pid = cluster.broker()?.pid();
    let (before, calls) = (proc::cpu(pid)?, cluster.stand_ins.report()?.total);
    let pods = SINGLY..SINGLY + AT_ONCE;
    let begun = Instant::now();
    cluster.add(SINGLY, AT_ONCE)?;
    let created = begun.elapsed();
    let delivered = cluster.fleet.observed.delivered(pods, TIMEOUT)?;
    let took = since(begun, &delivered)?;
    let cpu = proc::cpu(pid)? - before;
    let calls = cluster.stand_ins.report()?.total - calls;
    ensure!(
        calls == u64::from(AT_ONCE),
        "STS was called {calls} times for {AT_ONCE} sessions"
    );
    Ok(Row {
        what: "5,000 pods with 5,000 roles appear at once, 64 calls in flight, STS at 50 ms",
        target: "none dropped, all in ≤ 6 s",
        measured: format!(
            "all, {:.2} s (CPU of the broker {:.2} s; the stand-in had created them after {:.2} s)",
            took.as_secs_f64(),
            cpu.as_secs_f64(),
            created.as_secs_f64()
        ),
        met: took <= Duration::from_secs(6),
        values: [
            ("took_ms", milliseconds(took)),
            ("broker_cpu_ms", milliseconds(cpu)),
            ("created_ms", milliseconds(created)),
        ]
        .into(),
    })
}
