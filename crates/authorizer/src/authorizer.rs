//! Decides for pods, on the thread that first needs a decision after the rules changed.
//!
//! A rule change only creates a new generation. A pod gets a new decision when it next
//! makes a request or when the pod reconciler reaches it, so a change takes effect at once, however
//! many pods there are.

mod assigned;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use jiff::Timestamp;
use rolegate_core::decision::{Decision, RuleSet};
use rolegate_core::decision_cache::DecisionCache;
use rolegate_core::engine::Cause;
use rolegate_core::session::SessionKey;
use rolegate_core::workload::Workload;
use rolegate_rules::rules::RuleStore;
use rolegate_rules::service_accounts::ServiceAccountStore;
use rolegate_rules::snapshot::Snapshot;
use rolegate_runtime::clock::Clock;
use rolegate_sessions::{Lease, Sessions};

use crate::pod::{Allowed, Assignment, Authorization, DecisionRecord, PodEntry};

/// Lifetime of a decision whose rules read the time.
const TIME_DEPENDENT_TTL: Duration = Duration::from_secs(30);
/// Lifetime of a denial with a temporary cause, such as a policy timeout.
const TRANSIENT_TTL: Duration = Duration::from_secs(5);

/// Decides by the rules of a store. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct Authorizer {
    rules: RuleStore,
    sessions: Sessions,
    clock: Clock,
    decision_cache: Arc<DecisionCache>,
    service_accounts: Option<ServiceAccountStore>,
}

impl Authorizer {
    /// Creates an authorizer that decides by `rules` and leases sessions for allowed roles.
    pub fn new(rules: RuleStore, sessions: Sessions, clock: Clock) -> Self {
        Self {
            rules,
            sessions,
            clock,
            decision_cache: Arc::default(),
            service_accounts: None,
        }
    }

    /// Also authorizes pods for the roles of their service accounts, if there are `accounts`.
    #[must_use]
    pub fn with_service_accounts(self, accounts: Option<ServiceAccountStore>) -> Self {
        Self {
            service_accounts: accounts,
            ..self
        }
    }

    pub(crate) fn service_accounts(&self) -> Option<&ServiceAccountStore> {
        self.service_accounts.as_ref()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.rules.generation()
    }

    /// Returns true if a decision is based on the current rules and has not expired.
    pub(crate) fn is_current(&self, decided: &DecisionRecord) -> bool {
        decided.is_current(self.rules.generation(), self.clock.now())
    }

    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.rules.load()
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the decision for `entry`, which is renewed if it is outdated.
    pub fn authorization(&self, entry: &PodEntry, now: Timestamp) -> Guard<Arc<DecisionRecord>> {
        let decided = entry.decided.load();
        if decided.is_current(self.rules.generation(), now) {
            return decided;
        }
        let new = Arc::new(self.decide_entry(entry, &decided));
        // If another thread has decided by the same or newer rules in the meantime, its decision is
        // kept and returned.
        let replaced = entry.decided.rcu(|other| {
            let newest = if other.generation > new.generation {
                other
            } else {
                &new
            };
            newest.clone()
        });
        if replaced.generation > new.generation {
            return Guard::from_inner(replaced);
        }
        Guard::from_inner(new)
    }

    /// Returns the decision for `entry` without storing it, for readers of a pod that another task
    /// updates.
    pub fn peek(&self, entry: &PodEntry) -> Arc<DecisionRecord> {
        let decided = entry.decided.load_full();
        if decided.is_current(self.rules.generation(), self.clock.now()) {
            return decided;
        }
        Arc::new(self.decide_entry(entry, &decided))
    }

    fn decide_entry(&self, entry: &PodEntry, before: &DecisionRecord) -> DecisionRecord {
        match &entry.assignment {
            Some(assignment) => self.decide_assigned(&entry.workload, assignment, Some(before)),
            None => self.decide(&entry.workload, Some(before)),
        }
    }

    /// Decides for a pod. If the session stays the same, its previous lease is kept, so that no
    /// session is fetched twice.
    pub fn decide(&self, workload: &Workload, before: Option<&DecisionRecord>) -> DecisionRecord {
        let snapshot = self.rules.load();
        let rules = &snapshot.rules;
        let now = self.clock.now();
        let decision = if workload.is_finished() || workload.host_network {
            // The pod has no address, so nothing could ever be served.
            Decision::NoRole
        } else {
            self.decision_cache.decide(rules, workload, now)
        };
        self.record(decision, rules, workload, before)
    }

    /// Decides for a pod and the role of its service account, as [`Self::decide`] does. The pod is
    /// identified by a token, so it needs no address.
    pub(crate) fn decide_assigned(
        &self,
        pod: &Workload,
        assignment: &Assignment,
        before: Option<&DecisionRecord>,
    ) -> DecisionRecord {
        let snapshot = self.rules.load();
        let rules = &snapshot.rules;
        let now = self.clock.now();
        let decision = match assignment {
            _ if pod.is_finished() => Decision::NoRole,
            Ok(assignment) => {
                assignment.decide(pod, |asking| self.decision_cache.decide(rules, asking, now))
            }
            Err(error) => Decision::Deny(error.denial()),
        };
        self.record(decision, rules, pod, before)
    }

    fn record(
        &self,
        decision: Decision,
        rules: &RuleSet,
        workload: &Workload,
        before: Option<&DecisionRecord>,
    ) -> DecisionRecord {
        let now = self.clock.now();
        let is_transient = decision.is_transient();
        let authorization = match decision {
            Decision::Pending => Authorization::Pending,
            Decision::NoRole => Authorization::NoRole,
            Decision::Deny(denial) => Authorization::Denied {
                body: format!("{}\n", denial.owner_message()).into(),
                denial,
            },
            Decision::Allow {
                key,
                role_name,
                rules,
                audited,
            } => Authorization::Allowed(Allowed {
                role: key.last_role().clone(),
                role_name: role_name.into(),
                since: now,
                rules,
                audited,
                lease: self.lease(key, workload, before),
            }),
        };
        DecisionRecord {
            generation: rules.generation,
            expires_at: if is_transient {
                Some(now + TRANSIENT_TTL)
            } else {
                rules.reads_time().then(|| now + TIME_DEPENDENT_TTL)
            },
            authorization,
        }
    }

    fn lease(
        &self,
        key: SessionKey,
        workload: &Workload,
        before: Option<&DecisionRecord>,
    ) -> Arc<Lease> {
        match before.map(|before| &before.authorization) {
            Some(Authorization::Allowed(allowed)) if *allowed.lease.cell().key() == key => {
                allowed.lease.clone()
            }
            before => {
                let cause = match before {
                    None | Some(Authorization::Pending) => Cause::New,
                    Some(_) => Cause::Change,
                };
                Arc::new(self.sessions.lease(key, workload.namespace.clone(), cause))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rolegate_core::arn::BaseArn;
    use rolegate_core::config::RuleConfig;
    use rolegate_core::enforcement::EnforcementPoint;
    use rolegate_core::namespace::Namespace;
    use rolegate_core::rule_set_builder::{AwsEnvironment, RuleUpdate};
    use rolegate_core::session_name::SessionScope;
    use rolegate_core::test_util::pod;
    use rolegate_core::workload::Change;
    use rolegate_rules::store::{Report, RuleStoreWriter};

    use super::*;

    fn allow(writer: &mut RuleStoreWriter, roles: &str) {
        let namespace = Namespace {
            name: "default".into(),
            allowed_roles: Some(roles.into()),
            ..Namespace::default()
        };
        let namespaces = RuleUpdate::Namespaces(Change::Snapshot(vec![namespace]));
        writer.apply(Report::Rules(namespaces));
    }

    #[test]
    fn rule_04_who_only_looks_sees_what_counts_and_changes_nothing() {
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
        let config = RuleConfig {
            base: Some(base),
            ..RuleConfig::default()
        };
        let mut writer = RuleStoreWriter::new(
            config,
            EnforcementPoint::Agent,
            SessionScope::Workload,
            3600,
        );
        writer.set_aws_environment(AwsEnvironment::default());
        allow(&mut writer, r#"["reader"]"#);
        let (sessions, _fed) = Sessions::remote();
        let authorizer = Authorizer::new(writer.rules(), sessions, Clock::system());
        let workload = pod(Some("reader"));
        let decided = authorizer.decide(&workload, None);
        let entry = PodEntry::new(Arc::new(workload), decided);
        let is_allowed =
            |decided: &DecisionRecord| matches!(decided.authorization, Authorization::Allowed(_));
        assert!(is_allowed(&authorizer.peek(&entry)));
        allow(&mut writer, r#"["writer"]"#);
        assert!(!is_allowed(&authorizer.peek(&entry)));
        // The task that updates the pod must still see the change.
        assert!(is_allowed(&entry.decided.load()));
    }
}
