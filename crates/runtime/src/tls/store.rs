//! The certificate that is currently served, and its condition.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pair::{Pair, PairError, fingerprint};
use crate::clock::Clock;
use crate::readiness::Condition;

/// The certificate that is served, if there is one. An invalid pair never replaces a valid one: the
/// last valid one stays, and the condition reports the error.
pub struct CertificateStore {
    name: &'static str,
    clock: Clock,
    condition: Condition,
    served: ArcSwapOption<Pair>,
    /// The error of the last update.
    last_error: Mutex<Option<String>>,
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore")
            .field("name", &self.name)
            .field("served", &self.served.load())
            .finish_non_exhaustive()
    }
}

impl CertificateStore {
    /// Creates an empty store, which `condition` reports. `name` is the certificate's name in
    /// metrics and logs.
    pub fn new(name: &'static str, clock: Clock, condition: Condition) -> Self {
        let store = Self {
            name,
            clock,
            condition,
            served: ArcSwapOption::empty(),
            last_error: Mutex::default(),
        };
        store.update_condition(None);
        store
    }

    /// Returns the certificate's name in metrics and logs.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Serves this pair, both as PEM, the chain's leaf first, from the next handshake on.
    ///
    /// # Errors
    /// Returns [`PairError`] if the pair is invalid. The previous one stays in use, and the
    /// condition and one line in the log report the error.
    pub fn set(&self, certificate: &[u8], key: &[u8]) -> Result<(), PairError> {
        let known = self.served.load().as_ref().map(|pair| pair.fingerprint);
        if known == Some(fingerprint(certificate, key)) {
            self.say(None);
            return Ok(());
        }
        match Pair::parse(certificate, key, self.clock.now()) {
            Ok(pair) => {
                tracing::info!(
                    certificate = self.name,
                    until = %pair.not_after,
                    "serving a new certificate"
                );
                self.served.store(Some(Arc::new(pair)));
                self.say(None);
                Ok(())
            }
            Err(error) => {
                self.report_error(error.to_string());
                Err(error)
            }
        }
    }

    /// Reports that the source has no pair, and why. The current certificate stays in use.
    pub fn report_error(&self, why: impl Into<String>) {
        self.say(Some(why.into()));
    }

    /// Returns the remaining validity of the current certificate, negative if it has expired.
    /// `None` before the first one is loaded.
    pub fn left(&self) -> Option<SignedDuration> {
        Some(self.expires_at()?.duration_since(self.clock.now()))
    }

    /// Returns the expiration of the current certificate. `None` before the first one is loaded.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.served.load().as_ref().map(|pair| pair.not_after)
    }

    /// Checks whether the current certificate has expired. Sources call this periodically.
    pub fn check_expiry(&self) {
        let last_error = self.last_error.lock();
        self.update_condition(last_error.as_deref());
    }

    fn say(&self, last_error: Option<String>) {
        let mut said = self.last_error.lock();
        if *said != last_error {
            match &last_error {
                Some(why) => {
                    tracing::warn!(
                        certificate = self.name,
                        reason = why,
                        "the certificate has an error"
                    );
                }
                None => tracing::info!(
                    certificate = self.name,
                    "the certificate has no error \
                 any more"
                ),
            }
            *said = last_error;
        }
        self.update_condition(said.as_deref());
    }

    fn update_condition(&self, last_error: Option<&str>) {
        let ended = |end: &Timestamp| *end <= self.clock.now();
        let end = self.served.load().as_ref().map(|pair| pair.not_after);
        match (end, last_error) {
            (None, None) => self.condition.fail("no certificate is loaded yet"),
            (None, Some(why)) => self.condition.fail(why),
            (Some(end), why) if ended(&end) => {
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                self.condition
                    .fail(format!("the certificate expired at {end}{why}"));
            }
            (Some(end), Some(why)) => self.condition.note(format!(
                "{why}; the previous certificate is served until {end}"
            )),
            (Some(_), None) => self.condition.ok(),
        }
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.served.load();
        served.as_ref().map(|pair| pair.key.clone())
    }
}
