//! Pods that start at the same time and send requests as soon as the API server has them, with a
//! latency of 50 ms per STS call.

use crate::client;
use crate::harness::{Harness, Settings, credentials, credentials_of, pods};
use crate::load;
use crate::report::{Row, median, milliseconds};
use crate::stand_ins::{Order, Roles};

const PODS: u32 = 500;
const ROUNDS: u32 = 3;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let shared = settings.rounds("shared", |harness, round, namespace| {
        let role = format!("shared-{round}");
        let roles = Roles::Same(role.clone());
        harness.all_at_once(round * PODS, namespace, roles, move |_| {
            credentials_of(&role)
        })
    })?;
    let own = settings.rounds("own", |harness, round, namespace| {
        harness.all_at_once(round * PODS, namespace, Roles::OneEach, credentials)
    })?;
    Ok(vec![
        row(
            "500 pods of one service account and role, cold, all at once",
            "1 STS call, slowest answer ≤ 100 ms",
            &shared,
            (1, 100.0),
        ),
        row(
            "500 pods, 500 roles, cold, all at once",
            "500 STS calls, slowest answer ≤ 1 s",
            &own,
            (500, 1000.0),
        ),
    ])
}

/// One burst: the number of STS calls, and the slowest and median response in milliseconds.
struct Burst {
    calls: usize,
    slowest: f64,
    p50: f64,
}

impl Settings {
    /// Sequential bursts, each with a new namespace, new pods and new roles.
    fn rounds(
        &self,
        name: &str,
        burst: impl Fn(&mut Harness, u32, &str) -> anyhow::Result<Burst>,
    ) -> anyhow::Result<Vec<Burst>> {
        let namespaces: Vec<_> = (0..ROUNDS).map(|round| format!("{name}-{round}")).collect();
        let orders: Vec<_> = namespaces.iter().cloned().map(Order::Namespace).collect();
        let mut harness = self.harness(&orders, &[])?;
        (0..ROUNDS)
            .zip(&namespaces)
            .map(|(round, namespace)| burst(&mut harness, round, namespace))
            .collect()
    }
}

impl Harness {
    fn all_at_once(
        &mut self,
        first: u32,
        namespace: &str,
        roles: Roles,
        path: impl Fn(u32) -> String,
    ) -> anyhow::Result<Burst> {
        let connections = usize::try_from(PODS)?;
        let mut clients = client::open(self.agent.pods, first..first + PODS, connections, path)?;
        let before = self.stand_ins.report()?.calls;
        let order = pods(namespace, first, PODS, roles);
        let latencies = load::burst(&mut clients, || self.stand_ins.begin(&order))?;
        self.stand_ins.done()?;
        for client in &clients {
            client.answered(200)?;
        }
        Ok(Burst {
            calls: self.stand_ins.report()?.calls - before,
            slowest: milliseconds(latencies.slowest()),
            p50: milliseconds(latencies.at(0.5)),
        })
    }
}

fn row(
    what: &'static str,
    target: &'static str,
    bursts: &[Burst],
    (most_calls, most_milliseconds): (usize, f64),
) -> Row {
    let calls = bursts
        .iter()
        .map(|burst| burst.calls)
        .max()
        .unwrap_or_default();
    let slowest = median(bursts.iter().map(|burst| burst.slowest));
    let worst = bursts.iter().map(|burst| burst.slowest).fold(0.0, f64::max);
    let p50 = median(bursts.iter().map(|burst| burst.p50));
    let called = if calls == 1 { "call" } else { "calls" };
    Row {
        what,
        target,
        measured: format!("{calls} STS {called}, {slowest:.0} ms (worst of {ROUNDS}: {worst:.0})"),
        met: calls <= most_calls && slowest <= most_milliseconds,
        values: [
            ("sts_calls", calls as f64),
            ("slowest_ms", slowest),
            ("worst_ms", worst),
            ("p50_ms", p50),
        ]
        .into(),
    }
}
