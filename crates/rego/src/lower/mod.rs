//! Lowering: rewrites a module as OPA's compiler would, before the interpreter reads it. The
//! lowered text avoids constructs that the interpreter reads differently from OPA:
//!
//! - Imported names are written as paths from `data` or `input`: the interpreter does not find the
//!   imports of all modules of a package.
//! - Each declared name (`some`, `:=`, arguments, `every`) becomes unique, so that no rule, import
//!   or other scope of the same name is confused with it.
//! - Calls and reads in a negated expression are looked up before it, unless the module imports
//!   `future.keywords.not`.
//! - `some … in` reads by an index, so that a value that is not a collection has no elements.
//! - An object pattern matches only objects with exactly its keys.
//! - `walk` is called with a result argument, so that it yields one node after another.
//! - The inputs of a rule's head are looked up at the end of each body, and each body has its own
//!   head.
//! - A function without arguments is a rule.
//!
//! Line numbers are preserved: each token is printed on its original line.

mod bindings;
mod expressions;
mod heads;
mod names;
mod patterns;
mod rules;
mod statements;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{AssignOp, Expr, Module, Ref, Rule, RuleHead, Span};

use crate::analysis::{Path, head_path};
use crate::builtins;
use crate::error::LoadError;
use crate::generated_names::RESERVED;

use names::{Clash, Names};
use text::Tokens;

/// A lowered module.
#[derive(Debug, Clone)]
pub(crate) struct Lowered {
    pub(crate) text: String,
    /// Names that were assumed to be variables, with a line of each. A rule in another module of
    /// the package must not have such a name.
    pub(crate) assumed: BTreeMap<String, u32>,
    /// Built-ins that a `with` replaces and the interpreter does not have.
    pub(crate) replaced: BTreeSet<String>,
    /// The line of the first negation whose meaning depends on the version of OPA: the module
    /// imports all of `future.keywords`, which include `not` since OPA 1.17.
    pub(crate) version_dependent_negation: Option<u32>,
}

/// Lowers the wanted rules of a module.
pub(crate) fn lower(
    module: &Module,
    place: &str,
    is_wanted: impl Fn(&Ref<Rule>) -> bool,
) -> Result<Lowered, LoadError> {
    let lowered = lower_with(module, place, &is_wanted, BTreeSet::new())?;
    if lowered.replaced.is_empty() {
        return Ok(lowered);
    }
    // Now that the replaced built-ins are known, they are called through functions of the module,
    // which can be replaced.
    lower_with(module, place, &is_wanted, lowered.replaced)
}

fn lower_with(
    module: &Module,
    place: &str,
    is_wanted: &dyn Fn(&Ref<Rule>) -> bool,
    replaced: BTreeSet<String>,
) -> Result<Lowered, LoadError> {
    let mut lower = Lower {
        replaced,
        place,
        rules: rules(module),
        imports: imports(module),
        package: reference("data", &head_path(&module.package.refr)),
        bound: BTreeSet::new(),
        assumed: BTreeMap::new(),
        helpers: BTreeMap::new(),
        prefixes: BTreeSet::new(),
        open_paths: heads::open_paths(module),
        opened: BTreeSet::new(),
        helper_prefix: format!("{RESERVED}0_{:x}", checksum(place)),
        is_v1: module.rego_v1,
        has_not_bodies: false,
        imports_all_keywords: false,
        version_dependent_negation: None,
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
    for builtin in lower.replaced.clone() {
        lower.helper(&builtin, 1);
    }
    lower.write_helpers(&mut out);
    Ok(Lowered {
        text: out.print(),
        assumed: lower.assumed,
        replaced: lower.replaced,
        version_dependent_negation: lower.version_dependent_negation,
    })
}

fn rules(module: &Module) -> BTreeSet<String> {
    let names = module.policy.iter().filter_map(|rule| {
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
    names.collect()
}

/// Returns the names of imports and the paths they stand for. Of two with the same name, the last
/// applies.
fn imports(module: &Module) -> BTreeMap<String, String> {
    let imports = module.imports.iter().filter_map(|import| {
        let path = head_path(&import.refr);
        let alias = match &import.r#as {
            Some(alias) => alias.text().to_owned(),
            None => path.last()?.clone(),
        };
        let (root, rest) = path.split_first()?;
        let is_document = matches!(root.as_str(), "data" | "input");
        is_document.then(|| (alias, reference(root, rest)))
    });
    imports.collect()
}

/// Returns a path as a reference.
fn reference(root: &str, path: &[String]) -> String {
    let mut out = root.to_owned();
    for part in path {
        let is_name = part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if is_name {
            out.push('.');
            out.push_str(part);
        } else {
            out.push_str(&format!("[{}]", serde_json::Value::from(part.as_str())));
        }
    }
    out
}

/// The state of lowering a module.
struct Lower<'a> {
    place: &'a str,
    /// The first path segments of the module's rules.
    rules: BTreeSet<String>,
    /// The names of the module's imports, and the paths they stand for.
    imports: BTreeMap<String, String>,
    /// The package, as a reference from `data`.
    package: String,
    /// Names that some part of the current rule may bind.
    bound: BTreeSet<String>,
    assumed: BTreeMap<String, u32>,
    /// Built-ins that a `with` replaces and the interpreter does not have.
    replaced: BTreeSet<String>,
    /// Functions that call a built-in, by its name: their own names, and their numbers of
    /// arguments.
    helpers: BTreeMap<String, (String, usize)>,
    /// The prefix of helpers' names, unique to this module.
    helper_prefix: String,
    /// Paths below which rules with a variable in the middle of their path define values: `p` of
    /// `p[x].q`.
    prefixes: BTreeSet<String>,
    /// The constant prefixes of heads' paths that continue with a variable, and whether a path
    /// continues after the variable.
    open_paths: BTreeMap<Path, bool>,
    /// The lengths of the prefixes of the current rule's path after which a name is written as a
    /// variable.
    opened: BTreeSet<usize>,
    is_v1: bool,
    /// True with `import future.keywords.not`: a negated expression is looked up inside its `not`.
    has_not_bodies: bool,
    /// True with `import future.keywords`.
    imports_all_keywords: bool,
    version_dependent_negation: Option<u32>,
    names: Names,
    /// Statements that must precede the current one.
    before: Vec<Tokens>,
    /// The `with` modifiers of the current statement.
    with: Tokens,
}

impl Lower<'_> {
    fn refuse(&self, line: u32, what: impl std::fmt::Display) -> LoadError {
        LoadError::Compile(format!("{}, line {line}: {what}", self.place))
    }

    /// Returns true if a name stands for a document, a rule of the module or an import.
    fn is_known(&self, name: &str) -> bool {
        matches!(name, "input" | "data")
            || self.rules.contains(name)
            || self.imports.contains_key(name)
    }

    /// Lowers the name of a function that is called or replaced by `with`. Functions of the package
    /// are qualified by it, since the interpreter takes two spellings of a function for different
    /// functions.
    fn function(&mut self, expr: &Ref<Expr>, arguments: usize) -> Result<Tokens, LoadError> {
        let path = head_path(expr);
        let root = path.first().map_or("", String::as_str);
        let line = expr.span().line;
        if let (Some(import), Some((_, rest))) = (self.imports.get(root), path.split_first()) {
            return Ok(token(line, reference(import, rest)));
        }
        let name = path.join(".");
        if self.replaced.contains(&name) && !self.rules.contains(root) {
            return Ok(token(line, self.helper(&name, arguments)));
        }
        let is_written =
            matches!(root, "input" | "data") || (!self.rules.contains(root) && is_builtin(&name));
        let written = self.path(expr)?;
        if is_written {
            return Ok(written);
        }
        let mut out = token(line, &self.package);
        out.glue(line, ".");
        out.append_glued(written);
        Ok(out)
    }

    /// Lowers the target of a `with`. The function for a built-in is generated for its calls, which
    /// determine the number of arguments.
    fn target(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        let name = head_path(expr).join(".");
        if self.replaced.contains(&name) {
            let line = expr.span().line;
            let words = name.replace('.', "_");
            let helper = format!("{}.{}_{words}", self.package, self.helper_prefix);
            return Ok(token(line, helper));
        }
        self.function(expr, 1)
    }

    /// Returns the module's function that calls a built-in, with its package.
    fn helper(&mut self, builtin: &str, arguments: usize) -> String {
        let (name, _) = self.helpers.entry(builtin.to_owned()).or_insert_with(|| {
            let words = builtin.replace('.', "_");
            (format!("{}_{words}", self.helper_prefix), arguments)
        });
        format!("{}.{name}", self.package)
    }

    fn write_helpers(&self, out: &mut Tokens) {
        // Without values, such a path is an empty object in OPA, but undefined in the interpreter.
        for prefix in &self.prefixes {
            let name = format!("{RESERVED}0_key");
            let (assign, body) = if self.is_v1 { (":=", "if ") } else { ("=", "") };
            out.push(
                0,
                format!("{prefix}[{name}] {assign} 1 {body}{{ {name} := \"\"; false }}"),
            );
        }
        for (builtin, (name, count)) in &self.helpers {
            let arguments: Vec<String> = (0..*count).map(|number| format!("a{number}")).collect();
            let arguments = arguments.join(", ");
            let (assign, body) = if self.is_v1 { (":=", "if ") } else { ("=", "") };
            out.push(
                0,
                format!("{name}({arguments}) {assign} r {body}{{ r := {builtin}({arguments}) }}"),
            );
        }
    }

    /// Rewrites `f(a, result)` of a built-in as `result = f(a)`, as OPA does.
    fn with_result(&self, expr: &Ref<Expr>) -> Option<Ref<Expr>> {
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
        if arguments.len() != count || self.is_known(name.first()?) {
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

    /// Adds a statement `fresh := value` before the current one. Returns the name.
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
                    "{name} is used before its declaration: move the declaration up, or rename it"
                ),
            )),
        }
    }

    fn check_name(&self, span: &Span) -> Result<(), LoadError> {
        if span.text().starts_with(RESERVED) {
            let what = format!("names that begin with {RESERVED} are reserved: rename it");
            return Err(self.refuse(span.line, what));
        }
        if builtins::is_operator(span.text()) {
            let what = format!("the name {} is reserved: rename it", span.text());
            return Err(self.refuse(span.line, what));
        }
        Ok(())
    }
}

/// Returns a hash of a module's place, FNV-1a.
fn checksum(place: &str) -> u64 {
    place.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Returns one token.
fn token(line: u32, text: impl Into<String>) -> Tokens {
    let mut tokens = Tokens::default();
    tokens.push(line, text);
    tokens
}

/// Joins statements with semicolons; `true` for an empty list, as an empty body holds.
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

/// Returns the dotted name of a called function.
fn called(function: &Ref<Expr>) -> String {
    head_path(function).join(".")
}

/// Returns true if a call without arguments is of a built-in; otherwise it reads a rule.
fn is_builtin(name: &str) -> bool {
    builtins::arguments(name).is_some() || builtins::missing(name).is_some()
}

/// Returns the number of a built-in's arguments; `None` if the interpreter checks it.
fn argument_count(name: &str) -> Option<usize> {
    match builtins::arguments(name)? {
        builtins::Arguments::Fixed(count) if name != "walk" => Some(count),
        _ => None,
    }
}

/// Returns the argument if an expression is a call `walk(x)`.
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
