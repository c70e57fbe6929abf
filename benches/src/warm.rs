//! Cached credentials: rate, CPU time, latency and memory, compared with plain hyper.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::baseline::{Baseline, Fixed};
use crate::client::{self, Client};
use crate::harness::{NAMESPACE, Settings, credentials, pods};
use crate::load::{self, Closed, Run};
use crate::proc;
use crate::report::{Row, mebibytes, median, microseconds};
use crate::stand_ins::Roles;

const PODS: u32 = 100;
const BUSY: usize = 64;
/// Rounds of agent, baseline, agent, baseline …. Ratios are computed from neighbors, so that other
/// load on the machine affects both.
const ROUNDS: usize = 15;
const WARM_UP: Duration = Duration::from_millis(200);
const ROUND: Duration = Duration::from_secs(1);

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let mut harness = settings.harness(&[pods(NAMESPACE, 0, PODS, Roles::OneEach)], &[])?;
    harness.settle(usize::try_from(PODS)?)?;
    let mut clients = harness.clients(0, PODS)?;
    load::burst(&mut clients, || Ok(()))?;
    let answer = check(&clients)?;
    let bare = Baseline::start(&answer, settings.threads)?;
    let mut pair = Pair {
        agent: (clients, harness.agent.pid()),
        bare: (connect(bare.addr)?, bare.helper.pid()),
    };
    let busy = pair.rounds(BUSY)?;
    let memory = proc::memory(harness.agent.pid())?;
    let alone = pair.rounds(1)?;
    let calls = harness.stand_ins.report()?.calls;
    ensure!(
        calls == usize::try_from(PODS)?,
        "STS was called {calls} times for {PODS} sessions"
    );
    Ok(vec![
        rate(&busy),
        cpu(&busy),
        latency(&alone),
        memory_row("memory, 100 pods under load", "peak ≤ 16 MiB", memory),
    ])
}

/// Each pod must have credentials of its own role, so all keys differ.
fn check(clients: &[Client]) -> anyhow::Result<Fixed> {
    let mut keys = HashSet::new();
    for client in clients {
        let document: serde_json::Value = serde_json::from_slice(client.answered(200)?.body)?;
        let key = document.get("AccessKeyId").and_then(|key| key.as_str());
        keys.insert(key.context("credentials without AccessKeyId")?.to_owned());
    }
    ensure!(
        keys.len() == clients.len(),
        "{} pods with their own roles got {} sessions",
        clients.len(),
        keys.len()
    );
    let answer = clients.first().context("no pods")?.answered(200)?;
    Ok(Fixed {
        status: answer.status,
        headers: answer
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    (*name).to_owned(),
                    String::from_utf8_lossy(value).into_owned(),
                )
            })
            .collect(),
        body: String::from_utf8_lossy(answer.body).into_owned(),
    })
}

fn connect(server: SocketAddr) -> anyhow::Result<Vec<Client>> {
    client::open(server, 0..PODS, usize::try_from(PODS)?, credentials)
}

/// Two servers with their connections and processes.
struct Pair {
    agent: (Vec<Client>, u32),
    bare: (Vec<Client>, u32),
}

impl Pair {
    fn rounds(&mut self, in_flight: usize) -> anyhow::Result<Vec<(Run, Run)>> {
        let measure = |(clients, pid): &mut (Vec<Client>, u32)| {
            let load = Closed {
                in_flight,
                warm_up: WARM_UP,
                duration: ROUND,
                status: 200,
                pid: *pid,
            };
            load::closed(clients, load)
        };
        (0..ROUNDS)
            .map(|_| Ok((measure(&mut self.agent)?, measure(&mut self.bare)?)))
            .collect()
    }
}

fn medians(rounds: &[(Run, Run)], value: impl Fn(&Run) -> f64) -> (f64, f64, f64) {
    (
        median(rounds.iter().map(|(agent, _)| value(agent))),
        median(rounds.iter().map(|(_, bare)| value(bare))),
        median(
            rounds
                .iter()
                .map(|(agent, bare)| value(agent) / value(bare)),
        ),
    )
}

fn rate(rounds: &[(Run, Run)]) -> Row {
    let (agent, bare, ratio) = medians(rounds, Run::per_second);
    Row {
        what: "warm credentials, 100 pods, 64 in flight: requests per second",
        target: "≥ 0.90 of bare hyper",
        measured: format!("{ratio:.2} ({agent:.0}; bare {bare:.0})"),
        met: ratio >= 0.90,
        values: [
            ("agent_per_second", agent),
            ("bare_per_second", bare),
            ("ratio", ratio),
        ]
        .into(),
    }
}

fn cpu(rounds: &[(Run, Run)]) -> Row {
    let (agent, bare, ratio) = medians(rounds, Run::cpu_per_request);
    Row {
        what: "as above: CPU per request",
        target: "≤ 1.18 of bare hyper",
        measured: format!("{ratio:.2} ({agent:.1} µs; bare {bare:.1} µs)"),
        met: ratio <= 1.18,
        values: [("agent_us", agent), ("bare_us", bare), ("ratio", ratio)].into(),
    }
}

fn latency(rounds: &[(Run, Run)]) -> Row {
    let at = |part| move |run: &Run| microseconds(run.latencies().at(part));
    let (agent, bare, ratio) = medians(rounds, at(0.99));
    let (agent_p50, bare_p50, _) = medians(rounds, at(0.5));
    Row {
        what: "warm credentials, 1 in flight: p99",
        target: "≤ 1.3 of bare hyper",
        measured: format!("{ratio:.2} ({agent:.0} µs; bare {bare:.0} µs)"),
        met: ratio <= 1.3,
        values: [
            ("agent_p99_us", agent),
            ("bare_p99_us", bare),
            ("ratio", ratio),
            ("agent_p50_us", agent_p50),
            ("bare_p50_us", bare_p50),
        ]
        .into(),
    }
}

/// Returns a row about resident memory, with a target of at most 20 MiB.
pub(crate) fn memory_row(what: &'static str, target: &'static str, memory: proc::Memory) -> Row {
    let (now, peak) = (mebibytes(memory.now), mebibytes(memory.peak));
    Row {
        what,
        target,
        measured: format!("{now:.1} MiB, peak {peak:.1}"),
        met: peak <= 16.0,
        values: [("now_mib", now), ("peak_mib", peak)].into(),
    }
}
