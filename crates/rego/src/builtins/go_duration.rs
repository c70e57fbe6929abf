//! Durations in Go's format (`1h30m`), extended by OPA's days, weeks and years.

/// Parses a duration into nanoseconds; `None` if it is invalid.
pub(super) fn parse(text: &str) -> Option<i64> {
    let extended = text.contains(['d', 'w', 'y']);
    let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
        Some(unsigned) => (text.starts_with('-'), unsigned),
        None => (false, text),
    };
    if unsigned == "0" && !extended {
        return Some(0);
    }
    if unsigned.is_empty() {
        return None;
    }
    let (mut rest, mut total) = (unsigned, 0u64);
    while !rest.is_empty() {
        let (number, behind) = split(rest, |c| !c.is_ascii_digit() && c != '.');
        let (unit, behind) = if extended {
            extended_unit(behind)?
        } else {
            split(behind, |c| c.is_ascii_digit() || c == '.')
        };
        rest = behind;
        let nanoseconds = match unit {
            "d" | "w" | "y" => {
                let hours = match unit {
                    "d" => 24.0,
                    "w" => 168.0,
                    _ => 8760.0,
                };
                // Converted to hours, formatted and parsed again, as OPA does.
                let hours = number.parse::<f64>().ok()? * hours;
                amount(&format!("{hours}"), HOUR)?
            }
            unit => amount(number, nanoseconds(unit)?)?,
        };
        total = total
            .checked_add(nanoseconds)
            .filter(|total| *total <= MAX_NANOSECONDS)?;
    }
    if negative {
        0i64.checked_sub_unsigned(total)
    } else {
        i64::try_from(total).ok()
    }
}

const HOUR: u64 = 3_600_000_000_000;
const MAX_NANOSECONDS: u64 = 1 << 63;

fn nanoseconds(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => HOUR,
        _ => return None,
    })
}

fn split(text: &str, end: impl FnMut(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}

/// Parses a unit of one or two letters.
fn extended_unit(text: &str) -> Option<(&str, &str)> {
    let length = ["ms", "us", "\u{b5}s", "ns"]
        .into_iter()
        .find(|unit| text.starts_with(unit))
        .map_or(1, str::len);
    let (unit, rest) = text.split_at_checked(length)?;
    let known = length > 1 || unit.starts_with(|c: char| c.is_ascii_lowercase());
    known.then_some((unit, rest))
}

/// Parses a decimal number of a unit.
fn amount(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let whole = whole
        .checked_mul(unit)
        .filter(|whole| *whole <= MAX_NANOSECONDS)?;
    whole
        .checked_add(part(fraction, unit))
        .filter(|all| *all <= MAX_NANOSECONDS)
}

/// Returns the value of a fraction of a unit, in floating point as Go computes it.
fn part(digits: &str, unit: u64) -> u64 {
    let digits = digits.get(..18).unwrap_or(digits);
    let (Ok(number), Ok(scale)) = (
        digits.parse::<f64>(),
        format!("1e{}", digits.len()).parse::<f64>(),
    ) else {
        return 0;
    };
    let whole = format!("{:.0}", (number * (unit_of(unit) / scale)).floor());
    whole.parse().unwrap_or(0)
}

/// Returns the nanoseconds of a unit, which floating point represents exactly.
fn unit_of(nanoseconds: u64) -> f64 {
    nanoseconds.to_string().parse().unwrap_or(0.0)
}
