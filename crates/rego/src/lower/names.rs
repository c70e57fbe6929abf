//! Renames the declared names of a rule, scope by scope, as OPA's compiler does: each becomes
//! unique, so that no rule, import or other scope is confused with it.

use std::collections::BTreeMap;

use crate::generated_names::RESERVED;

/// The use of a name in a scope.
#[derive(Debug, Clone)]
enum Use {
    /// Declared here, with this generated name.
    Declared(String),
    /// Read here before any declaration.
    Read,
}

/// The reason why a name cannot be declared.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Clash {
    Twice,
    ReadBefore,
}

/// The open scopes.
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

    /// Returns the generated name of a declared name. `None` if it is that of a rule or an import,
    /// or is not declared by a statement.
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

    /// Returns true if a name is declared, without marking it as read.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        let mut scopes = self.scopes.iter();
        scopes.any(|scope| matches!(scope.get(name), Some(Use::Declared(_))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generated_names::written;

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
