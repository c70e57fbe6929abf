//! The pass-through: safe paths of the node's own metadata service.
//!
//! What does not change while an instance runs is kept for a while, so that busy pods do not use
//! up the node's allowance of requests, which all of its pods share.

use std::collections::HashMap;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use jiff::{SignedDuration, Timestamp};
use rolegate_core::metadata::CanonicalPath;

use super::Door;
use super::answer::Answer;
use crate::limits::Connection;
use crate::metrics::Outcome;

/// How long an answer is kept.
const KEPT: SignedDuration = SignedDuration::from_secs(60);
/// Largest answer kept, bytes.
const MOST_BYTES: usize = 16 * 1024;
/// Most answers kept. Versions make many paths of one value.
const MOST_PATHS: usize = 256;
/// How long to wait for the head of an answer.
const HEAD_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Kept {
    status: StatusCode,
    body: Bytes,
    content_type: Option<HeaderValue>,
    until: Timestamp,
}

/// Answers that are kept.
#[derive(Debug, Default)]
pub(super) struct Cache(ArcSwap<HashMap<Box<str>, Kept>>);

impl Cache {
    fn get(&self, path: &str, now: Timestamp) -> Option<Kept> {
        let kept = self.0.load().get(path)?.clone();
        (now < kept.until).then_some(kept)
    }

    fn put(&self, path: &str, kept: &Kept, now: Timestamp) {
        self.0.rcu(|paths| {
            let mut paths = HashMap::clone(paths);
            paths.retain(|_, kept| now < kept.until);
            if paths.len() >= MOST_PATHS {
                paths.clear();
            }
            paths.insert(path.into(), kept.clone());
            paths
        });
    }
}

impl Kept {
    fn answer(self) -> Answer {
        let mut answer = Answer::ok(self.body).with_status(self.status);
        if let Some(content_type) = self.content_type {
            let headers = answer.response.headers_mut();
            headers.insert(CONTENT_TYPE, content_type);
        }
        answer
    }
}

/// Answers with what the node's metadata service says, if pods may read `path`.
pub(super) async fn forward(
    door: &Door,
    connection: &Connection,
    method: &Method,
    path: &CanonicalPath<'_>,
) -> Answer {
    if !door.options.allow.allows(path) {
        return Answer::refuse(
            Outcome::ClosedPath,
            "pods may not read this path; an administrator can open paths with --metadata-allow\n",
        );
    }
    let now = door.clock.now();
    let is_static = door.options.allow.is_static(path);
    if is_static && let Some(kept) = door.cache.get(path.as_str(), now) {
        return kept.answer();
    }
    if !connection.forward(now) {
        return Answer::refuse(
            Outcome::Limited,
            "this pod asks the node's metadata service too often, try again in a second\n",
        );
    }
    let asked = door.imds.forward(method, path.as_str());
    let response = match tokio::time::timeout(HEAD_TIME, asked).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::debug!(path = path.as_str(), %error, "the node's metadata service failed");
            return Answer::refuse(Outcome::Upstream, "the node's metadata service failed\n");
        }
        Err(_) => {
            return Answer::refuse(
                Outcome::Upstream,
                "the node's metadata service did not answer in time\n",
            );
        }
    };
    let size = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let keep = is_static
        && *method == Method::GET
        && matches!(response.status(), StatusCode::OK | StatusCode::NOT_FOUND)
        && size.is_some_and(|size| size <= MOST_BYTES);
    if !keep {
        return Answer::forwarded(response);
    }
    let (head, body) = response.into_parts();
    match Limited::new(body, MOST_BYTES).collect().await {
        Ok(body) => {
            let kept = Kept {
                status: head.status,
                body: body.to_bytes(),
                content_type: head.headers.get(CONTENT_TYPE).cloned(),
                until: now + KEPT,
            };
            door.cache.put(path.as_str(), &kept, now);
            kept.answer()
        }
        Err(_) => Answer::refuse(Outcome::Upstream, "the node's metadata service failed\n"),
    }
}
