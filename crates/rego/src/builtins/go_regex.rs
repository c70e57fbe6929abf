//! Go's regular expressions (RE2), which OPA has, written as Rust's.
//!
//! They differ in small things that decide: in Go `\d`, `\s`, `\w` and `\b` know ASCII alone, a
//! `[` in a class is itself, and `\Q…\E` quotes.

use regex::{Regex, RegexBuilder};

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 4096;
/// Memory that a compiled pattern may take, in bytes.
const MAX_COMPILED: usize = 256 * 1024;
/// Memory that a pattern may take while it matches, in bytes.
const MAX_CACHE: usize = 256 * 1024;

/// Compiles a pattern; `None` where Go would not, or it takes too much memory.
pub(super) fn compile(pattern: &str) -> Option<Regex> {
    if pattern.len() > MAX_PATTERN {
        return None;
    }
    RegexBuilder::new(&translate(pattern)?)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_CACHE)
        .nest_limit(64)
        .build()
        .ok()
}

fn translate(pattern: &str) -> Option<String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    // Place in a class: how many of its characters came before.
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => match chars.next()? {
                'Q' if class.is_none() => quote(&mut chars, &mut out),
                'C' => return None,
                'd' => out.push_str(if class.is_some() { "0-9" } else { "[0-9]" }),
                'D' => out.push_str("[^0-9]"),
                'w' => out.push_str(if class.is_some() {
                    "0-9A-Za-z_"
                } else {
                    "[0-9A-Za-z_]"
                }),
                'W' => out.push_str("[^0-9A-Za-z_]"),
                's' => out.push_str(if class.is_some() {
                    r"\t\n\f\r "
                } else {
                    r"[\t\n\f\r ]"
                }),
                'S' => out.push_str(r"[^\t\n\f\r ]"),
                'b' if class.is_none() => out.push_str(r"(?-u:\b)"),
                // Rust has no ASCII form of it for text, and Go none in a class.
                'b' | 'B' if class.is_some() => return None,
                other => {
                    out.push('\\');
                    out.push(other);
                }
            },
            ('[', None) => {
                class = Some(0);
                out.push('[');
                if chars.peek() == Some(&'^') {
                    out.push('^');
                    chars.next();
                }
                continue;
            }
            ('[', Some(_)) if chars.peek() == Some(&':') => {
                // A named class such as `[:alpha:]`.
                out.push('[');
                for part in chars.by_ref() {
                    out.push(part);
                    if part == ']' {
                        break;
                    }
                }
            }
            (']', Some(before)) if before > 0 => {
                class = None;
                out.push(']');
                continue;
            }
            ('[' | ']' | '&' | '~', Some(_)) => {
                out.push('\\');
                out.push(c);
            }
            (c, _) => out.push(c),
        }
        class = class.map(|before| before + 1);
    }
    Some(out)
}

fn quote(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    while let Some(c) = chars.next() {
        if c == '\\' && chars.peek() == Some(&'E') {
            chars.next();
            return;
        }
        out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> Option<bool> {
        compile(pattern).map(|regex| regex.is_match(text))
    }

    #[test]
    fn classes_are_those_of_go() {
        for (pattern, text, expected) in [
            (r"^\d+$", "12", Some(true)),
            (r"^\d+$", "١٢", Some(false)),
            (r"^[\d]+$", "١٢", Some(false)),
            (r"^[^\W]+$", "aé", Some(false)),
            (r"^\w+$", "é", Some(false)),
            (r"^\S+$", "é", Some(true)),
            (r"^\s$", "\u{b}", Some(false)),
            (r"\bcat\b", "a cat!", Some(true)),
            (r"^[[]$", "[", Some(true)),
            (r"^[]a]+$", "]a", Some(true)),
            (r"^[^]a]+$", "b", Some(true)),
            (r"^[a&&b]+$", "&", Some(true)),
            (r"^[[:alpha:]_]+$", "ab_", Some(true)),
            (r"^\Qa.b\E+$", "a.bb", Some(true)),
            (r"^\Qa.b\E$", "axb", Some(false)),
            (r"^\pL+$", "é", Some(true)),
            (r"(?i)^ROLE$", "role", Some(true)),
            (r"a\Cb", "", None),
            (r"(", "", None),
            (r"(?=a)", "", None),
            (r"a$", "a\n", Some(false)),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_takes_too_much_memory_is_no_pattern() {
        assert!(compile(&"a".repeat(MAX_PATTERN + 1)).is_none());
        assert!(compile("((a{100}){100}){100}").is_none());
        assert!(compile(&"(".repeat(2000)).is_none());
    }
}
