//! Operators under their function names, and numeric built-ins.

use regorus::Value;

use super::bounded::original;

/// Maximum number of bits of a product's factors together.
const MAX_BITS: u64 = 1 << 20;

/// Returns an integral number as an integer: `1.0` as 1.
pub(super) fn whole(value: &Value) -> Option<Value> {
    match value.as_i64() {
        Ok(number) => Some(Value::from(number)),
        Err(_) => match value {
            Value::Number(number) if number.is_integer() => Some(value.clone()),
            _ => None,
        },
    }
}

/// Applies one of the interpreter's functions to integers.
fn of_whole(name: &str, arguments: &[Value]) -> anyhow::Result<Value> {
    let numbers: Option<Vec<Value>> = arguments.iter().map(whole).collect();
    numbers.map_or(Ok(Value::Undefined), |numbers| original(name, &numbers))
}

macro_rules! of_whole {
    ($($function:ident $name:literal)*) => {
        $(pub(super) fn $function(arguments: &[Value]) -> anyhow::Result<Value> {
            of_whole($name, arguments)
        })*
    };
}

of_whole! {
    bits_and "bits.and"
    bits_or "bits.or"
    bits_xor "bits.xor"
    bits_negate "bits.negate"
    shift_right "bits.rsh"
}

pub(super) fn plus(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Number(one), Value::Number(other)] => Value::from(one.add(other)?),
        _ => Value::Undefined,
    })
}

pub(super) fn minus(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Number(one), Value::Number(other)] => Value::from(one.sub(other)?),
        [Value::Set(one), Value::Set(other)] => one.difference(other).into_value(),
        _ => Value::Undefined,
    })
}

pub(super) fn times(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Number(one), Value::Number(other)] => {
            // A multiplication cannot be interrupted.
            let bits = |number: &Value| match number {
                Value::Number(number) if number.as_f64().is_none() => {
                    number.as_big().map_or(0, |number| number.bits())
                }
                _ => 0,
            };
            anyhow::ensure!(
                arguments.iter().map(bits).sum::<u64>() <= MAX_BITS,
                "a product of more than {MAX_BITS} bits"
            );
            Value::from(one.mul(other)?)
        }
        _ => Value::Undefined,
    })
}

pub(super) fn divide(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Number(_), Value::Number(other)] if other.as_f64() == Some(0.0) => Value::Undefined,
        [Value::Number(one), Value::Number(other)] => Value::from(one.clone().divide(other)?),
        _ => Value::Undefined,
    })
}

pub(super) fn remainder(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Number(one), Value::Number(other)]
            if one.is_integer() && other.is_integer() && other.as_f64() != Some(0.0) =>
        {
            Value::from(one.clone().modulo(other)?)
        }
        _ => Value::Undefined,
    })
}

pub(super) fn and(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Set(one), Value::Set(other)] => one.intersection(other).into_value(),
        _ => Value::Undefined,
    })
}

pub(super) fn or(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments {
        [Value::Set(one), Value::Set(other)] => one.union(other).into_value(),
        _ => Value::Undefined,
    })
}

/// Returns the number of elements, keys or characters.
pub(super) fn count(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match arguments.first() {
        Some(Value::Array(array)) => Value::from(array.len()),
        Some(Value::Set(set)) => Value::from(set.len()),
        Some(Value::Object(object)) => Value::from(object.len()),
        Some(Value::String(text)) => Value::from(text.chars().count()),
        _ => Value::Undefined,
    })
}
