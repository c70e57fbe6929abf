//! The metadata door: answers pods on the address of the instance metadata service.
//!
//! The path of a request is in memory: address → resident → session → bytes. What is not there
//! yet is waited for, on the event that brings it and never on a timer, up to a deadline that is
//! below the SDKs' own.

mod answer;
mod forward;
mod health;
mod screen;
mod service;

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use rolegate_aws::imds::Imds;
use rolegate_core::metadata::AllowList;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::serve;
use rolegate_standing::tell::Tell;
use tokio::net::TcpListener;

use crate::guard::Guard;
use crate::judge::Judge;
use crate::limits::{LimitOptions, Limits, Peer};
use crate::metrics::AgentMetrics;
use crate::picture::{Owner, Picture};
use crate::token::TokenKeys;

pub use health::NodeHealth;

/// Longest head of a request, bytes: SDKs send some hundreds.
const HEADER_BYTES: usize = 8 * 1024;

/// Whether a token of version 2 is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImdsV2 {
    /// Taken and checked, not demanded.
    #[default]
    Optional,
    /// Requests without a token are refused.
    Required,
}

/// How the door behaves.
#[derive(Debug, Clone)]
pub struct DoorOptions {
    /// Whether tokens are demanded.
    pub imds_v2: ImdsV2,
    /// What pods may read of the node's metadata service.
    pub allow: AllowList,
    /// How long a request waits for the watch or for STS.
    pub wait: Duration,
    /// How old the picture may be.
    pub max_picture_age: Duration,
    /// Limits for each pod and in all.
    pub limits: LimitOptions,
    /// How long a client may take for a request's head, and stay idle.
    pub header_time: Duration,
}

/// The metadata door of one node.
#[derive(Debug)]
pub struct Door {
    options: DoorOptions,
    picture: Arc<Picture>,
    judge: Judge,
    guard: Guard,
    tokens: Arc<TokenKeys>,
    imds: Imds,
    cache: forward::Cache,
    limits: Arc<Limits>,
    clock: Clock,
    metrics: AgentMetrics,
    tell: Tell,
    health: NodeHealth,
}

/// What a door needs of the rest of the agent.
#[derive(Debug)]
pub struct DoorParts {
    /// Who has which address.
    pub picture: Arc<Picture>,
    /// What pods may have.
    pub judge: Judge,
    /// Checks that addresses are at their pods' places.
    pub guard: Guard,
    /// Makes and checks tokens.
    pub tokens: Arc<TokenKeys>,
    /// The node's own metadata service.
    pub imds: Imds,
    /// The time.
    pub clock: Clock,
    /// Counts requests.
    pub metrics: AgentMetrics,
    /// Tells pods' owners.
    pub tell: Tell,
    /// What kube2iam's health page shows.
    pub health: NodeHealth,
}

impl Door {
    /// A door that is not open yet.
    pub fn new(options: DoorOptions, parts: DoorParts) -> Arc<Self> {
        Arc::new(Self {
            cache: forward::Cache::default(),
            limits: Limits::new(options.limits, parts.metrics.clone()),
            options,
            picture: parts.picture,
            judge: parts.judge,
            guard: parts.guard,
            tokens: parts.tokens,
            imds: parts.imds,
            clock: parts.clock,
            metrics: parts.metrics,
            tell: parts.tell,
            health: parts.health,
        })
    }

    /// Its limits, and which of them were reached.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Answers on `listener` until the drain has begun.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, drain: Drain) {
        let limits = serve::Limits {
            // The limits of the door evict others and are never waited for.
            connections: self.limits.most_connections(),
            header_time: self.options.header_time,
            header_bytes: HEADER_BYTES,
            ..serve::Limits::default()
        };
        serve::serve_evictable(listener, limits, drain, move |peer, own| {
            let address = peer.ip().to_canonical();
            let (peer, known) = match self.picture.owner(address) {
                Some(Owner::Pod(resident)) => (Peer::Pod(resident.workload.uid.clone()), true),
                // Before pods are known, each address may be one's.
                Some(Owner::Disputed) | None => {
                    (Peer::Address(address), !self.picture.is_settled())
                }
            };
            let (connection, eviction) = self.limits.connect(peer, known, self.clock.now());
            let own = own.ip().to_canonical();
            let visit = service::Visit::new(self.clone(), connection, address, own);
            let service = service_fn(move |request| {
                let answer = visit.clone().answer(request);
                async { Ok(answer.await) }
            });
            Some((service, eviction))
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
