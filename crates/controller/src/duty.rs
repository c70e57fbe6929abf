//! What only one replica does.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Something that only the leader does.
pub trait Duty: Send + Sync + 'static {
    /// What it is, for logs.
    fn name(&self) -> &'static str;

    /// Does it until `leading` is cancelled, and returns soon after. It may be dropped at any await
    /// if it takes long, and is begun anew by whoever leads next: what it writes must bear that.
    fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()>;
}

/// Does all of them until `leading` is cancelled and they are done, or until one ends before, which
/// is a fault: then nobody should lead with what is left.
pub(crate) async fn run_all(duties: Vec<Arc<dyn Duty>>, leading: CancellationToken) {
    // Dropping it, as when they take too long, ends what still runs.
    let mut running = JoinSet::new();
    for duty in duties {
        let leading = leading.child_token();
        running.spawn(async move {
            duty.run(leading).await;
            duty.name()
        });
    }
    if running.is_empty() {
        leading.cancelled().await;
    }
    while let Some(ended) = running.join_next().await {
        if leading.is_cancelled() {
            continue;
        }
        let name = ended.unwrap_or("one that panicked");
        tracing::error!(duty = name, "a duty of the leader ended by itself");
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

    impl Duty for Counts {
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
        let duty = |gives_up| -> Arc<dyn Duty> {
            Arc::new(Counts {
                running: running.clone(),
                gives_up,
            })
        };
        let leading = CancellationToken::new();
        run_all(vec![duty(false), duty(true)], leading.clone()).await;
        assert!(leading.is_cancelled());
        assert_eq!(running.load(Relaxed), 0);
    }
}
