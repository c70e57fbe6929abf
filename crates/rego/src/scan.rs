//! Scans a module's tokens before it is parsed, and rejects text that would make the parser or the
//! evaluator recurse too deeply, or make the parser backtrack too often.

use regorus::Source;
use regorus::unstable::{Lexer, TokenKind};

use crate::error::LoadError;

/// Maximum nesting of brackets. The parser reads each level of a literal twice.
const MAX_BRACKETS: usize = 16;
/// The number of brackets that lowering may add around existing ones: a body, a call, a
/// comprehension.
const LOWERED: usize = 3;
/// Maximum number of token reads that backtracking may cause in a module.
const MAX_READS: u64 = 2_000_000;
/// Maximum number of operators and brackets around one expression, each of which is a level of
/// recursion.
const MAX_WEIGHT: usize = 256;

/// Properties of a module that its tokens show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// `import rego.v1`, or `if` and `contains` in the positions of v1.
    pub(crate) looks_like_v1: bool,
}

/// Scans a module.
///
/// # Errors
/// [`LoadError::Parse`] if the text has no tokens or is nested too deeply.
pub(crate) fn scan(source: &Source) -> Result<Hints, LoadError> {
    scan_within(source, MAX_BRACKETS, MAX_READS)
}

/// Scans a lowered module, which may have some more brackets.
pub(crate) fn scan_lowered(source: &Source) -> Result<(), LoadError> {
    scan_within(source, MAX_BRACKETS + LOWERED, MAX_READS * 4).map(|_| ())
}

fn scan_within(source: &Source, brackets: usize, most_reads: u64) -> Result<Hints, LoadError> {
    let mut lexer = Lexer::new(source);
    lexer.set_max_col(std::num::NonZeroU32::MAX);
    // `if` and `contains` indicate v1, unless the module imports them into v0.
    let mut keywords = Keywords::default();
    // Operators since the last separator, for each open bracket.
    let mut open: Vec<usize> = vec![0];
    let mut weight = 0usize;
    let mut reads = 0u64;
    let (mut line, mut after_operator, mut before, mut previous) =
        (0u32, false, String::new(), String::new());
    loop {
        let token = lexer
            .next_token()
            .map_err(|error| LoadError::parse(source, &error))?;
        let at = token.1.line;
        let text = match token.0 {
            TokenKind::Eof => break,
            TokenKind::Symbol | TokenKind::Ident => token.1.text(),
            _ => "",
        };
        let operator = is_operator(text);
        if at != line && !operator && !after_operator {
            weight = weight.saturating_sub(reset(&mut open));
        }
        match text {
            "[" | "{" | "(" => {
                // `a[0][1]` is also a chain.
                count(&mut open, &mut weight);
                open.push(0);
            }
            "]" | "}" | ")" => {
                weight = weight.saturating_sub(reset(&mut open));
                if open.len() > 1 {
                    open.pop();
                }
            }
            "," | ";" => weight = weight.saturating_sub(reset(&mut open)),
            _ if operator => count(&mut open, &mut weight),
            _ => {}
        }
        if open.len() > brackets {
            return Err(LoadError::at(
                source,
                at,
                format!("more than {brackets} nested brackets"),
            ));
        }
        if weight > MAX_WEIGHT {
            return Err(LoadError::at(
                source,
                at,
                format!("more than {MAX_WEIGHT} operators in one expression: split it"),
            ));
        }
        reads = reads.saturating_add(1u64 << open.len().min(63));
        if reads > most_reads {
            return Err(LoadError::at(
                source,
                at,
                "too many nested literals: move them to a data ConfigMap, or split the \
                 module"
                    .into(),
            ));
        }
        keywords.read(&before, &previous, text, at == line);
        after_operator = operator;
        line = at;
        before = std::mem::replace(&mut previous, text.to_owned());
    }
    Ok(Hints {
        looks_like_v1: keywords.are_v1s(),
    })
}

/// The v1 keywords that a module uses, and those that it imports into v0.
#[derive(Default)]
struct Keywords {
    names_v1: bool,
    uses_if: bool,
    uses_contains: bool,
    /// True if the last import is of `future.keywords`, which a dot may continue.
    imports_all: bool,
    imports_if: bool,
    imports_contains: bool,
}

impl Keywords {
    /// Records a token, given the two preceding ones.
    fn read(&mut self, before: &str, previous: &str, text: &str, same_line: bool) {
        self.names_v1 |= previous == "." && before == "rego" && text == "v1";
        if before == "future" && previous == "." && text == "keywords" {
            self.imports_all = true;
        } else if before == "keywords" && previous == "." && self.imports_all {
            // The import is of a single keyword.
            self.imports_all = false;
            self.imports_if |= text == "if";
            self.imports_contains |= text == "contains";
        }
        self.uses_if |= text == "if" && previous != ".";
        self.uses_contains |= previous == "contains"
            && before != "."
            && !matches!(text, "(" | "" | ":=" | "=")
            && same_line;
    }

    fn are_v1s(&self) -> bool {
        let imports = |one: bool| one || self.imports_all;
        self.names_v1
            || (self.uses_if && !imports(self.imports_if))
            || (self.uses_contains && !imports(self.imports_contains))
    }
}

fn count(open: &mut [usize], weight: &mut usize) {
    if let Some(level) = open.last_mut() {
        *level += 1;
        *weight += 1;
    }
}

fn reset(open: &mut [usize]) -> usize {
    open.last_mut().map_or(0, std::mem::take)
}

fn is_operator(text: &str) -> bool {
    matches!(
        text,
        "." | "+"
            | "-"
            | "*"
            | "/"
            | "%"
            | "&"
            | "|"
            | "="
            | "=="
            | "!="
            | "<"
            | ">"
            | "<="
            | ">="
            | ":="
            | "in"
            | "with"
            | "as"
            | "not"
            | ":"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_that_are_not_imported_look_like_v1() {
        for (text, is_v1) in [
            ("import rego.v1", true),
            ("p if { true }", true),
            ("p contains x { x := 1 }", true),
            ("p contains x if { x := 1 }", true),
            ("import future.keywords.in\np if { true }", true),
            ("import future.keywords.contains\np if { true }", true),
            (
                "import future.keywords.if\np contains x if { x := 1 }",
                true,
            ),
            ("import data.v1", false),
            ("import rego.v2", false),
            ("import rego as v1", false),
            ("p { rego == v1 }", false),
            ("p { true }", false),
            ("p { input.if; input.contains == 1 }", false),
            ("p { contains(\"a\", \"b\") }", false),
            ("contains := 1", false),
            ("contains = 1", false),
            ("import future.keywords\np contains x if { x := 1 }", false),
            ("import future.keywords.if\np if { true }", false),
            (
                "import future.keywords.contains\np contains x { x := 1 }",
                false,
            ),
        ] {
            let text = format!("package a\n{text}\n");
            let source = Source::from_contents("m".into(), text.clone()).unwrap();
            assert_eq!(scan(&source).unwrap().looks_like_v1, is_v1, "{text}");
        }
    }
}
