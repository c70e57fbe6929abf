//! Tasks for exactly one replica.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A task that only the leader runs.
pub trait LeaderTask: Send + Sync + 'static {
    /// Returns the task's name for logs.
    fn name(&self) -> &'static str;

    /// Runs until `leading` is cancelled, and returns soon after. If it takes too long, it is
    /// dropped at an await point. The next leader starts it again, so its writes must tolerate
    /// that.
    fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()>;
}

/// Runs all tasks until `leading` is cancelled and every task has returned. Returns early if a task
/// exits before that, which is a bug: a replica that runs only some of the tasks must not lead.
pub(crate) async fn run_all(leader_tasks: Vec<Arc<dyn LeaderTask>>, leading: CancellationToken) {
    // Dropping it, such as after a timeout, aborts the running tasks.
    let mut running = JoinSet::new();
    for leader_task in leader_tasks {
        let leading = leading.child_token();
        running.spawn(async move {
            leader_task.run(leading).await;
            leader_task.name()
        });
    }
    if running.is_empty() {
        leading.cancelled().await;
    }
    while let Some(ended) = running.join_next().await {
        if leading.is_cancelled() {
            continue;
        }
        let name = ended.unwrap_or("unknown (panicked)");
        tracing::error!(leader_task = name, "a leader task exited unexpectedly");
        leading.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    struct Counts {
        running: Arc<AtomicU32>,
        gives_up: bool,
    }

    impl LeaderTask for Counts {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()> {
            Box::pin(async move {
                self.running.fetch_add(1, Relaxed);
                if !self.gives_up {
                    leading.cancelled().await;
                }
                self.running.fetch_sub(1, Relaxed);
            })
        }
    }

    #[tokio::test]
    async fn one_that_ends_by_itself_ends_the_others() {
        let running = Arc::new(AtomicU32::new(0));
        let leader_task = |gives_up| -> Arc<dyn LeaderTask> {
            Arc::new(Counts {
                running: running.clone(),
                gives_up,
            })
        };
        let leading = CancellationToken::new();
        run_all(vec![leader_task(false), leader_task(true)], leading.clone()).await;
        assert!(leading.is_cancelled());
        assert_eq!(running.load(Relaxed), 0);
    }
}
