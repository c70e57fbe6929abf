//! `glob.match` with OPA's globs: `*` stops at delimiters, `**` does not; also `?`, classes and
//! alternatives.

use std::iter::Peekable;
use std::str::Chars;

use regorus::Value;

use super::go_class::literal;
use super::go_regex::{GoRegex, MAX_PATTERN, PatternError, compile_as_it_is, shown};
use super::regexes::Regexes;
use super::text;

/// Maximum nesting of alternatives.
const MAX_DEPTH: usize = 64;

pub(super) fn matches(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(pattern), Some(text)) = (text(arguments, 0), text(arguments, 2)) else {
        return Ok(Value::Undefined);
    };
    let Some(delimiters) = delimiters(arguments.get(1)) else {
        return Ok(Value::Undefined);
    };
    let go = compile(regexes, pattern, &delimiters)?;
    Ok(Value::from(go.looks_at(text)?.is_match(text)))
}

/// Compiles a pattern, once for a policy.
///
/// # Errors
/// [`PatternError`] if OPA rejects the pattern or it exceeds a limit.
pub(super) fn compile(
    regexes: &Regexes,
    pattern: &str,
    delimiters: &str,
) -> Result<std::sync::Arc<GoRegex>, PatternError> {
    regexes.get(&format!("glob\0{delimiters}\0{pattern}"), || {
        compile_as_it_is(&translate(pattern, delimiters)?)
            .ok_or_else(|| PatternError::TooLarge(shown(pattern)))
    })
}

/// Validates a pattern.
///
/// # Errors
/// [`PatternError`] if OPA rejects the pattern or it exceeds a limit.
pub(super) fn check(pattern: &str) -> Result<(), PatternError> {
    let translated = translate(pattern, ".")?;
    compile_as_it_is(&translated)
        .map(|_| ())
        .ok_or_else(|| PatternError::TooLarge(shown(pattern)))
}

/// Returns the requested delimiters, or `None` if the argument is not a collection of them.
pub(super) fn delimiters(argument: Option<&Value>) -> Option<String> {
    let all = match argument? {
        Value::Null => return Some(String::new()),
        Value::Array(all) => all,
        _ => return None,
    };
    // An empty list means the default.
    if all.is_empty() {
        return Some(".".into());
    }
    all.iter()
        .map(|one| match one {
            Value::String(one) => {
                let mut chars = one.chars();
                chars.next().filter(|_| chars.next().is_none())
            }
            _ => None,
        })
        .collect()
}

fn translate(pattern: &str, delimiters: &str) -> Result<String, PatternError> {
    if pattern.len() > MAX_PATTERN {
        return Err(PatternError::TooLong(pattern.len()));
    }
    let invalid = |why| PatternError::Invalid(shown(pattern), why);
    let one = match delimiters {
        "" => "(?s:.)".to_owned(),
        some => format!("[^{}]", some.chars().map(escaped).collect::<String>()),
    };
    let mut out = String::from("^(?:");
    let mut chars = pattern.chars().peekable();
    let mut open = 0usize;
    while let Some(c) = chars.next() {
        match c {
            '*' => {
                let mut stars = 1;
                while chars.next_if_eq(&'*').is_some() {
                    stars += 1;
                }
                out.push_str(if stars > 1 { "(?s:.)" } else { &one });
                out.push('*');
            }
            '?' => out.push_str(&one),
            '\\' => {
                let quoted = chars
                    .next()
                    .ok_or_else(|| invalid("a backslash at the end"))?;
                out.push_str(&literal(quoted));
            }
            '{' => {
                open += 1;
                if open > MAX_DEPTH {
                    return Err(PatternError::TooDeep(shown(pattern)));
                }
                out.push_str("(?:");
            }
            '}' if open > 0 => {
                open -= 1;
                out.push(')');
            }
            ',' if open > 0 => out.push('|'),
            '[' => out.push_str(&class(&mut chars).map_err(invalid)?),
            c => out.push_str(&literal(c)),
        }
    }
    if open > 0 {
        return Err(invalid("a closing } is missing"));
    }
    Ok(out + ")$")
}

/// Escapes a character for a class of Rust's regular expressions.
fn escaped(c: char) -> String {
    format!(r"\x{{{:x}}}", u32::from(c))
}

/// Parses the rest of a class after `[`: one range, or a list of characters in which `-` is a
/// literal.
fn class(chars: &mut Peekable<Chars<'_>>) -> Result<String, &'static str> {
    const OPEN: &str = "a closing ] is missing";
    let not = if chars.next_if_eq(&'!').is_some() {
        "^"
    } else {
        ""
    };
    let first = chars.peek().copied().ok_or(OPEN)?;
    let mut ahead = chars.clone();
    ahead.next();
    if ahead.next_if_eq(&'-').is_some() {
        let last = ahead.next().ok_or(OPEN)?;
        *chars = ahead;
        return match chars.next() {
            Some(']') if last < first => Err("a range ends before it starts"),
            Some(']') => Ok(format!("[{not}{}-{}]", escaped(first), escaped(last))),
            _ => Err("a range must be the only content of [ and ]"),
        };
    }
    let mut members = String::new();
    loop {
        match chars.next().ok_or(OPEN)? {
            ']' if members.is_empty() => return Err("[ ] is empty"),
            ']' => return Ok(format!("[{not}{members}]")),
            '\\' => members.push_str(&escaped(chars.next().ok_or(OPEN)?)),
            c => members.push_str(&escaped(c)),
        }
    }
}

/// Returns a pattern that matches the text itself.
pub(super) fn quote_meta(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(text) = text(arguments, 0) else {
        return Ok(Value::Undefined);
    };
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '\\' | '[' | ']' | '{' | '}') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    super::bounded(quoted)
}
