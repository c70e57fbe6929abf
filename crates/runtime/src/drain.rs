//! Graceful shutdown: new work stops, open work finishes, and what is left at the deadline is
//! aborted.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

/// Time that tasks have to exit after the forced stop.
const FORCED_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle of the shutdown, to trigger it and to observe it. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    begun: CancellationToken,
    forced: CancellationToken,
    work: TaskTracker,
}

/// The result of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All work finished by itself.
    Graceful,
    /// The deadline passed; this many tasks were aborted.
    Forced(usize),
}

impl Drain {
    /// Creates a drain that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task that a drain waits for. It should exit soon after [`Drain::begun`]; after
    /// [`Drain::forced`] the drain does not wait for it.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.work.spawn(task)
    }

    /// Waits until the drain begins: accept no new work, finish open work.
    pub fn begun(&self) -> WaitForCancellationFutureOwned {
        self.begun.clone().cancelled_owned()
    }

    /// Waits until the deadline has passed: drop everything.
    pub fn forced(&self) -> WaitForCancellationFutureOwned {
        self.forced.clone().cancelled_owned()
    }

    /// Forces the shutdown now.
    pub fn force(&self) {
        self.begun.cancel();
        self.forced.cancel();
    }

    /// Begins the drain, waits up to `deadline` for open work, then forces the shutdown.
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
        // Tasks that ignore `forced` end with the process.
        let _ = tokio::time::timeout(FORCED_TIMEOUT, self.work.wait()).await;
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
        assert_eq!(
            drain.drain(Duration::from_secs(10)).await,
            Outcome::Graceful
        );
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
