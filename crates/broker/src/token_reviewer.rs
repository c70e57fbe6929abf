//! Validates agents' service-account tokens through the TokenReview API.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rolegate_kube::token_review::{Reviewed, review};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::peer::PeerKey;
use rolegate_runtime::rate::{KeyedRate, Rate};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

/// Maximum concurrent token reviews. Anyone who can reach the port can make the broker call the API
/// server.
const MAX_REVIEWS: usize = 32;
/// Maximum concurrent token reviews of one address.
const MAX_REVIEWS_PER_ADDRESS: usize = 2;
/// Time that a token may wait for a permit: the time limit of one API request.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Rate of tokens from one address. An agent presents one for each stream that it opens, and again
/// every few minutes.
const TOKEN_RATE: Rate = Rate {
    burst: 8.0,
    per_second: 1.0,
};
/// The same rate where NAT may make agents share an address.
const SHARED_TOKEN_RATE: Rate = Rate {
    burst: 128.0,
    per_second: 16.0,
};

/// An error that prevents a token review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Other reviews did not finish in time, or the same address has shown too many tokens.
    #[error(
        "too many token reviews: for {} s, {MAX_REVIEWS} in total or {MAX_REVIEWS_PER_ADDRESS} for this address \
         have been in progress, or this address presents tokens too fast", QUEUE_TIMEOUT.as_secs()
    )]
    Busy,
    /// The API server does not respond, or forbids the request.
    #[error("{0}")]
    Api(String),
}

/// The client of the TokenReview API.
pub struct TokenReviewer {
    client: kube::Client,
    clock: Clock,
    places: Semaphore,
    /// Semaphores of the addresses with reviews in progress.
    own: Mutex<HashMap<PeerKey, Arc<Semaphore>>>,
    rates: KeyedRate<PeerKey>,
    /// `true` if the last request failed, so that a failure is logged once.
    failing: AtomicBool,
}

impl std::fmt::Debug for TokenReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl TokenReviewer {
    /// Creates a reviewer with this client, which needs `create` on `tokenreviews`.
    /// `check_address`: each agent has an address of its own.
    pub fn new(client: kube::Client, check_address: bool, clock: Clock) -> Self {
        Self {
            client,
            clock,
            places: Semaphore::new(MAX_REVIEWS),
            own: Mutex::default(),
            rates: KeyedRate::new(if check_address {
                TOKEN_RATE
            } else {
                SHARED_TOKEN_RATE
            }),
            failing: AtomicBool::new(false),
        }
    }

    /// Reviews `token`, presented from `peer`, for `audience`.
    ///
    /// # Errors
    /// Returns [`ReviewError`] if there is no result.
    pub async fn review(
        &self,
        peer: PeerKey,
        token: &str,
        audience: &str,
    ) -> Result<Reviewed, ReviewError> {
        let now = Duration::try_from(self.clock.now().as_duration()).unwrap_or_default();
        if !self.rates.take_at(&peer, now) {
            return Err(ReviewError::Busy);
        }
        let own = self.own(peer);
        // The semaphores are never closed.
        let places = async { (own.acquire().await, self.places.acquire().await) };
        let _places = timeout(QUEUE_TIMEOUT, places)
            .await
            .map_err(|_| ReviewError::Busy)?;
        let reviewed = review(self.client.clone(), token, audience).await;
        let failed = self.failing.swap(reviewed.is_err(), Ordering::Relaxed);
        match &reviewed {
            Err(why) if !failed => {
                warn!(reason = %why, "cannot review agents' tokens");
            }
            Ok(_) if failed => info!("reviewing agents' tokens works again"),
            _ => {}
        }
        reviewed.map_err(ReviewError::Api)
    }

    fn own(&self, peer: PeerKey) -> Arc<Semaphore> {
        let mut own = self.own.lock();
        own.retain(|_, places| Arc::strong_count(places) > 1);
        let places = own.entry(peer);
        places
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_REVIEWS_PER_ADDRESS)))
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::AtomicUsize;

    use futures::future::join_all;
    use tokio::time::Instant;
    use tower::{BoxError, service_fn};

    use super::*;

    fn clock() -> Clock {
        Clock::tokio(jiff::Timestamp::UNIX_EPOCH)
    }

    /// Returns a reviewer whose API server never responds.
    fn token_reviewer() -> TokenReviewer {
        let service = service_fn(async |_: http::Request<kube::client::Body>| {
            pending::<Result<http::Response<kube::client::Body>, BoxError>>().await
        });
        TokenReviewer::new(kube::Client::new(service, "default"), true, clock())
    }

    fn busy(reviewed: &Result<Reviewed, ReviewError>) -> bool {
        matches!(reviewed, Err(ReviewError::Busy))
    }

    fn asked(reviewed: &Result<Reviewed, ReviewError>) -> bool {
        matches!(reviewed, Err(ReviewError::Api(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_does_not_wait_for_ever_for_its_turn() {
        let token_reviewer = token_reviewer();
        let start = Instant::now();
        let peer = |n: usize| PeerKey::of([10, 0, 0, u8::try_from(n % 256).unwrap()].into());
        let all = join_all(
            (0..5 * MAX_REVIEWS).map(|n| token_reviewer.review(peer(n), "token", "rolegate")),
        )
        .await;
        let count = |wanted: fn(&Result<Reviewed, ReviewError>) -> bool| {
            all.iter().filter(|it| wanted(it)).count()
        };
        assert!(count(busy) >= 3 * MAX_REVIEWS, "{}", count(busy));
        assert_eq!(count(busy) + count(asked), all.len());
        assert!(start.elapsed() <= QUEUE_TIMEOUT * 2 + Duration::from_secs(1));
        // Later requests get their turn.
        assert!(asked(
            &token_reviewer.review(peer(0), "token", "rolegate").await
        ));
        assert_eq!(token_reviewer.own.lock().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_tokens_of_one_address_leave_room_for_others() {
        let token_reviewer = token_reviewer();
        let thief = PeerKey::of([192, 0, 2, 66].into());
        let flood = join_all(
            (0..10 * MAX_REVIEWS).map(|_| token_reviewer.review(thief, "made up", "rolegate")),
        );
        let agent = token_reviewer.review(PeerKey::of([192, 0, 2, 1].into()), "token", "rolegate");
        let (flood, agent) = tokio::join!(flood, agent);
        assert!(asked(&agent), "{agent:?}");
        assert!(flood.iter().filter(|it| asked(it)).count() <= 2 * MAX_REVIEWS_PER_ADDRESS);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_08_an_address_has_so_many_tokens_looked_at_in_a_time() {
        let asked_of = Arc::new(AtomicUsize::new(0));
        let count = asked_of.clone();
        let service = service_fn(move |_: http::Request<kube::client::Body>| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Err::<http::Response<kube::client::Body>, BoxError>("no answer".into()) }
        });
        let token_reviewer =
            TokenReviewer::new(kube::Client::new(service, "default"), true, clock());
        let thief = PeerKey::of([192, 0, 2, 66].into());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            let _ = token_reviewer.review(thief, "made up", "rolegate").await;
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        // The burst, and one per second.
        assert!(asked_of.load(Ordering::Relaxed) <= 68 + 1);
        let other = PeerKey::of([192, 0, 2, 1].into());
        assert!(asked(
            &token_reviewer.review(other, "token", "rolegate").await
        ));
    }
}
