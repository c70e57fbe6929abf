//! Finds the names in a rule that can be bound: those in brackets, on a side of `=`, and in the
//! result of `walk`. An undeclared name is a variable if it is among them; otherwise it can only be
//! a rule.

use std::collections::BTreeSet;

use regorus::unstable::{AssignOp, Expr, Literal, LiteralStmt, Query, Ref, Rule, RuleHead};

/// Returns the names that are bound somewhere in a rule.
pub(super) fn bound(rule: &Rule) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match rule {
        Rule::Default { value, .. } => expression(value, &mut names),
        Rule::Spec { head, bodies, .. } => {
            let (refr, parts, assign) = match head {
                RuleHead::Compr { refr, assign, .. } => (refr, &[][..], assign.as_ref()),
                RuleHead::Set { refr, key, .. } => (refr, key.as_slice(), None),
                RuleHead::Func {
                    refr, args, assign, ..
                } => (refr, args.as_slice(), assign.as_ref()),
            };
            let values = assign.map(|assign| &assign.value);
            for part in [refr].into_iter().chain(parts).chain(values) {
                expression(part, &mut names);
            }
            for body in bodies {
                if let Some(assign) = &body.assign {
                    expression(&assign.value, &mut names);
                }
                query(&body.query, &mut names);
            }
        }
    }
    names
}

/// Returns the order in which the statements of a body must be written, by index. A negated
/// expression follows the statements that bind its variables, since the interpreter would take an
/// index in it for a binding. It precedes a statement that declares a name used in it, so that the
/// name is rejected as used before its declaration, as in OPA's compiler.
pub(super) fn order(query: &Query) -> Vec<usize> {
    let mut order: Vec<usize> = (0..query.stmts.len()).collect();
    let bound: Vec<BTreeSet<String>> = query.stmts.iter().map(binds).collect();
    let declared: Vec<BTreeSet<String>> = query.stmts.iter().map(declares).collect();
    let last = |number: usize, statement: &LiteralStmt| {
        let Literal::NotExpr { expr, .. } = &statement.literal else {
            return number;
        };
        let mut read = BTreeSet::new();
        mentioned(expr, &mut read);
        let mut later_declared = declared.iter().skip(number + 1);
        if later_declared.any(|declared| !declared.is_disjoint(&read)) {
            return number;
        }
        let later = bound.iter().enumerate().skip(number + 1);
        let mut binding = later
            .filter(|(_, bound)| !bound.is_disjoint(&read))
            .map(|(other, _)| other);
        binding.next_back().unwrap_or(number)
    };
    let behind: Vec<usize> = query
        .stmts
        .iter()
        .enumerate()
        .map(|(number, statement)| last(number, statement))
        .collect();
    // A negated expression follows its dependencies; others keep their order.
    order.sort_by_key(|number| {
        let behind = behind.get(*number).copied().unwrap_or(*number);
        (behind, behind != *number)
    });
    order
}

/// Returns the names that a statement declares in its body.
fn declares(statement: &LiteralStmt) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match &statement.literal {
        Literal::SomeVars { vars, .. } => {
            names.extend(vars.iter().map(|name| name.text().to_owned()));
        }
        Literal::SomeIn { key, value, .. } => {
            for part in key.iter().chain([value]) {
                pattern(part, &mut names);
            }
        }
        Literal::Expr { expr, .. } => {
            if let Expr::AssignExpr {
                op: AssignOp::ColEq,
                lhs,
                ..
            } = expr.as_ref()
            {
                pattern(lhs, &mut names);
            }
        }
        Literal::NotExpr { .. } | Literal::Every { .. } => {}
    }
    names
}

/// Returns the names that a statement may bind.
fn binds(statement: &LiteralStmt) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match &statement.literal {
        Literal::SomeIn { collection, .. } => expression(collection, &mut names),
        Literal::Expr { expr, .. } => {
            expression(expr, &mut names);
            if let Expr::Call { params, .. } = expr.as_ref() {
                for param in params {
                    pattern(param, &mut names);
                }
            }
        }
        Literal::SomeVars { .. } | Literal::NotExpr { .. } | Literal::Every { .. } => {}
    }
    names
}

fn mentioned(expr: &Ref<Expr>, names: &mut BTreeSet<String>) {
    if let Expr::Var { span, .. } = expr.as_ref() {
        names.insert(span.text().to_owned());
    }
    for part in parts(expr) {
        mentioned(part, names);
    }
}

fn query(query: &Query, names: &mut BTreeSet<String>) {
    for statement in &query.stmts {
        for modifier in &statement.with_mods {
            expression(&modifier.r#as, names);
        }
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                for part in key.iter().chain([value, collection]) {
                    expression(part, names);
                }
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => expression(expr, names),
            Literal::Every {
                domain,
                query: inner,
                ..
            } => {
                expression(domain, names);
                self::query(inner, names);
            }
        }
    }
}

fn expression(expr: &Ref<Expr>, names: &mut BTreeSet<String>) {
    match expr.as_ref() {
        Expr::RefBrack { index, .. } => pattern(index, names),
        Expr::AssignExpr { lhs, rhs, .. } => {
            pattern(lhs, names);
            pattern(rhs, names);
        }
        Expr::Call { fcn, params, .. } => {
            let is_walk = matches!(fcn.as_ref(), Expr::Var { span, .. } if span.text() == "walk");
            let count = if is_walk {
                Some(1)
            } else {
                super::argument_count(&super::called(fcn))
            };
            // The last argument may be the result.
            if let Some((result, arguments)) = params.split_last()
                && Some(arguments.len()) == count
            {
                pattern(result, names);
            }
        }
        _ => {}
    }
    match expr.as_ref() {
        Expr::ArrayCompr { query: inner, .. }
        | Expr::SetCompr { query: inner, .. }
        | Expr::ObjectCompr { query: inner, .. } => query(inner, names),
        _ => {}
    }
    for part in parts(expr) {
        expression(part, names);
    }
}

/// Collects the names that a match with a literal or a single name may bind.
fn pattern(expr: &Ref<Expr>, names: &mut BTreeSet<String>) {
    match expr.as_ref() {
        Expr::Var { span, .. } => {
            names.insert(span.text().to_owned());
        }
        Expr::Array { .. } | Expr::Set { .. } | Expr::Object { .. } => {
            for part in parts(expr) {
                pattern(part, names);
            }
        }
        _ => {}
    }
}

/// Returns the direct subexpressions of an expression, without bodies.
fn parts(expr: &Ref<Expr>) -> Vec<&Ref<Expr>> {
    match expr.as_ref() {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. }
        | Expr::Var { .. } => Vec::new(),
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().collect(),
        Expr::Object { fields, .. } => {
            let fields = fields.iter();
            fields.flat_map(|(_, key, value)| [key, value]).collect()
        }
        Expr::ArrayCompr { term, .. } | Expr::SetCompr { term, .. } => vec![term],
        Expr::ObjectCompr { key, value, .. } => vec![key, value],
        Expr::Call { params, .. } => params.iter().collect(),
        Expr::UnaryExpr { expr, .. } => vec![expr],
        Expr::RefDot { refr, .. } => vec![refr],
        Expr::RefBrack { refr, index, .. } => vec![refr, index],
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => vec![lhs, rhs],
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => key.iter().chain([value, collection]).collect(),
    }
}
