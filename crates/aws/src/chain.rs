//! Intermediate roles, which rolegate assumes before it calls STS for pods, each with the
//! credentials of the previous one.
//!
//! `AssumeRoleProvider` of `aws-config` is not used: it logs STS's message, which may quote the
//! signed request, it does not expose the error, and the first failed refresh discards a session
//! that is still valid.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use jiff::Timestamp;
use parking_lot::Mutex;
use rolegate_core::arn::RoleArn;
use rolegate_core::session::{self, Failure, SessionKey, Validity};
use rolegate_runtime::clock::Clock;
use rolegate_sessions::AssumeRole;

/// The requested session duration, in seconds: the maximum for role chaining, and allowed by every
/// role.
const SESSION_SECONDS: u32 = 3600;
/// `RoleSessionName` of rolegate's own sessions.
const SESSION_NAME: &str = "rolegate";
/// Minimum time between two failed attempts.
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// A role that rolegate assumes on the way to those of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntermediateRole {
    /// The role's ARN.
    pub role: RoleArn,
    /// `ExternalId`, if its trust policy requires one.
    pub external_id: Option<Arc<str>>,
}

impl IntermediateRole {
    fn key(&self) -> SessionKey {
        SessionKey {
            role: self.role.clone(),
            name: SESSION_NAME.into(),
            external_id: self.external_id.clone(),
            duration_seconds: SESSION_SECONDS,
            limits: None,
            target: None,
        }
    }
}

/// A role of the chain cannot be assumed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rolegate cannot assume its intermediate role {role}: {failure}")]
pub(crate) struct ChainError {
    /// The role's name.
    pub(crate) role: String,
    /// The error of the call.
    pub(crate) failure: Failure,
}

/// The session of an intermediate role, fetched when first needed and refreshed at half its
/// validity. If a refresh fails, the existing session is used until it expires.
pub(crate) struct AssumedRole<C> {
    caller: C,
    key: SessionKey,
    clock: Clock,
    state: Mutex<State>,
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    session: Option<(Credentials, Validity)>,
    failed: Option<(Timestamp, ChainError)>,
}

impl<C> AssumedRole<C> {
    pub(crate) fn new(caller: C, role: &IntermediateRole, clock: Clock) -> Self {
        Self {
            caller,
            key: role.key(),
            clock,
            state: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Returns the existing session and whether to refresh it, or an error if no session exists and
    /// an attempt has just failed.
    fn cached(&self) -> Result<Option<(Credentials, bool)>, ChainError> {
        let now = self.clock.now();
        let state = self.state();
        let failed = state.failed.as_ref().filter(|(at, _)| {
            Duration::try_from(at.duration_until(now)).is_ok_and(|since| since < MIN_RETRY_INTERVAL)
        });
        match &state.session {
            Some((credentials, lifetime)) if lifetime.is_valid(now) => {
                let due = lifetime.not_before.duration_until(now) > lifetime.remaining(now);
                Ok(Some((credentials.clone(), due && failed.is_none())))
            }
            _ => match failed {
                Some((_, error)) => Err(error.clone()),
                None => Ok(None),
            },
        }
    }
}

impl<C: AssumeRole> AssumedRole<C> {
    async fn credentials(&self) -> Result<Credentials, ChainError> {
        match self.cached()? {
            Some((credentials, false)) => Ok(credentials),
            Some((credentials, true)) => match self.renewing.try_lock() {
                Ok(_renewing) => Ok(self.renew().await.unwrap_or(credentials)),
                Err(_) => Ok(credentials),
            },
            None => {
                let _renewing = self.renewing.lock().await;
                // Another task may have fetched it in the meantime.
                match self.cached()? {
                    Some((credentials, _)) => Ok(credentials),
                    None => self.renew().await,
                }
            }
        }
    }

    async fn renew(&self) -> Result<Credentials, ChainError> {
        let result = self.caller.assume_role(&self.key).await;
        let now = self.clock.now();
        let mut state = self.state();
        match result {
            Ok(session) => {
                let credentials = of_session(&session);
                state.session = Some((credentials.clone(), session.validity));
                state.failed = None;
                Ok(credentials)
            }
            Err(failure) => {
                let role = self.key.role.name().to_owned();
                let error = ChainError { role, failure };
                state.failed = Some((now, error.clone()));
                Err(error)
            }
        }
    }
}

fn of_session(session: &session::Credentials) -> Credentials {
    Credentials::new(
        &*session.access_key_id,
        session.secret_access_key(),
        Some(session.session_token().to_owned()),
        Some(SystemTime::from(session.validity.not_after)),
        SESSION_NAME,
    )
}

impl<C> fmt::Debug for AssumedRole<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AssumedRole")
            .field("role", &self.key.role)
            .finish_non_exhaustive()
    }
}

impl<C: AssumeRole> ProvideCredentials for AssumedRole<C> {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let credentials: provider::Result = self
                .credentials()
                .await
                .map_err(CredentialsError::provider_error);
            credentials
        })
    }
}

#[cfg(test)]
mod tests;
