//! Durations in Go's format, as the flags of the old programs have them.

use jiff::SignedDuration;

/// Returns the seconds of a duration such as `15m` or `1h30m`, rounded down. `None` if it is
/// malformed or negative.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let duration: SignedDuration = text.parse().ok()?;
    u64::try_from(duration.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_understood() {
        for (text, expected) in [
            ("15m", Some(900)),
            ("1h30m", Some(5400)),
            ("15m0s", Some(900)),
            ("1500ms", Some(1)),
            ("0", Some(0)),
            ("-1s", None),
            ("900", None),
            ("soon", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }
}
