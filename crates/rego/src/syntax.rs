//! Reading one module: which of Rego's two syntaxes it is written in, and its syntax tree.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use regorus::Source;
use regorus::unstable::{Module, Parser, Ref, Rule, RuleHead};

use crate::analysis::{self, ModuleFacts};
use crate::error::LoadError;
use crate::limits::Limits;
use crate::scan;

/// The syntax a module was read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Syntax {
    /// OPA's before 1.0: `deny[msg] { … }`.
    V0,
    /// OPA's since 1.0: `deny contains msg if { … }`.
    V1,
}

impl Syntax {
    /// As written in statuses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0 => "v0",
            Self::V1 => "v1",
        }
    }
}

/// A module that parses.
#[derive(Debug)]
pub(crate) struct ParsedModule {
    /// The ConfigMap, `namespace/name`.
    pub(crate) policy: Arc<str>,
    /// The ConfigMap and its entry, `namespace/name: entry`, for messages.
    pub(crate) place: String,
    pub(crate) text: String,
    /// The text with its `deny` rules blanked, where it has some: as other ConfigMaps' library.
    pub(crate) as_library: Option<String>,
    pub(crate) syntax: Syntax,
    pub(crate) facts: ModuleFacts,
}

impl ParsedModule {
    /// Reads a module in the syntax it seems to be written in, else in the other.
    pub(crate) fn read(
        policy: &Arc<str>,
        entry: &str,
        text: &str,
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        let place = format!("{policy}: {entry}");
        if text.len() > limits.module_bytes {
            return Err(LoadError::Parse(format!(
                "{place}: {} bytes, more than {}: split it",
                text.len(),
                limits.module_bytes
            )));
        }
        let lengths = limits.lengths();
        let source = Source::from_contents_with_limits(
            place.clone(),
            text.to_owned(),
            lengths.max_file_bytes,
            lengths.max_lines,
        )
        .map_err(|error| LoadError::compile(&place, &error))?;
        let hints = scan::scan(&source)?;
        let likely = if hints.looks_like_v1 {
            Syntax::V1
        } else {
            Syntax::V0
        };
        let other = if hints.looks_like_v1 {
            Syntax::V0
        } else {
            Syntax::V1
        };
        let (syntax, module) = match parse(&source, likely, limits) {
            Ok(module) => (likely, module),
            // The error that counts is that of the syntax it seems to be written in.
            Err(error) => match parse(&source, other, limits) {
                Ok(module) => (other, module),
                Err(_) => return Err(error),
            },
        };
        let syntax = if module.rego_v1 { Syntax::V1 } else { syntax };
        let facts = analysis::facts(&module, &place)?;
        let as_library = blank_denials(text, &module, &facts);
        Ok(Self {
            policy: policy.clone(),
            place,
            text: text.to_owned(),
            as_library,
            syntax,
            facts,
        })
    }
}

fn parse(source: &Source, syntax: Syntax, limits: &Limits) -> Result<Module, LoadError> {
    // The parser is given whatever somebody writes: a panic in it is a policy that does not parse.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        let mut parser = Parser::new(source)?;
        parser.set_max_col(limits.lengths().max_col);
        if syntax == Syntax::V1 {
            parser.enable_rego_v1()?;
        }
        parser.parse()
    }));
    match parsed {
        Ok(parsed) => parsed.map_err(|error| LoadError::parse(source, &error)),
        Err(_) => Err(LoadError::at(source, 1, "the parser gave up".into())),
    }
}

/// The text with the `deny` rules of the admission package turned into blanks, lines kept, so
/// that the rest can be a library for other ConfigMaps' `deny`. `None` where it has no such rule.
fn blank_denials(text: &str, module: &Module, facts: &ModuleFacts) -> Option<String> {
    if facts.package != analysis::ADMISSION {
        return None;
    }
    let mut blanked = text.to_owned();
    for rule in module.policy.iter().filter(|rule| is_deny(rule)) {
        let span = rule.span();
        let (start, end) = (
            usize::try_from(span.start).ok()?,
            usize::try_from(span.end).ok()?,
        );
        let blanks: String = text
            .get(start..end)?
            .chars()
            .map(|c| if c == '\n' { '\n' } else { ' ' })
            .collect();
        // Widths of characters differ, so places behind this one would move: pad to the same.
        let padding = " ".repeat(end - start - blanks.len());
        blanked.replace_range(start..end, &format!("{blanks}{padding}"));
    }
    (blanked != text).then_some(blanked)
}

fn is_deny(rule: &Ref<Rule>) -> bool {
    let head = match rule.as_ref() {
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. }
            | RuleHead::Set { refr, .. }
            | RuleHead::Func { refr, .. } => refr,
        },
        Rule::Default { refr, .. } => refr,
    };
    analysis::head_path(head)
        .first()
        .is_some_and(|name| name == "deny")
}
