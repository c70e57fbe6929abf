//! Go's time layouts: parses the elements of `Mon Jan 2 15:04:05 MST 2006`.

/// An element of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Year,
    LongYear,
    Month,
    LongMonth,
    /// A number of two digits, or of as many as needed.
    NumMonth {
        fixed: bool,
    },
    WeekDay,
    LongWeekDay,
    Day(Pad),
    YearDay(Pad),
    Hour,
    Hour12 {
        fixed: bool,
    },
    Minute {
        fixed: bool,
    },
    Second {
        fixed: bool,
    },
    /// Digits after a separator, without trailing zeros if `trimmed`.
    Fraction {
        separator: char,
        digits: usize,
        trimmed: bool,
    },
    HalfDay {
        upper: bool,
    },
    ZoneName,
    /// `-07`, `-0700`, `-07:00`, `-070000`, `-07:00:00`, or the same with `Z` for UTC.
    Offset {
        z: bool,
        colons: bool,
        minutes: bool,
        seconds: bool,
    },
}

/// The padding of a short number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pad {
    Nothing,
    Space,
    Zero,
}

const fn offset(z: bool, colons: bool, minutes: bool, seconds: bool) -> Part {
    Part::Offset {
        z,
        colons,
        minutes,
        seconds,
    }
}

/// The elements by their spelling. The first match applies.
const PARTS: &[(&str, Part)] = &[
    ("January", Part::LongMonth),
    ("Monday", Part::LongWeekDay),
    ("MST", Part::ZoneName),
    ("002", Part::YearDay(Pad::Zero)),
    ("01", Part::NumMonth { fixed: true }),
    ("02", Part::Day(Pad::Zero)),
    ("03", Part::Hour12 { fixed: true }),
    ("04", Part::Minute { fixed: true }),
    ("05", Part::Second { fixed: true }),
    ("06", Part::Year),
    ("15", Part::Hour),
    ("1", Part::NumMonth { fixed: false }),
    ("2006", Part::LongYear),
    ("2", Part::Day(Pad::Nothing)),
    ("_2", Part::Day(Pad::Space)),
    ("__2", Part::YearDay(Pad::Space)),
    ("3", Part::Hour12 { fixed: false }),
    ("4", Part::Minute { fixed: false }),
    ("5", Part::Second { fixed: false }),
    ("PM", Part::HalfDay { upper: true }),
    ("pm", Part::HalfDay { upper: false }),
    ("-070000", offset(false, false, true, true)),
    ("-07:00:00", offset(false, true, true, true)),
    ("-0700", offset(false, false, true, false)),
    ("-07:00", offset(false, true, true, false)),
    ("-07", offset(false, false, false, false)),
    ("Z070000", offset(true, false, true, true)),
    ("Z07:00:00", offset(true, true, true, true)),
    ("Z0700", offset(true, false, true, false)),
    ("Z07:00", offset(true, true, true, false)),
    ("Z07", offset(true, false, false, false)),
];

/// Splits a layout into the text before the first element, the element, and the rest.
pub(super) fn next(layout: &str) -> (&str, Option<Part>, &str) {
    for (at, _) in layout.char_indices() {
        let (before, rest) = layout.split_at(at);
        if rest.starts_with("_2006") {
            // The underscore is literal, and the year after it is an element.
            let (before, rest) = layout.split_at(at + 1);
            return (before, Some(Part::LongYear), rest.get(4..).unwrap_or(""));
        }
        let known = PARTS
            .iter()
            .find_map(|(text, part)| Some((*part, rest.strip_prefix(text)?)))
            .or_else(|| short_name(rest))
            .or_else(|| fraction(rest));
        if let Some((part, behind)) = known {
            return (before, Some(part), behind);
        }
    }
    (layout, None, "")
}

/// Parses `Jan` or `Mon`, unless the word continues.
fn short_name(text: &str) -> Option<(Part, &str)> {
    [("Jan", Part::Month), ("Mon", Part::WeekDay)]
        .into_iter()
        .find_map(|(name, part)| Some((part, text.strip_prefix(name)?)))
        .filter(|(_, behind)| !behind.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// Parses `.000` or `,999` if no other digit follows.
fn fraction(text: &str) -> Option<(Part, &str)> {
    let separator = text.chars().next().filter(|c| matches!(c, '.' | ','))?;
    let digits = text.get(1..)?;
    let digit = digits.chars().next().filter(|c| matches!(c, '0' | '9'))?;
    let behind = digits.trim_start_matches(digit);
    let part = Part::Fraction {
        separator,
        digits: digits.len() - behind.len(),
        trimmed: digit == '9',
    };
    (!behind.starts_with(|c: char| c.is_ascii_digit())).then_some((part, behind))
}

pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Days of the week from Sunday.
pub(super) const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Returns the layout with a name in Go.
pub(super) fn named(layout: &str) -> &str {
    match layout {
        "ANSIC" => "Mon Jan _2 15:04:05 2006",
        "UnixDate" => "Mon Jan _2 15:04:05 MST 2006",
        "RubyDate" => "Mon Jan 02 15:04:05 -0700 2006",
        "RFC822" => "02 Jan 06 15:04 MST",
        "RFC822Z" => "02 Jan 06 15:04 -0700",
        "RFC850" => "Monday, 02-Jan-06 15:04:05 MST",
        "RFC1123" => "Mon, 02 Jan 2006 15:04:05 MST",
        "RFC1123Z" => "Mon, 02 Jan 2006 15:04:05 -0700",
        "RFC3339" => RFC3339,
        "RFC3339Nano" => RFC3339_NANO,
        other => other,
    }
}

pub(super) const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
pub(super) const RFC3339_NANO: &str = "2006-01-02T15:04:05.999999999Z07:00";
