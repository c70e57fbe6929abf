//! Requests that go on all the time while something happens to those who answer them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::ensure;
use rolegate_testkit::eventually;
use rolegate_testkit::lab::Namespace;
use tokio::runtime::Handle;

use crate::ask::{self, CREDENTIALS, METADATA};
use crate::site::DEADLINE;

/// Those who ask at once.
const ASKERS: usize = 4;

/// A pod that asks for its role's credentials on and on, over a new connection each time.
#[derive(Default)]
pub(crate) struct Asking {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Asking {
    /// Asks for `role` with these headers as long as `work` goes on.
    ///
    /// # Errors
    /// That of the work, or the first request that failed. Needs a runtime of several threads.
    pub(crate) fn during<T>(
        pod: &Namespace,
        role: &str,
        headers: &[(&str, &str)],
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let asking = Self::default();
        let runtime = Handle::current();
        let done = tokio::task::block_in_place(|| {
            thread::scope(|scope| {
                let _stop = Stop(&asking.stop);
                for _ in 0..ASKERS {
                    scope.spawn(|| asking.on(pod, role, headers));
                }
                runtime.block_on(work(&asking))
            })
        });
        let done = done?;
        let failed = asking.failed.into_inner().unwrap();
        let first = failed.first();
        ensure!(failed.is_empty(), "{} failed: {first:?}", failed.len());
        Ok(done)
    }

    fn on(&self, pod: &Namespace, role: &str, headers: &[(&str, &str)]) {
        let path = format!("{CREDENTIALS}{role}");
        while !self.stop.load(Ordering::Relaxed) {
            match ask::request(pod, METADATA, "GET", &path, headers) {
                Ok(reply) if reply.status == 200 && reply.body.contains("AccessKeyId") => {
                    self.answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(reply) => self.failed.lock().unwrap().push(format!("{reply:?}")),
                Err(error) => self.failed.lock().unwrap().push(format!("{error:#}")),
            }
        }
    }

    /// Waits until as many more requests were answered; the first that fails ends the wait.
    pub(crate) async fn more(&self, count: usize) -> anyhow::Result<()> {
        let enough = self.answered.load(Ordering::SeqCst) + count;
        eventually(DEADLINE, async || {
            let failed = !self.failed.lock().unwrap().is_empty();
            let answered = self.answered.load(Ordering::SeqCst);
            ensure!(failed || answered >= enough, "{answered} of {enough}");
            Ok(())
        })
        .await?;
        let failed = self.failed.lock().unwrap();
        ensure!(failed.is_empty(), "a request failed: {failed:?}");
        Ok(())
    }
}

/// Ends the asking however a test goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
