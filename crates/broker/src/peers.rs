//! Peers expected at the ports for agents, and reports about their connections.

use std::net::IpAddr;

use rolegate_runtime::http2::{Limit, Peers, Usage};
use rolegate_runtime::readiness::Condition;

use crate::agents::Agents;
use crate::hosts::Hosts;
use crate::metrics::{BrokerMetrics, Port};

/// From where agents may come.
#[derive(Debug)]
pub(crate) enum Expected {
    /// From the addresses of agents' pods.
    Agents(Agents),
    /// From the addresses of nodes.
    Nodes(Hosts),
}

/// The owner of a port for agents.
#[derive(Debug)]
pub(crate) struct PortPeers {
    pub(crate) expected: Expected,
    pub(crate) port: Port,
    pub(crate) metrics: BrokerMetrics,
    /// Noted while a limit is reached.
    pub(crate) condition: Condition,
}

impl Peers for PortPeers {
    fn is_expected(&self, address: IpAddr) -> bool {
        match &self.expected {
            Expected::Agents(agents) => agents.has_address(address),
            Expected::Nodes(hosts) => hosts.node_of(address).is_some(),
        }
    }

    fn closed(&self, limit: Limit) {
        self.metrics.connection_closed(self.port, limit);
    }

    fn usage(&self, usage: Usage) {
        self.metrics.set_connections(self.port, usage);
        match usage.reached {
            None => self.condition.ok(),
            Some(limit) => self.condition.note(note(limit)),
        }
    }
}

/// Advice to the operator, which stays the same while the condition lasts.
fn note(limit: Limit) -> &'static str {
    match limit {
        Limit::Peer => {
            "connections are closed: an address has more that did not authenticate than it may have"
        }
        Limit::Rate => "connections are closed: an address opens them too fast",
        Limit::Unauthenticated => {
            "connections are closed: there are too many that did not authenticate"
        }
        Limit::Authenticated => {
            "connections of agents are closed: there are as many as there may be, raise \
             --max-agent-connections"
        }
    }
}
