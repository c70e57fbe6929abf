//! The container credentials endpoint: serves pods that present their ServiceAccount token, as EKS
//! Pod Identity does.
//!
//! The caller is the pod that its token is bound to, and never the address of the connection: CSI
//! drivers present the tokens of other pods, and pods on the host network have no address of their
//! own. The token is verified on this node with the cluster's keys, and its pod must be alive on
//! this node. The rest is as for every endpoint ([`crate::credentials`]).

mod caller;
mod document;
mod handler;
mod reply;
#[cfg(test)]
mod tests;
mod validate;
mod verified;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use rolegate_kube::service_account_keys::ServiceAccountKeys;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::serve;
use tokio::net::TcpListener;

use crate::credentials::CredentialSource;
use crate::limits::{LimitOptions, Limits, Peer};
use crate::pod_table::Owner;
use verified::VerifiedTokens;

/// IPv4 address of the endpoint on EKS, one of the few that SDKs accept with `http`.
pub const CONTAINER_CREDENTIALS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 23);
/// IPv6 address of the endpoint on EKS.
pub const CONTAINER_CREDENTIALS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23);

/// Maximum number of addresses.
pub const MAX_ADDRESSES: usize = 4;
/// Maximum size of a request's head, in bytes: a token of 8 KiB and the headers of SDKs.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Interval at which expired tokens and those of deleted pods are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The options of the endpoint.
#[derive(Debug, Clone)]
pub struct ContainerCredentialsOptions {
    /// The addresses to listen on. One that the host cannot bind is reported and left out.
    pub listen: Vec<SocketAddr>,
    /// The audience that tokens must have.
    pub audience: Arc<str>,
    /// The name of this node. Tokens that name another node are refused.
    pub node: Arc<str>,
    /// Limits per pod and for all pods. Forwards are verifications of tokens here.
    pub limits: LimitOptions,
    /// Timeout of a request's head, and idle timeout.
    pub header_time: Duration,
}

/// The container credentials endpoint of one node.
#[derive(Debug)]
pub struct ContainerCredentialsServer {
    options: ContainerCredentialsOptions,
    credentials: CredentialSource,
    keys: ServiceAccountKeys,
    tokens: VerifiedTokens,
    limits: Arc<Limits>,
}

impl ContainerCredentialsServer {
    /// Creates a server that does not listen yet.
    pub fn new(
        options: ContainerCredentialsOptions,
        credentials: CredentialSource,
        keys: ServiceAccountKeys,
    ) -> Arc<Self> {
        Arc::new(Self {
            tokens: VerifiedTokens::default(),
            limits: Limits::new(options.limits, credentials.metrics.clone()),
            options,
            credentials,
            keys,
        })
    }

    /// Returns its limits and their state.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Forgets tokens that cannot be used any more, at intervals. Never returns.
    pub async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            let pods = &self.credentials.pod_table;
            let is_alive = |uid: &str| pods.pod(uid).is_some();
            self.tokens.sweep(self.credentials.clock.now(), is_alive);
        }
    }

    /// Serves connections of `listener` until the drain begins.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let limits = self
            .limits
            .of_server(self.options.header_time, MAX_HEAD_BYTES);
        serve::serve_evictable(listener, limits, drain, move |peer, own| {
            let (peer, own) = (peer.ip().to_canonical(), own);
            let (charged, known) = self.charged(peer, own.ip().to_canonical());
            let now = self.credentials.clock.now();
            let (connection, eviction) = self.limits.connect(charged, known, now);
            let handler = handler::RequestHandler::new(self.clone(), connection, own);
            let service = service_fn(move |request| {
                let reply = handler.clone().respond(request);
                async { Ok(reply.await) }
            });
            Some((service, eviction))
        })
        .await;
    }

    /// Returns the client that a connection is charged to, and whether it is known. The address
    /// does not identify the caller; it only keeps a pod from taking the connections of its neighbors.
    fn charged(&self, peer: IpAddr, own: IpAddr) -> (Peer, bool) {
        let pods = &self.credentials.pod_table;
        match pods.owner(peer) {
            Some(Owner::Pod(entry)) => (Peer::Pod(entry.workload.uid.clone()), true),
            // The kernel gives connections of this host to one of its own addresses that address
            // as source, so a pod on the host network is known by it.
            _ if peer == own || peer.is_loopback() => (Peer::Address(peer), true),
            Some(Owner::Disputed) | None => (Peer::Address(peer), !pods.has_synced()),
        }
    }
}
