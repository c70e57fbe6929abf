//! Formatting and parsing of times as by Go's `Format` and `Parse`.

use std::fmt::Write as _;

use jiff::civil::{Date, DateTime, Time};

use super::go_layout::{self, DAYS, MONTHS, Pad, Part};

/// A local time with its offset from UTC.
pub(super) struct Local<'a> {
    pub(super) clock: DateTime,
    /// Offset in seconds east of UTC.
    pub(super) offset: i32,
    /// Abbreviation of the zone, such as `CET`.
    pub(super) abbreviation: &'a str,
}

fn name<'a>(names: &[&'a str], place: i8) -> &'a str {
    usize::try_from(place)
        .ok()
        .and_then(|place| names.get(place))
        .copied()
        .unwrap_or("")
}

/// Formats a time by a layout.
pub(super) fn format(time: &Local<'_>, layout: &str) -> String {
    let (mut out, mut rest) = (String::new(), layout);
    loop {
        let (before, part, behind) = go_layout::next(rest);
        out.push_str(before);
        let Some(part) = part else { return out };
        write_part(time, part, &mut out);
        rest = behind;
    }
}

fn write_part(time: &Local<'_>, part: Part, out: &mut String) {
    let clock = &time.clock;
    let short = |name: &str, out: &mut String| out.push_str(name.get(..3).unwrap_or(name));
    let month = name(&MONTHS, clock.month() - 1);
    let day = name(&DAYS, clock.weekday().to_sunday_zero_offset());
    let hour12 = match clock.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    let _ = match part {
        Part::Year => write!(out, "{:02}", clock.year().rem_euclid(100)),
        Part::LongYear => write!(out, "{:04}", clock.year()),
        Part::Month => {
            short(month, out);
            Ok(())
        }
        Part::LongMonth => write!(out, "{month}"),
        Part::NumMonth { fixed } => number(i16::from(clock.month()), fixed, out),
        Part::WeekDay => {
            short(day, out);
            Ok(())
        }
        Part::LongWeekDay => write!(out, "{day}"),
        Part::Day(Pad::Nothing) => write!(out, "{}", clock.day()),
        Part::Day(Pad::Space) => write!(out, "{:2}", clock.day()),
        Part::Day(Pad::Zero) => write!(out, "{:02}", clock.day()),
        Part::YearDay(Pad::Space) => write!(out, "{:3}", clock.day_of_year()),
        Part::YearDay(_) => write!(out, "{:03}", clock.day_of_year()),
        Part::Hour => write!(out, "{:02}", clock.hour()),
        Part::Hour12 { fixed } => number(i16::from(hour12), fixed, out),
        Part::Minute { fixed } => number(i16::from(clock.minute()), fixed, out),
        Part::Second { fixed } => number(i16::from(clock.second()), fixed, out),
        Part::Fraction {
            separator,
            digits,
            trimmed,
        } => {
            fraction(clock.subsec_nanosecond(), separator, digits, trimmed, out);
            Ok(())
        }
        Part::HalfDay { upper } => {
            let half = match (clock.hour() >= 12, upper) {
                (true, true) => "PM",
                (true, false) => "pm",
                (false, true) => "AM",
                (false, false) => "am",
            };
            write!(out, "{half}")
        }
        Part::ZoneName => write!(out, "{}", time.abbreviation),
        Part::Offset { z: true, .. } if time.offset == 0 => write!(out, "Z"),
        Part::Offset {
            colons,
            minutes,
            seconds,
            ..
        } => offset(time.offset, colons, minutes, seconds, out),
    };
}

fn number(number: i16, fixed: bool, out: &mut String) -> std::fmt::Result {
    if fixed {
        write!(out, "{number:02}")
    } else {
        write!(out, "{number}")
    }
}

fn fraction(nanoseconds: i32, separator: char, digits: usize, trimmed: bool, out: &mut String) {
    if trimmed && nanoseconds == 0 {
        return;
    }
    let all = format!("{nanoseconds:09}");
    let shown = all.get(..digits.min(9)).unwrap_or(&all);
    let shown = if trimmed {
        shown.trim_end_matches('0')
    } else {
        shown
    };
    if !shown.is_empty() {
        out.push(separator);
        out.push_str(shown);
    }
}

fn offset(
    of: i32,
    colons: bool,
    minutes: bool,
    seconds: bool,
    out: &mut String,
) -> std::fmt::Result {
    // Go derives the sign from the minutes.
    let sign = if of / 60 < 0 { '-' } else { '+' };
    let colon = if colons { ":" } else { "" };
    let of = of.unsigned_abs();
    write!(out, "{sign}{:02}", of / 3600)?;
    if minutes {
        write!(out, "{colon}{:02}", of / 60 % 60)?;
    }
    if seconds {
        write!(out, "{colon}{:02}", of % 60)?;
    }
    Ok(())
}

/// The elements of a time parsed so far.
#[derive(Default)]
struct Read {
    year: i16,
    month: Option<i8>,
    day: Option<i8>,
    year_day: Option<i16>,
    hour: i8,
    minute: i8,
    second: i8,
    nanosecond: i32,
    /// True after noon, if specified.
    afternoon: Option<bool>,
    /// Offset in seconds east of UTC.
    offset: i64,
}

/// Parses a time in a layout, as nanoseconds since 1970. `None` if the text is invalid, or the time
/// out of range.
pub(super) fn parse(layout: &str, text: &str) -> Option<i64> {
    let mut read = Read::default();
    let mut reader = Reader {
        rest: text.as_bytes(),
    };
    let mut rest = layout;
    loop {
        let (before, part, behind) = go_layout::next(rest);
        reader.skip(before.as_bytes())?;
        let Some(part) = part else { break };
        rest = behind;
        reader.part(part, rest, &mut read)?;
    }
    if !reader.rest.is_empty() {
        return None;
    }
    let hour = match read.afternoon {
        Some(true) if read.hour < 12 => read.hour + 12,
        Some(false) if read.hour == 12 => 0,
        _ => read.hour,
    };
    let date = match read.year_day {
        Some(day) => {
            let first = Date::new(read.year, 1, 1).ok()?;
            let date = first.with().day_of_year(day).build().ok()?;
            let fits = read.month.is_none_or(|month| month == date.month())
                && read.day.is_none_or(|day| day == date.day());
            fits.then_some(date)?
        }
        None => Date::new(read.year, read.month.unwrap_or(1), read.day.unwrap_or(1)).ok()?,
    };
    let time = Time::new(hour, read.minute, read.second, read.nanosecond).ok()?;
    let utc = DateTime::from_parts(date, time);
    // Computed manually, since a local time near the limits may be out of range by its offset.
    let days = i128::from(
        utc.date()
            .duration_since(Date::constant(1970, 1, 1))
            .as_hours()
            / 24,
    );
    let seconds = days * 86_400
        + i128::from(hour) * 3600
        + i128::from(read.minute) * 60
        + i128::from(read.second)
        - i128::from(read.offset);
    i64::try_from(seconds * 1_000_000_000 + i128::from(read.nanosecond)).ok()
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// Skips the text between parts. Runs of spaces match runs of any other length.
    fn skip(&mut self, mut before: &[u8]) -> Option<()> {
        let spaces = |text: &[u8]| text.iter().take_while(|byte| **byte == b' ').count();
        while let Some(byte) = before.first() {
            if *byte == b' ' {
                if self.rest.first().is_some_and(|byte| *byte != b' ') {
                    return None;
                }
                before = before.get(spaces(before)..)?;
                self.take(spaces(self.rest))?;
            } else {
                (self.take(1)? == [*byte]).then_some(())?;
                before = before.get(1..)?;
            }
        }
        Some(())
    }

    fn digits(&self, from: usize) -> usize {
        let rest = self.rest.get(from..).unwrap_or_default();
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    }

    /// Parses a number of at most `most` digits, or of exactly that many if `fixed`.
    fn number(&mut self, most: usize, fixed: bool) -> Option<i16> {
        let count = self.digits(0).min(most);
        if count == 0 || (fixed && count != most) {
            return None;
        }
        std::str::from_utf8(self.take(count)?).ok()?.parse().ok()
    }

    fn below(&mut self, fixed: bool, end: i16) -> Option<i8> {
        let number = self.number(2, fixed)?;
        (number < end).then(|| i8::try_from(number).ok()).flatten()
    }

    /// Parses a name and returns its index; `length` letters of it are significant.
    fn name(&mut self, names: &[&str], length: usize) -> Option<i8> {
        let place = names.iter().position(|name| {
            let name = name.get(..length.min(name.len())).unwrap_or(name);
            let start = self.rest.get(..name.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        })?;
        self.take(names.get(place)?.len().min(length))?;
        i8::try_from(place).ok()
    }

    fn part(&mut self, part: Part, behind: &str, read: &mut Read) -> Option<()> {
        match part {
            Part::Year => {
                let year = self.number(2, true)?;
                read.year = year + if year >= 69 { 1900 } else { 2000 };
            }
            Part::LongYear => read.year = self.number(4, true)?,
            Part::Month => read.month = Some(self.name(&MONTHS, 3)? + 1),
            Part::LongMonth => read.month = Some(self.name(&MONTHS, usize::MAX)? + 1),
            Part::NumMonth { fixed } => {
                read.month = self.below(fixed, 13).filter(|month| *month > 0);
                read.month?;
            }
            Part::WeekDay => {
                self.name(&DAYS, 3)?;
            }
            Part::LongWeekDay => {
                self.name(&DAYS, usize::MAX)?;
            }
            Part::Day(pad) => {
                self.spaces(pad, 1);
                read.day = Some(self.below(pad == Pad::Zero, 100)?);
            }
            Part::YearDay(pad) => {
                self.spaces(pad, 2);
                read.year_day = Some(self.number(3, pad == Pad::Zero)?);
            }
            Part::Hour => read.hour = self.below(false, 24)?,
            Part::Hour12 { fixed } => read.hour = self.below(fixed, 13)?,
            Part::Minute { fixed } => read.minute = self.below(fixed, 60)?,
            Part::Second { fixed } => {
                read.second = self.below(fixed, 60)?;
                let follows = matches!(go_layout::next(behind).1, Some(Part::Fraction { .. }));
                if !follows && self.has_fraction() {
                    read.nanosecond = self.fraction(self.digits(1))?;
                }
            }
            Part::Fraction {
                digits,
                trimmed: false,
                ..
            } => {
                (self.digits(1) >= digits).then_some(())?;
                read.nanosecond = self.fraction(digits)?;
            }
            Part::Fraction { .. } if !self.has_fraction() => {}
            Part::Fraction { .. } => read.nanosecond = self.fraction(self.digits(1))?,
            Part::HalfDay { upper } => {
                read.afternoon = Some(match (self.take(2)?, upper) {
                    (b"PM", true) | (b"pm", false) => true,
                    (b"AM", true) | (b"am", false) => false,
                    _ => return None,
                });
            }
            Part::ZoneName => read.offset = self.zone()?,
            Part::Offset { z: true, .. } if self.rest.first() == Some(&b'Z') => {
                self.take(1)?;
            }
            Part::Offset {
                colons,
                minutes,
                seconds,
                ..
            } => read.offset = self.offset(colons, minutes, seconds)?,
        }
        Some(())
    }

    fn spaces(&mut self, pad: Pad, most: usize) {
        for _ in 0..most {
            if pad == Pad::Space && self.rest.first() == Some(&b' ') {
                self.take(1);
            }
        }
    }

    fn has_fraction(&self) -> bool {
        matches!(self.rest.first(), Some(b'.' | b',')) && self.digits(1) > 0
    }

    /// Parses a separator and digits, nine of which are significant.
    fn fraction(&mut self, digits: usize) -> Option<i32> {
        let taken = self.take(1 + digits)?;
        if !matches!(taken.first(), Some(b'.' | b',')) {
            return None;
        }
        let digits = std::str::from_utf8(taken.get(1..)?).ok()?;
        format!("{digits:0<9}").get(..9)?.parse().ok()
    }

    fn offset(&mut self, colons: bool, minutes: bool, seconds: bool) -> Option<i64> {
        let sign = match self.take(1)? {
            b"+" => 1,
            b"-" => -1,
            _ => return None,
        };
        let mut total = 0;
        let parts = [(true, 24, 3600), (minutes, 60, 60), (seconds, 60, 1)];
        for (place, (_, most, seconds)) in parts.into_iter().filter(|part| part.0).enumerate() {
            if place > 0 && colons {
                (self.take(1)? == b":").then_some(())?;
            }
            let number = self.number(2, true)?;
            (number <= most).then_some(())?;
            total += i64::from(number) * seconds;
        }
        Some(sign * total)
    }

    /// Parses a zone's abbreviation. Only UTC's is known; others also mean UTC, as in Go on a
    /// machine whose zone is UTC.
    fn zone(&mut self) -> Option<i64> {
        if self.rest.starts_with(b"UTC") {
            self.take(3)?;
            return Some(0);
        }
        if self.rest.starts_with(b"ChST") || self.rest.starts_with(b"MeST") {
            self.take(4)?;
            return Some(0);
        }
        if self.rest.starts_with(b"GMT") {
            self.take(3)?;
            // Go reads the hours after it, and does not change the time.
            let _ = self.signed_hours();
            return Some(0);
        }
        if matches!(self.rest.first(), Some(b'+' | b'-')) {
            self.signed_hours()?;
            return Some(0);
        }
        let letters = self
            .rest
            .iter()
            .take(6)
            .take_while(|byte| byte.is_ascii_uppercase())
            .count();
        let known = match letters {
            3 => true,
            4 => self.rest.get(3) == Some(&b'T') || self.rest.starts_with(b"WITA"),
            5 => self.rest.get(4) == Some(&b'T'),
            _ => false,
        };
        known.then(|| self.take(letters))??;
        Some(0)
    }

    /// Skips `+3`.
    fn signed_hours(&mut self) -> Option<()> {
        if !matches!(self.rest.first()?, b'+' | b'-') {
            return None;
        }
        let count = self.digits(1);
        let digits = std::str::from_utf8(self.rest.get(1..1 + count)?).ok()?;
        digits.parse::<i64>().ok().filter(|hours| *hours <= 23)?;
        self.take(1 + count).map(|_| ())
    }
}
