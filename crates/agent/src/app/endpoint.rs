//! The sockets of the container credentials endpoint: its link, and listeners on addresses that the
//! host may lack for a while.
//!
//! Each address is served for itself, so that a host without IPv6 serves IPv4. An address that
//! cannot be bound is tried again, since another agent may hold it until it exits.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rolegate_redirect::ensure_link;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::readiness::{Condition, Health};
use rolegate_runtime::serve::listen;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::container_credentials::{ContainerCredentialsServer, MAX_ADDRESSES};

/// Interval at which the link is checked and missing addresses are bound.
const INTERVAL: Duration = Duration::from_secs(5);

/// An address of the endpoint, and its listener if it is bound.
struct Place {
    address: SocketAddr,
    listener: Option<TcpListener>,
    /// True once a task serves the listener.
    is_served: bool,
    /// The last reason why it is not bound.
    why: Option<String>,
}

/// The listeners of the endpoint.
pub(super) struct EndpointSockets {
    places: Vec<Place>,
    condition: Condition,
}

impl EndpointSockets {
    /// Takes those of the inherited sockets that have one of the addresses, and binds the others.
    pub(super) async fn open(
        addresses: &[SocketAddr],
        inherited: Vec<OwnedFd>,
        condition: Condition,
    ) -> std::io::Result<Self> {
        let mut given = Vec::new();
        for socket in inherited {
            given.push(listener(socket)?);
        }
        let mut sockets = Self {
            places: Vec::new(),
            condition,
        };
        for address in addresses {
            let is_it =
                |listener: &TcpListener| listener.local_addr().is_ok_and(|bound| bound == *address);
            let found = given.iter().position(is_it);
            sockets.places.push(Place {
                address: *address,
                listener: found.map(|place| given.swap_remove(place)),
                is_served: false,
                why: None,
            });
        }
        sockets.ensure().await;
        sockets.report();
        Ok(sockets)
    }

    /// Returns the bound addresses.
    pub(super) fn addresses(&self) -> [Option<SocketAddr>; MAX_ADDRESSES] {
        let mut bound = self.listeners().map(TcpListener::local_addr);
        std::array::from_fn(|_| bound.next().and_then(Result::ok))
    }

    /// Returns the listeners.
    pub(super) fn listeners(&self) -> impl Iterator<Item = &TcpListener> {
        self.places
            .iter()
            .filter_map(|place| place.listener.as_ref())
    }

    /// Serves all listeners, checks the link, and serves addresses that can be bound later.
    pub(super) async fn serve(mut self, server: Arc<ContainerCredentialsServer>, drain: Drain) {
        let begun = drain.begun();
        tokio::pin!(begun);
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.tick().await;
        loop {
            for place in &mut self.places {
                if let Some(listener) = place.listener.take() {
                    place.is_served = true;
                    drain.spawn(server.clone().serve(listener, drain.clone()));
                }
            }
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut begun => return,
            }
            self.ensure().await;
            self.report();
        }
    }

    /// Checks the link, and binds the addresses that are not bound.
    async fn ensure(&mut self) {
        let mut missing = self.link().await;
        for place in &mut self.places {
            place.why = missing.take(place.address.ip());
            if place.listener.is_none() && !place.is_served {
                place.bind();
            }
        }
    }

    /// Creates the link or what it lacks. Loopback addresses need none.
    async fn link(&self) -> Missing {
        let addresses = self.places.iter().map(|place| place.address.ip());
        let addresses: Vec<_> = addresses.filter(|ip| !ip.is_loopback()).collect();
        if addresses.is_empty() {
            return Missing::default();
        }
        match ensure_link(&addresses).await {
            Ok(state) => {
                if state.changed {
                    info!(
                        link = rolegate_redirect::ENDPOINT_LINK,
                        "created or repaired the link"
                    );
                }
                let reasons = state.missing.into_iter();
                Missing(reasons.map(|(ip, error)| (ip, error.to_string())).collect())
            }
            Err(error) => {
                let reasons = addresses.iter().map(|ip| (*ip, error.to_string()));
                Missing(reasons.collect())
            }
        }
    }

    /// Reports which addresses are not served. One that is served is enough to be ready.
    fn report(&self) {
        let faults: Vec<_> = self
            .places
            .iter()
            .filter_map(|place| Some(format!("{}: {}", place.address, place.why.as_deref()?)))
            .collect();
        let text = faults.join("; ");
        if faults.is_empty() {
            self.condition.ok();
            return;
        }
        let fault = format!("not served: {text}");
        let health = if faults.len() < self.places.len() {
            Health::Noted(fault)
        } else {
            Health::Failing(fault)
        };
        if self.condition.set(health) {
            warn!(
                reason = text,
                "cannot serve container credentials on an address, retrying"
            );
        }
    }
}

impl Place {
    /// Binds the address, unless the link lacks it: the address may belong to another program.
    fn bind(&mut self) {
        if self.why.is_some() {
            return;
        }
        match listen(self.address) {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => self.why = Some(error.to_string()),
        }
    }
}

/// Converts an inherited socket.
pub(super) fn listener(socket: OwnedFd) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// The addresses that the link lacks, each with the reason.
#[derive(Default)]
struct Missing(Vec<(IpAddr, String)>);

impl Missing {
    fn take(&mut self, ip: IpAddr) -> Option<String> {
        let place = self.0.iter().position(|(missing, _)| *missing == ip)?;
        Some(self.0.swap_remove(place).1)
    }
}
