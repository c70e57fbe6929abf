//! `object.subset` for objects, sets and arrays, and the paths of `json.filter` and `json.remove`.

use regorus::Value;
use regorus::value::{Array, Object, Set};

use super::MAX_ELEMENTS;
use super::bounded::{original, small};

pub(super) fn subset(arguments: &[Value]) -> anyhow::Result<Value> {
    small("object.subset", arguments)?;
    Ok(match arguments {
        [Value::Object(whole), Value::Object(part)] => Value::from(objects(whole, part)?),
        [Value::Set(whole), Value::Set(part)] => Value::from(sets(whole, part)),
        [Value::Array(whole), Value::Array(part)] => Value::from(arrays(whole, part)?),
        [Value::Array(whole), Value::Set(part)] => {
            // OPA counts matches, and counts duplicates repeatedly.
            let found = whole.iter().filter(|one| part.contains(one)).count();
            Value::from(!whole.is_empty() && found >= part.len())
        }
        _ => Value::Undefined,
    })
}

/// Returns true if all keys are present with the same values, or with supersets of the same kind.
fn objects(whole: &Object, part: &Object) -> anyhow::Result<bool> {
    for (key, part) in part.iter() {
        let contained = match (whole.get(key), part) {
            (None, _) => false,
            (Some(whole), part) if whole == part => true,
            (Some(Value::Object(whole)), Value::Object(part)) => objects(whole, part)?,
            (Some(Value::Set(whole)), Value::Set(part)) => sets(whole, part),
            (Some(Value::Array(whole)), Value::Array(part)) => arrays(whole, part)?,
            _ => false,
        };
        if !contained {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sets(whole: &Set, part: &Set) -> bool {
    part.iter().all(|one| whole.contains(one))
}

/// Returns true if one array occurs contiguously in the other.
fn arrays(whole: &Array, part: &Array) -> anyhow::Result<bool> {
    anyhow::ensure!(
        whole.len().saturating_mul(part.len()) <= 16 * MAX_ELEMENTS,
        "object.subset: the arrays are too long"
    );
    let starts = whole.len().checked_sub(part.len());
    Ok(starts.is_some_and(|last| {
        (0..=last).any(|start| {
            let row = whole.iter().skip(start).zip(part.iter());
            row.into_iter().all(|(one, other)| one == other)
        })
    }))
}

/// Strips the leading slash of paths, which the interpreter takes for a part of them.
fn with_bare_paths(name: &str, arguments: &[Value]) -> anyhow::Result<Value> {
    let bare = |path: &Value| match path {
        Value::String(path) => Value::from(path.trim_start_matches('/')),
        other => other.clone(),
    };
    let paths = match arguments.get(1) {
        Some(Value::Array(paths)) => Value::from(paths.iter().map(bare).collect::<Vec<_>>()),
        Some(Value::Set(paths)) => super::set_of(paths.iter().map(bare)),
        _ => return original(name, arguments),
    };
    let of = arguments.first().cloned().unwrap_or(Value::Undefined);
    original(name, &[of, paths])
}

pub(super) fn filter(arguments: &[Value]) -> anyhow::Result<Value> {
    with_bare_paths("json.filter", arguments)
}

pub(super) fn remove(arguments: &[Value]) -> anyhow::Result<Value> {
    with_bare_paths("json.remove", arguments)
}
