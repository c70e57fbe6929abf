//! The service accounts of the cluster, and which of them are new. One writer, many readers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rolegate_core::service_account::ServiceAccount;
use rolegate_core::workload::Change;
use rolegate_rules::service_accounts::{AccountLookup, ServiceAccountStore};
use tokio::sync::watch;
use tokio::time::Instant;

/// Time for which the creation of a service account is remembered.
const TTL: Duration = Duration::from_secs(120);
/// Maximum number of remembered creations. Further service accounts count as old.
const MAX_REMEMBERED: usize = 16_384;

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

/// The creation of a service account.
#[derive(Debug)]
struct Creation {
    uid: Arc<str>,
    at: Instant,
}

/// The service accounts. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    store: ServiceAccountStore,
    recent: Arc<RwLock<HashMap<Key, Creation>>>,
}

impl Accounts {
    /// Looks a service account up.
    pub(crate) fn lookup(&self, namespace: &str, name: &str) -> AccountLookup {
        self.store.lookup(namespace, name)
    }

    /// Returns the remaining time in which an annotation or association may still follow the
    /// creation of a service account; zero if that was longer than `window` ago.
    pub(crate) fn may_change_for(&self, namespace: &str, name: &str, window: Duration) -> Duration {
        let recent = self.recent.read();
        let creation = recent.get(&(namespace.into(), name.into()));
        creation.map_or(Duration::ZERO, |creation| {
            window.saturating_sub(creation.at.elapsed())
        })
    }

    /// Returns the UID of a recently created service account. Empty for others, whose UIDs are not
    /// kept.
    pub(crate) fn uid(&self, namespace: &str, name: &str) -> Arc<str> {
        let recent = self.recent.read();
        let creation = recent.get(&(namespace.into(), name.into()));
        creation.map_or_else(|| "".into(), |creation| creation.uid.clone())
    }

    /// Returns true once the first list is complete.
    pub(crate) fn has_synced(&self) -> bool {
        self.store.has_synced()
    }

    /// Returns a receiver that is notified of each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.store.changes()
    }

    /// Applies a change. Service accounts of the first list are old; one that appears after that,
    /// also after a gap of the watch, is new.
    pub fn apply(&self, change: Change<ServiceAccount>) {
        if self.store.has_synced() {
            let mut recent = self.recent.write();
            recent.retain(|_, creation| creation.at.elapsed() < TTL);
            match &change {
                Change::Snapshot(accounts) => {
                    accounts.iter().for_each(|it| self.note(&mut recent, it));
                }
                Change::Apply(account) => self.note(&mut recent, account),
                Change::Delete(account) => {
                    recent.remove(&key(account));
                }
            }
        }
        // Applied last: a reader that sees the service account also sees that it is new.
        self.store.apply(change);
    }

    fn note(&self, recent: &mut HashMap<Key, Creation>, account: &ServiceAccount) {
        let known = match self.store.lookup(&account.namespace, &account.name) {
            AccountLookup::Present(known) => self.store.has_uid(&known, &account.uid),
            AccountLookup::Absent => false,
            AccountLookup::NotSynced => true,
        };
        if !known && recent.len() < MAX_REMEMBERED {
            let creation = Creation {
                uid: account.uid.clone(),
                at: Instant::now(),
            };
            recent.insert(key(account), creation);
        }
    }
}

fn key(account: &ServiceAccount) -> Key {
    (account.namespace.clone(), account.name.clone())
}

#[cfg(test)]
mod tests {
    use rolegate_core::service_account::ServiceAccountAnnotations;

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
        let left = |name: &str| accounts.may_change_for("shop", name, window);
        assert_eq!(accounts.lookup("shop", "old"), AccountLookup::NotSynced);
        accounts.apply(Change::Snapshot(vec![account("old", "1", "")]));
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
        assert_eq!(&*accounts.uid("shop", "gap"), "4");
        accounts.apply(Change::Delete(account("gap", "4", "")));
        assert_eq!(accounts.lookup("shop", "gap"), AccountLookup::Absent);
        assert_eq!(left("gap"), Duration::ZERO);
        tokio::time::advance(TTL).await;
        accounts.apply(Change::Delete(account("gap", "4", "")));
        assert_eq!(accounts.recent.read().len(), 0);
    }
}
