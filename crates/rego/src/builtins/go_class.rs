//! Single characters and character classes of Go's regular expressions.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parking_lot::Mutex;

/// The reason why parsing stops.
#[derive(Debug)]
pub(super) enum Fault {
    Syntax(&'static str),
    Deep,
}

/// An empty class, which never matches.
const NOTHING: &str = r"[^\x00-\x{10FFFF}]";

/// Parses a named class: `\d`, `\pL`, `\p{Greek}`. Returns `None` if the text begins with another
/// escape.
pub(super) fn named(text: &str) -> Result<Option<(String, &str)>, Fault> {
    let mut chars = text.chars();
    let (Some('\\'), Some(name)) = (chars.next(), chars.next()) else {
        return Ok(None);
    };
    let rest = chars.as_str();
    let class = match name {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        's' => r"[\t\n\f\r ]",
        'S' => r"[^\t\n\f\r ]",
        'w' => "[0-9A-Za-z_]",
        'W' => "[^0-9A-Za-z_]",
        'p' | 'P' => return unicode(name == 'P', rest).map(Some),
        _ => return Ok(None),
    };
    Ok(Some((class.to_owned(), rest)))
}

/// Parses the class after `\p`.
fn unicode(negated: bool, text: &str) -> Result<(String, &str), Fault> {
    const UNKNOWN: Fault = Fault::Syntax("an unknown Unicode class");
    let (name, rest) = match text.strip_prefix('{') {
        Some(text) => text.split_once('}').ok_or(UNKNOWN)?,
        None => {
            let end = text.chars().next().ok_or(UNKNOWN)?.len_utf8();
            text.split_at(end)
        }
    };
    let (negated, name) = match name.strip_prefix('^') {
        Some(name) => (!negated, name),
        None => (negated, name),
    };
    let p = if negated { 'P' } else { 'p' };
    if !name.is_ascii() || name.is_empty() {
        return Err(UNKNOWN);
    }
    let canonical: String = name
        .chars()
        .filter(|c| !matches!(c, '_' | '-' | ' '))
        .flat_map(char::to_lowercase)
        .collect();
    let kinds: &[&str] = match canonical.as_str() {
        // Rust strips this prefix; Go does not.
        canonical if canonical.starts_with("is") => &[],
        // Go knows scripts only by their full names, which have four letters in these cases.
        "ahom" | "cham" | "kawi" | "lisu" | "modi" | "newa" | "thai" | "toto" => &["sc"],
        canonical if canonical.len() == 4 => &["gc"],
        _ => &["gc", "sc"],
    };
    let class = kinds
        .iter()
        .map(|kind| format!(r"\{p}{{{kind}={canonical}}}"))
        .find(|class| is_class(class));
    Ok((class.ok_or(UNKNOWN)?, rest))
}

/// Returns true if Rust knows a class. Results are cached, since a pattern may name a class often.
fn is_class(class: &str) -> bool {
    static KNOWN: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());
    const MAX_CACHED_CLASSES: usize = 1024;
    let mut known = KNOWN.lock();
    if let Some(known) = known.get(class) {
        return *known;
    }
    if known.len() >= MAX_CACHED_CLASSES {
        known.clear();
    }
    let is_class = regex::Regex::new(class).is_ok();
    known.insert(class.to_owned(), is_class);
    is_class
}

/// Parses an escaped character and returns its code point.
pub(super) fn escaped(text: &str) -> Result<(u32, &str), Fault> {
    const INVALID: Fault = Fault::Syntax("an unknown escape");
    let mut chars = text.chars();
    chars.next();
    let c = chars
        .next()
        .ok_or(Fault::Syntax("a backslash at the end"))?;
    let rest = chars.as_str();
    let is_octal = |c: &char| c.is_digit(8);
    let code = match c {
        '0'..='7' => {
            // A single digit would be a back-reference unless it is 0.
            if c != '0' && !rest.chars().next().is_some_and(|c| is_octal(&c)) {
                return Err(INVALID);
            }
            let digits: String = std::iter::once(c)
                .chain(rest.chars().take_while(is_octal).take(2))
                .collect();
            let code = u32::from_str_radix(&digits, 8).map_err(|_| INVALID)?;
            return Ok((code, rest.get(digits.len() - 1..).unwrap_or("")));
        }
        'x' => return hexadecimal(rest).ok_or(INVALID),
        'a' => 0x07,
        'f' => 0x0c,
        'n' => 0x0a,
        'r' => 0x0d,
        't' => 0x09,
        'v' => 0x0b,
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => u32::from(c),
        _ => return Err(INVALID),
    };
    Ok((code, rest))
}

/// Parses `7f` or `{10ffff}`.
fn hexadecimal(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = match text.strip_prefix('{') {
        Some(text) => text.split_once('}')?,
        None => text.split_at_checked(2)?,
    };
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    let code = match significant {
        "" if digits.is_empty() => return None,
        "" => 0,
        significant => u32::from_str_radix(significant, 16).ok()?,
    };
    (code <= u32::from(char::MAX)).then_some((code, rest))
}

/// Returns a pattern for a character.
pub(super) fn literal(c: char) -> String {
    if c.is_ascii_alphanumeric() {
        c.to_string()
    } else {
        format!(r"\x{{{:x}}}", u32::from(c))
    }
}

/// Returns a pattern for a code point. No text contains a surrogate, so its pattern never matches.
pub(super) fn one(code: u32) -> String {
    char::from_u32(code).map_or_else(|| NOTHING.to_owned(), literal)
}

/// Parses a class such as `[^a-z\d[:alpha:]]` at the start of a text.
pub(super) fn class(text: &str) -> Result<(String, &str), Fault> {
    const OPEN: Fault = Fault::Syntax("a closing ] is missing");
    let mut rest = text.get(1..).unwrap_or("");
    let mut out = String::from("[");
    if let Some(behind) = rest.strip_prefix('^') {
        out.push('^');
        rest = behind;
    }
    let mut is_first = true;
    let mut is_empty = true;
    loop {
        match rest.strip_prefix(']') {
            Some(behind) if !is_first => {
                rest = behind;
                break;
            }
            _ => is_first = false,
        }
        if let Some((class, behind)) = posix(rest)? {
            out.push_str(class);
            (rest, is_empty) = (behind, false);
            continue;
        }
        if let Some((class, behind)) = named(rest)? {
            out.push_str(&class);
            (rest, is_empty) = (behind, false);
            continue;
        }
        let (low, behind) = member(rest)?.ok_or(OPEN)?;
        rest = behind;
        let mut high = low;
        if let Some(behind) = rest.strip_prefix('-')
            && !behind.is_empty()
            && !behind.starts_with(']')
        {
            (high, rest) = member(behind)?.ok_or(OPEN)?;
            if high < low {
                return Err(Fault::Syntax("a range ends before it starts"));
            }
        }
        is_empty &= !push_range(low, high, &mut out);
    }
    if is_empty {
        // Only surrogates, which no text contains.
        out.push_str(NOTHING);
    }
    out.push(']');
    Ok((out, rest))
}

/// Parses one character of a class; `None` at the end.
fn member(text: &str) -> Result<Option<(u32, &str)>, Fault> {
    if text.starts_with('\\') {
        return escaped(text).map(Some);
    }
    let mut chars = text.chars();
    Ok(chars.next().map(|c| (u32::from(c), chars.as_str())))
}

/// Appends a range without its surrogates. Returns false if nothing is left.
fn push_range(low: u32, high: u32, out: &mut String) -> bool {
    const SURROGATES: std::ops::RangeInclusive<u32> = 0xd800..=0xdfff;
    let low = if SURROGATES.contains(&low) {
        SURROGATES.end() + 1
    } else {
        low
    };
    let high = if SURROGATES.contains(&high) {
        SURROGATES.start() - 1
    } else {
        high
    };
    if low <= high {
        let _ = write!(out, r"\x{{{low:x}}}-\x{{{high:x}}}");
    }
    low <= high
}

/// Parses a POSIX class such as `[:alpha:]`.
fn posix(text: &str) -> Result<Option<(&str, &str)>, Fault> {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
        "space", "upper", "word", "xdigit",
    ];
    let Some((name, rest)) = text
        .strip_prefix("[:")
        .and_then(|behind| behind.split_once(":]"))
    else {
        return Ok(None);
    };
    let bare = name.strip_prefix('^').unwrap_or(name);
    if !NAMES.contains(&bare) {
        return Err(Fault::Syntax("an unknown class between [: and :]"));
    }
    let length = name.len() + "[::]".len();
    Ok(text.get(..length).map(|class| (class, rest)))
}
