//! The keys that verify the cluster's ServiceAccount tokens, from the API server's discovery
//! documents.
//!
//! The keys are fetched at the start, then at intervals. A token with an unknown `kid` causes a
//! fetch at once, because the API server may sign with a new key as soon as it restarts. Such
//! fetches have a bounded rate, and `kid`s that a fetch did not find are remembered, so that clients
//! with forged tokens cannot make every agent of the cluster call the API server.

mod fetch;
mod unknown;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_core::token_bucket::{Rate, TokenBucket};
use rolegate_runtime::readiness::Condition;
use rolegate_service_account_token::{Issuer, Key, KeySet};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff;
use crate::client::Connection;
use unknown::UnknownKeyIds;

pub use fetch::FetchError;

/// Interval of fetches without a cause. It is the time for which a key that the API server no longer
/// publishes still verifies tokens.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// Rate of fetches because of unknown `kid`s. The burst lets a rotation be noticed at once, even if
/// another unknown `kid` came shortly before.
const UNKNOWN_KEY_FETCHES: Rate = Rate {
    per_second: 0.2,
    burst: 3.0,
};

/// The published keys of a cluster.
#[derive(Debug)]
pub struct PublishedKeys {
    /// The value of `iss` in the cluster's tokens.
    pub issuer: Issuer,
    /// The keys.
    pub keys: KeySet,
    /// The number of this state. It increases with each change of the documents, so a token that was
    /// verified in an older state must be verified again.
    pub generation: u64,
    /// The text of the key set, to notice changes.
    text: Vec<u8>,
}

/// The reason why a key is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyLookupError {
    /// The cluster publishes no such key. The token was not issued by this cluster, or its key was
    /// removed.
    #[error("this cluster's API server publishes no key with the token's kid")]
    Unknown,
    /// The API server has not been reached, so the key may exist. A retry may help.
    #[error("the keys of this cluster's tokens cannot be fetched from its API server")]
    Unavailable,
}

/// The keys that verify the cluster's ServiceAccount tokens. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct ServiceAccountKeys(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    published: ArcSwapOption<PublishedKeys>,
    unknown: Mutex<UnknownKeyIds>,
    fetches: watch::Sender<Fetches>,
    /// Asks the fetcher for another fetch.
    asked: Notify,
}

/// The numbers of the last fetches, which start at 1.
#[derive(Debug, Clone, Copy, Default)]
struct Fetches {
    begun: u64,
    succeeded: u64,
    failed: u64,
}

impl Fetches {
    fn ended(self) -> u64 {
        self.succeeded.max(self.failed)
    }
}

impl ServiceAccountKeys {
    /// Creates a store without keys, and the task that fetches them.
    pub fn new(
        connection: Connection,
        condition: Condition,
        registry: &mut Registry,
    ) -> (Self, KeyFetcher) {
        let keys = Self(Arc::new(Shared {
            published: ArcSwapOption::empty(),
            unknown: Mutex::default(),
            fetches: watch::Sender::new(Fetches::default()),
            asked: Notify::new(),
        }));
        condition.fail("the keys of ServiceAccount tokens have not been fetched yet");
        let fetcher = KeyFetcher {
            connection,
            keys: keys.clone(),
            condition,
            metrics: FetchMetrics::register(registry),
        };
        (keys, fetcher)
    }

    /// Returns the published keys, or `None` before the first fetch.
    pub fn published(&self) -> Option<Arc<PublishedKeys>> {
        self.0.published.load_full()
    }

    /// Returns the key with a `kid` without waiting, or `None` if a fetch may find it.
    ///
    /// # Errors
    /// Returns [`KeyLookupError::Unknown`] if a recent fetch did not find it.
    pub fn find_now(&self, id: &str) -> Result<Option<FoundKey>, KeyLookupError> {
        let Some(published) = self.published() else {
            return Ok(None);
        };
        if let Some(key) = published.keys.find(id).cloned() {
            return Ok(Some(FoundKey { key, published }));
        }
        if self.0.unknown.lock().contains(id, Instant::now()) {
            return Err(KeyLookupError::Unknown);
        }
        Ok(None)
    }

    /// Returns the key with a `kid`. Waits for a fetch that begins after this call if the key is not
    /// known. The wait is unbounded, so the caller must limit it and the number of waiting calls.
    ///
    /// # Errors
    /// Returns [`KeyLookupError`] if that fetch fails or does not find the key.
    pub async fn find(&self, id: &str) -> Result<FoundKey, KeyLookupError> {
        let mut fetches = self.0.fetches.subscribe();
        let before = fetches.borrow_and_update().begun;
        if let Some(found) = self.find_now(id)? {
            return Ok(found);
        }
        self.0.asked.notify_one();
        loop {
            let now = *fetches.borrow_and_update();
            if now.ended() > before {
                if let Some(found) = self.find_now(id)? {
                    return Ok(found);
                }
                if now.succeeded < now.failed {
                    return Err(KeyLookupError::Unavailable);
                }
                self.0.unknown.lock().insert(id, Instant::now());
                return Err(KeyLookupError::Unknown);
            }
            if fetches.changed().await.is_err() {
                return Err(KeyLookupError::Unavailable);
            }
        }
    }

    fn publish(&self, issuer: Issuer, text: Vec<u8>, keys: KeySet) {
        let last = self.published();
        let is_same = |last: &Arc<PublishedKeys>| last.issuer == issuer && last.text == text;
        if last.as_ref().is_some_and(is_same) {
            return;
        }
        let ids: Vec<_> = keys.keys().iter().map(|key| key.id()).collect();
        info!(issuer = issuer.as_str(), keys = ?ids, "keys of ServiceAccount tokens");
        for ignored in keys.ignored() {
            warn!(kid = ?ignored.id, reason = %ignored.why, "ignoring a key of ServiceAccount tokens");
        }
        self.0.published.store(Some(Arc::new(PublishedKeys {
            issuer,
            keys,
            text,
            generation: last.map_or(1, |last| last.generation + 1),
        })));
    }
}

/// A key and the state in which it was found.
#[derive(Debug, Clone)]
pub struct FoundKey {
    /// The key.
    pub key: Arc<Key>,
    /// The keys that are published.
    pub published: Arc<PublishedKeys>,
}

/// The task that fetches the keys.
#[derive(Debug)]
pub struct KeyFetcher {
    connection: Connection,
    keys: ServiceAccountKeys,
    condition: Condition,
    metrics: FetchMetrics,
}

impl KeyFetcher {
    /// Fetches the keys at intervals and on request. Never returns.
    pub async fn run(self) {
        let origin = Instant::now();
        let mut bucket = TokenBucket::full(UNKNOWN_KEY_FETCHES, Duration::ZERO);
        let mut backoff = backoff();
        loop {
            let delay = match self.fetch().await {
                Ok(()) => {
                    self.condition.ok();
                    backoff.reset();
                    REFRESH_INTERVAL
                }
                Err(error) => {
                    self.report(&error);
                    backoff.next_delay()
                }
            };
            let next = Instant::now() + delay;
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.wait_for_request(&mut bucket, origin) => {}
            }
        }
    }

    /// Waits for a request for a fetch, and until its rate allows one.
    async fn wait_for_request(&self, bucket: &mut TokenBucket<Duration>, origin: Instant) {
        self.keys.0.asked.notified().await;
        while !bucket.take(UNKNOWN_KEY_FETCHES, origin.elapsed()) {
            let seconds = bucket.seconds_until(UNKNOWN_KEY_FETCHES, 1.0);
            tokio::time::sleep(Duration::from_secs_f64(seconds.max(0.01))).await;
        }
    }

    async fn fetch(&self) -> Result<(), FetchError> {
        let mut number = 0;
        self.keys.0.fetches.send_modify(|fetches| {
            fetches.begun += 1;
            number = fetches.begun;
        });
        let fetched = fetch::fetch(&self.connection).await;
        let fetched = fetched.map(|documents| {
            self.keys
                .publish(documents.issuer, documents.text, documents.keys);
        });
        let is_ok = fetched.is_ok();
        self.keys.0.fetches.send_modify(|fetches| {
            if is_ok {
                fetches.succeeded = number;
            } else {
                fetches.failed = number;
            }
        });
        if is_ok {
            self.metrics.succeeded.inc();
        } else {
            self.metrics.failed.inc();
        }
        fetched
    }

    /// Reports a failed fetch. Keys that were fetched before stay in use: an API server that is
    /// away must not stop the node's pods.
    fn report(&self, error: &FetchError) {
        let reason = error.to_string();
        warn!(
            reason,
            "cannot fetch the keys of ServiceAccount tokens, retrying"
        );
        if self.keys.published().is_some() {
            self.condition.note(reason);
        } else {
            self.condition.fail(reason);
        }
    }
}

#[derive(Debug, Clone)]
struct FetchMetrics {
    succeeded: Counter,
    failed: Counter,
}

impl FetchMetrics {
    fn register(registry: &mut Registry) -> Self {
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let of = |result| family.get_or_create(&[("result", result)]).clone();
        let metrics = Self {
            succeeded: of("succeeded"),
            failed: of("failed"),
        };
        registry.register(
            "service_account_key_fetches",
            "Fetches of the keys that verify ServiceAccount tokens, by result",
            family,
        );
        metrics
    }
}

#[cfg(test)]
mod tests;
