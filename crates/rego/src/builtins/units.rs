//! Numbers in strings: `to_number`, `units.parse`, `units.parse_bytes`.

use regorus::Value;

use super::text;

/// Maximum number of digits of a number with a unit, including the zeros of its exponent.
const MAX_DIGITS: usize = 30;
/// Maximum number of digits of an exponent, so that every number can be formatted.
const MAX_EXPONENT_DIGITS: usize = 3;

/// Maximum number of digits of an exponent in OPA.
const OPAS_EXPONENT_DIGITS: usize = 6;

/// A decimal number without its unit: the sign, the digits, and the number of those after the
/// point.
struct Decimal {
    negative: bool,
    digits: u128,
    /// The power of ten to multiply by.
    power: i32,
}

impl Decimal {
    /// Parses `-12.5e3`. `Ok(None)` if the text is not a number.
    fn parse(name: &str, text: &str) -> anyhow::Result<Option<Self>> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent),
            None => (unsigned, "0"),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let bare = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let digits = format!("{whole}{fraction}");
        let are_digits =
            |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        if !are_digits(&digits) || !are_digits(bare) {
            return Ok(None);
        }
        let significant = digits.trim_start_matches('0');
        let too_long = bare.trim_start_matches('0').len() > MAX_EXPONENT_DIGITS
            || significant.len() > MAX_DIGITS;
        // OPA accepts no exponent with more digits, and a lower limit is enough here.
        if bare.len() > OPAS_EXPONENT_DIGITS {
            return Ok(None);
        }
        anyhow::ensure!(!too_long, "{name}: the number is too long");
        let behind = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
        Ok(Some(Self {
            negative,
            digits: significant.parse().unwrap_or(0),
            power: exponent.parse::<i32>().unwrap_or(0).saturating_sub(behind),
        }))
    }

    /// Multiplies by a factor. Returns the digits and the remaining power of ten.
    fn times(self, name: &str, factor: u64) -> anyhow::Result<Self> {
        let too_large = || anyhow::anyhow!("{name}: the number is too large");
        let mut digits = self
            .digits
            .checked_mul(factor.into())
            .ok_or_else(too_large)?;
        let mut power = self.power;
        while power < 0 && digits.is_multiple_of(10) {
            (digits, power) = if digits == 0 {
                (0, 0)
            } else {
                (digits / 10, power + 1)
            };
        }
        while power > 0 {
            digits = digits.checked_mul(10).ok_or_else(too_large)?;
            power -= 1;
        }
        Ok(Self {
            digits,
            power,
            ..self
        })
    }

    /// Returns the integral part, or the number rounded to `places` after the point.
    fn value(&self, places: Option<u32>) -> anyhow::Result<Value> {
        let behind = self.power.unsigned_abs();
        let kept = places.unwrap_or(0).min(behind);
        let by = 10u128.checked_pow(behind - kept);
        let digits = match by {
            // Rounds half up.
            Some(by) if places.is_some() => {
                let rest = self.digits % by;
                self.digits / by + u128::from(by > 1 && rest >= by - rest)
            }
            Some(by) => self.digits / by,
            None => 0,
        };
        let mut text = digits.to_string();
        if kept > 0 {
            let kept = usize::try_from(kept).unwrap_or(0);
            let text_long = format!("{text:0>width$}", width = kept + 1);
            let (whole, fraction) = text_long.split_at(text_long.len() - kept);
            text = format!("{whole}.{fraction}");
        }
        let sign = if self.negative { "-" } else { "" };
        Value::from_json_str(&format!("{sign}{text}"))
    }
}

/// Splits a text into number and unit. The number ends before the first character other than a
/// digit, point or exponent.
fn parts(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let at = |place: usize| bytes.get(place).copied().unwrap_or(b' ');
    let mut end = 0;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'0'..=b'9' | b'.' | b'+' | b'-' => end += 1,
            b'e' | b'E' if at(end + 1).is_ascii_digit() => end += 1,
            b'e' | b'E' if matches!(at(end + 1), b'+' | b'-') => end += 2,
            _ => break,
        }
    }
    text.split_at(end)
}

/// Returns a power of 1,000 or 1,024 by its letter in lower case.
fn factor(letter: char, binary: bool) -> Option<u64> {
    let power = "kmgtpe".find(letter)?;
    let power = u32::try_from(power).ok()? + 1;
    Some(if binary { 1024u64 } else { 1000 }.pow(power))
}

pub(super) fn parse(arguments: &[Value]) -> anyhow::Result<Value> {
    const NAME: &str = "units.parse";
    let Some(text) = text(arguments, 0) else {
        return Ok(Value::Undefined);
    };
    let bare = text.replace('"', "");
    let (number, unit) = parts(&bare);
    let mut chars = unit.chars();
    let rest = chars.next().map(|_| chars.as_str().to_lowercase());
    let factor = match (unit.chars().next(), rest.as_deref()) {
        // Thousandths: three more places after the point.
        (Some('m'), Some("")) => Some((1, 3)),
        (None, _) => Some((1, 0)),
        (Some(letter), Some("")) if "kKMgGtTpPeE".contains(letter) => {
            factor(letter.to_ascii_lowercase(), false).map(|factor| (factor, 0))
        }
        (Some(letter), Some("i")) => {
            factor(letter.to_ascii_lowercase(), true).map(|factor| (factor, 0))
        }
        _ => None,
    };
    let (Some((factor, thousandths)), false) = (factor, bare.contains(' ')) else {
        return Ok(Value::Undefined);
    };
    match Decimal::parse(NAME, number)? {
        Some(mut decimal) => {
            decimal.power = decimal.power.saturating_sub(thousandths);
            decimal.times(NAME, factor)?.value(Some(10))
        }
        None => Ok(Value::Undefined),
    }
}

pub(super) fn parse_bytes(arguments: &[Value]) -> anyhow::Result<Value> {
    const NAME: &str = "units.parse_bytes";
    let Some(text) = text(arguments, 0) else {
        return Ok(Value::Undefined);
    };
    let bare = text.to_lowercase().replace('"', "");
    let (number, unit) = parts(&bare);
    let mut chars = unit.chars();
    let factor = match (chars.next(), chars.as_str()) {
        (None, _) => Some(1),
        (Some(letter), "" | "b") => factor(letter, false),
        (Some(letter), "i" | "ib") => factor(letter, true),
        _ => None,
    };
    let (Some(factor), false) = (factor, bare.contains(' ')) else {
        return Ok(Value::Undefined);
    };
    match Decimal::parse(NAME, number)? {
        Some(decimal) => decimal.times(NAME, factor)?.value(None),
        None => Ok(Value::Undefined),
    }
}

pub(super) fn to_number(arguments: &[Value]) -> anyhow::Result<Value> {
    let text = match arguments.first() {
        Some(Value::Null) => return Ok(Value::from(0u64)),
        Some(Value::Bool(value)) => return Ok(Value::from(u64::from(*value))),
        Some(number @ Value::Number(_)) => return Ok(number.clone()),
        Some(Value::String(text)) => text,
        _ => return Ok(Value::Undefined),
    };
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = unsigned.splitn(2, ['e', 'E']);
    let mantissa = parts.next().unwrap_or("");
    let exponent = parts.next();
    let are_digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let bare = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    let is_decimal = are_digits(whole)
        && are_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && bare.is_none_or(|digits| !digits.is_empty() && are_digits(digits));
    if !is_decimal {
        anyhow::ensure!(
            !unsigned.contains('_'),
            "to_number: a number with underscores is not supported"
        );
        return Ok(Value::Undefined);
    }
    let exponent_digits = bare.map_or(0, |digits| digits.trim_start_matches('0').len());
    if exponent_digits > MAX_EXPONENT_DIGITS || mantissa.len() > 1000 {
        let small = exponent.is_some_and(|exponent| exponent.starts_with('-'));
        anyhow::ensure!(!small, "to_number: the number is too small");
        return Ok(Value::Undefined);
    }
    let sign = if text.starts_with('-') { "-" } else { "" };
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction = if fraction.is_empty() {
        String::new()
    } else {
        format!(".{fraction}")
    };
    let exponent = exponent.map_or_else(String::new, |exponent| format!("e{exponent}"));
    let text = format!("{sign}{whole}{fraction}{exponent}");
    let is_finite = text.parse::<f64>().is_ok_and(f64::is_finite);
    // Values beyond floating point are not numbers, as in OPA.
    if !is_finite {
        return Ok(Value::Undefined);
    }
    Value::from_json_str(&text).map_err(|_| anyhow::anyhow!("to_number: the number is too large"))
}
