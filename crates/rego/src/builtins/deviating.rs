//! Built-ins that the interpreter has, or nearly, as OPA has them. Bounded, since nothing stops one
//! while it runs.

use regorus::Value;
use regorus::value::Array;

use super::MAX_ELEMENTS;

/// Highest number of bits that `bits.lsh` moves.
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
    steps(arguments, 1)
}

pub(super) fn range_step(arguments: &[Value]) -> anyhow::Result<Value> {
    match arguments.get(2).and_then(|step| step.as_i64().ok()) {
        Some(step) if step > 0 => steps(arguments, step),
        _ => Ok(Value::Undefined),
    }
}

fn steps(arguments: &[Value], step: i64) -> anyhow::Result<Value> {
    let ends = arguments.first().zip(arguments.get(1));
    let Some((Ok(from), Ok(to))) = ends.map(|(from, to)| (from.as_i64(), to.as_i64())) else {
        return Ok(Value::Undefined);
    };
    let count = from.abs_diff(to) / step.unsigned_abs() + 1;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    anyhow::ensure!(
        count <= MAX_ELEMENTS,
        "numbers.range: more than {MAX_ELEMENTS} elements"
    );
    let step = if to < from { -step } else { step };
    let numbers = std::iter::successors(Some(from), |at| at.checked_add(step)).take(count);
    Ok(Array::from_iter(numbers.map(Value::from)).into_value())
}
