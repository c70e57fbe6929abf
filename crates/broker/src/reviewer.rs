//! Whoever says whose tokens are: the API server.

use std::time::Duration;

use rolegate_kube::token_review::{Reviewed, review};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Tokens that are looked at at once: whoever can reach the port can make the broker ask the API
/// server.
const PLACES: usize = 32;
/// How long a token may wait for that: as long as the API server may take for the one before.
const ROOM: Duration = Duration::from_secs(5);

/// Why nobody says whose a token is.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Others are looked at, and none was done in time.
    #[error("{PLACES} others are looked at, and none was done within {} s", ROOM.as_secs())]
    Busy,
    /// The API server doesn't answer, or may not be asked.
    #[error("{0}")]
    Api(String),
}

/// Asks the API server.
pub struct Reviewer {
    client: kube::Client,
    places: Semaphore,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    /// Asks by this client, which needs `create` on `tokenreviews`.
    pub fn new(client: kube::Client) -> Self {
        let places = Semaphore::new(PLACES);
        Self { client, places }
    }

    /// Asks whose `token` is, for `audience`.
    ///
    /// # Errors
    /// [`ReviewError`], where there is no answer.
    pub async fn review(&self, token: &str, audience: &str) -> Result<Reviewed, ReviewError> {
        let place = timeout(ROOM, self.places.acquire()).await;
        // The semaphore is never closed.
        let _place = place.map_err(|_| ReviewError::Busy)?;
        let reviewed = review(self.client.clone(), token, audience).await;
        reviewed.map_err(ReviewError::Api)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::future::join_all;
    use tokio::time::Instant;
    use tower::{BoxError, service_fn};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_does_not_wait_for_ever_for_its_turn() {
        // An API server that never answers.
        let service = service_fn(async |_: http::Request<kube::client::Body>| {
            pending::<Result<http::Response<kube::client::Body>, BoxError>>().await
        });
        let reviewer = Reviewer::new(kube::Client::new(service, "default"));
        let start = Instant::now();
        let all = join_all((0..10 * PLACES).map(|_| reviewer.review("token", "rolegate"))).await;
        let count = |wanted: fn(&ReviewError) -> bool| {
            let errors = all.iter().map(|it| it.as_ref().unwrap_err());
            errors.filter(|error| wanted(error)).count()
        };
        let busy = count(|error| matches!(error, ReviewError::Busy));
        assert!(busy >= 8 * PLACES, "{busy}");
        assert_eq!(
            busy + count(|it| matches!(it, ReviewError::Api(_))),
            all.len()
        );
        assert!(start.elapsed() <= ROOM * 2 + Duration::from_secs(1));
        // Whoever comes later has its turn again.
        let later = reviewer.review("token", "rolegate").await;
        assert!(matches!(later, Err(ReviewError::Api(_))), "{later:?}");
    }
}
