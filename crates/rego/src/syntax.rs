//! Parses a module after detecting which of Rego's two syntaxes it uses.

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

/// The syntax of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Syntax {
    /// The syntax before OPA 1.0: `deny[msg] { … }`.
    V0,
    /// The syntax since OPA 1.0: `deny contains msg if { … }`.
    V1,
}

impl Syntax {
    /// Returns the value for statuses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0 => "v0",
            Self::V1 => "v1",
        }
    }
}

/// A parsed module.
#[derive(Debug)]
pub(crate) struct ParsedModule {
    /// The ConfigMap, `namespace/name`.
    pub(crate) policy: Arc<str>,
    /// The ConfigMap and its entry, `namespace/name: entry`, for messages.
    pub(crate) place: String,
    /// The evaluated text: lowered, with each token on its original line.
    pub(crate) text: String,
    /// The same text without `deny` rules, if it has any, for use as a library of other ConfigMaps.
    pub(crate) as_library: Option<String>,
    /// Names that were assumed to be variables, with a line of each.
    pub(crate) assumed: BTreeMap<String, u32>,
    pub(crate) syntax: Syntax,
    /// Warnings for the author of a module in use, one sentence each.
    pub(crate) warnings: Vec<String>,
    pub(crate) facts: ModuleFacts,
}

impl ParsedModule {
    /// Parses a module in the syntax that it appears to use, or else in the other one.
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
            // The error for the apparent syntax is reported.
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
                "{place}, line {line}: this negation has the meaning of OPA 1.17 and later, \
                 where import future.keywords includes future.keywords.not; to keep the meaning \
                 of older versions, import only the keywords that the module uses"
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

/// Returns the references of the lowered text, whose names are the ones evaluated.
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
    // The parser reads untrusted text, so a panic in it counts as a syntax error.
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
        None => Err(LoadError::at(source, 1, "the parser failed".into())),
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
