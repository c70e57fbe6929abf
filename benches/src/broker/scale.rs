//! A cluster of 1,000 nodes: rollouts and deletions continue while one of three brokers is killed.
//!
//! It fails if a stream contains anything of another node, if a pod is missing or not removed, or
//! if a session never arrives.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Context;

use super::Cluster;
use super::idle::{NODES, PODS, ROLES, TIMEOUT};
use super::observed::since;
use crate::harness::Settings;
use crate::load::Latencies;
use crate::proc;
use crate::report::{Row, mebibytes, milliseconds};
use crate::stand_ins::Roles;

/// The number of rollouts. Each replaces pods.
const ROUNDS: u32 = 40;
const ROLLOUT: u32 = 250;
/// The rollout before which a broker is killed.
const KILL: u32 = 20;

#[allow(clippy::too_many_lines, reason = "one scenario, step by step")]
pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let flags = ["--sts-calls-per-second=0"];
    let mut cluster = Cluster::new(settings, (NODES, PODS, 3), Roles::Among(ROLES), &flags)?;
    let observed = cluster.fleet.observed.clone();
    let begun = Instant::now();
    cluster.start_agents()?;
    let times = observed.delivered(0..PODS, TIMEOUT)?;
    let first = since(begun, &times)?.as_secs_f64();
    observed.complete(0..NODES, TIMEOUT)?;

    let mut alive: HashSet<u32> = (0..PODS).collect();
    let (mut created, mut pods) = (Vec::new(), Vec::new());
    let mut moved = None;
    for round in 0..ROUNDS {
        if round == KILL {
            let killed = cluster.brokers.pop().context("there is no broker")?;
            moved = Some(Instant::now());
            drop(killed);
        }
        let (new, old) = (PODS + round * ROLLOUT, round * ROLLOUT);
        let now = Instant::now();
        cluster.add(new, ROLLOUT)?;
        cluster.delete(old, ROLLOUT)?;
        alive.extend(new..new + ROLLOUT);
        alive.retain(|pod| !(old..old + ROLLOUT).contains(pod));
        observed.delivered(new..new + ROLLOUT, TIMEOUT)?;
        pods.extend(new..new + ROLLOUT);
        created.extend(std::iter::repeat_n(now, pods.len() - created.len()));
    }
    let delivered = observed.delivered(pods.iter().copied(), TIMEOUT)?;
    let times = created.iter().zip(&delivered);
    let times = Latencies::new(times.map(|(created, delivered)| *delivered - *created));
    let complete = observed.complete(0..NODES, TIMEOUT)?;
    let killed = moved.context("no broker was killed")?;
    let failover = complete.iter().filter(|time| **time > killed).copied();
    let failover: Vec<_> = failover.collect();
    let movers = failover.len();
    let failover = milliseconds(since(killed, &failover)?);
    observed.exactly(&alive, TIMEOUT)?;

    let memory = cluster.brokers.iter().map(|it| proc::memory(it.pid()));
    let memory = memory.collect::<anyhow::Result<Vec<_>>>()?;
    let largest =
        |of: fn(&proc::Memory) -> u64| mebibytes(memory.iter().map(of).max().unwrap_or_default());
    let (now, peak) = (largest(|it| it.now), largest(|it| it.peak));
    let calls = cluster.stand_ins.report()?.total as f64;
    let (p50, p99) = (milliseconds(times.at(0.5)), milliseconds(times.at(0.99)));
    let slowest = milliseconds(times.slowest());
    Ok(vec![
        Row {
            what: "1,000 agents start at once, 50,000 pods, 2,000 roles, 3 brokers: all credentials at all agents",
            target: "all",
            measured: format!("all, after {first:.1} s"),
            met: true,
            values: [("took_s", first)].into(),
        },
        Row {
            what: "40 rollouts of 250 pods, as many deleted: pod created → credentials at its agent",
            target: "none dropped, nothing of another node",
            measured: format!("p50 {p50:.0} ms, p99 {p99:.0} (slowest {slowest:.0})"),
            met: true,
            values: [("p50_ms", p50), ("p99_ms", p99), ("slowest_ms", slowest)].into(),
        },
        Row {
            what: "one of three brokers is killed during it: time until its agents have all sessions again",
            target: "≤ 1 s",
            measured: format!("{failover:.0} ms ({movers} agents)"),
            met: failover <= 1_000.0,
            values: [("failover_ms", failover), ("agents", movers as f64)].into(),
        },
        Row {
            what: "memory of a broker at the end, the larger one of two",
            target: "≤ 120 MiB",
            measured: format!("{now:.1} MiB, peak {peak:.1}"),
            met: now <= 120.0,
            values: [("now_mib", now), ("peak_mib", peak)].into(),
        },
        Row {
            what: "STS calls in total",
            target: "≤ 8000 (2,000 sessions in 3 brokers, and once more where agents move)",
            measured: format!("{calls:.0}"),
            met: calls <= 8_000.0,
            values: [("calls", calls)].into(),
        },
    ])
}
