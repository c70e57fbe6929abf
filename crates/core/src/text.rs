//! Sanitizes untrusted text for terminals, logs, Events and messages.
//!
//! Tenants choose the names, annotations and paths that appear there. One character class
//! ([`is_unsafe`]) defines what must not be printed as it is, for every output.

use std::borrow::Cow;
use std::fmt::Write;

/// Maximum length of untrusted text on a terminal, in characters.
const MAX_PLAIN_CHARS: usize = 2048;

/// Returns true for characters that must not be printed unescaped: controls (line ends, escape, the
/// C1 set), characters that change the text direction, and characters without a visible glyph.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Soft hyphen and invisible joiners.
            '\u{ad}' | '\u{34f}'
            // Arabic letter mark, a direction.
            | '\u{61c}'
            // Letters without a glyph.
            | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}'
            // Mongolian vowel separator.
            | '\u{180e}'
            // Zero-width characters and direction marks.
            | '\u{200b}'..='\u{200f}'
            // Line and paragraph separators, embeddings and overrides.
            | '\u{2028}'..='\u{202e}'
            // Invisible operators, isolates, deprecated format characters.
            | '\u{2060}'..='\u{206f}'
            // Byte order mark and interlinear annotations.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            // Formatting of musical notation.
            | '\u{1d173}'..='\u{1d17a}'
            // Tags and supplementary variation selectors.
            | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes every unsafe character as in `\n` or `\u{202e}`.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Escapes every unsafe character by its number, as in `\u{a}`, and truncates the text to
/// `max_chars` of its characters, with an ellipsis.
pub fn bounded(text: &str, max_chars: usize) -> String {
    let mut bounded = String::with_capacity(text.len().min(max_chars));
    for (place, c) in text.chars().enumerate() {
        if place >= max_chars {
            bounded.push('…');
            break;
        }
        if is_unsafe(c) {
            bounded.extend(c.escape_unicode());
        } else {
            bounded.push(c);
        }
    }
    bounded
}

/// Escapes a text to one line of a terminal, of bounded length.
pub fn plain(text: &str) -> String {
    bounded(text, MAX_PLAIN_CHARS)
}

/// Removes unsafe characters, replaces line ends and tabs by blanks, and truncates the text to
/// `max_bytes`, with an ellipsis.
pub fn clean(text: &str, max_bytes: usize) -> String {
    let mut cleaned = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars() {
        let c = match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            c if is_unsafe(c) => continue,
            c => c,
        };
        if cleaned.len() + c.len_utf8() + '…'.len_utf8() > max_bytes {
            cleaned.push('…');
            break;
        }
        cleaned.push(c);
    }
    cleaned
}

/// Truncates to `max_bytes` at a character boundary, with an ellipsis of ASCII dots.
pub fn cut(mut text: String, max_bytes: usize) -> String {
    const ELLIPSIS: &str = "...";
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes.saturating_sub(ELLIPSIS.len())));
        text.push_str(ELLIPSIS);
    }
    text
}

/// Escapes the unsafe characters of serialized JSON, except line feeds. JSON itself escapes only
/// the controls below space. The others can only occur inside strings, where their escapes have the
/// same meaning.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    escape_serialized(json, |escaped, c| {
        // JSON escapes a character beyond U+FFFF as two.
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing into a String cannot fail.
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    })
}

/// Escapes the unsafe characters of serialized YAML, except line feeds. Strings and keys that
/// contain such characters must be double-quoted, since only there their escapes have the same
/// meaning.
pub fn escape_yaml(yaml: &str) -> Cow<'_, str> {
    escape_serialized(yaml, |escaped, c| {
        let _ = match u32::from(c) {
            code @ ..=0xffff => write!(escaped, "\\u{code:04x}"),
            code => write!(escaped, "\\U{code:08x}"),
        };
    })
}

fn escape_serialized(text: &str, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    let must_escape = |c: char| c != '\n' && is_unsafe(c);
    if !text.contains(must_escape) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if must_escape(c) {
            escape(&mut escaped, c);
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

/// A character of each unsafe class, for tests of outputs.
#[doc(hidden)]
pub const UNSAFE_EXAMPLES: &[char] = &[
    '\0',
    '\n',
    '\r',
    '\t',
    '\u{1b}',
    '\u{7f}',
    '\u{85}',
    '\u{9b}',
    '\u{ad}',
    '\u{34f}',
    '\u{61c}',
    '\u{115f}',
    '\u{1160}',
    '\u{17b4}',
    '\u{17b5}',
    '\u{180e}',
    '\u{200b}',
    '\u{200d}',
    '\u{200e}',
    '\u{200f}',
    '\u{2028}',
    '\u{2029}',
    '\u{202a}',
    '\u{202e}',
    '\u{2060}',
    '\u{2065}',
    '\u{2066}',
    '\u{2069}',
    '\u{206f}',
    '\u{3164}',
    '\u{feff}',
    '\u{ffa0}',
    '\u{fff9}',
    '\u{fffa}',
    '\u{fffb}',
    '\u{1d173}',
    '\u{1d17a}',
    '\u{e0000}',
    '\u{e0001}',
    '\u{e0041}',
    '\u{e007f}',
    '\u{e0100}',
    '\u{e0fff}',
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hostile() -> String {
        UNSAFE_EXAMPLES.iter().flat_map(|c| ['x', *c]).collect()
    }

    #[test]
    fn every_class_is_unsafe_and_letters_are_not() {
        for c in UNSAFE_EXAMPLES {
            assert!(is_unsafe(*c), "{c:?}");
        }
        for c in " ~é…—ßя漢字日本語العربية한글🙂❤\u{fe0f}\u{ff9f}\u{2010}\u{2030}\u{205f}\u{2070}\u{fffd}".chars() {
            assert!(!is_unsafe(c), "{c:?}");
        }
    }

    #[test]
    fn threat_25_no_form_keeps_an_unsafe_character() {
        let hostile = hostile();
        for text in [
            escape(&hostile),
            bounded(&hostile, 1000),
            plain(&hostile),
            clean(&hostile, 1000),
            escape_json(&hostile).replace('\n', ""),
            escape_yaml(&hostile).replace('\n', ""),
        ] {
            assert!(!text.contains(is_unsafe), "{text:?}");
            assert!(text.matches('x').count() >= UNSAFE_EXAMPLES.len());
        }
    }

    #[test]
    fn escapes_show_what_was_sent() {
        assert_eq!(escape("a\nb\u{202e}é"), "a\\nb\\u{202e}é");
        assert_eq!(escape(""), "");
        assert_eq!(bounded("a\u{1b}[2Jb\n", 80), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(plain("x\u{202e}y payments-é"), "x\\u{202e}y payments-é");
    }

    #[test]
    fn lengths_are_bounded() {
        assert_eq!(bounded("abcdef", 3), "abc…");
        assert_eq!(bounded("abc", 3), "abc");
        assert_eq!(
            plain(&"x".repeat(5000)).chars().count(),
            MAX_PLAIN_CHARS + 1
        );
        assert_eq!(clean(&"é".repeat(100), 9), "ééé…");
        assert_eq!(cut("éééé".into(), 6), "é...");
        assert_eq!(cut("abc".into(), 3), "abc");
    }

    #[test]
    fn serialized_text_keeps_its_value() {
        let hostile = hostile();
        let json = serde_json::to_string(&hostile).unwrap();
        let escaped = escape_json(&json);
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), hostile);
        assert_eq!(escape_json("{\n  \"é\": 1\n}"), "{\n  \"é\": 1\n}");
        assert_eq!(
            escape_yaml("\"\u{202e}\u{e0001}\"\n"),
            "\"\\u202e\\U000e0001\"\n"
        );
    }
}
