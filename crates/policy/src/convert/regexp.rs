//! Converts regular expressions that are equivalent to globs: literal text, `.*`, alternatives and
//! small classes. Users must convert others manually.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

/// Maximum number of globs for one expression.
const MAX_GLOBS: usize = 64;
/// Maximum length of an expression, in bytes.
const MAX_LENGTH: usize = 2048;

/// The reason why an expression is not equivalent to a list of globs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotGlobs {
    /// It is not a valid expression.
    #[error("it is not a valid regular expression")]
    Broken,
    /// It is too long, or has too many alternatives.
    #[error("it has more than {MAX_GLOBS} alternatives: use fewer patterns with *")]
    TooMany,
    /// A part matches some characters only.
    #[error(
        "{0} has no glob: list the roles individually, or use * for any text; write a literal dot as \
         \\."
    )]
    Part(String),
    /// An anchor or a boundary is inside.
    #[error("an anchor or boundary inside has no glob: the whole ARN is matched anyway")]
    Look,
}

/// Returns the globs that together match the same texts as the whole `expression`, on one line of
/// ASCII without stars, as in role ARNs.
pub(super) fn globs(expression: &str) -> Result<Vec<String>, NotGlobs> {
    if expression.len() > MAX_LENGTH {
        return Err(NotGlobs::TooMany);
    }
    let hir = ParserBuilder::new()
        .unicode(false)
        .utf8(false)
        .nest_limit(64)
        .build()
        .parse(expression)
        .map_err(|_| NotGlobs::Broken)?;
    let mut globs = expand(&hir, true, true)?;
    globs.sort();
    globs.dedup();
    Ok(globs)
}

/// Expands a part. `first` and `last`: no text precedes or follows it.
fn expand(hir: &Hir, first: bool, last: bool) -> Result<Vec<String>, NotGlobs> {
    match hir.kind() {
        HirKind::Empty => Ok(vec![String::new()]),
        HirKind::Literal(literal) => literal
            .0
            .iter()
            .map(|byte| literal_byte(*byte))
            .collect::<Option<String>>()
            .map(|text| vec![text])
            .ok_or_else(|| part(hir)),
        HirKind::Class(class) => characters(class).ok_or_else(|| part(hir)),
        HirKind::Look(look) => {
            let idle = match look {
                Look::Start | Look::StartLF | Look::StartCRLF => first,
                Look::End | Look::EndLF | Look::EndCRLF => last,
                _ => false,
            };
            idle.then(|| vec![String::new()]).ok_or(NotGlobs::Look)
        }
        HirKind::Repetition(repetition) => repeat(repetition, first, last),
        HirKind::Capture(capture) => expand(&capture.sub, first, last),
        HirKind::Concat(parts) => {
            let is_idle = |part: &Hir| part.properties().maximum_len() == Some(0);
            let mut all = vec![String::new()];
            for (place, part) in parts.iter().enumerate() {
                let first = first && parts.iter().take(place).all(is_idle);
                let last = last && parts.iter().skip(place + 1).all(is_idle);
                all = product(&all, &expand(part, first, last)?)?;
            }
            Ok(all)
        }
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(expand(part, first, last)?);
                bounded(&all)?;
            }
            Ok(all)
        }
    }
}

fn repeat(repetition: &Repetition, first: bool, last: bool) -> Result<Vec<String>, NotGlobs> {
    let Repetition { min, max, sub, .. } = repetition;
    match (min, max) {
        (0, None) if is_any(sub) => Ok(vec!["*".into()]),
        (1, Some(1)) => expand(sub, first, last),
        (least, Some(most)) if *most <= 8 => {
            let one = expand(sub, false, false)?;
            let mut powers = vec![String::new()];
            let mut all = Vec::new();
            for count in 0..=*most {
                if count >= *least {
                    all.extend(powers.iter().cloned());
                    bounded(&all)?;
                }
                if count < *most {
                    powers = product(&powers, &one)?;
                }
            }
            Ok(all)
        }
        _ => {
            let whole = Hir::repetition(repetition.clone());
            Err(part(&whole))
        }
    }
}

/// Returns whether it matches every character of an ARN: `.`, with or without line breaks.
fn is_any(hir: &Hir) -> bool {
    let hir = match hir.kind() {
        HirKind::Capture(capture) => &capture.sub,
        _ => hir,
    };
    let covers = |ranges: &mut dyn Iterator<Item = (u32, u32)>| {
        let ranges: Vec<_> = ranges.collect();
        (0x20..=0x7e).all(|c| {
            ranges
                .iter()
                .any(|(start, end)| (*start..=*end).contains(&c))
        })
    };
    match hir.kind() {
        HirKind::Class(Class::Bytes(class)) => {
            let mut ranges = class.iter().map(|r| (r.start().into(), r.end().into()));
            covers(&mut ranges)
        }
        HirKind::Class(Class::Unicode(class)) => {
            let mut ranges = class.iter().map(|r| (r.start().into(), r.end().into()));
            covers(&mut ranges)
        }
        _ => false,
    }
}

/// Returns the characters of a small class, each as a glob.
fn characters(class: &Class) -> Option<Vec<String>> {
    let ranges: Vec<(u32, u32)> = match class {
        Class::Bytes(class) => class
            .iter()
            .map(|range| (range.start().into(), range.end().into()))
            .collect(),
        Class::Unicode(class) => class
            .iter()
            .map(|range| (range.start().into(), range.end().into()))
            .collect(),
    };
    let size: u32 = ranges.iter().map(|(start, end)| end - start + 1).sum();
    if size > 36 {
        return None;
    }
    let all = ranges.into_iter().flat_map(|(start, end)| start..=end);
    all.map(|c| {
        u8::try_from(c)
            .ok()
            .and_then(literal_byte)
            .map(String::from)
    })
    .collect()
}

/// Returns a byte that matches only itself in a glob.
fn literal_byte(byte: u8) -> Option<char> {
    (byte.is_ascii_graphic() && byte != b'*').then(|| char::from(byte))
}

fn product(starts: &[String], ends: &[String]) -> Result<Vec<String>, NotGlobs> {
    if starts.len() * ends.len() > MAX_GLOBS {
        return Err(NotGlobs::TooMany);
    }
    let all: Vec<_> = starts
        .iter()
        .flat_map(|start| {
            ends.iter().map(move |end| {
                // Two consecutive stars are equivalent to one.
                let end = if start.ends_with('*') {
                    end.trim_start_matches('*')
                } else {
                    end
                };
                format!("{start}{end}")
            })
        })
        .collect();
    let longest = all.iter().map(String::len).max().unwrap_or(0);
    if longest > MAX_LENGTH {
        return Err(NotGlobs::TooMany);
    }
    Ok(all)
}

fn bounded(all: &[String]) -> Result<(), NotGlobs> {
    (all.len() <= MAX_GLOBS)
        .then_some(())
        .ok_or(NotGlobs::TooMany)
}

fn part(hir: &Hir) -> NotGlobs {
    let mut text: String = hir.to_string().chars().take(40).collect();
    // Classes without Unicode are displayed with this flag, which the user did not write.
    text = text.replace("(?-u:", "").replace(')', "");
    NotGlobs::Part(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rolegate_core::pattern::Pattern;

    use super::*;

    #[test]
    fn table_of_expressions() {
        for (expression, expected) in [
            ("team-a", Ok(vec!["team-a"])),
            ("^team-a$", Ok(vec!["team-a"])),
            ("team-.*", Ok(vec!["team-*"])),
            (".*", Ok(vec!["*"])),
            ("", Ok(vec![""])),
            ("a|b|^c$", Ok(vec!["a", "b", "c"])),
            ("^(team-(a|b)|x.*)$", Ok(vec!["team-a", "team-b", "x*"])),
            (
                "reader(-v[12])?",
                Ok(vec!["reader", "reader-v1", "reader-v2"]),
            ),
            ("a\\.b", Ok(vec!["a.b"])),
            ("x.*.*y", Ok(vec!["x*y"])),
            ("(?:.*)", Ok(vec!["*"])),
            ("a{2}", Ok(vec!["aa"])),
            ("team-.+", Err("no glob")),
            ("team-.", Err("no glob")),
            ("[a-z]+", Err("no glob")),
            ("[^/]*", Err("no glob")),
            ("a^b", Err("anchor")),
            (r"a\b", Err("anchor")),
            ("(", Err("not a valid regular expression")),
            ("(?i)team", Ok(vec![])),
            ("[a-z0-9]{2}", Err("alternatives")),
            (r"a\*b", Err("no glob")),
        ] {
            let found = globs(expression);
            match expected {
                Ok(expected) if expected.is_empty() => assert!(found.is_ok(), "{expression}"),
                Ok(expected) => assert_eq!(found.unwrap(), expected, "{expression}"),
                Err(part) => {
                    let error = found.unwrap_err().to_string();
                    assert!(error.contains(part), "{expression}: {error}");
                }
            }
        }
    }

    #[test]
    fn parts_are_told_as_they_were_written() {
        let message = globs("team-[a-z]+").unwrap_err().to_string();
        assert!(message.starts_with("[a-z]+ has no glob"), "{message}");
    }

    fn expression() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("a".to_owned()),
            Just("b/".to_owned()),
            Just(".*".to_owned()),
            Just(".".to_owned()),
            Just("[ab]".to_owned()),
            Just("^".to_owned()),
            Just("$".to_owned()),
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
                prop::collection::vec(inner.clone(), 1..4)
                    .prop_map(|parts| format!("({})", parts.join("|"))),
                inner.prop_map(|part| format!("({part})?")),
            ]
        })
    }

    proptest! {
        #[test]
        fn globs_match_what_the_expression_matches(
            expression in expression(),
            texts in prop::collection::vec("[ab/]{0,6}", 8),
        ) {
            if let Ok(globs) = globs(&expression) {
                let whole = Pattern::whole(&expression).unwrap();
                for text in texts {
                    let by_glob = globs.iter().any(|glob| {
                        Pattern::glob_of_names(glob).unwrap().matches(&text)
                    });
                    prop_assert_eq!(by_glob, whole.matches(&text), "{} {:?} {}", expression, globs, text);
                }
            }
        }

        #[test]
        fn nothing_panics(expression in ".{0,40}") {
            let _ = globs(&expression);
        }
    }
}
