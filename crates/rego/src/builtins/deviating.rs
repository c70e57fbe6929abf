//! Array concatenation, shifts and ranges with bounded results, since a running built-in cannot be
//! interrupted.

use regorus::Value;
use regorus::value::Array;

use super::MAX_ELEMENTS;

/// Maximum shift of `bits.lsh`, in bits.
const MAX_SHIFT: u64 = 1024;

pub(super) fn array_concat(arguments: &[Value]) -> anyhow::Result<Value> {
    let [Value::Array(one), Value::Array(other)] = arguments else {
        return Ok(Value::Undefined);
    };
    anyhow::ensure!(
        one.len() + other.len() <= MAX_ELEMENTS,
        "array.concat: more than {MAX_ELEMENTS} elements"
    );
    Ok(Array::from_iter(one.iter().chain(other.iter()).cloned()).into_value())
}

pub(super) fn shift_left(arguments: &[Value]) -> anyhow::Result<Value> {
    let [Value::Number(number), Value::Number(by)] = arguments else {
        return Ok(Value::Undefined);
    };
    let Some(by) = by.as_u64() else {
        return Ok(Value::Undefined);
    };
    anyhow::ensure!(by <= MAX_SHIFT, "bits.lsh: by more than {MAX_SHIFT} bits");
    let two = Value::from(2u64);
    let mut shifted = number.clone();
    for _ in 0..by {
        shifted = shifted.mul(two.as_number()?)?;
    }
    Ok(if number.is_integer() {
        Value::from(shifted)
    } else {
        Value::Undefined
    })
}

pub(super) fn range(arguments: &[Value]) -> anyhow::Result<Value> {
    steps(arguments, &Value::from(1u64))
}

pub(super) fn range_step(arguments: &[Value]) -> anyhow::Result<Value> {
    match arguments.get(2) {
        Some(step @ Value::Number(_)) if *step > Value::from(0u64) => steps(arguments, step),
        _ => Ok(Value::Undefined),
    }
}

/// Returns the integers from one number to another, ascending or descending.
fn steps(arguments: &[Value], step: &Value) -> anyhow::Result<Value> {
    let whole = |value: Option<&Value>| value.and_then(super::arithmetic::whole);
    let ends = (
        whole(arguments.first()),
        whole(arguments.get(1)),
        whole(Some(step)),
    );
    let (Some(from), Some(to), Some(step)) = ends else {
        return Ok(Value::Undefined);
    };
    let (mut at, step) = (from.as_number()?.clone(), step.as_number()?.clone());
    let goes_down = to < from;
    let end = to.as_number()?;
    let mut numbers = Vec::new();
    while if goes_down { at >= *end } else { at <= *end } {
        anyhow::ensure!(
            numbers.len() < MAX_ELEMENTS,
            "numbers.range: more than {MAX_ELEMENTS} elements"
        );
        numbers.push(Value::from(at.clone()));
        at = if goes_down {
            at.sub(&step)?
        } else {
            at.add(&step)?
        };
    }
    Ok(Array::from_iter(numbers).into_value())
}
