//! Lists in pages of bounded size. The API server limits a page by its number of objects, each of
//! which may have 1 MiB, and a page is held in memory while it is parsed. A page that is too large
//! is requested again with fewer objects.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;

/// Maximum size of a page, in bytes, unless it has one object. Parsing needs several times as much
/// for a moment.
const MAX_PAGE_BYTES: usize = 512 * 1024;
/// The factor by which a page is reduced after one that was too large.
const SHRINK_FACTOR: u32 = 4;
/// After a page smaller than this fraction of the maximum, the next may have twice as many objects.
const SMALL_PAGE_DIVISOR: usize = 4;

/// The current limit on the objects in a page.
#[derive(Debug)]
pub(crate) struct PageSize(AtomicU32);

impl Default for PageSize {
    fn default() -> Self {
        Self(AtomicU32::new(u32::MAX))
    }
}

/// Returns the number of objects that a request asks for. `None` if it is not paged.
fn limit(uri: &Uri) -> Option<u32> {
    let mut pairs = uri.query().unwrap_or_default().split('&');
    pairs.find_map(|pair| pair.strip_prefix("limit=")?.parse().ok())
}

/// Returns the request with fewer objects. With `resourceVersion=0` API servers respond from their
/// cache and ignore the limit.
fn with_limit(uri: &Uri, limit: u32) -> Option<Uri> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let kept = pairs.filter(|pair| {
        let key = pair.split('=').next().unwrap_or_default();
        !["limit", "resourceVersionMatch"].contains(&key) && *pair != "resourceVersion=0"
    });
    let query: Vec<_> = kept.map(str::to_owned).collect();
    let query = [query, vec![format!("limit={limit}")]].concat().join("&");
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = format!("{}?{query}", uri.path()).parse().ok();
    Uri::from_parts(parts).ok()
}

/// Sends a request, and repeats it with fewer objects if the page is too large.
pub(crate) async fn send(
    client: &Client,
    size: &PageSize,
    request: Request<Body>,
) -> Result<Response<Body>, kube::Error> {
    let Some(asked) = limit(request.uri()) else {
        return client.send(request).await;
    };
    let (parts, _) = request.into_parts();
    loop {
        let limit = asked.min(size.0.load(Relaxed)).max(1);
        let mut parts = parts.clone();
        if limit < asked
            && let Some(uri) = with_limit(&parts.uri, limit)
        {
            parts.uri = uri;
        }
        let response = client
            .send(Request::from_parts(parts, Body::empty()))
            .await?;
        if !response.status().is_success() {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let most = if limit > 1 {
            MAX_PAGE_BYTES
        } else {
            usize::MAX
        };
        match read(body, most).await? {
            Some(body) => {
                if body.len() < MAX_PAGE_BYTES / SMALL_PAGE_DIVISOR {
                    size.0.store(limit.saturating_mul(2), Relaxed);
                }
                return Ok(Response::from_parts(head, Body::from(body)));
            }
            None => {
                tracing::debug!(
                    limit,
                    "a page of a list is too large, requesting fewer objects"
                );
                size.0.store(limit / SHRINK_FACTOR, Relaxed);
            }
        }
    }
}

/// Reads a whole body. `None` if it is longer than `most`.
async fn read(mut body: Body, most: usize) -> Result<Option<Bytes>, kube::Error> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if whole.len() + data.len() > most {
            return Ok(None);
        }
        whole.extend_from_slice(&data);
    }
    Ok(Some(whole.freeze()))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::sync::Arc;

    use tower::service_fn;

    use super::*;

    /// Returns a client of an API server with objects of these sizes, and the queries that it
    /// received.
    fn server(sizes: Vec<usize>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let notes = asked.clone();
        let service = service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            // From its cache the API server returns everything.
            let all = query.contains("resourceVersion=0");
            let limit = limit(request.uri()).filter(|_| !all).unwrap_or(u32::MAX);
            let sizes = sizes.iter().take(usize::try_from(limit).unwrap());
            let body = vec![b'x'; sizes.sum()];
            notes.lock().push(query);
            async move {
                let response = Response::builder().status(200).body(Body::from(body));
                response.map_err(|error| -> tower::BoxError { error.into() })
            }
        });
        (Client::new(service, "default"), asked)
    }

    async fn get(client: &Client, size: &PageSize, query: &str) -> usize {
        let request = Request::get(format!("/api/v1/pods?{query}"))
            .body(Body::empty())
            .unwrap();
        let response = send(client, size, request).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        body.to_bytes().len()
    }

    #[tokio::test]
    async fn a_large_page_is_requested_again_with_fewer_objects() {
        let (client, asked) = server(vec![16 * 1024; 500]);
        let size = PageSize::default();
        let query = "&limit=500&resourceVersion=0&fieldSelector=spec.nodeName%3Da";
        assert!(get(&client, &size, query).await <= MAX_PAGE_BYTES);
        assert_eq!(
            *asked.lock(),
            [
                query,
                "&fieldSelector=spec.nodeName%3Da&limit=125",
                "&fieldSelector=spec.nodeName%3Da&limit=31"
            ]
        );
        // The next page starts where this one ended.
        assert!(get(&client, &size, "limit=500&continue=x").await <= MAX_PAGE_BYTES);
        assert_eq!(asked.lock().len(), 4);
        assert_eq!(asked.lock()[3], "continue=x&limit=31");
    }

    #[tokio::test]
    async fn one_object_is_taken_whatever_it_has_and_pages_grow_again() {
        let (client, _) = server(vec![MAX_PAGE_BYTES + 1; 3]);
        let size = PageSize::default();
        assert_eq!(get(&client, &size, "limit=500").await, MAX_PAGE_BYTES + 1);
        let (client, asked) = server(vec![1; 500]);
        for _ in 0..12 {
            get(&client, &size, "limit=500").await;
        }
        assert_eq!(asked.lock().last().unwrap(), "limit=500");
    }

    #[tokio::test]
    async fn unpaged_responses_pass_unchanged() {
        let (client, asked) = server(vec![MAX_PAGE_BYTES; 2]);
        let size = PageSize::default();
        assert_eq!(get(&client, &size, "watch=true").await, 2 * MAX_PAGE_BYTES);
        assert_eq!(*asked.lock(), ["watch=true"]);
    }
}
