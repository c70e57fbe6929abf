//! Our token for the node's metadata service, shared by all requests and renewed early.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderValue, Method, StatusCode};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::{ImdsError, Inner, TOKEN_TTL, text};

const TTL: Duration = Duration::from_secs(21_600);
const MAX_TOKEN: usize = 1024;
/// Time for which IMDSv1 is used before tokens are tried again.
const IMDS_V1_TTL: Duration = Duration::from_secs(300);
/// Time after a failed renewal before the next one.
const RENEWAL_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The authentication of a request: a token, or nothing if the service has none.
pub(super) struct Access {
    token: Option<HeaderValue>,
    renew_at: Instant,
    ends: Instant,
}

impl Access {
    fn new(token: Option<HeaderValue>, lifetime: Duration) -> Self {
        let now = Instant::now();
        Self {
            token,
            renew_at: now + lifetime * 4 / 5,
            ends: now + lifetime,
        }
    }

    pub(super) fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// The current token, and the lock for fetching it.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    current: ArcSwapOption<Access>,
    /// Held while a token is fetched. Keeps the last error for requests that waited for it.
    fetching: Mutex<Option<(Instant, ImdsError)>>,
}

impl Tokens {
    /// Returns the token, unless it is due for renewal.
    pub(super) fn fresh(&self) -> Option<Arc<Access>> {
        self.current
            .load_full()
            .filter(|current| Instant::now() < current.renew_at)
    }

    /// Returns a valid token. When it is due for renewal, one request renews it, and the others use
    /// the old one.
    pub(super) async fn get(&self, service: &Inner) -> Result<Arc<Access>, ImdsError> {
        let now = Instant::now();
        match self.current.load_full() {
            Some(current) if now < current.renew_at => Ok(current),
            Some(current) if now < current.ends => {
                let Ok(fetching) = self.fetching.try_lock() else {
                    return Ok(current);
                };
                self.fetch(service, fetching, now, Some(&current))
                    .await
                    .or_else(|_| {
                        let later = Arc::new(Access {
                            token: current.token.clone(),
                            renew_at: current.ends.min(now + RENEWAL_RETRY_INTERVAL),
                            ends: current.ends,
                        });
                        self.current.store(Some(later.clone()));
                        Ok(later)
                    })
            }
            old => {
                let fetching = self.fetching.lock().await;
                self.fetch(service, fetching, now, old.as_ref()).await
            }
        }
    }

    /// Returns a token other than `refused`.
    pub(super) async fn replace(
        &self,
        service: &Inner,
        refused: &Arc<Access>,
    ) -> Result<Arc<Access>, ImdsError> {
        let now = Instant::now();
        let fetching = self.fetching.lock().await;
        self.fetch(service, fetching, now, Some(refused)).await
    }

    /// Fetches a token unless another request did, or failed to, since `asked`.
    async fn fetch(
        &self,
        service: &Inner,
        mut last_failure: MutexGuard<'_, Option<(Instant, ImdsError)>>,
        asked: Instant,
        old: Option<&Arc<Access>>,
    ) -> Result<Arc<Access>, ImdsError> {
        if let Some(current) = self.current.load_full()
            && !old.is_some_and(|old| Arc::ptr_eq(old, &current))
        {
            return Ok(current);
        }
        if let Some((failed, error)) = &*last_failure
            && *failed >= asked
        {
            return Err(error.clone());
        }
        match service.fetch_token().await {
            Ok(access) => {
                let access = Arc::new(access);
                self.current.store(Some(access.clone()));
                *last_failure = None;
                Ok(access)
            }
            Err(error) => {
                *last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

impl Inner {
    async fn fetch_token(&self) -> Result<Access, ImdsError> {
        let mut request = self.prepare(Method::PUT, "/latest/api/token")?;
        request
            .headers_mut()
            .insert(TOKEN_TTL, TTL.as_secs().into());
        let answer = self.exchange(request).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                return Ok(Access::new(None, IMDS_V1_TTL));
            }
            status => return Err(ImdsError::Status(status)),
        }
        let lifetime = answer
            .headers()
            .get(TOKEN_TTL)
            .and_then(|ttl| ttl.to_str().ok()?.parse().ok())
            .map_or(TTL, Duration::from_secs)
            .min(TTL);
        let text = text(answer.into_body(), MAX_TOKEN).await?;
        let mut token =
            HeaderValue::from_str(text.trim()).map_err(|_| ImdsError::Malformed("a token"))?;
        token.set_sensitive(true);
        Ok(Access::new(Some(token), lifetime))
    }
}

#[cfg(test)]
mod tests {
    use rolegate_devkit as devkit;

    use super::super::Imds;
    use super::*;

    /// Returns a client whose token is due for renewal.
    async fn with_old_token(service: &devkit::Imds) -> Imds {
        let imds = Imds::new(&service.url()).unwrap();
        let fresh = imds.inner.tokens.get(&imds.inner).await.unwrap();
        let now = Instant::now();
        imds.inner.tokens.current.store(Some(Arc::new(Access {
            token: fresh.token.clone(),
            renew_at: now,
            ends: now + TTL / 5,
        })));
        imds
    }

    fn fetched(service: &devkit::Imds) -> usize {
        let requests = service.requests();
        requests
            .iter()
            .filter(|request| request.method == Method::PUT)
            .count()
    }

    async fn service() -> devkit::Imds {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        devkit::Imds::start(any, devkit::ImdsOptions::default())
            .await
            .unwrap()
    }

    #[test]
    fn tokens_are_renewed_at_four_fifths_of_their_life() {
        let access = Access::new(None, TTL);
        assert_eq!(access.ends - access.renew_at, TTL / 5);
    }

    #[tokio::test]
    async fn an_old_token_is_renewed_by_one_while_the_others_use_it() {
        let service = service().await;
        let imds = with_old_token(&service).await;
        let old = imds.inner.tokens.current.load_full().unwrap();
        let (one, other) = tokio::join!(
            imds.inner.tokens.get(&imds.inner),
            imds.inner.tokens.get(&imds.inner)
        );
        assert!(!Arc::ptr_eq(&one.unwrap(), &old) && Arc::ptr_eq(&other.unwrap(), &old));
        assert_eq!(fetched(&service), 2);
    }

    #[tokio::test]
    async fn a_renewal_that_fails_leaves_the_old_token_and_waits() {
        let service = service().await;
        let imds = with_old_token(&service).await;
        let old = imds.inner.tokens.current.load_full().unwrap();
        service.fail_with(Some(503));
        for _ in 0..2 {
            let access = imds.inner.tokens.get(&imds.inner).await.unwrap();
            assert_eq!((&access.token, access.ends), (&old.token, old.ends));
        }
        assert_eq!(fetched(&service), 2);
    }

    #[tokio::test]
    async fn a_token_is_never_formatted() {
        let service = service().await;
        let imds = Imds::new(&service.url()).unwrap();
        let access = imds.inner.tokens.get(&imds.inner).await.unwrap();
        assert_eq!(format!("{:?}", access.token().unwrap()), "Sensitive");
        assert!(!format!("{access:?}").contains("token"));
    }

    #[tokio::test]
    async fn a_token_that_has_ended_is_not_used() {
        let service = service().await;
        let imds = with_old_token(&service).await;
        imds.inner
            .tokens
            .current
            .store(Some(Arc::new(Access::new(None, Duration::ZERO))));
        assert!(
            imds.inner
                .tokens
                .get(&imds.inner)
                .await
                .unwrap()
                .token
                .is_some()
        );
        imds.inner
            .tokens
            .current
            .store(Some(Arc::new(Access::new(None, Duration::ZERO))));
        service.fail_with(Some(503));
        let failure = imds.inner.tokens.get(&imds.inner).await.unwrap_err();
        assert_eq!(failure, ImdsError::Status(StatusCode::SERVICE_UNAVAILABLE));
    }
}
