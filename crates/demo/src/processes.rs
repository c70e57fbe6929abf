//! The address and the timeouts of the processes that the demo starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Timeout until a process is ready.
pub(super) const READY: Duration = Duration::from_secs(15);
/// Timeout until a process exits.
pub(super) const DRAIN: Duration = Duration::from_secs(2);
/// The loopback address with any port.
pub(super) const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
