//! Translates Go's regular expressions (RE2), which OPA uses, to Rust's.
//!
//! A pattern is parsed as Go's parser does, and each part is written in a form that has only one
//! meaning in Rust. A pattern that Go rejects is therefore rejected, and one that Go accepts has
//! the same meaning: `{` without a repetition is literal, `\d`, `\s`, `\w` and `\b` cover ASCII
//! alone, `[` and `&&` in a class are literal, `\Q…\E` quotes, and `\101` is `A`.

use regex::{Regex, RegexBuilder};

use super::go_class::{self, Fault};
use crate::meter::weighed;

/// Maximum length of a pattern, in bytes. It fits a list of some hundred registries.
pub(super) const MAX_PATTERN: usize = 64 * 1024;
/// Maximum nesting of groups.
const MAX_DEPTH: usize = 64;
/// Maximum product of a counted repetition and the ones inside it; the same as in Go.
const MAX_REPEAT: u32 = 1000;
/// Maximum memory of a compiled pattern, in bytes.
const MAX_COMPILED: usize = 8 * 1024 * 1024;
/// Maximum memory of a pattern's match cache, in bytes.
const MAX_CACHE: usize = 256 * 1024;

/// Maximum product of the sizes of a compiled pattern and a text, in bytes.
const MAX_WORK: usize = 1 << 35;

/// The reason why a pattern is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("invalid pattern {0:?}: {1}")]
    Invalid(String, &'static str),
    #[error(
        "the pattern {0:?} needs more than {MAX_COMPILED} bytes of memory: use smaller repetitions"
    )]
    TooLarge(String),
    #[error("a pattern has {0} bytes, more than {MAX_PATTERN}: split it")]
    TooLong(usize),
    #[error("the pattern {0:?} has more than {MAX_DEPTH} nested groups")]
    TooDeep(String),
}

/// Returns the start of a pattern for error messages.
pub(super) fn shown(pattern: &str) -> String {
    const SHOWN: usize = 64;
    let mut short: String = pattern.chars().take(SHOWN).collect();
    if short.len() < pattern.len() {
        short.push('…');
    }
    short
}

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct GoRegex {
    regex: Regex,
    /// Names of the groups by number. Group 0 is the whole match. Unnamed groups have an empty
    /// name.
    pub(super) names: Vec<String>,
    /// Memory of the compiled pattern, in bytes.
    size: usize,
}

impl GoRegex {
    /// Returns the expression if a text is short enough to search: a search cannot be interrupted,
    /// and in the worst case examines each state for each character.
    pub(super) fn looks_at(&self, text: &str) -> anyhow::Result<&Regex> {
        anyhow::ensure!(
            self.size.saturating_mul(text.len()) <= MAX_WORK,
            "a pattern of {} bytes of memory is too expensive for {} bytes of text: use smaller \
             repetitions",
            self.size,
            text.len()
        );
        Ok(&self.regex)
    }

    /// Returns the maximum memory of the pattern while it is cached, in bytes.
    pub(super) fn kept_size(&self) -> usize {
        self.size + MAX_CACHE
    }
}

/// Compiles a Go pattern.
///
/// # Errors
/// [`PatternError`] if Go rejects the pattern or it exceeds a limit.
pub(super) fn compile(pattern: &str) -> Result<GoRegex, PatternError> {
    let Translated { text, names } = translate(pattern)?;
    let (regex, size) = build(&text).ok_or_else(|| PatternError::TooLarge(shown(pattern)))?;
    Ok(GoRegex { regex, names, size })
}

/// Compiles a Rust pattern without groups; `None` if it needs too much memory.
pub(super) fn compile_as_it_is(text: &str) -> Option<GoRegex> {
    let (regex, size) = build(text)?;
    Some(GoRegex {
        regex,
        names: Vec::new(),
        size,
    })
}

/// Compiles a Rust pattern and returns its memory; `None` if it needs too much.
fn build(text: &str) -> Option<(Regex, usize)> {
    let (built, size) = weighed(|| {
        RegexBuilder::new(text)
            .size_limit(MAX_COMPILED)
            .dfa_size_limit(MAX_CACHE)
            .build()
    });
    Some((built.ok()?, size))
}

/// A pattern in Rust's syntax.
#[derive(Debug)]
pub(super) struct Translated {
    pub(super) text: String,
    names: Vec<String>,
}

/// Translates a Go pattern to a Rust pattern.
///
/// # Errors
/// [`PatternError`] if Go rejects the pattern.
pub(super) fn translate(pattern: &str) -> Result<Translated, PatternError> {
    if pattern.len() > MAX_PATTERN {
        return Err(PatternError::TooLong(pattern.len()));
    }
    let mut parser = Parser {
        rest: pattern,
        groups: Vec::new(),
        group: Group::default(),
        names: vec![String::new()],
    };
    match parser.pattern() {
        Ok(text) => Ok(Translated {
            text,
            names: parser.names,
        }),
        Err(Fault::Deep) => Err(PatternError::TooDeep(shown(pattern))),
        Err(Fault::Syntax(why)) => Err(PatternError::Invalid(shown(pattern), why)),
    }
}

const fn fault<T>(why: &'static str) -> Result<T, Fault> {
    Err(Fault::Syntax(why))
}

/// The operand of a repetition, or a change of flags.
struct Atom {
    text: String,
    /// Maximum number of repetitions of its parts: the product of its own count and those inside.
    weight: u32,
    /// True for a change of flags, which cannot be repeated.
    is_flags: bool,
}

/// An open group with its alternatives.
#[derive(Default)]
struct Group {
    /// The text that opens the group.
    open: &'static str,
    /// Complete alternatives, each followed by a bar.
    done: String,
    /// Maximum weight of the complete alternatives.
    weight: u32,
    /// The current alternative.
    atoms: Vec<Atom>,
}

impl Group {
    fn push(&mut self, text: impl Into<String>) {
        self.atoms.push(Atom {
            text: text.into(),
            weight: 1,
            is_flags: false,
        });
    }

    /// Completes the current alternative.
    fn end_alternative(&mut self) {
        for atom in self.atoms.drain(..) {
            self.weight = self.weight.max(atom.weight);
            self.done.push_str(&atom.text);
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    groups: Vec<Group>,
    group: Group,
    names: Vec<String>,
}

impl<'a> Parser<'a> {
    fn pattern(&mut self) -> Result<String, Fault> {
        let mut repeated = false;
        while let Some(c) = self.rest.chars().next() {
            let was_repeated = std::mem::take(&mut repeated);
            match c {
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.skip(1);
                    self.group.end_alternative();
                    self.group.done.push('|');
                }
                '^' | '$' | '.' => {
                    self.skip(1);
                    self.group.push(c);
                }
                '[' => {
                    let (class, rest) = go_class::class(self.rest)?;
                    self.rest = rest;
                    self.group.push(class);
                }
                '*' | '+' | '?' => {
                    self.skip(1);
                    self.repeat(&c.to_string(), 1, was_repeated)?;
                    repeated = true;
                }
                '{' => match repetition(self.rest) {
                    Some((counts, rest)) => {
                        self.rest = rest;
                        let weight = counts.weight()?;
                        self.repeat(&counts.to_string(), weight, was_repeated)?;
                        repeated = true;
                    }
                    None => {
                        self.skip(1);
                        self.group.push(r"\{");
                    }
                },
                '\\' => self.escape()?,
                c => {
                    self.skip(c.len_utf8());
                    self.group.push(go_class::literal(c));
                }
            }
        }
        if !self.groups.is_empty() {
            return fault("a closing ) is missing");
        }
        self.group.end_alternative();
        Ok(std::mem::take(&mut self.group.done))
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or("");
    }

    /// Parses the text after a `(`.
    fn open(&mut self) -> Result<(), Fault> {
        if self.rest.starts_with("(?") {
            return self.flags_or_name();
        }
        self.skip(1);
        self.names.push(String::new());
        self.enter("(")
    }

    fn enter(&mut self, open: &'static str) -> Result<(), Fault> {
        if self.groups.len() >= MAX_DEPTH {
            return Err(Fault::Deep);
        }
        let group = Group {
            open,
            weight: 1,
            ..Group::default()
        };
        self.groups.push(std::mem::replace(&mut self.group, group));
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fault> {
        self.skip(1);
        let Some(outer) = self.groups.pop() else {
            return fault("an unmatched )");
        };
        self.group.end_alternative();
        let Group {
            open, done, weight, ..
        } = std::mem::replace(&mut self.group, outer);
        self.group.atoms.push(Atom {
            text: format!("{open}{done})"),
            weight,
            is_flags: false,
        });
        Ok(())
    }

    /// Parses `(?P<name>`, `(?<name>`, `(?i)` or `(?i:`.
    fn flags_or_name(&mut self) -> Result<(), Fault> {
        let named = ["(?P<", "(?<"]
            .into_iter()
            .find_map(|open| self.rest.strip_prefix(open).filter(|rest| !rest.is_empty()));
        if let Some(named) = named {
            let Some((name, rest)) = named.split_once('>') else {
                return fault("an unterminated group name");
            };
            let is_name = |c: char| c == '_' || c.is_ascii_alphanumeric();
            if name.is_empty() || !name.chars().all(is_name) {
                return fault("an invalid group name");
            }
            self.rest = rest;
            self.names.push(name.to_owned());
            // Rust accepts fewer names, so names are kept separately.
            return self.enter("(");
        }
        const UNKNOWN: &str = "unknown syntax after (?";
        self.skip(2);
        let (mut on, mut off) = (String::new(), String::new());
        let (mut negative, mut seen) = (false, false);
        loop {
            let Some(c) = self.rest.chars().next() else {
                return fault(UNKNOWN);
            };
            self.skip(c.len_utf8());
            match c {
                'i' | 'm' | 's' | 'U' => {
                    seen = true;
                    // The last occurrence applies; Rust rejects a repeated flag.
                    on.retain(|flag| flag != c);
                    off.retain(|flag| flag != c);
                    if negative { &mut off } else { &mut on }.push(c);
                }
                '-' if !negative => (negative, seen) = (true, false),
                ':' | ')' if !negative || seen => {
                    let minus = if off.is_empty() { "" } else { "-" };
                    let flags = format!("{on}{minus}{off}");
                    return self.apply(&flags, c == ':');
                }
                _ => return fault(UNKNOWN),
            }
        }
    }

    /// Sets flags for a new group, or for the rest of the open group.
    fn apply(&mut self, flags: &str, begins_group: bool) -> Result<(), Fault> {
        if begins_group {
            self.enter("(?:")?;
        }
        if !flags.is_empty() {
            self.group.atoms.push(Atom {
                text: format!("(?{flags})"),
                weight: 1,
                is_flags: true,
            });
        }
        Ok(())
    }

    /// Repeats the last atom at most `weight` times.
    fn repeat(&mut self, operator: &str, weight: u32, was_repeated: bool) -> Result<(), Fault> {
        let lazy = self.rest.starts_with('?');
        if lazy {
            self.skip(1);
        }
        if was_repeated {
            return fault("a repetition of a repetition");
        }
        let Some(atom) = self
            .group
            .atoms
            .iter_mut()
            .rev()
            .find(|atom| !atom.is_flags)
        else {
            return fault("a repetition of nothing");
        };
        atom.weight = atom.weight.saturating_mul(weight);
        if atom.weight > MAX_REPEAT {
            return fault("more than 1000 repetitions");
        }
        let lazy = if lazy { "?" } else { "" };
        atom.text = format!("(?:{}){operator}{lazy}", atom.text);
        Ok(())
    }

    fn escape(&mut self) -> Result<(), Fault> {
        match self.rest.chars().nth(1) {
            Some('A') => self.known(r"\A"),
            Some('z') => self.known(r"\z"),
            Some('b') => self.known(r"(?-u:\b)"),
            Some('B') => self.known(r"(?-u:\B)"),
            Some('C') => return fault(r"\C is not supported"),
            Some('Q') => {
                self.skip(2);
                let (quoted, rest) = self.rest.split_once(r"\E").unwrap_or((self.rest, ""));
                self.rest = rest;
                for c in quoted.chars() {
                    self.group.push(go_class::literal(c));
                }
            }
            _ => {
                if let Some((class, rest)) = go_class::named(self.rest)? {
                    self.rest = rest;
                    self.group.push(class);
                } else {
                    let (code, rest) = go_class::escaped(self.rest)?;
                    self.rest = rest;
                    self.group.push(go_class::one(code));
                }
            }
        }
        Ok(())
    }

    fn known(&mut self, text: &str) {
        self.skip(2);
        self.group.push(text);
    }
}

/// The counts of `{2}`, `{2,}` or `{2,3}`.
struct Counts {
    least: u32,
    /// `None` without a comma, `Some(None)` without an upper bound.
    most: Option<Option<u32>>,
}

impl Counts {
    fn weight(&self) -> Result<u32, Fault> {
        let most = match self.most {
            None => self.least,
            Some(None) => return Self::within(self.least).map(|least| least.max(1)),
            Some(Some(most)) => most,
        };
        Self::within(self.least.max(most))?;
        if self.least > most {
            return fault("a repetition ends before it starts");
        }
        // The whole pattern contains no repetition.
        Ok(most)
    }

    fn within(count: u32) -> Result<u32, Fault> {
        if count > MAX_REPEAT {
            return fault("more than 1000 repetitions");
        }
        Ok(count)
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.most {
            None => write!(f, "{{{}}}", self.least),
            Some(None) => write!(f, "{{{},}}", self.least),
            Some(Some(most)) => write!(f, "{{{},{most}}}", self.least),
        }
    }
}

/// Parses a counted repetition at the start of a text; `None` if the `{` is literal.
fn repetition(text: &str) -> Option<(Counts, &str)> {
    let (least, rest) = count(text.strip_prefix('{')?)?;
    let (most, rest) = match rest.strip_prefix(',') {
        None => (None, rest),
        Some(rest) if rest.starts_with('}') => (Some(None), rest),
        Some(rest) => {
            let (most, rest) = count(rest)?;
            (Some(Some(most)), rest)
        }
    };
    Some((Counts { least, most }, rest.strip_prefix('}')?))
}

/// Parses a decimal number without leading zeros. One that is too large counts as exceeding all
/// limits.
fn count(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    Some((digits.parse().unwrap_or(u32::MAX), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let go = compile(pattern).unwrap();
        go.looks_at(text).unwrap().is_match(text)
    }

    #[test]
    fn patterns_that_policies_have_are_compiled() {
        let registries: Vec<String> = (0..160)
            .map(|number| format!(r"registry-{number:03}\.eu-west-1\.example\.com"))
            .collect();
        let registries = format!("^({})/", registries.join("|"));
        assert!(registries.len() > 4096);
        let long = "x".repeat(253);
        for (pattern, yes, no) in [
            ("^.{1,253}$", long.as_str(), ""),
            ("^.{0,500}$", &long, "a\nb"),
            ("^[^/]{1,512}$", &long, "a/b"),
            (r"^[\p{L}]{1,100}$", "é", "1"),
            ("{{.*}}", "{{ x }}", "{ x }"),
            ("x{", "x{", "x"),
            ("a{,3}", "a{,3}", "aaa"),
            (r"\101", "A", "1"),
            (
                &registries,
                "registry-159.eu-west-1.example.com/a",
                "registry-160.eu-west-1.example.com/a",
            ),
        ] {
            assert!(matches(pattern, yes), "{pattern}");
            assert!(!matches(pattern, no), "{pattern}");
        }
    }

    #[test]
    fn bounds_hold_at_the_bound_and_not_beyond() {
        let nested = |levels: usize| format!("{}a{}", "(".repeat(levels), ")".repeat(levels));
        assert!(compile(&nested(MAX_DEPTH)).is_ok());
        let deep = compile(&nested(MAX_DEPTH + 1)).unwrap_err();
        assert!(matches!(deep, PatternError::TooDeep(_)), "{deep}");
        assert!(translate(&"a".repeat(MAX_PATTERN)).is_ok());
        let long = translate(&"a".repeat(MAX_PATTERN + 1)).unwrap_err();
        assert!(matches!(long, PatternError::TooLong(_)), "{long}");
        let large = compile(r"(\p{L}{30}){30}").unwrap_err();
        assert!(matches!(large, PatternError::TooLarge(_)), "{large}");
        for (pattern, is_valid) in [
            ("a{1000}", true),
            ("a{1001}", false),
            ("((a{10}){10}){10}", true),
            ("((a{10}){10}){11}", false),
            ("(a{0}){1000}", true),
            ("(a{2,}){500}", true),
            ("(a{2,}){501}", false),
        ] {
            assert_eq!(translate(pattern).is_ok(), is_valid, "{pattern}");
        }
    }

    #[test]
    fn long_texts_are_searched_for_small_patterns() {
        let small = compile("a").unwrap();
        assert!(small.looks_at(&"x".repeat(1024 * 1024)).is_ok());
        let large = compile(r"(\p{L}{10}){10}").unwrap();
        assert!(large.looks_at("x").is_ok());
        assert!(large.looks_at(&"x".repeat(1024 * 1024)).is_err());
    }
}
