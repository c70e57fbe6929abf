//! The task that keeps the redirect in the kernel while the agent runs.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use crate::monitor::Changes;
use crate::{Redirect, RedirectError, State};

/// Minimum time from restoring the redirect, or failing to, to the next check: a program that
/// removes it at once must not keep this host busy.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The reconciler's last results, for metrics and readiness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// True if the redirect is in the kernel as it should be.
    pub in_place: bool,
    /// The number of times that the redirect was missing or changed and was restored.
    pub restored: u64,
    /// The error of the last check or change; `None` if it succeeded.
    pub error: Option<String>,
}

/// Applies a redirect, and restores it when a program removes, changes or reorders its rules: at
/// once if the kernel reports the change, otherwise at the next check (legacy iptables). The
/// redirect stays when the reconciler is dropped, so that pods are refused rather than given the
/// node's role.
#[derive(Debug)]
pub struct RedirectReconciler {
    redirect: Redirect,
    interval: Duration,
    status: watch::Sender<Status>,
    losses: Counter,
}

impl RedirectReconciler {
    /// Default interval of checks.
    pub const INTERVAL: Duration = Duration::from_secs(5);

    /// Creates a reconciler that checks every `interval`.
    pub fn new(redirect: Redirect, interval: Duration) -> Self {
        Self {
            redirect,
            interval,
            status: watch::Sender::new(Status::default()),
            losses: Counter::default(),
        }
    }

    /// Subscribes to its status.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Returns the counter of lost notifications about the kernel's rules.
    pub fn losses(&self) -> Counter {
        self.losses.clone()
    }

    /// Applies the redirect and maintains it until it is dropped. Errors are logged, reported in the
    /// [`Status`], and retried.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Opened before the first check, so that nothing is missed in between.
        let mut changes = match Changes::open(self.redirect.backend(), &self.losses) {
            Ok(changes) => Some(changes),
            Err(error) => {
                unheard(&error);
                None
            }
        };
        let mut applied = false;
        loop {
            cause(&mut ticks, &mut changes).await;
            let outcome = self.ensure_installed(applied).await;
            applied |= outcome.is_ok();
            if self.report(outcome) {
                tokio::time::sleep(MIN_CHECK_INTERVAL).await;
            }
        }
    }

    /// Reports the result of a check: whether another program changed the redirect, or it cannot be
    /// maintained.
    fn report(&self, outcome: Result<CheckOutcome, RedirectError>) -> bool {
        let backend = self.redirect.backend();
        match &outcome {
            Ok(CheckOutcome::InPlace) => {}
            Ok(CheckOutcome::Applied) => {
                tracing::info!(%backend, "the metadata redirect is installed")
            }
            Ok(CheckOutcome::Restored) => tracing::warn!(
                %backend,
                "another program removed or changed the metadata redirect; restored it"
            ),
            Err(error) => tracing::error!(%error, "cannot maintain the metadata redirect"),
        }
        let restored = matches!(outcome, Ok(CheckOutcome::Restored));
        self.status.send_if_modified(|status| {
            let now = Status {
                in_place: outcome.is_ok(),
                restored: status.restored + u64::from(restored),
                error: outcome.as_ref().err().map(ToString::to_string),
            };
            std::mem::replace(status, now.clone()) != now
        });
        restored || outcome.is_err()
    }

    /// Ensures that the redirect is installed.
    async fn ensure_installed(&self, applied: bool) -> Result<CheckOutcome, RedirectError> {
        if applied && self.redirect.state().await? == State::InPlace {
            return Ok(CheckOutcome::InPlace);
        }
        self.redirect.apply().await?;
        Ok(if applied {
            CheckOutcome::Restored
        } else {
            CheckOutcome::Applied
        })
    }
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CheckOutcome {
    /// The redirect was installed already.
    InPlace,
    /// It was installed for the first time.
    Applied,
    /// It was removed or changed, and has been restored.
    Restored,
}

/// Waits for the next check: an interval, or a notification of the kernel.
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
        "the kernel does not report changes of its rules; checking them periodically only"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;
    use crate::rules::Spec;

    /// A reconciler that changes nothing in the kernel.
    fn reconciler() -> RedirectReconciler {
        let host = Some([10, 0, 0, 1].into());
        let spec = Spec::new(host, None, 8181, "eni+".parse().unwrap()).unwrap();
        RedirectReconciler::new(
            Redirect::new(Backend::None, spec),
            RedirectReconciler::INTERVAL,
        )
    }

    #[test]
    fn the_status_counts_restores_and_keeps_the_last_error() {
        let reconciler = reconciler();
        let mut status = reconciler.status();
        let mut report = |outcome| {
            let pauses = reconciler.report(outcome);
            let is_new = status.has_changed().unwrap();
            let Status {
                in_place,
                restored,
                error,
            } = status.borrow_and_update().clone();
            (pauses, is_new, in_place, restored, error)
        };
        let fine = |pauses, is_new, restored| (pauses, is_new, true, restored, None);
        assert_eq!(report(Ok(CheckOutcome::Applied)), fine(false, true, 0));
        assert_eq!(report(Ok(CheckOutcome::InPlace)), fine(false, false, 0));
        assert_eq!(report(Ok(CheckOutcome::Restored)), fine(true, true, 1));
        assert_eq!(report(Ok(CheckOutcome::Restored)), fine(true, true, 2));
        let error = Some(RedirectError::RulesRemoved.to_string());
        let failed = report(Err(RedirectError::RulesRemoved));
        assert_eq!(failed, (true, true, false, 2, error));
        assert_eq!(report(Ok(CheckOutcome::InPlace)), fine(false, true, 2));
    }

    #[tokio::test]
    async fn the_first_success_applies_and_later_ones_check() {
        let reconciler = reconciler();
        let installed = async |applied| reconciler.ensure_installed(applied).await.unwrap();
        assert_eq!(installed(false).await, CheckOutcome::Applied);
        assert_eq!(installed(true).await, CheckOutcome::InPlace);
    }

    #[tokio::test]
    async fn it_installs_the_redirect_at_once() {
        let reconciler = reconciler();
        let mut status = reconciler.status();
        let installed = async {
            let installed = status.wait_for(|status| status.in_place);
            let deadline = Duration::from_secs(60);
            tokio::time::timeout(deadline, installed).await.is_ok()
        };
        tokio::select! {
            () = reconciler.run() => panic!("it exited"),
            installed = installed => assert!(installed),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_notifications_the_interval_is_the_cause() {
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        let start = tokio::time::Instant::now();
        for seconds in [0, 5, 10] {
            cause(&mut ticks, &mut None).await;
            assert_eq!(start.elapsed(), Duration::from_secs(seconds));
        }
    }
}
