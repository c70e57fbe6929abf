//! How old our picture of the cluster is: the time since the API server last said anything on a
//! watch. On a busy cluster it sends a bookmark each minute, on a quiet one it may say nothing until
//! the watch ends; the watch client keeps both to itself, so it is the bytes that are noticed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::MapFrame;
use kube::client::{Body, DynBody};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

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

/// The pictures of both watches.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// Of the pods.
    pub pods: PictureAge,
    /// Of the namespaces.
    pub namespaces: PictureAge,
}

impl Pictures {
    /// The age of the older picture; `None` while one is missing.
    pub fn age(&self) -> Option<Duration> {
        Some(self.pods.age()?.max(self.namespaces.age()?))
    }

    fn of<B>(&self, request: &Request<B>) -> Option<PictureAge> {
        let query = request.uri().query()?;
        if !query.split('&').any(|pair| pair == "watch=true") {
            return None;
        }
        match request.uri().path().rsplit('/').next()? {
            "pods" => Some(self.pods.clone()),
            "namespaces" => Some(self.namespaces.clone()),
            _ => None,
        }
    }
}

/// Notices what arrives on watches.
#[derive(Debug, Clone)]
pub(crate) struct PictureLayer(pub(crate) Pictures);

impl<S> Layer<S> for PictureLayer {
    type Service = PictureService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PictureService {
            inner,
            pictures: self.0.clone(),
        }
    }
}

pub(crate) struct PictureService<S> {
    inner: S,
    pictures: Pictures,
}

impl<S> fmt::Debug for PictureService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PictureService").finish_non_exhaustive()
    }
}

/// What sees each frame of a body pass.
type Notice = Box<dyn FnMut(BodyFrame) -> BodyFrame + Send>;
type BodyFrame = http_body::Frame<bytes::Bytes>;

impl<S> Service<Request<Body>> for PictureService<S>
where
    S: Service<Request<Body>, Response = Response<Box<DynBody>>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<MapFrame<Box<DynBody>, Notice>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let picture = self.pictures.of(&request);
        // A request is sent when its future is first polled, so it can wait for its turn.
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(picture) = picture else {
                return Ok(answer
                    .await?
                    .map(|body| body.map_frame(Box::new(|frame| frame) as Notice)));
            };
            picture.wait_for_start().await;
            let response = answer.await?;
            if response.status().is_success() {
                picture.touch();
            }
            Ok(response.map(|body| {
                body.map_frame(Box::new(move |frame| {
                    picture.touch();
                    frame
                }) as Notice)
            }))
        })
    }
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

    #[test]
    fn only_watches_of_these_two_count() {
        let pictures = Pictures::default();
        let known = |uri: &str| pictures.of(&Request::get(uri).body(()).unwrap()).is_some();
        assert!(known(
            "/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Da"
        ));
        assert!(known("/api/v1/namespaces?limit=5&watch=true"));
        assert!(!known("/api/v1/pods?limit=500"));
        assert!(!known("/api/v1/nodes?watch=true"));
        assert!(!known("/api/v1/pods"));
    }
}
