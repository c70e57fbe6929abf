//! Polling with a deadline, the only way tests wait for other processes.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep, timeout_at};

/// Calls `check` until it succeeds and returns its result.
///
/// # Errors
/// Returns the last error if `check` has not succeeded by the deadline. A check that hangs also
/// fails.
pub async fn eventually<T>(
    deadline: Duration,
    mut check: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(5);
    let mut last = anyhow::anyhow!("the check itself gave no answer");
    loop {
        match timeout_at(end, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
        if Instant::now() + pause >= end {
            return Err(last).with_context(|| format!("still not so after {deadline:?}"));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;

    #[tokio::test]
    async fn returns_the_first_success() {
        let mut calls = 0;
        let got = eventually(Duration::from_secs(60), async || {
            calls += 1;
            ensure!(calls == 3, "call {calls}");
            Ok(calls)
        });
        assert_eq!(got.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn the_last_error_is_returned_at_the_deadline() {
        let error = eventually(Duration::from_millis(50), async || -> anyhow::Result<()> {
            bail!("no pod yet")
        })
        .await
        .unwrap_err();
        assert_eq!(format!("{error:#}"), "still not so after 50ms: no pod yet");
    }

    #[tokio::test]
    async fn a_check_that_hangs_ends_at_the_deadline() {
        let hang = eventually(Duration::from_millis(50), async || {
            std::future::pending::<anyhow::Result<()>>().await
        });
        assert!(hang.await.is_err());
    }
}
