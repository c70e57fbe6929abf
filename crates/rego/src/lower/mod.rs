//! Lowering: a module is written anew, as OPA's compiler would leave it, before the interpreter
//! reads it. What the interpreter reads another way than OPA does not stand in the lowered text:
//!
//! - Each declared name (`some`, `:=`, arguments, `every`) has a name of its own, so that no rule,
//!   import or other scope of the same name is taken for it.
//! - What a negated expression calls and reads is looked up before it, unless the module imports
//!   `future.keywords.not`.
//! - `some … in` reads by an index, so that what is no collection has no elements.
//! - An object pattern matches objects with exactly its keys.
//! - `walk` is asked by its result argument, so that it gives one node after the other.
//! - What a rule's head reads is looked up at the end of each body; each body has a head of its own.
//! - A function without arguments is a rule.
//!
//! Lines stay: each token is printed on the line it came from.

mod bindings;
mod expressions;
mod names;
mod patterns;
mod rules;
mod statements;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{AssignOp, Expr, Module, Ref, Rule, RuleHead, Span};

use crate::analysis::head_path;
use crate::builtins;
use crate::error::LoadError;

pub(crate) use names::written;
use names::{Clash, Names};
use text::Tokens;

/// A module as the interpreter is given it.
#[derive(Debug, Clone)]
pub(crate) struct Lowered {
    pub(crate) text: String,
    /// Names that were taken for variables, and a line of each. A rule of another module of the
    /// package must not have such a name.
    pub(crate) assumed: BTreeMap<String, u32>,
}

/// Lowers a module, with the rules that are wanted.
pub(crate) fn lower(
    module: &Module,
    place: &str,
    is_wanted: impl Fn(&Ref<Rule>) -> bool,
) -> Result<Lowered, LoadError> {
    let mut lower = Lower {
        place,
        known: known(module),
        bound: BTreeSet::new(),
        assumed: BTreeMap::new(),
        is_v1: module.rego_v1,
        has_not_bodies: false,
        names: Names::default(),
        before: Vec::new(),
        with: Tokens::default(),
    };
    let mut out = Tokens::default();
    let package = &module.package;
    out.push(package.span.line, "package");
    out.append(lower.path(&package.refr)?);
    for import in &module.imports {
        lower.import(import, &mut out)?;
    }
    for rule in module.policy.iter().filter(|rule| is_wanted(rule)) {
        lower.bound = bindings::bound(rule);
        lower.rule(rule, &mut out)?;
    }
    Ok(Lowered {
        text: out.print(),
        assumed: lower.assumed,
    })
}

/// Names that stand for rules of the module, imports or documents.
fn known(module: &Module) -> BTreeSet<String> {
    let rules = module.policy.iter().map(|rule| {
        let refr = match rule.as_ref() {
            Rule::Default { refr, .. } => refr,
            Rule::Spec { head, .. } => match head {
                RuleHead::Compr { refr, .. }
                | RuleHead::Set { refr, .. }
                | RuleHead::Func { refr, .. } => refr,
            },
        };
        head_path(refr).into_iter().next()
    });
    let imports = module.imports.iter().map(|import| match &import.r#as {
        Some(alias) => Some(alias.text().to_owned()),
        None => head_path(&import.refr).pop(),
    });
    let documents = ["input", "data"].map(|name| Some(name.to_owned()));
    rules.chain(imports).chain(documents).flatten().collect()
}

/// The state of the lowering.
struct Lower<'a> {
    place: &'a str,
    /// Names that stand for rules of the module, imports or documents.
    known: BTreeSet<String>,
    /// Names of the rule that something in it may give a value.
    bound: BTreeSet<String>,
    assumed: BTreeMap<String, u32>,
    is_v1: bool,
    /// `import future.keywords.not` is there: a negated expression is looked up inside its `not`.
    has_not_bodies: bool,
    names: Names,
    /// Statements that must stand before the one that is being written.
    before: Vec<Tokens>,
    /// The `with` modifiers of the statement that is being written.
    with: Tokens,
}

impl Lower<'_> {
    fn refuse(&self, line: u32, what: impl std::fmt::Display) -> LoadError {
        LoadError::Compile(format!("{}, line {line}: {what}", self.place))
    }

    /// A statement `fresh := value` before the one that is being written. Returns the name.
    fn hoist(&mut self, line: u32, value: Tokens) -> Tokens {
        let name = self.names.fresh("value");
        let mut statement = Tokens::default();
        statement.push(line, &name);
        statement.push(line, ":=");
        statement.append(value);
        self.put_before(statement);
        token(line, name)
    }

    fn put_before(&mut self, mut statement: Tokens) {
        statement.append(self.with.clone());
        self.before.push(statement);
    }

    fn declare(&mut self, span: &Span) -> Result<Tokens, LoadError> {
        let name = span.text();
        if name == "_" {
            return Ok(token(span.line, "_"));
        }
        self.check_name(span)?;
        match self.names.declare(name) {
            Ok(fresh) => Ok(token(span.line, fresh)),
            Err(Clash::Twice) => Err(self.refuse(
                span.line,
                format!("{name} is declared twice in one body: rename one of them"),
            )),
            Err(Clash::ReadBefore) => Err(self.refuse(
                span.line,
                format!(
                    "{name} is read before it is declared: move the declaration up, or rename it"
                ),
            )),
        }
    }

    fn check_name(&self, span: &Span) -> Result<(), LoadError> {
        if span.text().starts_with(names::RESERVED) {
            let what = format!(
                "names that begin with {} are reserved: rename it",
                names::RESERVED
            );
            return Err(self.refuse(span.line, what));
        }
        if builtins::is_operator(span.text()) {
            let what = format!("the name {} is reserved: rename it", span.text());
            return Err(self.refuse(span.line, what));
        }
        Ok(())
    }
}

/// One token.
fn token(line: u32, text: impl Into<String>) -> Tokens {
    let mut tokens = Tokens::default();
    tokens.push(line, text);
    tokens
}

/// Statements with semicolons between; `true` where there are none.
fn joined(line: u32, statements: Vec<Tokens>) -> Tokens {
    let mut out = Tokens::default();
    for statement in statements {
        if !out.is_empty() {
            out.glue(line, ";");
        }
        out.append(statement);
    }
    if out.is_empty() {
        out.push(line, "true");
    }
    out
}

/// The dotted name of what is called.
fn called(function: &Ref<Expr>) -> String {
    head_path(function).join(".")
}

/// Whether a call without arguments is one of a built-in; else it is a rule that is read.
fn is_builtin(name: &str) -> bool {
    builtins::arguments(name).is_some() || builtins::missing(name).is_some()
}

/// How many arguments a built-in takes; `None` where the interpreter has the last word.
fn argument_count(name: &str) -> Option<usize> {
    match builtins::arguments(name)? {
        builtins::Arguments::Fixed(count) if name != "walk" => Some(count),
        _ => None,
    }
}

/// `f(a, result)` of a built-in as `result = f(a)`, which is what OPA takes it for.
fn with_result(expr: &Ref<Expr>, known: &BTreeSet<String>) -> Option<Ref<Expr>> {
    let Expr::Call {
        span,
        fcn,
        params,
        eidx,
    } = expr.as_ref()
    else {
        return None;
    };
    let name = head_path(fcn);
    let count = argument_count(&name.join("."))?;
    let (result, arguments) = params.split_last()?;
    if arguments.len() != count || known.contains(name.first()?) {
        return None;
    }
    let call = Expr::Call {
        span: span.clone(),
        fcn: fcn.clone(),
        params: arguments.to_vec(),
        eidx: *eidx,
    };
    Some(Ref::new(Expr::AssignExpr {
        span: span.clone(),
        op: AssignOp::Eq,
        lhs: result.clone(),
        rhs: Ref::new(call),
        eidx: *eidx,
    }))
}

/// The argument of `walk(x)`, if an expression is such a call.
fn walked(expr: &Ref<Expr>) -> Option<(&Ref<Expr>, u32)> {
    match expr.as_ref() {
        Expr::Call {
            span, fcn, params, ..
        } if matches!(fcn.as_ref(), Expr::Var { span, .. } if span.text() == "walk") => {
            match params.as_slice() {
                [walked] => Some((walked, span.line)),
                _ => None,
            }
        }
        _ => None,
    }
}
