//! Reading one module: which of Rego's two syntaxes it is written in, and its syntax tree.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use regorus::unstable::{Module, Parser, Ref, Rule, RuleHead};
use regorus::{PolicyLengthConfig, Source};

use crate::analysis::{self, ModuleFacts};
use crate::error::LoadError;
use crate::fractions;
use crate::limits::Limits;
use crate::lower;
use crate::panics;
use crate::prepare;
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
    /// The text that is evaluated: lowered, each token on its line.
    pub(crate) text: String,
    /// The same without `deny` rules, where it has some: as other ConfigMaps' library.
    pub(crate) as_library: Option<String>,
    /// Names that were taken for variables, and a line of each.
    pub(crate) assumed: BTreeMap<String, u32>,
    pub(crate) syntax: Syntax,
    /// What the author should know about a module that is in use, in sentences.
    pub(crate) warnings: Vec<String>,
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
        let text = &*fractions::with_whole_parts(text);
        let source = source_of(&place, text.to_owned(), &lengths)?;
        let hints = scan::scan(&source)?;
        let source = match prepare::prepared(&source, text) {
            Some(prepared) => source_of(&place, prepared, &limits.lowered_lengths())?,
            None => source,
        };
        let columns = if source.contents() == text {
            lengths.max_col
        } else {
            limits.lowered_lengths().max_col
        };
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
        let lowered = |module: Module| {
            let lowered = lower::lower(&module, &place, |_| true)?;
            Ok::<_, LoadError>((module, lowered))
        };
        let (syntax, (module, lowered)) = match parse(&source, likely, columns) {
            Ok(module) => (likely, lowered(module)?),
            // The error that counts is that of the syntax it seems to be written in.
            Err(error) => match parse(&source, other, columns).and_then(lowered) {
                Ok(read) => (other, read),
                Err(_) => return Err(error),
            },
        };
        let syntax = if module.rego_v1 { Syntax::V1 } else { syntax };
        let mut facts = facts(&place, &lowered.text, syntax, limits)?;
        facts.replaced = lowered.replaced;
        let as_library =
            if facts.package == analysis::ADMISSION && module.policy.iter().any(is_deny) {
                Some(lower::lower(&module, &place, |rule| !is_deny(rule))?.text)
            } else {
                None
            };
        let warnings = lowered.version_dependent_negation.map(|line| {
            format!(
                "{place}, line {line}: this negation means what it means since OPA 1.17, where \
                 import future.keywords brings future.keywords.not; import the keywords that the \
                 module uses one by one to keep the meaning of older versions"
            )
        });
        Ok(Self {
            policy: policy.clone(),
            warnings: warnings.into_iter().collect(),
            place,
            text: lowered.text,
            assumed: lowered.assumed,
            as_library,
            syntax,
            facts,
        })
    }
}

fn source_of(place: &str, text: String, lengths: &PolicyLengthConfig) -> Result<Source, LoadError> {
    Source::from_contents_with_limits(
        place.to_owned(),
        text,
        lengths.max_file_bytes,
        lengths.max_lines,
    )
    .map_err(|error| LoadError::compile(place, &error))
}

/// Returns what the lowered text refers to. Its names are the ones evaluated.
fn facts(
    place: &str,
    lowered: &str,
    syntax: Syntax,
    limits: &Limits,
) -> Result<ModuleFacts, LoadError> {
    let lengths = limits.lowered_lengths();
    let source = source_of(place, lowered.to_owned(), &lengths)?;
    scan::scan_lowered(&source)?;
    let module = parse(&source, syntax, lengths.max_col)?;
    analysis::facts(&module, place)
}

fn parse(source: &Source, syntax: Syntax, columns: NonZeroU32) -> Result<Module, LoadError> {
    // The parser is given whatever somebody writes: a panic in it is a policy that does not parse.
    let parsed = panics::caught(|| {
        let mut parser = Parser::new(source)?;
        parser.set_max_col(columns);
        if syntax == Syntax::V1 {
            parser.enable_rego_v1()?;
        }
        parser.parse()
    });
    match parsed {
        Some(parsed) => parsed.map_err(|error| LoadError::parse(source, &error)),
        None => Err(LoadError::at(source, 1, "the parser gave up".into())),
    }
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
