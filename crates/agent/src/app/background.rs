//! Background tasks: the redirect, the kernel's events, the staleness of the pod table.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rolegate_redirect::{Redirect, RedirectReconciler, Status};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Condition;
use rolegate_runtime::supervisor::Supervisor;
use rolegate_sessions::Sessions;
use tokio::sync::watch;

use super::RedirectOptions;
use super::mode::Backend;
use super::redirect_check::RedirectCheck;
use crate::address_verifier::AddressVerifier;
use crate::attachment::Attachments;
use crate::limits::{AgentLimit, Limits};
use crate::pod_table::PodTable;

/// Interval at which the staleness is checked.
const AGE_INTERVAL: Duration = Duration::from_secs(5);
/// The interval between checks of the limits.
const LIMITS_INTERVAL: Duration = Duration::from_secs(5);
/// The time for which a limit is reported after it was reached.
const RECENT_LIMIT_PERIOD: Duration = Duration::from_secs(60);
/// Staleness above which the readiness contains a note. A working watch stays below it.
const NOTED_STALENESS: Duration = Duration::from_secs(180);

/// Reports in the readiness when the pod table is too old.
async fn staleness(verifier: AddressVerifier, most: Duration, ready: Condition) {
    let mut ticks = tokio::time::interval(AGE_INTERVAL);
    loop {
        ticks.tick().await;
        let age = verifier.staleness();
        if age > most {
            ready.fail(format!("last update from the cluster {age:.0?} ago"));
        } else if age > NOTED_STALENESS {
            ready.note(format!("last update from the cluster {age:.0?} ago"));
        } else {
            ready.ok();
        }
    }
}

/// Reports addresses that identify no pod, or not for certain.
async fn addresses(attachments: Arc<Attachments>, ready: Condition) {
    let mut ticks = tokio::time::interval(AGE_INTERVAL);
    loop {
        ticks.tick().await;
        match attachments.concern() {
            Some(concern) => ready.note(concern),
            None => ready.ok(),
        }
    }
}

/// Reports in the readiness which limits were reached recently.
pub(super) async fn limits(all: Vec<Arc<Limits>>, clock: Clock, ready: Condition) {
    let mut ticks = tokio::time::interval(LIMITS_INTERVAL);
    loop {
        ticks.tick().await;
        let reached = all
            .iter()
            .flat_map(|limits| limits.reached_within(RECENT_LIMIT_PERIOD, clock.now()));
        let reached: Vec<_> = reached.collect();
        if reached.is_empty() {
            ready.ok();
            continue;
        }
        let names: Vec<_> = reached.into_iter().map(AgentLimit::as_str).collect();
        ready.note(format!(
            "reached in the last minute: {}; see rolegate_limit_reached_total",
            names.join(", ")
        ));
    }
}

/// Starts background tasks and registers their metrics.
pub(super) struct Background<'a> {
    pub(super) registry: &'a mut Registry,
    pub(super) supervisor: &'a mut Supervisor,
}

impl Background<'_> {
    /// Follows the kernel's events about pods' interfaces, and the container runtime's records.
    pub(super) fn follow_attachments(
        &mut self,
        attachments: Arc<Attachments>,
        pod_table: Arc<PodTable>,
    ) {
        self.registry.register(
            "address_events_lost",
            "Number of times that the kernel dropped events about pods' addresses",
            attachments.losses(),
        );
        let condition = self.supervisor.readiness().condition("pod-addresses");
        self.supervisor
            .spawn(addresses(attachments.clone(), condition));
        self.supervisor.spawn(async move {
            // A request may wait for its pod's record, or for events to be read.
            attachments.run(|| pod_table.touch()).await;
        });
    }

    /// Reports the age of the pod table and of sessions.
    pub(super) fn report_staleness(&mut self, backend: &Backend, most: Duration, clock: Clock) {
        let condition = self.supervisor.readiness().condition("watch-freshness");
        let verifier = backend.verifier.clone();
        self.supervisor
            .spawn(staleness(verifier.clone(), most, condition));
        self.registry.register_collector(Box::new(Gauges {
            sessions: backend.sessions.clone(),
            verifier,
            clock,
        }));
    }

    /// Keeps the redirect in the kernel, and tests it from inside pods. Returns its backend if it is
    /// to be removed at exit.
    pub(super) fn keep_redirect(
        &mut self,
        options: RedirectOptions,
    ) -> Option<rolegate_redirect::Backend> {
        let removed = options.remove_at_exit.then_some(options.backend);
        let interface = options.spec.interface().clone();
        let reconciler = RedirectReconciler::new(
            Redirect::new(options.backend, options.spec),
            options.interval,
        );
        let status = reconciler.status();
        self.registry
            .register_collector(Box::new(RedirectGauges(status.clone())));
        self.registry.register(
            "redirect_events_lost",
            "Number of times that the kernel dropped notifications about its rules, which were then checked",
            reconciler.losses(),
        );
        let condition = self.supervisor.readiness().condition("redirect");
        condition.fail("the redirect is not installed yet");
        self.supervisor.spawn(reconciler.run());
        self.supervisor.spawn(report(status.clone(), condition));
        if let Some(dir) = options.check_dir {
            let condition = self.supervisor.readiness().condition("redirect-check");
            condition.note("the redirect has not been tested from a pod yet");
            let check = RedirectCheck::new(dir, interface, condition, self.registry);
            self.supervisor.spawn(check.run(status));
        }
        removed
    }
}

async fn report(mut status: watch::Receiver<Status>, ready: Condition) {
    loop {
        let now = status.borrow_and_update().clone();
        match now.error {
            Some(error) => ready.fail(error),
            None if now.in_place => ready.ok(),
            None => {}
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Metrics of the redirect reconciler, computed on each scrape.
#[derive(Debug)]
struct RedirectGauges(watch::Receiver<Status>);

impl Collector for RedirectGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.borrow().clone();
        let in_place = ConstGauge::new(i64::from(status.in_place));
        let metric = encoder.encode_descriptor(
            "redirect_in_place",
            "1 if the redirect is installed, 0 otherwise",
            None,
            in_place.metric_type(),
        )?;
        in_place.encode(metric)?;
        let restored = ConstCounter::new(status.restored);
        let metric = encoder.encode_descriptor(
            "redirect_restored",
            "Number of times that the redirect was restored",
            None,
            restored.metric_type(),
        )?;
        restored.encode(metric)
    }
}

/// Metrics that are computed on each scrape.
#[derive(Debug)]
struct Gauges {
    sessions: Sessions,
    verifier: AddressVerifier,
    clock: Clock,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let now = self.clock.now();
        let lives = self.sessions.stats(now);
        let gauges = [
            (
                "session_earliest_expiration_timestamp_seconds",
                "Expiration of the session that expires first, as Unix time",
                lives
                    .earliest_expiration
                    .map(|time| time.as_second() as f64),
            ),
            (
                "session_max_age_seconds",
                "Age of the oldest session",
                lives.oldest_age,
            ),
            (
                "watch_staleness_seconds",
                "Time since the last update from the API server or the broker",
                Some(self.verifier.staleness().as_secs_f64()),
            ),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
