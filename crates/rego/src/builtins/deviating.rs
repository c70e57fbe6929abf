//! Built-ins that the interpreter has, or nearly, as OPA has them. Bounded, since nothing stops one
//! while it runs.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use regorus::Value;
use regorus::value::Array;

use super::bounded::original;
use super::{MAX_ELEMENTS, MAX_TEXT, bounded, elements, text};

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

/// JSON without spaces, keys sorted, sets as arrays.
pub(super) fn json_marshal(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(value) = arguments.first() else {
        return Ok(Value::Undefined);
    };
    let mut out = String::new();
    marshal(value, &mut out)?;
    bounded(out)
}

/// Writes a value as JSON. Values share their parts, so a small one may be long when written.
pub(crate) fn marshal(value: &Value, out: &mut String) -> anyhow::Result<()> {
    anyhow::ensure!(out.len() <= MAX_TEXT, "more than {MAX_TEXT} bytes of JSON");
    let list = |values: &mut dyn Iterator<Item = &Value>, out: &mut String| {
        out.push('[');
        for (place, value) in values.enumerate() {
            if place > 0 {
                out.push(',');
            }
            marshal(value, out)?;
        }
        out.push(']');
        anyhow::Ok(())
    };
    match value {
        Value::Array(array) => list(&mut array.iter(), out),
        Value::Set(set) => list(&mut set.iter_sorted(), out),
        Value::Object(object) => {
            out.push('{');
            for (place, (key, value)) in object.iter_sorted().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                match key {
                    Value::String(_) => marshal(key, out)?,
                    other => {
                        let mut written = String::new();
                        marshal(other, &mut written)?;
                        marshal(&Value::from(written), out)?;
                    }
                }
                out.push(':');
                marshal(value, out)?;
            }
            out.push('}');
            Ok(())
        }
        other => {
            out.push_str(&other.to_json_str()?);
            Ok(())
        }
    }
}

/// Years, months and days later, overflowing as Go's `AddDate` does: a year after the 29th of
/// February is the 1st of March.
pub(super) fn add_date(arguments: &[Value]) -> anyhow::Result<Value> {
    let [start, years, months, days] = arguments else {
        return Ok(Value::Undefined);
    };
    // A time with a zone is left to the interpreter, which has the zones.
    if start.as_array().is_ok() {
        return original("time.add_date", arguments);
    }
    let numbers = (
        start.as_i64(),
        years.as_i64(),
        months.as_i64(),
        days.as_i64(),
    );
    let (Ok(start), Ok(years), Ok(months), Ok(days)) = numbers else {
        return Ok(Value::Undefined);
    };
    Ok(later(start, years, months, days).map_or(Value::Undefined, Value::from))
}

fn later(start: i64, years: i64, months: i64, days: i64) -> Option<i64> {
    let time = Timestamp::from_nanosecond(start.into())
        .ok()?
        .to_zoned(TimeZone::UTC)
        .datetime();
    let month = i64::from(time.month())
        .checked_add(months)?
        .checked_sub(1)?;
    let year = i64::from(time.year())
        .checked_add(years)?
        .checked_add(month.div_euclid(12))?;
    let first = Date::new(
        i16::try_from(year).ok()?,
        i8::try_from(month.rem_euclid(12)).ok()? + 1,
        1,
    );
    let days = i64::from(time.day()).checked_sub(1)?.checked_add(days)?;
    let date = first
        .ok()?
        .checked_add(jiff::Span::new().try_days(days).ok()?)
        .ok()?;
    let later = date.to_datetime(time.time()).to_zoned(TimeZone::UTC).ok()?;
    i64::try_from(later.timestamp().as_nanosecond()).ok()
}

fn yaml(text: &str) -> Option<Value> {
    if text.len() > MAX_TEXT {
        return None;
    }
    serde_saphyr::from_str::<serde_json::Value>(text)
        .ok()
        .map(Value::from)
}

pub(super) fn yaml_unmarshal(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(text(arguments, 0)
        .and_then(yaml)
        .unwrap_or(Value::Undefined))
}

pub(super) fn yaml_is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(Value::from(text(arguments, 0).and_then(yaml).is_some()))
}
