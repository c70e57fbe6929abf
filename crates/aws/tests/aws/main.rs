//! The crate against stand-ins of STS and the metadata service, over real sockets.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, its helpers too"
)]

mod attribution;
mod chain;
mod default_chain;
mod discovery;
mod imds;
mod raw;
mod secrecy;
mod sts;
mod throttling;

use std::net::{Ipv4Addr, SocketAddr};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
