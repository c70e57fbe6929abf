//! Who leads: a Lease, held and renewed as client-go's `leaderelection` does, so that `kubectl` and
//! other controllers read it as they are used to.
//!
//! No clocks are compared. A candidate takes over when it has seen the Lease unchanged for its
//! duration by its own monotonic clock; a leader that could not renew stops earlier than that by
//! its own. Writes are bound to the version that was read, so of two that try at once one fails.

mod elector;
mod record;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use rolegate_kube::chain;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Condition;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use elector::Elector;

/// How long anything may take. The defaults are client-go's.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTiming {
    /// How long others wait for a leader that is not heard of, in whole seconds.
    pub duration: Duration,
    /// How long a leader goes on without a renewal; less than `duration`.
    pub renew_deadline: Duration,
    /// Between two renewals or two attempts to become leader; less than `renew_deadline`.
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
    /// How long what the leader does may take to end, once it has to: it is over before others
    /// may begin.
    fn grace(&self) -> Duration {
        self.duration.saturating_sub(self.renew_deadline) / 2
    }
}

/// Which Lease, and who we are.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// Where the Lease is.
    pub namespace: String,
    /// What it is called.
    pub name: String,
    /// Who we are: different for each process that ever tries, such as a pod's name and UID.
    pub identity: String,
    /// How long anything may take.
    pub timing: LeaseTiming,
}

/// One candidate.
#[derive(Debug)]
pub struct Leadership {
    options: LeaseOptions,
    clock: Clock,
    condition: Condition,
    leads: Gauge,
}

/// Why a term ended.
enum End {
    /// We were told to.
    Stopped,
    /// What the leader does ended by itself.
    Idle,
    /// Another holds the Lease, or it could not be renewed in time.
    Lost,
}

impl Leadership {
    /// A candidate. `condition` fails until the Lease was seen, and is noted while it can't be
    /// reached later on; `leads` is 1 while leading and 0 else.
    pub fn new(options: LeaseOptions, clock: Clock, condition: Condition, leads: Gauge) -> Self {
        Self {
            options,
            clock,
            condition,
            leads,
        }
    }

    /// Tries to lead until `stop`, and runs `work` while leading. When the lead is lost or `stop`
    /// comes, `work`'s token is cancelled; it then has a short while to end before it is dropped.
    /// At `stop` the Lease is released, so that another leads at once. Needs `get` and `update` on
    /// the Lease, and `create` in its namespace.
    pub async fn run<W, F>(self, client: Client, stop: CancellationToken, mut work: W)
    where
        W: FnMut(CancellationToken) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let api = Api::namespaced(client, &self.options.namespace);
        let mut elector = Elector::new(api, self.options.clone(), self.clock.clone());
        let identity = &self.options.identity;
        loop {
            let won = tokio::select! {
                won = self.campaign(&mut elector) => Some(won),
                () = stop.cancelled() => None,
            };
            let Some(won) = won else {
                // An attempt that was broken off may have won.
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
                    tracing::info!(identity, "no longer leading, giving the lease up");
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

    /// Returns once we lead, with the moment from which that counts.
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
                Err(_) => self.trouble(known, "no answer from the API server"),
            }
            // Candidates that began together don't stay together.
            tokio::time::sleep(timing.retry.mul_f64(1.0 + 1.2 * fastrand::f64())).await;
        }
    }

    /// Renews until the term ends.
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
            // Counts from before the request: others count from when they see what it wrote.
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
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "the lease is not released"),
            Err(_) => tracing::warn!("the lease is not released: no answer from the API server"),
        }
    }

    fn trouble(&self, known: bool, why: &str) {
        let sentence = format!(
            "Lease {}/{}: {why}",
            self.options.namespace, self.options.name
        );
        tracing::debug!(reason = sentence, "the lease is not held");
        match known {
            true => self.condition.note(sentence),
            false => self.condition.fail(sentence),
        }
    }
}

/// What runs while we lead. Dropping it aborts it.
struct Term {
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl Term {
    /// Ends it, the hard way if it takes longer than this.
    async fn end(mut self, within: Duration) {
        self.token.cancel();
        if self.task.is_finished() {
            return;
        }
        if timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            // Until it is really over.
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
