//! Merge patches of objects and of their status.

use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde_json::{Value, json};

use super::Failure;
use super::store::Store;
use super::target::Target;

/// Applies a merge patch and returns the object. A patch without effect creates no new version.
pub(super) fn patch(
    store: &mut Store,
    parts: &Parts,
    target: Target<'_>,
    name: &str,
    body: &[u8],
) -> Result<Value, Failure> {
    let kind = parts
        .headers
        .get(CONTENT_TYPE)
        .map(|value| value.as_bytes());
    if kind != Some(b"application/merge-patch+json") {
        return Err(Failure::new(
            415,
            "the stand-in supports merge patches only",
        ));
    }
    let patch: Value = serde_json::from_slice(body)
        .map_err(|error| Failure::new(400, format!("the body is not JSON: {error}")))?;
    let table = target.table();
    let before = store
        .table(&table)?
        .get(target.namespace, name)
        .ok_or_else(|| Failure::not_found(target.resource, name))?;
    let mut after = (*before).clone();
    match target.subresource {
        None => {
            json_patch::merge(&mut after, &patch);
            // A status changes only through its own subresource.
            put_back(&mut after, "status", before.get("status"));
        }
        Some("status") => {
            let status = patch.get("status").cloned().unwrap_or_default();
            json_patch::merge(&mut after, &json!({"status": status}));
        }
        Some(_) => return Err(Failure::not_found(target.resource, name)),
    }
    if after == *before {
        return Ok(after);
    }
    Ok(store.put(&table, after))
}

fn put_back(object: &mut Value, field: &str, value: Option<&Value>) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => fields.insert(field.into(), value.clone()),
        None => fields.remove(field),
    };
}
