//! Peers expected at the ports for agents, and reports about their connections.

use std::net::IpAddr;

use rolegate_runtime::http2::{Limit, Peers, Usage};
use rolegate_runtime::readiness::Condition;

use crate::agent_pods::Agents;
use crate::metrics::{BrokerMetrics, Port};
use crate::node_addresses::NodeAddresses;

/// The peers expected at a port.
#[derive(Debug)]
pub(crate) enum Expected {
    /// Peers with the addresses of agents' pods.
    Agents(Agents),
    /// Peers with the addresses of nodes.
    Nodes(NodeAddresses),
}

/// The expected peers of a port and the reports about its connections.
#[derive(Debug)]
pub(crate) struct PortPeers {
    pub(crate) expected: Expected,
    pub(crate) port: Port,
    pub(crate) metrics: BrokerMetrics,
    /// Reported while a limit is reached.
    pub(crate) condition: Condition,
}

impl Peers for PortPeers {
    fn is_expected(&self, address: IpAddr) -> bool {
        match &self.expected {
            Expected::Agents(agents) => agents.has_address(address),
            Expected::Nodes(node_addresses) => node_addresses.node_of(address).is_some(),
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

/// Returns advice for the operator. The text is constant, so the condition stays the same.
fn note(limit: Limit) -> &'static str {
    match limit {
        Limit::Peer => {
            "closing connections: an address has reached its limit of unauthenticated connections"
        }
        Limit::Rate => "closing connections: an address opens connections too fast",
        Limit::Unauthenticated => "closing connections: too many are unauthenticated",
        Limit::Authenticated => {
            "closing agents' connections: the limit is reached; raise --max-agent-connections"
        }
    }
}

#[cfg(test)]
mod tests {
    use rolegate_runtime::readiness::Readiness;

    use super::*;
    use crate::identity::tests::{account, agent, peer};

    #[test]
    fn a_limit_that_is_reached_is_noted_for_as_long_as_it_lasts() {
        let agents = Agents::new(account());
        agents.put(&std::sync::Arc::new(agent()));
        let readiness = Readiness::new();
        let port = PortPeers {
            expected: Expected::Agents(agents),
            port: Port::Agents,
            metrics: BrokerMetrics::default(),
            condition: readiness.condition("connections"),
        };
        assert!(port.is_expected(peer()) && !port.is_expected([192, 0, 2, 9].into()));
        let mut told = std::collections::BTreeSet::new();
        for limit in [
            Limit::Peer,
            Limit::Rate,
            Limit::Unauthenticated,
            Limit::Authenticated,
        ] {
            port.usage(Usage {
                reached: Some(limit),
                ..Usage::default()
            });
            let report = readiness.report().to_text(true);
            assert!(report.contains(note(limit)), "{report}");
            told.insert(note(limit));
        }
        assert_eq!(told.len(), 4, "each limit has advice of its own");
        port.usage(Usage::default());
        let report = readiness.report().to_text(true);
        assert!(!report.contains("closed"), "{report}");
    }
}
