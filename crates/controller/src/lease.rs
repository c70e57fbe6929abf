//! Leader election with a Lease, compatible with client-go's `leaderelection`, so that `kubectl`
//! and other tools can read it.
//!
//! Clocks are never compared. A candidate takes over after it has seen the Lease unchanged for its
//! duration, by its own monotonic clock; a leader that cannot renew the Lease stops before that, by
//! its own. Writes are conditional on the version that was read, so of two concurrent ones only one
//! succeeds.

mod elector;
mod record;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kube::Client;
use prometheus_client::metrics::gauge::Gauge;
use rolegate_kube::chain;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Condition;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use elector::Elector;

/// The timing of an election. The defaults are client-go's.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTiming {
    /// Time that candidates wait for a leader without renewals, in whole seconds.
    pub duration: Duration,
    /// Time that a leader continues without a renewal. Less than `duration`.
    pub renew_deadline: Duration,
    /// Time between two renewals, or two attempts to become leader. Less than `renew_deadline`.
    pub retry: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

impl LeaseTiming {
    /// Returns the time that the leader's work may take to stop. It ends before others may start.
    fn grace(&self) -> Duration {
        self.duration.saturating_sub(self.renew_deadline) / 2
    }
}

/// The Lease and this candidate's identity.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// The candidate's identity, unique for each process, such as a pod's name and UID.
    pub identity: String,
    /// The timing of the election.
    pub timing: LeaseTiming,
}

/// A candidate.
#[derive(Debug)]
pub struct Leadership {
    options: LeaseOptions,
    clock: Clock,
    condition: Condition,
    leads: Gauge,
}

/// The reason why a term ended.
enum End {
    /// The process shuts down.
    Stopped,
    /// The leader's work exited by itself.
    Idle,
    /// Another candidate holds the Lease, or it could not be renewed in time.
    Lost,
}

impl Leadership {
    /// Creates a candidate. `condition` fails until the Lease was read, and carries a note while it
    /// cannot be read later; `leads` is 1 while leading, otherwise 0.
    pub fn new(options: LeaseOptions, clock: Clock, condition: Condition, leads: Gauge) -> Self {
        Self {
            options,
            clock,
            condition,
            leads,
        }
    }

    /// Tries to lead until `stop`, and runs `work` while leading. When leadership is lost or `stop`
    /// is cancelled, `work`'s token is cancelled; `work` then has a short time to exit before it is
    /// dropped. At `stop` the Lease is released, so that another replica can lead at once. Needs
    /// `get` and `update` on the Lease, and `create` in its namespace.
    pub async fn run<W, F>(self, client: Client, stop: CancellationToken, mut work: W)
    where
        W: FnMut(CancellationToken) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut elector = Elector::new(&client, self.options.clone(), self.clock.clone());
        let identity = &self.options.identity;
        loop {
            let won = tokio::select! {
                won = self.campaign(&mut elector) => Some(won),
                () = stop.cancelled() => None,
            };
            let Some(won) = won else {
                // An interrupted attempt may have succeeded.
                return self.release(&mut elector).await;
            };
            tracing::info!(identity, lease = self.options.name, "leading");
            self.leads.set(1);
            let token = CancellationToken::new();
            let term = Term {
                token: token.clone(),
                task: tokio::spawn(work(token)),
            };
            let (term, end) = self.keep(&mut elector, won, term, &stop).await;
            term.end(self.options.timing.grace()).await;
            self.leads.set(0);
            let pause = match end {
                End::Lost => {
                    tracing::warn!(identity, "no longer leading");
                    self.options.timing.retry
                }
                End::Stopped | End::Idle => {
                    tracing::info!(identity, "no longer leading, releasing the lease");
                    self.release(&mut elector).await;
                    self.options.timing.duration
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Waits until this candidate leads. Returns the start of its lease.
    async fn campaign(&self, elector: &mut Elector) -> Instant {
        let timing = self.options.timing;
        let mut known = false;
        loop {
            let begun = Instant::now();
            match timeout(timing.renew_deadline, elector.attempt()).await {
                Ok(Ok(leads)) => {
                    known = true;
                    self.condition.ok();
                    if leads {
                        return begun;
                    }
                }
                Ok(Err(error)) => self.trouble(known, &chain(&error)),
                Err(_) => self.trouble(known, "no response from the API server"),
            }
            // Jitter separates candidates that started together.
            tokio::time::sleep(timing.retry.mul_f64(1.0 + 1.2 * fastrand::f64())).await;
        }
    }

    /// Renews the Lease until the term ends.
    async fn keep(
        &self,
        elector: &mut Elector,
        mut renewed: Instant,
        mut term: Term,
        stop: &CancellationToken,
    ) -> (Term, End) {
        let timing = self.options.timing;
        let end = loop {
            let deadline = renewed + timing.renew_deadline;
            let next = deadline.min(Instant::now() + timing.retry);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = stop.cancelled() => break End::Stopped,
                _ = &mut term.task => break End::Idle,
            }
            // From before the request: other candidates count from when they see its result.
            let begun = Instant::now();
            let attempt = tokio::select! {
                attempt = timeout_at(deadline, elector.attempt()) => attempt,
                () = stop.cancelled() => break End::Stopped,
                _ = &mut term.task => break End::Idle,
            };
            match attempt {
                Ok(Ok(true)) => {
                    renewed = begun;
                    self.condition.ok();
                }
                Ok(Ok(false)) => break End::Lost,
                Ok(Err(error)) => self.trouble(true, &chain(&error)),
                Err(_) => {}
            }
            if Instant::now() >= renewed + timing.renew_deadline {
                self.trouble(true, "it could not be renewed in time");
                break End::Lost;
            }
        };
        (term, end)
    }

    async fn release(&self, elector: &mut Elector) {
        match timeout(self.options.timing.retry, elector.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "cannot release the lease"),
            Err(_) => tracing::warn!("cannot release the lease: no response from the API server"),
        }
    }

    fn trouble(&self, known: bool, why: &str) {
        let sentence = format!(
            "Lease {}/{}: {why}",
            self.options.namespace, self.options.name
        );
        tracing::debug!(reason = sentence, "cannot read or update the lease");
        if known {
            self.condition.note(sentence)
        } else {
            self.condition.fail(sentence)
        }
    }
}

/// The work of the leader. Dropping it aborts the work.
struct Term {
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl Term {
    /// Stops the work, and aborts it after `within`.
    async fn end(mut self, within: Duration) {
        self.token.cancel();
        if self.task.is_finished() {
            return;
        }
        if timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            // Waits until it has really ended.
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.token.cancel();
        self.task.abort();
    }
}
