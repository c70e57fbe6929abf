//! An open watch: a stream of JSON lines that the connection polls, so that it ends with the client
//! and needs no task.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::unfold;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::select::Selector;
use super::store::{Store, Table, view};
use super::{Failure, Query, State, flag};
use crate::http::Answer;
use crate::recent::lock;

/// Timeout of a watch without one of its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Maximum number of events in one chunk.
const BATCH: usize = 1000;

pub(super) struct Watch {
    state: Arc<State>,
    changed: Receiver<()>,
    resource: String,
    selector: Selector,
    metadata_only: bool,
    /// All changes up to this version have been sent.
    position: u64,
    epoch: u64,
    /// Ends the stream once its queue is empty.
    closing: bool,
    lines: VecDeque<Value>,
    deadline: Instant,
    next_bookmark: Option<Instant>,
}

impl Watch {
    pub(super) fn open(
        state: Arc<State>,
        resource: String,
        selector: Selector,
        query: &Query,
        metadata_only: bool,
    ) -> Result<Self, Failure> {
        let bookmarks = flag(query, "allowWatchBookmarks");
        let streaming = flag(query, "sendInitialEvents");
        if streaming {
            check_streaming(query, bookmarks, state.options.streaming_lists)?;
        }
        let from = match query.get("resourceVersion").map(String::as_str) {
            None | Some("" | "0") => None,
            Some(version) => Some(version.parse().map_err(|_| {
                Failure::new(
                    400,
                    format!("Invalid value: \"{version}\": resourceVersion"),
                )
            })?),
        };
        let timeout = query
            .get("timeoutSeconds")
            .and_then(|seconds| seconds.parse().ok())
            .filter(|&seconds| seconds > 0)
            .map(Duration::from_secs);
        let now = Instant::now();
        let mut watch = Self {
            changed: state.changed.subscribe(),
            resource,
            selector,
            metadata_only,
            position: 0,
            epoch: 0,
            closing: false,
            lines: VecDeque::new(),
            deadline: now + timeout.unwrap_or(DEFAULT_TIMEOUT),
            next_bookmark: bookmarks.then(|| now + state.options.bookmark_interval),
            state: state.clone(),
        };
        let store = lock(&state.store);
        store.table(&watch.resource)?;
        watch.epoch = store.epoch();
        match from.filter(|_| !streaming) {
            Some(version) => watch.position = version,
            None => watch.begin_with_all(&store, streaming)?,
        }
        Ok(watch)
    }

    /// Returns the response whose body is this watch.
    pub(super) fn answer(self) -> Answer {
        let stream = unfold(self, |mut watch| async {
            let batch = watch.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(batch)), watch))
        });
        let mut answer = Answer::new(StreamBody::new(stream).boxed_unsync());
        *answer.status_mut() = StatusCode::OK;
        answer
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }

    fn begin_with_all(&mut self, store: &Store, streaming: bool) -> Result<(), Failure> {
        let table = store.table(&self.resource)?;
        self.position = store.version();
        for object in table
            .objects()
            .filter(|object| self.selector.matches(object))
        {
            self.lines
                .push_back(event("ADDED", &view(object, self.metadata_only)));
        }
        if streaming {
            let end = json!({"k8s.io/initial-events-end": "true"});
            self.lines.push_back(self.bookmark(table, end));
        }
        Ok(())
    }

    /// Returns the next lines, or `None` at the end of the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.lines.is_empty() {
                return Some(self.take_lines());
            }
            if self.closing {
                return None;
            }
            self.changed.mark_unchanged();
            let later = self.collect()?;
            if !self.lines.is_empty() {
                continue;
            }
            let wake = [Some(self.deadline), later, self.next_bookmark]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(wake.unwrap_or(self.deadline)) => {}
            }
        }
    }

    fn take_lines(&mut self) -> Bytes {
        let mut text = String::new();
        for line in self.lines.drain(..self.lines.len().min(BATCH)) {
            text.push_str(&line.to_string());
            text.push('\n');
        }
        text.into()
    }

    /// Queues the changes that are due, and returns the time of the next one. `None` ends the
    /// watch.
    fn collect(&mut self) -> Option<Option<Instant>> {
        let state = self.state.clone();
        let store = lock(&state.store);
        let now = Instant::now();
        if store.epoch() != self.epoch || now >= self.deadline {
            return None;
        }
        let table = store.table(&self.resource).ok()?;
        if self.position < table.floor() || self.position > store.version() {
            let message = format!(
                "too old resource version: {} ({})",
                self.position,
                table.floor()
            );
            self.lines
                .push_back(event("ERROR", &Failure::new(410, message).to_value()));
            self.closing = true;
            return Some(None);
        }
        let mut later = None;
        for change in table.changes_after(self.position) {
            if change.due > now {
                later = Some(change.due);
                break;
            }
            self.position = change.version;
            if let Some((kind, object)) = change.seen_by(&self.selector) {
                self.lines
                    .push_back(event(kind, &view(&object, self.metadata_only)));
            }
        }
        if later.is_none() {
            self.position = store.version();
        }
        if self.next_bookmark.is_some_and(|at| at <= now) {
            self.next_bookmark = Some(now + state.options.bookmark_interval);
            self.lines.push_back(self.bookmark(table, json!({})));
        }
        Some(later)
    }

    fn bookmark(&self, table: &Table, annotations: Value) -> Value {
        let (api_version, kind) = if self.metadata_only {
            ("meta.k8s.io/v1", "PartialObjectMetadata")
        } else {
            (table.api_version(), table.kind())
        };
        let object = json!({
            "kind": kind,
            "apiVersion": api_version,
            "metadata": {
                "resourceVersion": self.position.to_string(),
                "creationTimestamp": null,
                "annotations": annotations,
            },
        });
        event("BOOKMARK", &object)
    }
}

/// Validates the parameters of streaming lists.
fn check_streaming(query: &Query, bookmarks: bool, known: bool) -> Result<(), Failure> {
    let forbidden = |why: &str| {
        Failure::new(
            422,
            format!("ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: {why}"),
        )
    };
    if !known {
        return Err(forbidden(
            "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature \
             gate is enabled",
        ));
    }
    if query
        .get("resourceVersionMatch")
        .is_none_or(|it| it != "NotOlderThan")
    {
        return Err(forbidden(
            "Forbidden: it needs resourceVersionMatch=NotOlderThan",
        ));
    }
    if !bookmarks {
        return Err(forbidden("Forbidden: it needs allowWatchBookmarks=true"));
    }
    Ok(())
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}
