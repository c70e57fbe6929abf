//! `glob.match`, as OPA's globs are: `*` stops at delimiters, `**` doesn't, `?`, classes and
//! alternatives.

use regorus::Value;

use super::regexes::Regexes;
use super::{elements, text};

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 1024;

pub(super) fn matches(regexes: &Regexes, arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(pattern), Some(text)) = (text(arguments, 0), text(arguments, 2)) else {
        return Ok(Value::Undefined);
    };
    let delimiters: Option<String> = match arguments.get(1) {
        Some(Value::Null) => Some(String::new()),
        delimiters => elements(delimiters).and_then(|all| {
            let all: Option<String> = all
                .into_iter()
                .map(|one| match one {
                    Value::String(one) if one.chars().count() == 1 => one.chars().next(),
                    _ => None,
                })
                .collect();
            // An empty list stands for the default.
            all.map(|all| if all.is_empty() { ".".into() } else { all })
        }),
    };
    let Some(delimiters) = delimiters else {
        return Ok(Value::Undefined);
    };
    let key = format!("glob\0{delimiters}\0{pattern}");
    let compiled = regexes.get(&key, || {
        let translated = translate(pattern, &delimiters)?;
        regex::RegexBuilder::new(&translated)
            .size_limit(256 * 1024)
            .build()
            .ok()
    });
    Ok(compiled.map_or(Value::Undefined, |regex| Value::from(regex.is_match(text))))
}

fn translate(pattern: &str, delimiters: &str) -> Option<String> {
    if pattern.len() > MAX_PATTERN {
        return None;
    }
    let one = match delimiters {
        "" => "(?s:.)".to_owned(),
        some => format!(
            "[^{}]",
            some.chars()
                .map(|c| format!("\\x{{{:x}}}", u32::from(c)))
                .collect::<String>()
        ),
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
            '\\' => literal(chars.next()?, &mut out),
            '{' => {
                open += 1;
                out.push_str("(?:");
            }
            '}' if open > 0 => {
                open -= 1;
                out.push(')');
            }
            ',' if open > 0 => out.push('|'),
            '[' => {
                out.push('[');
                if chars.next_if(|c| matches!(c, '!' | '^')).is_some() {
                    out.push('^');
                }
                let mut length = 0;
                loop {
                    match chars.next()? {
                        ']' if length > 0 => break,
                        '-' if length > 0 && chars.peek() != Some(&']') => out.push('-'),
                        '\\' => literal(chars.next()?, &mut out),
                        c => literal(c, &mut out),
                    }
                    length += 1;
                }
                out.push(']');
            }
            c => literal(c, &mut out),
        }
    }
    (open == 0).then(|| out + ")$")
}

fn literal(c: char, out: &mut String) {
    out.push_str(&format!("\\x{{{:x}}}", u32::from(c)));
}

/// A pattern that matches the text itself.
pub(super) fn quote_meta(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(text(arguments, 0).map_or(Value::Undefined, |text| {
        let quoted: String = text
            .chars()
            .flat_map(|c| {
                let special = matches!(
                    c,
                    '*' | '?' | '\\' | '[' | ']' | '{' | '}' | ',' | '!' | '-'
                );
                special.then_some('\\').into_iter().chain([c])
            })
            .collect();
        Value::from(quoted)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, delimiters: &str, text: &str) -> Option<bool> {
        let translated = translate(pattern, delimiters)?;
        Some(regex::Regex::new(&translated).ok()?.is_match(text))
    }

    #[test]
    fn globs_stop_at_delimiters() {
        for (pattern, delimiters, text, expected) in [
            ("*.github.com", ".", "api.github.com", Some(true)),
            ("*.github.com", ".", "a.b.github.com", Some(false)),
            ("**.github.com", ".", "a.b.github.com", Some(true)),
            ("*hub.com", "", "api.github.com", Some(true)),
            (
                "registry.local/*",
                "/",
                "registry.local/team/app",
                Some(false),
            ),
            (
                "registry.local/**",
                "/",
                "registry.local/team/app",
                Some(true),
            ),
            (
                "registry.local/*",
                "",
                "registry.local/team/app",
                Some(true),
            ),
            ("a?c", ".", "abc", Some(true)),
            ("a?c", "b", "abc", Some(false)),
            ("[a-c]x", ".", "bx", Some(true)),
            ("[!a-c]x", ".", "bx", Some(false)),
            ("{cat,bat,[fr]at}", ".", "rat", Some(true)),
            ("{cat,bat}", ".", "rat", Some(false)),
            ("a.c", "", "abc", Some(false)),
            (r"\*", "", "*", Some(true)),
            ("a*", "", "a\nb", Some(true)),
            ("{a", "", "a", None),
            ("[a", "", "a", None),
        ] {
            assert_eq!(
                matches(pattern, delimiters, text),
                expected,
                "{pattern} on {text}"
            );
        }
    }
}
