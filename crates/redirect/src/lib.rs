//! The redirect of pods' metadata traffic in the host's kernel: it is installed, monitored, listed
//! and removed, with nftables or iptables, together with its routing rules.
//! [`rules`] defines the rules; this module applies them to the kernel.
//!
//! The programs `nft` and `iptables` run directly, so an image needs them and their libraries but
//! no shell. Routing rules are set with netlink. Both act on the network namespace of the calling
//! thread.

mod backend;
pub mod check;
mod command;
mod foreign;
mod ingress;
mod interface;
mod link;
mod monitor;
mod reconciler;
mod routing;
pub mod rules;

use std::path::Path;

use crate::rules::{Family, RoutingRule, Spec};
use parking_lot::Mutex;

pub use backend::{Backend, Choice, Flavour, UnknownBackend};
pub use foreign::{ForeignRule, ForeignRules, foreign_rules};
pub use ingress::ingress_interfaces;
pub use interface::{
    CNI_CONF_DIR, DetectError, Detected, Detector, InterfaceChoice, all_but_uplink,
};
pub use link::{ENDPOINT_LINK, LinkError, LinkState, ensure_link, remove_link};
pub use reconciler::{RedirectReconciler, Status};

/// An error in reading or changing the kernel's rules.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The program is not installed.
    #[error("{program} is not installed: {hint}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The fix.
        hint: &'static str,
    },
    /// The program failed.
    #[error("{program} failed: {why}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its error output, truncated.
        why: String,
    },
    /// The program timed out and was killed.
    #[error("{program} took longer than {seconds} s and was stopped")]
    TimedOut {
        /// The program.
        program: &'static str,
        /// The timeout, in seconds.
        seconds: u64,
    },
    /// The program printed too much.
    #[error("{program} printed more than {limit} bytes")]
    OutputTooLarge {
        /// The program.
        program: &'static str,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The program could not be started.
    #[error("cannot run {program}: {source}")]
    Io {
        /// The program.
        program: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Some or all of the rules that were just applied are missing.
    #[error("another program removes or changes the redirect while it is applied")]
    RulesRemoved,
    /// The netlink socket could not be opened, or failed.
    #[error("cannot reach the kernel's routing rules: {0}")]
    Netlink(std::io::Error),
    /// The kernel does not list its interfaces, or their peers.
    #[error("cannot read this host's network interfaces: {0}")]
    Interfaces(String),
    /// The kernel rejected a routing rule, or does not support them.
    #[error(
        "the kernel rejected a routing rule: {0}; the agent needs the capability NET_ADMIN and a kernel with policy routing"
    )]
    RoutingRules(Box<rtnetlink::Error>),
    /// The link of the container credentials endpoint cannot be removed.
    #[error(transparent)]
    Link(#[from] Box<LinkError>),
    /// Neither backend works.
    #[error(
        "this host accepts neither nftables nor iptables rules ({nftables}; {iptables}): the agent needs the host's network, the capability NET_ADMIN and one of them installed, or --redirect=none with rules of your own"
    )]
    NoBackend {
        /// The reason why nftables does not work.
        nftables: Box<RedirectError>,
        /// The reason why iptables does not work.
        iptables: Box<RedirectError>,
    },
}

/// Maximum number of attempts to apply a redirect that another program removes at once.
const MAX_APPLY_ATTEMPTS: u32 = 3;

/// The state of the kernel's rules compared to those that were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Unchanged.
    InPlace,
    /// No rules.
    Missing,
    /// Changed: some rules are missing or were added, a jump is no longer first, or another process
    /// applied them.
    Altered,
}

/// A redirect with one backend.
#[derive(Debug)]
pub struct Redirect {
    backend: Backend,
    spec: Spec,
    /// The kernel's listing of the applied rules. The programs normalise their input, so only
    /// listings can be compared with each other.
    applied: Mutex<Option<String>>,
}

impl Redirect {
    /// Creates a redirect without changing the kernel.
    pub fn new(backend: Backend, spec: Spec) -> Self {
        Self {
            backend,
            spec,
            applied: Mutex::new(None),
        }
    }

    /// Returns its backend.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Returns its rules.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Applies the redirect and replaces earlier rules of rolegate. It is idempotent, and at no
    /// moment is less traffic blocked than before.
    ///
    /// # Errors
    /// Returns an error if the program is missing or fails. The earlier rules then stay.
    pub async fn apply(&self) -> Result<(), RedirectError> {
        if self.backend == Backend::None {
            return Ok(());
        }
        // Rules that only block are applied first. If the kernel rejects them, the redirect is
        // still useful.
        let routing = routing::apply().await;
        let mut tries = 1;
        let listing = loop {
            match self.put().await {
                Ok(listing) => break listing,
                // Another program changed the rules concurrently: the listing is outdated, or the
                // rules are gone already.
                Err(RedirectError::RulesRemoved | RedirectError::Failed { .. })
                    if tries < MAX_APPLY_ATTEMPTS =>
                {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        };
        *self.applied.lock() = Some(listing);
        routing
    }

    /// Applies the rules, and returns the kernel's listing of them.
    async fn put(&self) -> Result<String, RedirectError> {
        self.backend.apply(&self.spec).await?;
        let listing = self.backend.whole(&self.spec).await?;
        listing.ok_or(RedirectError::RulesRemoved)
    }

    /// Compares the kernel's rules with those that [`apply`](Self::apply) installed.
    ///
    /// # Errors
    /// Returns an error if the program is missing or fails.
    pub async fn state(&self) -> Result<State, RedirectError> {
        if self.backend == Backend::None {
            return Ok(State::InPlace);
        }
        let routing = routing::state().await?;
        let Some(listing) = self.backend.listing().await? else {
            return Ok(match routing {
                State::Missing => State::Missing,
                State::InPlace | State::Altered => State::Altered,
            });
        };
        let applied = self.applied.lock();
        Ok(
            if applied.as_ref() == Some(&listing) && routing == State::InPlace {
                State::InPlace
            } else {
                State::Altered
            },
        )
    }

    /// Removes the redirect and the rules that block the metadata address.
    ///
    /// # Errors
    /// Returns an error if the program is missing or fails.
    pub async fn remove(&self) -> Result<(), RedirectError> {
        remove(self.backend).await
    }
}

/// Removes the rules of a redirect with this backend, including the routing rules.
///
/// # Errors
/// Returns an error if the program or the kernel fails.
pub async fn remove(backend: Backend) -> Result<(), RedirectError> {
    if backend == Backend::None {
        return Ok(());
    }
    backend.remove().await?;
    routing::remove().await.map(|_| ())
}

/// The rules that [`remove_all`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The backends that had rules.
    pub backends: Vec<Backend>,
    /// True if there were routing rules.
    pub routing_rules: bool,
    /// True if there was the link of the container credentials endpoint.
    pub link: bool,
}

/// Removes rolegate's rules from every backend of this host, the routing rules, and the link of the
/// container credentials endpoint.
///
/// # Errors
/// Returns an error if a program or the kernel fails.
pub async fn remove_all() -> Result<Removed, RedirectError> {
    let mut backends = Vec::new();
    for backend in Backend::ALL {
        match backend.remove().await {
            Ok(true) => backends.push(backend),
            Ok(false) | Err(RedirectError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Removed {
        backends,
        routing_rules: routing::remove().await?,
        link: remove_link().await.map_err(Box::new)?,
    })
}

/// Returns rolegate's routing rules in the kernel.
///
/// # Errors
/// Returns an error if the kernel cannot be queried.
pub async fn routing_rules() -> Result<Vec<RoutingRule>, RedirectError> {
    routing::present().await
}

/// Returns the state of the redirect's routing rules, whichever process added them.
///
/// # Errors
/// Returns an error if the kernel cannot be queried.
pub async fn routing_state() -> Result<State, RedirectError> {
    routing::state().await
}

/// Returns the address families of this host's kernel. A kernel without IPv6 has no rules for it.
fn families() -> impl Iterator<Item = Family> {
    let v6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    Family::ALL
        .into_iter()
        .filter(move |family| *family == Family::V4 || v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_backend_nothing_is_changed_and_all_is_in_place() {
        let host = Some([10, 0, 0, 1].into());
        let spec = Spec::new(host, None, 8181, "eni+".parse().unwrap()).unwrap();
        let redirect = Redirect::new(Backend::None, spec.clone());
        assert_eq!(
            (redirect.backend(), redirect.spec()),
            (Backend::None, &spec)
        );
        redirect.apply().await.unwrap();
        assert_eq!(redirect.state().await.unwrap(), State::InPlace);
        redirect.remove().await.unwrap();
    }

    #[test]
    fn every_kernel_has_ipv4_rules() {
        assert_eq!(families().next(), Some(Family::V4));
        let has_v6 = Path::new("/proc/self/net/if_inet6").exists();
        assert_eq!(families().any(|family| family == Family::V6), has_v6);
    }
}
