//! The tokens of a lowered module, printed on their original lines so that the interpreter's
//! messages contain the author's line numbers.

/// A token and its original line.
#[derive(Debug, Clone)]
struct Token {
    text: String,
    line: u32,
    /// True if no space or line break may separate it from the previous token.
    is_glued: bool,
}

/// A sequence of tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens(Vec<Token>);

impl Tokens {
    pub(super) fn push(&mut self, line: u32, text: impl Into<String>) {
        self.0.push(Token {
            text: text.into(),
            line,
            is_glued: false,
        });
    }

    /// Appends a token without a space before it, such as the `.x` of a reference.
    pub(super) fn glue(&mut self, line: u32, text: impl Into<String>) {
        self.0.push(Token {
            text: text.into(),
            line,
            is_glued: true,
        });
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Appends tokens of which the first must follow without a space.
    pub(super) fn append_glued(&mut self, mut other: Self) {
        if let Some(first) = other.0.first_mut() {
            first.is_glued = true;
        }
        self.append(other);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Prints the tokens. A token is printed on its line unless that line has already passed.
    pub(super) fn print(&self) -> String {
        let (mut text, mut at) = (String::new(), 1u32);
        for (number, token) in self.0.iter().enumerate() {
            if !token.is_glued {
                let ahead = token.line.saturating_sub(at);
                if ahead > 0 {
                    text.extend(std::iter::repeat_n(
                        '\n',
                        usize::try_from(ahead).unwrap_or(0),
                    ));
                    at = token.line;
                } else if number > 0 {
                    text.push(' ');
                }
            }
            text.push_str(&token.text);
            // A raw string may contain line breaks.
            let own = token.text.bytes().filter(|byte| *byte == b'\n').count();
            at = at.saturating_add(u32::try_from(own).unwrap_or(u32::MAX));
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stand_on_their_lines() {
        let mut tokens = Tokens::default();
        tokens.push(1, "a");
        tokens.glue(2, ".b");
        tokens.push(3, "`x\ny`");
        tokens.push(2, "c");
        tokens.push(5, "d");
        assert_eq!(tokens.print(), "a.b\n\n`x\ny` c\nd\n");
    }
}
