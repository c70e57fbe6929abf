//! What is served now, and what is said of it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pair::{Pair, PairError, fingerprint};
use crate::clock::Clock;
use crate::readiness::Condition;

/// The certificate that is served, if there is one. A pair that can't be served never takes the
/// place of one that can: the last good one stays, and the condition says what is wrong.
pub struct CertificateStore {
    name: &'static str,
    clock: Clock,
    condition: Condition,
    served: ArcSwapOption<Pair>,
    /// What is wrong with what was offered last.
    complaint: Mutex<Option<String>>,
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
    /// Nothing to serve yet, which `condition` says. `name` is the certificate's in metrics and
    /// logs.
    pub fn new(name: &'static str, clock: Clock, condition: Condition) -> Self {
        let store = Self {
            name,
            clock,
            condition,
            served: ArcSwapOption::empty(),
            complaint: Mutex::default(),
        };
        store.judge(None);
        store
    }

    /// Its name in metrics and logs.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Serves this pair, both as PEM, the chain's leaf first, from the next handshake on.
    ///
    /// # Errors
    /// When it can't be served; then what was served before goes on, and the condition and one line
    /// in the log say so.
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
                self.complain(error.to_string());
                Err(error)
            }
        }
    }

    /// Says that the source has no pair to offer, and why. What is served stays.
    pub fn complain(&self, why: impl Into<String>) {
        self.say(Some(why.into()));
    }

    /// How long the certificate that is served still lasts, less than nothing if it has ended;
    /// `None` while there is none.
    pub fn left(&self) -> Option<SignedDuration> {
        Some(self.expires_at()?.duration_since(self.clock.now()))
    }

    /// The expiration of the certificate that is served; `None` while there is none.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.served.load().as_ref().map(|pair| pair.not_after)
    }

    /// Looks whether what is served has ended. Sources call this now and then.
    pub fn look(&self) {
        let complaint = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.judge(complaint.as_deref());
    }

    fn say(&self, complaint: Option<String>) {
        let mut said = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *said != complaint {
            match &complaint {
                Some(why) => {
                    tracing::warn!(
                        certificate = self.name,
                        reason = why,
                        "the certificate is not well"
                    );
                }
                None => tracing::info!(certificate = self.name, "the certificate is well again"),
            }
            *said = complaint;
        }
        self.judge(said.as_deref());
    }

    fn judge(&self, complaint: Option<&str>) {
        let ended = |end: &Timestamp| *end <= self.clock.now();
        let end = self.served.load().as_ref().map(|pair| pair.not_after);
        match (end, complaint) {
            (None, None) => self.condition.fail("there is no certificate yet"),
            (None, Some(why)) => self.condition.fail(why),
            (Some(end), why) if ended(&end) => {
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                self.condition
                    .fail(format!("the certificate ended at {end}{why}"));
            }
            (Some(end), Some(why)) => self
                .condition
                .note(format!("{why}; the one before is served until {end}")),
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
