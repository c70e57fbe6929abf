//! Checks whether a regular expression can match any path that may be allowed. An expression that
//! cannot is a mistake that would otherwise go unnoticed.
//!
//! The check walks the product of the expression's automaton and an automaton of such paths. If it
//! reaches no common final state, the expression matches no path.

use std::collections::HashSet;

use regex_automata::nfa::thompson::{Compiler, Config, NFA, State, WhichCaptures};
use regex_automata::util::look::Look;
use regex_automata::util::primitives::StateID;
use regex_syntax::ast::{Ast, parse::Parser};

use super::is_plain_character;

/// Maximum size of an automaton to walk, in bytes. Larger expressions are accepted unchecked.
const MAX_AUTOMATON: usize = 256 * 1024;

/// The first segments below a version.
const TREES: [&str; 3] = ["meta-data", "dynamic", "user-data"];
const METADATA: usize = 0;
const USER_DATA: usize = 2;
/// Segments below `meta-data` that are never allowed, compared without regard to case.
const CLOSED: [&str; 2] = ["iam", "identity-credentials"];

/// Returns the part of `pattern` that cannot match any path: all of it, or one alternative.
pub(super) fn never_matching(pattern: &str) -> Option<&str> {
    alternatives(pattern)
        .into_iter()
        .find(|alternative| !can_match(alternative))
}

/// Returns the top-level alternatives of the expression, or the expression itself.
fn alternatives(pattern: &str) -> Vec<&str> {
    // Flags set in one alternative apply to the following ones, so these cannot be split.
    let parsed = if pattern.contains("(?") {
        None
    } else {
        Parser::new().parse(pattern).ok()
    };
    let mut ast = parsed.as_ref();
    while let Some(Ast::Group(group)) = ast {
        ast = Some(&group.ast);
    }
    let Some(Ast::Alternation(alternation)) = ast else {
        return vec![pattern];
    };
    let texts = alternation.asts.iter().filter_map(|ast| {
        let span = ast.span();
        pattern.get(span.start.offset..span.end.offset)
    });
    texts.collect()
}

/// Returns true if `pattern` can match a whole path below the version that may be allowed.
pub(super) fn can_match(pattern: &str) -> bool {
    let config = Config::new()
        .nfa_size_limit(Some(MAX_AUTOMATON))
        .which_captures(WhichCaptures::None);
    let whole = format!(r"\A(?:{pattern})\z");
    let Ok(nfa) = Compiler::new().configure(config).build(&whole) else {
        return true;
    };
    let user_data = pattern.contains(TREES[USER_DATA]);
    let mut walk = Walk {
        nfa: &nfa,
        seen: HashSet::new(),
        next: Vec::new(),
    };
    walk.reach(nfa.start_anchored(), Place::Start, false);
    while let Some((state, place, ended)) = walk.next.pop() {
        if matches!(nfa.state(state), State::Match { .. }) {
            if place.is_end(user_data) {
                return true;
            }
            continue;
        }
        walk.step(state, place, ended);
    }
    false
}

struct Walk<'a> {
    nfa: &'a NFA,
    seen: HashSet<(StateID, Place, bool)>,
    next: Vec<(StateID, Place, bool)>,
}

impl Walk<'_> {
    fn reach(&mut self, state: StateID, place: Place, ended: bool) {
        if self.seen.insert((state, place, ended)) {
            self.next.push((state, place, ended));
        }
    }

    fn step(&mut self, state: StateID, place: Place, ended: bool) {
        match self.nfa.state(state) {
            State::ByteRange { trans } => {
                self.bytes(trans.start, trans.end, trans.next, place, ended);
            }
            State::Sparse(sparse) => {
                for trans in &*sparse.transitions {
                    self.bytes(trans.start, trans.end, trans.next, place, ended);
                }
            }
            State::Dense(dense) => {
                for byte in 0..=u8::MAX {
                    if let Some(next) = dense.matches_byte(byte) {
                        self.bytes(byte, byte, next, place, ended);
                    }
                }
            }
            State::Look { look, next } => match look {
                Look::Start | Look::StartLF | Look::StartCRLF => {
                    // A path contains no line break, so a line starts only at the start of the
                    // path.
                    if place == Place::Start {
                        self.reach(*next, place, ended);
                    }
                }
                Look::End | Look::EndLF | Look::EndCRLF => self.reach(*next, place, true),
                // Word boundaries are ignored: that may accept too much, but never too little.
                _ => self.reach(*next, place, ended),
            },
            State::Union { alternates } => {
                for next in &**alternates {
                    self.reach(*next, place, ended);
                }
            }
            State::BinaryUnion { alt1, alt2 } => {
                self.reach(*alt1, place, ended);
                self.reach(*alt2, place, ended);
            }
            State::Capture { next, .. } => self.reach(*next, place, ended),
            State::Fail | State::Match { .. } => {}
        }
    }

    fn bytes(&mut self, first: u8, last: u8, next: StateID, place: Place, ended: bool) {
        if ended {
            return;
        }
        for byte in first..=last {
            if let Some(place) = place.step(byte) {
                self.reach(next, place, false);
            }
        }
    }
}

/// A position in a path below the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Start,
    /// In the first segment, after `at` characters.
    Tree {
        tree: usize,
        at: usize,
    },
    /// In a later segment.
    Segment {
        tree: usize,
        /// The number of characters, 3 for more.
        length: u8,
        /// True if all characters are dots.
        dots: bool,
        /// The index of a matching prefix in [`CLOSED`], and the position in it.
        closed: Option<(usize, usize)>,
    },
}

impl Place {
    fn step(self, byte: u8) -> Option<Self> {
        match self {
            Self::Start => {
                let tree = TREES
                    .iter()
                    .position(|tree| tree.as_bytes().first() == Some(&byte))?;
                Some(Self::Tree { tree, at: 1 })
            }
            Self::Tree { tree, at } => {
                let name = TREES.get(tree)?.as_bytes();
                match name.get(at) {
                    Some(expected) if *expected == byte => Some(Self::Tree { tree, at: at + 1 }),
                    None if byte == b'/' => Some(Self::Segment {
                        tree,
                        length: 0,
                        dots: true,
                        // Both entries begin with the same letter and differ in the next one.
                        closed: (tree == METADATA).then_some((0, 0)),
                    }),
                    _ => None,
                }
            }
            Self::Segment { tree, .. } if byte == b'/' => {
                self.is_whole().then_some(Self::Segment {
                    tree,
                    length: 0,
                    dots: true,
                    closed: None,
                })
            }
            Self::Segment { .. } if !is_plain_character(byte) => None,
            Self::Segment {
                tree,
                length,
                dots,
                closed,
            } => Some(Self::Segment {
                tree,
                length: (length + 1).min(3),
                dots: dots && byte == b'.',
                closed: closed.and_then(|(_, at)| {
                    let letter = byte.to_ascii_lowercase();
                    let is_next = |name: &&str| name.as_bytes().get(at) == Some(&letter);
                    // Before the distinguishing letter, the index carries no information.
                    let mut candidates = CLOSED
                        .iter()
                        .enumerate()
                        .filter(|(name, _)| at < 2 || closed.is_some_and(|(it, _)| it == *name));
                    let (name, _) = candidates.find(|(_, text)| is_next(text))?;
                    Some((name, at + 1))
                }),
            }),
        }
    }

    /// Returns true if the segment may end here: it is not empty, not `.` or `..`, and not closed.
    fn is_whole(self) -> bool {
        match self {
            Self::Start => false,
            Self::Tree { tree, at } => TREES.get(tree).is_some_and(|name| name.len() == at),
            Self::Segment {
                length,
                dots,
                closed,
                ..
            } => {
                let is_made_of_dots = dots && length < 3;
                let is_closed = closed
                    .is_some_and(|(name, at)| CLOSED.get(name).is_some_and(|it| it.len() == at));
                !is_closed && !is_made_of_dots
            }
        }
    }

    fn is_end(self, user_data: bool) -> bool {
        let tree = match self {
            Self::Start => return false,
            Self::Tree { tree, .. } | Self::Segment { tree, .. } => tree,
        };
        self.is_whole() && (tree != USER_DATA || user_data)
    }
}
