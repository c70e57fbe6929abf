//! Sanitizes untrusted text for messages: bounds its length and escapes characters that move a
//! cursor or change the text direction.

/// Escapes invisible characters in `text` and truncates it to `most` characters.
pub(crate) fn shown(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for (place, c) in text.chars().enumerate() {
        if place >= most {
            shown.push('…');
            break;
        }
        if is_hidden(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Returns `true` for controls and for Unicode characters that have no width or change the text
/// direction.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Truncates to `most` bytes at a character boundary, with an ellipsis.
pub(crate) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        // ASCII, since warnings become HTTP headers, which strict clients parse as ASCII.
        text.truncate(text.floor_char_boundary(most.saturating_sub("...".len())));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threat_25_what_cannot_be_seen_is_escaped() {
        assert_eq!(shown("a\u{1b}[2Jb\n", 80), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(shown("x\u{202e}y", 80), "x\\u{202e}y");
        assert_eq!(shown("arn:aws-é/…", 80), "arn:aws-é/…");
    }

    #[test]
    fn long_text_is_truncated() {
        assert_eq!(shown("abcdef", 3), "abc…");
        assert_eq!(shown("abc", 3), "abc");
        assert_eq!(cut("éééé".into(), 6), "é...");
        assert_eq!(cut("abc".into(), 3), "abc");
    }
}
