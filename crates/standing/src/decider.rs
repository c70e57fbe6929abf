//! Decides what pods may have, on whichever thread first needs it after the rules changed.
//!
//! A change of the rules is a new generation and nothing more: no pod is decided again for it
//! until it asks, or until the director gets to it. So a change counts at once, however many pods
//! there are.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use jiff::Timestamp;
use rolegate_aws::sessions::{Lease, Sessions};
use rolegate_core::decision::Decision;
use rolegate_core::engine::Cause;
use rolegate_core::memo::Memo;
use rolegate_core::session::SessionKey;
use rolegate_core::workload::{Phase, Workload};
use rolegate_rules::rules::Rules;
use rolegate_runtime::clock::Clock;

use crate::resident::{Allowed, Decided, Resident, Standing};

/// How long a verdict counts that depends on the time.
const TIMELY: Duration = Duration::from_secs(30);
/// How long a denial counts that is of the moment: a policy was not done in time.
const PASSING: Duration = Duration::from_secs(5);

/// What decides. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Decider {
    rules: Rules,
    sessions: Sessions,
    clock: Clock,
    memo: Arc<Memo>,
}

impl Decider {
    /// Decides by `rules`, and leases sessions for what is allowed.
    pub fn new(rules: Rules, sessions: Sessions, clock: Clock) -> Self {
        Self {
            rules,
            sessions,
            clock,
            memo: Arc::default(),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What counts for `resident` now.
    pub fn standing(&self, resident: &Resident, now: Timestamp) -> Guard<Arc<Decided>> {
        let decided = resident.decided.load();
        if decided.counts(self.rules.generation(), now) {
            return decided;
        }
        let new = Arc::new(self.decide(&resident.workload, Some(&decided)));
        // Another thread may have decided by newer rules meanwhile: that stays, and counts.
        let replaced = resident.decided.rcu(|other| {
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

    /// What counts for `resident` now, which is not put in the place of what was decided: for
    /// whoever only looks at a pod that another task keeps up to date.
    pub fn look(&self, resident: &Resident) -> Arc<Decided> {
        let decided = resident.decided.load_full();
        if decided.counts(self.rules.generation(), self.clock.now()) {
            return decided;
        }
        Arc::new(self.decide(&resident.workload, Some(&decided)))
    }

    /// Decides for a pod. The lease of the decision before it lives on where the session stays
    /// the same, so that nothing is fetched twice.
    pub fn decide(&self, workload: &Workload, before: Option<&Decided>) -> Decided {
        let snapshot = self.rules.load();
        let rules = &snapshot.rules;
        let now = self.clock.now();
        let finished = matches!(workload.phase, Phase::Succeeded | Phase::Failed);
        let mut is_passing = false;
        let standing = if finished || workload.host_network {
            // It owns no address, so nothing would ever be served.
            Standing::NoRole
        } else {
            let decision = self.memo.decide(rules, workload, now);
            is_passing = decision.is_passing();
            match decision {
                Decision::Undecided => Standing::Undecided,
                Decision::NoRole => Standing::NoRole,
                Decision::Deny(denial) => Standing::Denied {
                    body: format!("{}\n", denial.to_owner()).into(),
                    denial,
                },
                Decision::Allow {
                    key,
                    listed,
                    rules,
                    audited,
                } => Standing::Allowed(Allowed {
                    role: key.role.clone(),
                    listed: listed.into(),
                    since: now,
                    rules,
                    audited,
                    lease: self.lease(key, workload, before),
                }),
            }
        };
        Decided {
            generation: rules.generation,
            until: match is_passing {
                true => Some(now + PASSING),
                false => rules.reads_time().then(|| now + TIMELY),
            },
            standing,
        }
    }

    fn lease(&self, key: SessionKey, workload: &Workload, before: Option<&Decided>) -> Arc<Lease> {
        match before.map(|before| &before.standing) {
            Some(Standing::Allowed(allowed)) if *allowed.lease.cell().key() == key => {
                allowed.lease.clone()
            }
            before => {
                let cause = match before {
                    None | Some(Standing::Undecided) => Cause::New,
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
    use rolegate_core::key_values::KeyValues;
    use rolegate_core::namespace::Namespace;
    use rolegate_core::rulebook::{Facts, RuleUpdate};
    use rolegate_core::session_name::SessionScope;
    use rolegate_core::workload::{Change, Wish};
    use rolegate_rules::keeper::{Keeper, Point, Report};

    use super::*;

    fn allow(keeper: &mut Keeper, roles: &str) {
        let namespace = Namespace {
            name: "default".into(),
            allowed_roles: Some(roles.into()),
            ..Namespace::default()
        };
        let namespaces = RuleUpdate::Namespaces(Change::Snapshot(vec![namespace]));
        keeper.apply(Report::Rules(namespaces));
    }

    #[test]
    fn rule_04_who_only_looks_sees_what_counts_and_changes_nothing() {
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
        let config = RuleConfig {
            base: Some(base),
            ..RuleConfig::default()
        };
        let mut keeper = Keeper::new(config, Point::Door, SessionScope::Workload, 3600);
        keeper.learn(Facts::default());
        allow(&mut keeper, r#"["reader"]"#);
        let (sessions, _fed) = Sessions::fed();
        let decider = Decider::new(keeper.rules(), sessions, Clock::system());
        let workload = Workload {
            namespace: "default".into(),
            name: "api".into(),
            uid: "uid-1".into(),
            node: Some("node-1".into()),
            service_account: "default".into(),
            addresses: vec![[10, 0, 0, 1].into()],
            phase: Phase::Running,
            host_network: false,
            mirror: false,
            wish: Wish {
                role: Some("reader".into()),
                ..Wish::default()
            },
            labels: KeyValues::default(),
            annotations: KeyValues::default(),
        };
        let decided = decider.decide(&workload, None);
        let pod = Resident::new(Arc::new(workload), decided);
        let is_allowed = |decided: &Decided| matches!(decided.standing, Standing::Allowed(_));
        assert!(is_allowed(&decider.look(&pod)));
        allow(&mut keeper, r#"["writer"]"#);
        assert!(!is_allowed(&decider.look(&pod)));
        // Whoever keeps the pod up to date has still to see it as a change.
        assert!(is_allowed(&pod.decided.load()));
    }
}
