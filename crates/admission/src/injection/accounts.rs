//! The service accounts of the cluster, as the injection needs them. One writer, many readers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rolegate_core::service_account::{ServiceAccount, ServiceAccountAnnotations};
use rolegate_core::workload::Change;
use tokio::sync::watch;
use tokio::time::Instant;

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

/// A known service account.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) uid: Arc<str>,
    pub(crate) annotations: Arc<ServiceAccountAnnotations>,
    /// The time at which the watch reported its creation. `None` if it is older than the watch.
    created: Option<Instant>,
}

impl Account {
    /// Returns the remaining time in which an annotation or association may still follow the
    /// creation; zero if the service account is older than `window`.
    pub(crate) fn may_change_for(&self, window: Duration, now: Instant) -> Duration {
        self.created.map_or(Duration::ZERO, |created| {
            window.saturating_sub(now.saturating_duration_since(created))
        })
    }
}

/// The service accounts. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct Accounts {
    all: Arc<RwLock<Known>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Known {
    is_synced: bool,
    accounts: HashMap<Key, Account>,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            all: Arc::default(),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Accounts {
    /// Returns a service account.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Account> {
        let key = (namespace.into(), name.into());
        self.all.read().accounts.get(&key).cloned()
    }

    /// Returns true once the first list is complete.
    pub fn is_synced(&self) -> bool {
        self.all.read().is_synced
    }

    /// Returns a receiver that is notified of each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Applies a change. Returns the service accounts whose annotations changed.
    pub fn apply(&self, change: Change<ServiceAccount>) -> Vec<ServiceAccount> {
        let now = Instant::now();
        let changed = {
            let mut known = self.all.write();
            match change {
                Change::Snapshot(accounts) => known.replace(accounts, now),
                Change::Apply(account) => known.insert(account, Some(now)).into_iter().collect(),
                Change::Delete(account) => {
                    known.accounts.remove(&key(&account));
                    Vec::new()
                }
            }
        };
        self.changes.send_modify(|number| *number += 1);
        changed
    }
}

impl Known {
    /// Replaces all. After a gap of the watch, an account that was not known is new.
    fn replace(&mut self, accounts: Vec<ServiceAccount>, now: Instant) -> Vec<ServiceAccount> {
        let created = self.is_synced.then_some(now);
        let before = std::mem::take(&mut self.accounts);
        let mut changed = Vec::new();
        for account in accounts {
            let key = key(&account);
            if let Some(known) = before.get(&key) {
                self.accounts.insert(key, known.clone());
            }
            changed.extend(self.insert(account, created));
        }
        self.is_synced = true;
        changed
    }

    fn insert(
        &mut self,
        account: ServiceAccount,
        created: Option<Instant>,
    ) -> Option<ServiceAccount> {
        let known = self.accounts.get(&key(&account));
        let known = known.filter(|known| known.uid == account.uid);
        let created = known.map_or(created, |known| known.created);
        let is_changed = known.is_none_or(|known| *known.annotations != account.annotations);
        let entry = Account {
            uid: account.uid.clone(),
            annotations: Arc::new(account.annotations.clone()),
            created,
        };
        self.accounts.insert(key(&account), entry);
        is_changed.then_some(account)
    }
}

fn key(account: &ServiceAccount) -> Key {
    (account.namespace.clone(), account.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, uid: &str, role: &str) -> ServiceAccount {
        ServiceAccount {
            namespace: "shop".into(),
            name: name.into(),
            uid: uid.into(),
            annotations: ServiceAccountAnnotations {
                web_identity_role: (!role.is_empty()).then(|| role.into()),
                ..ServiceAccountAnnotations::default()
            },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_new_accounts_may_still_change() {
        let accounts = Accounts::default();
        let window = Duration::from_secs(2);
        let left = |name: &str| {
            let account = accounts.find("shop", name).unwrap();
            account.may_change_for(window, Instant::now())
        };
        assert!(!accounts.is_synced());
        accounts.apply(Change::Snapshot(vec![account("old", "1", "")]));
        assert!(accounts.is_synced());
        accounts.apply(Change::Apply(account("new", "2", "")));
        assert_eq!((left("old"), left("new")), (Duration::ZERO, window));
        tokio::time::advance(window / 2).await;
        // A change or a new list does not make it younger; another one of the same name is new.
        accounts.apply(Change::Apply(account("new", "2", "role")));
        accounts.apply(Change::Snapshot(vec![
            account("old", "3", ""),
            account("new", "2", "role"),
            account("gap", "4", ""),
        ]));
        assert_eq!(left("new"), window / 2);
        assert_eq!((left("old"), left("gap")), (window, window));
        accounts.apply(Change::Delete(account("gap", "4", "")));
        assert!(accounts.find("shop", "gap").is_none());
    }

    #[test]
    fn changes_of_annotations_are_reported_once() {
        let accounts = Accounts::default();
        let count = |change| accounts.apply(change).len();
        assert_eq!(count(Change::Snapshot(vec![account("a", "1", "")])), 1);
        assert_eq!(count(Change::Apply(account("a", "1", ""))), 0);
        assert_eq!(count(Change::Apply(account("a", "1", "role"))), 1);
        assert_eq!(count(Change::Snapshot(vec![account("a", "1", "role")])), 0);
    }
}
