//! The pass-through: safe paths of the node's own metadata service.
//!
//! What does not change while an instance runs is kept for a while, so that busy pods do not use
//! up the node's allowance of requests, which all of its pods share.

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

use super::Door;
use super::answer::Answer;
use crate::limits::Connection;
use crate::metrics::Outcome;

/// How long an answer is kept.
const KEPT: SignedDuration = SignedDuration::from_secs(60);
/// Largest answer kept, bytes.
const MOST_BYTES: usize = 16 * 1024;
/// Most answers kept. Versions make many paths of one value.
const MOST_FOUND: usize = 512;
/// Most paths kept that the service does not have. Pods can make up any number of them.
const MOST_ABSENT: usize = 64;
/// How long to wait for the head of an answer.
const HEAD_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Kept {
    status: StatusCode,
    body: Bytes,
    content_type: Option<HeaderValue>,
    until: Timestamp,
}

/// Answers that are kept: apart from each other those of paths that are there and of paths that are
/// not, so that the latter push none of the former out.
#[derive(Debug)]
pub(super) struct Cache {
    found: Shelf,
    absent: Shelf,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            found: Shelf::new(MOST_FOUND),
            absent: Shelf::new(MOST_ABSENT),
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

/// A bounded number of answers, of which the oldest make room for new ones.
#[derive(Debug)]
struct Shelf {
    most: usize,
    answers: ArcSwap<HashMap<Box<str>, Kept>>,
}

impl Shelf {
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
    uid: Option<&Arc<str>>,
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
    if !connection.forward(uid, now) {
        return Answer::refuse(
            Outcome::Limited,
            "the pods of this node ask its metadata service too often, and this pod more than its share: try again in a second\n",
        );
    }
    let asked = door.imds.forward(method, path.as_str());
    let mut response = match tokio::time::timeout(HEAD_TIME, asked).await {
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
    if response.status().is_redirection() {
        return redirected(door, &response);
    }
    response.headers_mut().remove(LOCATION);
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

/// Hands on where the service has a path of its own instead, as the path alone: the address that it
/// may name is the agent's way to it, and not the pod's.
fn redirected<B>(door: &Door, response: &Response<B>) -> Answer {
    let failed = || {
        let sentence = "the node's metadata service leads elsewhere\n";
        Answer::refuse(Outcome::Upstream, sentence)
    };
    let target = response.headers().get(LOCATION);
    let target = target.and_then(|target| target.to_str().ok()?.parse::<Uri>().ok());
    let Some(target) = target else {
        return failed();
    };
    let is_its_own = target
        .authority()
        .is_none_or(|authority| door.imds.is_at(authority));
    let path = target.path_and_query().map_or("", |path| path.as_str());
    let allowed = CanonicalPath::parse(path).is_ok_and(|path| door.options.allow.allows(&path));
    match HeaderValue::from_str(path) {
        Ok(path) if is_its_own && allowed => Answer::ok(Bytes::new())
            .with_status(response.status())
            .with_header(LOCATION.as_str(), path),
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
            until: at(second) + KEPT,
        }
    }

    #[test]
    fn paths_that_are_not_there_push_out_none_that_are() {
        let cache = Cache::default();
        cache.put("/region", &kept(StatusCode::OK, 0), at(0));
        for n in 0..10_000 {
            let path = format!("/made-up-{n}");
            cache.put(&path, &kept(StatusCode::NOT_FOUND, 1), at(1));
        }
        assert!(cache.get("/region", at(59)).is_some());
        assert!(cache.get("/made-up-9999", at(60)).is_some());
        assert_eq!(cache.absent.answers.load().len(), MOST_ABSENT);
    }

    #[test]
    fn the_oldest_answer_makes_room_and_each_has_its_end() {
        let cache = Cache::default();
        let most = i64::try_from(MOST_FOUND).unwrap();
        // A tenth of a second apart, so that none has ended.
        let time = |n| at(0) + SignedDuration::from_millis(n * 100);
        for n in 0..=most {
            let mut answer = kept(StatusCode::OK, 0);
            answer.until = time(n) + KEPT;
            cache.put(&format!("/{n}"), &answer, time(n));
        }
        assert_eq!(cache.found.answers.load().len(), MOST_FOUND);
        assert!(cache.get("/0", time(1)).is_none());
        assert!(cache.get("/1", time(most)).is_some());
        // The same path again takes no further place.
        cache.put("/2", &kept(StatusCode::OK, 52), at(52));
        assert!(cache.get("/1", time(most)).is_some());
        assert!(cache.get("/2", at(111)).is_some());
        assert!(cache.get("/2", at(112)).is_none());
        cache.put("/new", &kept(StatusCode::OK, 200), at(200));
        assert_eq!(cache.found.answers.load().len(), 1);
    }
}
