//! The limits of an engine, and the numbers that it shows.

use jiff::SignedDuration;

use super::seconds;

/// Calls in flight unless somebody says otherwise.
const IN_FLIGHT: usize = 64;

/// Limits of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Most calls in flight at once; 0 for no limit.
    pub in_flight: usize,
    /// Most of them that are ahead of need (first fetches that no pod waits for, and refreshes);
    /// the others are kept free for pods that ask.
    pub ahead: usize,
    /// Most calls a second; 0 for no limit. STS's own limit is shared by all of an account.
    pub calls_per_second: u32,
    /// First fetches for new pods that a namespace may cause at once.
    pub namespace_burst: u32,
    /// The same, a second, in the long run.
    pub namespace_rate: f64,
    /// How many new pods a change of a pod costs as much as.
    pub change_cost: u32,
    /// Sessions of a namespace that are kept, or remembered to fail, though no pod needs them at
    /// the moment.
    pub namespace_idle: usize,
    /// The first wait after a final error; doubled up to 5 min, or itself if that is longer.
    pub final_retry: SignedDuration,
}

impl EngineOptions {
    /// For the pods of one node: a burst of prefetches takes a quarter of the calls at the most,
    /// and so little memory. Calls a second have no limit: what one node calls says little of the
    /// account's quota, and its pods would wait for nothing when many start. Throttling slows it.
    pub fn of_node(in_flight: usize) -> Self {
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

    /// For the pods of a whole cluster: nearly all calls may be ahead of need. The scheduler limits
    /// how many new pods a namespace gets, so these have ten times the allowance of a node; changes
    /// of pods, which nobody limits, have no more.
    pub fn of_cluster(in_flight: usize) -> Self {
        let node = Self::of_node(in_flight);
        Self {
            ahead: (in_flight - in_flight / 8).max(1),
            namespace_burst: node.namespace_burst * 10,
            namespace_rate: node.namespace_rate * 10.0,
            change_cost: node.change_cost * 10,
            calls_per_second: 200,
            ..node
        }
    }

    /// The same with no limit of calls a second.
    #[must_use]
    pub fn without_pace(self) -> Self {
        Self {
            calls_per_second: 0,
            ..self
        }
    }
}

impl Default for EngineOptions {
    /// [`EngineOptions::of_node`].
    fn default() -> Self {
        Self::of_node(IN_FLIGHT)
    }
}

/// How an engine fares, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Sessions known.
    pub sessions: usize,
    /// Sessions in line for a call that a pod waits for.
    pub urgent: usize,
    /// The others in line.
    pub prefetch: usize,
    /// Sessions that wait for the allowance of a namespace that wants them.
    pub held: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// How long the one that is longest in line has been there; zero where none is.
    pub oldest_wait: SignedDuration,
    /// Calls a second that may be made now; `None` for no limit.
    pub rate: Option<f64>,
}
