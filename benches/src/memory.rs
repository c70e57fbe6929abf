//! Memory on a node of a large cluster.

use std::time::Duration;

use crate::harness::{NAMESPACE, Settings, pods};
use crate::load::{self, Closed};
use crate::proc;
use crate::report::Row;
use crate::stand_ins::{Order, Roles};
use crate::warm::memory_row;

const HERE: u32 = 110;
const CLUSTER: u32 = 50_000;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let mut orders = vec![pods(NAMESPACE, 0, HERE, Roles::OneEach)];
    orders.extend((1..CLUSTER.div_ceil(HERE)).map(|node| {
        let first = node * HERE;
        Order::Pods {
            namespace: NAMESPACE.into(),
            node: format!("node-{node}"),
            first,
            count: HERE.min(CLUSTER - first),
            roles: Roles::OneEach,
        }
    }));
    let mut harness = settings.harness(&orders, &[])?;
    harness.settle(usize::try_from(HERE)?)?;
    let load = Closed {
        in_flight: 64,
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(2),
        status: 200,
        pid: harness.agent.pid(),
    };
    load::closed(&mut harness.clients(0, HERE)?, load)?;
    Ok(vec![memory_row(
        "memory, cluster of 50,000 pods, 110 on this node, under load",
        "peak ≤ 16 MiB",
        proc::memory(harness.agent.pid())?,
    )])
}
