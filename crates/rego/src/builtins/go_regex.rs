//! Go's regular expressions (RE2), which OPA has, written as Rust's.
//!
//! The pattern is read as Go's parser reads it, and each part of it is written down in a form that
//! Rust's reads one way only. So a pattern that Go refuses is refused, and one that Go takes means
//! the same here: `{` that begins no repetition is itself, `\d`, `\s`, `\w` and `\b` know ASCII
//! alone, `[` and `&&` in a class are themselves, `\Q…\E` quotes, `\101` is `A`.

use regex::{Regex, RegexBuilder};

use super::go_class;
use crate::meter::weighed;

/// Longest pattern, in bytes: a list of some hundred registries.
pub(super) const MAX_PATTERN: usize = 64 * 1024;
/// Most groups inside each other.
const MAX_DEPTH: usize = 64;
/// Most repetitions that a counted repetition makes, together with those inside it; Go's bound.
const MAX_REPEAT: u32 = 1000;
/// Memory that one compiled pattern may take, in bytes.
const MAX_COMPILED: usize = 8 * 1024 * 1024;
/// Memory that a pattern may take while it matches, in bytes.
const MAX_CACHE: usize = 256 * 1024;

/// Most bytes of a compiled pattern times those of a text.
const MAX_WORK: usize = 1 << 35;

/// Why a text can't be used as a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("the pattern {0:?} is not one: {1}")]
    Invalid(String, &'static str),
    #[error(
        "the pattern {0:?} is too large: more than {MAX_COMPILED} bytes of memory: use smaller repetitions"
    )]
    TooLarge(String),
    #[error("a pattern of {0} bytes is too long: more than {MAX_PATTERN}: split it")]
    TooLong(usize),
    #[error("the pattern {0:?} has more than {MAX_DEPTH} groups inside each other")]
    TooDeep(String),
}

/// The beginning of a pattern, as errors show it.
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
    /// Names of its groups by their numbers; the whole match is number 0. Empty where a group has none.
    pub(super) names: Vec<String>,
    /// Memory that it takes, in bytes.
    size: usize,
}

impl GoRegex {
    /// Returns whether a text is short enough to search: a match can't be interrupted, and in the
    /// worst case examines each of its states for each character.
    pub(super) fn looks_at(&self, text: &str) -> anyhow::Result<&Regex> {
        anyhow::ensure!(
            self.size.saturating_mul(text.len()) <= MAX_WORK,
            "a pattern of {} bytes of memory is not asked about {} bytes of text: use smaller repetitions",
            self.size,
            text.len()
        );
        Ok(&self.regex)
    }

    /// Memory that it takes at most while it is kept, in bytes.
    pub(super) fn kept_size(&self) -> usize {
        self.size + MAX_CACHE
    }
}

/// Compiles a pattern of Go's.
///
/// # Errors
/// [`PatternError`] where Go takes it for none, or it is beyond a bound.
pub(super) fn compile(pattern: &str) -> Result<GoRegex, PatternError> {
    let Translated { text, names } = translate(pattern)?;
    let (regex, size) = build(&text).ok_or_else(|| PatternError::TooLarge(shown(pattern)))?;
    Ok(GoRegex { regex, names, size })
}

/// Compiles a pattern of Rust's without groups of its own; `None` where it takes too much memory.
pub(super) fn compile_as_it_is(text: &str) -> Option<GoRegex> {
    let (regex, size) = build(text)?;
    Some(GoRegex {
        regex,
        names: Vec::new(),
        size,
    })
}

/// Compiles a pattern of Rust's, with the memory that it takes; `None` where that is too much.
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

/// Writes a pattern of Go's as one of Rust's.
///
/// # Errors
/// [`PatternError`] if Go refuses it.
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

/// The reason why the parser stops.
#[derive(Debug)]
pub(super) enum Fault {
    Syntax(&'static str),
    Deep,
}

const fn fault<T>(why: &'static str) -> Result<T, Fault> {
    Err(Fault::Syntax(why))
}

/// The target of a repetition, or a change of flags.
struct Atom {
    text: String,
    /// Most repetitions of its parts: those of a repetition and of what is inside, multiplied.
    weight: u32,
    /// True for a change of flags, which can't be repeated.
    is_flags: bool,
}

/// An open group: its alternatives.
#[derive(Default)]
struct Group {
    /// The text that opened it.
    open: &'static str,
    /// Alternatives that are complete, each with a bar behind.
    done: String,
    /// Of the alternatives that are complete.
    weight: u32,
    /// The alternative that is read.
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

    /// The alternative that is read has ended.
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

    /// Reads what is behind a `(`.
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
            return fault("a ) closes nothing");
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

    /// `(?P<name>`, `(?<name>`, `(?i)`, `(?i:`.
    fn flags_or_name(&mut self) -> Result<(), Fault> {
        let named = ["(?P<", "(?<"]
            .into_iter()
            .find_map(|open| self.rest.strip_prefix(open).filter(|rest| !rest.is_empty()));
        if let Some(named) = named {
            let Some((name, rest)) = named.split_once('>') else {
                return fault("the name of a group has no end");
            };
            let is_name = |c: char| c == '_' || c.is_ascii_alphanumeric();
            if name.is_empty() || !name.chars().all(is_name) {
                return fault("the name of a group is not one");
            }
            self.rest = rest;
            self.names.push(name.to_owned());
            // Rust knows fewer names, so names stay with us.
            return self.enter("(");
        }
        const UNKNOWN: &str = "what is behind (? is not known";
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
                    // The last word counts; Rust takes no flag twice.
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

    /// Flags for a group that begins, or for the rest of the one that is open.
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

    /// Repeats the last atom. `weight` is how often at most.
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
            return fault("there is nothing to repeat");
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

/// `{2}`, `{2,}` or `{2,3}`.
struct Counts {
    least: u32,
    /// `None` if there is no comma, `Some(None)` if there is no bound.
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
            return fault("a repetition whose end is before its start");
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

/// A counted repetition at the start of a text; `None` where the `{` is itself.
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

/// A decimal number without leading zeros. What is too large for one is above all bounds.
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
    fn a_text_is_looked_at_as_long_as_the_pattern_is_small() {
        let small = compile("a").unwrap();
        assert!(small.looks_at(&"x".repeat(1024 * 1024)).is_ok());
        let large = compile(r"(\p{L}{10}){10}").unwrap();
        assert!(large.looks_at("x").is_ok());
        assert!(large.looks_at(&"x".repeat(1024 * 1024)).is_err());
    }
}
