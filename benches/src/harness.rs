//! A miniature node: the stand-ins, some pods, and the agent.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::agent::Agent;
use crate::client::{self, Client};
use crate::stand_ins::{NODE, Order, Report, Roles, StandIns, role};

/// The namespace of pods that do not need their own.
pub(crate) const NAMESPACE: &str = "default";
const PAUSE: Duration = Duration::from_millis(2);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of all benchmarks.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The release binary.
    pub(crate) rolegate: PathBuf,
    /// The number of threads of the agent and of the servers that it is compared with.
    pub(crate) threads: usize,
}

/// Stand-ins and the agent.
#[derive(Debug)]
pub(crate) struct Harness {
    pub(crate) stand_ins: StandIns,
    pub(crate) agent: Agent,
}

/// Returns pods of the measured node, from number `first`.
pub(crate) fn pods(namespace: &str, first: u32, count: u32, roles: Roles) -> Order {
    Order::Pods {
        namespace: namespace.into(),
        node: NODE.into(),
        first,
        count,
        roles,
    }
}

/// Returns the path of the credentials of a pod's own role.
pub(crate) fn credentials(pod: u32) -> String {
    credentials_of(&role(pod))
}

/// Returns the path of a role's credentials.
pub(crate) fn credentials_of(role: &str) -> String {
    format!("/latest/meta-data/iam/security-credentials/{role}")
}

impl Settings {
    /// Starts the agent after these orders have been executed.
    pub(crate) fn harness(&self, orders: &[Order], further: &[&str]) -> anyhow::Result<Harness> {
        let mut stand_ins = StandIns::start()?;
        stand_ins.order(&Order::Namespace(NAMESPACE.into()))?;
        for order in orders {
            stand_ins.order(order)?;
        }
        let agent = Agent::start(&self.rolegate, stand_ins.addresses, further)?;
        Ok(Harness { stand_ins, agent })
    }
}

impl Harness {
    /// Waits until STS has issued sessions for this many roles and no call is in flight.
    pub(crate) fn settle(&mut self, roles: usize) -> anyhow::Result<Report> {
        let begun = Instant::now();
        loop {
            let report = self.stand_ins.report()?;
            if report.roles >= roles && report.in_flight == 0 {
                return Ok(report);
            }
            ensure!(
                begun.elapsed() < SETTLE_TIMEOUT,
                "the agent has requested {} of {roles} roles from STS after {SETTLE_TIMEOUT:?}",
                report.roles
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Opens a connection from each of the pods, for the credentials of its own role.
    pub(crate) fn clients(&self, first: u32, count: u32) -> anyhow::Result<Vec<Client>> {
        let connections = usize::try_from(count)?;
        client::open(
            self.agent.pods,
            first..first + count,
            connections,
            credentials,
        )
    }
}
