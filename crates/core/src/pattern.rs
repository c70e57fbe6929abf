//! Patterns for role ARNs: globs and regular expressions that are compiled once, bounded in size,
//! and matched in linear time against the whole text.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{HirKind, Look};

use crate::arn::{BaseArn, is_arn, shorten};

/// Maximum length of a pattern from an annotation, in bytes.
const MAX_PATTERN: usize = 2048;
/// Maximum number of literal pieces in a glob.
const MAX_PIECES: usize = 32;
/// Maximum memory of a compiled regular expression, in bytes.
pub const MAX_COMPILED: usize = 128 * 1024;
/// Maximum memory of a regular expression's match cache, in bytes.
const MAX_CACHE: usize = 64 * 1024;

/// The format of a namespace's allowed roles, as set by kube2iam's
/// `--namespace-restriction-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PatternFormat {
    /// Globs: `*` matches any text, including slashes.
    #[default]
    Glob,
    /// Regular expressions in RE2 syntax.
    Regexp,
}

/// The reason why a pattern is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The pattern is longer than 2,048 bytes.
    #[error("the pattern is longer than {MAX_PATTERN} characters")]
    TooLong,
    /// The glob has too many stars.
    #[error("the pattern has more than {MAX_PIECES} stars")]
    TooManyStars,
    /// The regular expression does not compile or needs too much memory.
    #[error("{pattern:?} is not a usable regular expression: {why}")]
    NotARegexp {
        /// The pattern, truncated.
        pattern: String,
        /// The compiler's message, on one line.
        why: String,
    },
}

/// A compiled pattern, anchored at both ends.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

#[derive(Clone)]
enum Matcher {
    /// The literal pieces between the stars. A single piece is compared for equality.
    Glob(Vec<String>),
    /// A literal prefix, and an expression for the rest.
    Regexp { start: String, rest: Regex },
}

/// A regular expression for roles, interpreted in one place for layer `namespace`, for the
/// conversion to grants and for the export to CEL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleExpression<'a> {
    /// The literal text before the part that the expression matches: the base ARN if it matches
    /// names.
    pub start: &'a str,
    /// The expression, which must match the whole text after the prefix. Its anchors, including
    /// those in alternatives, refer to the start and end of that text.
    pub rest: &'a str,
}

impl<'a> RoleExpression<'a> {
    /// Interprets an expression as kube2iam does: unless it starts like an ARN, it matches the part
    /// after the base ARN. A leading slash is dropped, as for a name, unless an anchor follows:
    /// `/^a` matches nothing, and `^a` would match.
    pub fn read(expression: &'a str, base: Option<&'a BaseArn>) -> Self {
        let bare = expression.strip_prefix('^').unwrap_or(expression);
        let rest = match bare.strip_prefix('/') {
            // A slash with a quantifier is part of the expression.
            Some(rest) if !rest.starts_with(['?', '*', '+', '{']) && !may_begin_text(rest) => rest,
            Some(_) => expression,
            None => bare,
        };
        let base = base.filter(|_| !is_arn(bare));
        Self {
            start: base.map_or("", BaseArn::as_str),
            rest,
        }
    }

    /// Creates an expression that matches whole ARNs.
    pub fn whole(expression: &'a str) -> Self {
        Self {
            start: "",
            rest: expression,
        }
    }
}

impl Pattern {
    /// Compiles a pattern for role ARNs as kube2iam reads it: unless it starts like an ARN, the
    /// base ARN is prepended. A compiled regular expression may use at most `memory` bytes, and
    /// never more than [`MAX_COMPILED`].
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn for_roles(
        pattern: &str,
        format: PatternFormat,
        base: Option<&BaseArn>,
        memory: usize,
    ) -> Result<Self, PatternError> {
        if pattern.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        match format {
            PatternFormat::Glob if is_arn(pattern) => Self::glob(pattern, pattern),
            PatternFormat::Glob => Self::glob(
                pattern,
                &format!("{}{}", base.map_or("", BaseArn::as_str), relative(pattern)),
            ),
            PatternFormat::Regexp => {
                Self::regexp(pattern, RoleExpression::read(pattern, base), memory)
            }
        }
    }

    /// Compiles a regular expression that must match the whole text.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn whole(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        Self::regexp(pattern, RoleExpression::whole(pattern), MAX_COMPILED)
    }

    /// Compiles a glob for plain names, such as those of namespaces.
    ///
    /// # Errors
    /// [`PatternError`] if the glob is too long or has too many stars.
    pub fn glob_of_names(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        Self::glob(pattern, pattern)
    }

    /// Returns the literal prefix of everything that this pattern matches, and true if the prefix
    /// is the whole text. Regular expressions have none.
    pub(crate) fn literal_start(&self) -> (&str, bool) {
        match &self.matcher {
            Matcher::Regexp { start, .. } => (start, false),
            Matcher::Glob(pieces) => (pieces.first().map_or("", String::as_str), pieces.len() == 1),
        }
    }

    fn glob(text: &str, expanded: &str) -> Result<Self, PatternError> {
        let mut pieces: Vec<String> = Vec::new();
        let count = expanded.split('*').count();
        for (place, piece) in expanded.split('*').enumerate() {
            // An empty piece between two stars is redundant; at either end it is significant.
            if !piece.is_empty() || place == 0 || place + 1 == count {
                pieces.push(piece.into());
            }
        }
        if pieces.len() > MAX_PIECES {
            return Err(PatternError::TooManyStars);
        }
        Ok(Self {
            text: text.into(),
            matcher: Matcher::Glob(pieces),
        })
    }

    /// Compiles an expression; `text` is its original form.
    fn regexp(
        text: &str,
        expression: RoleExpression<'_>,
        memory: usize,
    ) -> Result<Self, PatternError> {
        let build = |expression: &str| {
            RegexBuilder::new(expression)
                // ARNs are ASCII, and Unicode classes are large.
                .unicode(false)
                .size_limit(memory.min(MAX_COMPILED))
                .dfa_size_limit(MAX_CACHE)
                .build()
                .map_err(|why| PatternError::NotARegexp {
                    pattern: shorten(text),
                    why: shorten(
                        why.to_string()
                            .lines()
                            .last()
                            .unwrap_or_default()
                            .trim_start_matches("error: "),
                    ),
                })
        };
        // Compiled alone first, so that an expression such as `a)|(b` cannot escape the anchors.
        build(expression.rest)?;
        Ok(Self {
            text: text.into(),
            matcher: Matcher::Regexp {
                start: expression.start.into(),
                rest: build(&format!(r"\A(?:{})\z", expression.rest))?,
            },
        })
    }

    /// Returns true if the pattern matches the whole of `text`.
    pub fn matches(&self, text: &str) -> bool {
        match &self.matcher {
            Matcher::Regexp { start, rest } => text
                .strip_prefix(start.as_str())
                .is_some_and(|text| rest.is_match(text.as_bytes())),
            Matcher::Glob(pieces) => glob_matches(pieces, text),
        }
    }

    /// Returns the pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

/// Returns true if an alternative of the expression may begin with an anchor for the start of the
/// text.
fn may_begin_text(expression: &str) -> bool {
    let mut parser = ParserBuilder::new().unicode(false).utf8(false).build();
    // Compilation rejects what does not parse.
    let Ok(parsed) = parser.parse(expression) else {
        return false;
    };
    let first = match parsed.kind() {
        HirKind::Alternation(alternatives) => alternatives.first(),
        _ => None,
    };
    let looks = first.unwrap_or(&parsed).properties().look_set();
    let mut starts = [Look::Start, Look::StartLF, Look::StartCRLF].into_iter();
    starts.any(|start| looks.contains(start))
}

fn relative(pattern: &str) -> &str {
    pattern.strip_prefix('/').unwrap_or(pattern)
}

/// Matches each piece at its leftmost position. Since stars are the only wildcards, this leaves the
/// most text for the remaining pieces, so no backtracking is needed.
fn glob_matches(pieces: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| only == text);
    };
    let Some(mut rest) = text.strip_prefix(first.as_str()) else {
        return false;
    };
    for piece in middle {
        let Some(place) = rest.find(piece.as_str()) else {
            return false;
        };
        rest = rest.get(place + piece.len()..).unwrap_or_default();
    }
    rest.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> BaseArn {
        BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()
    }

    fn role(name: &str) -> String {
        format!("arn:aws:iam::123456789012:role/{name}")
    }

    #[test]
    fn table_of_patterns() {
        use PatternFormat::{Glob, Regexp};
        let cases: &[(PatternFormat, &str, &str, bool)] = &[
            (Glob, "team-a", "team-a", true),
            (Glob, "team-a", "team-a-admin", false),
            (Glob, "team-*", "team-a-admin", true),
            (Glob, "*", "deep/er/role", true),
            (Glob, "/team/*", "team/x", true),
            (Glob, "a*b*a", "aba", true),
            (Glob, "a*b*a", "ab", false),
            (Glob, "a*a", "a", false),
            (Glob, "", "x", false),
            (Glob, "team-.", "team-x", false),
            (Glob, "arn:aws:iam::123456789012:role/x*", "xy", true),
            (Glob, "arn:aws:iam::*:role/x", "x", true),
            (Glob, "arn:aws:iam::210987654321:role/x", "x", false),
            (Regexp, "team-a", "team-a", true),
            (Regexp, "team-a", "team-a-admin", false),
            (Regexp, "a|team-.*", "team-x", true),
            (Regexp, "a|b", "ab", false),
            (Regexp, ".*", "deep/role", true),
            (Regexp, "^team-a$", "team-a", true),
            (
                Regexp,
                "^arn:aws:iam::123456789012:role/team-.$",
                "team-a",
                true,
            ),
            (
                Regexp,
                "arn:aws:iam::123456789012:role/team-a|evil",
                "evil",
                false,
            ),
            (Regexp, "", "x", false),
            // Anchors in alternatives refer to the start and end of the name.
            (Regexp, "^a$|^b$", "a", true),
            (Regexp, "^a$|^b$", "b", true),
            (Regexp, "^a$|^b$", "ab", false),
            (Regexp, "^a|b$", "ax", false),
            (Regexp, "^a|b$", "xb", false),
            (Regexp, "(^team-.*$)|(?:^x$)", "team-x", true),
            (Regexp, "(^team-.*$)|(?:^x$)", "x", true),
            (Regexp, r"\Aa\z", "a", true),
            (Regexp, "a$b|c", "ab", false),
            (Regexp, "^/a$", "a", true),
            (Regexp, "/?a", "a", true),
            (Regexp, "^/*a$", "a", true),
            (Regexp, "^/+a$", "a", false),
            (Regexp, "/x|[^a].*", "ab", false),
            // Nothing begins after a slash.
            (Regexp, r"/\Aa", "a", false),
            (Regexp, "/^a", "a", false),
            (Regexp, "^/b?(^a)", "a", false),
            (Regexp, "/(?m:^)a", "a", false),
            (Regexp, "/^a|b", "b", true),
            (Regexp, "/a|^b", "b", true),
            (Regexp, "/[^b]", "a", true),
            (Regexp, "^arn:.*/a$|^arn:.*/b$", "b", true),
        ];
        for (format, pattern, name, expected) in cases {
            let compiled =
                Pattern::for_roles(pattern, *format, Some(&base()), MAX_COMPILED).unwrap();
            assert_eq!(
                compiled.matches(&role(name)),
                *expected,
                "{format:?} {pattern} on {name}"
            );
        }
    }

    #[test]
    fn anchors_cannot_be_broken_out_of() {
        for pattern in ["x)|(?:.*", "(?:x", "x)", "[", r"\"] {
            assert!(Pattern::whole(pattern).is_err(), "{pattern}");
            assert!(
                Pattern::for_roles(pattern, PatternFormat::Regexp, Some(&base()), MAX_COMPILED)
                    .is_err(),
                "{pattern}"
            );
        }
        let multiline = Pattern::whole("(?m)^x$").unwrap();
        assert!(multiline.matches("x") && !multiline.matches("x\ny"));
        let verbose = Pattern::whole("(?x) x # comment");
        assert!(verbose.is_err() || !verbose.unwrap().matches("xy"));
    }

    #[test]
    fn patterns_are_bounded() {
        assert!(matches!(
            Pattern::whole(&"x".repeat(MAX_PATTERN + 1)),
            Err(PatternError::TooLong)
        ));
        assert!(Pattern::whole("(((x{1000}){1000}){1000})").is_err());
        let glob = |text: &str| Pattern::for_roles(text, PatternFormat::Glob, None, MAX_COMPILED);
        // Repeated `a*` exceeds the number of stars, and an expression of it exceeds the memory.
        let long = |length: usize| "x".repeat(length);
        for (length, is_taken) in [(MAX_PATTERN, true), (MAX_PATTERN + 1, false), (9000, false)] {
            let text = long(length);
            assert_eq!(glob(&text).is_ok(), is_taken, "{length}");
            assert_eq!(Pattern::glob_of_names(&text).is_ok(), is_taken, "{length}");
            assert_eq!(
                matches!(Pattern::whole(&text), Err(PatternError::TooLong)),
                !is_taken,
                "{length}"
            );
        }
        assert_eq!(
            glob(&"a*".repeat(33)).unwrap_err(),
            PatternError::TooManyStars
        );
        let stars = glob(&"*".repeat(2000)).unwrap();
        assert!(matches!(&stars.matcher, Matcher::Glob(pieces) if pieces.len() == 2));
        assert!(stars.matches("anything"));
    }

    /// Generates typical expressions with anchors and slashes at any position.
    fn expression() -> impl Strategy<Value = String> {
        let leaf = proptest::sample::select(
            &[
                "a", "b", "/", "^", "$", ".", ".*", "[^a]", "arn:", "role/", r"\A", r"\z", "?", "*",
            ][..],
        )
        .prop_map(str::to_owned);
        leaf.prop_recursive(3, 12, 4, |inner| {
            let parts = proptest::collection::vec(inner, 1..4);
            prop_oneof![
                parts.clone().prop_map(|parts| parts.concat()),
                parts.clone().prop_map(|parts| parts.join("|")),
                parts.prop_map(|parts| format!("({})", parts.join("|"))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// kiam searches for the expression anywhere in the ARN, or in the role as a pod writes it.
        #[test]
        fn expressions_allow_no_more_than_to_kiam(text in expression(), name in "[ab]{1,2}(/[ab])?") {
            let arn = role(&name);
            let named = Pattern::for_roles(&text, PatternFormat::Regexp, Some(&base()), MAX_COMPILED);
            let allowed = [named, Pattern::whole(&text)].into_iter();
            let is_allowed = allowed.flatten().any(|pattern| pattern.matches(&arn));
            if is_allowed {
                let kiam = RegexBuilder::new(&text).unicode(false).build().unwrap();
                let written = [arn.clone(), name.clone(), format!("/{name}")];
                prop_assert!(written.iter().any(|role| kiam.is_match(role.as_bytes())));
            }
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_regular_expressions(pattern in "[ab*]{0,12}", text in "[ab]{0,12}") {
            let expanded: Vec<_> = pattern.split('*').map(regex::escape).collect();
            let regexp = Regex::new(&format!(r"\A{}\z", expanded.join(".*"))).unwrap();
            let glob = Pattern::glob(&pattern, &pattern).unwrap();
            prop_assert_eq!(glob.matches(&text), regexp.is_match(text.as_bytes()));
        }

        #[test]
        fn nothing_panics(pattern in ".{0,64}", text in ".{0,64}") {
            for format in [PatternFormat::Glob, PatternFormat::Regexp] {
                if let Ok(compiled) = Pattern::for_roles(&pattern, format, None, MAX_COMPILED) {
                    compiled.matches(&text);
                }
            }
        }
    }
}
