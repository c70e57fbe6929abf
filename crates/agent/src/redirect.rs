//! The redirect of pods' metadata traffic in the host's kernel: put there, looked after, shown
//! and taken away, with nftables or iptables. What the rules say is decided in
//! [`rolegate_core::redirect`]; here they are carried to the kernel.
//!
//! The programs `nft` and `iptables` are run directly, so an image needs them and their libraries
//! and no shell. They act on the network namespace of the calling thread.

mod backend;
pub mod check;
mod command;
mod keeper;

use std::sync::Mutex;

use rolegate_core::redirect::Spec;

pub use backend::{Backend, Choice, Flavour, UnknownBackend, remove_all};
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
        self.backend.apply(&self.spec).await?;
        let listing = self.backend.listing().await?;
        *self.applied.lock().unwrap_or_else(|e| e.into_inner()) = listing;
        Ok(())
    }

    /// What is in the kernel, against what [`apply`](Self::apply) put there.
    ///
    /// # Errors
    /// When the program is missing or refuses.
    pub async fn state(&self) -> Result<State, RedirectError> {
        if self.backend == Backend::None {
            return Ok(State::InPlace);
        }
        let Some(listing) = self.backend.listing().await? else {
            return Ok(State::Missing);
        };
        let applied = self.applied.lock().unwrap_or_else(|e| e.into_inner());
        Ok(if applied.as_ref() == Some(&listing) {
            State::InPlace
        } else {
            State::Altered
        })
    }

    /// Takes the redirect and the rules that close the metadata address away.
    ///
    /// # Errors
    /// When the program is missing or refuses.
    pub async fn remove(&self) -> Result<(), RedirectError> {
        self.backend.remove().await.map(|_| ())
    }
}
