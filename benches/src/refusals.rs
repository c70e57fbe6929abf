//! Pods without credentials: with a role that STS refuses, and with a reserved role.

use std::time::Duration;

use crate::client;
use crate::harness::{NAMESPACE, Settings, credentials_of, pods};
use crate::load::{self, Closed, Latencies};
use crate::report::{Row, milliseconds};
use crate::stand_ins::{NODE_ROLE, Order, Roles};

const IN_FLIGHT: usize = 16;
const REFUSED_ROLE: &str = "refused";
const FORBIDDEN: u16 = 403;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    Ok(vec![failing(settings)?, denied(settings)?])
}

/// The pod sends requests from its creation on.
fn failing(settings: &Settings) -> anyhow::Result<Row> {
    let mut harness = settings.harness(&[Order::Refuse(REFUSED_ROLE.into())], &[])?;
    let path = |_| credentials_of(REFUSED_ROLE);
    let mut clients = client::open(harness.agent.pods, 0..1, IN_FLIGHT, path)?;
    let pod = pods(NAMESPACE, 0, 1, Roles::Same(REFUSED_ROLE.into()));
    harness.stand_ins.begin(&pod)?;
    let load = Closed {
        in_flight: IN_FLIGHT,
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(3),
        status: FORBIDDEN,
        pid: harness.agent.pid(),
    };
    let run = load::closed(&mut clients, load)?;
    harness.stand_ins.done()?;
    let calls = harness.stand_ins.report()?.calls;
    let ends = run.samples.iter().map(|sample| sample.begun + sample.took);
    let first = ends.min().unwrap_or_default();
    let later = run.samples.iter().filter(|sample| sample.begun >= first);
    let later = Latencies::new(later.map(|sample| sample.took));
    // One in a thousand may be delayed by other load on the machine.
    let (p999, slowest) = (milliseconds(later.at(0.999)), milliseconds(later.slowest()));
    Ok(Row {
        what: "a role that STS refuses, 16 in flight for 3 s",
        target: "≤ 3 STS calls, answers ≤ 5 ms after the first",
        measured: format!("{calls} STS calls, p99.9 {p999:.1} ms (slowest {slowest:.1})"),
        met: calls <= 3 && p999 <= 5.0,
        values: [
            ("sts_calls", calls as f64),
            ("first_ms", milliseconds(first)),
            ("p999_ms", p999),
            ("slowest_ms", slowest),
            ("per_second", run.per_second()),
        ]
        .into(),
    })
}

/// The first denial of a pod is measured too: it is logged and reported as an Event.
fn denied(settings: &Settings) -> anyhow::Result<Row> {
    let pod = pods(NAMESPACE, 0, 1, Roles::Same(NODE_ROLE.into()));
    let harness = settings.harness(&[pod], &[])?;
    let path = |_| credentials_of(NODE_ROLE);
    let mut clients = client::open(harness.agent.pods, 0..1, 1, path)?;
    let first = milliseconds(load::burst(&mut clients, || Ok(()))?.slowest());
    let load = Closed {
        in_flight: 1,
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(1),
        status: FORBIDDEN,
        pid: harness.agent.pid(),
    };
    let latencies = load::closed(&mut clients, load)?.latencies();
    let (p99, slowest) = (
        milliseconds(latencies.at(0.99)),
        milliseconds(latencies.slowest()),
    );
    Ok(Row {
        what: "a denial, 1 in flight",
        target: "≤ 2 ms",
        measured: format!("first {first:.2} ms, p99 {p99:.2}, slowest {slowest:.2}"),
        met: first <= 2.0 && p99 <= 2.0,
        values: [
            ("first_ms", first),
            ("p99_ms", p99),
            ("slowest_ms", slowest),
        ]
        .into(),
    })
}
