//! What every rolegate process needs, whatever it does: logs, metrics, readiness, an orderly end,
//! the port for operators and a clock that tests can wind.
//!
//! Nothing here knows of roles, pods or AWS. There are no globals except the log subscriber:
//! each process builds these once and hands them down.

pub mod admin;
pub mod clock;
pub mod drain;
pub mod histogram;
pub mod http2;
pub mod logging;
pub mod metrics;
pub mod peer;
pub mod places;
pub mod process;
pub mod rate;
pub mod readiness;
pub mod serve;
pub mod shares;
pub mod signals;
pub mod tls;
pub mod version;
