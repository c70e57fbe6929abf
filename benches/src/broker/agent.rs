//! The real agent with brokers: compared with a standalone one, and when its broker is killed.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{Cluster, service};
use crate::agent::Agent;
use crate::client::{self, Client};
use crate::harness::{Settings, credentials};
use crate::load::{self, Closed, Run};
use crate::proc;
use crate::report::{Row, mebibytes, median, milliseconds};
use crate::stand_ins::Roles;

/// The number of pods, all on the measured node.
const PODS: u32 = 110;
const BUSY: usize = 64;
const ROUNDS: usize = 9;
const KILLS: u32 = 5;
const TIMEOUT: Duration = Duration::from_secs(10);
const OK: u16 = 200;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let cluster = Cluster::new(settings, (1, PODS, 2), Roles::OneEach, &[])?;
    let addresses = cluster.stand_ins.addresses;
    let brokers: Vec<_> = cluster.brokers.iter().map(|broker| broker.agents).collect();
    let service = service::start(cluster.fleet.runtime(), &brokers)?;
    let agent = Agent::with_broker(&settings.rolegate, addresses, service, &cluster.authority)?;
    let alone = Agent::start(&settings.rolegate, addresses, &[])?;
    let open = |agent: &Agent| {
        let connections = usize::try_from(PODS)?;
        client::open(agent.pods, 0..PODS, connections, credentials)
    };
    let mut both = [(open(&agent)?, agent.pid()), (open(&alone)?, alone.pid())];
    for (clients, _) in &mut both {
        load::burst(clients, || Ok(()))?;
        for client in &*clients {
            client.answered(OK)?;
        }
    }
    let mut measure = |index: usize| {
        let (clients, pid) = both.get_mut(index).context("there are two agents")?;
        load::closed(
            clients,
            Closed {
                in_flight: BUSY,
                warm_up: Duration::from_millis(200),
                duration: Duration::from_millis(600),
                status: OK,
                pid: *pid,
            },
        )
    };
    let rounds = (0..ROUNDS)
        .map(|_| Ok((measure(0)?, measure(1)?)))
        .collect::<anyhow::Result<Vec<(Run, Run)>>>()?;
    let with = median(rounds.iter().map(|(with, _)| with.cpu_per_request()));
    let without = median(rounds.iter().map(|(_, without)| without.cpu_per_request()));
    let ratio = |of: fn(&Run) -> f64| median(rounds.iter().map(|(a, b)| of(a) / of(b)));
    let (cpu, rate) = (ratio(Run::cpu_per_request), ratio(Run::per_second));
    let memory = proc::memory(agent.pid())?;
    let (now, peak) = (mebibytes(memory.now), mebibytes(memory.peak));
    let other = mebibytes(proc::memory(alone.pid())?.now);
    let mut rows = vec![
        Row {
            what: "warm credentials at an agent with a broker, 64 in flight: CPU per request",
            target: "that of the agent alone, ± 5 %",
            measured: format!(
                "{cpu:.2} of it ({with:.1} µs; alone {without:.1}; requests per second {rate:.2})"
            ),
            met: cpu <= 1.05,
            values: [
                ("ratio", cpu),
                ("with_us", with),
                ("alone_us", without),
                ("rate_ratio", rate),
            ]
            .into(),
        },
        Row {
            what: "memory of an agent with a broker, 110 pods, under load",
            target: "≤ 14 MiB",
            measured: format!("{now:.1} MiB, peak {peak:.1} (the agent alone {other:.1})"),
            met: peak <= 14.0,
            values: [("now_mib", now), ("peak_mib", peak), ("alone_mib", other)].into(),
        },
    ];
    drop((cluster, agent, alone, both));
    rows.push(failover(settings)?);
    Ok(rows)
}

/// Kills the broker that serves the agent while pods keep sending requests.
fn failover(settings: &Settings) -> anyhow::Result<Row> {
    let mut waits = Vec::new();
    let mut requests = 0;
    for _ in 0..KILLS {
        let mut cluster = Cluster::new(settings, (1, PODS, 2), Roles::OneEach, &[])?;
        let addresses = cluster.stand_ins.addresses;
        let brokers: Vec<_> = cluster.brokers.iter().map(|broker| broker.agents).collect();
        let service = service::start(cluster.fleet.runtime(), &brokers)?;
        let agent = Agent::with_broker(&settings.rolegate, addresses, service, &cluster.authority)?;
        let mut clients = client::open(agent.pods, 0..PODS, usize::try_from(PODS)?, credentials)?;
        ask(&mut clients)?;
        // The service forwards the first connection, which is the active one, to the first broker.
        let killed = cluster.brokers.remove(0);
        let begun = Instant::now();
        drop(killed);
        cluster.add(PODS, 1)?;
        let mut new = client::open(agent.pods, PODS..PODS + 1, 1, credentials)?;
        loop {
            load::burst(&mut new, || Ok(()))?;
            let status = new.first().context("no connection")?.answer()?.status;
            if status == OK {
                break;
            }
            ensure!(begun.elapsed() < TIMEOUT, "a new pod gets status {status}");
            ask(&mut clients)?;
            requests += clients.len();
        }
        waits.push(begun.elapsed());
        // And for some time afterwards.
        while begun.elapsed() < Duration::from_secs(2) {
            ask(&mut clients)?;
            requests += clients.len();
        }
    }
    let middle = median(waits.iter().map(|wait| milliseconds(*wait)));
    let slowest = waits.iter().max().copied().unwrap_or_default();
    Ok(Row {
        what: "a broker is killed: time until a pod created then has credentials",
        target: "≤ 1 s, no request of other pods fails",
        measured: format!(
            "{middle:.0} ms (slowest of {KILLS}: {:.0}; {requests} requests, none failed)",
            milliseconds(slowest)
        ),
        met: slowest <= Duration::from_secs(1),
        values: [("median_ms", middle), ("slowest_ms", milliseconds(slowest))].into(),
    })
}

fn ask(clients: &mut [Client]) -> anyhow::Result<()> {
    load::burst(clients, || Ok(()))?;
    for client in clients {
        client.answered(OK)?;
    }
    Ok(())
}
