//! Metrics of the broker.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_runtime::http2::{Limit, Usage};

type Label = [(&'static str, &'static str); 1];
type TwoLabels = [(&'static str, &'static str); 2];

/// A port for agents.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Port {
    /// The port for rolegate's agents.
    Agents,
    /// The port for kiam's agents.
    Kiam,
}

impl Port {
    fn as_str(self) -> &'static str {
        match self {
            Self::Agents => "agents",
            Self::Kiam => "kiam",
        }
    }
}

/// What the broker counts. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct BrokerMetrics {
    streams: Family<Label, Gauge<i64, AtomicI64>>,
    refused: Family<Label, Counter>,
    pods: Gauge<i64, AtomicI64>,
    claimed_twice: Counter,
    kiam_users: Gauge<i64, AtomicI64>,
    kiam: Family<Label, Counter>,
    connections: Family<TwoLabels, Gauge<i64, AtomicI64>>,
    closed: Family<TwoLabels, Counter>,
}

/// A connection of a kiam agent, counted until dropped.
#[derive(Debug)]
pub(crate) struct KiamUser(Gauge<i64, AtomicI64>);

impl Drop for KiamUser {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl BrokerMetrics {
    /// Registers `broker_streams` by `use` (`serving`, `warm`), `broker_refused_total` by `reason`,
    /// `pods`, `broker_address_claimed_twice_total`, `broker_kiam_connections`,
    /// `broker_kiam_requests_total` by `outcome`, `broker_connections` by `port` and `state`
    /// (`authenticated`, `unauthenticated`) and `broker_connections_closed_total` by `port` and
    /// `limit`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "broker_streams",
            "Streams of agents: serving pods, or kept warm",
            metrics.streams.clone(),
        );
        registry.register(
            "broker_refused",
            "Streams refused or ended since the agent could not prove which node it is on",
            metrics.refused.clone(),
        );
        registry.register("pods", "Pods known, of all nodes", metrics.pods.clone());
        registry.register(
            "broker_address_claimed_twice",
            "Times that pods of two nodes claimed one address",
            metrics.claimed_twice.clone(),
        );
        registry.register(
            "broker_kiam_connections",
            "Connections of kiam's agents, which prove nothing but their address",
            metrics.kiam_users.clone(),
        );
        registry.register(
            "broker_kiam_requests",
            "Requests of kiam's agents for credentials, by outcome",
            metrics.kiam.clone(),
        );
        registry.register(
            "broker_connections",
            "Connections of agents, and of whoever else can reach the port",
            metrics.connections.clone(),
        );
        registry.register(
            "broker_connections_closed",
            "Connections closed since a limit of them was reached",
            metrics.closed.clone(),
        );
        metrics.set_streams(0, 0);
        metrics
    }

    pub(crate) fn set_streams(&self, serving: usize, joined: usize) {
        let gauge = |which| self.streams.get_or_create(&[("use", which)]);
        gauge("serving").set(count(serving));
        gauge("warm").set(count(joined.saturating_sub(serving)));
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn set_connections(&self, port: Port, usage: Usage) {
        let gauge = |state| {
            let labels = [("port", port.as_str()), ("state", state)];
            self.connections.get_or_create(&labels)
        };
        gauge("authenticated").set(count(usage.authenticated));
        gauge("unauthenticated").set(count(usage.unauthenticated));
    }

    pub(crate) fn connection_closed(&self, port: Port, limit: Limit) {
        let labels = [("port", port.as_str()), ("limit", limit.as_str())];
        self.closed.get_or_create(&labels).inc();
    }

    pub(crate) fn set_pods(&self, pods: usize) {
        self.pods.set(count(pods));
    }

    pub(crate) fn address_claimed_twice(&self) {
        self.claimed_twice.inc();
    }

    pub(crate) fn kiam_user(&self) -> KiamUser {
        self.kiam_users.inc();
        KiamUser(self.kiam_users.clone())
    }

    pub(crate) fn kiam(&self, outcome: &'static str) {
        self.kiam.get_or_create(&[("outcome", outcome)]).inc();
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
