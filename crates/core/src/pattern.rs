//! Patterns for role ARNs: globs and regular expressions, compiled once, bounded, matched in
//! linear time and always against the whole text.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use crate::arn::{BaseArn, is_arn, shorten};

/// Longest pattern taken from an annotation, in bytes.
const MAX_PATTERN: usize = 2048;
/// Most literal pieces of a glob.
const MAX_PIECES: usize = 32;
/// Memory that one regular expression may take compiled, in bytes.
pub const MAX_COMPILED: usize = 128 * 1024;
/// Memory of the cache that it may fill while it matches, in bytes.
const MAX_CACHE: usize = 64 * 1024;

/// How the patterns of a namespace's allowed roles are written; kube2iam's
/// `--namespace-restriction-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PatternFormat {
    /// `*` stands for any text, slashes included.
    #[default]
    Glob,
    /// A regular expression, RE2 syntax.
    Regexp,
}

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Longer than 2,048 bytes.
    #[error("the pattern is longer than {MAX_PATTERN} characters")]
    TooLong,
    /// A glob with too many stars.
    #[error("the pattern has more than {MAX_PIECES} stars")]
    TooManyStars,
    /// The regular expression does not compile or would take too much memory.
    #[error("{pattern:?} is not a usable regular expression: {why}")]
    NotARegexp {
        /// The start of the pattern.
        pattern: String,
        /// What the compiler says, one line.
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
    /// The literal pieces between the stars; one piece alone means equality.
    Glob(Vec<String>),
    Regexp(Regex),
}

impl Pattern {
    /// A pattern for role ARNs as kube2iam reads it: one that does not start as an ARN is
    /// completed by the base ARN. A regular expression may take `memory` bytes compiled,
    /// [`MAX_COMPILED`] at the most.
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
                let bare = pattern.strip_prefix('^').unwrap_or(pattern);
                let base = base.filter(|_| !is_arn(bare)).map_or("", BaseArn::as_str);
                Self::regexp(pattern, base, relative(bare), memory)
            }
        }
    }

    /// A regular expression that must match the whole text.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn whole(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        Self::regexp(pattern, "", pattern, MAX_COMPILED)
    }

    /// Compiles a glob of plain names, such as those of namespaces.
    ///
    /// # Errors
    /// [`PatternError`] where it is too long or has too many stars.
    pub fn glob_of_names(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        Self::glob(pattern, pattern)
    }

    /// The literal text that everything this matches starts with, and whether it is all of it.
    /// Regular expressions have none that is known.
    pub(crate) fn literal_start(&self) -> (&str, bool) {
        match &self.matcher {
            Matcher::Regexp(_) => ("", false),
            Matcher::Glob(pieces) => (pieces.first().map_or("", String::as_str), pieces.len() == 1),
        }
    }

    fn glob(text: &str, expanded: &str) -> Result<Self, PatternError> {
        let mut pieces: Vec<String> = Vec::new();
        let count = expanded.split('*').count();
        for (place, piece) in expanded.split('*').enumerate() {
            // Between two stars nothing is something; at the ends it is not.
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

    /// Compiles `expression` after the literal text `prefix`; `text` is how it was written.
    fn regexp(
        text: &str,
        prefix: &str,
        expression: &str,
        memory: usize,
    ) -> Result<Self, PatternError> {
        let build = |expression: &str| {
            RegexBuilder::new(expression)
                // ARNs are ASCII, and classes of all of Unicode are large.
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
        // Compiled alone first: an expression such as `a)|(b` must not break out of the anchors.
        build(expression)?;
        let prefix = regex::escape(prefix);
        Ok(Self {
            text: text.into(),
            matcher: Matcher::Regexp(build(&format!(r"\A{prefix}(?:{expression})\z"))?),
        })
    }

    /// Whether the pattern matches the whole of `text`.
    pub fn matches(&self, text: &str) -> bool {
        match &self.matcher {
            Matcher::Regexp(regexp) => regexp.is_match(text.as_bytes()),
            Matcher::Glob(pieces) => glob_matches(pieces, text),
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

fn relative(pattern: &str) -> &str {
    pattern.strip_prefix('/').unwrap_or(pattern)
}

/// Matches by the leftmost place of each piece: with only stars as wildcards, the leftmost place
/// leaves the most room for what follows, so no backtracking is needed.
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
        assert_eq!(
            glob(&"a*".repeat(33)).unwrap_err(),
            PatternError::TooManyStars
        );
        let stars = glob(&"*".repeat(2000)).unwrap();
        assert!(matches!(&stars.matcher, Matcher::Glob(pieces) if pieces.len() == 2));
        assert!(stars.matches("anything"));
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
