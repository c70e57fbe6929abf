//! Compares an output with the one that a page shows.

/// Returns true if `printed` matches the output in the page. Line breaks are ignored, and `…` in
/// the page matches any text.
pub(super) fn is_shown(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (one_line(shown), one_line(printed));
    let mut pieces = shown.split('…').map(str::trim);
    let Some(mut rest) = pieces.next().and_then(|first| printed.strip_prefix(first)) else {
        return false;
    };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, between)) = pieces.split_last() else {
        return rest.is_empty();
    };
    for piece in between {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_page_breaks_lines_and_leaves_out_what_differs() {
    for (shown, printed, same) in [
        ("one\n  two\n", "one two\n", true),
        ("one", "one two", false),
        ("two", "one two", false),
        ("one…", "one two", true),
        ("…two", "one two", true),
        ("a … c … e", "a b c d e", true),
        ("a … c … e", "a b d e", false),
        // A line that the page shows twice must occur twice.
        ("a … a", "a", false),
        ("a … c c", "a c", false),
        ("", "", true),
        ("", "one", false),
    ] {
        assert_eq!(is_shown(shown, printed), same, "{shown:?} {printed:?}");
    }
}
