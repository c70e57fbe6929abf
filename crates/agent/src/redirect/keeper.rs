//! The task that keeps the redirect in the kernel while the agent runs.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Redirect, RedirectError, State};

/// What the keeper last saw and did; for metrics and readiness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The redirect is in the kernel as it should be.
    pub in_place: bool,
    /// How often it was gone or altered and was put back.
    pub restored: u64,
    /// Why the last look or change failed, a sentence; nothing when it worked.
    pub error: Option<String>,
}

/// Applies a redirect and puts it back when something removes or alters it, the order of rules
/// included. When it ends the redirect stays, so that pods are refused and not given the node's
/// role; taking it away is a choice.
#[derive(Debug)]
pub struct Keeper {
    redirect: Redirect,
    interval: Duration,
    remove_at_exit: bool,
    status: watch::Sender<Status>,
}

impl Keeper {
    /// How often the kernel is asked, unless told otherwise.
    pub const INTERVAL: Duration = Duration::from_secs(5);

    /// A keeper that looks every `interval`.
    pub fn new(redirect: Redirect, interval: Duration) -> Self {
        Self {
            redirect,
            interval,
            remove_at_exit: false,
            status: watch::Sender::new(Status::default()),
        }
    }

    /// Takes the redirect away at the end of [`run`](Self::run).
    #[must_use]
    pub fn remove_at_exit(mut self, remove: bool) -> Self {
        self.remove_at_exit = remove;
        self
    }

    /// What it sees and does, from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Applies the redirect and keeps it until `cancel`. Failures are logged, told in the
    /// [`Status`] and tried again.
    pub async fn run(self, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut applied = false;
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            // Not cut short by the end: a change that was begun is finished.
            match self.look(applied).await {
                Ok(restored) => {
                    if restored {
                        tracing::warn!(
                            backend = %self.redirect.backend(),
                            "the metadata redirect was removed or altered by something else; put it back"
                        );
                    } else if !applied {
                        tracing::info!(backend = %self.redirect.backend(), "the metadata redirect is in place");
                    }
                    applied = true;
                    self.status.send_if_modified(|status| {
                        let before = status.clone();
                        status.in_place = true;
                        status.restored += u64::from(restored);
                        status.error = None;
                        *status != before
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "cannot keep the metadata redirect");
                    self.status.send_if_modified(|status| {
                        let before = status.clone();
                        status.in_place = false;
                        status.error = Some(error.to_string());
                        *status != before
                    });
                }
            }
        }
        if self.remove_at_exit {
            match self.redirect.remove().await {
                Ok(()) => tracing::warn!(
                    "the metadata redirect is removed: pods reach the node's metadata"
                ),
                Err(error) => tracing::error!(%error, "cannot remove the metadata redirect"),
            }
        }
    }

    /// Sees to it that the redirect is there; says whether it had gone.
    async fn look(&self, applied: bool) -> Result<bool, RedirectError> {
        if applied && self.redirect.state().await? == State::InPlace {
            return Ok(false);
        }
        self.redirect.apply().await?;
        Ok(applied)
    }
}
