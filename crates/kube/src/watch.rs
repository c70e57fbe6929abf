//! Watching one resource for ever: a list, then changes, then, after whatever goes wrong, both
//! again. The state machine is kube's; here its events become updates, and its errors are counted,
//! told once each time something changes, and waited out.

use std::fmt::{self, Debug};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event, InitialListStrategy, watcher};
use kube::{Api, Resource};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rolegate_core::workload::{Change, Update};
use rolegate_runtime::readiness::Condition;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::backoff;
use crate::failure::{Failure, Kind};
use crate::picture::{PictureAge, Pictures};

/// How long a streamed list may say nothing before it is taken for a server that ignored the
/// request for one.
const STALL: Duration = Duration::from_secs(30);

/// How long a watch lasts before the API server ends it, seconds, and it is taken up where it was.
/// This bounds how long a connection that died is not noticed, and how old a picture gets that is
/// well: bookmarks come each minute on busy clusters, but not on quiet ones.
pub(crate) const WATCH_SECONDS: u32 = 150;

type ResourceLabel = [(&'static str, &'static str); 1];

/// What is counted about watches. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    errors: Family<ResourceLabel, Counter>,
    restarts: Family<ResourceLabel, Counter>,
}

impl WatchMetrics {
    /// Registers `kube_watch_errors_total`, `kube_watch_restarts_total` and
    /// `kube_watch_age_seconds`, each by `resource`.
    pub fn register(registry: &mut Registry, pictures: &Pictures) -> Self {
        let metrics = Self::default();
        for resource in ["pods", "namespaces"] {
            // There from the start, as zero.
            drop(metrics.errors.get_or_create(&[("resource", resource)]));
            drop(metrics.restarts.get_or_create(&[("resource", resource)]));
        }
        registry.register(
            "kube_watch_errors",
            "Failed lists and watches, each attempt",
            metrics.errors.clone(),
        );
        registry.register(
            "kube_watch_restarts",
            "Watches begun again with a whole list",
            metrics.restarts.clone(),
        );
        registry.register_collector(Box::new(Ages(pictures.clone())));
        metrics
    }
}

#[derive(Debug)]
struct Ages(Pictures);

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "kube_watch_age",
            "Time since the API server was last heard on the watch, bookmarks included",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        let pictures = [("pods", &self.0.pods), ("namespaces", &self.0.namespaces)];
        for (resource, picture) in pictures {
            if let Some(age) = picture.age() {
                let labels = [("resource", resource)];
                ConstGauge::new(age.as_secs_f64()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Where a watch tells how it goes.
#[derive(Debug, Clone)]
pub struct Reporting {
    /// Counts.
    pub metrics: WatchMetrics,
    /// Fails until the first snapshot; noted while the watch fails later on.
    pub condition: Condition,
}

/// One resource to be watched, and what becomes of its objects.
pub(crate) struct Source<K, T, P> {
    pub(crate) resource: &'static str,
    pub(crate) api: Api<K>,
    pub(crate) config: watcher::Config,
    pub(crate) parse: P,
    pub(crate) wrap: fn(Change<T>) -> Update,
    pub(crate) picture: PictureAge,
}

/// What ends a watch.
enum End {
    /// Nobody listens any more.
    Closed,
    /// Only a new list helps.
    Again,
    /// This server has no streamed lists.
    NoStreaming,
}

impl<K, T, P> Source<K, T, P>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    T: Send + 'static,
    P: Fn(K) -> Option<T> + Send,
{
    /// Watches until nobody listens to `updates`.
    pub(crate) async fn run(self, reporting: Reporting, updates: mpsc::Sender<Update>) {
        reporting
            .condition
            .fail(format!("{} are not loaded yet", self.resource));
        let mut health = Watchdog::new(self.resource, reporting);
        let mut config = self.config.clone().streaming_lists();
        loop {
            let end = tokio::select! {
                end = self.watch(&config, &mut health, &updates) => end,
                () = updates.closed() => End::Closed,
            };
            match end {
                End::Closed => return,
                End::Again => {}
                End::NoStreaming => {
                    tracing::debug!(resource = self.resource, "no streamed lists here, listing");
                    config.initial_list_strategy = InitialListStrategy::ListWatch;
                }
            }
        }
    }

    async fn watch(
        &self,
        config: &watcher::Config,
        health: &mut Watchdog,
        updates: &mpsc::Sender<Update>,
    ) -> End {
        let streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
        let mut events = pin!(watcher(self.api.clone(), config.clone()));
        let mut listing: Option<Vec<T>> = None;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                // A watch that was resumed says nothing until something happens; that the server
                // is heard is enough to know that all is well.
                () = self.picture.heard(), if health.is_failing() && listing.is_none() => {
                    health.recovered();
                    continue;
                }
                () = tokio::time::sleep(STALL), if streaming && listing.is_some() => {
                    return End::NoStreaming;
                }
            };
            let change = match event {
                None => return End::Again,
                Some(Ok(Event::Init)) => {
                    listing = Some(Vec::new());
                    continue;
                }
                Some(Ok(Event::InitApply(object))) => {
                    if let Some(listing) = &mut listing {
                        listing.extend((self.parse)(object));
                    }
                    continue;
                }
                Some(Ok(Event::InitDone)) => {
                    let Some(all) = listing.take() else {
                        return End::Again;
                    };
                    // A list says as much as a watch.
                    self.picture.touch();
                    if updates
                        .send((self.wrap)(Change::Snapshot(all)))
                        .await
                        .is_err()
                    {
                        return End::Closed;
                    }
                    health.loaded();
                    // After a list by itself the watch has yet to work.
                    if streaming {
                        health.recovered();
                    }
                    continue;
                }
                Some(Ok(Event::Apply(object))) => (self.parse)(object).map(Change::Apply),
                Some(Ok(Event::Delete(object))) => (self.parse)(object).map(Change::Delete),
                Some(Err(error)) => {
                    let failure = Failure::of_watch(&error);
                    if streaming && failure.kind == Kind::Unsupported {
                        return End::NoStreaming;
                    }
                    tokio::time::sleep(health.failed(&failure)).await;
                    // Half a list is none: it must never pass for all there is.
                    if failure.gap || listing.is_some() {
                        return End::Again;
                    }
                    continue;
                }
            };
            health.recovered();
            let Some(change) = change else { continue };
            if updates.send((self.wrap)(change)).await.is_err() {
                return End::Closed;
            }
        }
    }
}

/// Keeps what a watch says of itself: one line when it begins to fail or fails differently, one
/// when it works again.
struct Watchdog {
    resource: &'static str,
    reporting: Reporting,
    loaded: bool,
    failing: Option<Failing>,
    waits: Box<dyn Iterator<Item = Duration> + Send>,
}

struct Failing {
    kind: Kind,
    since: Instant,
    attempts: u64,
}

impl Watchdog {
    fn new(resource: &'static str, reporting: Reporting) -> Self {
        Self {
            resource,
            reporting,
            loaded: false,
            failing: None,
            waits: Box::new(backoff()),
        }
    }

    fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Counts and tells a failure; how long to wait before the next attempt.
    fn failed(&mut self, failure: &Failure) -> Duration {
        let resource = self.resource;
        self.reporting
            .metrics
            .errors
            .get_or_create(&[("resource", resource)])
            .inc();
        let sentence = failure.sentence(resource);
        match &mut self.failing {
            Some(failing) if failing.kind == failure.kind => failing.attempts += 1,
            failing => {
                let (since, attempts) = match failing {
                    Some(failing) => (failing.since, failing.attempts + 1),
                    None => (Instant::now(), 1),
                };
                *failing = Some(Failing {
                    kind: failure.kind,
                    since,
                    attempts,
                });
                match failure.kind {
                    // Part of the protocol.
                    Kind::Expired => tracing::debug!(resource, "{sentence}"),
                    _ => tracing::warn!(resource, "{sentence}; trying on"),
                }
            }
        }
        match self.loaded {
            true => self.reporting.condition.note(sentence),
            false => self.reporting.condition.fail(sentence),
        }
        self.waits.next().unwrap_or(Duration::from_secs(5))
    }

    /// A whole list has come.
    fn loaded(&mut self) {
        if self.loaded {
            self.reporting
                .metrics
                .restarts
                .get_or_create(&[("resource", self.resource)])
                .inc();
        } else {
            self.loaded = true;
            self.reporting.condition.ok();
            tracing::debug!(resource = self.resource, "loaded");
        }
    }

    /// The API server was heard again.
    fn recovered(&mut self) {
        let Some(failing) = self.failing.take() else {
            return;
        };
        self.waits = Box::new(backoff());
        if self.loaded {
            self.reporting.condition.ok();
        }
        if failing.kind != Kind::Expired {
            let seconds = failing.since.elapsed().as_secs();
            let (resource, attempts) = (self.resource, failing.attempts);
            tracing::info!(resource, attempts, seconds, "the watch works again");
        }
    }
}
