//! Watches one resource indefinitely: a list, then changes and, after any error, both again. The
//! state machine is kube's. This module turns its events into messages, counts its errors, logs
//! each once until it changes, and retries.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, InitialListStrategy, watcher};
use kube::{Api, Client, Resource};
use rolegate_core::needs::Needs;
use rolegate_core::workload::Change;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::client::Connection;
use crate::error::{Failure, Kind};
use crate::freshness::Freshness;
use crate::watch_status::WatchStatus;

pub use crate::watch_observer::{WatchMetrics, WatchObserver};

/// Time without data after which a server is assumed to ignore the request for a streamed list.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that the first list waits for rules, which determine what to keep.
const RULES_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of a watch requested from the API server, in seconds, after which the watch is resumed.
/// It bounds the time until a dead connection is noticed, and the age of a healthy watch: quiet
/// clusters may not send bookmarks every minute.
pub(crate) const WATCH_SECONDS: u32 = 150;

/// A watched resource and the handling of its objects.
pub(crate) struct Source<K, P, W, T, M> {
    pub(crate) api: Api<K>,
    pub(crate) config: watcher::Config,
    /// Converts an object, or drops it.
    pub(crate) parse: P,
    /// Converts a change into a message.
    pub(crate) wrap: W,
    pub(crate) freshness: Freshness,
    /// Returns `true` for errors that end the watch instead of being retried.
    pub(crate) ends_on: fn(Kind) -> bool,
    /// Reports a list after a gap one object at a time. `None`: as a whole, like the first list.
    pub(crate) relist: Option<Relist<T, M>>,
    /// The size limit of a list that is reported as a whole.
    pub(crate) size_limit: Option<SizeLimit<T>>,
    /// The parts of objects to keep, if they depend on the rules.
    pub(crate) kept: Option<Kept>,
}

/// Reports a list after a gap without holding all of it: each object as it arrives, and then the
/// set of existing ones.
pub(crate) struct Relist<T, M> {
    /// The object's identity.
    pub(crate) identity: fn(&T) -> &Arc<str>,
    /// Returns `true` if the object is reported; otherwise it is treated as deleted.
    pub(crate) is_reported: fn(&T) -> bool,
    /// Creates the message with the identities of all existing objects.
    pub(crate) retain: fn(HashSet<Arc<str>>) -> M,
}

/// The size limit of a list that is reported as a whole.
pub(crate) struct SizeLimit<T> {
    /// Maximum size of all objects, in bytes.
    pub(crate) bytes: usize,
    /// Returns the size of an object, in bytes.
    pub(crate) of: fn(&T) -> usize,
    /// Drops the large parts of an object once the limit is exceeded.
    pub(crate) leave_out: fn(&mut T),
}

/// The parts of objects that rules read and that are therefore kept.
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

    /// Applies the current needs of the rules to objects read from here on. The first call waits
    /// briefly for rules, to avoid reading everything twice.
    async fn begin(&self) {
        let mut wanted = self.wanted.clone();
        let known = wanted.wait_for(Option::is_some);
        if let Ok(Ok(needs)) = tokio::time::timeout(RULES_TIMEOUT, known).await
            && let Some(needs) = &*needs
        {
            self.now.store(Arc::new(needs.clone()));
        }
    }

    /// Waits until rules read more than is kept, which requires a new list.
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

/// The reason why a watch ended.
enum End {
    /// The receiver is closed.
    Closed,
    /// A new list is needed.
    Again,
    /// The server does not support streamed lists.
    NoStreaming,
    /// An error that is not retried.
    Failed(Failure),
}

/// Retries every error.
pub(crate) fn never(_: Kind) -> bool {
    false
}

/// Returns the default configuration of a watch: paged lists and a timeout.
pub(crate) fn usual() -> watcher::Config {
    watcher::Config::default()
        .page_size(500)
        .timeout(WATCH_SECONDS)
}

/// A list in progress.
enum Listing<T> {
    /// The objects of a list that is reported as a whole, and their size if it is limited.
    Whole(Vec<T>, usize),
    /// Identities of the objects that were already reported.
    Reported(HashSet<Arc<str>>),
}

impl<K, P, W, T, M> Source<K, P, W, T, M>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    P: Fn(K) -> Option<T>,
    W: Fn(Change<T>) -> M,
{
    /// Creates a watch of all objects that `api` selects, with a freshness of its own.
    pub(crate) fn another(
        resource: &'static str,
        connection: &Connection,
        api: impl FnOnce(Client) -> Api<K>,
        parse: P,
        wrap: W,
    ) -> Self {
        let freshness = connection.freshness().another(resource);
        Self::within(freshness, connection, api, parse, wrap)
    }

    /// Creates a watch of all objects that `api` selects, tracked in `freshness`. A restarted watch
    /// keeps its freshness: the age is that of its last message, not of the last attempt.
    pub(crate) fn within(
        freshness: Freshness,
        connection: &Connection,
        api: impl FnOnce(Client) -> Api<K>,
        parse: P,
        wrap: W,
    ) -> Self {
        Self {
            api: api(connection.watching(&freshness)),
            config: usual(),
            parse,
            wrap,
            freshness,
            ends_on: never,
            relist: None,
            size_limit: None,
            kept: None,
        }
    }

    /// Watches until `messages` is closed, or until an error that ends the watch. That error is
    /// returned and not reported.
    pub(crate) async fn run(
        &self,
        health: &mut WatchStatus,
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
                    tracing::debug!(resource, "the API server does not stream lists, listing");
                    config.initial_list_strategy = InitialListStrategy::ListWatch;
                }
                End::Failed(failure) => return Some(failure),
            }
        }
    }

    /// Returns the report of an object's change, or `None` if it is not reported.
    fn change(&self, object: K) -> Option<Change<T>> {
        let object = (self.parse)(object)?;
        let is_reported = self.relist.as_ref().map(|relist| relist.is_reported);
        Some(
            if is_reported.is_none_or(|is_reported| is_reported(&object)) {
                Change::Apply(object)
            } else {
                Change::Delete(object)
            },
        )
    }

    /// Adds an object to a list. Returns `false` if the receiver is closed.
    async fn list(&self, listing: &mut Listing<T>, object: K, messages: &mpsc::Sender<M>) -> bool {
        let Some(Change::Apply(object)) = self.change(object) else {
            return true;
        };
        match (listing, &self.relist) {
            (Listing::Reported(told), Some(relist)) => {
                told.insert((relist.identity)(&object).clone());
                let message = (self.wrap)(Change::Apply(object));
                messages.send(message).await.is_ok()
            }
            (Listing::Whole(all, bytes), _) => {
                let mut object = object;
                if let Some(size_limit) = &self.size_limit {
                    *bytes += (size_limit.of)(&object);
                    if *bytes > size_limit.bytes {
                        (size_limit.leave_out)(&mut object);
                    }
                }
                all.push(object);
                true
            }
            (Listing::Reported(_), None) => true,
        }
    }

    fn begin_list(&self, is_loaded: bool) -> Listing<T> {
        if is_loaded && self.relist.is_some() {
            Listing::Reported(HashSet::new())
        } else {
            Listing::Whole(Vec::new(), 0)
        }
    }

    /// Returns the message at the end of a list.
    fn listed(&self, listing: Listing<T>) -> Option<M> {
        // A list proves freshness as a watch does.
        self.freshness.touch();
        match listing {
            Listing::Reported(told) => Some((self.relist.as_ref()?.retain)(told)),
            Listing::Whole(all, _) => Some((self.wrap)(Change::Snapshot(all))),
        }
    }

    async fn watch(
        &self,
        config: &watcher::Config,
        loaded: &mut bool,
        health: &mut WatchStatus,
        messages: &mpsc::Sender<M>,
    ) -> End {
        let streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
        let mut events = pin!(watcher(self.api.clone(), config.clone()));
        let mut listing: Option<Listing<T>> = None;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                // A resumed watch is silent until something happens, so any received data shows
                // that it is healthy.
                () = self.freshness.heard(), if health.is_failing() && listing.is_none() => {
                    health.recovered();
                    continue;
                }
                () = tokio::time::sleep(STALL_TIMEOUT), if streaming && listing.is_some() => {
                    return End::NoStreaming;
                }
            };
            let change = match event {
                None => return End::Again,
                Some(Ok(Event::Init)) => {
                    listing = Some(self.begin_list(*loaded));
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
                    let Some(all) = listing.take().and_then(|all| self.listed(all)) else {
                        return End::Again;
                    };
                    if messages.send(all).await.is_err() {
                        return End::Closed;
                    }
                    *loaded = true;
                    health.loaded();
                    // After a plain list the watch has yet to succeed.
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
                    // A partial list must never pass for a complete one.
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
