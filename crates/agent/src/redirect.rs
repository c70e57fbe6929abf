//! The redirect of pods' metadata traffic in the host's kernel: put there, looked after, shown
//! and taken away, with nftables or iptables, and the routing rules behind it. What the rules say
//! is decided in [`rolegate_core::redirect`]; here they are carried to the kernel.
//!
//! The programs `nft` and `iptables` are run directly, so an image needs them and their libraries
//! and no shell. Routing rules are set by netlink. Both act on the network namespace of the calling
//! thread.

mod backend;
pub mod check;
mod command;
mod ingress;
mod keeper;
mod monitor;
mod routing;

use std::path::Path;
use std::sync::Mutex;

use rolegate_core::redirect::{Family, RoutingRule, Spec};

pub use backend::{Backend, Choice, Flavour, UnknownBackend};
pub use ingress::ingress_interfaces;
pub use keeper::{Keeper, Status};

/// Why the kernel's rules could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The program is not there.
    #[error("{program} is not installed: {hint}")]
    Missing {
        /// What was to be run.
        program: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The program refused.
    #[error("{program} failed: {why}")]
    Failed {
        /// What was run.
        program: &'static str,
        /// What it said, bounded.
        why: String,
    },
    /// The program took too long and was killed.
    #[error("{program} took longer than {seconds} s and was stopped")]
    TimedOut {
        /// What was run.
        program: &'static str,
        /// The limit in seconds.
        seconds: u64,
    },
    /// The program said more than anyone wants to hear.
    #[error("{program} printed more than {limit} bytes")]
    TooMuch {
        /// What was run.
        program: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The program could not be run.
    #[error("cannot run {program}: {source}")]
    Io {
        /// What was to be run.
        program: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Some or all of the rules that were just applied are missing.
    #[error("something else removes or alters the redirect while it is put there")]
    Undone,
    /// No netlink socket, or it ended.
    #[error("cannot reach the kernel's routing rules: {0}")]
    Netlink(std::io::Error),
    /// The kernel does not list its interfaces, or the other ends of them.
    #[error("cannot read this host's network interfaces: {0}")]
    Interfaces(String),
    /// The kernel refused a routing rule, or doesn't support them.
    #[error(
        "the kernel refused a routing rule: {0}; the agent needs the capability NET_ADMIN and a kernel with policy routing"
    )]
    RoutingRules(Box<rtnetlink::Error>),
    /// Neither backend works.
    #[error(
        "this host takes neither nftables nor iptables rules ({nftables}; {iptables}): the agent needs the host's network, the capability NET_ADMIN and one of both installed, or --redirect=none with rules of your own"
    )]
    NoBackend {
        /// Why nftables does not work.
        nftables: Box<RedirectError>,
        /// Why iptables does not work.
        iptables: Box<RedirectError>,
    },
}

/// The number of attempts to apply a redirect that something undoes at once, before giving up.
const TRIES: u32 = 3;

/// What is in the kernel, against what was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it was put there.
    InPlace,
    /// Nothing of it.
    Missing,
    /// Something else: part of it gone, rules added, a jump no longer first, or put there by
    /// another process.
    Altered,
}

/// One redirect with one backend.
#[derive(Debug)]
pub struct Redirect {
    backend: Backend,
    spec: Spec,
    /// The kernel's own words for what was applied: the programs normalise what they are given,
    /// so only their listing can be compared with their listing.
    applied: Mutex<Option<String>>,
}

impl Redirect {
    /// A redirect that is not in the kernel yet.
    pub fn new(backend: Backend, spec: Spec) -> Self {
        Self {
            backend,
            spec,
            applied: Mutex::new(None),
        }
    }

    /// How it gets into the kernel.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// What is redirected, and where to.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Puts the redirect into the kernel, in place of what was there of ours. Applying it twice is
    /// the same as once; at no moment is less closed than before.
    ///
    /// # Errors
    /// When the program is missing or refuses; what was there before then stays.
    pub async fn apply(&self) -> Result<(), RedirectError> {
        if self.backend == Backend::None {
            return Ok(());
        }
        // Rules that only close are applied first. If the kernel refuses them, the redirect is
        // still worth having.
        let routing = routing::apply().await;
        let mut tries = 1;
        let listing = loop {
            match self.put().await {
                Ok(listing) => break listing,
                // Something else changed the rules at the same moment: what was read is not so any
                // more, or what was put there has gone already.
                Err(RedirectError::Undone | RedirectError::Failed { .. }) if tries < TRIES => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        };
        *self.applied.lock().unwrap_or_else(|e| e.into_inner()) = Some(listing);
        routing
    }

    /// Puts the rules into the kernel, and reads back what it made of them.
    async fn put(&self) -> Result<String, RedirectError> {
        self.backend.apply(&self.spec).await?;
        let listing = self.backend.whole(&self.spec).await?;
        listing.ok_or(RedirectError::Undone)
    }

    /// What is in the kernel, against what [`apply`](Self::apply) put there.
    ///
    /// # Errors
    /// When the program is missing or refuses.
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
        let applied = self.applied.lock().unwrap_or_else(|e| e.into_inner());
        Ok(
            if applied.as_ref() == Some(&listing) && routing == State::InPlace {
                State::InPlace
            } else {
                State::Altered
            },
        )
    }

    /// Takes the redirect and the rules that close the metadata address away.
    ///
    /// # Errors
    /// When the program is missing or refuses.
    pub async fn remove(&self) -> Result<(), RedirectError> {
        remove(self.backend).await
    }
}

/// Takes away what a redirect with this backend put there, the routing rules too.
///
/// # Errors
/// Returns an error if the program or the kernel refuses.
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
    /// The backends that had rules of ours.
    pub backends: Vec<Backend>,
    /// True if there were routing rules of ours.
    pub routing_rules: bool,
}

/// Takes away what is ours in every backend that this host has, and the routing rules.
///
/// # Errors
/// Returns an error if a program or the kernel refuses.
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
    })
}

/// The routing rules of ours that the kernel has.
///
/// # Errors
/// Returns an error if the kernel can't be queried.
pub async fn routing_rules() -> Result<Vec<RoutingRule>, RedirectError> {
    routing::present().await
}

/// The state of the routing rules that belong to a redirect, whichever process added them.
///
/// # Errors
/// Returns an error if the kernel can't be queried.
pub async fn routing_state() -> Result<State, RedirectError> {
    routing::state().await
}

/// The families this host's kernel has: one without IPv6 has no rules for it either.
fn families() -> impl Iterator<Item = Family> {
    let v6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    Family::ALL
        .into_iter()
        .filter(move |family| *family == Family::V4 || v6)
}
