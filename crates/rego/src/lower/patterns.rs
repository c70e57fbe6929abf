//! Lowers patterns: the side of `:=`, `=` or `some … in` that is matched against a value. The
//! interpreter's object patterns also match objects with additional keys, so each object pattern is
//! matched separately and its keys are counted.

use regorus::unstable::{AssignOp, Expr, Ref, Span};

use super::text::Tokens;
use super::{Lower, token};
use crate::error::LoadError;

/// An object pattern that a separate statement matches.
struct Pending<'a> {
    name: String,
    line: u32,
    fields: &'a [(Span, Ref<Expr>, Ref<Expr>)],
}

/// A written pattern, and the statements that must follow its own.
pub(super) struct Matched {
    pub(super) pattern: Tokens,
    pub(super) then: Vec<Tokens>,
}

impl Lower<'_> {
    /// Writes a pattern. Its names are declared if `declares` is true, and otherwise read.
    pub(super) fn pattern(
        &mut self,
        expr: &Ref<Expr>,
        declares: bool,
    ) -> Result<Matched, LoadError> {
        let (mut pending, mut then) = (Vec::new(), Vec::new());
        let pattern = self.part(expr, declares, &mut pending)?;
        while let Some(object) = pending.pop() {
            let line = object.line;
            let mut matches = self.fields(&object, declares, &mut pending)?;
            matches.push(line, "=");
            matches.push(line, &object.name);
            then.push(matches);
            then.push(keys_are(line, &object.name, object.fields.len()));
        }
        for statement in &mut then {
            statement.append(self.with.clone());
        }
        Ok(Matched { pattern, then })
    }

    fn fields<'a>(
        &mut self,
        object: &Pending<'a>,
        declares: bool,
        pending: &mut Vec<Pending<'a>>,
    ) -> Result<Tokens, LoadError> {
        let line = object.line;
        let mut out = token(line, "{");
        for (number, (_, key, value)) in object.fields.iter().enumerate() {
            if number > 0 {
                out.glue(line, ",");
            }
            out.append(self.operand(key)?);
            out.glue(line, ":");
            // The interpreter requires a name for each field.
            out.append(match value.as_ref() {
                Expr::Var { span, .. } if span.text() == "_" => {
                    token(line, self.names.fresh("any"))
                }
                _ => self.part(value, declares, pending)?,
            });
        }
        out.glue(line, "}");
        Ok(out)
    }

    fn part<'a>(
        &mut self,
        expr: &'a Ref<Expr>,
        declares: bool,
        pending: &mut Vec<Pending<'a>>,
    ) -> Result<Tokens, LoadError> {
        match expr.as_ref() {
            Expr::Var { span, .. } if declares => self.declare(span),
            Expr::Array { span, items, .. } => {
                let mut out = token(span.line, "[");
                for (number, item) in items.iter().enumerate() {
                    if number > 0 {
                        out.glue(span.line, ",");
                    }
                    out.append(self.part(item, declares, pending)?);
                }
                out.glue(span.line, "]");
                Ok(out)
            }
            Expr::Object { fields, .. } if declares || binds(expr) => {
                let line = expr.span().line;
                let name = self.names.fresh("object");
                pending.push(Pending {
                    name: name.clone(),
                    line,
                    fields,
                });
                Ok(token(line, name))
            }
            _ => self.operand(expr),
        }
    }

    /// Writes an assignment or unification, and the statements that must follow it.
    pub(super) fn assignment(
        &mut self,
        line: u32,
        op: &AssignOp,
        lhs: &Ref<Expr>,
        rhs: &Ref<Expr>,
    ) -> Result<Vec<Tokens>, LoadError> {
        let declares = matches!(op, AssignOp::ColEq);
        if !declares && let Some(pairs) = pairs(lhs, rhs) {
            let mut out = Vec::new();
            for (lhs, rhs) in pairs {
                let mut written = self.assignment(line, op, lhs, rhs)?;
                // The caller adds the statement's `with` to the first statement.
                if !out.is_empty()
                    && let Some(first) = written.first_mut()
                {
                    first.append(self.with.clone());
                }
                out.append(&mut written);
            }
            return Ok(out);
        }
        // The right side is read before the left side's names are declared.
        let (pattern, value) = if declares || has_object(lhs) || !has_object(rhs) {
            (lhs, rhs)
        } else {
            (rhs, lhs)
        };
        let walked = super::walked(value).map(|(node, _)| (node, pattern));
        let walked = walked.or_else(|| {
            let (node, _) = super::walked(pattern).filter(|_| !declares)?;
            Some((node, value))
        });
        if let Some((node, result)) = walked {
            let node = self.operand(node)?;
            let Matched { pattern, then } = self.pattern(result, declares)?;
            let statement = super::expressions::walk(line, node, pattern);
            return Ok([statement].into_iter().chain(then).collect());
        }
        // A name opposite an object may be matched or bound; counting the keys afterwards is
        // correct for both.
        if let (false, Expr::Object { fields, .. }, Expr::Var { .. }) =
            (declares, pattern.as_ref(), value.as_ref())
            && binds(pattern)
            && fields.iter().all(|(_, _, value)| !has_object(value))
        {
            let name = self.operand(value)?;
            let mut statement = name.clone();
            statement.push(line, "=");
            statement.append(self.operand(pattern)?);
            let mut counted = token(line, "count(");
            counted.append_glued(name);
            counted.glue(line, format!(") == {}", fields.len()));
            return Ok(vec![statement, counted]);
        }
        let value = self.expression(value)?;
        let Matched { pattern, then } = self.pattern(pattern, declares)?;
        let mut statement = pattern;
        statement.push(line, if declares { ":=" } else { "=" });
        statement.append(value);
        Ok([statement].into_iter().chain(then).collect())
    }
}

type Pair<'a> = (&'a Ref<Expr>, &'a Ref<Expr>);

/// Returns the pairs to unify if both sides are literals that contain object patterns.
fn pairs<'a>(lhs: &'a Ref<Expr>, rhs: &'a Ref<Expr>) -> Option<Vec<Pair<'a>>> {
    if !has_object(lhs) || !has_object(rhs) {
        return None;
    }
    match (lhs.as_ref(), rhs.as_ref()) {
        (Expr::Array { items: lhs, .. }, Expr::Array { items: rhs, .. })
            if lhs.len() == rhs.len() =>
        {
            Some(lhs.iter().zip(rhs).collect())
        }
        (Expr::Object { fields: lhs, .. }, Expr::Object { fields: rhs, .. })
            if lhs.len() == rhs.len() =>
        {
            let fields = lhs.iter().map(|(_, key, value)| {
                let key = constant_key(key)?;
                let mut others = rhs.iter();
                let (_, _, other) =
                    others.find(|(_, other, _)| constant_key(other) == Some(key))?;
                Some((value, other))
            });
            fields.collect()
        }
        _ => None,
    }
}

fn constant_key(key: &Ref<Expr>) -> Option<&regorus::Value> {
    match key.as_ref() {
        Expr::String { value, .. } | Expr::RawString { value, .. } => Some(value),
        _ => None,
    }
}

/// `count(name) == keys`.
fn keys_are(line: u32, name: &str, keys: usize) -> Tokens {
    token(line, format!("count({name}) == {keys}"))
}

/// Returns true if a pattern has an object that contains a name.
fn has_object(expr: &Ref<Expr>) -> bool {
    match expr.as_ref() {
        Expr::Array { items, .. } => items.iter().any(has_object),
        Expr::Object { .. } => binds(expr),
        _ => false,
    }
}

/// Returns true if a literal contains a name that a match may bind.
fn binds(expr: &Ref<Expr>) -> bool {
    match expr.as_ref() {
        Expr::Var { .. } => true,
        Expr::Array { items, .. } => items.iter().any(binds),
        Expr::Object { fields, .. } => fields.iter().any(|(_, _, value)| binds(value)),
        _ => false,
    }
}
