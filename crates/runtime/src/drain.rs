//! An orderly end: new work stops, what is open finishes, and at a deadline the rest is cut off.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long tasks have to go once they were told to drop everything.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Both ends of a drain: whoever ends the process triggers it, whoever works watches it.
/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    begun: CancellationToken,
    forced: CancellationToken,
    work: TaskTracker,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All finished by themselves.
    Graceful,
    /// The deadline came; this many were cut off.
    Forced(usize),
}

/// Work that a drain waits for, as long as this lives.
#[derive(Debug, Clone)]
#[must_use = "a drain doesn't wait once this is dropped"]
pub struct Hold(#[expect(dead_code, reason = "held for its Drop")] TaskTrackerToken);

impl Drain {
    /// Nothing is ending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a drain waiting until the guard is dropped.
    pub fn hold(&self) -> Hold {
        Hold(self.work.token())
    }

    /// Spawns a task that a drain waits for. It should end soon after [`Drain::begun`]; after
    /// [`Drain::forced`] nobody waits for it.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.work.spawn(task)
    }

    /// Returns when the end begins: take no new work, finish what is open.
    pub fn begun(&self) -> WaitForCancellationFutureOwned {
        self.begun.clone().cancelled_owned()
    }

    /// Whether the end has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Returns when the deadline is over: drop everything.
    pub fn forced(&self) -> WaitForCancellationFutureOwned {
        self.forced.clone().cancelled_owned()
    }

    /// Ends everything now.
    pub fn force(&self) {
        self.begun.cancel();
        self.forced.cancel();
    }

    /// Begins the end, waits up to `deadline` for the work, then forces it.
    pub async fn drain(&self, deadline: Duration) -> Outcome {
        self.begun.cancel();
        self.work.close();
        if tokio::time::timeout(deadline, self.work.wait())
            .await
            .is_ok()
        {
            return Outcome::Graceful;
        }
        let left = self.work.len();
        self.forced.cancel();
        // Those that don't even look at `forced` end with the process.
        let _ = tokio::time::timeout(LAST_MOMENT, self.work.wait()).await;
        Outcome::Forced(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_work_that_finishes() {
        let drain = Drain::new();
        let begun = drain.begun();
        let work = drain.spawn(async move {
            begun.await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            "finished"
        });
        let hold = drain.hold();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(hold);
        });
        assert!(!drain.has_begun());
        assert_eq!(
            drain.drain(Duration::from_secs(10)).await,
            Outcome::Graceful
        );
        assert!(drain.has_begun());
        assert_eq!(work.await.unwrap(), "finished");
    }

    #[tokio::test(start_paused = true)]
    async fn forces_what_does_not_finish() {
        let drain = Drain::new();
        let forced = drain.forced();
        let stubborn = drain.spawn(async move {
            forced.await;
            "forced"
        });
        let _deaf = drain.spawn(std::future::pending::<()>());
        assert_eq!(
            drain.drain(Duration::from_secs(10)).await,
            Outcome::Forced(2)
        );
        assert_eq!(stubborn.await.unwrap(), "forced");
    }
}
