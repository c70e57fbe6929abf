//! `time.*` except the clock: times in nanoseconds since 1970, and time zones by name.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use regorus::Value;

use super::go_duration;
use super::go_layout::{RFC3339, RFC3339_NANO, named};
use super::go_time::{self, Local};
use super::{bounded, text};

/// A time in a zone, with the layout passed with it.
struct Moment<'a> {
    nanoseconds: i64,
    zone: TimeZone,
    layout: Option<&'a str>,
}

/// Returns the zone of a name, which must be written as in the database.
fn zone(name: &str) -> Option<TimeZone> {
    if matches!(name, "" | "UTC" | "Local") {
        return Some(TimeZone::UTC);
    }
    let zone = TimeZoneDatabase::bundled().get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

impl<'a> Moment<'a> {
    fn of(argument: Option<&'a Value>) -> Option<Self> {
        let nanoseconds = |value: &Value| value.as_i64().ok();
        match argument? {
            Value::Array(array) => {
                let zone = match array.get(1) {
                    Some(Value::String(name)) => zone(name)?,
                    Some(_) => return None,
                    None => TimeZone::UTC,
                };
                let layout = match array.get(2) {
                    Some(Value::String(layout)) => Some(&**layout),
                    Some(_) => return None,
                    None => None,
                };
                Some(Self {
                    nanoseconds: nanoseconds(array.first()?)?,
                    zone,
                    layout,
                })
            }
            number @ Value::Number(_) => Some(Self {
                nanoseconds: nanoseconds(number)?,
                zone: TimeZone::UTC,
                layout: None,
            }),
            _ => None,
        }
    }

    fn timestamp(&self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(self.nanoseconds.into()).ok()
    }

    fn clock(&self) -> Option<DateTime> {
        Some(self.zone.to_datetime(self.timestamp()?))
    }
}

fn numbers(numbers: impl IntoIterator<Item = i64>) -> Value {
    Value::from(numbers.into_iter().map(Value::from).collect::<Vec<_>>())
}

fn of_clock(arguments: &[Value], make: impl FnOnce(DateTime) -> Value) -> anyhow::Result<Value> {
    let clock = Moment::of(arguments.first()).and_then(|moment| moment.clock());
    Ok(clock.map_or(Value::Undefined, make))
}

pub(super) fn clock(arguments: &[Value]) -> anyhow::Result<Value> {
    of_clock(arguments, |clock| {
        numbers([clock.hour(), clock.minute(), clock.second()].map(i64::from))
    })
}

pub(super) fn date(arguments: &[Value]) -> anyhow::Result<Value> {
    of_clock(arguments, |clock| {
        numbers([
            clock.year().into(),
            clock.month().into(),
            clock.day().into(),
        ])
    })
}

pub(super) fn weekday(arguments: &[Value]) -> anyhow::Result<Value> {
    of_clock(arguments, |clock| {
        let local = Local {
            clock,
            offset: 0,
            abbreviation: "",
        };
        Value::from(go_time::format(&local, "Monday"))
    })
}

pub(super) fn format(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some((moment, timestamp)) = Moment::of(arguments.first())
        .and_then(|moment| moment.timestamp().map(|timestamp| (moment, timestamp)))
    else {
        return Ok(Value::Undefined);
    };
    let info = moment.zone.to_offset_info(timestamp);
    let layout = match moment.layout {
        None | Some("") => RFC3339_NANO,
        Some(layout) => named(layout),
    };
    anyhow::ensure!(
        layout.len() <= super::MAX_TEXT / 16,
        "time.format: the layout is too long"
    );
    let local = Local {
        clock: moment.zone.to_datetime(timestamp),
        offset: info.offset().seconds(),
        abbreviation: info.abbreviation(),
    };
    bounded(go_time::format(&local, layout))
}

pub(super) fn parse(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = text(arguments, 0)
        .zip(text(arguments, 1))
        .and_then(|(layout, text)| go_time::parse(named(layout), text));
    Ok(parsed.map_or(Value::Undefined, Value::from))
}

pub(super) fn parse_rfc3339(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = text(arguments, 0).and_then(|text| go_time::parse(RFC3339, text));
    Ok(parsed.map_or(Value::Undefined, Value::from))
}

pub(super) fn parse_duration(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = text(arguments, 0).and_then(go_duration::parse);
    Ok(parsed.map_or(Value::Undefined, Value::from))
}

/// Adds years, months and days. Overflow is normalized as in Go's `AddDate`: a year after February
/// 29 is March 1.
pub(super) fn add_date(arguments: &[Value]) -> anyhow::Result<Value> {
    let number = |place: usize| arguments.get(place)?.as_i64().ok();
    let later = Moment::of(arguments.first())
        .zip(number(1))
        .zip(number(2))
        .zip(number(3))
        .and_then(|(((moment, years), months), days)| later(&moment, years, months, days));
    Ok(later.map_or(Value::Undefined, Value::from))
}

fn later(moment: &Moment<'_>, years: i64, months: i64, days: i64) -> Option<i64> {
    let clock = moment.clock()?;
    let month = i64::from(clock.month())
        .checked_add(months)?
        .checked_sub(1)?;
    let year = i64::from(clock.year())
        .checked_add(years)?
        .checked_add(month.div_euclid(12))?;
    let first = Date::new(
        i16::try_from(year).ok()?,
        i8::try_from(month.rem_euclid(12)).ok()? + 1,
        1,
    );
    let days = i64::from(clock.day()).checked_sub(1)?.checked_add(days)?;
    let date = first
        .ok()?
        .checked_add(jiff::Span::new().try_days(days).ok()?)
        .ok()?;
    // In a gap Go keeps the earlier offset; in an overlap it takes the first one.
    let later = moment
        .zone
        .to_ambiguous_zoned(DateTime::from_parts(date, clock.time()))
        .compatible()
        .ok()?;
    i64::try_from(later.timestamp().as_nanosecond()).ok()
}

/// Returns the years, months, days, hours, minutes and seconds between two times, in the zone of
/// the first.
pub(super) fn diff(arguments: &[Value]) -> anyhow::Result<Value> {
    let moments = Moment::of(arguments.first()).zip(Moment::of(arguments.get(1)));
    let between = moments.and_then(|(one, mut other)| {
        other.zone = one.zone.clone();
        if one.nanoseconds > other.nanoseconds {
            between(&other, &one)
        } else {
            between(&one, &other)
        }
    });
    Ok(between.map_or(Value::Undefined, numbers))
}

fn between(one: &Moment<'_>, other: &Moment<'_>) -> Option<[i64; 6]> {
    let (one, other) = (one.clock()?, other.clock()?);
    let parts = |clock: DateTime| {
        [
            clock.year().into(),
            clock.month().into(),
            clock.day().into(),
            clock.hour().into(),
            clock.minute().into(),
            clock.second().into(),
        ]
    };
    let [y1, mo1, d1, h1, mi1, s1]: [i64; 6] = parts(one);
    let [y2, mo2, d2, h2, mi2, s2]: [i64; 6] = parts(other);
    let borrow = |value: i64, base: i64| {
        if value < 0 {
            (value + base, 1)
        } else {
            (value, 0)
        }
    };
    let (second, carry) = borrow(s2 - s1, 60);
    let (minute, carry) = borrow(mi2 - mi1 - carry, 60);
    let (hour, carry) = borrow(h2 - h1 - carry, 24);
    let (day, carry) = borrow(d2 - d1 - carry, one.date().days_in_month().into());
    let (month, carry) = borrow(mo2 - mo1 - carry, 12);
    Some([y2 - y1 - carry, month, day, hour, minute, second])
}
