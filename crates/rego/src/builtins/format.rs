//! `sprintf` with the verbs of Go's `fmt`, as far as policies' values have them.

use std::fmt::Write as _;

use regorus::Value;

use super::{MAX_TEXT, bounded, text};

/// Widest field, and most digits behind the point.
const MAX_WIDTH: usize = 1024;

/// A value as Go's `fmt` is given it: integers, floats, booleans; everything else as text.
enum Argument {
    /// The number's decimal text.
    Int(String),
    Float(f64),
    Bool(bool),
    Text(String),
}

impl Argument {
    fn of(value: &Value) -> anyhow::Result<Self> {
        Ok(match value {
            Value::Number(number) if number.is_integer() => {
                // `-0` and `1e3` are written as integers are.
                Self::Int(number.format_decimal())
            }
            Value::Number(number) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            Value::Bool(value) => Self::Bool(*value),
            Value::String(text) => Self::Text(text.to_string()),
            other => {
                let mut out = String::new();
                term(other, &mut out)?;
                Self::Text(out)
            }
        })
    }

    /// Go's name of the type.
    fn type_name(&self) -> &'static str {
        match self {
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::Bool(_) => "bool",
            Self::Text(_) => "string",
        }
    }

    fn plain(&self) -> String {
        match self {
            Self::Int(digits) => digits.clone(),
            Self::Float(number) => shortest(*number),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

pub(super) fn sprintf(arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(format), Some(Value::Array(values))) = (text(arguments, 0), arguments.get(1)) else {
        return Ok(Value::Undefined);
    };
    let values = values
        .iter()
        .map(Argument::of)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut values = values.iter();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        anyhow::ensure!(out.len() <= MAX_TEXT, "sprintf: more than {MAX_TEXT} bytes");
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+# 0".contains(*c)) {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                _ => spec.zero = true,
            }
        }
        spec.width = number(&mut chars);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars).unwrap_or(0));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match values.next() {
                Some(value) => {
                    let written = write(verb, value, &spec);
                    pad(&written, &spec, &mut out);
                }
                None => {
                    let _ = write!(out, "%!{verb}(MISSING)");
                }
            },
        }
    }
    let extra: Vec<String> = values
        .map(|extra| format!("{}={}", extra.type_name(), extra.plain()))
        .collect();
    if !extra.is_empty() {
        let _ = write!(out, "%!(EXTRA {})", extra.join(", "));
    }
    bounded(out)
}

fn number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<usize> {
    let mut number = None;
    while let Some(digit) = chars
        .next_if(char::is_ascii_digit)
        .and_then(|c| c.to_digit(10))
    {
        let digit = usize::try_from(digit).unwrap_or(0);
        number = Some((number.unwrap_or(0) * 10 + digit).min(MAX_WIDTH));
    }
    number
}

fn write(verb: char, value: &Argument, spec: &Spec) -> String {
    let signed = |text: String| match (text.starts_with('-'), spec.plus, spec.space) {
        (false, true, _) => format!("+{text}"),
        (false, false, true) => format!(" {text}"),
        _ => text,
    };
    match (verb, value) {
        ('v', Argument::Int(_)) | ('d', Argument::Int(_)) => signed(value.plain()),
        ('v', Argument::Float(_)) => signed(value.plain()),
        ('v', _) => value.plain(),
        ('s', Argument::Text(text)) => match spec.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text.clone(),
        },
        ('q', Argument::Text(text)) => quoted(text),
        ('t', Argument::Bool(value)) => value.to_string(),
        // OPA hands booleans over as text, for which Go has no %t; nobody means that.
        ('T', value) => value.type_name().to_owned(),
        ('x', Argument::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ('X', Argument::Text(text)) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
        ('x' | 'X' | 'o' | 'O' | 'b' | 'c' | 'U' | 'q', Argument::Int(digits)) => {
            match digits.parse::<i128>() {
                Ok(number) => signed(integer(verb, number, spec.sharp)),
                Err(_) => bad(verb, value),
            }
        }
        ('f' | 'F', Argument::Float(number)) => {
            signed(format!("{number:.*}", spec.precision.unwrap_or(6)))
        }
        ('e' | 'E', Argument::Float(number)) => {
            let text = exponent(&format!("{number:.*e}", spec.precision.unwrap_or(6)));
            signed(if verb == 'E' {
                text.to_uppercase()
            } else {
                text
            })
        }
        ('g' | 'G', Argument::Float(number)) => {
            let text = shortest(*number);
            signed(if verb == 'G' {
                text.to_uppercase()
            } else {
                text
            })
        }
        _ => bad(verb, value),
    }
}

fn bad(verb: char, value: &Argument) -> String {
    format!("%!{verb}({}={})", value.type_name(), value.plain())
}

fn integer(verb: char, number: i128, sharp: bool) -> String {
    let sign = if number < 0 { "-" } else { "" };
    let size = number.unsigned_abs();
    let character = u32::try_from(number)
        .ok()
        .and_then(char::from_u32)
        .unwrap_or('\u{fffd}');
    match verb {
        'x' => format!("{sign}{}{size:x}", if sharp { "0x" } else { "" }),
        'X' => format!("{sign}{}{size:X}", if sharp { "0X" } else { "" }),
        'o' => format!("{sign}{}{size:o}", if sharp { "0" } else { "" }),
        'O' => format!("{sign}0o{size:o}"),
        'b' => format!("{sign}{}{size:b}", if sharp { "0b" } else { "" }),
        'c' => character.to_string(),
        'q' => format!("'{character}'"),
        _ => format!("U+{size:04X}"),
    }
}

/// The shortest text that reads as the same number; with an exponent where it is below -4 or
/// above 5, as Go's `%v` does.
fn shortest(number: f64) -> String {
    let scientific = format!("{number:e}");
    let power: i32 = scientific
        .split_once('e')
        .and_then(|(_, power)| power.parse().ok())
        .unwrap_or(0);
    if (-4..6).contains(&power) {
        format!("{number}")
    } else {
        exponent(&scientific)
    }
}

/// Rust's `1e5` as Go's `1e+05`.
fn exponent(text: &str) -> String {
    match text.split_once('e') {
        Some((digits, power)) => {
            let (sign, power) = match power.strip_prefix('-') {
                Some(power) => ('-', power),
                None => ('+', power),
            };
            format!("{digits}e{sign}{power:0>2}")
        }
        None => text.to_owned(),
    }
}

fn pad(written: &str, spec: &Spec, out: &mut String) {
    let missing = spec
        .width
        .unwrap_or(0)
        .saturating_sub(written.chars().count());
    if spec.minus {
        out.push_str(written);
        out.extend(std::iter::repeat_n(' ', missing));
    } else if spec.zero {
        // Zeros go between the sign and the digits.
        let (sign, digits) = match written.strip_prefix(['-', '+']) {
            Some(digits) => (written.get(..1).unwrap_or(""), digits),
            None => ("", written),
        };
        out.push_str(sign);
        out.extend(std::iter::repeat_n('0', missing));
        out.push_str(digits);
    } else {
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(written);
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 || u32::from(c) == 0x7f => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as OPA writes terms: like JSON with a space behind `,` and `:`, and sets in braces.
fn term(value: &Value, out: &mut String) -> anyhow::Result<()> {
    anyhow::ensure!(out.len() <= MAX_TEXT, "sprintf: more than {MAX_TEXT} bytes");
    let list = |values: &mut dyn Iterator<Item = &Value>, out: &mut String| {
        for (place, value) in values.enumerate() {
            out.push_str(if place > 0 { ", " } else { "" });
            term(value, out)?;
        }
        anyhow::Ok(())
    };
    match value {
        Value::Array(array) => {
            out.push('[');
            list(&mut array.iter(), out)?;
            out.push(']');
        }
        Value::Set(set) if set.is_empty() => out.push_str("set()"),
        Value::Set(set) => {
            out.push('{');
            list(&mut set.iter_sorted(), out)?;
            out.push('}');
        }
        Value::Object(object) => {
            out.push('{');
            for (place, (key, value)) in object.iter_sorted().enumerate() {
                out.push_str(if place > 0 { ", " } else { "" });
                term(key, out)?;
                out.push_str(": ");
                term(value, out)?;
            }
            out.push('}');
        }
        other => out.push_str(&other.to_json_str()?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(format: &str, values: serde_json::Value) -> String {
        match sprintf(&[Value::from(format), Value::from(values)]).unwrap() {
            Value::String(text) => text.to_string(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn verbs_are_those_of_go() {
        use serde_json::json;
        for (text, values, expected) in [
            ("%v %v %v", json!([1, "a", true]), "1 a true"),
            ("%s", json!(["a"]), "a"),
            ("%t", json!([true]), "true"),
            (
                "%d|%5d|%-5d|%05d|%+d",
                json!([1, 2, 3, -4, 5]),
                "1|    2|3    |-0004|+5",
            ),
            (
                "%x %X %o %b %c %U",
                json!([255, 255, 8, 5, 65, 65]),
                "ff FF 10 101 A U+0041",
            ),
            (
                "%.2f %f %e",
                json!([3.1666, 2.5, 1234.5]),
                "3.17 2.500000 1.234500e+03",
            ),
            ("%v %v", json!([0.1, 1e-7]), "0.1 1e-07"),
            ("%q", json!(["a\"b"]), r#""a\"b""#),
            (
                "%v",
                json!([{"a": [1, "b", null]}]),
                r#"{"a": [1, "b", null]}"#,
            ),
            ("%s", json!([1]), "%!s(int=1)"),
            ("%d", json!(["x"]), "%!d(string=x)"),
            ("%d", json!([]), "%!d(MISSING)"),
            ("a", json!([1, "b"]), "a%!(EXTRA int=1, string=b)"),
            ("100%%", json!([]), "100%"),
            ("%", json!([]), "%!(NOVERB)"),
            (
                "%6s|%-6s|%.2s",
                json!(["ab", "cd", "efg"]),
                "    ab|cd    |ef",
            ),
            ("%x", json!(["hi"]), "6869"),
        ] {
            assert_eq!(format(text, values), expected, "{text}");
        }
    }

    #[test]
    fn no_width_makes_much_text() {
        assert!(format("%999999999d", serde_json::json!([1])).len() <= MAX_WIDTH);
    }
}
