//! Bounds of untrusted text of policies and tenants in terminals, logs and Events.

pub(crate) use rolegate_core::text::clean;

/// Maximum length of a policy's message, in bytes.
pub(crate) const MAX_MESSAGE: usize = 1024;
/// Maximum length of a reason with several messages, in bytes.
pub(crate) const MAX_REASON: usize = 4096;

#[cfg(test)]
mod tests {
    use rolegate_core::text::{UNSAFE_EXAMPLES, is_unsafe};

    use super::*;

    #[test]
    fn threat_25_messages_hold_nothing_that_drives_a_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\nc\u{202e}d\0", 100), "a[31mb cd");
        assert_eq!(clean(&"é".repeat(100), 9), "ééé…");
        for c in UNSAFE_EXAMPLES {
            let text = clean(&format!("a{c}b"), MAX_MESSAGE);
            assert!(!text.contains(is_unsafe), "{c:?}: {text:?}");
        }
    }
}
