//! The metadata server: serves pods on the address of the instance metadata service.
//!
//! A request is served from memory: address → entry → session → bytes. If a part is missing, the
//! request waits for the event that adds it, and never for a timer, up to a deadline below the
//! SDKs' own.

mod credentials;
mod forward;
mod handler;
mod health;
mod reply;
mod validate;

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use rolegate_aws::imds::Imds;
use rolegate_core::metadata::AllowList;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::serve;
use tokio::net::TcpListener;

use crate::credentials::CredentialSource;
use crate::limits::{LimitOptions, Limits, Peer};
use crate::pod_table::Owner;
use crate::token::TokenKeys;

pub use health::NodeHealth;

/// Maximum size of a request's head, in bytes. SDKs send a few hundred.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// The use of IMDSv2 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImdsV2 {
    /// Tokens are issued and checked, but not required.
    #[default]
    Optional,
    /// Requests without a token are refused.
    Required,
}

/// The options of the metadata server.
#[derive(Debug, Clone)]
pub struct MetadataOptions {
    /// The use of IMDSv2 tokens.
    pub imds_v2: ImdsV2,
    /// The paths of the node's metadata service that pods may read.
    pub allow: AllowList,
    /// Limits per pod and for all pods.
    pub limits: LimitOptions,
    /// Timeout of a request's head, and idle timeout.
    pub header_time: Duration,
}

/// The metadata server of one node.
#[derive(Debug)]
pub struct MetadataServer {
    options: MetadataOptions,
    credentials: CredentialSource,
    tokens: Arc<TokenKeys>,
    imds: Imds,
    cache: forward::Cache,
    limits: Arc<Limits>,
    health: NodeHealth,
}

/// The parts of the agent that a server uses.
#[derive(Debug)]
pub struct MetadataParts {
    /// The credentials of this node's pods.
    pub credentials: CredentialSource,
    /// The keys that issue and check tokens.
    pub tokens: Arc<TokenKeys>,
    /// The node's metadata service.
    pub imds: Imds,
    /// The content of kube2iam's health page.
    pub health: NodeHealth,
}

impl MetadataServer {
    /// Creates a server that does not listen yet.
    pub fn new(options: MetadataOptions, parts: MetadataParts) -> Arc<Self> {
        Arc::new(Self {
            cache: forward::Cache::default(),
            limits: Limits::new(options.limits, parts.credentials.metrics.clone()),
            options,
            credentials: parts.credentials,
            tokens: parts.tokens,
            imds: parts.imds,
            health: parts.health,
        })
    }

    /// Returns its limits and their state.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Serves connections of `listener` until the drain begins.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let limits = self
            .limits
            .of_server(self.options.header_time, MAX_HEAD_BYTES);
        serve::serve_evictable(listener, limits, drain, move |peer, own| {
            let address = peer.ip().to_canonical();
            let (peer, known) = match self.credentials.pod_table.owner(address) {
                Some(Owner::Pod(entry)) => (Peer::Pod(entry.workload.uid.clone()), true),
                // Before pods are known, each address may belong to a pod.
                Some(Owner::Disputed) | None => (
                    Peer::Address(address),
                    !self.credentials.pod_table.has_synced(),
                ),
            };
            let (connection, eviction) =
                self.limits
                    .connect(peer, known, self.credentials.clock.now());
            let own = own.ip().to_canonical();
            let handler = handler::RequestHandler::new(self.clone(), connection, address, own);
            let service = service_fn(move |request| {
                let reply = handler.clone().respond(request);
                async { Ok(reply.await) }
            });
            Some((service, eviction))
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
