//! Formatting of one value in Go's `fmt`: verbs, flags, width and precision.

use std::fmt::Write as _;

use regorus::Value;
use regorus::value::Set;

use super::{MAX_TEXT, go_float, go_quote};

/// A value as OPA passes it to Go's `fmt`: an integer, a fraction, or text for everything else.
pub(super) enum Argument {
    Int(i64),
    /// An integer beyond 64 bits, in the bases of the verbs.
    Big(Box<Big>),
    Float(f64),
    Text(String),
}

/// Digits of an integer without its sign.
pub(super) struct Big {
    negative: bool,
    binary: String,
    octal: String,
    decimal: String,
    hexadecimal: String,
}

impl Argument {
    pub(super) fn of(value: &Value) -> anyhow::Result<Self> {
        Ok(match value {
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(fraction)) if !number.is_integer() => Self::Float(fraction),
                _ => {
                    let size = number.abs();
                    Self::Big(Box::new(Big {
                        negative: !number.is_positive(),
                        binary: size.format_bin(),
                        octal: size.format_octal(),
                        decimal: size.format_decimal(),
                        hexadecimal: size.format_hex(),
                    }))
                }
            },
            Value::String(text) => Self::Text(text.to_string()),
            Value::Set(set) if let Some(text) = written_fraction(set) => {
                match text.parse::<f64>() {
                    Ok(number) if number.is_finite() => Self::Float(number),
                    _ => Self::Text(text.to_owned()),
                }
            }
            other => {
                let mut out = String::new();
                term(other, &mut out)?;
                Self::Text(out)
            }
        })
    }

    /// Returns Go's name of the type.
    fn type_name(&self) -> &'static str {
        match self {
            Self::Int(_) => "int64",
            Self::Big(_) => "*big.Int",
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
        }
    }
}

/// The key that marks the representation of a fraction literal such as `100.0`.
pub(crate) const FRACTION: &str = "rolegate_fraction";

/// Returns the text of a fraction literal. Only the policy itself can contain such a set here.
fn written_fraction(set: &Set) -> Option<&str> {
    match (set.len(), set.first()?) {
        (1, Value::Array(parts)) => match (parts.len(), parts.get(0)?, parts.get(1)?) {
            (2, Value::String(mark), Value::String(text)) if &**mark == FRACTION => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Flags, width and precision between `%` and the verb.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Spec {
    pub(super) minus: bool,
    pub(super) plus: bool,
    pub(super) sharp: bool,
    pub(super) space: bool,
    pub(super) zero: bool,
    /// `%#v` and `%+v`.
    sharp_v: bool,
    plus_v: bool,
    pub(super) width: Option<usize>,
    pub(super) precision: Option<usize>,
}

impl Spec {
    /// Before `v`, the flags `#` and `+` have another meaning.
    fn of_value(mut self) -> Self {
        self.sharp_v = std::mem::take(&mut self.sharp);
        self.plus_v = std::mem::take(&mut self.plus);
        self
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus || self.plus_v, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            _ => "",
        }
    }

    /// Appends a text, padded to the requested width.
    fn pad(&self, text: &str, zero: bool, out: &mut String) {
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        if self.minus {
            out.push_str(text);
            out.extend(std::iter::repeat_n(' ', missing));
        } else {
            let with = if zero && self.zero { '0' } else { ' ' };
            out.extend(std::iter::repeat_n(with, missing));
            out.push_str(text);
        }
    }
}

/// Appends a formatted value.
///
/// # Errors
/// Returns an error for a verb of Go that is not supported.
pub(super) fn write(
    verb: char,
    value: &Argument,
    spec: Spec,
    out: &mut String,
) -> anyhow::Result<()> {
    let spec = if matches!(verb, 'v' | 'w') {
        spec.of_value()
    } else {
        spec
    };
    match (verb, value) {
        ('T', value) => {
            spec.pad(truncated(value.type_name(), &spec), true, out);
            Ok(())
        }
        ('p', Argument::Big(_)) => {
            anyhow::bail!("sprintf: %p of a large number is an address in memory")
        }
        ('w' | 'p', value) => bad(verb, value, spec, out),
        // OPA distinguishes 3 from 3.0; the interpreter does not.
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G', Argument::Int(_) | Argument::Big(_)) => {
            anyhow::bail!("sprintf: %{verb} does not support an integer: use %d or %v")
        }
        (_, Argument::Int(number)) => int(verb, *number, value, spec, out),
        (_, Argument::Big(big)) => {
            large(verb, big, &spec, out);
            Ok(())
        }
        (_, Argument::Float(number)) => float(verb, *number, value, spec, out),
        (_, Argument::Text(text)) => string(verb, text, value, spec, out),
    }
}

/// Appends `name=value` for an argument without a verb.
pub(super) fn extra(value: &Argument, spec: Spec, out: &mut String) -> anyhow::Result<()> {
    out.push_str(value.type_name());
    out.push('=');
    // As `v`, without the effects of flags.
    match value {
        Argument::Int(number) => int('v', *number, value, spec, out),
        Argument::Big(big) => {
            large('v', big, &spec, out);
            Ok(())
        }
        Argument::Float(number) => float('v', *number, value, spec, out),
        Argument::Text(text) => string('v', text, value, spec, out),
    }
}

fn bad(verb: char, value: &Argument, spec: Spec, out: &mut String) -> anyhow::Result<()> {
    let _ = write!(out, "%!{verb}(");
    extra(value, spec, out)?;
    out.push(')');
    Ok(())
}

fn truncated<'a>(text: &'a str, spec: &Spec) -> &'a str {
    let end = spec
        .precision
        .and_then(|most| text.char_indices().nth(most))
        .map_or(text.len(), |(end, _)| end);
    text.get(..end).unwrap_or(text)
}

fn int(
    verb: char,
    number: i64,
    value: &Argument,
    spec: Spec,
    out: &mut String,
) -> anyhow::Result<()> {
    let size = number.unsigned_abs();
    let digits = match verb {
        'v' | 'd' => size.to_string(),
        'b' => format!("{size:b}"),
        'o' | 'O' => format!("{size:o}"),
        'x' => format!("{size:x}"),
        'X' => format!("{size:X}"),
        'c' | 'q' | 'U' => {
            character(verb, number, &spec, out);
            return Ok(());
        }
        _ => return bad(verb, value, spec, out),
    };
    // `%+v` omits the sign here, but not for large numbers.
    let spec = Spec {
        plus_v: false,
        ..spec
    };
    let sign = spec.sign(number < 0);
    let least = match (spec.precision, spec.width) {
        (Some(0), _) if number == 0 => {
            spec.pad("", false, out);
            return Ok(());
        }
        (Some(precision), _) => precision,
        (None, Some(width)) if spec.zero && !spec.minus => width.saturating_sub(sign.len()),
        _ => 0,
    };
    let zeros = "0".repeat(least.saturating_sub(digits.len()));
    let leads_with_zero = zeros.starts_with('0') || digits.starts_with('0');
    let prefix = match verb {
        'b' if spec.sharp => "0b",
        'o' if spec.sharp && !leads_with_zero => "0",
        'x' if spec.sharp => "0x",
        'X' if spec.sharp => "0X",
        'O' if spec.sharp && !leads_with_zero => "0o0",
        'O' => "0o",
        _ => "",
    };
    spec.pad(&format!("{sign}{prefix}{zeros}{digits}"), false, out);
    Ok(())
}

/// Formats a number as the character with that code point.
fn character(verb: char, number: i64, spec: &Spec, out: &mut String) {
    let valid = u32::try_from(number).ok().and_then(char::from_u32);
    let shown = valid.unwrap_or('\u{fffd}');
    match verb {
        'c' => spec.pad(shown.encode_utf8(&mut [0; 4]), true, out),
        'q' => spec.pad(&go_quote::character(shown, spec.plus), true, out),
        _ => {
            let digits = spec.precision.unwrap_or(4).max(4);
            // Go uses the bits unchanged.
            let mut text = format!("U+{number:0digits$X}");
            if let Some(c) = valid.filter(|c| spec.sharp && go_quote::is_print(*c)) {
                let _ = write!(text, " '{c}'");
            }
            spec.pad(&text, false, out);
        }
    }
}

/// Formats an integer beyond 64 bits, for which Go's `big.Int` has its own format.
fn large(verb: char, big: &Big, spec: &Spec, out: &mut String) {
    let digits = match verb {
        'b' => big.binary.clone(),
        'o' | 'O' => big.octal.clone(),
        'd' | 's' | 'v' => big.decimal.clone(),
        'x' => big.hexadecimal.to_lowercase(),
        'X' => big.hexadecimal.to_uppercase(),
        _ => {
            let sign = if big.negative { "-" } else { "" };
            let _ = write!(out, "%!{verb}(big.Int={sign}{})", big.decimal);
            return;
        }
    };
    let sign = spec.sign(big.negative);
    let prefix = match verb {
        'b' if spec.sharp => "0b",
        'o' if spec.sharp => "0",
        'x' if spec.sharp => "0x",
        'X' if spec.sharp => "0X",
        'O' => "0o",
        _ => "",
    };
    let mut zeros = spec.precision.unwrap_or(0).saturating_sub(digits.len());
    let length = sign.len() + prefix.len() + zeros + digits.len();
    if spec.zero && !spec.minus && spec.precision.is_none() {
        zeros += spec.width.unwrap_or(0).saturating_sub(length);
    }
    let zeros = "0".repeat(zeros);
    spec.pad(&format!("{sign}{prefix}{zeros}{digits}"), false, out);
}

fn float(
    verb: char,
    number: f64,
    value: &Argument,
    spec: Spec,
    out: &mut String,
) -> anyhow::Result<()> {
    let (verb, precision) = match verb {
        'v' | 'g' => ('g', None),
        'G' => ('G', None),
        'f' | 'F' => ('f', Some(6)),
        'e' | 'E' => (verb, Some(6)),
        'b' | 'x' | 'X' => anyhow::bail!("sprintf: %{verb} does not support a fraction"),
        _ => return bad(verb, value, spec, out),
    };
    let precision = spec.precision.or(precision);
    let mut digits = go_float::unsigned(verb, number.abs(), precision);
    if spec.sharp {
        digits = go_float::with_point(verb, &digits, precision);
    }
    let spec = Spec {
        plus_v: false,
        ..spec
    };
    let sign = spec.sign(number.is_sign_negative());
    let length = sign.len() + digits.len();
    let zeros = if spec.zero && !spec.minus {
        "0".repeat(spec.width.unwrap_or(0).saturating_sub(length))
    } else {
        String::new()
    };
    spec.pad(&format!("{sign}{zeros}{digits}"), false, out);
    Ok(())
}

fn string(
    verb: char,
    text: &str,
    value: &Argument,
    spec: Spec,
    out: &mut String,
) -> anyhow::Result<()> {
    match verb {
        'v' if spec.sharp_v => quoted(text, &spec, out),
        's' | 'v' => spec.pad(truncated(text, &spec), true, out),
        'q' => quoted(text, &spec, out),
        'x' | 'X' => bytes(verb, text, &spec, out)?,
        _ => return bad(verb, value, spec, out),
    }
    Ok(())
}

fn quoted(text: &str, spec: &Spec, out: &mut String) {
    let text = truncated(text, spec);
    let written = if spec.sharp && go_quote::fits_backquotes(text) {
        format!("`{text}`")
    } else {
        go_quote::text(text, spec.plus)
    };
    spec.pad(&written, true, out);
}

/// Formats the bytes of a text as hexadecimal numbers.
fn bytes(verb: char, text: &str, spec: &Spec, out: &mut String) -> anyhow::Result<()> {
    let most = spec.precision.unwrap_or(text.len()).min(text.len());
    anyhow::ensure!(
        most <= MAX_TEXT / 8,
        "sprintf: more than {} bytes of text as %{verb}",
        MAX_TEXT / 8
    );
    let prefix = if spec.sharp { verb } else { ' ' };
    let mut written = String::new();
    for (place, byte) in text.bytes().take(most).enumerate() {
        if spec.space && place > 0 {
            written.push(' ');
        }
        if spec.sharp && (place == 0 || spec.space) {
            written.extend(['0', prefix]);
        }
        let _ = if verb == 'x' {
            write!(written, "{byte:02x}")
        } else {
            write!(written, "{byte:02X}")
        };
    }
    spec.pad(&written, true, out);
    Ok(())
}

/// Formats a value as OPA formats terms: like JSON, with a space after `,` and `:`, sets in braces,
/// and strings in Go's quotes.
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
        Value::String(text) => out.push_str(&go_quote::text(text, false)),
        other => out.push_str(&super::json::scalar(other)?),
    }
    Ok(())
}
