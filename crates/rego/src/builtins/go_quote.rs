//! Quoted strings and characters, in the format of Go's `strconv`.

use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;

/// Characters that Go prints unescaped: letters, marks, numbers, punctuation, symbols and the ASCII
/// space.
static PRINTABLE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[\pL\pM\pN\pP\pS ]$").ok());

/// Returns true if Go prints a character unescaped.
pub(super) fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let printable = PRINTABLE.as_ref();
    printable.is_some_and(|printable| printable.is_match(c.encode_utf8(&mut [0; 4])))
}

/// Quotes a string.
pub(super) fn text(text: &str, ascii: bool) -> String {
    quoted(text.chars(), '"', ascii)
}

/// Quotes a character.
pub(super) fn character(c: char, ascii: bool) -> String {
    quoted(std::iter::once(c), '\'', ascii)
}

fn quoted(chars: impl Iterator<Item = char>, quote: char, ascii: bool) -> String {
    let mut out = String::from(quote);
    for c in chars {
        let short = match c {
            '\u{7}' => Some('a'),
            '\u{8}' => Some('b'),
            '\u{c}' => Some('f'),
            '\n' => Some('n'),
            '\r' => Some('r'),
            '\t' => Some('t'),
            '\u{b}' => Some('v'),
            c if c == quote || c == '\\' => Some(c),
            _ => None,
        };
        let code = u32::from(c);
        if let Some(short) = short {
            out.extend(['\\', short]);
        } else if is_print(c) && (c.is_ascii() || !ascii) {
            out.push(c);
        } else {
            let _ = match code {
                0..0x20 | 0x7f => write!(out, "\\x{code:02x}"),
                0..0x1_0000 => write!(out, "\\u{code:04x}"),
                _ => write!(out, "\\U{code:08x}"),
            };
        }
    }
    out.push(quote);
    out
}

/// Returns true if a string can be written between backquotes.
pub(super) fn fits_backquotes(text: &str) -> bool {
    let fits = |c: char| match c {
        '`' | '\u{7f}' | '\u{feff}' | '\u{fffd}' => false,
        c => c >= ' ' || c == '\t',
    };
    text.chars().all(fits)
}
