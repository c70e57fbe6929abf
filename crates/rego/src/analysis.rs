//! The rules, functions, data and input that a module refers to, collected from its lowered syntax
//! tree. Lowering renamed the module's declared variables so that none has the name of a rule.

use std::collections::{BTreeMap, BTreeSet};

use regorus::Value;
use regorus::unstable::{
    Expr, Import, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleAssign, RuleHead, Span,
};

use crate::builtins;
use crate::error::LoadError;
use crate::wrap;

/// The package whose `deny` rule is evaluated.
pub(crate) const ADMISSION: [&str; 2] = ["kubernetes", "admission"];

/// A path below `data` or `input`.
pub(crate) type Path = Vec<String>;

/// The contents and references of a module.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModuleFacts {
    pub(crate) package: Path,
    pub(crate) rules: Vec<RuleFacts>,
    /// Built-ins that a `with` replaces and the interpreter does not have.
    pub(crate) replaced: BTreeSet<String>,
}

/// The kind of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A set: `deny[msg] { … }`, `deny contains msg if { … }`.
    Set,
    /// A value: `deny = true { … }`, `default deny = false`.
    Complete,
    /// A function with this number of arguments.
    Function(usize),
}

/// The references of one rule.
#[derive(Debug, Clone)]
pub(crate) struct RuleFacts {
    /// The path including the package.
    pub(crate) path: Path,
    pub(crate) shape: Shape,
    /// True if the head's path has a variable before its end: `p[x].q`.
    pub(crate) is_general: bool,
    pub(crate) line: u32,
    pub(crate) refs: Vec<Reference>,
    pub(crate) calls: Vec<Call>,
    pub(crate) inputs: Vec<InputRead>,
    /// Kinds with a pod template that the rule's text names.
    pub(crate) kinds: BTreeSet<&'static str>,
    /// Maximum number of nesting levels that the rule adds to its inputs.
    pub(crate) levels: usize,
}

/// A reference to data or to a rule.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) path: Path,
    /// True if written as `data…` or through an import of it, rather than as a name of the package.
    pub(crate) is_data: bool,
}

/// A function call: the path of a user-defined function of that name, and the name as written.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) path: Path,
    pub(crate) name: String,
    pub(crate) arguments: usize,
    /// The pattern passed to a built-in, if it is a literal.
    pub(crate) pattern: Option<String>,
    pub(crate) line: u32,
}

/// A read of the input; the path ends where it is no longer constant.
#[derive(Debug, Clone)]
pub(crate) struct InputRead {
    pub(crate) path: Path,
    /// True if a variable selects what is read below the path.
    pub(crate) dynamic: bool,
    pub(crate) line: u32,
}

/// Collects the references of a module's rules.
pub(crate) fn facts(module: &Module, place: &str) -> Result<ModuleFacts, LoadError> {
    let package = head_path(&module.package.refr);
    let imports = imports(&module.imports);
    let mut rules = Vec::with_capacity(module.policy.len());
    for rule in &module.policy {
        let mut walk = Walk {
            package: &package,
            imports: &imports,
            place,
            refs: Vec::new(),
            calls: Vec::new(),
            inputs: Vec::new(),
            kinds: BTreeSet::new(),
            levels: 0,
        };
        let (path, shape) = walk.rule(rule)?;
        let is_general = is_general(rule);
        // A rule with a variable in the middle of its path is an object.
        let shape = if is_general { Shape::Set } else { shape };
        let Walk {
            refs,
            calls,
            inputs,
            kinds,
            levels,
            ..
        } = walk;
        rules.push(RuleFacts {
            path: package.iter().cloned().chain(path).collect(),
            shape,
            is_general,
            line: rule.span().line,
            refs,
            calls,
            inputs,
            kinds,
            levels,
        });
    }
    Ok(ModuleFacts {
        package,
        rules,
        replaced: BTreeSet::new(),
    })
}

/// Returns the constant part of a rule's head or of a package's name.
pub(crate) fn head_path(refr: &Ref<Expr>) -> Path {
    match flatten(refr) {
        (Some(root), fields, _) => std::iter::once(root.text().to_owned())
            .chain(fields)
            .collect(),
        (None, ..) => Vec::new(),
    }
}

/// Returns the path of a rule from its head, without the last key if it is that of a set or an
/// object.
pub(crate) fn rule_path(refr: &Ref<Expr>) -> Path {
    match refr.as_ref() {
        Expr::RefBrack { refr, .. } => head_path(refr),
        _ => head_path(refr),
    }
}

/// Returns true if a head's path has a variable part before its end.
fn is_general(rule: &Rule) -> bool {
    let (refr, is_set) = match rule {
        Rule::Default { .. } => return false,
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. } | RuleHead::Func { refr, .. } => (refr, false),
            RuleHead::Set { refr, .. } => (refr, true),
        },
    };
    // The elements of a set are one level below its path.
    let path = match refr.as_ref() {
        Expr::RefBrack { refr, .. } if !is_set => refr,
        _ => refr,
    };
    let (_, _, dynamic) = flatten(path);
    !dynamic.is_empty()
}

/// Returns the names of a module's imports and the paths they stand for, with `data` or `input`
/// first.
fn imports(imports: &[Import]) -> BTreeMap<String, Path> {
    imports
        .iter()
        .filter_map(|import| {
            let path = head_path(&import.refr);
            if !matches!(path.first()?.as_str(), "data" | "input") {
                return None;
            }
            let alias = match &import.r#as {
                Some(alias) => alias.text().to_owned(),
                None => path.last()?.clone(),
            };
            Some((alias, path))
        })
        .collect()
}

/// Splits a chain such as `root.a["b"][x].c` into its root (if it is a name), the fields up to the
/// first that is not constant, and the expressions of the other brackets.
fn flatten(expr: &Ref<Expr>) -> (Option<&Span>, Path, Vec<&Ref<Expr>>) {
    let (mut fields, mut dynamic, mut at) = (Vec::new(), Vec::new(), expr);
    loop {
        match at.as_ref() {
            Expr::RefDot { refr, field, .. } => {
                fields.push(field.1.as_string().map(ToString::to_string).ok());
                at = refr;
            }
            Expr::RefBrack { refr, index, .. } => {
                match index.as_ref() {
                    Expr::String {
                        value: Value::String(text),
                        ..
                    }
                    | Expr::RawString {
                        value: Value::String(text),
                        ..
                    } => {
                        fields.push(Some(text.to_string()));
                    }
                    // The keys of data are strings.
                    Expr::Number { span, .. } if is_data(refr) => {
                        fields.push(Some(span.text().to_owned()));
                    }
                    _ => {
                        fields.push(None);
                        dynamic.push(index);
                    }
                }
                at = refr;
            }
            other => {
                let root = match other {
                    Expr::Var { span, .. } => Some(span),
                    _ => {
                        dynamic.push(at);
                        None
                    }
                };
                let fixed = fields.iter().rev().map_while(Clone::clone).collect();
                // The path of a chain without a root is reversed, so it is returned empty: nothing
                // is known of it.
                return (root, fixed, dynamic);
            }
        }
    }
}

fn is_data(expr: &Ref<Expr>) -> bool {
    matches!(expr.as_ref(), Expr::Var { span, .. } if span.text() == "data")
}

/// Returns the text of a string literal.
fn literal_text(expr: &Ref<Expr>) -> Option<String> {
    match expr.as_ref() {
        Expr::String {
            value: Value::String(text),
            ..
        }
        | Expr::RawString {
            value: Value::String(text),
            ..
        } => Some(text.to_string()),
        _ => None,
    }
}

/// Returns true if the value of an expression can contain the values of other expressions.
fn may_nest(expr: &Ref<Expr>) -> bool {
    match expr.as_ref() {
        Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => true,
        Expr::Array { .. } | Expr::Set { .. } | Expr::Object { .. } => !is_constant(expr),
        _ => false,
    }
}

/// Returns true if an expression consists of literals and collections of them.
pub(crate) fn is_constant(expr: &Ref<Expr>) -> bool {
    match expr.as_ref() {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. } => true,
        Expr::UnaryExpr { expr, .. } => matches!(expr.as_ref(), Expr::Number { .. }),
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().all(is_constant),
        Expr::Object { fields, .. } => {
            let mut fields = fields.iter();
            fields.all(|(_, key, value)| is_constant(key) && is_constant(value))
        }
        _ => false,
    }
}

struct Walk<'a> {
    package: &'a Path,
    imports: &'a BTreeMap<String, Path>,
    place: &'a str,
    refs: Vec<Reference>,
    calls: Vec<Call>,
    inputs: Vec<InputRead>,
    kinds: BTreeSet<&'static str>,
    levels: usize,
}

impl Walk<'_> {
    fn rule(&mut self, rule: &Ref<Rule>) -> Result<(Path, Shape), LoadError> {
        match rule.as_ref() {
            Rule::Default {
                refr, args, value, ..
            } => {
                self.arguments(args)?;
                self.expr(value)?;
                let shape = if args.is_empty() {
                    Shape::Complete
                } else {
                    Shape::Function(args.len())
                };
                Ok((head_path(refr), shape))
            }
            Rule::Spec { head, bodies, .. } => {
                let (path, shape) = match head {
                    // The brackets of a path contain constants, or names bound in the body.
                    RuleHead::Compr { refr, assign, .. } => {
                        let shape = match refr.as_ref() {
                            // v1's `deny[msg] if …` and v0's `deny[msg] = true { … }` produce keys.
                            Expr::RefBrack { .. } => Shape::Set,
                            _ => Shape::Complete,
                        };
                        self.assign(assign.as_ref())?;
                        (rule_path(refr), shape)
                    }
                    RuleHead::Set { refr, key, .. } => {
                        if let Some(key) = key {
                            self.expr(key)?;
                        }
                        (rule_path(refr), Shape::Set)
                    }
                    RuleHead::Func {
                        refr, args, assign, ..
                    } => {
                        self.arguments(args)?;
                        self.assign(assign.as_ref())?;
                        (head_path(refr), Shape::Function(args.len()))
                    }
                };
                for body in bodies {
                    self.assign(body.assign.as_ref())?;
                    self.query(&body.query)?;
                }
                Ok((path, shape))
            }
        }
    }

    fn assign(&mut self, assign: Option<&RuleAssign>) -> Result<(), LoadError> {
        assign.map_or(Ok(()), |assign| self.expr(&assign.value))
    }

    fn arguments(&mut self, args: &[Ref<Expr>]) -> Result<(), LoadError> {
        args.iter().try_for_each(|arg| self.expr(arg))
    }

    fn query(&mut self, query: &Ref<Query>) -> Result<(), LoadError> {
        query
            .stmts
            .iter()
            .try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &LiteralStmt) -> Result<(), LoadError> {
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                for pattern in key.iter().chain([value]) {
                    self.expr(pattern)?;
                }
                self.expr(collection)?;
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.expr(expr)?,
            Literal::Every { domain, query, .. } => {
                self.expr(domain)?;
                self.query(query)?;
            }
        }
        // The target of a `with` is not read; its value is.
        statement
            .with_mods
            .iter()
            .try_for_each(|with| self.expr(&with.r#as))
    }

    fn expr(&mut self, expr: &Ref<Expr>) -> Result<(), LoadError> {
        self.levels += usize::from(may_nest(expr));
        match expr.as_ref() {
            Expr::String { value, .. } | Expr::RawString { value, .. } => {
                if let Value::String(text) = value {
                    self.kinds.extend(wrap::kind_named(text));
                }
            }
            Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. } => {}
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                let (root, fields, dynamic) = flatten(expr);
                if let Some(root) = root {
                    self.reference(root, fields, !dynamic.is_empty());
                }
                for index in dynamic {
                    self.expr(index)?;
                }
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                items.iter().try_for_each(|item| self.expr(item))?;
            }
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.expr(key)?;
                    self.expr(value)?;
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.expr(term)?;
                self.query(query)?;
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.expr(key)?;
                self.expr(value)?;
                self.query(query)?;
            }
            Expr::Call {
                span, fcn, params, ..
            } => {
                self.call(span, fcn, params)?;
                params.iter().try_for_each(|param| self.expr(param))?;
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr)?,
            Expr::AssignExpr { lhs, rhs, .. }
            | Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. } => {
                self.expr(lhs)?;
                self.expr(rhs)?;
            }
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                for part in key.iter().chain([value, collection]) {
                    self.expr(part)?;
                }
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        span: &Span,
        function: &Ref<Expr>,
        params: &[Ref<Expr>],
    ) -> Result<(), LoadError> {
        let (Some(root), fields, dynamic) = flatten(function) else {
            return Err(self.refuse(span, "only functions can be called"));
        };
        if !dynamic.is_empty() {
            return Err(self.refuse(span, "the called function must not depend on a variable"));
        }
        let root = root.text();
        let path: Path = match self.imports.get(root) {
            Some(import) => import
                .iter()
                .skip(1)
                .cloned()
                .chain(fields.clone())
                .collect(),
            None if root == "data" => fields.clone(),
            None => self
                .package
                .iter()
                .cloned()
                .chain([root.to_owned()])
                .chain(fields.clone())
                .collect(),
        };
        // A function of the package itself is reported under the name that its author wrote.
        let name = match path.strip_prefix(self.package.as_slice()) {
            Some(own) if root == "data" => own.join("."),
            _ => std::iter::once(root)
                .chain(fields.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("."),
        };
        let pattern = builtins::pattern_place(&name)
            .and_then(|place| params.get(place))
            .and_then(literal_text);
        self.calls.push(Call {
            path,
            name,
            arguments: params.len(),
            pattern,
            line: span.line,
        });
        Ok(())
    }

    fn reference(&mut self, root: &Span, fields: Path, dynamic: bool) {
        let name = root.text();
        let whole: Path = match (name, self.imports.get(name)) {
            ("input" | "data", _) => [name.to_owned()].into_iter().chain(fields).collect(),
            (_, Some(import)) => import.iter().cloned().chain(fields).collect(),
            (_, None) => {
                let path = self
                    .package
                    .iter()
                    .cloned()
                    .chain([name.to_owned()])
                    .chain(fields);
                let reference = Reference {
                    path: path.collect(),
                    is_data: false,
                };
                self.refs.push(reference);
                return;
            }
        };
        let mut parts = whole.into_iter();
        if parts.next().as_deref() == Some("input") {
            self.inputs.push(InputRead {
                path: parts.collect(),
                dynamic,
                line: root.line,
            });
        } else {
            let reference = Reference {
                path: parts.collect(),
                is_data: true,
            };
            self.refs.push(reference);
        }
    }

    fn refuse(&self, span: &Span, what: &str) -> LoadError {
        LoadError::Compile(format!("{}, line {}: {what}", self.place, span.line))
    }
}
