//! Escapes untrusted text before it is printed.

/// Maximum length of untrusted text, in characters.
const MAX_LENGTH: usize = 2048;

/// Escapes a text to one line, without characters that move a terminal's cursor or change the text
/// direction.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(MAX_LENGTH));
    for (count, character) in text.chars().enumerate() {
        if count == MAX_LENGTH {
            shown.push('…');
            break;
        }
        if character.is_control() || turns_or_hides(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Returns whether a character is invisible or changes the order of displayed text.
fn turns_or_hides(character: char) -> bool {
    matches!(character,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threat_25_a_terminal_is_not_moved() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\u{a}c");
        assert_eq!(plain("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(plain("payments-é"), "payments-é");
        assert_eq!(plain(&"x".repeat(5000)).chars().count(), MAX_LENGTH + 1);
    }
}
