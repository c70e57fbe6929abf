//! Memory and CPU time of an idle broker in a large cluster.

use std::time::Duration;

use super::Cluster;
use crate::harness::Settings;
use crate::proc;
use crate::report::{Row, mebibytes};
use crate::stand_ins::Roles;

pub(super) const NODES: u32 = 1_000;
pub(super) const PODS: u32 = 50_000;
pub(super) const ROLES: u32 = 2_000;
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);
const IDLE: Duration = Duration::from_secs(20);

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let flags = ["--sts-calls-per-second=0"];
    let cluster = Cluster::new(settings, (NODES, PODS, 1), Roles::Among(ROLES), &flags)?;
    let pid = cluster.broker()?.pid();
    let known = mebibytes(proc::memory(pid)?.now);
    cluster.start_agents()?;
    cluster.fleet.observed.complete(0..NODES, TIMEOUT)?;
    cluster.fleet.observed.delivered(0..PODS, TIMEOUT)?;
    let begun = proc::cpu(pid)?;
    std::thread::sleep(IDLE);
    let idle = (proc::cpu(pid)? - begun).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let memory = proc::memory(pid)?;
    let (now, peak) = (mebibytes(memory.now), mebibytes(memory.peak));
    Ok(vec![
        Row {
            what: "memory of a broker, 50,000 pods, 2,000 sessions, 1,000 agents connected to it",
            target: "≤ 120 MiB",
            measured: format!("{now:.1} MiB, peak {peak:.1} (without agents {known:.1})"),
            met: now <= 120.0,
            values: [
                ("now_mib", now),
                ("peak_mib", peak),
                ("without_agents_mib", known),
            ]
            .into(),
        },
        Row {
            what: "CPU of a broker, 1,000 agents connected, nothing changes",
            target: "≤ 5 % of a core",
            measured: format!("{idle:.1} %"),
            met: idle <= 5.0,
            values: [("percent", idle)].into(),
        },
    ])
}
