//! Replacement templates with references to groups (`$1`, `${name}`), and texts with embedded
//! regular expressions (`regex.template_match`).

use regex::Captures;

use super::go_regex::{self, PatternError};
use super::{MAX_TEXT, go_class};

/// Appends a replacement as Go's `Expand` does.
pub(super) fn expand(
    template: &str,
    found: &Captures<'_>,
    names: &[String],
    out: &mut String,
) -> anyhow::Result<()> {
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('$') {
        out.push_str(before);
        rest = behind;
        if let Some(behind) = rest.strip_prefix('$') {
            out.push('$');
            rest = behind;
            continue;
        }
        let Some((name, behind)) = reference(rest) else {
            out.push('$');
            continue;
        };
        rest = behind;
        let group = match number(name) {
            Some(number) => found.get(number),
            None => names
                .iter()
                .enumerate()
                .filter(|(_, known)| *known == name)
                .find_map(|(number, _)| found.get(number)),
        };
        out.push_str(group.map_or("", |group| group.as_str()));
        anyhow::ensure!(
            out.len() <= MAX_TEXT,
            "regex.replace: more than {MAX_TEXT} bytes"
        );
    }
    out.push_str(rest);
    anyhow::ensure!(
        out.len() <= MAX_TEXT,
        "regex.replace: more than {MAX_TEXT} bytes"
    );
    Ok(())
}

/// The name after a `$`, and the rest; `None` if there is no name.
fn reference(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('{');
    let from = inside.unwrap_or(text);
    let end = from
        .find(|c: char| c != '_' && !c.is_alphanumeric())
        .unwrap_or(from.len());
    let (name, rest) = from.split_at(end);
    if name.is_empty() {
        return None;
    }
    match inside {
        Some(_) => Some((name, rest.strip_prefix('}')?)),
        None => Some((name, rest)),
    }
}

/// Returns the number that a name represents, if it is one.
fn number(name: &str) -> Option<usize> {
    let is_number = name.bytes().all(|digit| digit.is_ascii_digit());
    let leads = name.len() > 1 && name.starts_with('0');
    (is_number && !leads).then(|| name.parse().unwrap_or(usize::MAX))
}

/// Returns the regular expression of a template.
///
/// # Errors
/// [`PatternError`] if delimiters do not match, or the text between them is not a pattern.
pub(super) fn pattern(template: &str, open: u8, close: u8) -> Result<String, PatternError> {
    let unbalanced = || PatternError::Invalid(go_regex::shown(template), "unmatched delimiters");
    let (mut out, mut level, mut start, mut end) = (String::from("^"), 0usize, 0, 0);
    for (at, byte) in template.bytes().enumerate() {
        if byte == open {
            level += 1;
            if level == 1 {
                start = at;
            }
        } else if byte == close {
            level = level.checked_sub(1).ok_or_else(unbalanced)?;
            if level == 0 {
                let raw = template.get(end..start).ok_or_else(unbalanced)?;
                let inner = template.get(start + 1..at).ok_or_else(unbalanced)?;
                go_regex::translate(inner)?;
                out.extend(raw.chars().map(go_class::literal));
                out.push('(');
                out.push_str(inner);
                out.push(')');
                end = at + 1;
            }
        }
    }
    if level != 0 {
        return Err(unbalanced());
    }
    let raw = template.get(end..).ok_or_else(unbalanced)?;
    out.extend(raw.chars().map(go_class::literal));
    out.push('$');
    Ok(out)
}
