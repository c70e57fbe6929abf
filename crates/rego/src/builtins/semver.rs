//! Semantic versions as OPA parses them, with or without a leading `v`.

use std::cmp::Ordering;

use regorus::Value;

use super::text;

struct Version<'a> {
    numbers: [i64; 3],
    pre_release: &'a str,
}

impl<'a> Version<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (text, metadata) = cut(text, '+');
        let (text, pre_release) = cut(text, '-');
        let no_leading_zero =
            |part: &str| !(part.len() > 1 && is_number(part) && part.starts_with('0'));
        let valid = metadata.is_none_or(are_identifiers)
            && pre_release
                .is_none_or(|text| are_identifiers(text) && text.split('.').all(no_leading_zero));
        let numbers: Option<Vec<i64>> = text
            .split('.')
            .map(|part| {
                let valid = is_number(part) && no_leading_zero(part);
                valid.then(|| part.parse().ok()).flatten()
            })
            .collect();
        Some(Self {
            numbers: <[i64; 3]>::try_from(numbers.filter(|_| valid)?).ok()?,
            pre_release: pre_release.unwrap_or(""),
        })
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| match (self.pre_release, other.pre_release) {
                (one, another) if one == another => Ordering::Equal,
                ("", _) => Ordering::Greater,
                (_, "") => Ordering::Less,
                (one, another) => pre_releases(one, another),
            })
    }
}

fn cut(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((text, behind)) => (text, Some(behind)),
        None => (text, None),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

fn are_identifiers(text: &str) -> bool {
    let is_identifier = |part: &str| {
        let mut bytes = part.bytes();
        !part.is_empty() && bytes.all(|byte| byte == b'-' || byte.is_ascii_alphanumeric())
    };
    text.split('.').all(is_identifier)
}

fn pre_releases(one: &str, other: &str) -> Ordering {
    let (mut ones, mut others) = (one.split('.'), other.split('.'));
    loop {
        let order = match (ones.next(), others.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(one), Some(other)) => match (is_number(one), is_number(other)) {
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                (false, false) => one.cmp(other),
                // Go stops at its largest number.
                (true, true) => {
                    let number = |text: &str| text.parse().unwrap_or(i64::MAX);
                    number(one).cmp(&number(other))
                }
            },
        };
        if order.is_ne() {
            return order;
        }
    }
}

pub(super) fn is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    let version = text(arguments, 0).and_then(Version::parse);
    Ok(Value::from(version.is_some()))
}

pub(super) fn compare(arguments: &[Value]) -> anyhow::Result<Value> {
    let version = |place| text(arguments, place).and_then(Version::parse);
    let order = version(0)
        .zip(version(1))
        .map(|(one, other)| match one.compare(&other) {
            Ordering::Less => -1i64,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        });
    Ok(order.map_or(Value::Undefined, Value::from))
}
