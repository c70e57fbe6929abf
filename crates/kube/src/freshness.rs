//! The staleness of watches: the time since the API server last sent anything on a watch. On a busy
//! cluster it sends a bookmark every minute, on a quiet one possibly nothing until the watch ends.
//! The watch client exposes neither, so received bytes are observed.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::MapFrame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use rolegate_runtime::staleness::Staleness;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tower::service_fn;

use crate::pages::{self, PageSize};

/// Minimum time between two starts of watches of one resource, however quickly a server or a proxy
/// ends them.
const START_SPACING: Duration = Duration::from_millis(200);

/// The time of the last update on a watch. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct Freshness(Arc<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// The last byte.
    last: Staleness,
    /// The last start of a watch.
    started: Staleness,
    now: Notify,
}

impl Freshness {
    /// Returns the time since the last update. `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.0.last.age()
    }

    /// Waits for the next update.
    pub(crate) fn heard(&self) -> Notified<'_> {
        self.0.now.notified()
    }

    /// Records an update.
    pub(crate) fn touch(&self) {
        self.0.last.update(Duration::ZERO);
        self.0.now.notify_waiters();
    }

    async fn wait_for_start(&self) {
        if let Some(since) = self.0.started.age() {
            tokio::time::sleep(START_SPACING.saturating_sub(since)).await;
        }
        self.0.started.update(Duration::ZERO);
    }
}

/// A resource and the freshness of one watch of it.
type Other = (&'static str, Weak<Heard>);

/// The freshness of all watches of a connection. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct FreshnessSet {
    /// The watch of pods.
    pub pods: Freshness,
    /// The watch of namespaces.
    pub namespaces: Freshness,
    /// The watches of rules, while they exist.
    others: Arc<Mutex<Vec<Other>>>,
}

impl FreshnessSet {
    /// Returns the age of the stalest watch. `None` while pods or namespaces are not loaded. Other
    /// watches count from their first update, since it is not known here whether they are required.
    pub fn age(&self) -> Option<Duration> {
        let both = self.pods.age()?.max(self.namespaces.age()?);
        let others = self.others();
        let ages = others.iter().filter_map(|(_, freshness)| freshness.age());
        Some(ages.fold(both, Duration::max))
    }

    /// Returns the age of the stalest watch of each resource.
    pub(crate) fn by_resource(&self) -> BTreeMap<&'static str, Duration> {
        let mut ages = BTreeMap::new();
        let mut take = |resource, freshness: &Freshness| {
            if let Some(age) = freshness.age() {
                let oldest: &mut Duration = ages.entry(resource).or_default();
                *oldest = age.max(*oldest);
            }
        };
        take("pods", &self.pods);
        take("namespaces", &self.namespaces);
        for (resource, freshness) in &self.others() {
            take(resource, freshness);
        }
        ages
    }

    /// Adds a watch, which counts until the last clone is dropped.
    pub(crate) fn another(&self, resource: &'static str) -> Freshness {
        let freshness = Freshness::default();
        let mut others = self.others.lock();
        others.retain(|(_, heard)| heard.strong_count() > 0);
        others.push((resource, Arc::downgrade(&freshness.0)));
        freshness
    }

    fn others(&self) -> Vec<(&'static str, Freshness)> {
        let others = self.others.lock();
        let alive = others
            .iter()
            .filter_map(|(resource, heard)| Some((*resource, Freshness(heard.upgrade()?))));
        alive.collect()
    }
}

/// A callback for each frame of a body.
type Notice = Box<dyn FnMut(Frame<Bytes>) -> Frame<Bytes> + Send>;

/// Returns a client that updates `freshness` when data arrives on its watches. Its lists are split
/// into pages of bounded size.
pub(crate) fn track_freshness(client: Client, freshness: Freshness) -> Client {
    let size = Arc::new(PageSize::default());
    let service = service_fn(move |request: Request<Body>| {
        let (client, freshness, size) = (client.clone(), freshness.clone(), size.clone());
        async move {
            if is_watch(&request) {
                watch(&client, freshness, request).await
            } else {
                let response = pages::send(&client, &size, request).await?;
                Ok(response.map(|body| body.map_frame(Box::new(|frame| frame) as Notice)))
            }
        }
    });
    // The default namespace is not used: all requests name theirs.
    Client::new(service, "default")
}

async fn watch(
    client: &Client,
    freshness: Freshness,
    request: Request<Body>,
) -> Result<Response<MapFrame<Body, Notice>>, kube::Error> {
    freshness.wait_for_start().await;
    let response = client.send(request).await?;
    // Error responses carry no information about the cluster.
    let is_watch = response.status().is_success();
    if is_watch {
        freshness.touch();
    }
    Ok(response.map(|body| {
        body.map_frame(Box::new(move |frame| {
            if is_watch {
                freshness.touch();
            }
            frame
        }) as Notice)
    }))
}

fn is_watch<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| pair == "watch=true")
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn age_is_since_the_last_byte_of_the_stalest_watch() {
        let freshness = FreshnessSet::default();
        assert_eq!(freshness.age(), None);
        freshness.pods.touch();
        assert_eq!(freshness.age(), None, "namespaces were never heard");
        tokio::time::advance(Duration::from_secs(3)).await;
        freshness.namespaces.touch();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(freshness.age(), Some(Duration::from_secs(5)));
        freshness.pods.touch();
        assert_eq!(freshness.age(), Some(Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn watches_start_apart() {
        let freshness = Freshness::default();
        let begin = Instant::now();
        for _ in 0..4 {
            freshness.wait_for_start().await;
        }
        assert!(
            begin.elapsed() >= 3 * START_SPACING,
            "{:?}",
            begin.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn rules_count_while_they_are_watched() {
        let freshness = FreshnessSet::default();
        freshness.pods.touch();
        freshness.namespaces.touch();
        let (heard, unheard) = (freshness.another("rolegrants"), freshness.another("x"));
        heard.touch();
        tokio::time::advance(Duration::from_secs(7)).await;
        freshness.pods.touch();
        freshness.namespaces.touch();
        assert_eq!(freshness.age(), Some(Duration::from_secs(7)));
        let grants = [("rolegrants", Duration::from_secs(7))];
        let zero = [("namespaces", Duration::ZERO), ("pods", Duration::ZERO)];
        let all: BTreeMap<_, _> = zero.into_iter().chain(grants).collect();
        assert_eq!(
            freshness.by_resource(),
            all,
            "what was never heard has no age"
        );
        drop((heard, unheard));
        assert_eq!(freshness.age(), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn error_responses_do_not_refresh_watches() {
        for (status, counts) in [(200, true), (403, false), (503, false)] {
            let answers = service_fn(move |_: Request<Body>| async move {
                let body = Body::from(b"{}".to_vec());
                let response = Response::builder().status(status).body(body);
                response.map_err(|error| -> tower::BoxError { error.into() })
            });
            let freshness = Freshness::default();
            let client = track_freshness(Client::new(answers, "default"), freshness.clone());
            let watch = Request::get("/api/v1/pods?watch=true").body(Body::empty());
            let response = client.send(watch.unwrap()).await.unwrap();
            response.into_body().collect().await.unwrap();
            assert_eq!(freshness.age().is_some(), counts, "{status}");
        }
    }

    #[test]
    fn only_watches_count() {
        let known = |uri: &str| is_watch(&Request::get(uri).body(()).unwrap());
        assert!(known(
            "/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Da"
        ));
        assert!(known("/api/v1/namespaces?limit=5&watch=true"));
        assert!(!known("/api/v1/pods?limit=500"));
        assert!(!known("/api/v1/pods"));
    }
}
