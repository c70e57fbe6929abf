//! Determines the roles of pods' service accounts, and decides about them.

use std::sync::Arc;

use jiff::Timestamp;
use rolegate_core::workload::Workload;
use rolegate_rules::service_accounts::{AccountLookup, ServiceAccountStore};

use super::Authorizer;
use crate::pod::{AssignedRoles, Assignment, DecisionRecord, PodEntry};

impl Authorizer {
    /// Returns the roles of the service account of `entry`, which are determined again if the rules
    /// or the service account have changed. `None` if no endpoint needs them.
    pub fn assigned_roles(&self, entry: &PodEntry) -> Option<Arc<AssignedRoles>> {
        let accounts = self.service_accounts()?;
        let known = entry.assigned.load_full();
        let pod = &entry.workload;
        if let Some(known) = &known
            && let Some((generation, account)) = &known.inputs
            && *generation == self.generation()
            && *account == accounts.lookup(&pod.namespace, &pod.service_account)
        {
            return Some(known.clone());
        }
        // Two threads may do this at once. The next call corrects an older result, since it compares
        // the inputs.
        let new = Arc::new(self.assign(pod, accounts, known.as_deref()));
        entry.assigned.store(Some(new.clone()));
        Some(new)
    }

    /// Determines the roles of a pod's service account, and leases their sessions. `before` are the
    /// previous ones, whose leases are kept if the session stays the same. `None` if no endpoint
    /// needs them.
    pub fn assign_roles(
        &self,
        pod: &Arc<Workload>,
        before: Option<&AssignedRoles>,
    ) -> Option<AssignedRoles> {
        Some(self.assign(pod, self.service_accounts()?, before))
    }

    /// Decides again, where it is due, for the roles of the service account of `entry`. With
    /// `retry`, a request that STS refused is sent again.
    pub fn refresh_assigned(&self, entry: &PodEntry, now: Timestamp, retry: bool) {
        let Some(roles) = self.assigned_roles(entry) else {
            return;
        };
        for role in roles.entries() {
            self.authorization(role, now).retry_if(retry);
        }
    }

    fn assign(
        &self,
        pod: &Arc<Workload>,
        accounts: &ServiceAccountStore,
        before: Option<&AssignedRoles>,
    ) -> AssignedRoles {
        // The account is read before the rules: a later change of either is detected.
        let account = accounts.lookup(&pod.namespace, &pod.service_account);
        let snapshot = self.snapshot();
        let rules = &snapshot.rules;
        let mut roles = AssignedRoles {
            inputs: Some((rules.generation, account.clone())),
            is_known: false,
            entries: Vec::new(),
        };
        let AccountLookup::Present(account) = account else {
            return roles;
        };
        if rules.not_synced.is_some() {
            return roles;
        }
        roles.is_known = true;
        if pod.is_finished() {
            return roles;
        }
        let (namespace, name) = (&*pod.namespace, &*pod.service_account);
        let annotations = account.annotations();
        for audience in rules.assigned_audiences(namespace, name) {
            let assigned = rules.assigned_role(namespace, name, &annotations, audience.as_deref());
            if let Some(assignment) = assigned.transpose() {
                let known = before.and_then(|before| before.entry(audience.as_deref()));
                roles
                    .entries
                    .push(self.assigned_entry(pod, audience, assignment, known));
            }
        }
        roles
    }

    fn assigned_entry(
        &self,
        pod: &Arc<Workload>,
        audience: Option<Arc<str>>,
        assignment: Assignment,
        known: Option<&Arc<PodEntry>>,
    ) -> Arc<PodEntry> {
        let last = known.map(|known| known.decided.load_full());
        let is_same = known.is_some_and(|known| {
            Arc::ptr_eq(&known.workload, pod) && known.assignment.as_deref() == Some(&assignment)
        });
        let is_current = |last: &Arc<DecisionRecord>| self.is_current(last);
        if let Some(known) = known.filter(|_| is_same && last.as_ref().is_some_and(is_current)) {
            return known.clone();
        }
        // The entry is replaced and not updated, so that a broker can compare both decisions.
        let decided = self.decide_assigned(pod, &assignment, last.as_deref());
        // If the pod or its role changed, a request that STS refused should be retried.
        decided.retry_if(known.is_some() && !is_same);
        let entry = match known {
            Some(known) => known.changed(pod.clone(), decided),
            None => PodEntry::new(pod.clone(), decided),
        };
        let entry = entry.for_service_account(audience);
        Arc::new(entry.with_assignment(assignment))
    }
}

#[cfg(test)]
mod tests;
