//! Lowers expressions: names, references, literals, comprehensions, calls and operators.

use regorus::unstable::{ArithOp, BinOp, BoolOp, Expr, Query, Ref, Span};

use super::text::Tokens;
use super::{Lower, called, is_builtin, joined, token, walked};
use crate::analysis::head_path;
use crate::builtins::FRACTION;
use crate::error::LoadError;

/// The place where the parts of an expression are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// In place.
    Here,
    /// Before the statement, which is undefined if they are.
    Before,
    /// As `Before`, for a negated reference, which binds no name in its brackets.
    Negated,
}

impl Lower<'_> {
    fn read(&mut self, expr: &Ref<Expr>, reading: Reading) -> Result<Tokens, LoadError> {
        match reading {
            Reading::Here => self.operand(expr),
            Reading::Before => self.looked_up(expr),
            Reading::Negated => self.negated_index(expr),
        }
    }

    /// Lowers an expression as an operand. If it has operators, it is put in parentheses.
    pub(super) fn operand(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        let written = self.expression(expr)?;
        Ok(match expr.as_ref() {
            Expr::BinExpr { span, .. }
            | Expr::BoolExpr { span, .. }
            | Expr::ArithExpr { span, .. }
            | Expr::Membership { span, .. } => parenthesised(span.line, written),
            _ => written,
        })
    }

    /// Lowers a stand-alone expression.
    pub(super) fn expression(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        match expr.as_ref() {
            Expr::String { span, .. } => Ok(token(span.line, format!("\"{}\"", span.text()))),
            Expr::RawString { span, .. } => Ok(token(span.line, format!("`{}`", span.text()))),
            Expr::Number { span, .. } | Expr::Bool { span, .. } | Expr::Null { span, .. } => {
                Ok(token(span.line, span.text()))
            }
            Expr::Var { span, .. } => self.name(span),
            Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr, Reading::Here),
            Expr::Array { span, items, .. } => {
                self.list(span.line, ("[", "]"), items, Reading::Here)
            }
            Expr::Set { span, items, .. } if items.is_empty() => Ok(token(span.line, "set()")),
            Expr::Set { span, items, .. } => self.list(span.line, ("{", "}"), items, Reading::Here),
            Expr::Object { span, fields, .. } => self.object(span.line, fields, Reading::Here),
            Expr::ArrayCompr {
                span, term, query, ..
            } => self.comprehension(span.line, ("[", "]"), &[term], query),
            Expr::SetCompr {
                span, term, query, ..
            } => self.comprehension(span.line, ("{", "}"), &[term], query),
            Expr::ObjectCompr {
                span,
                key,
                value,
                query,
                ..
            } => self.comprehension(span.line, ("{", "}"), &[key, value], query),
            Expr::Call {
                span, fcn, params, ..
            } => {
                if let Some((node, line)) = walked(expr) {
                    return self.walk_before(node, line);
                }
                self.call(span, fcn, params, Reading::Here)
            }
            Expr::UnaryExpr { span, expr, .. } => match expr.as_ref() {
                Expr::Number { span: number, .. } if !number.text().starts_with('-') => {
                    Ok(token(span.line, format!("-{}", number.text())))
                }
                _ => Err(self.refuse(
                    span.line,
                    "a minus sign is only allowed before a number: write 0 - x",
                )),
            },
            Expr::BinExpr { .. }
            | Expr::BoolExpr { .. }
            | Expr::ArithExpr { .. }
            | Expr::Membership { .. } => self.infix(expr, Reading::Here),
            Expr::AssignExpr { span, .. } => {
                Err(self.refuse(span.line, "an assignment must be a separate statement"))
            }
        }
    }

    /// Lowers a name.
    pub(super) fn name(&mut self, span: &Span) -> Result<Tokens, LoadError> {
        let name = span.text();
        self.check_name(span)?;
        let resolved = match name {
            "_" => None,
            _ => self.names.resolve(name),
        };
        let import = || self.imports.get(name).map(String::as_str);
        let written = resolved.as_deref().or_else(import).unwrap_or(name);
        Ok(token(span.line, written))
    }

    /// Lowers a reference. `reading` applies to the contents of its brackets.
    pub(super) fn reference(
        &mut self,
        expr: &Ref<Expr>,
        reading: Reading,
    ) -> Result<Tokens, LoadError> {
        // Outermost first. Iterative, since a chain may be long.
        let (mut links, mut at) = (Vec::new(), expr);
        while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = at.as_ref() {
            links.push(at);
            at = refr;
        }
        let mut out = match at.as_ref() {
            Expr::Var { .. } => self.expression(at)?,
            // OPA evaluates the root of the chain first, and so does the interpreter.
            _ => self.operand(at)?,
        };
        for link in links.into_iter().rev() {
            match link.as_ref() {
                Expr::RefDot { field, .. } => {
                    out.glue(field.0.line, format!(".{}", field.0.text()));
                }
                Expr::RefBrack {
                    span, index: inner, ..
                } => {
                    out.glue(span.line, "[");
                    out.append(self.read(inner, reading)?);
                    out.glue(span.line, "]");
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// Lowers a path that consists of names and strings, none of them a variable.
    pub(super) fn path(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        match expr.as_ref() {
            Expr::Var { span, .. } => {
                self.check_name(span)?;
                Ok(token(span.line, span.text()))
            }
            Expr::RefDot { refr, field, .. } => {
                let mut out = self.path(refr)?;
                out.glue(field.0.line, format!(".{}", field.0.text()));
                Ok(out)
            }
            Expr::RefBrack { refr, index, .. } => {
                let mut out = self.path(refr)?;
                let line = index.span().line;
                out.glue(line, "[");
                out.append_glued(self.operand(index)?);
                out.glue(line, "]");
                Ok(out)
            }
            other => Err(self.refuse(other.span().line, "expected a path of names")),
        }
    }

    pub(super) fn list(
        &mut self,
        line: u32,
        (open, close): (&str, &str),
        items: &[Ref<Expr>],
        reading: Reading,
    ) -> Result<Tokens, LoadError> {
        let mut out = token(line, open);
        for (number, each) in items.iter().enumerate() {
            if number > 0 {
                out.glue(line, ",");
            }
            out.append(self.read(each, reading)?);
        }
        out.glue(line, close);
        Ok(out)
    }

    pub(super) fn object(
        &mut self,
        line: u32,
        fields: &[(Span, Ref<Expr>, Ref<Expr>)],
        reading: Reading,
    ) -> Result<Tokens, LoadError> {
        let mut out = token(line, "{");
        for (number, (_, key, value)) in fields.iter().enumerate() {
            if number > 0 {
                out.glue(line, ",");
            }
            out.append(self.read(key, reading)?);
            out.glue(line, ":");
            out.append(self.read(value, reading)?);
        }
        out.glue(line, "}");
        Ok(out)
    }

    /// Lowers a comprehension, which has its own scope. The inputs of its term are looked up at the
    /// end of its body.
    fn comprehension(
        &mut self,
        line: u32,
        (open, close): (&str, &str),
        terms: &[&Ref<Expr>],
        query: &Ref<Query>,
    ) -> Result<Tokens, LoadError> {
        let outer = (
            std::mem::take(&mut self.before),
            std::mem::take(&mut self.with),
        );
        self.names.open();
        let mut statements = self.statements(query)?;
        let mut out = token(line, open);
        for (number, term) in terms.iter().enumerate() {
            if number > 0 {
                out.glue(line, ":");
            }
            out.append(self.operand(term)?);
        }
        statements.append(&mut self.before);
        self.names.close();
        (self.before, self.with) = outer;
        out.push(line, "|");
        out.append(joined(query.span.line, statements));
        out.push(line, close);
        Ok(out)
    }

    pub(super) fn call(
        &mut self,
        span: &Span,
        function: &Ref<Expr>,
        params: &[Ref<Expr>],
        reading: Reading,
    ) -> Result<Tokens, LoadError> {
        let name = called(function);
        if params.is_empty() && !is_builtin(&name) {
            return self.path(function);
        }
        let is_ours = head_path(function)
            .first()
            .is_some_and(|root| self.is_known(root));
        if !is_ours && super::argument_count(&name).is_some_and(|count| count + 1 == params.len()) {
            let what = format!(
                "the result of {name} cannot be its last argument within an expression: write a \
                 separate statement, or y := {name}(…)"
            );
            return Err(self.refuse(span.line, what));
        }
        let mut out = self.function(function, params.len())?;
        out.glue(span.line, "(");
        for (number, each) in params.iter().enumerate() {
            if number > 0 {
                out.glue(span.line, ",");
            }
            match each.as_ref() {
                Expr::Array { span, items, .. } if name == "sprintf" && !is_ours => {
                    out.append(self.formatted(span.line, items, reading)?);
                }
                _ => out.append(self.read(each, reading)?),
            }
        }
        out.glue(span.line, ")");
        Ok(out)
    }

    /// Lowers the values of a `sprintf`. Fraction literals are marked, since the interpreter reads
    /// `100.0` as 100, and the two are formatted differently.
    fn formatted(
        &mut self,
        line: u32,
        items: &[Ref<Expr>],
        reading: Reading,
    ) -> Result<Tokens, LoadError> {
        let mut out = token(line, "[");
        for (number, item) in items.iter().enumerate() {
            if number > 0 {
                out.glue(line, ",");
            }
            match item.as_ref() {
                Expr::Number { span, .. } if span.text().contains(['.', 'e', 'E']) => {
                    let text = span.text();
                    out.push(span.line, format!("{{[\"{FRACTION}\", \"{text}\"]}}"));
                }
                _ => out.append(self.read(item, reading)?),
            }
        }
        out.glue(line, "]");
        Ok(out)
    }

    /// Lowers `walk(node)` within an expression, which yields one node after another.
    fn walk_before(&mut self, node: &Ref<Expr>, line: u32) -> Result<Tokens, LoadError> {
        let node = self.operand(node)?;
        let name = self.names.fresh("node");
        let statement = walk(line, node, token(line, &name));
        self.put_before(statement);
        Ok(token(line, name))
    }

    /// Lowers an expression with an operator.
    pub(super) fn infix(
        &mut self,
        expr: &Ref<Expr>,
        reading: Reading,
    ) -> Result<Tokens, LoadError> {
        // A supplied function is undefined where OPA's operator is. Long chains of operators stay
        // operators, since each function is a level of recursion.
        if let Some((line, function, lhs, rhs)) =
            operator(expr).filter(|_| depth(expr) <= MAX_CALLS)
        {
            let mut out = token(line, function);
            out.glue(line, "(");
            out.append_glued(self.read(lhs, reading)?);
            out.glue(line, ",");
            out.append(self.read(rhs, reading)?);
            out.glue(line, ")");
            return Ok(out);
        }
        let looks_up = reading != Reading::Here;
        let strength = strength(expr);
        let side = |lower: &mut Self, side: &Ref<Expr>, least: u8| {
            if looks_up {
                lower.looked_up(side)
            } else if self::strength(side) >= least {
                lower.expression(side)
            } else {
                lower.operand(side)
            }
        };
        let (span, operator, lhs, rhs) = match expr.as_ref() {
            Expr::BinExpr {
                span, op, lhs, rhs, ..
            } => (span, binary(op), lhs, rhs),
            Expr::BoolExpr {
                span, op, lhs, rhs, ..
            } => (span, comparison(op), lhs, rhs),
            Expr::ArithExpr {
                span, op, lhs, rhs, ..
            } => (span, arithmetic(op), lhs, rhs),
            Expr::Membership {
                span,
                key: Some(key),
                value,
                collection,
                ..
            } => {
                let line = span.line;
                let key = side(self, key, strength + 1)?;
                let value = side(self, value, strength + 1)?;
                let mut read = side(self, collection, strength + 1)?;
                if !is_reference(collection) && !looks_up {
                    read = self.hoist(line, read);
                }
                return Ok(entry(line, key, value, read));
            }
            Expr::Membership {
                span,
                value,
                collection,
                ..
            } => {
                let mut out = side(self, value, strength + 1)?;
                out.push(span.line, "in");
                out.append(side(self, collection, strength + 1)?);
                return Ok(out);
            }
            other => return Err(self.refuse(other.span().line, "expected an operator")),
        };
        // Operators of equal precedence are left-associative.
        let mut out = side(self, lhs, strength)?;
        out.push(span.line, operator);
        out.append(side(self, rhs, strength + 1)?);
        Ok(out)
    }
}

/// Lowers `key, value in collection`: true if there is such an entry. The interpreter never finds
/// one in a set.
fn entry(line: u32, key: Tokens, value: Tokens, collection: Tokens) -> Tokens {
    let mut out = token(line, "[1 |");
    out.append(collection);
    out.glue(line, "[");
    out.append_glued(key);
    out.glue(line, "] ==");
    out.append(value);
    out.glue(line, "] != []");
    out
}

/// Returns true if an expression is a name or a reference, which an index may follow.
pub(super) fn is_reference(expr: &Ref<Expr>) -> bool {
    matches!(
        expr.as_ref(),
        Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. }
    )
}

/// Returns the precedence of an expression. One without an operator has the highest.
fn strength(expr: &Ref<Expr>) -> u8 {
    match expr.as_ref() {
        Expr::Membership { .. } => 1,
        Expr::BoolExpr { .. } => 2,
        Expr::BinExpr {
            op: BinOp::Union, ..
        } => 3,
        Expr::BinExpr {
            op: BinOp::Intersection,
            ..
        } => 4,
        Expr::ArithExpr {
            op: ArithOp::Add | ArithOp::Sub,
            ..
        } => 5,
        Expr::ArithExpr { .. } => 6,
        _ => 7,
    }
}

/// Writes `walk(node, result)`, which yields one result after another.
pub(super) fn walk(line: u32, node: Tokens, result: Tokens) -> Tokens {
    let mut out = token(line, "walk");
    out.glue(line, "(");
    out.append(node);
    out.glue(line, ",");
    out.append(result);
    out.glue(line, ")");
    out
}

pub(super) fn parenthesised(line: u32, inner: Tokens) -> Tokens {
    let mut out = token(line, "(");
    out.append(inner);
    out.glue(line, ")");
    out
}

/// Maximum nesting of operators that are written as functions.
const MAX_CALLS: usize = 8;

/// Returns an arithmetic or set operator as a function: its name and its operands.
fn operator(expr: &Ref<Expr>) -> Option<(u32, &'static str, &Ref<Expr>, &Ref<Expr>)> {
    let (span, name, lhs, rhs) = match expr.as_ref() {
        Expr::ArithExpr {
            span, op, lhs, rhs, ..
        } => {
            let name = match op {
                ArithOp::Add => "rolegate_plus",
                ArithOp::Sub => "rolegate_minus",
                ArithOp::Mul => "rolegate_mul",
                ArithOp::Div => "rolegate_div",
                ArithOp::Mod => "rolegate_rem",
            };
            (span, name, lhs, rhs)
        }
        Expr::BinExpr {
            span, op, lhs, rhs, ..
        } => {
            let name = match op {
                BinOp::Intersection => "rolegate_and",
                BinOp::Union => "rolegate_or",
            };
            (span, name, lhs, rhs)
        }
        _ => return None,
    };
    Some((span.line, name, lhs, rhs))
}

/// Returns the nesting of operators, counting only up to the limit.
fn depth(expr: &Ref<Expr>) -> usize {
    fn below(expr: &Ref<Expr>, left: usize) -> usize {
        match operator(expr) {
            Some((_, _, lhs, rhs)) if left > 0 => {
                1 + below(lhs, left - 1).max(below(rhs, left - 1))
            }
            _ => 0,
        }
    }
    below(expr, MAX_CALLS + 1)
}

fn binary(op: &BinOp) -> &'static str {
    match op {
        BinOp::Intersection => "&",
        BinOp::Union => "|",
    }
}

fn comparison(op: &BoolOp) -> &'static str {
    match op {
        BoolOp::Lt => "<",
        BoolOp::Le => "<=",
        BoolOp::Eq => "==",
        BoolOp::Ge => ">=",
        BoolOp::Gt => ">",
        BoolOp::Ne => "!=",
    }
}

fn arithmetic(op: &ArithOp) -> &'static str {
    match op {
        ArithOp::Add => "+",
        ArithOp::Sub => "-",
        ArithOp::Mul => "*",
        ArithOp::Div => "/",
        ArithOp::Mod => "%",
    }
}
