//! The lowered module as tokens, and their printing: each stands on the line it came from, so that
//! the interpreter's messages name the author's line.

/// A token, and the line it came from.
#[derive(Debug, Clone)]
struct Token {
    text: String,
    line: u32,
    /// It must follow the token before it without a space or a line's end between.
    is_glued: bool,
}

/// A piece of text that is being put together.
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

    /// Adds what belongs to the token before it, such as the `.x` of a reference.
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

    /// Adds what begins with a token that must follow the one before it at once.
    pub(super) fn append_glued(&mut self, mut other: Self) {
        if let Some(first) = other.0.first_mut() {
            first.is_glued = true;
        }
        self.append(other);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text. A token's line is met where that is still ahead.
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
            // A raw string may hold lines of its own.
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
