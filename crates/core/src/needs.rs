//! The labels and annotations that rules read. Sources store these and discard the rest.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

/// A set of label or annotation keys. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Keys {
    /// All keys.
    All,
    /// These keys.
    Only(Arc<BTreeSet<Arc<str>>>),
}

static NO_KEYS: LazyLock<Arc<BTreeSet<Arc<str>>>> = LazyLock::new(Arc::default);

impl Default for Keys {
    /// Returns the empty set.
    fn default() -> Self {
        Self::Only(NO_KEYS.clone())
    }
}

impl<K: AsRef<str>> FromIterator<K> for Keys {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        let keys: BTreeSet<_> = keys.into_iter().map(|key| key.as_ref().into()).collect();
        Self::Only(Arc::new(keys))
    }
}

impl Keys {
    /// Returns true if the set contains `key`.
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(keys) => keys.contains(key),
        }
    }

    /// Returns true if the set contains all of `others`.
    pub fn cover(&self, others: &Self) -> bool {
        match (self, others) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(own), Self::Only(others)) => {
                Arc::ptr_eq(own, others) || others.is_subset(own)
            }
        }
    }

    /// Adds `others` to the set.
    pub fn extend(&mut self, others: &Self) {
        if self.cover(others) {
            return;
        }
        if others.cover(self) {
            *self = others.clone();
            return;
        }
        *self = match (&*self, others) {
            (Self::Only(own), Self::Only(others)) => own.union(others).collect(),
            _ => Self::All,
        };
    }
}

/// The parts of pods and namespaces that rules read in addition to those that are always stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Labels of pods.
    pub pod_labels: Keys,
    /// Annotations of pods. Rules can read only those of
    /// [`is_kept`](crate::annotation::is_kept), so the others are not stored.
    pub pod_annotations: Keys,
    /// Labels of namespaces.
    pub namespace_labels: Keys,
    /// True if rules read namespaces' annotations of allowed roles.
    pub namespace_roles: bool,
}

impl Needs {
    /// Returns the needs of callers that evaluate objects once and store none: everything.
    pub fn everything() -> Self {
        Self {
            pod_labels: Keys::All,
            pod_annotations: Keys::All,
            namespace_labels: Keys::All,
            namespace_roles: true,
        }
    }

    /// Returns true if these needs include all of `others`.
    pub fn cover(&self, others: &Self) -> bool {
        self.pod_labels.cover(&others.pod_labels)
            && self.pod_annotations.cover(&others.pod_annotations)
            && self.namespace_labels.cover(&others.namespace_labels)
            && self.namespace_roles >= others.namespace_roles
    }

    /// Adds `others` to these needs.
    pub fn extend(&mut self, others: &Self) {
        self.pod_labels.extend(&others.pod_labels);
        self.pod_annotations.extend(&others.pod_annotations);
        self.namespace_labels.extend(&others.namespace_labels);
        self.namespace_roles |= others.namespace_roles;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cover_what_is_among_them() {
        let keys = |all: &[&str]| all.iter().collect::<Keys>();
        let (none, one, two) = (Keys::default(), keys(&["a"]), keys(&["a", "b"]));
        for (own, others, covered) in [
            (&none, &none, true),
            (&none, &one, false),
            (&one, &none, true),
            (&two, &one, true),
            (&one, &two, false),
            (&one, &keys(&["b"]), false),
            (&one, &Keys::All, false),
            (&Keys::All, &two, true),
            (&Keys::All, &Keys::All, true),
        ] {
            assert_eq!(own.cover(others), covered, "{own:?} {others:?}");
            let mut both = own.clone();
            both.extend(others);
            assert!(both.cover(own) && both.cover(others), "{both:?}");
        }
        assert!(one.contains("a") && !one.contains("b") && Keys::All.contains("b"));
        let mut joined = one.clone();
        joined.extend(&keys(&["b"]));
        assert_eq!(joined, two);
    }

    #[test]
    fn needs_cover_each_part() {
        let none = Needs::default();
        let everything = Needs::everything();
        assert!(everything.cover(&none) && !none.cover(&everything));
        let parts = [
            Needs {
                pod_labels: Keys::All,
                ..Needs::default()
            },
            Needs {
                pod_annotations: Keys::All,
                ..Needs::default()
            },
            Needs {
                namespace_labels: Keys::All,
                ..Needs::default()
            },
            Needs {
                namespace_roles: true,
                ..Needs::default()
            },
        ];
        let mut all = Needs::default();
        for part in &parts {
            assert!(!all.cover(part), "{part:?}");
            all.extend(part);
            assert!(all.cover(part), "{part:?}");
        }
        assert_eq!(all, everything);
    }
}
