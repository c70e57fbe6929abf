//! The ports for agents, and for kiam's agents.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_kube::client::Connection;
use rolegate_runtime::http2::{self, Limits};
use rolegate_runtime::keyed_limit::KeyedLimiter;
use rolegate_runtime::rate::KeyedRate;
use rolegate_runtime::serve::listen;
use rolegate_runtime::supervisor::Supervisor;
use rolegate_runtime::tls::ClientAuthorities;

use super::decisions::Decisions;
use super::tls::{BrokerTls, follow_authorities};
use super::{BrokerOptions, KiamOptions, StartError};
use crate::kiam::{self, KiamConnection, KiamParts};
use crate::metrics::{BrokerMetrics, Port};
use crate::node_addresses::NodeAddresses;
use crate::peers::{Expected, PortPeers};
use crate::service::{Service, ServiceParts, server};
use crate::subscription::{ACTIVATION_RATE, MAX_PER_NODE};
use crate::token_reviewer::TokenReviewer;

/// Maximum streams of one connection: an agent opens one while another may still be closing.
const MAX_STREAMS: u32 = 2;
/// Maximum concurrent requests of a kiam agent: one for each pod that is waiting.
const MAX_KIAM_REQUESTS: u32 = 100;
/// Time after which an agent's connection without a stream is closed.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(45);
/// Time after which a kiam agent's connection without a request is closed. Pods ask about twice an
/// hour, and the node's sessions are held while the connection is open.
const KIAM_UNUSED_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// The parts of the broker that its ports use.
pub(super) struct Ports<'a> {
    pub(super) options: &'a BrokerOptions,
    pub(super) connection: &'a Connection,
    pub(super) decisions: &'a Decisions,
    pub(super) tls: &'a BrokerTls,
    pub(super) recorder: OutcomeRecorder,
    pub(super) metrics: BrokerMetrics,
    pub(super) supervisor: &'a mut Supervisor,
}

impl Ports<'_> {
    /// Serves agents. Returns the bound address.
    pub(super) fn serve_agents(&mut self) -> Result<SocketAddr, StartError> {
        let agents = self.decisions.agents.clone();
        let authorities = Arc::new(ClientAuthorities::default());
        let tls = self.tls.port(&authorities)?;
        if let Some(path) = self.options.client_ca.clone() {
            let condition = self.supervisor.readiness().condition("client authorities");
            let following = follow_authorities(path, authorities, condition);
            self.supervisor
                .spawn_required("client CA reload", following);
        }
        let listener = listen(self.options.listen)?;
        let address = listener.local_addr()?;
        let peers = Arc::new(PortPeers {
            expected: Expected::Agents(agents.clone()),
            port: Port::Agents,
            metrics: self.metrics.clone(),
            condition: self.supervisor.readiness().condition("agent connections"),
        });
        let clock = self.options.clock.clone();
        let check_address = agents.account().check_address;
        let reviewer = TokenReviewer::new(self.connection.client(), check_address, clock.clone());
        let service = Service::new(ServiceParts {
            name: self.options.name.clone(),
            token_reviewer: reviewer,
            agents,
            commands: self.decisions.commands.clone(),
            recorder: self.recorder.clone(),
            freshness: self.connection.freshness().clone(),
            metrics: self.metrics.clone(),
            clock,
            drain: self.supervisor.drain().clone(),
        });
        self.supervisor.spawn(http2::serve(
            listener,
            tls,
            self.limits(MAX_STREAMS, UNUSED_TIMEOUT),
            self.supervisor.drain().clone(),
            peers,
            move |peer: SocketAddr, names, shown| {
                let connection = service.connection(peer.ip(), names, shown);
                Some(TowerToHyperService::new(server(connection)))
            },
        ));
        Ok(address)
    }

    /// Serves kiam's agents if that is enabled. Returns the bound address.
    pub(super) fn serve_kiam(&mut self) -> Result<Option<SocketAddr>, StartError> {
        let (Some(options), Some(node_addresses)) =
            (&self.options.kiam, &self.decisions.node_addresses)
        else {
            return Ok(None);
        };
        let listener = listen(options.listen)?;
        let address = listener.local_addr()?;
        let authorities = Arc::new(ClientAuthorities::default());
        let tls = self.tls.port(&authorities)?;
        let readiness = self.supervisor.readiness();
        let condition = readiness.condition("kiam client authorities");
        let peers = Arc::new(PortPeers {
            expected: Expected::Nodes(node_addresses.clone()),
            port: Port::Kiam,
            metrics: self.metrics.clone(),
            condition: readiness.condition("kiam connections"),
        });
        let following = follow_authorities(options.client_ca.clone(), authorities, condition);
        self.supervisor
            .spawn_required("kiam client CA reload", following);
        let parts = Arc::new(self.kiam_parts(options, node_addresses.clone()));
        self.supervisor.spawn(http2::serve(
            listener,
            tls,
            self.limits(MAX_KIAM_REQUESTS, KIAM_UNUSED_TIMEOUT),
            self.supervisor.drain().clone(),
            peers,
            move |peer: SocketAddr, names, shown| {
                let parts = parts.clone();
                let connection = KiamConnection::new(parts, peer.ip(), &names, shown)?;
                Some(TowerToHyperService::new(kiam::server(connection)))
            },
        ));
        Ok(Some(address))
    }

    fn kiam_parts(&self, options: &KiamOptions, node_addresses: NodeAddresses) -> KiamParts {
        KiamParts {
            node_addresses,
            permits: KeyedLimiter::new(MAX_PER_NODE),
            rates: KeyedRate::new(kiam::REQUEST_RATE),
            activations: KeyedRate::new(ACTIVATION_RATE),
            freshness: self.connection.freshness().clone(),
            max_staleness: options.max_staleness,
            commands: self.decisions.commands.clone(),
            authorizer: self.decisions.authorizer.clone(),
            recorder: self.recorder.clone(),
            metrics: self.metrics.clone(),
            clock: self.options.clock.clone(),
        }
    }

    fn limits(&self, streams: u32, unused: Duration) -> Limits {
        Limits {
            connections: self.options.connections,
            per_peer: self.options.connections_per_peer,
            streams,
            unused,
        }
    }
}
