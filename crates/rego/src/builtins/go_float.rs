//! Fractions as decimal text, in the format of Go's `strconv`.

/// Maximum number of significant digits after the point of a 64-bit fraction; all further ones are
/// zeros.
const MAX_FRACTION_DIGITS: usize = 1100;

/// Formats a non-negative number by the verb `e`, `E`, `f`, `g` or `G`. Without a precision, the
/// result is the shortest text that parses to the same number.
pub(super) fn unsigned(verb: char, number: f64, precision: Option<usize>) -> String {
    match verb {
        'f' => match precision {
            Some(precision) => fixed(number, precision),
            None => format!("{number}"),
        },
        'e' | 'E' => scientific(verb, number, precision),
        _ => general(if verb == 'G' { 'E' } else { 'e' }, number, precision),
    }
}

fn fixed(number: f64, precision: usize) -> String {
    let exact = precision.min(MAX_FRACTION_DIGITS);
    let mut text = format!("{number:.exact$}");
    text.extend(std::iter::repeat_n('0', precision - exact));
    text
}

fn scientific(e: char, number: f64, precision: Option<usize>) -> String {
    let (digits, power) = parts(
        number,
        precision.map(|digits| digits.min(MAX_FRACTION_DIGITS)),
    );
    let zeros = precision.map_or(0, |precision| precision.saturating_sub(MAX_FRACTION_DIGITS));
    format!("{digits}{}{}", "0".repeat(zeros), exponent(e, power))
}

/// Returns the digits and the power of ten.
fn parts(number: f64, precision: Option<usize>) -> (String, i32) {
    let text = match precision {
        Some(precision) => format!("{number:.precision$e}"),
        None => format!("{number:e}"),
    };
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    (digits.to_owned(), power.parse().unwrap_or(0))
}

/// Formats an exponent with a sign and at least two digits.
fn exponent(e: char, power: i32) -> String {
    let sign = if power < 0 { '-' } else { '+' };
    format!("{e}{sign}{:02}", power.unsigned_abs())
}

/// Formats a number with an exponent only if it is very small, or large for its number of digits.
fn general(e: char, number: f64, precision: Option<usize>) -> String {
    let most = precision.map(|precision| precision.clamp(1, MAX_FRACTION_DIGITS));
    let (digits, power) = parts(number, most.map(|most| most - 1));
    let digits: String = digits.chars().filter(|c| *c != '.').collect();
    let digits = match digits.trim_end_matches('0') {
        "" => "0",
        digits => digits,
    };
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let bound = match most.and_then(|most| i32::try_from(most).ok()) {
        Some(most) if most > count && count > power => count,
        Some(most) => most,
        // The shortest representation.
        None => 6,
    };
    let (first, rest) = digits.split_at(1);
    if power < -4 || power >= bound {
        let point = if rest.is_empty() { "" } else { "." };
        return format!("{first}{point}{rest}{}", exponent(e, power));
    }
    match usize::try_from(power) {
        Ok(power) if digits.len() <= power + 1 => {
            let zeros = "0".repeat(power + 1 - digits.len());
            format!("{digits}{zeros}")
        }
        Ok(power) => {
            let (whole, fraction) = digits.split_at(power + 1);
            format!("{whole}.{fraction}")
        }
        Err(_) => {
            let zeros = usize::try_from(power.unsigned_abs()).unwrap_or(1) - 1;
            format!("0.{}{digits}", "0".repeat(zeros))
        }
    }
}

/// Adds a decimal point to a number without one and, for `g`, all digits of the precision.
pub(super) fn with_point(verb: char, text: &str, precision: Option<usize>) -> String {
    let end = text.find(['e', 'E']).unwrap_or(text.len());
    let (digits, exponent) = text.split_at(end);
    let mut out = digits.to_owned();
    let mut missing = match verb {
        'g' | 'G' => precision.unwrap_or(6),
        _ => 0,
    };
    let counted = digits
        .chars()
        .filter(char::is_ascii_digit)
        .skip_while(|digit| *digit == '0')
        .count();
    missing = missing.saturating_sub(counted);
    if !digits.contains('.') {
        if digits == "0" {
            missing = missing.saturating_sub(1);
        }
        out.push('.');
    }
    out.extend(std::iter::repeat_n('0', missing));
    out.push_str(exponent);
    out
}
