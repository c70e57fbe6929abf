//! The names that lowering generates, which messages must not show.

/// The prefix of generated names. Policies cannot use it.
pub(crate) const RESERVED: &str = "__lowered";

/// Replaces generated names in a message with those that the author wrote.
pub(crate) fn written(message: &str) -> String {
    let mut parts = message.split(RESERVED);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str(rest.strip_prefix('_').unwrap_or(rest));
    }
    out
}
