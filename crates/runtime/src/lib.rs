//! Common parts of every rolegate process: supervised tasks, logs, metrics, readiness, graceful
//! shutdown, the admin port, servers with limits, and a clock that tests can control.
//!
//! Nothing here depends on roles, pods or AWS. The log subscriber is the only global: each process
//! creates the rest at startup and passes it down.

mod accept;
pub mod admin;
pub mod backoff;
pub mod clock;
pub mod drain;
pub mod histogram;
pub mod http2;
pub mod keyed_limit;
pub mod logging;
pub mod metrics;
pub mod peer;
pub mod process;
pub mod rate;
pub mod readiness;
pub mod serve;
pub mod shares;
pub mod signals;
pub mod staleness;
pub mod supervisor;
#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
pub mod tls;
mod transport;
pub mod version;
