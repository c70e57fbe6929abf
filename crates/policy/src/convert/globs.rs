//! Comparisons of globs that match whole ARNs.

use rolegate_core::arn::BaseArn;
use rolegate_core::pattern::{MAX_COMPILED, Pattern, PatternFormat};

/// The prefix of every ARN.
const ARN: &str = "arn:";

/// Converts a glob of an annotation into one on whole ARNs that starts with their prefix. Returns
/// `None` if it matches no ARN.
pub(super) fn rooted(pattern: &str, base: Option<&BaseArn>) -> Option<String> {
    let is_arn = pattern
        .get(..ARN.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(ARN));
    if is_arn {
        return rooted_arn(pattern);
    }
    let relative = pattern.strip_prefix('/').unwrap_or(pattern);
    rooted_arn(&format!("{}{relative}", base.map_or("", BaseArn::as_str)))
}

/// Converts a glob on whole ARNs into one that starts with their prefix. Returns `None` if it
/// matches no ARN.
pub(super) fn rooted_arn(whole: &str) -> Option<String> {
    if whole.starts_with(ARN) {
        return Some(whole.to_owned());
    }
    // `*x` and `a*x` match ARNs of any account too.
    let (start, rest) = whole.split_once('*')?;
    ARN.starts_with(start).then(|| format!("{ARN}*{rest}"))
}

/// Returns whether `wide` certainly matches every text that `narrow` matches. A star in `narrow`
/// represents any text, so only a star in `wide` can match it.
pub(super) fn contains(wide: &str, narrow: &str) -> bool {
    // Patterns never contain this character, so it represents a star that only a star can match.
    let star = "\u{1}";
    let text = narrow.replace('*', star);
    !wide.contains(star)
        && !narrow.contains(star)
        && Pattern::for_roles(wide, PatternFormat::Glob, None, MAX_COMPILED)
            .is_ok_and(|wide| wide.matches(&text))
}

/// Returns the intersection of two globs, if it is a glob or empty.
pub(super) fn intersection(left: &str, right: &str) -> Result<Option<String>, ()> {
    if contains(left, right) {
        return Ok(Some(right.to_owned()));
    }
    if contains(right, left) {
        return Ok(Some(left.to_owned()));
    }
    let (is_left_exact, is_right_exact) = (!left.contains('*'), !right.contains('*'));
    if is_left_exact || is_right_exact || are_apart(left, right) {
        return Ok(None);
    }
    Err(())
}

/// Returns whether the fixed start or end of one glob contradicts the other.
fn are_apart(left: &str, right: &str) -> bool {
    let starts = |glob: &str| glob.split('*').next().unwrap_or_default().to_owned();
    let ends = |glob: &str| glob.rsplit('*').next().unwrap_or_default().to_owned();
    let (a, b) = (starts(left), starts(right));
    let (y, z) = (ends(left), ends(right));
    !(a.starts_with(&b) || b.starts_with(&a)) || !(y.ends_with(&z) || z.ends_with(&y))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_start_as_arns_do() {
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").ok();
        for (pattern, with_base, without) in [
            ("x*", Some("arn:aws:iam::123456789012:role/x*"), None),
            ("/x", Some("arn:aws:iam::123456789012:role/x"), None),
            ("*", Some("arn:aws:iam::123456789012:role/*"), Some("arn:*")),
            (
                "*x",
                Some("arn:aws:iam::123456789012:role/*x"),
                Some("arn:*x"),
            ),
            ("arn:x", Some("arn:x"), Some("arn:x")),
            ("ARN:x", None, None),
        ] {
            assert_eq!(rooted(pattern, base.as_ref()).as_deref(), with_base);
            assert_eq!(rooted(pattern, None).as_deref(), without, "{pattern}");
        }
        assert_eq!(rooted("ar*x", None).as_deref(), Some("arn:*x"));
    }

    proptest! {
        #[test]
        fn what_contains_matches_more(
            wide in "[ab*]{0,5}", narrow in "[ab*]{0,5}", text in "[ab]{0,6}",
        ) {
            let matches = |glob: &str| Pattern::glob_of_names(glob).unwrap().matches(&text);
            if contains(&wide, &narrow) {
                prop_assert!(!matches(&narrow) || matches(&wide));
            }
            match intersection(&wide, &narrow) {
                Ok(Some(both)) => {
                    prop_assert_eq!(matches(&both), matches(&wide) && matches(&narrow));
                }
                Ok(None) => prop_assert!(!(matches(&wide) && matches(&narrow))),
                Err(()) => {}
            }
        }
    }
}
