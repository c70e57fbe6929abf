//! Forwarding of safe paths to the node's metadata service.
//!
//! Values that do not change while an instance runs are cached, so that busy pods do not exhaust
//! the request limit that all pods of the node share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use jiff::{SignedDuration, Timestamp};
use rolegate_core::metadata::CanonicalPath;

use super::MetadataServer;
use super::reply::Reply;
use crate::limits::Connection;
use crate::metrics::Outcome;

/// Lifetime of a cached response.
const CACHE_TTL: SignedDuration = SignedDuration::from_secs(60);
/// Maximum size of a cached response, in bytes.
const MAX_CACHED_BYTES: usize = 16 * 1024;
/// Maximum number of cached responses. Versions multiply the paths of one value.
const MAX_FOUND_ENTRIES: usize = 512;
/// Maximum number of cached paths that do not exist. Pods can invent any number of them.
const MAX_ABSENT_ENTRIES: usize = 64;
/// Timeout of a response's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Kept {
    status: StatusCode,
    body: Bytes,
    content_type: Option<HeaderValue>,
    until: Timestamp,
}

/// Cached responses. Existing and missing paths have separate caches, so that missing paths never
/// evict existing ones.
#[derive(Debug)]
pub(super) struct Cache {
    found: BoundedCache,
    absent: BoundedCache,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            found: BoundedCache::new(MAX_FOUND_ENTRIES),
            absent: BoundedCache::new(MAX_ABSENT_ENTRIES),
        }
    }
}

impl Cache {
    fn get(&self, path: &str, now: Timestamp) -> Option<Kept> {
        let found = self.found.get(path, now);
        found.or_else(|| self.absent.get(path, now))
    }

    fn put(&self, path: &str, kept: &Kept, now: Timestamp) {
        if kept.status == StatusCode::OK {
            self.found.put(path, kept, now);
        } else {
            self.absent.put(path, kept, now);
        }
    }
}

/// A bounded cache that evicts the oldest responses.
#[derive(Debug)]
struct BoundedCache {
    most: usize,
    answers: ArcSwap<HashMap<Box<str>, Kept>>,
}

impl BoundedCache {
    fn new(most: usize) -> Self {
        Self {
            most,
            answers: ArcSwap::default(),
        }
    }

    fn get(&self, path: &str, now: Timestamp) -> Option<Kept> {
        let kept = self.answers.load().get(path)?.clone();
        (now < kept.until).then_some(kept)
    }

    fn put(&self, path: &str, kept: &Kept, now: Timestamp) {
        self.answers.rcu(|answers| {
            let mut answers = HashMap::clone(answers);
            answers.retain(|_, kept| now < kept.until);
            if answers.len() >= self.most && !answers.contains_key(path) {
                let oldest = answers.iter().min_by_key(|(_, kept)| kept.until);
                if let Some(oldest) = oldest.map(|(path, _)| path.clone()) {
                    answers.remove(&oldest);
                }
            }
            answers.insert(path.into(), kept.clone());
            answers
        });
    }
}

impl Kept {
    fn into_reply(self) -> Reply {
        let mut reply = Reply::ok(self.body).with_status(self.status);
        if let Some(content_type) = self.content_type {
            let headers = reply.response.headers_mut();
            headers.insert(CONTENT_TYPE, content_type);
        }
        reply
    }
}

/// Responds with the value from the node's metadata service, if pods may read `path`.
pub(super) async fn forward(
    server: &MetadataServer,
    connection: &Connection,
    uid: Option<&Arc<str>>,
    method: &Method,
    path: &CanonicalPath<'_>,
) -> Reply {
    if !server.options.allow.allows(path) {
        return Reply::refuse(
            Outcome::ClosedPath,
            "pods may not read this path; an administrator can allow it with --metadata-allow\n",
        );
    }
    let now = server.credentials.clock.now();
    let is_static = server.options.allow.is_static(path);
    if is_static && let Some(kept) = server.cache.get(path.as_str(), now) {
        return kept.into_reply();
    }
    if !connection.forward(uid, now) {
        return Reply::refuse(
            Outcome::Limited,
            "too many requests to the metadata service from this node, and this pod exceeds its share: retry in a second\n",
        );
    }
    let asked = server.imds.forward(method, path.as_str());
    let mut response = match tokio::time::timeout(HEAD_TIMEOUT, asked).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::debug!(path = path.as_str(), %error, "the node's metadata service failed");
            return Reply::refuse(Outcome::Upstream, "the node's metadata service failed\n");
        }
        Err(_) => {
            return Reply::refuse(Outcome::Upstream, "the node's metadata service timed out\n");
        }
    };
    if response.status().is_redirection() {
        return redirected(server, &response);
    }
    response.headers_mut().remove(LOCATION);
    let size = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let keep = is_static
        && *method == Method::GET
        && matches!(response.status(), StatusCode::OK | StatusCode::NOT_FOUND)
        && size.is_some_and(|size| size <= MAX_CACHED_BYTES);
    if !keep {
        return Reply::forwarded(response);
    }
    let (head, body) = response.into_parts();
    match Limited::new(body, MAX_CACHED_BYTES).collect().await {
        Ok(body) => {
            let kept = Kept {
                status: head.status,
                body: body.to_bytes(),
                content_type: head.headers.get(CONTENT_TYPE).cloned(),
                until: now + CACHE_TTL,
            };
            server.cache.put(path.as_str(), &kept, now);
            kept.into_reply()
        }
        Err(_) => Reply::refuse(Outcome::Upstream, "the node's metadata service failed\n"),
    }
}

/// Forwards a redirect to another path of the service without its host: the host is the agent's
/// address of the service, not the pod's.
fn redirected<B>(server: &MetadataServer, response: &Response<B>) -> Reply {
    let failed = || {
        let sentence = "the node's metadata service redirects to another host\n";
        Reply::refuse(Outcome::Upstream, sentence)
    };
    let target = response.headers().get(LOCATION);
    let target = target.and_then(|target| target.to_str().ok()?.parse::<Uri>().ok());
    let Some(target) = target else {
        return failed();
    };
    let is_its_own = target
        .authority()
        .is_none_or(|authority| server.imds.is_at(authority));
    let path = target.path_and_query().map_or("", |path| path.as_str());
    let allowed = CanonicalPath::parse(path).is_ok_and(|path| server.options.allow.allows(&path));
    match HeaderValue::from_str(path) {
        Ok(path) if is_its_own && allowed => Reply::ok(Bytes::new())
            .with_status(response.status())
            .with_header(LOCATION, path),
        _ => failed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn kept(status: StatusCode, second: i64) -> Kept {
        Kept {
            status,
            body: Bytes::from_static(b"eu-west-1"),
            content_type: None,
            until: at(second) + CACHE_TTL,
        }
    }

    #[test]
    fn missing_paths_never_evict_existing_ones() {
        let cache = Cache::default();
        cache.put("/region", &kept(StatusCode::OK, 0), at(0));
        for n in 0..10_000 {
            let path = format!("/made-up-{n}");
            cache.put(&path, &kept(StatusCode::NOT_FOUND, 1), at(1));
        }
        assert!(cache.get("/region", at(59)).is_some());
        assert!(cache.get("/made-up-9999", at(60)).is_some());
        assert_eq!(cache.absent.answers.load().len(), MAX_ABSENT_ENTRIES);
    }

    #[test]
    fn the_oldest_answer_makes_room_and_each_has_its_end() {
        let cache = Cache::default();
        let most = i64::try_from(MAX_FOUND_ENTRIES).unwrap();
        // A tenth of a second apart, so that none has expired.
        let time = |n| at(0) + SignedDuration::from_millis(n * 100);
        for n in 0..=most {
            let mut reply = kept(StatusCode::OK, 0);
            reply.until = time(n) + CACHE_TTL;
            cache.put(&format!("/{n}"), &reply, time(n));
        }
        assert_eq!(cache.found.answers.load().len(), MAX_FOUND_ENTRIES);
        assert!(cache.get("/0", time(1)).is_none());
        assert!(cache.get("/1", time(most)).is_some());
        // The same path again uses no further entry.
        cache.put("/2", &kept(StatusCode::OK, 52), at(52));
        assert!(cache.get("/1", time(most)).is_some());
        assert!(cache.get("/2", at(111)).is_some());
        assert!(cache.get("/2", at(112)).is_none());
        cache.put("/new", &kept(StatusCode::OK, 200), at(200));
        assert_eq!(cache.found.answers.load().len(), 1);
    }
}
