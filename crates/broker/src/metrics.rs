//! The broker's metrics.

use std::ops::Deref;
use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_runtime::http2::{Limit, Usage};

use crate::identity::AuthnRejection;

type Label = [(&'static str, &'static str); 1];
type TwoLabels = [(&'static str, &'static str); 2];

/// The reason for refusing a stream of a node that has the maximum number of streams or connections.
pub(crate) const CROWDED: &str = "crowded";
/// The reason for refusing a stream of a node that activates streams too often.
pub(crate) const BEGINS: &str = "begins";

/// The outcomes of requests of kiam's agents.
const KIAM_OUTCOMES: [&str; 6] = [
    "served",
    "denied",
    "failed",
    "unavailable",
    "unknown",
    "refused",
];

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

/// The broker's metrics. Cloning is cheap; clones share state.
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
            "Streams of agents, by use: serving pods, or on standby",
            metrics.streams.clone(),
        );
        registry.register(
            "broker_refused",
            "Streams rejected or closed because authentication failed or a limit was reached",
            metrics.refused.clone(),
        );
        registry.register("pods", "Pods of all nodes", metrics.pods.clone());
        registry.register(
            "broker_address_claimed_twice",
            "Conflicts between pods on different nodes that claimed the same IP",
            metrics.claimed_twice.clone(),
        );
        registry.register(
            "broker_kiam_connections",
            "Connections of kiam agents, which are identified by their address only",
            metrics.kiam_users.clone(),
        );
        registry.register(
            "broker_kiam_requests",
            "Credential requests of kiam agents, by outcome",
            metrics.kiam.clone(),
        );
        registry.register(
            "broker_connections",
            "Connections to the ports for agents, including those of unknown peers",
            metrics.connections.clone(),
        );
        registry.register(
            "broker_connections_closed",
            "Connections closed because a limit was reached",
            metrics.closed.clone(),
        );
        metrics.set_streams(0, 0);
        // At 0, since the increase of a series that appears with its first event is not seen.
        let rejections = AuthnRejection::ALL.map(AuthnRejection::reason);
        for reason in rejections.into_iter().chain([CROWDED, BEGINS]) {
            drop(metrics.refused.get_or_create(&[("reason", reason)]));
        }
        for outcome in KIAM_OUTCOMES {
            drop(metrics.kiam.get_or_create(&[("outcome", outcome)]));
        }
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
        for limit in Limit::ALL {
            drop(self.closed(port, limit));
        }
    }

    fn closed(&self, port: Port, limit: Limit) -> impl Deref<Target = Counter> {
        let labels = [("port", port.as_str()), ("limit", limit.as_str())];
        self.closed.get_or_create(&labels)
    }

    pub(crate) fn connection_closed(&self, port: Port, limit: Limit) {
        self.closed(port, limit).inc();
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

#[cfg(test)]
mod tests {
    use rolegate_runtime::test_util::Exposition;

    use super::*;

    #[test]
    fn everything_is_counted_under_its_label() {
        let mut registry = Registry::default();
        let metrics = BrokerMetrics::register(&mut registry);
        metrics.set_streams(2, 5);
        metrics.refused("token");
        let usage = Usage {
            authenticated: 3,
            unauthenticated: 4,
            reached: None,
        };
        metrics.set_connections(Port::Agents, usage);
        metrics.connection_closed(Port::Agents, Limit::Rate);
        metrics.connection_closed(Port::Kiam, Limit::Authenticated);
        metrics.set_pods(7);
        metrics.address_claimed_twice();
        metrics.kiam("served");
        let user = metrics.kiam_user();
        drop(metrics.kiam_user());
        Exposition::encode(&registry).assert_lines([
            r#"broker_streams{use="serving"} 2"#,
            r#"broker_streams{use="warm"} 3"#,
            r#"broker_refused_total{reason="token"} 1"#,
            r#"broker_refused_total{reason="gone"} 0"#,
            r#"broker_refused_total{reason="crowded"} 0"#,
            r#"broker_connections{port="agents",state="authenticated"} 3"#,
            r#"broker_connections{port="agents",state="unauthenticated"} 4"#,
            r#"broker_connections_closed_total{port="agents",limit="rate"} 1"#,
            r#"broker_connections_closed_total{port="agents",limit="authenticated"} 0"#,
            r#"broker_connections_closed_total{port="kiam",limit="authenticated"} 1"#,
            "pods 7",
            "broker_address_claimed_twice_total 1",
            r#"broker_kiam_requests_total{outcome="served"} 1"#,
            r#"broker_kiam_requests_total{outcome="refused"} 0"#,
            "broker_kiam_connections 1",
        ]);
        drop(user);
        assert_eq!(metrics.kiam_users.get(), 0);
    }
}
