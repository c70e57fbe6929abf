//! String functions with the semantics of Go's `strings`.

use regorus::Value;

use super::{MAX_ELEMENTS, MAX_TEXT, bounded, elements, text};

/// Maximum product of the sizes of a text and of the text to find in it, in bytes, since a running
/// built-in cannot be interrupted.
const MAX_WORK: usize = 1 << 30;

/// Returns an integer argument; `None` for another value or one beyond 64 bits.
fn integer(arguments: &[Value], place: usize) -> Option<i64> {
    arguments.get(place)?.as_i64().ok()
}

fn texts(values: impl Iterator<Item = impl AsRef<str>>) -> anyhow::Result<Value> {
    let found: Vec<Value> = values
        .take(MAX_ELEMENTS + 1)
        .map(|text| Value::from(text.as_ref()))
        .collect();
    anyhow::ensure!(
        found.len() <= MAX_ELEMENTS,
        "a text has more than {MAX_ELEMENTS} parts"
    );
    Ok(Value::from(found))
}

/// Splits a text at delimiters, or into characters if the delimiter is empty.
fn parts<'a>(text: &'a str, delimiter: &'a str) -> Box<dyn Iterator<Item = &'a str> + 'a> {
    if delimiter.is_empty() {
        Box::new(
            text.char_indices()
                .filter_map(|(start, c)| text.get(start..start + c.len_utf8())),
        )
    } else {
        Box::new(text.split(delimiter))
    }
}

pub(super) fn split(arguments: &[Value]) -> anyhow::Result<Value> {
    match (text(arguments, 0), text(arguments, 1)) {
        (Some(text), Some(delimiter)) => texts(parts(text, delimiter)),
        _ => Ok(Value::Undefined),
    }
}

/// Returns the first n parts, or the last n if the number is negative.
pub(super) fn split_n(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = (
        text(arguments, 0),
        text(arguments, 1),
        integer(arguments, 2),
    );
    let (Some(text), Some(delimiter), Some(number)) = parsed else {
        return Ok(Value::Undefined);
    };
    match usize::try_from(number) {
        Ok(first) => texts(parts(text, delimiter).take(first)),
        Err(_) => {
            let count = parts(text, delimiter).count();
            let last = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
            texts(parts(text, delimiter).skip(count.saturating_sub(last)))
        }
    }
}

pub(super) fn concat(arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(delimiter), Some(parts)) = (text(arguments, 0), elements(arguments.get(1))) else {
        return Ok(Value::Undefined);
    };
    let mut joined = String::new();
    for (place, part) in parts.into_iter().enumerate() {
        let Value::String(part) = part else {
            return Ok(Value::Undefined);
        };
        if place > 0 {
            joined.push_str(delimiter);
        }
        joined.push_str(part);
        anyhow::ensure!(
            joined.len() <= MAX_TEXT,
            "concat: more than {MAX_TEXT} bytes"
        );
    }
    bounded(joined)
}

pub(super) fn index_of(arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(text), Some(wanted)) = (text(arguments, 0), text(arguments, 1)) else {
        return Ok(Value::Undefined);
    };
    if wanted.is_empty() {
        return Ok(Value::Undefined);
    }
    let before = text.find(wanted).and_then(|at| text.get(..at));
    Ok(before.map_or(Value::from(-1i64), |before| {
        Value::from(before.chars().count())
    }))
}

/// Returns the positions of all occurrences, including overlapping ones, in characters.
pub(super) fn index_of_n(arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(text), Some(wanted)) = (text(arguments, 0), text(arguments, 1)) else {
        return Ok(Value::Undefined);
    };
    let Some(first) = wanted.chars().next() else {
        return Ok(Value::Undefined);
    };
    let (mut found, mut rest, mut place) = (Vec::new(), text, 0);
    while let Some(at) = rest.find(wanted) {
        place += rest.get(..at).unwrap_or("").chars().count();
        found.push(Value::from(place));
        // The next occurrence may begin one character later.
        rest = rest.get(at + first.len_utf8()..).unwrap_or("");
        place += 1;
        anyhow::ensure!(
            found.len() <= MAX_ELEMENTS && found.len().saturating_mul(wanted.len()) <= MAX_WORK,
            "indexof_n: more than {MAX_ELEMENTS} matches, or the text is too long"
        );
    }
    Ok(Value::from(found))
}

pub(super) fn substring(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = (
        text(arguments, 0),
        integer(arguments, 1).and_then(|start| usize::try_from(start).ok()),
        integer(arguments, 2),
    );
    let (Some(text), Some(start), Some(length)) = parsed else {
        return Ok(Value::Undefined);
    };
    // A negative length means the rest of the text.
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let part: String = text.chars().skip(start).take(length).collect();
    Ok(Value::from(part))
}

/// Counts non-overlapping occurrences of a text. The empty text occurs once more than there are
/// characters.
pub(super) fn count(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match (text(arguments, 0), text(arguments, 1)) {
        (Some(text), Some(wanted)) => Value::from(text.matches(wanted).count()),
        _ => Value::Undefined,
    })
}

pub(super) fn replace(arguments: &[Value]) -> anyhow::Result<Value> {
    let parsed = (text(arguments, 0), text(arguments, 1), text(arguments, 2));
    let (Some(text), Some(old), Some(new)) = parsed else {
        return Ok(Value::Undefined);
    };
    replaced("replace", text, &[(old, new)])
}

pub(super) fn replace_n(arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(Value::Object(patterns)), Some(text)) = (arguments.first(), text(arguments, 1))
    else {
        return Ok(Value::Undefined);
    };
    let pairs: Option<Vec<(&str, &str)>> = patterns
        .iter_sorted()
        .map(|pair| match pair {
            (Value::String(old), Value::String(new)) => Some((&**old, &**new)),
            _ => None,
        })
        .collect();
    pairs.map_or(Ok(Value::Undefined), |pairs| {
        replaced("strings.replace_n", text, &pairs)
    })
}

/// Replaces at each byte the first pattern that matches there, as Go's `Replacer` does. An empty
/// pattern matches at every byte, but not twice in a row.
fn replaced(name: &str, text: &str, pairs: &[(&str, &str)]) -> anyhow::Result<Value> {
    let patterns: usize = pairs.iter().map(|(old, _)| old.len() + 1).sum();
    anyhow::ensure!(
        text.len().saturating_mul(patterns) <= MAX_WORK,
        "{name}: the patterns are too many or the text is too long"
    );
    let (mut out, mut rest, mut was_nothing) = (Vec::new(), text.as_bytes(), false);
    loop {
        let found = pairs
            .iter()
            .filter(|(old, _)| !(was_nothing && old.is_empty()))
            .find_map(|(old, new)| {
                let behind = rest.strip_prefix(old.as_bytes())?;
                Some((behind, old.is_empty(), new))
            });
        was_nothing = false;
        match (found, rest.split_first()) {
            (Some((behind, is_nothing, new)), _) => {
                out.extend_from_slice(new.as_bytes());
                (rest, was_nothing) = (behind, is_nothing);
            }
            (None, Some((byte, behind))) => {
                out.push(*byte);
                rest = behind;
            }
            (None, None) => break,
        }
        anyhow::ensure!(out.len() <= MAX_TEXT, "{name}: more than {MAX_TEXT} bytes");
    }
    match String::from_utf8(out) {
        Ok(out) => bounded(out),
        Err(_) => anyhow::bail!("{name}: an empty pattern splits a multi-byte character"),
    }
}

pub(super) fn lower(arguments: &[Value]) -> anyhow::Result<Value> {
    mapped(arguments, |c| match c {
        // Go converts each character separately.
        'İ' => 'i',
        c => single(c, c.to_lowercase()),
    })
}

pub(super) fn upper(arguments: &[Value]) -> anyhow::Result<Value> {
    mapped(arguments, |c| match u32::from(c) {
        // Characters whose upper case is one character, for which Rust returns two.
        0x1f80..=0x1f87 | 0x1f90..=0x1f97 | 0x1fa0..=0x1fa7 => shifted(c, 8),
        0x1fb3 | 0x1fc3 | 0x1ff3 => shifted(c, 9),
        _ => single(c, c.to_uppercase()),
    })
}

fn shifted(c: char, by: u32) -> char {
    char::from_u32(u32::from(c) + by).unwrap_or(c)
}

/// Returns the mapped character if it is a single one.
fn single(c: char, mut mapped: impl Iterator<Item = char>) -> char {
    match (mapped.next(), mapped.next()) {
        (Some(mapped), None) => mapped,
        _ => c,
    }
}

fn mapped(arguments: &[Value], map: impl Fn(char) -> char) -> anyhow::Result<Value> {
    match text(arguments, 0) {
        Some(text) => bounded(text.chars().map(map).collect()),
        None => Ok(Value::Undefined),
    }
}

/// Flattens arrays within an array.
pub(super) fn flatten(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(Value::Array(array)) = arguments.first() else {
        return Ok(Value::Undefined);
    };
    let mut flat = Vec::new();
    for value in array.iter() {
        match value {
            Value::Array(inner) => flat.extend(inner.iter().cloned()),
            other => flat.push(other.clone()),
        }
        anyhow::ensure!(
            flat.len() <= MAX_ELEMENTS,
            "array.flatten: more than {MAX_ELEMENTS} elements"
        );
    }
    Ok(Value::from(flat))
}
