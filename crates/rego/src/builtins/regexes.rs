//! `regex.*` and `re_match`, with patterns compiled once for each policy.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use regex::Regex;
use regorus::Value;

use super::{MAX_ELEMENTS, bounded, go_regex, text};

/// Patterns that are kept for a policy. Most policies have some, written into the text; where
/// they come with the input, old ones must go.
const KEPT: usize = 128;

/// A policy's compiled patterns; `None` for those that do not compile.
#[derive(Debug, Default)]
pub(super) struct Regexes(Mutex<HashMap<String, Option<Regex>>>);

impl Regexes {
    /// The pattern compiled, made from `text` by `make` if it isn't there.
    pub(super) fn get(&self, key: &str, make: impl FnOnce() -> Option<Regex>) -> Option<Regex> {
        if let Some(found) = self.lock().get(key) {
            return found.clone();
        }
        let made = make();
        let mut kept = self.lock();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key.to_owned(), made.clone());
        made
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Regex>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, arguments: &[Value], place: usize) -> Option<Regex> {
        let pattern = text(arguments, place)?;
        self.get(pattern, || go_regex::compile(pattern))
    }
}

/// How many are asked for: all where the number is negative.
fn limit(arguments: &[Value], place: usize) -> Option<usize> {
    let number = arguments.get(place)?.as_i64().ok()?;
    Some(
        usize::try_from(number)
            .unwrap_or(MAX_ELEMENTS)
            .min(MAX_ELEMENTS),
    )
}

fn list(values: impl Iterator<Item = Value>) -> Value {
    Value::from(values.collect::<Vec<_>>())
}

pub(super) fn matches(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match (regexes.of(arguments, 0), text(arguments, 1)) {
        (Some(regex), Some(text)) => Value::from(regex.is_match(text)),
        _ => Value::Undefined,
    })
}

pub(super) fn is_valid(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(Value::from(regexes.of(arguments, 0).is_some()))
}

pub(super) fn split(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(regex), Some(text)) = (regexes.of(arguments, 0), text(arguments, 1)) else {
        return Ok(Value::Undefined);
    };
    // Go splits nowhere before the start and behind the end, where a pattern matches nothing.
    let (mut parts, mut start) = (Vec::new(), 0);
    for found in regex.find_iter(text).take(MAX_ELEMENTS) {
        if found.end() == 0 || (found.is_empty() && found.start() == text.len()) {
            continue;
        }
        parts.push(Value::from(text.get(start..found.start()).unwrap_or("")));
        start = found.end();
    }
    parts.push(Value::from(text.get(start..).unwrap_or("")));
    Ok(Value::from(parts))
}

pub(super) fn find(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let asked = (
        regexes.of(arguments, 0),
        text(arguments, 1),
        limit(arguments, 2),
    );
    let (Some(regex), Some(text), Some(limit)) = asked else {
        return Ok(Value::Undefined);
    };
    Ok(list(
        regex
            .find_iter(text)
            .take(limit)
            .map(|found| Value::from(found.as_str())),
    ))
}

pub(super) fn find_submatches(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let asked = (
        regexes.of(arguments, 0),
        text(arguments, 1),
        limit(arguments, 2),
    );
    let (Some(regex), Some(text), Some(limit)) = asked else {
        return Ok(Value::Undefined);
    };
    Ok(list(regex.captures_iter(text).take(limit).map(|found| {
        list(
            found
                .iter()
                .map(|group| Value::from(group.map_or("", |group| group.as_str()))),
        )
    })))
}

pub(super) fn replace(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let asked = (
        text(arguments, 0),
        regexes.of(arguments, 1),
        text(arguments, 2),
    );
    let (Some(text), Some(regex), Some(with)) = asked else {
        return Ok(Value::Undefined);
    };
    anyhow::ensure!(
        (text.len() + 1).saturating_mul(with.len() + 1) <= super::MAX_TEXT,
        "regex.replace may make more than {} bytes of text",
        super::MAX_TEXT
    );
    bounded(regex.replace_all(text, with).into_owned())
}
