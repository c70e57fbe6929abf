//! Sanitizes untrusted text of policies and tenants for terminals, logs and Events.

/// Maximum length of a policy's message, in bytes.
pub(crate) const MAX_MESSAGE: usize = 1024;
/// Maximum length of a reason with several messages, in bytes.
pub(crate) const MAX_REASON: usize = 4096;

/// Replaces control characters and marks that change the writing direction, and truncates the text
/// to `longest` bytes.
pub(crate) fn clean(text: &str, longest: usize) -> String {
    let mut cleaned = String::with_capacity(text.len().min(longest));
    for character in text.chars() {
        let character = match character {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            c if c.is_control() => continue,
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => continue,
            c => c,
        };
        if cleaned.len() + character.len_utf8() + '…'.len_utf8() > longest {
            cleaned.push('…');
            break;
        }
        cleaned.push(character);
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threat_25_messages_hold_nothing_that_drives_a_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\nc\u{202e}d\0", 100), "a[31mb cd");
        assert_eq!(clean(&"é".repeat(100), 9), "ééé…");
    }
}
