//! The roles of a pod's service account, for endpoints whose callers present its token.
//!
//! A pod has at most one role for each audience of tokens. Each is an entry of its own with a
//! decision and a lease, so it is kept warm, reported and revoked like the pod's own role.

use std::sync::Arc;

use rolegate_core::service_account::{AssignmentError, RoleAssignment};
use rolegate_rules::service_accounts::AccountLookup;

use super::{PodEntry, RoleOf};

/// A role of a pod's service account, or the error because of which it has none.
pub type Assignment = Result<RoleAssignment, AssignmentError>;

/// The roles of a pod's service account. Immutable.
#[derive(Debug)]
pub struct AssignedRoles {
    /// The generation of the rules, and the service account, from which they follow; `None` if a
    /// broker sent them.
    pub(crate) inputs: Option<(u64, AccountLookup)>,
    pub(crate) is_known: bool,
    pub(crate) entries: Vec<Arc<PodEntry>>,
}

/// The result of a search for a role.
#[derive(Debug, Clone)]
pub enum AssignedLookup {
    /// The role, with its decision.
    Role(Arc<PodEntry>),
    /// The service account has no role for this audience.
    NoRole,
    /// The service account is not known: it is not loaded yet, or was deleted.
    Unknown,
}

impl AssignedRoles {
    /// Creates the roles that a broker sent; `None` if it does not know the service account.
    pub fn received(entries: Option<Vec<Arc<PodEntry>>>) -> Self {
        Self {
            inputs: None,
            is_known: entries.is_some(),
            entries: entries.unwrap_or_default(),
        }
    }

    /// Returns true if the service account is known. Otherwise there are no roles.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns the entries, one for each audience with a role.
    pub fn entries(&self) -> &[Arc<PodEntry>] {
        &self.entries
    }

    /// Returns the role for tokens of an audience; `None` for the endpoint's default audience.
    pub fn find(&self, audience: Option<&str>) -> AssignedLookup {
        if !self.is_known {
            return AssignedLookup::Unknown;
        }
        let found = self.entry(audience);
        found.map_or(AssignedLookup::NoRole, |entry| {
            AssignedLookup::Role(entry.clone())
        })
    }

    /// Returns true if the pod gets the same responses from both.
    pub fn same_responses(&self, other: &Self) -> bool {
        let same = |(one, other): (&Arc<PodEntry>, &Arc<PodEntry>)| {
            let (first, second) = (one.decided.load(), other.decided.load());
            one.role_of == other.role_of && first.same_response(&second)
        };
        self.is_known == other.is_known
            && self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(same)
    }

    /// Returns the entry of the role for tokens of an audience.
    pub fn entry(&self, audience: Option<&str>) -> Option<&Arc<PodEntry>> {
        let mut entries = self.entries.iter();
        entries.find(|entry| match &entry.role_of {
            RoleOf::Pod => false,
            RoleOf::ServiceAccount { audience: own } => own.as_deref() == audience,
        })
    }
}
