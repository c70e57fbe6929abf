//! CEL building blocks: literals, and patterns as regular expressions (RE2) that the API server
//! compiles.

use rolegate_core::arn::BaseArn;

/// The characters of role ARNs, for use in a character class. A pattern with any other character
/// matches none.
pub(super) const ROLE_CHARACTERS: &str = "A-Za-z0-9_+=,.@/:-";

/// A regular expression for whole role ARNs, except for dot segments and the length of the path.
const ROLE: &str = "^arn:aws[a-z0-9-]{0,29}:iam::[0-9]{12}:role/(?:[A-Za-z0-9_+=,.@-]+/)*[A-Za-z0-9_+=,.@-]{1,64}$";

/// Returns CEL for whether the text `expression` is meant as an ARN and not as a name.
pub(super) fn is_arn(expression: &str) -> String {
    format!(r#"{expression}.matches("^[aA][rR][nN]:")"#)
}

/// Returns CEL for whether the text `expression` is a role ARN that
/// [`rolegate_core::arn::RoleArn::parse`] accepts.
pub(super) fn is_role(expression: &str) -> String {
    format!(
        r#"({expression}.matches({role}) && !{expression}.matches("/[.][.]?(?:/|$)") && {expression}.size() - {expression}.indexOf(":role/") <= 582)"#,
        role = quote(ROLE)
    )
}

/// Returns CEL for the text `expression` without a leading slash.
pub(super) fn relative(expression: &str) -> String {
    format!(r#"({expression}.startsWith("/") ? {expression}.substring(1) : {expression})"#)
}

/// Returns CEL for the start of an untrusted text, for messages.
pub(super) fn shortened(expression: &str) -> String {
    format!(r#"({expression}.size() > 80 ? {expression}.substring(0, 80) + "…" : {expression})"#)
}

/// Returns CEL for the text of an optional; empty if it is absent or null.
pub(super) fn text(optional: &str) -> String {
    format!(r#"optional.ofNonZeroValue(dyn({optional}.orValue(""))).orValue("")"#)
}

/// Returns CEL for the text of an optional, normalized as in
/// [`rolegate_core::annotation::normalized`]. CEL's `trim` removes Unicode white space too.
pub(super) fn normalized(optional: &str) -> String {
    format!("{}.trim()", text(optional))
}

/// Returns CEL for the items of an optional list; empty if it is absent or null.
pub(super) fn items(optional: &str) -> String {
    format!("optional.ofNonZeroValue(dyn({optional}.orValue([]))).orValue([])")
}

/// Returns a string literal. CEL accepts JSON strings.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Returns a list of string literals, which has that type even if it is empty.
pub(super) fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|text| quote(text.as_ref())).collect();
    if items.is_empty() {
        return r#"[""].filter(x, x != "")"#.to_owned();
    }
    format!("[{}]", items.join(", "))
}

/// Returns the base ARN's text; empty without one.
pub(super) fn base_text(base: Option<&BaseArn>) -> &str {
    base.map_or("", BaseArn::as_str)
}

/// Completes a grant's role pattern with the base ARN.
pub(super) fn expand(pattern: &str, base: Option<&BaseArn>) -> String {
    let start = pattern.get(..4);
    if start.is_some_and(|start| start.eq_ignore_ascii_case("arn:")) {
        return pattern.to_owned();
    }
    let name = pattern.strip_prefix('/').unwrap_or(pattern);
    format!("{}{name}", base_text(base))
}

/// Returns globs as one anchored regular expression, or `None` if none of them can match a text of
/// letters, digits and `others`.
pub(super) fn globs<T: AsRef<str>>(
    patterns: impl IntoIterator<Item = T>,
    others: &str,
) -> Option<String> {
    let possible = |text: &&str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '*' || others.contains(c))
    };
    let patterns: Vec<_> = patterns.into_iter().collect();
    let alternatives: Vec<_> = patterns
        .iter()
        .map(AsRef::as_ref)
        .filter(possible)
        .map(escape_glob)
        .collect();
    (!alternatives.is_empty()).then(|| format!("^(?:{})$", alternatives.join("|")))
}

/// Returns the text before the first star.
pub(super) fn literal_start(glob: &str) -> &str {
    glob.split('*').next().unwrap_or_default()
}

/// Returns the longest literal text after the first star.
pub(super) fn longest_part(glob: &str) -> &str {
    let parts = glob.split('*').skip(1);
    parts.max_by_key(|part| part.len()).unwrap_or_default()
}

fn escape_glob(glob: &str) -> String {
    let mut text = String::with_capacity(glob.len() + 8);
    let mut last = ' ';
    for c in glob.chars() {
        match c {
            '*' if last == '*' => {}
            '*' => text.push_str(".*"),
            c if c.is_ascii_alphanumeric() || "_=,@/:-".contains(c) => text.push(c),
            c => {
                text.push('[');
                text.push(c);
                text.push(']');
            }
        }
        last = c;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_become_anchored_expressions() {
        let roles = "_+=,.@/:-";
        let of = |all: &[&str]| globs(all, roles);
        assert_eq!(of(&["a.b*", "c+"]).unwrap(), "^(?:a[.]b.*|c[+])$");
        assert_eq!(of(&["**x"]).unwrap(), "^(?:.*x)$");
        assert_eq!(of(&["a(b"]), None);
        assert_eq!(of(&["a b", "c"]).unwrap(), "^(?:c)$");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn texts_cannot_leave_their_quotes() {
        assert_eq!(quote("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
        assert_eq!(list(["a", "\""]), r#"["a", "\""]"#);
    }
}
