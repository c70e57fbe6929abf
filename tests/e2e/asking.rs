//! Requests that continue while the test changes the processes that answer them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::ensure;
use parking_lot::Mutex;
use rolegate_testkit::eventually;
use rolegate_testkit::lab::Namespace;
use tokio::runtime::Handle;

use crate::ask::{self, CREDENTIALS, METADATA};
use crate::fixture::DEADLINE;

/// The number of concurrent clients.
const ASKERS: usize = 4;

/// A pod, and the role that it requests.
pub(crate) type Asker<'a> = (&'a Namespace, &'a str);

/// Pods that continuously request their roles' credentials, over a new connection each time.
pub(crate) struct Asking {
    stop: AtomicBool,
    /// The number of responses, by pod.
    answered: Vec<AtomicUsize>,
    failed: Mutex<Vec<String>>,
}

impl Asking {
    /// Makes one pod request `role` with these headers as long as `work` runs.
    ///
    /// # Errors
    /// Returns the error of the work, or of the first failed request. Needs a multi-threaded
    /// runtime.
    pub(crate) fn during<T>(
        pod: &Namespace,
        role: &str,
        headers: &[(&str, &str)],
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        Self::all_during(&[(pod, role)], headers, work)
    }

    /// Does the same for several pods.
    ///
    /// # Errors
    /// As [`Self::during`].
    pub(crate) fn all_during<T>(
        pods: &[Asker<'_>],
        headers: &[(&str, &str)],
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let asking = Self {
            stop: AtomicBool::default(),
            answered: pods.iter().map(|_| AtomicUsize::default()).collect(),
            failed: Mutex::default(),
        };
        let runtime = Handle::current();
        let done = tokio::task::block_in_place(|| {
            thread::scope(|scope| {
                let _stop = Stop(&asking.stop);
                let asking = &asking;
                for (&pod, answered) in pods.iter().zip(&asking.answered) {
                    for _ in 0..ASKERS.div_ceil(pods.len()) {
                        scope.spawn(move || asking.on(pod, headers, answered));
                    }
                }
                runtime.block_on(work(asking))
            })
        });
        let done = done?;
        let failed = asking.failed.into_inner();
        let first = failed.first();
        ensure!(failed.is_empty(), "{} failed: {first:?}", failed.len());
        Ok(done)
    }

    fn on(&self, (pod, role): Asker<'_>, headers: &[(&str, &str)], answered: &AtomicUsize) {
        let path = format!("{CREDENTIALS}{role}");
        while !self.stop.load(Ordering::Relaxed) {
            match ask::request(pod, METADATA, "GET", &path, headers) {
                Ok(reply) if reply.status == 200 && reply.body.contains("AccessKeyId") => {
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(reply) => self.failed.lock().push(format!("{reply:?}")),
                Err(error) => self.failed.lock().push(format!("{error:#}")),
            }
        }
    }

    /// Waits until this many more requests of each pod were answered, or one failed.
    pub(crate) async fn more(&self, count: usize) -> anyhow::Result<()> {
        let before = self.answered();
        eventually(DEADLINE, async || {
            let failed = !self.failed.lock().is_empty();
            let answered = self.answered();
            let mut each = answered.iter().zip(&before);
            let enough = each.all(|(now, before)| *now >= before + count);
            ensure!(failed || enough, "{answered:?} after {before:?}");
            Ok(())
        })
        .await?;
        let failed = self.failed.lock();
        ensure!(failed.is_empty(), "a request failed: {failed:?}");
        Ok(())
    }

    fn answered(&self) -> Vec<usize> {
        let answered = self.answered.iter();
        answered.map(|it| it.load(Ordering::SeqCst)).collect()
    }
}

/// Stops the requests, even if the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
