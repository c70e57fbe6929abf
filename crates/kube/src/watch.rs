//! Watching one resource for ever: a list, then changes, then, after whatever goes wrong, both
//! again. The state machine is kube's; here its events become messages, and its errors are counted,
//! told once each time something changes, and waited out.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, InitialListStrategy, watcher};
use kube::{Api, Client, Resource};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rolegate_core::needs::Needs;
use rolegate_core::workload::Change;
use rolegate_runtime::readiness::Condition;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::client::Connection;
use crate::failure::{Failure, Kind};
use crate::picture::{PictureAge, Pictures};
use crate::watchdog::Watchdog;

/// How long a streamed list may say nothing before it is taken for a server that ignored the
/// request for one.
const STALL: Duration = Duration::from_secs(30);

/// The time for which the first list waits for rules, which determine what to keep.
const RULES: Duration = Duration::from_secs(5);

/// How long a watch lasts before the API server ends it, seconds, and it is taken up where it was.
/// This bounds how long a connection that died is not noticed, and how old a picture gets that is
/// well: bookmarks come each minute on busy clusters, but not on quiet ones.
pub(crate) const WATCH_SECONDS: u32 = 150;

type ResourceLabel = [(&'static str, &'static str); 1];

/// What is counted about watches. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    pub(crate) errors: Family<ResourceLabel, Counter>,
    pub(crate) restarts: Family<ResourceLabel, Counter>,
}

impl WatchMetrics {
    /// Registers `kube_watch_errors_total`, `kube_watch_restarts_total` and
    /// `kube_watch_age_seconds`, each by `resource`: `pods`, `namespaces` and, where they are
    /// watched, `rolegrants`, `rolegateconfigs`, `configmaps` and `replicated`. Several watches of
    /// one resource count together; their age is the oldest's.
    pub fn register(registry: &mut Registry, pictures: &Pictures) -> Self {
        let metrics = Self::default();
        for resource in ["pods", "namespaces"] {
            metrics.begin(resource);
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

    /// Counts are there from the start, as zero.
    pub(crate) fn begin(&self, resource: &'static str) {
        drop(self.errors.get_or_create(&[("resource", resource)]));
        drop(self.restarts.get_or_create(&[("resource", resource)]));
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
        for (resource, age) in self.0.by_resource() {
            let labels = [("resource", resource)];
            ConstGauge::new(age.as_secs_f64()).encode(family.encode_family(&labels)?)?;
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
pub(crate) struct Source<K, P, W, T, M> {
    pub(crate) api: Api<K>,
    pub(crate) config: watcher::Config,
    /// Turns an object into what is sent, or drops it.
    pub(crate) parse: P,
    /// Turns a change into a message.
    pub(crate) wrap: W,
    pub(crate) picture: PictureAge,
    /// Failures that aren't waited out but end the watch.
    pub(crate) ends_on: fn(Kind) -> bool,
    /// Reports a list after a gap one object at a time; if `None`, as a whole, like the first one.
    pub(crate) relist: Option<Relist<T, M>>,
    /// The bound on a list that is reported as a whole.
    pub(crate) most: Option<Most<T>>,
    /// The parts of objects to keep, if they depend on the rules.
    pub(crate) kept: Option<Kept>,
}

/// Reports a list after a gap without holding all of it: each object as it arrives, and then the
/// set of existing ones.
pub(crate) struct Relist<T, M> {
    /// The object's identity.
    pub(crate) identity: fn(&T) -> &Arc<str>,
    /// Returns whether an object is reported; otherwise it is treated as deleted.
    pub(crate) is_told: fn(&T) -> bool,
    /// Makes a message of all there are.
    pub(crate) retain: fn(HashSet<Arc<str>>) -> M,
}

/// A bound on the bytes of a list that is reported as a whole.
pub(crate) struct Most<T> {
    /// So many bytes of all objects.
    pub(crate) bytes: usize,
    /// The bytes of an object.
    pub(crate) of: fn(&T) -> usize,
    /// Drops the parts that use the bytes, if the bound is exceeded.
    pub(crate) leave_out: fn(&mut T),
}

/// The parts of objects that rules read, and that are therefore kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    wanted: watch::Receiver<Option<Needs>>,
    now: Arc<ArcSwap<Needs>>,
}

impl Kept {
    pub(crate) fn new(wanted: watch::Receiver<Option<Needs>>) -> Self {
        Self {
            wanted,
            now: Arc::default(),
        }
    }

    /// Returns the needs that apply to objects read now.
    pub(crate) fn now(&self) -> Arc<Needs> {
        self.now.load_full()
    }

    /// Takes what rules read now for what is kept from here on. The first time it waits a moment for
    /// rules, or everything would be read twice.
    async fn begin(&self) {
        let mut wanted = self.wanted.clone();
        let known = wanted.wait_for(Option::is_some);
        if let Ok(Ok(needs)) = tokio::time::timeout(RULES, known).await
            && let Some(needs) = &*needs
        {
            self.now.store(Arc::new(needs.clone()));
        }
    }

    /// Returns when rules read more than is kept: all objects have to be read again.
    async fn outgrown(&self) {
        let more = |needs: &Option<Needs>| {
            let now = self.now.load();
            needs.as_ref().is_some_and(|needs| !now.cover(needs))
        };
        if self.wanted.clone().wait_for(more).await.is_err() {
            std::future::pending().await
        }
    }
}

/// What ends a watch.
enum End {
    /// Nobody listens any more.
    Closed,
    /// Only a new list helps.
    Again,
    /// This server has no streamed lists.
    NoStreaming,
    /// A failure that isn't waited out.
    Failed(Failure),
}

/// Every failure is waited out.
pub(crate) fn never(_: Kind) -> bool {
    false
}

/// The usual configuration of a watch: lists in pages, and an end now and then.
pub(crate) fn usual() -> watcher::Config {
    watcher::Config::default()
        .page_size(500)
        .timeout(WATCH_SECONDS)
}

/// A list that has begun.
enum Listing<T> {
    /// All of it, reported at once, and its bytes if these are bounded.
    Whole(Vec<T>, usize),
    /// Objects of the list that were already reported.
    Told(HashSet<Arc<str>>),
}

impl<K, P, W, T, M> Source<K, P, W, T, M>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    P: Fn(K) -> Option<T>,
    W: Fn(Change<T>) -> M,
{
    /// A watch of all objects that `api` makes of a client, in a picture of its own.
    pub(crate) fn another(
        resource: &'static str,
        connection: &Connection,
        api: impl FnOnce(Client) -> Api<K>,
        parse: P,
        wrap: W,
    ) -> Self {
        let picture = connection.pictures().another(resource);
        Self::within(picture, connection, api, parse, wrap)
    }

    /// A watch of all objects that `api` creates from a client, tracked in `picture`. A restarted
    /// watch keeps its picture: the age is that of its last message, not of the last attempt.
    pub(crate) fn within(
        picture: PictureAge,
        connection: &Connection,
        api: impl FnOnce(Client) -> Api<K>,
        parse: P,
        wrap: W,
    ) -> Self {
        Self {
            api: api(connection.watching(&picture)),
            config: usual(),
            parse,
            wrap,
            picture,
            ends_on: never,
            relist: None,
            most: None,
            kept: None,
        }
    }

    /// Watches until nobody listens to `messages`, or until a failure that ends the watch, which is
    /// returned and not told.
    pub(crate) async fn run(
        &self,
        health: &mut Watchdog,
        messages: &mpsc::Sender<M>,
    ) -> Option<Failure> {
        let mut config = self.config.clone().streaming_lists();
        let mut loaded = false;
        loop {
            let outgrown = async {
                match &self.kept {
                    Some(kept) => kept.outgrown().await,
                    None => std::future::pending().await,
                }
            };
            let watching = async {
                if let Some(kept) = &self.kept {
                    kept.begin().await;
                }
                tokio::select! {
                    end = self.watch(&config, &mut loaded, health, messages) => end,
                    () = outgrown => End::Again,
                }
            };
            let end = tokio::select! {
                end = watching => end,
                () = messages.closed() => End::Closed,
            };
            match end {
                End::Closed => return None,
                End::Again => {}
                End::NoStreaming => {
                    let resource = health.resource();
                    tracing::debug!(resource, "no streamed lists here, listing");
                    config.initial_list_strategy = InitialListStrategy::ListWatch;
                }
                End::Failed(failure) => return Some(failure),
            }
        }
    }

    /// The report of an object's change, or `None` if it isn't reported.
    fn change(&self, object: K) -> Option<Change<T>> {
        let object = (self.parse)(object)?;
        let is_told = self.relist.as_ref().map(|relist| relist.is_told);
        Some(match is_told.is_none_or(|is_told| is_told(&object)) {
            true => Change::Apply(object),
            false => Change::Delete(object),
        })
    }

    /// Takes one more object into a list; returns whether anybody listens.
    async fn list(&self, listing: &mut Listing<T>, object: K, messages: &mpsc::Sender<M>) -> bool {
        let Some(Change::Apply(object)) = self.change(object) else {
            return true;
        };
        match (listing, &self.relist) {
            (Listing::Told(told), Some(relist)) => {
                told.insert((relist.identity)(&object).clone());
                let message = (self.wrap)(Change::Apply(object));
                messages.send(message).await.is_ok()
            }
            (Listing::Whole(all, bytes), _) => {
                let mut object = object;
                if let Some(most) = &self.most {
                    *bytes += (most.of)(&object);
                    if *bytes > most.bytes {
                        (most.leave_out)(&mut object);
                    }
                }
                all.push(object);
                true
            }
            (Listing::Told(_), None) => true,
        }
    }

    async fn watch(
        &self,
        config: &watcher::Config,
        loaded: &mut bool,
        health: &mut Watchdog,
        messages: &mpsc::Sender<M>,
    ) -> End {
        let streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
        let mut events = pin!(watcher(self.api.clone(), config.clone()));
        let mut listing: Option<Listing<T>> = None;
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
                    listing = Some(match *loaded && self.relist.is_some() {
                        true => Listing::Told(HashSet::new()),
                        false => Listing::Whole(Vec::new(), 0),
                    });
                    continue;
                }
                Some(Ok(Event::InitApply(object))) => {
                    if let Some(listing) = &mut listing
                        && !self.list(listing, object, messages).await
                    {
                        return End::Closed;
                    }
                    continue;
                }
                Some(Ok(Event::InitDone)) => {
                    let Some(all) = listing.take() else {
                        return End::Again;
                    };
                    // A list says as much as a watch.
                    self.picture.touch();
                    let all = match (all, &self.relist) {
                        (Listing::Told(told), Some(relist)) => (relist.retain)(told),
                        (Listing::Told(_), None) => return End::Again,
                        (Listing::Whole(all, _), _) => (self.wrap)(Change::Snapshot(all)),
                    };
                    if messages.send(all).await.is_err() {
                        return End::Closed;
                    }
                    *loaded = true;
                    health.loaded();
                    // After a list by itself the watch has yet to work.
                    if streaming {
                        health.recovered();
                    }
                    continue;
                }
                Some(Ok(Event::Apply(object))) => self.change(object),
                Some(Ok(Event::Delete(object))) => (self.parse)(object).map(Change::Delete),
                Some(Err(error)) => {
                    let failure = Failure::of_watch(&error);
                    if streaming && failure.kind == Kind::Unsupported {
                        return End::NoStreaming;
                    }
                    if (self.ends_on)(failure.kind) {
                        return End::Failed(failure);
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
            if messages.send((self.wrap)(change)).await.is_err() {
                return End::Closed;
            }
            health.settle();
        }
    }
}
