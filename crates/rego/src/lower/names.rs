//! The names that a rule declares, scope by scope, as OPA's compiler resolves them: each gets a
//! name of its own, so that no rule, import or other scope is taken for it.

use std::collections::BTreeMap;

/// The prefix of names that are generated here. Policies can't use it.
pub(super) const RESERVED: &str = "__lowered";

/// A name's role in a scope.
#[derive(Debug, Clone)]
enum Use {
    /// It is declared here and has this name now.
    Declared(String),
    /// It was read here before any declaration.
    Read,
}

/// Why a name can't be declared.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Clash {
    Twice,
    ReadBefore,
}

/// The scopes that are open.
#[derive(Debug, Default, Clone)]
pub(super) struct Names {
    scopes: Vec<BTreeMap<String, Use>>,
    made: usize,
}

impl Names {
    pub(super) fn open(&mut self) {
        self.scopes.push(BTreeMap::new());
    }

    pub(super) fn close(&mut self) {
        self.scopes.pop();
    }

    /// Generates a unique name.
    pub(super) fn fresh(&mut self, hint: &str) -> String {
        self.made += 1;
        format!("{RESERVED}{}_{hint}", self.made)
    }

    /// Declares a name in the innermost scope.
    pub(super) fn declare(&mut self, name: &str) -> Result<String, Clash> {
        let known = self.scopes.last().and_then(|scope| scope.get(name));
        match known {
            Some(Use::Declared(_)) => return Err(Clash::Twice),
            Some(Use::Read) => return Err(Clash::ReadBefore),
            None => {}
        }
        let fresh = self.fresh(name);
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), Use::Declared(fresh.clone()));
        }
        Ok(fresh)
    }

    /// The name that a declared name has now. `None`: it is a rule's, an import's, or one that no
    /// statement declares.
    pub(super) fn resolve(&mut self, name: &str) -> Option<String> {
        for scope in self.scopes.iter().rev() {
            if let Some(Use::Declared(declared)) = scope.get(name) {
                return Some(declared.clone());
            }
        }
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), Use::Read);
        }
        None
    }

    /// Returns whether a name is declared, without marking it as read.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        let mut scopes = self.scopes.iter();
        scopes.any(|scope| matches!(scope.get(name), Some(Use::Declared(_))))
    }
}

/// A message with the names that the author wrote.
pub(crate) fn written(message: &str) -> String {
    let mut parts = message.split(RESERVED);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str(rest.strip_prefix('_').unwrap_or(rest));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inner_scope_hides_and_gives_back() {
        let mut names = Names::default();
        names.open();
        let outer = names.declare("x").unwrap();
        names.open();
        assert_eq!(names.resolve("x"), Some(outer.clone()));
        let inner = names.declare("x").unwrap();
        assert_ne!(inner, outer);
        assert_eq!(names.resolve("x"), Some(inner));
        names.close();
        assert_eq!(names.resolve("x"), Some(outer.clone()));
        assert_eq!(written(&format!("var {outer} or {outer}y")), "var x or xy");
        assert_eq!(names.declare("x"), Err(Clash::Twice));
        assert_eq!(names.resolve("y"), None);
        assert_eq!(names.declare("y"), Err(Clash::ReadBefore));
    }
}
