//! Lowers the statements of a body: declarations, assignments, negations, `every` and `with`.

use std::collections::BTreeSet;

use regorus::unstable::{BoolOp, Expr, Literal, LiteralStmt, Query, Ref, Span, WithModifier};

use super::expressions::{Reading, is_reference, parenthesised};
use super::patterns::Matched;
use super::text::Tokens;
use super::{Lower, bindings, is_builtin, joined, token};
use crate::analysis::head_path;
use crate::builtins;
use crate::error::LoadError;

impl Lower<'_> {
    /// Lowers the statements of a body in the open scope.
    pub(super) fn statements(&mut self, query: &Query) -> Result<Vec<Tokens>, LoadError> {
        let mut out = Vec::with_capacity(query.stmts.len());
        for number in bindings::order(query) {
            if let Some(statement) = query.stmts.get(number) {
                self.statement(statement, &mut out)?;
            }
        }
        Ok(out)
    }

    fn statement(
        &mut self,
        statement: &LiteralStmt,
        out: &mut Vec<Tokens>,
    ) -> Result<(), LoadError> {
        let line = statement.span.line;
        self.with = Tokens::default();
        self.with = self.modifiers(&statement.with_mods)?;
        let mut written = match &statement.literal {
            Literal::SomeVars { vars, .. } => {
                for name in vars {
                    self.declare(name)?;
                }
                Vec::new()
            }
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => self.some_in(line, key.as_ref(), value, collection)?,
            Literal::Expr { expr, .. } => {
                let with_result = self.with_result(expr);
                let expr = with_result.as_ref().unwrap_or(expr);
                match expr.as_ref() {
                    Expr::AssignExpr { op, lhs, rhs, .. } => self.assignment(line, op, lhs, rhs)?,
                    _ => vec![self.expression(expr)?],
                }
            }
            Literal::NotExpr { expr, .. } => {
                let with_result = self.with_result(expr);
                vec![self.negation(line, with_result.as_ref().unwrap_or(expr))?]
            }
            Literal::Every {
                key,
                value,
                domain,
                query,
                ..
            } => vec![self.every(line, key.as_ref(), value, domain, query)?],
        };
        let with = std::mem::take(&mut self.with);
        out.append(&mut self.before);
        if let Some(first) = written.first_mut() {
            first.append(with);
        }
        out.append(&mut written);
        Ok(())
    }

    /// Lowers `with` modifiers. Their inputs are looked up before the statement, without the
    /// modifiers.
    fn modifiers(&mut self, modifiers: &[WithModifier]) -> Result<Tokens, LoadError> {
        let mut out = Tokens::default();
        let mut replaced = BTreeSet::new();
        for modifier in modifiers {
            let line = modifier.span.line;
            if !replaced.insert(head_path(&modifier.refr)) {
                let what = "with replaces the same path twice: remove one";
                return Err(self.refuse(line, what));
            }
            let target = head_path(&modifier.refr);
            let replaces_input = target.first().is_some_and(|root| root == "input");
            let value = &modifier.r#as;
            let value = if let Some((name, count)) = self.builtin(value) {
                // The interpreter can replace a function only by a function of a module.
                token(line, self.helper(&name, count))
            } else if !replaces_input && self.names_a_rule(value) {
                self.function(value, 1)?
            } else {
                let written = self.operand(value)?;
                if is_looked_up(value, replaces_input) {
                    self.hoist(line, written)
                } else {
                    written
                }
            };
            let name = target.join(".");
            if is_builtin(&name) && !builtins::is_native(&name) && !self.is_rule_name(&target) {
                // The number of arguments is known from a call, which the module may not contain.
                self.replaced.insert(name);
            }
            out.push(line, "with");
            out.append(self.target(&modifier.refr)?);
            out.push(line, "as");
            out.append(value);
        }
        Ok(out)
    }

    fn is_rule_name(&self, path: &[String]) -> bool {
        path.first().is_some_and(|root| self.is_known(root))
    }

    /// Returns true if an expression is the name of a rule of the module, which may be a function.
    fn names_a_rule(&self, expr: &Ref<Expr>) -> bool {
        matches!(expr.as_ref(), Expr::Var { span, .. }
            if !self.names.is_declared(span.text()) && self.rules.contains(span.text()))
    }

    /// Returns the built-in that a path names, and its number of arguments.
    fn builtin(&self, expr: &Ref<Expr>) -> Option<(String, usize)> {
        let path = head_path(expr);
        let root = path.first()?;
        if self.names.is_declared(root) || self.is_known(root) {
            return None;
        }
        let name = path.join(".");
        match builtins::arguments(&name)? {
            builtins::Arguments::Fixed(count) if count > 0 => Some((name, count)),
            _ => None,
        }
    }

    /// Lowers `some key, value in collection` to `value = collection[key]` with unique names.
    fn some_in(
        &mut self,
        line: u32,
        key: Option<&Ref<Expr>>,
        value: &Ref<Expr>,
        collection: &Ref<Expr>,
    ) -> Result<Vec<Tokens>, LoadError> {
        let mut read = self.operand(collection)?;
        if !is_reference(collection) {
            read = self.hoist(line, read);
        }
        let mut then = Vec::new();
        let index = match key {
            None => token(line, "_"),
            Some(key) => match key.as_ref() {
                Expr::Array { .. } | Expr::Object { .. } => {
                    let name = self.names.fresh("key");
                    let matched = self.pattern(key, true)?;
                    let mut statement = matched.pattern;
                    statement.push(line, "=");
                    statement.push(line, &name);
                    then.push(statement);
                    then.extend(matched.then);
                    token(line, name)
                }
                _ => self.pattern(key, true)?.pattern,
            },
        };
        let mut pattern = self.pattern(value, true)?;
        if matches!(value.as_ref(), Expr::Var { span, .. } if span.text() == "_") {
            pattern.pattern = token(line, self.names.fresh("value"));
        }
        let mut statement = pattern.pattern;
        statement.push(line, "=");
        statement.append(read);
        statement.glue(line, "[");
        statement.append_glued(index);
        statement.glue(line, "]");
        Ok([statement]
            .into_iter()
            .chain(pattern.then)
            .chain(then)
            .collect())
    }

    fn every(
        &mut self,
        line: u32,
        key: Option<&Span>,
        value: &Span,
        domain: &Ref<Expr>,
        query: &Ref<Query>,
    ) -> Result<Tokens, LoadError> {
        let read = self.operand(domain)?;
        let domain = match domain.as_ref() {
            Expr::Array { .. } | Expr::Set { .. } | Expr::Object { .. } => read,
            _ => self.hoist(line, read),
        };
        let outer = (
            std::mem::take(&mut self.before),
            std::mem::take(&mut self.with),
        );
        self.names.open();
        let mut out = token(line, "every");
        if let Some(key) = key {
            out.append(self.declare(key)?);
            out.glue(line, ",");
        }
        out.append(self.declare(value)?);
        out.push(line, "in");
        out.append(domain);
        out.push(line, "{");
        let statements = self.statements(query)?;
        self.names.close();
        (self.before, self.with) = outer;
        out.append(joined(query.span.line, statements));
        out.push(line, "}");
        Ok(out)
    }

    /// Lowers a negated expression. Its calls and reads are looked up before it, as in OPA, unless
    /// the module has `not` bodies, in which case it becomes a body of its own.
    fn negation(&mut self, line: u32, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        if let Expr::AssignExpr { op, span, .. } = expr.as_ref()
            && matches!(op, regorus::unstable::AssignOp::ColEq)
        {
            return Err(self.refuse(
                span.line,
                "not x := y declares a name that cannot be used: write not x = y",
            ));
        }
        if self.has_not_bodies {
            self.note_version_dependent(line, expr);
            return self.negated_body(line, expr);
        }
        self.negation_after_lookups(line, expr)
    }

    /// Records a negation that has another meaning before OPA 1.17, where it looks something up
    /// before it.
    fn note_version_dependent(&mut self, line: u32, expr: &Ref<Expr>) {
        if !self.imports_all_keywords || self.version_dependent_negation.is_some() {
            return;
        }
        let (names, before) = (self.names.clone(), std::mem::take(&mut self.before));
        let written = self.negation_after_lookups(line, expr);
        if written.is_err() || !self.before.is_empty() {
            self.version_dependent_negation = Some(line);
        }
        (self.names, self.before) = (names, before);
    }

    /// Writes a negated expression after statements that look up its calls and reads.
    fn negation_after_lookups(&mut self, line: u32, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        let mut out = token(line, "not");
        out.append(match expr.as_ref() {
            Expr::Call {
                span, fcn, params, ..
            } if super::walked(expr).is_none() => self.call(span, fcn, params, Reading::Before)?,
            Expr::AssignExpr { span, lhs, rhs, .. }
            | Expr::BoolExpr {
                span,
                op: BoolOp::Eq,
                lhs,
                rhs,
                ..
            } => {
                let mut out = self.looked_into(lhs)?;
                // A negation binds nothing: `=` compares, and must not appear to bind.
                out.push(span.line, "==");
                out.append(self.looked_into(rhs)?);
                out
            }
            Expr::BoolExpr { .. }
            | Expr::ArithExpr { .. }
            | Expr::BinExpr { .. }
            | Expr::Membership { .. } => self.infix(expr, Reading::Before)?,
            _ => self.looked_into(expr)?,
        });
        Ok(out)
    }

    /// Writes `not` with its own body as a comprehension that must be empty.
    fn negated_body(&mut self, line: u32, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        let outer = (
            std::mem::take(&mut self.before),
            std::mem::take(&mut self.with),
        );
        self.names.open();
        let mut statements = match expr.as_ref() {
            Expr::AssignExpr {
                span, op, lhs, rhs, ..
            } => self.assignment(span.line, op, lhs, rhs)?,
            _ => vec![self.expression(expr)?],
        };
        self.before.append(&mut statements);
        let statements = std::mem::take(&mut self.before);
        self.names.close();
        (self.before, self.with) = outer;
        let mut out = token(line, "[1 |");
        out.append(joined(line, statements));
        out.push(line, "] == []");
        Ok(out)
    }

    /// Lowers an operand that is looked up before a negated call.
    pub(super) fn looked_up(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        let line = expr.span().line;
        match expr.as_ref() {
            Expr::Var { span, .. } => {
                let is_rule = self.is_rule(span);
                let read = self.name(span)?;
                Ok(if is_rule {
                    self.hoist(line, read)
                } else {
                    read
                })
            }
            Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                let read = self.reference(expr, Reading::Before)?;
                Ok(self.hoist(line, read))
            }
            Expr::Call {
                span, fcn, params, ..
            } if super::walked(expr).is_none() => {
                let called = self.call(span, fcn, params, Reading::Before)?;
                Ok(self.hoist(line, called))
            }
            Expr::BinExpr { .. }
            | Expr::BoolExpr { .. }
            | Expr::ArithExpr { .. }
            | Expr::Membership { .. } => {
                let made = self.infix(expr, Reading::Before)?;
                Ok(self.hoist(line, parenthesised(line, made)))
            }
            Expr::Array { span, items, .. } => {
                self.list(span.line, ("[", "]"), items, Reading::Before)
            }
            Expr::Set { span, items, .. } if !items.is_empty() => {
                self.list(span.line, ("{", "}"), items, Reading::Before)
            }
            Expr::Object { span, fields, .. } => self.object(span.line, fields, Reading::Before),
            _ => self.operand(expr),
        }
    }

    /// Returns true if a name read in a negated expression is a rule's, which may be undefined. A
    /// name that is neither declared nor known here is a variable if something binds it.
    fn is_rule(&mut self, span: &Span) -> bool {
        let name = span.text();
        if name == "_" || self.names.is_declared(name) {
            return false;
        }
        if !self.is_known(name) && self.bound.contains(name) {
            self.assumed.entry(name.to_owned()).or_insert(span.line);
            return false;
        }
        true
    }

    /// Lowers a side of a negated equality, or a negated reference: only its inner parts are looked
    /// up before it.
    fn looked_into(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        match expr.as_ref() {
            Expr::Var { span, .. } => self.name(span),
            Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr, Reading::Negated),
            _ => self.looked_up(expr),
        }
    }

    /// Lowers the contents of brackets in a negated reference. Other statements bind the names in
    /// it. The interpreter takes a single name in brackets for a binding, and might order the
    /// negation before the statement that binds it, so no name is written alone there.
    pub(super) fn negated_index(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        match expr.as_ref() {
            Expr::Var { span, .. } if span.text() != "_" => {
                let mut out = token(span.line, "[");
                out.append_glued(self.looked_up(expr)?);
                out.glue(span.line, "][0]");
                Ok(out)
            }
            Expr::Array { span, items, .. } => {
                self.list(span.line, ("[", "]"), items, Reading::Negated)
            }
            Expr::Object { span, fields, .. } => self.object(span.line, fields, Reading::Negated),
            _ => self.looked_up(expr),
        }
    }

    /// Writes a matched pattern as statements of a body.
    pub(super) fn matches(&mut self, line: u32, matched: Matched, value: &str) -> Vec<Tokens> {
        let mut statement = matched.pattern;
        statement.push(line, "=");
        statement.push(line, value);
        [statement].into_iter().chain(matched.then).collect()
    }
}

/// Returns true if the value of a `with` may be undefined, which makes the statement undefined in
/// OPA. A single name, or a path from `data`, may be a function's, which cannot be looked up unless
/// the input is replaced.
fn is_looked_up(expr: &Ref<Expr>, replaces_input: bool) -> bool {
    match expr.as_ref() {
        Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => {
            let mut root = refr;
            while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = root.as_ref() {
                root = refr;
            }
            replaces_input
                || matches!(root.as_ref(), Expr::Var { span, .. } if span.text() == "input")
        }
        Expr::Var { span, .. } => replaces_input || span.text() == "input",
        Expr::Array { .. }
        | Expr::Object { .. }
        | Expr::Call { .. }
        | Expr::BinExpr { .. }
        | Expr::BoolExpr { .. }
        | Expr::ArithExpr { .. }
        | Expr::Membership { .. } => true,
        _ => false,
    }
}
