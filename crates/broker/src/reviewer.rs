//! Whoever says whose tokens are: the API server.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rolegate_kube::token_review::{Reviewed, review};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::peer::PeerKey;
use rolegate_runtime::rate::{KeyedRate, Rate};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

/// Tokens that are looked at at once: whoever can reach the port can make the broker ask the API
/// server.
const PLACES: usize = 32;
/// Those that one address has shown.
const PER_ADDRESS: usize = 2;
/// How long a token may wait for that: as long as the API server may take for the one before.
const ROOM: Duration = Duration::from_secs(5);
/// Tokens of one address in a time: an agent shows one for each stream that it opens, and again each
/// few minutes.
const RATE: Rate = Rate {
    burst: 8.0,
    per_second: 1.0,
};
/// The same where agents may share an address, since something between rewrites addresses.
const SHARED_RATE: Rate = Rate {
    burst: 128.0,
    per_second: 16.0,
};

/// Why nobody says whose a token is.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Other reviews did not finish in time, or the same address has shown too many tokens.
    #[error(
        "{PLACES} others are looked at, or {PER_ADDRESS} of the same address, and none was done \
         within {} s; or the address has shown too many in a short time", ROOM.as_secs()
    )]
    Busy,
    /// The API server doesn't answer, or may not be asked.
    #[error("{0}")]
    Api(String),
}

/// Asks the API server.
pub struct Reviewer {
    client: kube::Client,
    clock: Clock,
    places: Semaphore,
    /// The places of addresses that have any taken.
    own: Mutex<HashMap<PeerKey, Arc<Semaphore>>>,
    rates: KeyedRate<PeerKey>,
    /// Whether the API server didn't answer the last time, so that it is said once.
    failing: AtomicBool,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    /// Asks by this client, which needs `create` on `tokenreviews`. `check_address`: each agent comes
    /// from an address of its own.
    pub fn new(client: kube::Client, check_address: bool, clock: Clock) -> Self {
        Self {
            client,
            clock,
            places: Semaphore::new(PLACES),
            own: Mutex::default(),
            rates: KeyedRate::new(if check_address { RATE } else { SHARED_RATE }),
            failing: AtomicBool::new(false),
        }
    }

    /// Asks whose `token` is, which was shown from `peer`, for `audience`.
    ///
    /// # Errors
    /// [`ReviewError`], where there is no answer.
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
        // No semaphore is ever closed.
        let places = async { (own.acquire().await, self.places.acquire().await) };
        let _places = timeout(ROOM, places).await.map_err(|_| ReviewError::Busy)?;
        let reviewed = review(self.client.clone(), token, audience).await;
        let failed = self.failing.swap(reviewed.is_err(), Ordering::Relaxed);
        match &reviewed {
            Err(why) if !failed => {
                warn!(reason = %why, "cannot review agents' tokens");
            }
            Ok(_) if failed => info!("agents' tokens are reviewed again"),
            _ => {}
        }
        reviewed.map_err(ReviewError::Api)
    }

    fn own(&self, peer: PeerKey) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|_, places| Arc::strong_count(places) > 1);
        let places = own.entry(peer);
        places
            .or_insert_with(|| Arc::new(Semaphore::new(PER_ADDRESS)))
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

    /// One whose API server never answers.
    fn reviewer() -> Reviewer {
        let service = service_fn(async |_: http::Request<kube::client::Body>| {
            pending::<Result<http::Response<kube::client::Body>, BoxError>>().await
        });
        Reviewer::new(kube::Client::new(service, "default"), true, clock())
    }

    fn busy(reviewed: &Result<Reviewed, ReviewError>) -> bool {
        matches!(reviewed, Err(ReviewError::Busy))
    }

    fn asked(reviewed: &Result<Reviewed, ReviewError>) -> bool {
        matches!(reviewed, Err(ReviewError::Api(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_does_not_wait_for_ever_for_its_turn() {
        let reviewer = reviewer();
        let start = Instant::now();
        let peer = |n: usize| PeerKey::of([10, 0, 0, u8::try_from(n % 256).unwrap()].into());
        let all =
            join_all((0..5 * PLACES).map(|n| reviewer.review(peer(n), "token", "rolegate"))).await;
        let count = |wanted: fn(&Result<Reviewed, ReviewError>) -> bool| {
            all.iter().filter(|it| wanted(it)).count()
        };
        assert!(count(busy) >= 3 * PLACES, "{}", count(busy));
        assert_eq!(count(busy) + count(asked), all.len());
        assert!(start.elapsed() <= ROOM * 2 + Duration::from_secs(1));
        // Whoever comes later has its turn again.
        assert!(asked(&reviewer.review(peer(0), "token", "rolegate").await));
        assert_eq!(reviewer.own.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_tokens_of_one_address_leave_room_for_others() {
        let reviewer = reviewer();
        let thief = PeerKey::of([192, 0, 2, 66].into());
        let flood =
            join_all((0..10 * PLACES).map(|_| reviewer.review(thief, "made up", "rolegate")));
        let agent = reviewer.review(PeerKey::of([192, 0, 2, 1].into()), "token", "rolegate");
        let (flood, agent) = tokio::join!(flood, agent);
        assert!(asked(&agent), "{agent:?}");
        assert!(flood.iter().filter(|it| asked(it)).count() <= 2 * PER_ADDRESS);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_08_an_address_has_so_many_tokens_looked_at_in_a_time() {
        let asked_of = Arc::new(AtomicUsize::new(0));
        let count = asked_of.clone();
        let service = service_fn(move |_: http::Request<kube::client::Body>| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Err::<http::Response<kube::client::Body>, BoxError>("no answer".into()) }
        });
        let reviewer = Reviewer::new(kube::Client::new(service, "default"), true, clock());
        let thief = PeerKey::of([192, 0, 2, 66].into());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            let _ = reviewer.review(thief, "made up", "rolegate").await;
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        // The burst, and one a second.
        assert!(asked_of.load(Ordering::Relaxed) <= 68 + 1);
        let other = PeerKey::of([192, 0, 2, 1].into());
        assert!(asked(&reviewer.review(other, "token", "rolegate").await));
    }
}
