//! `regex.*` and `re_match`, with patterns compiled once for each policy.
//!
//! An invalid or oversized pattern is an error rather than undefined, since an undefined `deny`
//! would allow the request.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use regorus::Value;

use super::go_regex::{self, GoRegex, PatternError};
use super::{MAX_ELEMENTS, MAX_TEXT, go_template, text};

/// Maximum number of cached patterns for a policy. Most policies have a few literals; if patterns
/// come from the input, the oldest are evicted.
const MAX_CACHED_PATTERNS: usize = 128;
/// Maximum memory of a policy's cached patterns, in bytes.
const MAX_CACHED_BYTES: usize = 32 * 1024 * 1024;

/// A policy's compiled patterns, and the errors of invalid ones.
#[derive(Debug, Default)]
pub(crate) struct Regexes(Mutex<Cache>);

type Compiled = Result<Arc<GoRegex>, PatternError>;

#[derive(Debug, Default)]
struct Cache {
    compiled: HashMap<String, Compiled>,
    /// Total memory in bytes.
    size: usize,
}

impl Regexes {
    /// Returns the compiled pattern, created by `make` if it is not cached.
    pub(super) fn get(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<GoRegex, PatternError>,
    ) -> Compiled {
        if let Some(found) = self.lock().compiled.get(key) {
            return found.clone();
        }
        let made = make().map(Arc::new);
        let size = key.len() + made.as_ref().map_or(0, |regex| regex.kept_size());
        let mut kept = self.lock();
        if kept.compiled.len() >= MAX_CACHED_PATTERNS
            || kept.size.saturating_add(size) > MAX_CACHED_BYTES
        {
            *kept = Cache::default();
        }
        if kept.compiled.insert(key.to_owned(), made.clone()).is_none() {
            kept.size += size;
        }
        made
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Cache> {
        self.0.lock()
    }

    /// Returns a compiled regular expression.
    pub(super) fn regex(&self, pattern: &str) -> Compiled {
        self.get(pattern, || go_regex::compile(pattern))
    }

    /// Returns the regular expression in an argument; `None` if the argument is not a string.
    fn of(&self, arguments: &[Value], place: usize) -> Result<Option<Arc<GoRegex>>, PatternError> {
        text(arguments, place)
            .map(|pattern| self.regex(pattern))
            .transpose()
    }
}

/// Returns the requested number of results; a negative number means all.
fn limit(arguments: &[Value], place: usize) -> Option<usize> {
    let number = arguments.get(place)?.as_i64().ok()?;
    Some(usize::try_from(number).unwrap_or(usize::MAX))
}

/// Returns an array of at most `limit` elements; an error if there are too many.
fn list(values: impl Iterator<Item = Value>, limit: usize) -> anyhow::Result<Value> {
    let found: Vec<Value> = values.take(limit.min(MAX_ELEMENTS + 1)).collect();
    anyhow::ensure!(
        found.len() <= MAX_ELEMENTS,
        "regex: more than {MAX_ELEMENTS} matches"
    );
    Ok(Value::from(found))
}

pub(super) fn matches(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match (text(arguments, 1), regexes.of(arguments, 0)?) {
        (Some(text), Some(go)) => Value::from(go.looks_at(text)?.is_match(text)),
        _ => Value::Undefined,
    })
}

pub(super) fn is_valid(_: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(pattern) = text(arguments, 0) else {
        return Ok(Value::from(false));
    };
    match go_regex::translate(pattern) {
        Ok(_) => Ok(Value::from(true)),
        Err(PatternError::Invalid(..)) => Ok(Value::from(false)),
        // Go would accept the pattern.
        Err(error) => Err(error.into()),
    }
}

pub(super) fn split(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(go), Some(text)) = (regexes.of(arguments, 0)?, text(arguments, 1)) else {
        return Ok(Value::Undefined);
    };
    let regex = go.looks_at(text)?;
    if text.is_empty() && !regex.as_str().is_empty() {
        return Ok(Value::from(vec![Value::from("")]));
    }
    // Go does not split before the start or after the end if the pattern matches the empty text
    // there.
    let (mut parts, mut start, mut end) = (Vec::new(), 0, 0);
    for found in regex.find_iter(text) {
        end = found.start();
        if found.end() != 0 {
            parts.push(Value::from(text.get(start..end).unwrap_or("")));
        }
        start = found.end();
        anyhow::ensure!(
            parts.len() < MAX_ELEMENTS,
            "regex.split: more than {MAX_ELEMENTS} parts"
        );
    }
    if end != text.len() {
        parts.push(Value::from(text.get(start..).unwrap_or("")));
    }
    Ok(Value::from(parts))
}

pub(super) fn find(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = (
        regexes.of(arguments, 0)?,
        text(arguments, 1),
        limit(arguments, 2),
    );
    let (Some(go), Some(text), Some(limit)) = parsed else {
        return Ok(Value::Undefined);
    };
    let found = go.looks_at(text)?.find_iter(text);
    list(found.map(|found| Value::from(found.as_str())), limit)
}

pub(super) fn find_submatches(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = (
        regexes.of(arguments, 0)?,
        text(arguments, 1),
        limit(arguments, 2),
    );
    let (Some(go), Some(text), Some(limit)) = parsed else {
        return Ok(Value::Undefined);
    };
    let groups = |found: regex::Captures<'_>| {
        let texts = found
            .iter()
            .map(|group| Value::from(group.map_or("", |group| group.as_str())));
        Value::from(texts.collect::<Vec<_>>())
    };
    // Each match has as many elements as there are groups.
    let most = MAX_ELEMENTS / go.names.len().max(1);
    let found = go
        .looks_at(text)?
        .captures_iter(text)
        .take(most + 1)
        .map(groups);
    let found = list(found, limit)?;
    anyhow::ensure!(
        found.as_array().is_ok_and(|found| found.len() <= most),
        "regex.find_all_string_submatch_n: more than {MAX_ELEMENTS} elements"
    );
    Ok(found)
}

pub(super) fn replace(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = (
        text(arguments, 0),
        regexes.of(arguments, 1)?,
        text(arguments, 2),
    );
    let (Some(text), Some(go), Some(with)) = parsed else {
        return Ok(Value::Undefined);
    };
    let (mut out, mut end) = (String::new(), 0);
    for found in go.looks_at(text)?.captures_iter(text) {
        let Some(whole) = found.get(0) else { continue };
        out.push_str(text.get(end..whole.start()).unwrap_or(""));
        go_template::expand(with, &found, &go.names, &mut out)?;
        end = whole.end();
    }
    out.push_str(text.get(end..).unwrap_or(""));
    super::bounded(out)
}

/// `regex.template_match`: matches a text with regular expressions between delimiters.
pub(super) fn template_match(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = (
        text(arguments, 0),
        text(arguments, 1),
        text(arguments, 2),
        text(arguments, 3),
    );
    let (Some(template), Some(text), Some(open), Some(close)) = parsed else {
        return Ok(Value::Undefined);
    };
    let (&[open], &[close]) = (open.as_bytes(), close.as_bytes()) else {
        return Ok(Value::Undefined);
    };
    anyhow::ensure!(
        template.len() <= MAX_TEXT,
        "regex.template_match: more than {MAX_TEXT} bytes"
    );
    let pattern = go_template::pattern(template, open, close)?;
    let go = regexes.regex(&pattern)?;
    Ok(Value::from(go.looks_at(text)?.is_match(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_patterns_are_bounded_in_number_and_memory() {
        let regexes = Regexes::default();
        for number in 0..2 * MAX_CACHED_PATTERNS {
            assert!(regexes.regex(&format!("a{number}")).is_ok());
            let kept = regexes.lock();
            assert!(kept.compiled.len() <= MAX_CACHED_PATTERNS);
            assert!(kept.size <= MAX_CACHED_BYTES);
            let sum: usize = kept
                .compiled
                .iter()
                .map(|(key, regex)| key.len() + regex.as_ref().unwrap().kept_size())
                .sum();
            assert_eq!(kept.size, sum);
        }
        // Neither cached patterns nor cached errors are compiled again.
        assert!(regexes.regex("(").is_err());
        let made = regexes.get("(", || go_regex::compile("a"));
        assert!(made.is_err());
    }

    #[test]
    fn large_patterns_drive_out_others() {
        let regexes = Regexes::default();
        for number in 0..12 {
            let pattern = format!(r"(\p{{L}}{{10}}){{12}}{number}");
            assert!(regexes.regex(&pattern).is_ok());
            assert!(regexes.lock().size <= MAX_CACHED_BYTES);
        }
        assert!(regexes.lock().compiled.len() < 12);
    }

    #[test]
    fn too_many_matches_are_an_error() {
        let regexes = Regexes::default();
        let found = |count: usize| {
            let text = Value::from("a".repeat(count));
            let arguments = [Value::from("a"), text, Value::from(-1)];
            find_submatches(&regexes, &arguments)
        };
        let most = found(MAX_ELEMENTS).unwrap();
        assert_eq!(most.as_array().unwrap().len(), MAX_ELEMENTS);
        assert!(found(MAX_ELEMENTS + 1).is_err());
    }
}
