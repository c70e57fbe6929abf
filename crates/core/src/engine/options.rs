//! Limits and counters of a session engine.

use jiff::SignedDuration;

use super::seconds;

/// Default limit of calls in flight.
const IN_FLIGHT: usize = 64;

/// Limits of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Maximum number of calls in flight; 0 for no limit.
    pub in_flight: usize,
    /// Maximum number of prefetches in flight (first fetches that no pod waits for, and refreshes).
    /// The remaining calls are reserved for fetches that a pod waits for.
    pub ahead: usize,
    /// Maximum number of calls per second; 0 for no limit. All callers in an account share STS's
    /// own limit.
    pub calls_per_second: u32,
    /// Number of first fetches for new pods that a namespace may cause at once.
    pub namespace_burst: u32,
    /// Sustained rate of such first fetches, per second.
    pub namespace_rate: f64,
    /// Budget charged for a fetch caused by a pod change; a fetch for a new pod costs 1.
    pub change_cost: u32,
    /// Maximum number of unused sessions and failures kept for each namespace.
    pub namespace_idle: usize,
    /// Delay of the first retry after a final error. It doubles up to 5 min, or stays as it is if
    /// longer.
    pub final_retry: SignedDuration,
}

impl EngineOptions {
    /// Returns limits for the pods of one node. A burst of prefetches takes at most a quarter of
    /// the calls, and so little memory. Calls per second are unlimited: one node's rate says little
    /// about the account's quota, and a limit would only delay its pods when many start. Throttling
    /// by STS still slows the engine.
    pub fn for_node(in_flight: usize) -> Self {
        Self {
            in_flight,
            ahead: (in_flight / 4).max(1),
            calls_per_second: 0,
            namespace_burst: 600,
            namespace_rate: 5.0,
            change_cost: 10,
            namespace_idle: 8,
            final_retry: seconds(30),
        }
    }

    /// Returns limits for the pods of a whole cluster, where nearly all calls may be prefetches.
    /// Since the scheduler limits the number of new pods in a namespace, their budget is ten times
    /// that of a node. Pod changes are not limited otherwise, so their budget is the same.
    pub fn for_cluster(in_flight: usize) -> Self {
        let node = Self::for_node(in_flight);
        Self {
            ahead: (in_flight - in_flight / 8).max(1),
            namespace_burst: node.namespace_burst * 10,
            namespace_rate: node.namespace_rate * 10.0,
            change_cost: node.change_cost * 10,
            calls_per_second: 200,
            ..node
        }
    }

    /// Removes the limit of calls per second.
    #[must_use]
    pub fn without_rate_limit(self) -> Self {
        Self {
            calls_per_second: 0,
            ..self
        }
    }
}

impl Default for EngineOptions {
    /// Returns [`EngineOptions::for_node`].
    fn default() -> Self {
        Self::for_node(IN_FLIGHT)
    }
}

/// Counters of an engine, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Known sessions.
    pub sessions: usize,
    /// Queued sessions that a pod waits for.
    pub urgent: usize,
    /// Other queued sessions.
    pub prefetch: usize,
    /// Sessions that wait for the budget of a namespace.
    pub held: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// Age of the oldest queue entry; zero if the queues are empty.
    pub oldest_wait: SignedDuration,
    /// Current limit of calls per second; `None` for no limit.
    pub rate: Option<f64>,
}
