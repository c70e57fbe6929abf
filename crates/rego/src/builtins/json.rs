//! `json.*`: JSON as Go formats it and OPA parses it.

use regorus::Value;
use serde::de::IgnoredAny;

use super::bounded::{bounded_text, original, small};
use super::{MAX_TEXT, bounded, text};

/// The layout of JSON on several lines; without one, it is on a single line.
#[derive(Clone, Copy)]
struct Layout<'a> {
    prefix: &'a str,
    indent: &'a str,
}

/// Formats JSON without spaces, with sorted keys, and with sets as arrays.
pub(super) fn marshal_argument(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(value) = arguments.first() else {
        return Ok(Value::Undefined);
    };
    let mut out = String::new();
    marshal(value, &mut out)?;
    bounded(out)
}

/// Appends a value as JSON. Values share their parts, so a small value may have a long
/// representation.
pub(crate) fn marshal(value: &Value, out: &mut String) -> anyhow::Result<()> {
    write(value, None, 0, out)
}

/// Returns the text of a key in JSON.
pub(super) fn key(key: &Value) -> anyhow::Result<String> {
    match key {
        Value::String(text) => Ok(text.to_string()),
        other => {
            let mut written = String::new();
            marshal(other, &mut written)?;
            Ok(written)
        }
    }
}

/// Formats a scalar as JSON.
pub(super) fn scalar(value: &Value) -> anyhow::Result<String> {
    match value {
        // A large integer would otherwise be formatted as a fraction.
        Value::Number(number) if number.is_integer() => Ok(number.format_decimal()),
        other => other.to_json_str(),
    }
}

fn write(
    value: &Value,
    layout: Option<Layout<'_>>,
    depth: usize,
    out: &mut String,
) -> anyhow::Result<()> {
    bounded_text("json.marshal", out)?;
    match value {
        Value::Array(array) => list(&mut array.iter(), layout, depth, out),
        Value::Set(set) => list(&mut set.iter_sorted(), layout, depth, out),
        Value::Object(object) => {
            let mut fields = Vec::with_capacity(object.len());
            for (name, value) in object.iter() {
                fields.push((key(name)?, value));
            }
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            out.push('{');
            for (place, (name, value)) in fields.iter().enumerate() {
                separate(place, layout, depth + 1, out);
                out.push_str(&Value::from(name.as_str()).to_json_str()?);
                out.push_str(if layout.is_some() { ": " } else { ":" });
                write(value, layout, depth + 1, out)?;
            }
            end(fields.is_empty(), layout, depth, out);
            out.push('}');
            Ok(())
        }
        other => {
            out.push_str(&scalar(other)?);
            Ok(())
        }
    }
}

fn list(
    values: &mut dyn Iterator<Item = &Value>,
    layout: Option<Layout<'_>>,
    depth: usize,
    out: &mut String,
) -> anyhow::Result<()> {
    out.push('[');
    let mut is_empty = true;
    for (place, value) in values.enumerate() {
        is_empty = false;
        separate(place, layout, depth + 1, out);
        write(value, layout, depth + 1, out)?;
    }
    end(is_empty, layout, depth, out);
    out.push(']');
    Ok(())
}

fn separate(place: usize, layout: Option<Layout<'_>>, depth: usize, out: &mut String) {
    if place > 0 {
        out.push(',');
    }
    new_line(layout, depth, out);
}

fn end(is_empty: bool, layout: Option<Layout<'_>>, depth: usize, out: &mut String) {
    if !is_empty {
        new_line(layout, depth, out);
    }
}

fn new_line(layout: Option<Layout<'_>>, depth: usize, out: &mut String) {
    if let Some(Layout { prefix, indent }) = layout {
        out.push('\n');
        out.push_str(prefix);
        out.extend(std::iter::repeat_n(indent, depth));
    }
}

pub(super) fn marshal_with_options(arguments: &[Value]) -> anyhow::Result<Value> {
    const NAME: &str = "json.marshal_with_options";
    let size = small(NAME, arguments)?;
    let [value, Value::Object(options)] = arguments else {
        return Ok(Value::Undefined);
    };
    let (mut prefix, mut indent, mut pretty, mut implied) = ("", "\t", None, false);
    for (option, value) in options.iter() {
        let Value::String(option) = option else {
            return Ok(Value::Undefined);
        };
        match (&**option, value) {
            ("prefix", Value::String(text)) => (prefix, implied) = (text, true),
            ("indent", Value::String(text)) => (indent, implied) = (text, true),
            ("pretty", Value::Bool(value)) => pretty = Some(*value),
            _ => return Ok(Value::Undefined),
        }
    }
    let mut out = String::new();
    if !pretty.unwrap_or(implied) {
        marshal(value, &mut out)?;
        return bounded(out);
    }
    let indents = size.depths.saturating_mul(indent.len());
    let prefixes = size
        .parts
        .saturating_mul(prefix.len() + 1)
        .saturating_mul(2);
    anyhow::ensure!(
        indents.saturating_add(prefixes) <= MAX_TEXT,
        "{NAME}: more than {MAX_TEXT} bytes of text"
    );
    out.push_str(prefix);
    write(value, Some(Layout { prefix, indent }), 0, &mut out)?;
    bounded(out)
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

pub(super) fn is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(Value::from(text(arguments, 0).is_some_and(is_json)))
}

/// Returns true if a number in the JSON has an exponent that is too large for OPA to parse.
fn has_absurd_exponent(text: &str) -> bool {
    /// A quarter of OPA's limit on binary exponents.
    const MAX_EXPONENT: usize = 25_000;
    let (mut in_text, mut is_escaped, mut in_number) = (false, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if in_text => is_escaped = true,
            '"' => in_text = !in_text,
            'e' | 'E' if in_number && !in_text => {
                let rest = text.get(at + 1..).unwrap_or("");
                let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
                let end = rest.find(|c: char| !c.is_ascii_digit());
                let digits = rest.get(..end.unwrap_or(rest.len())).unwrap_or("");
                let exponent = digits.trim_start_matches('0');
                if exponent
                    .parse()
                    .map_or(!exponent.is_empty(), |exponent: usize| {
                        exponent > MAX_EXPONENT
                    })
                {
                    return true;
                }
            }
            _ => {}
        }
        in_number = c.is_ascii_digit();
    }
    false
}

pub(super) fn unmarshal(arguments: &[Value]) -> anyhow::Result<Value> {
    const NAME: &str = "json.unmarshal";
    small(NAME, arguments)?;
    let read = original(NAME, arguments)?;
    if read == Value::Undefined {
        if text(arguments, 0).is_some_and(has_absurd_exponent) {
            return Ok(read);
        }
        anyhow::ensure!(
            !text(arguments, 0).is_some_and(is_json),
            "{NAME}: a number or character in the JSON is not supported"
        );
        return Ok(read);
    }
    small(NAME, std::slice::from_ref(&read))?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_indent_and_no_prefix_makes_unbounded_text() {
        for option in ["indent", "prefix"] {
            let with = |length: usize| {
                let text = "x".repeat(length);
                let options = Value::from(json!({ option: text }));
                marshal_with_options(&[Value::from(json!([[1, 2], {"a": 3}])), options])
            };
            assert!(with(1000).is_ok(), "{option}");
            assert!(with(1_000_000).is_err(), "{option}");
        }
    }

    #[test]
    fn exponents_are_looked_for_in_numbers_only() {
        for (text, expected) in [
            ("1e25001", true),
            ("[1, -2.5E-99999]", true),
            ("1e0000001", false),
            ("1e400", false),
            (r#"{"1e99999": "2e99999"}"#, false),
            (r#"["\"1e99999"]"#, false),
            ("true", false),
        ] {
            assert_eq!(has_absurd_exponent(text), expected, "{text}");
        }
    }
}
