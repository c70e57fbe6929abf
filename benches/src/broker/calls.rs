//! The number of STS calls for the pods of one workload.

use std::time::Duration;

use super::Cluster;
use crate::harness::Settings;
use crate::report::Row;
use crate::stand_ins::Roles;

const NODES: u32 = 3;
const PODS: u32 = 500;
const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let roles = Roles::Same("reader".into());
    let mut cluster = Cluster::new(settings, (NODES, 0, 2), roles, &[])?;
    cluster.start_agents()?;
    cluster.fleet.observed.complete(0..NODES, TIMEOUT)?;
    cluster.add(0, PODS)?;
    cluster.fleet.observed.delivered(0..PODS, TIMEOUT)?;
    let calls = cluster.stand_ins.report()?.calls;
    let values = [("calls", calls as f64)].into();
    Ok(vec![Row {
        what: "STS calls for 500 pods of one workload over 3 nodes and 2 brokers",
        target: "≤ 2",
        measured: calls.to_string(),
        met: calls <= 2,
        values,
    }])
}
