//! Heads of rules with overlapping paths. If `p[x].q` is a rule, the interpreter does not evaluate
//! it for a path that `p.b.q` also produces, so `p.b.q` is written as `p[key].q` with `key := "b"`.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Expr, Module, Ref, Rule, RuleAssign, RuleHead};

use crate::analysis::{Path, head_path};

/// The parts of a head.
pub(super) struct Head<'a> {
    pub(super) refr: &'a Ref<Expr>,
    /// `None` if the rule is not a function.
    pub(super) arguments: Option<&'a [Ref<Expr>]>,
    /// The key of a set.
    pub(super) key: Option<&'a Ref<Expr>>,
    /// True for `deny[msg] { … }` or `deny contains msg`, false for `p.q { … }`.
    pub(super) is_set: bool,
    pub(super) value: Option<&'a RuleAssign>,
}

/// Returns the constant prefixes of heads' paths that continue with a variable, and whether a path
/// continues after the variable.
pub(super) fn open_paths(module: &Module) -> BTreeMap<Path, bool> {
    let mut open = BTreeMap::new();
    for rule in &module.policy {
        let Rule::Spec { head, .. } = rule.as_ref() else {
            continue;
        };
        let (refr, is_set) = match head {
            RuleHead::Compr { refr, .. } => (refr, false),
            RuleHead::Set { refr, .. } => (refr, true),
            RuleHead::Func { .. } => continue,
        };
        let (fixed, length) = (head_path(refr), length(refr));
        if fixed.len() < length {
            let goes_on = is_set || fixed.len() + 1 < length;
            *open.entry(fixed).or_default() |= goes_on;
        }
    }
    open
}

/// Returns the lengths of the prefixes of a head's path after which a name is written as a
/// variable.
pub(super) fn opened(open: &BTreeMap<Path, bool>, head: &Head<'_>) -> BTreeSet<usize> {
    let fixed = head_path(head.refr);
    let is_partial = head.key.is_some() || fixed.len() < length(head.refr);
    if head.arguments.is_some() || (head.is_set && head.key.is_none()) {
        return BTreeSet::new();
    }
    open.iter()
        .filter(|(path, goes_on)| {
            path.len() < fixed.len() && fixed.starts_with(path) && (**goes_on || is_partial)
        })
        .map(|(path, _)| path.len())
        .collect()
}

/// Returns the number of names and brackets in a path.
pub(super) fn length(refr: &Ref<Expr>) -> usize {
    let (mut length, mut at) = (1, refr);
    while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = at.as_ref() {
        length += 1;
        at = refr;
    }
    length
}

#[cfg(test)]
mod tests {
    use regorus::Source;
    use regorus::unstable::Parser;

    use super::*;

    /// Returns the open paths of a module of OPA 1.0 with these rules.
    fn open(rules: &str) -> Vec<(String, bool)> {
        let text = format!("package a\n{rules}\n");
        let source = Source::from_contents("a.rego".into(), text).unwrap();
        let mut parser = Parser::new(&source).unwrap();
        parser.enable_rego_v1().unwrap();
        let open = open_paths(&parser.parse().unwrap());
        let joined = open.into_iter().map(|(path, on)| (path.join("."), on));
        joined.collect()
    }

    #[test]
    fn a_path_is_open_where_a_variable_follows() {
        for rules in ["p.q := 1", "p contains 1", "f(x) := x", "p := 1"] {
            assert_eq!(open(rules), [], "{rules}");
        }
        let one = |path: &str, goes_on| vec![(path.to_owned(), goes_on)];
        assert_eq!(open("p[x] := 1 if x := 1"), one("p", false));
        assert_eq!(open("p.q[x] := 1 if x := 1"), one("p.q", false));
        assert_eq!(open("p[x].q := 1 if x := 1"), one("p", true));
        // The elements of a set are one level below its path.
        assert_eq!(open("p[x] contains 1 if x := 1"), one("p", true));
    }

    #[test]
    fn a_path_goes_on_if_one_of_its_rules_does() {
        let (short, long) = ("p[x] := 1 if x := 1", "p[y].q := 1 if y := 2");
        for rules in [format!("{short}\n{long}"), format!("{long}\n{short}")] {
            assert_eq!(open(&rules), [("p".to_owned(), true)], "{rules}");
        }
    }
}
