//! Sessions of STS, shared by the workloads that may use them.
//!
//! A workload needs a session as long as it holds a [`Lease`], which [`Sessions::lease`] returns
//! for a [`SessionKey`](rolegate_core::session::SessionKey). All leases of a key share one
//! [`SessionCell`]. One writer fills the cells, and endpoints read them without waiting or locking:
//!
//! - [`Driver`] fetches and refreshes sessions through an [`AssumeRole`], as the pure state machine
//!   in [`rolegate_core::engine`] decides. `rolegate-aws` implements the trait with STS.
//! - [`RemoteSessions`] stores the sessions that a broker sends.
//!
//! A [`Session`] has the credentials as typed fields. An endpoint renders its own [`Document`] from
//! them, once for each session. Dropping the last lease of a key ends the refreshes and wipes the
//! session.
//!
//! # Example
//!
//! ```
//! use prometheus_client::registry::Registry;
//! use rolegate_core::arn::RoleArn;
//! use rolegate_core::engine::{Cause, EngineOptions};
//! use rolegate_core::session::{Credentials, Failure, SessionKey, Validity};
//! use rolegate_runtime::clock::Clock;
//! use rolegate_sessions::{AssumeRole, SessionState, Document, Session, SessionMetrics, Sessions};
//! use zeroize::Zeroizing;
//!
//! /// Issues the same credentials for each key.
//! struct Fake(Clock);
//!
//! impl AssumeRole for Fake {
//!     async fn assume_role(&self, _: &SessionKey) -> Result<Credentials, Failure> {
//!         let from = self.0.now();
//!         let until = from + std::time::Duration::from_secs(3600);
//!         let validity = Validity { not_before: from, not_after: until };
//!         Ok(Credentials::new("ASIAEXAMPLE", "secret", "token", validity))
//!     }
//! }
//!
//! /// A document of an endpoint.
//! struct KeyId;
//!
//! impl Document for KeyId {
//!     fn render(session: &Session) -> Zeroizing<Vec<u8>> {
//!         Zeroizing::new(session.credentials.access_key_id.as_bytes().to_vec())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clock = Clock::system();
//! let metrics = SessionMetrics::register(&mut Registry::default());
//! let fake = Fake(clock.clone());
//! let (sessions, driver) = Sessions::new(fake, EngineOptions::default(), clock.clone(), metrics);
//! tokio::spawn(driver.run());
//!
//! let key = SessionKey {
//!     role: RoleArn::parse("arn:aws:iam::123456789012:role/reader")?,
//!     name: "default.api".into(),
//!     external_id: None,
//!     duration_seconds: 3600,
//!     limits: None,
//!     target: None,
//! };
//! let lease = sessions.lease(key, "default".into(), Cause::New);
//! let session = loop {
//!     // Subscribe before reading, so that no change is missed.
//!     let changed = lease.cell().changed();
//!     match lease.cell().state(clock.now()) {
//!         SessionState::Valid(session) => break session,
//!         SessionState::Failed(failure) => return Err(failure.into()),
//!         SessionState::Fetching => changed.await,
//!     }
//! };
//! assert_eq!(session.document::<KeyId>(), "ASIAEXAMPLE");
//! # Ok(())
//! # }
//! ```

mod cell;
mod driver;
mod kube2iam;
mod lease;
mod metrics;
mod remote;
mod session;

pub use cell::{SessionCell, SessionState};
pub use driver::{AssumeRole, Driver};
pub use lease::{Lease, SessionStats, Sessions};
pub use metrics::SessionMetrics;
pub use remote::RemoteSessions;
pub use session::{Document, Session};

#[cfg(test)]
mod tests;
