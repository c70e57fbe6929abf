//! Numbers that begin with a decimal point, `.5`, which the interpreter's lexer cannot read.

use std::borrow::Cow;

/// The state of the scan at a character.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Code,
    Text,
    RawText,
    Comment,
}

/// Inserts a zero before each such decimal point in a module.
pub(crate) fn with_whole_parts(text: &str) -> Cow<'_, str> {
    let mut points = Vec::new();
    let (mut at, mut before, mut chars) = (At::Code, ' ', text.char_indices().peekable());
    while let Some((place, c)) = chars.next() {
        at = match (at, c) {
            (At::Code, '"') => At::Text,
            (At::Code, '`') => At::RawText,
            (At::Code, '#') => At::Comment,
            (At::Text, '\\') => {
                chars.next();
                At::Text
            }
            (At::Text, '"' | '\n') | (At::RawText, '`') | (At::Comment, '\n') => At::Code,
            (at, _) => at,
        };
        let follows = chars.peek().is_some_and(|(_, c)| c.is_ascii_digit());
        let is_reference = before.is_alphanumeric() || "_)]}\"`".contains(before);
        if at == At::Code && c == '.' && follows && !is_reference {
            points.push(place);
        }
        before = c;
    }
    if points.is_empty() {
        return text.into();
    }
    let (mut out, mut done) = (String::with_capacity(text.len() + points.len()), 0);
    for point in points {
        out.push_str(text.get(done..point).unwrap_or(""));
        out.push('0');
        done = point;
    }
    out.push_str(text.get(done..).unwrap_or(""));
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_stands_before_points_of_numbers_alone() {
        for (text, expected) in [
            ("x = .5", "x = 0.5"),
            ("[.0,-.25]", "[0.0,-0.25]"),
            (
                "x = 1.5; y = a.b; z = a[0].5",
                "x = 1.5; y = a.b; z = a[0].5",
            ),
            (r#"x = " .5 \" .5" # .5"#, r#"x = " .5 \" .5" # .5"#),
            ("x = ` .5\n.5`\ny = .5", "x = ` .5\n.5`\ny = 0.5"),
            ("# \"\nx = .5", "# \"\nx = 0.5"),
        ] {
            assert_eq!(with_whole_parts(text), expected);
        }
    }
}
