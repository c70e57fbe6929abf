//! A look at a module's tokens before it is parsed: what would make the parser or the evaluator
//! recurse too deep, or the parser go back and forth too often, is refused here.

use regorus::Source;
use regorus::unstable::{Lexer, TokenKind};

use crate::error::LoadError;

/// Most brackets inside each other. The parser reads each level of a literal twice.
const MAX_BRACKETS: usize = 16;
/// Most token reads that going back and forth may cost, summed over a module.
const MAX_READS: u64 = 2_000_000;
/// Most operators and brackets that may wrap one expression: each is a level of recursion.
const MAX_WEIGHT: usize = 256;

/// What the tokens tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// `import rego.v1`, or `if` and `contains` where v1 has them.
    pub(crate) looks_like_v1: bool,
}

/// Scans a module.
///
/// # Errors
/// [`LoadError::Parse`] where the text has no tokens or is nested too deep.
pub(crate) fn scan(source: &Source) -> Result<Hints, LoadError> {
    let mut lexer = Lexer::new(source);
    lexer.set_max_col(std::num::NonZeroU32::MAX);
    // `if` and `contains` are v1's, unless the module imports them into v0.
    let (mut names_v1, mut has_keywords, mut imports_keywords) = (false, false, false);
    // Operators met since the last separator, for each open bracket.
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
                // `a[0][1]` is a chain too.
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
        if open.len() > MAX_BRACKETS {
            return Err(LoadError::at(
                source,
                at,
                format!("more than {MAX_BRACKETS} brackets inside each other"),
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
        if reads > MAX_READS {
            return Err(LoadError::at(
                source,
                at,
                "too many nested literals up to here: move them into a data ConfigMap, or split the module".into(),
            ));
        }
        names_v1 |= previous == "." && before == "rego" && text == "v1";
        imports_keywords |= previous == "." && before == "future" && text == "keywords";
        has_keywords |= (text == "if" && previous != ".")
            || (previous == "contains" && !matches!(text, "(" | "" | ":=" | "=") && at == line);
        after_operator = operator;
        line = at;
        before = std::mem::replace(&mut previous, text.to_owned());
    }
    Ok(Hints {
        looks_like_v1: names_v1 || (has_keywords && !imports_keywords),
    })
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
