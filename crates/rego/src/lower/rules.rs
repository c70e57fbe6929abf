//! Lowers rules: heads, their values, bodies and `else` branches.

use regorus::unstable::{Expr, Import, Ref, Rule, RuleBody, RuleHead};

use super::heads::Head;
use super::text::Tokens;
use super::{Lower, heads, joined, token};
use crate::analysis::{head_path, is_constant};
use crate::error::LoadError;

impl Lower<'_> {
    pub(super) fn import(&mut self, import: &Import, out: &mut Tokens) -> Result<(), LoadError> {
        let line = import.span.line;
        let path = head_path(&import.refr);
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["future", "keywords"] => {
                self.has_not_bodies = true;
                self.imports_all_keywords = true;
            }
            ["future", "keywords", "not"] => self.has_not_bodies = true,
            ["future", "keywords", "in" | "every" | "if" | "contains"] => {}
            ["future", "keywords", keyword] => {
                let what = format!(
                    "the keyword {keyword} is not supported: rewrite the rule \
                                    without it"
                );
                return Err(self.refuse(line, what));
            }
            _ => {}
        }
        if let Some(alias) = &import.r#as {
            self.check_name(alias)?;
        }
        // Other imports are written out where they are used.
        if matches!(words.first(), Some(&("future" | "rego"))) {
            out.push(line, "import");
            out.append(self.path(&import.refr)?);
        }
        Ok(())
    }

    pub(super) fn rule(&mut self, rule: &Ref<Rule>, out: &mut Tokens) -> Result<(), LoadError> {
        let line = rule.span().line;
        match rule.as_ref() {
            Rule::Default {
                refr, args, value, ..
            } => {
                out.push(line, "default");
                out.append(self.path(refr)?);
                if !args.is_empty() {
                    let names: Vec<String> =
                        args.iter().map(|_| self.names.fresh("argument")).collect();
                    out.glue(line, format!("({})", names.join(", ")));
                }
                out.push(line, ":=");
                out.append(self.expression(value)?);
                Ok(())
            }
            Rule::Spec { head, bodies, .. } => {
                let head = parts(head, !self.is_v1 && bodies.is_empty());
                self.check_head(line, &head, bodies.is_empty())?;
                self.note_prefix(&head)?;
                self.opened = heads::opened(&self.open_paths, &head);
                // Each body without `else` becomes a rule with its own head.
                let mut rest = bodies.as_slice();
                loop {
                    let more = rest.iter().skip(1).take_while(|body| body.is_else).count();
                    let count = (1 + more).min(rest.len());
                    let (chain, others) = rest.split_at(count);
                    self.chain(line, &head, chain, out)?;
                    rest = others;
                    if rest.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Rejects heads that OPA rejects. In the syntax before OPA 1.0, `p if { … }` would be two
    /// rules, `p` and `if`.
    fn check_head(&self, line: u32, head: &Head<'_>, has_no_body: bool) -> Result<(), LoadError> {
        let path = head_path(head.refr);
        let name = path.first().map_or("", String::as_str);
        if path.len() == 1 && matches!(name, "if" | "contains" | "in" | "every") {
            let what = format!(
                "{name} is a keyword: import future.keywords.{name} or rego.v1 to use it, or rename the rule"
            );
            return Err(self.refuse(line, what));
        }
        if has_no_body && head.value.is_none() && !head.is_set {
            let what =
                format!("{name} has neither a value nor a body: write {name} = true, or its body");
            return Err(self.refuse(line, what));
        }
        Ok(())
    }

    /// Records the prefix before the first variable of a path that continues after it.
    fn note_prefix(&mut self, head: &Head<'_>) -> Result<(), LoadError> {
        let (mut at, mut links, mut prefix) = (head.refr, 0, None);
        while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = at.as_ref() {
            let is_fixed = match at.as_ref() {
                Expr::RefBrack { index, .. } => {
                    matches!(index.as_ref(), Expr::String { .. } | Expr::RawString { .. })
                }
                _ => true,
            };
            if let Expr::RefBrack { index, .. } = at.as_ref()
                && links > 0
                && matches!(
                    index.as_ref(),
                    Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. }
                )
            {
                let line = index.span().line;
                let what = "a constant in the middle of a rule's path must be a string";
                return Err(self.refuse(line, what));
            }
            if !is_fixed {
                prefix = (links > 0 || head.is_set).then_some(refr);
            }
            links += 1;
            at = refr;
        }
        if let Some(prefix) = prefix {
            let prefix = self.path(prefix)?.print();
            self.prefixes.insert(prefix.trim().to_owned());
        }
        Ok(())
    }

    /// Writes a head with its body and `else` branches.
    fn chain(
        &mut self,
        line: u32,
        head: &Head<'_>,
        bodies: &[RuleBody],
        out: &mut Tokens,
    ) -> Result<(), LoadError> {
        self.names.open();
        let (arguments, given) = self.arguments(head)?;
        self.names.open();
        let mut statements = given.clone();
        if let Some(first) = bodies.first() {
            statements.append(&mut self.statements(&first.query)?);
        }
        let (path, key, value) = self.written_head(line, head)?;
        statements.append(&mut self.before);
        self.names.close();
        out.append(path);
        out.append_glued(arguments);
        let is_constant = statements.is_empty() && bodies.is_empty() && !head.is_set;
        match (key, value) {
            (Some(key), _) if self.is_v1 || !matches!(head.refr.as_ref(), Expr::Var { .. }) => {
                out.push(line, "contains");
                out.append(key);
            }
            (Some(key), _) => {
                out.glue(line, "[");
                out.append_glued(key);
                out.glue(line, "]");
            }
            (None, Some(value)) => {
                out.push(line, if self.is_v1 { ":=" } else { "=" });
                out.append(value);
            }
            (None, None) => {}
        }
        if !is_constant {
            self.body(
                bodies.first().map_or(line, |body| body.span.line),
                statements,
                out,
            );
        }
        for body in bodies.iter().skip(1) {
            self.otherwise(body, given.clone(), out)?;
        }
        self.names.close();
        Ok(())
    }

    fn otherwise(
        &mut self,
        body: &RuleBody,
        given: Vec<Tokens>,
        out: &mut Tokens,
    ) -> Result<(), LoadError> {
        let line = body.span.line;
        self.names.open();
        let mut statements = given;
        statements.append(&mut self.statements(&body.query)?);
        out.push(line, "else");
        if let Some(assign) = &body.assign {
            let value = self.value(&assign.value)?;
            out.push(line, if self.is_v1 { ":=" } else { "=" });
            out.append(value);
        }
        statements.append(&mut self.before);
        self.names.close();
        self.body(line, statements, out);
        Ok(())
    }

    fn body(&self, line: u32, statements: Vec<Tokens>, out: &mut Tokens) {
        if self.is_v1 {
            out.push(line, "if");
        }
        out.push(line, "{");
        out.append(joined(line, statements));
        out.push(line, "}");
    }

    /// Writes the arguments of a function, and the statements for them at the start of each body.
    fn arguments(&mut self, head: &Head<'_>) -> Result<(Tokens, Vec<Tokens>), LoadError> {
        let (mut out, mut given) = (Tokens::default(), Vec::new());
        let Some(arguments) = head.arguments.filter(|arguments| !arguments.is_empty()) else {
            return Ok((out, given));
        };
        let line = head.refr.span().line;
        out.glue(line, "(");
        for (number, argument) in arguments.iter().enumerate() {
            if number > 0 {
                out.glue(line, ",");
            }
            match argument.as_ref() {
                Expr::Var { span, .. } => {
                    let name = self.declare(span)?;
                    out.append(name);
                }
                Expr::String { .. }
                | Expr::RawString { .. }
                | Expr::Number { .. }
                | Expr::Bool { .. }
                | Expr::Null { .. } => out.append(self.expression(argument)?),
                Expr::Array { .. } | Expr::Object { .. } => {
                    let name = self.names.fresh("argument");
                    let matched = self.pattern(argument, true)?;
                    given.extend(self.matches(line, matched, &name));
                    out.push(line, name);
                }
                other => {
                    let what = "an argument must be a name, a constant, or a pattern of these: \
                                move the comparison to the body";
                    return Err(self.refuse(other.span().line, what));
                }
            }
        }
        out.glue(line, ")");
        Ok((out, given))
    }

    /// Writes a head's path, key and value. Their inputs are looked up at the end of the body.
    fn written_head(
        &mut self,
        line: u32,
        head: &Head<'_>,
    ) -> Result<(Tokens, Option<Tokens>, Option<Tokens>), LoadError> {
        let path = match head.refr.as_ref() {
            Expr::Var { span, .. } => {
                self.check_name(span)?;
                token(span.line, span.text())
            }
            _ => self.head_path(head.refr)?,
        };
        let key = match head.key {
            Some(key) => Some(self.value(key)?),
            None => None,
        };
        let value = match head.value {
            Some(assign) => Some(self.value(&assign.value)?),
            // `p.q { … }` would be read as a set.
            None if head.key.is_none()
                && !head.is_set
                && !matches!(head.refr.as_ref(), Expr::Var { .. }) =>
            {
                Some(token(line, "true"))
            }
            None if head.arguments.is_some_and(<[_]>::is_empty) => Some(token(line, "true")),
            None => None,
        };
        Ok((path, key, value))
    }

    /// Writes a path such as `p.q[x].r`, whose root is not a variable.
    fn head_path(&mut self, refr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        match refr.as_ref() {
            Expr::Var { span, .. } => {
                self.check_name(span)?;
                Ok(token(span.line, span.text()))
            }
            Expr::RefDot { refr, field, .. } => {
                let mut out = self.head_path(refr)?;
                let (line, name) = (field.0.line, field.0.text());
                if self.opened.contains(&heads::length(refr)) {
                    let name = self.hoist(line, token(line, format!("\"{name}\"")));
                    out.glue(line, "[");
                    out.append_glued(name);
                    out.glue(line, "]");
                } else {
                    out.glue(line, format!(".{name}"));
                }
                Ok(out)
            }
            Expr::RefBrack { refr, index, .. } => {
                let mut out = self.head_path(refr)?;
                let line = index.span().line;
                let index = if self.opened.contains(&heads::length(refr)) && is_constant(index) {
                    let index = self.expression(index)?;
                    self.hoist(line, index)
                } else {
                    self.value(index)?
                };
                out.glue(line, "[");
                out.append_glued(index);
                out.glue(line, "]");
                Ok(out)
            }
            other => Err(self.refuse(other.span().line, "expected the name of a rule")),
        }
    }

    /// Writes a head's key or value: unchanged if it is constant or a name of the body, otherwise
    /// as a name that the end of the body binds.
    fn value(&mut self, expr: &Ref<Expr>) -> Result<Tokens, LoadError> {
        match expr.as_ref() {
            Expr::Var { span, .. } if self.names.is_declared(span.text()) => self.name(span),
            _ if is_constant(expr) => self.expression(expr),
            _ => {
                let line = expr.span().line;
                let value = self.operand(expr)?;
                Ok(self.hoist(line, value))
            }
        }
    }
}

/// Returns the parts of a head. `is_entry` is true if the rule has no body and the syntax before
/// OPA 1.0, so that `name[key]` is an element of a set. If a keyword follows, the parser takes it
/// for another rule.
fn parts(head: &RuleHead, is_entry: bool) -> Head<'_> {
    if let RuleHead::Compr {
        refr, assign: None, ..
    } = head
        && is_entry
        && let Expr::RefBrack { refr, index, .. } = refr.as_ref()
        && matches!(refr.as_ref(), Expr::Var { .. })
    {
        return Head {
            refr,
            arguments: None,
            key: Some(index),
            is_set: true,
            value: None,
        };
    }
    match head {
        RuleHead::Compr { refr, assign, .. } => Head {
            refr,
            arguments: None,
            key: None,
            is_set: false,
            value: assign.as_ref(),
        },
        RuleHead::Set { refr, key, .. } => Head {
            refr,
            arguments: None,
            key: key.as_ref(),
            is_set: true,
            value: None,
        },
        RuleHead::Func {
            refr, args, assign, ..
        } => Head {
            refr,
            arguments: Some(args),
            key: None,
            is_set: false,
            value: assign.as_ref(),
        },
    }
}
