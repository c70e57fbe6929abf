//! The service accounts of a cluster, for endpoints whose callers present a token of one.
//!
//! They do not belong to the rules: tenants may change them at any rate, and a change affects only
//! the pods of one service account. One watch writes the store, and many readers look accounts up.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::RwLock;
use rolegate_core::rule_set_builder::Invalidated;
use rolegate_core::service_account::{ServiceAccount, ServiceAccountAnnotations};
use rolegate_core::workload::Change;
use tokio::sync::watch;

/// The service accounts of a cluster. Cloning is cheap; clones share state.
///
/// An account without annotations costs 16 bytes: its name and UID are stored as hashes with a
/// random key, so a tenant cannot construct two of the same hash.
#[derive(Debug, Clone)]
pub struct ServiceAccountStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    hasher: RandomState,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    has_synced: bool,
    /// The hash of the UID of each account, by the hash of its namespace and name.
    uids: HashMap<u64, u64>,
    /// The accounts with annotations, by namespace and name.
    annotated: HashMap<Arc<str>, HashMap<Arc<str>, Arc<ServiceAccountAnnotations>>>,
}

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountLookup {
    /// The service accounts are not loaded yet, so nothing is known about this one.
    NotSynced,
    /// There is no such service account.
    Absent,
    /// The service account exists.
    Present(Account),
}

/// An existing service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The annotations; `None` if it has none that concern AWS.
    pub annotations: Option<Arc<ServiceAccountAnnotations>>,
    uid: u64,
}

impl Account {
    /// Returns the annotations, which may be empty.
    pub fn annotations(&self) -> ServiceAccountAnnotations {
        self.annotations.as_deref().cloned().unwrap_or_default()
    }
}

impl Default for ServiceAccountStore {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: RwLock::default(),
            hasher: RandomState::new(),
            changes: watch::Sender::new(0),
        }))
    }
}

impl ServiceAccountStore {
    /// Returns the service account of this name.
    pub fn lookup(&self, namespace: &str, name: &str) -> AccountLookup {
        let state = self.0.state.read();
        if !state.has_synced {
            return AccountLookup::NotSynced;
        }
        let Some(uid) = state.uids.get(&self.hash_of_name(namespace, name)) else {
            return AccountLookup::Absent;
        };
        let annotated = state.annotated.get(namespace);
        AccountLookup::Present(Account {
            annotations: annotated.and_then(|names| names.get(name)).cloned(),
            uid: *uid,
        })
    }

    /// Returns true if the account has this `metadata.uid`. A token that names another one belongs
    /// to a deleted account.
    pub fn has_uid(&self, account: &Account, uid: &str) -> bool {
        account.uid == self.0.hasher.hash_one(uid)
    }

    /// Returns true if the service accounts are loaded.
    pub fn has_synced(&self) -> bool {
        self.0.state.read().has_synced
    }

    /// Subscribes to changes of any account and of [`Self::has_synced`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Returns the number of accounts, and of those with annotations.
    pub fn count(&self) -> (usize, usize) {
        let state = self.0.state.read();
        let annotated = state.annotated.values().map(HashMap::len).sum();
        (state.uids.len(), annotated)
    }

    /// Applies a change of the only writer, and returns whose pods it affects.
    pub fn apply(&self, change: Change<ServiceAccount>) -> Invalidated {
        let mut state = self.0.state.write();
        let invalidated = match change {
            Change::Snapshot(all) => {
                let mut new = State {
                    has_synced: true,
                    ..State::default()
                };
                for account in all {
                    self.put(&mut new, account);
                }
                *state = new;
                Invalidated::All
            }
            Change::Apply(account) => {
                let (namespace, name) = (account.namespace.clone(), account.name.clone());
                if self.put(&mut state, account) {
                    Invalidated::ServiceAccount { namespace, name }
                } else {
                    Invalidated::Nothing
                }
            }
            Change::Delete(account) => {
                let ServiceAccount {
                    namespace, name, ..
                } = account;
                state.uids.remove(&self.hash_of_name(&namespace, &name));
                state.forget(&namespace, &name);
                Invalidated::ServiceAccount { namespace, name }
            }
        };
        drop(state);
        if invalidated != Invalidated::Nothing {
            self.0.changes.send_modify(|version| *version += 1);
        }
        invalidated
    }

    /// Adds or replaces an account. Returns whether anything has changed.
    fn put(&self, state: &mut State, account: ServiceAccount) -> bool {
        let ServiceAccount {
            namespace,
            name,
            uid,
            annotations,
        } = account;
        let key = self.hash_of_name(&namespace, &name);
        let uid = self.0.hasher.hash_one(&*uid);
        let same_uid = state.uids.insert(key, uid) == Some(uid);
        let known = state.annotated.get(&namespace);
        let known = known
            .and_then(|names| names.get(&name))
            .map(|known| &**known);
        let same = known.map_or(annotations.is_empty(), |known| *known == annotations);
        if same {
            return !same_uid;
        }
        if annotations.is_empty() {
            state.forget(&namespace, &name);
        } else {
            let names = state.annotated.entry(namespace).or_default();
            names.insert(name, Arc::new(annotations));
        }
        true
    }

    fn hash_of_name(&self, namespace: &str, name: &str) -> u64 {
        self.0.hasher.hash_one((namespace, name))
    }
}

impl State {
    fn forget(&mut self, namespace: &str, name: &str) {
        let Some(names) = self.annotated.get_mut(namespace) else {
            return;
        };
        names.remove(name);
        if names.is_empty() {
            self.annotated.remove(namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(namespace: &str, uid: &str, role: Option<&str>) -> ServiceAccount {
        ServiceAccount {
            namespace: namespace.into(),
            name: "api".into(),
            uid: uid.into(),
            annotations: ServiceAccountAnnotations {
                role: role.map(Into::into),
                ..ServiceAccountAnnotations::default()
            },
        }
    }

    fn present(store: &ServiceAccountStore, namespace: &str) -> Account {
        match store.lookup(namespace, "api") {
            AccountLookup::Present(account) => account,
            other => panic!("{namespace} is {other:?}"),
        }
    }

    #[test]
    fn absent_differs_from_not_synced() {
        let store = ServiceAccountStore::default();
        assert_eq!(store.lookup("a", "api"), AccountLookup::NotSynced);
        // A change before the first snapshot says nothing about others.
        store.apply(Change::Apply(account("a", "1", None)));
        assert_eq!(store.lookup("b", "api"), AccountLookup::NotSynced);
        assert_eq!(store.apply(Change::Snapshot(Vec::new())), Invalidated::All);
        assert_eq!(store.lookup("a", "api"), AccountLookup::Absent);
        assert!(store.has_synced());
    }

    #[test]
    fn a_change_affects_the_pods_of_its_account() {
        let store = ServiceAccountStore::default();
        store.apply(Change::Snapshot(vec![
            account("a", "1", None),
            account("b", "2", Some("r")),
        ]));
        assert_eq!(store.count(), (2, 1));
        let changes = store.changes();
        let affected = Invalidated::ServiceAccount {
            namespace: "a".into(),
            name: "api".into(),
        };
        let apply = |account| store.apply(Change::Apply(account));
        assert_eq!(apply(account("a", "1", None)), Invalidated::Nothing);
        assert!(!changes.has_changed().unwrap());
        assert_eq!(apply(account("a", "1", Some("reader"))), affected);
        assert!(changes.has_changed().unwrap());
        let found = present(&store, "a");
        assert_eq!(found.annotations().role.as_deref(), Some("reader"));
        assert!(store.has_uid(&found, "1") && !store.has_uid(&found, "2"));
        // A new account of the same name.
        assert_eq!(apply(account("a", "3", Some("reader"))), affected);
        assert!(store.has_uid(&present(&store, "a"), "3"));
        assert_eq!(apply(account("a", "3", None)), affected);
        assert_eq!(present(&store, "a").annotations, None);
        let deleted = store.apply(Change::Delete(account("a", "3", None)));
        assert_eq!(deleted, affected);
        assert_eq!(store.lookup("a", "api"), AccountLookup::Absent);
        assert_eq!(store.count(), (1, 1));
        store.apply(Change::Snapshot(vec![account("a", "4", None)]));
        assert_eq!(store.lookup("b", "api"), AccountLookup::Absent);
        assert_eq!(store.count(), (1, 0));
    }
}
