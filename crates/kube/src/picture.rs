//! How old our picture of the cluster is: the time since the API server last said anything on a
//! watch. On a busy cluster it sends a bookmark each minute, on a quiet one it may say nothing until
//! the watch ends; the watch client keeps both to itself, so it is the bytes that are noticed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::MapFrame;
use kube::Client;
use kube::client::Body;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tower::service_fn;

use crate::pages::{self, PageSize};

/// Watches of one resource start no closer together than this, however quickly a server or a proxy
/// ends them.
const START_SPACING: Duration = Duration::from_millis(200);

/// When a watch was last heard. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct PictureAge(Arc<Heard>);

#[derive(Debug)]
struct Heard {
    origin: Instant,
    /// Milliseconds from `origin` until the last byte, plus one; zero before the first.
    last: AtomicU64,
    /// The same for the last start of a watch.
    started: AtomicU64,
    now: Notify,
}

impl Default for PictureAge {
    fn default() -> Self {
        Self(Arc::new(Heard {
            origin: Instant::now(),
            last: AtomicU64::new(0),
            started: AtomicU64::new(0),
            now: Notify::new(),
        }))
    }
}

impl PictureAge {
    /// How long ago the watch was last heard; `None` before the first time.
    pub fn age(&self) -> Option<Duration> {
        self.since(&self.0.last)
    }

    /// Returns once something was heard after this call.
    pub(crate) fn heard(&self) -> Notified<'_> {
        self.0.now.notified()
    }

    /// Something was heard.
    pub(crate) fn touch(&self) {
        self.mark(&self.0.last);
        self.0.now.notify_waiters();
    }

    fn mark(&self, when: &AtomicU64) {
        let elapsed = u64::try_from(self.0.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        when.store(elapsed + 1, Relaxed);
    }

    fn since(&self, when: &AtomicU64) -> Option<Duration> {
        let then = Duration::from_millis(when.load(Relaxed).checked_sub(1)?);
        Some(self.0.origin.elapsed().saturating_sub(then))
    }

    async fn wait_for_start(&self) {
        if let Some(since) = self.since(&self.0.started) {
            tokio::time::sleep(START_SPACING.saturating_sub(since)).await;
        }
        self.mark(&self.0.started);
    }
}

/// A resource, and the picture of one watch of it while it lasts.
type Other = (&'static str, Weak<Heard>);

/// The pictures of all watches of a connection. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// Of the pods.
    pub pods: PictureAge,
    /// Of the namespaces.
    pub namespaces: PictureAge,
    /// Of rules: they are here as long as they are watched.
    others: Arc<Mutex<Vec<Other>>>,
}

impl Pictures {
    /// The age of the oldest picture; `None` while pods or namespaces are missing. Others count from
    /// when they were first heard, since whether they must be there isn't known here.
    pub fn age(&self) -> Option<Duration> {
        let both = self.pods.age()?.max(self.namespaces.age()?);
        let others = self.others();
        let ages = others.iter().filter_map(|(_, picture)| picture.age());
        Some(ages.fold(both, Duration::max))
    }

    /// The age of the oldest picture of each resource.
    pub(crate) fn by_resource(&self) -> BTreeMap<&'static str, Duration> {
        let mut ages = BTreeMap::new();
        let mut take = |resource, picture: &PictureAge| {
            if let Some(age) = picture.age() {
                let oldest: &mut Duration = ages.entry(resource).or_default();
                *oldest = age.max(*oldest);
            }
        };
        take("pods", &self.pods);
        take("namespaces", &self.namespaces);
        for (resource, picture) in &self.others() {
            take(resource, picture);
        }
        ages
    }

    /// The picture of one more watch, which counts until the last clone is dropped.
    pub(crate) fn another(&self, resource: &'static str) -> PictureAge {
        let picture = PictureAge::default();
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.retain(|(_, heard)| heard.strong_count() > 0);
        others.push((resource, Arc::downgrade(&picture.0)));
        picture
    }

    fn others(&self) -> Vec<(&'static str, PictureAge)> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = others
            .iter()
            .filter_map(|(resource, heard)| Some((*resource, PictureAge(heard.upgrade()?))));
        alive.collect()
    }
}

/// What sees each frame of a body pass.
type Notice = Box<dyn FnMut(Frame<Bytes>) -> Frame<Bytes> + Send>;

/// A client that notices in `picture` what arrives on its watches. Its lists come in pages of bounded
/// size.
pub(crate) fn noticing(client: Client, picture: PictureAge) -> Client {
    let size = Arc::new(PageSize::default());
    let service = service_fn(move |request: Request<Body>| {
        let (client, picture, size) = (client.clone(), picture.clone(), size.clone());
        async move {
            if is_watch(&request) {
                watch(&client, picture, request).await
            } else {
                let response = pages::send(&client, &size, request).await?;
                Ok(response.map(|body| body.map_frame(Box::new(|frame| frame) as Notice)))
            }
        }
    });
    // The namespace is that of requests which name none; ours do.
    Client::new(service, "default")
}

async fn watch(
    client: &Client,
    picture: PictureAge,
    request: Request<Body>,
) -> Result<Response<MapFrame<Body, Notice>>, kube::Error> {
    picture.wait_for_start().await;
    let response = client.send(request).await?;
    // An API server that answers with an error says nothing of the cluster, however often.
    let is_watch = response.status().is_success();
    if is_watch {
        picture.touch();
    }
    Ok(response.map(|body| {
        body.map_frame(Box::new(move |frame| {
            if is_watch {
                picture.touch();
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
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_the_last_byte_and_the_older_picture() {
        let pictures = Pictures::default();
        assert_eq!(pictures.age(), None);
        pictures.pods.touch();
        assert_eq!(pictures.age(), None, "namespaces were never heard");
        tokio::time::advance(Duration::from_secs(3)).await;
        pictures.namespaces.touch();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(pictures.age(), Some(Duration::from_secs(5)));
        pictures.pods.touch();
        assert_eq!(pictures.age(), Some(Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn watches_start_apart() {
        let picture = PictureAge::default();
        let begin = Instant::now();
        for _ in 0..4 {
            picture.wait_for_start().await;
        }
        assert!(
            begin.elapsed() >= 3 * START_SPACING,
            "{:?}",
            begin.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn rules_count_while_they_are_watched() {
        let pictures = Pictures::default();
        pictures.pods.touch();
        pictures.namespaces.touch();
        let (heard, unheard) = (pictures.another("rolegrants"), pictures.another("x"));
        heard.touch();
        tokio::time::advance(Duration::from_secs(7)).await;
        pictures.pods.touch();
        pictures.namespaces.touch();
        assert_eq!(pictures.age(), Some(Duration::from_secs(7)));
        let grants = [("rolegrants", Duration::from_secs(7))];
        let zero = [("namespaces", Duration::ZERO), ("pods", Duration::ZERO)];
        let all: BTreeMap<_, _> = zero.into_iter().chain(grants).collect();
        assert_eq!(
            pictures.by_resource(),
            all,
            "what was never heard has no age"
        );
        drop((heard, unheard));
        assert_eq!(pictures.age(), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn an_error_is_no_news_of_the_cluster() {
        for (status, counts) in [(200, true), (403, false), (503, false)] {
            let answers = service_fn(move |_: Request<Body>| async move {
                let body = Body::from(b"{}".to_vec());
                let response = Response::builder().status(status).body(body);
                response.map_err(|error| -> tower::BoxError { error.into() })
            });
            let picture = PictureAge::default();
            let client = noticing(Client::new(answers, "default"), picture.clone());
            let watch = Request::get("/api/v1/pods?watch=true").body(Body::empty());
            let response = client.send(watch.unwrap()).await.unwrap();
            response.into_body().collect().await.unwrap();
            assert_eq!(picture.age().is_some(), counts, "{status}");
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
