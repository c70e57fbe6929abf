//! The keys of metadata tokens in the life of an agent: where they come from, and when they change.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::{Condition, Readiness};
use tracing::{info, warn};

use crate::runtime_folder::RuntimeFolder;
use crate::token::store::KeyStore;
use crate::token::{KeyRing, NoRandomness, TokenKeys};

/// The interval between checks of the key's age.
const INTERVAL: Duration = Duration::from_secs(600);

/// The keys of tokens, and where they are kept for the next process.
pub(super) struct KeptKeys {
    store: Option<KeyStore>,
    ready: Condition,
}

impl KeptKeys {
    /// Keys that are kept in `folder`, where that is in memory.
    pub(super) fn new(
        folder: Option<Arc<RuntimeFolder>>,
        port: u16,
        readiness: &Readiness,
    ) -> Self {
        let ready = readiness.condition("token-keys");
        ready.ok();
        let why = match folder.map(|folder| KeyStore::new(folder, port)) {
            Some(Ok(store)) => {
                let store = Some(store);
                return Self { store, ready };
            }
            Some(Err(error)) => error.to_string(),
            None => "there is no runtime folder".to_owned(),
        };
        info!(reason = why, "metadata tokens end with this process");
        ready.note(format!("metadata tokens end with this process: {why}"));
        Self { store: None, ready }
    }

    /// The ring to begin with: that of the agent before, which may be `inherited`, or a new one.
    pub(super) fn ring(
        &self,
        inherited: Option<KeyRing>,
        now: Timestamp,
    ) -> Result<KeyRing, NoRandomness> {
        let left = || {
            let loaded = self.store.as_ref()?.load();
            loaded.unwrap_or_else(|error| {
                warn!(%error, "metadata tokens of the agent before are not good any more");
                None
            })
        };
        let ring = match inherited.or_else(left) {
            Some(ring) => ring.rotated(now)?.unwrap_or(ring),
            None => KeyRing::generate(now)?,
        };
        self.save(&ring);
        Ok(ring)
    }

    /// Changes the key when it is due.
    pub(super) async fn keep(self, keys: Arc<TokenKeys>, clock: Clock) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            match keys.rotate(clock.now(), |ring| self.save(ring)).await {
                Ok(true) => info!("metadata tokens are made with a new key"),
                Ok(false) => {}
                Err(error) => warn!(%error, "metadata tokens are made with the old key"),
            }
        }
    }

    fn save(&self, ring: &KeyRing) {
        match self.store.as_ref().map(|store| store.save(ring)) {
            Some(Ok(())) => self.ready.ok(),
            Some(Err(error)) => {
                warn!(%error, "metadata tokens end with this process");
                let note = format!("metadata tokens end with this process: {error}");
                self.ready.note(note);
            }
            None => {}
        }
    }
}
