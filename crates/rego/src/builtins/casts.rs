//! OPA's deprecated built-ins: casts, `any`, `all`, `set_diff`.

use regorus::Value;

use super::{elements, set_of};

/// Whether any element is `true`.
pub(super) fn any(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(elements(arguments.first()).map_or(Value::Undefined, |all| {
        Value::from(all.into_iter().any(|one| *one == Value::Bool(true)))
    }))
}

/// Whether all elements are `true`.
pub(super) fn all(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(elements(arguments.first()).map_or(Value::Undefined, |all| {
        Value::from(all.into_iter().all(|one| *one == Value::Bool(true)))
    }))
}

/// Sets become arrays; arrays stay.
pub(super) fn array(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(elements(arguments.first()).map_or(Value::Undefined, |all| {
        Value::from(all.into_iter().cloned().collect::<Vec<_>>())
    }))
}

/// Arrays become sets; sets stay.
pub(super) fn set(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(
        elements(arguments.first())
            .map_or(Value::Undefined, |all| set_of(all.into_iter().cloned())),
    )
}

/// What is in the first set and not in the second.
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

/// Booleans stay.
pub(super) fn boolean(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::Bool(_)))
}

/// Null stays.
pub(super) fn null(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::Null))
}

/// Objects stay.
pub(super) fn object(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::Object(_)))
}

/// Texts stay.
pub(super) fn string(arguments: &[Value]) -> anyhow::Result<Value> {
    only(arguments, |value| matches!(value, Value::String(_)))
}
