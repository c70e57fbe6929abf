//! Brokers, with hundreds of agents in the load generator's process, and real ones.

pub(crate) mod agent;
pub(crate) mod authority;
pub(crate) mod calls;
mod fleet;
pub(crate) mod idle;
mod observed;
pub(crate) mod pods;
mod process;
pub(crate) mod scale;
mod service;

use anyhow::Context;

use self::authority::Authority;
use self::fleet::Fleet;
use self::observed::Observed;
use self::process::Broker;
use crate::harness::{NAMESPACE, Settings};
use crate::stand_ins::{Order, Report, Roles, StandIns};

/// A cluster with brokers.
struct Cluster {
    stand_ins: StandIns,
    authority: Authority,
    brokers: Vec<Broker>,
    fleet: Fleet,
    nodes: u32,
    roles: Roles,
}

impl Cluster {
    /// Creates a cluster with this many nodes and pods, and brokers that have loaded them, without
    /// agents.
    fn new(
        settings: &Settings,
        (nodes, pods, brokers): (u32, u32, usize),
        roles: Roles,
        further: &[&str],
    ) -> anyhow::Result<Self> {
        let mut stand_ins = StandIns::start()?;
        stand_ins.order(&Order::Namespace(NAMESPACE.into()))?;
        let authority = Authority::new()?;
        let observed = Observed::new(nodes, roles.clone());
        let mut cluster = Self {
            stand_ins,
            authority,
            brokers: Vec::new(),
            fleet: Fleet::new(observed)?,
            nodes,
            roles,
        };
        cluster.add(0, pods)?;
        for _ in 0..brokers {
            let addresses = cluster.stand_ins.addresses;
            let broker = Broker::start(settings, &cluster.authority, addresses, further)?;
            cluster.brokers.push(broker);
        }
        Ok(cluster)
    }

    /// Starts the agents of all nodes.
    fn start_agents(&self) -> anyhow::Result<()> {
        let brokers: Vec<_> = self.brokers.iter().map(|broker| broker.agents).collect();
        self.fleet.start(0..self.nodes, &self.authority, &brokers)
    }

    fn add(&mut self, first: u32, count: u32) -> anyhow::Result<Report> {
        self.stand_ins.order(&Order::Spread {
            namespace: NAMESPACE.into(),
            nodes: self.nodes,
            first,
            count,
            roles: self.roles.clone(),
        })
    }

    fn delete(&mut self, first: u32, count: u32) -> anyhow::Result<Report> {
        self.stand_ins.order(&Order::Gone {
            namespace: NAMESPACE.into(),
            first,
            count,
        })
    }

    fn broker(&self) -> anyhow::Result<&Broker> {
        self.brokers.first().context("there is no broker")
    }
}
