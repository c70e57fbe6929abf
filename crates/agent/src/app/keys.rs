//! Storage and rotation of the keys of metadata tokens.

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

/// The keys of tokens, and their storage for the next process.
pub(super) struct KeptKeys {
    store: Option<KeyStore>,
    ready: Condition,
}

impl KeptKeys {
    /// Creates keys that are stored in `folder` if it is in memory.
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
            None => "there is no runtime directory".to_owned(),
        };
        info!(
            reason = why,
            "metadata tokens are valid only until this process exits"
        );
        ready.note(format!(
            "metadata tokens are valid only until this process exits: {why}"
        ));
        Self { store: None, ready }
    }

    /// Returns the initial ring: the previous agent's, which may be `inherited`, or a new one.
    pub(super) fn ring(
        &self,
        inherited: Option<KeyRing>,
        now: Timestamp,
    ) -> Result<KeyRing, NoRandomness> {
        let left = || {
            let loaded = self.store.as_ref()?.load();
            loaded.unwrap_or_else(|error| {
                warn!(%error, "metadata tokens of the previous agent are no longer valid");
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

    /// Rotates the key when it is due.
    pub(super) async fn keep(self, keys: Arc<TokenKeys>, clock: Clock) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            match keys.rotate(clock.now(), |ring| self.save(ring)).await {
                Ok(true) => info!("rotated the key of metadata tokens"),
                Ok(false) => {}
                Err(error) => warn!(%error, "cannot rotate the key of metadata tokens"),
            }
        }
    }

    fn save(&self, ring: &KeyRing) {
        match self.store.as_ref().map(|store| store.save(ring)) {
            Some(Ok(())) => self.ready.ok(),
            Some(Err(error)) => {
                warn!(%error, "metadata tokens are valid only until this process exits");
                let note =
                    format!("metadata tokens are valid only until this process exits: {error}");
                self.ready.note(note);
            }
            None => {}
        }
    }
}
