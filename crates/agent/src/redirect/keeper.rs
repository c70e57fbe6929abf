//! The task that keeps the redirect in the kernel while the agent runs.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::monitor::Changes;
use super::{Redirect, RedirectError, State};

/// The least time from putting the redirect back, or failing to, to the next look: a program that
/// takes it away as soon as it is there must not keep this host busy.
const PACE: Duration = Duration::from_millis(250);

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

/// Applies a redirect and restores it when something removes, alters or reorders its rules: at once
/// if the kernel reports the change, otherwise at the next check (legacy iptables). The redirect
/// stays when the keeper ends, so that pods are refused rather than given the node's role; removing
/// it is a choice.
#[derive(Debug)]
pub struct Keeper {
    redirect: Redirect,
    interval: Duration,
    remove_at_exit: bool,
    status: watch::Sender<Status>,
    losses: Counter,
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
            losses: Counter::default(),
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

    /// Counts how often the kernel dropped notifications about its rules.
    pub fn losses(&self) -> Counter {
        self.losses.clone()
    }

    /// Applies the redirect and keeps it until `cancel`. Failures are logged, told in the
    /// [`Status`] and tried again.
    pub async fn run(self, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // From before the first look, so that nothing is missed in between.
        let mut changes = match Changes::open(self.redirect.backend(), &self.losses) {
            Ok(changes) => Some(changes),
            Err(error) => {
                unheard(&error);
                None
            }
        };
        let mut applied = false;
        while cancel
            .run_until_cancelled(cause(&mut ticks, &mut changes))
            .await
            .is_some()
        {
            // Not cut short by the end: a change that was begun is finished.
            let looked = self.look(applied).await;
            applied |= looked.is_ok();
            if self.report(looked) {
                cancel.run_until_cancelled(tokio::time::sleep(PACE)).await;
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

    /// Reports the result of a check: whether another program changed the redirect, or it can't be
    /// kept.
    fn report(&self, looked: Result<Look, RedirectError>) -> bool {
        let backend = self.redirect.backend();
        match &looked {
            Ok(Look::InPlace) => {}
            Ok(Look::Applied) => tracing::info!(%backend, "the metadata redirect is in place"),
            Ok(Look::Restored) => tracing::warn!(
                %backend,
                "the metadata redirect was removed or altered by something else; put it back"
            ),
            Err(error) => tracing::error!(%error, "cannot keep the metadata redirect"),
        }
        let restored = matches!(looked, Ok(Look::Restored));
        self.status.send_if_modified(|status| {
            let now = Status {
                in_place: looked.is_ok(),
                restored: status.restored + u64::from(restored),
                error: looked.as_ref().err().map(ToString::to_string),
            };
            std::mem::replace(status, now.clone()) != now
        });
        restored || looked.is_err()
    }

    /// Sees to it that the redirect is there.
    async fn look(&self, applied: bool) -> Result<Look, RedirectError> {
        if applied && self.redirect.state().await? == State::InPlace {
            return Ok(Look::InPlace);
        }
        self.redirect.apply().await?;
        Ok(if applied {
            Look::Restored
        } else {
            Look::Applied
        })
    }
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The redirect was there.
    InPlace,
    /// It was put there for the first time.
    Applied,
    /// It was removed or altered, and has been restored.
    Restored,
}

/// Waits for a reason to look: time, or a notification of the kernel's.
async fn cause(ticks: &mut Interval, changes: &mut Option<Changes>) {
    let notified = async {
        match changes {
            Some(changes) => changes.next().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        _ = ticks.tick() => return,
        notified = notified => notified.err(),
    };
    if let Some(error) = ended {
        unheard(&error);
        *changes = None;
    }
}

fn unheard(error: &std::io::Error) {
    tracing::warn!(
        %error,
        "the kernel doesn't tell of changes of its rules: they are looked at in intervals only"
    );
}
