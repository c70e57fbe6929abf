//! Built-ins that OPA deprecates: casts, `any`, `all`, `set_diff`.

use regorus::Value;

use super::{elements, set_of};

/// Returns true if any element is `true`.
pub(super) fn any(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(elements(arguments.first()).map_or(Value::Undefined, |all| {
        Value::from(all.into_iter().any(|one| *one == Value::Bool(true)))
    }))
}

/// Returns true if all elements are `true`.
pub(super) fn all(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(elements(arguments.first()).map_or(Value::Undefined, |all| {
        Value::from(all.into_iter().all(|one| *one == Value::Bool(true)))
    }))
}

/// Converts a set to an array; returns an array unchanged.
pub(super) fn array(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(elements(arguments.first()).map_or(Value::Undefined, |all| {
        Value::from(all.into_iter().cloned().collect::<Vec<_>>())
    }))
}

/// Converts an array to a set; returns a set unchanged.
pub(super) fn set(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(
        elements(arguments.first())
            .map_or(Value::Undefined, |all| set_of(all.into_iter().cloned())),
    )
}

/// Returns the elements of the first set that are not in the second.
pub(super) fn set_diff(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Set(one), Value::Set(other)] => one.difference(other).into_value(),
        _ => Value::Undefined,
    })
}

fn only(arguments: &[Value], wanted: fn(&Value) -> bool) -> anyhow::Result<Value> {
    Ok(arguments
        .first()
        .filter(|value| wanted(value))
        .cloned()
        .unwrap_or(Value::Undefined))
}

/// Returns a boolean unchanged.
pub(super) fn boolean(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::Bool(_)))
}

/// Returns null unchanged.
pub(super) fn null(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::Null))
}

/// Returns an object unchanged.
pub(super) fn object(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::Object(_)))
}

/// Returns a string unchanged.
pub(super) fn string(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::String(_)))
}
