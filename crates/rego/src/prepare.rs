//! Adjusts a module's text before it is parsed, keeping line numbers:
//!
//! - A parenthesis at the start of a line begins a statement. The parser would take it for a call
//!   that continues the previous line.
//! - Each further body of a set, as in `deny[msg] { … } { … }`, gets a copy of the head.
//! - `not { … }`, if a module imports it, becomes a comprehension that must be empty.

use regorus::Source;
use regorus::unstable::{Lexer, TokenKind};

/// The position of a token, and its text if it is a symbol or a word.
struct Token<'a> {
    text: &'a str,
    is_word: bool,
    start: usize,
    end: usize,
    line: u32,
}

/// A replacement of a part of the text.
struct Edit {
    start: usize,
    end: usize,
    text: String,
}

/// Returns the text to parse; `None` if nothing needs adjustment, or if the text has no tokens, for
/// which the parser has a better error.
pub(crate) fn prepared(source: &Source, text: &str) -> Option<String> {
    let tokens = tokens(source, text)?;
    let mut edits = Vec::new();
    statements_in_parentheses(&tokens, &mut edits);
    repeated_bodies(&tokens, text, &mut edits);
    if imports_not(&tokens) {
        not_bodies(&tokens, &mut edits);
    }
    if edits.is_empty() {
        return None;
    }
    edits.sort_by_key(|edit| edit.start);
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for edit in edits {
        out.push_str(text.get(at..edit.start)?);
        out.push_str(&edit.text);
        at = edit.end;
    }
    out.push_str(text.get(at..)?);
    Some(out)
}

fn tokens<'a>(source: &Source, text: &'a str) -> Option<Vec<Token<'a>>> {
    let mut lexer = Lexer::new(source);
    lexer.set_max_col(std::num::NonZeroU32::MAX);
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next_token().ok()?;
        let (start, end) = (
            usize::try_from(token.1.start).ok()?,
            usize::try_from(token.1.end).ok()?,
        );
        let (is_word, text) = match token.0 {
            TokenKind::Eof => return Some(tokens),
            TokenKind::Ident => (true, text.get(start..end)?),
            TokenKind::Symbol => (false, text.get(start..end)?),
            _ => (false, ""),
        };
        tokens.push(Token {
            text,
            is_word,
            start,
            end,
            line: token.1.line,
        });
    }
}

fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "as" | "contains"
            | "default"
            | "else"
            | "every"
            | "if"
            | "import"
            | "in"
            | "not"
            | "package"
            | "some"
            | "with"
    )
}

fn depth_after(depth: usize, text: &str) -> usize {
    match text {
        "[" | "{" | "(" | "set(" => depth + 1,
        "]" | "}" | ")" => depth.saturating_sub(1),
        _ => depth,
    }
}

fn statements_in_parentheses(tokens: &[Token<'_>], edits: &mut Vec<Edit>) {
    let mut depth = 0;
    for (before, token) in tokens.iter().zip(tokens.iter().skip(1)) {
        depth = depth_after(depth, before.text);
        let ends = before.text == "]" || (before.is_word && !is_keyword(before.text));
        if depth > 0 && token.text == "(" && token.line > before.line && ends {
            edits.push(Edit {
                start: token.start,
                end: token.start,
                text: ";".into(),
            });
        }
    }
}

/// Finds `name[key] { … } { … }` at the top level of a module.
fn repeated_bodies(tokens: &[Token<'_>], text: &str, edits: &mut Vec<Edit>) {
    let mut depth = 0;
    // The start and end of the head to which the bodies belong.
    let mut head: Option<(usize, usize)> = None;
    let mut begins = 0;
    for (number, token) in tokens.iter().enumerate() {
        let before = number.checked_sub(1).and_then(|number| tokens.get(number));
        if depth == 0 {
            let is_new_line = before.is_none_or(|before| before.line < token.line);
            if is_new_line && token.is_word && !is_keyword(token.text) {
                begins = number;
                head = None;
            }
            let closes = before.is_some_and(|before| before.text == "}");
            match (token.text, head) {
                ("{", Some((first, last))) if closes => {
                    let parts = tokens.get(first..last).unwrap_or_default();
                    let words: Vec<&str> = parts
                        .iter()
                        .filter_map(|part| text.get(part.start..part.end))
                        .collect();
                    edits.push(Edit {
                        start: token.start,
                        end: token.start,
                        text: glued(parts, &words),
                    });
                }
                ("{", _) if !closes => head = set_head(tokens, begins, number),
                ("else", _) => head = None,
                _ => {}
            }
        }
        depth = depth_after(depth, token.text);
    }
}

/// Returns a head such as `deny[msg]` if the tokens are one.
fn set_head(tokens: &[Token<'_>], first: usize, last: usize) -> Option<(usize, usize)> {
    let is = |number: usize, text: &str| tokens.get(number).is_some_and(|at| at.text == text);
    let is_set = tokens.get(first)?.is_word && is(first + 1, "[") && is(last.checked_sub(1)?, "]");
    is_set.then_some((first, last))
}

/// Joins tokens to one line, with a space where there was white space.
fn glued(parts: &[Token<'_>], words: &[&str]) -> String {
    let mut out = String::new();
    for (number, word) in words.iter().enumerate() {
        let (part, before) = (
            parts.get(number),
            number.checked_sub(1).and_then(|n| parts.get(n)),
        );
        if let (Some(part), Some(before)) = (part, before)
            && part.start > before.end
        {
            out.push(' ');
        }
        out.push_str(word);
    }
    out.push(' ');
    out
}

/// Returns true if the module imports `future.keywords` or `future.keywords.not`.
fn imports_not(tokens: &[Token<'_>]) -> bool {
    tokens.windows(4).enumerate().any(|(number, words)| {
        let is_import = words
            .iter()
            .map(|word| word.text)
            .eq(["import", "future", ".", "keywords"]);
        let after = |more: usize| tokens.get(number + more).map(|word| word.text);
        is_import && (after(4) != Some(".") || after(5) == Some("not"))
    })
}

fn not_bodies(tokens: &[Token<'_>], edits: &mut Vec<Edit>) {
    // For each open bracket, true if it is that of a `not` body.
    let mut open = Vec::new();
    let mut before: Option<&Token<'_>> = None;
    for token in tokens {
        match token.text {
            "{" if before.is_some_and(|before| before.text == "not") => {
                open.push(true);
                edits.extend(before.map(|not| edit(not, "")));
                edits.push(edit(token, "[1 |"));
            }
            "[" | "{" | "(" | "set(" => open.push(false),
            "]" | "}" | ")" if open.pop() == Some(true) => edits.push(edit(token, "] == []")),
            _ => {}
        }
        before = Some(token);
    }
}

fn edit(token: &Token<'_>, text: &str) -> Edit {
    Edit {
        start: token.start,
        end: token.end,
        text: text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        let source = Source::from_contents("m".into(), text.into()).unwrap();
        prepared(&source, text)
    }

    #[test]
    fn a_parenthesis_at_the_start_of_a_line_begins_a_statement() {
        assert_eq!(
            of("package a\np {\n  input.b\n  (1 + 2) == 3\n}").as_deref(),
            Some("package a\np {\n  input.b\n  ;(1 + 2) == 3\n}")
        );
        for same in [
            "package a\np {\n  input.b ==\n  (1 + 2)\n}",
            "package a\np {\n  not\n  (1 + 2)\n}",
            "package a\np {\n  f(1)\n}",
        ] {
            assert_eq!(of(same), None, "{same}");
        }
    }

    #[test]
    fn a_sets_bodies_each_have_a_head() {
        assert_eq!(
            of("package a\nd[m] { m := 1 }\n{ m := 2 } { m := 3 }\np { true } { false }")
                .as_deref(),
            Some(
                "package a\nd[m] { m := 1 }\nd[m] { m := 2 } d[m] { m := 3 }\np { true } { false }"
            )
        );
    }

    #[test]
    fn an_object_after_a_set_is_not_one_of_its_bodies() {
        let text = "package a\nd[m] { m := 1 }\ndefault settings = {\"x\": 1}";
        assert_eq!(of(text), None);
    }

    #[test]
    fn not_bodies_are_empty_comprehensions_where_they_are_imported() {
        let body = "p { not { input.a; [1] } }";
        assert_eq!(of(&format!("package a\n{body}")), None);
        for import in ["future.keywords", "future.keywords.not"] {
            assert_eq!(
                of(&format!("package a\nimport {import}\n{body}")),
                Some(format!(
                    "package a\nimport {import}\np {{  [1 | input.a; [1] ] == [] }}"
                ))
            );
        }
        assert_eq!(
            of(&format!("package a\nimport future.keywords.in\n{body}")),
            None
        );
    }
}
