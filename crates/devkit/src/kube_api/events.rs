//! Events that clients create and patch in either API group.

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::target::Target;
use super::{Failure, json_answer};
use crate::http::Answer;
use crate::ids;
use crate::recent::Recent;

#[derive(Debug, Default)]
pub(super) struct Events {
    events: Recent<Value>,
    version: u64,
}

impl Events {
    pub(super) fn to_vec(&self) -> Vec<Value> {
        self.events.to_vec()
    }

    pub(super) fn answer(
        &mut self,
        parts: &Parts,
        target: Target<'_>,
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let namespace = target
            .namespace
            .ok_or_else(|| Failure::new(405, "Events are namespaced"))?;
        let body = serde_json::from_slice(body)
            .map_err(|error| Failure::new(400, format!("the body is not JSON: {error}")));
        match (&parts.method, target.name) {
            (&Method::POST, None) => self.create(namespace, body?),
            (&Method::PATCH, Some(name)) => {
                let kind = parts
                    .headers
                    .get(CONTENT_TYPE)
                    .map(|value| value.as_bytes());
                // The patch types differ only for lists of objects with keys, which Events do not
                // have.
                if !matches!(
                    kind,
                    Some(
                        b"application/merge-patch+json" | b"application/strategic-merge-patch+json"
                    )
                ) {
                    return Err(Failure::new(
                        415,
                        "the stand-in supports merge patches only",
                    ));
                }
                self.patch(namespace, name, &body?)
            }
            (&Method::GET, Some(name)) => {
                let event = self
                    .events
                    .iter()
                    .find(|event| is(event, namespace, name))
                    .ok_or_else(|| Failure::not_found("events", name))?;
                Ok(json_answer(StatusCode::OK, event))
            }
            _ => Err(Failure::new(
                405,
                "the stand-in does not support this operation on Events",
            )),
        }
    }

    fn create(&mut self, namespace: &str, mut event: Value) -> Result<Answer, Failure> {
        self.version += 1;
        let metadata = event
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .ok_or_else(|| Failure::new(400, "the Event has no metadata"))?;
        let name = name(metadata)
            .ok_or_else(|| Failure::new(422, "metadata.name: name or generateName is required"))?;
        let own = metadata
            .entry("namespace")
            .or_insert_with(|| namespace.into());
        if own != namespace {
            let message = "the namespace of the provided object does not match the namespace \
                           sent on the request";
            return Err(Failure::new(400, message));
        }
        if self.events.iter().any(|event| is(event, namespace, &name)) {
            return Err(Failure::new(
                409,
                format!("events \"{name}\" already exists"),
            ));
        }
        metadata.insert("name".into(), name.into());
        metadata.insert("uid".into(), ids::uuid().into());
        metadata.insert("resourceVersion".into(), self.version.to_string().into());
        metadata.insert(
            "creationTimestamp".into(),
            format!("{:.0}", Timestamp::now()).into(),
        );
        self.events.push(event.clone());
        Ok(json_answer(StatusCode::CREATED, &event))
    }

    fn patch(&mut self, namespace: &str, name: &str, patch: &Value) -> Result<Answer, Failure> {
        self.version += 1;
        let event = self
            .events
            .iter_mut()
            .find(|event| is(event, namespace, name))
            .ok_or_else(|| Failure::not_found("events", name))?;
        json_patch::merge(event, patch);
        if let Some(version) = event.pointer_mut("/metadata/resourceVersion") {
            *version = self.version.to_string().into();
        }
        Ok(json_answer(StatusCode::OK, event))
    }
}

fn is(event: &Value, namespace: &str, name: &str) -> bool {
    let text = |pointer| event.pointer(pointer).and_then(Value::as_str);
    text("/metadata/name") == Some(name) && text("/metadata/namespace") == Some(namespace)
}

/// Returns an Event's name, or generates one from its `generateName`.
fn name(metadata: &Map<String, Value>) -> Option<String> {
    let text = |field| {
        metadata
            .get(field)
            .and_then(Value::as_str)
            .filter(|it| !it.is_empty())
    };
    let generated = || Some(format!("{}{}", text("generateName")?, ids::suffix()));
    text("name").map(Into::into).or_else(generated)
}
