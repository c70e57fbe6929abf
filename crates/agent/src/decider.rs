//! Decides what pods may have, on whichever thread first needs it after the rules changed.
//!
//! A change of the rules is a new generation and nothing more: no pod is decided again for it
//! until it asks, or until the director gets to it. So a change counts at once, however many pods
//! there are.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::Guard;
use jiff::Timestamp;
use rolegate_aws::sessions::{Lease, Sessions};
use rolegate_core::decision::Decision;
use rolegate_core::document;
use rolegate_core::engine::Cause;
use rolegate_core::memo::Memo;
use rolegate_core::session::SessionKey;
use rolegate_core::workload::{Phase, Workload};
use rolegate_rules::rules::Rules;
use rolegate_runtime::clock::Clock;

use crate::picture::{Allowed, Decided, Resident, Standing};

/// How long a verdict counts that depends on the time.
const TIMELY: Duration = Duration::from_secs(30);

/// What decides. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Decider {
    rules: Rules,
    sessions: Sessions,
    clock: Clock,
    memo: Arc<Mutex<Memo>>,
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

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What counts for `resident` now.
    pub fn standing(&self, resident: &Resident, now: Timestamp) -> Guard<Arc<Decided>> {
        let decided = resident.decided.load();
        if decided.counts(self.rules.generation(), now) {
            return decided;
        }
        let new = self.decide(&resident.workload, Some(&decided));
        resident.decided.store(Arc::new(new));
        resident.decided.load()
    }

    /// Decides for a pod. The lease of the decision before it lives on where the session stays
    /// the same, so that nothing is fetched twice.
    pub(crate) fn decide(&self, workload: &Workload, before: Option<&Decided>) -> Decided {
        let snapshot = self.rules.load();
        let rules = &snapshot.rules;
        let now = self.clock.now();
        let finished = matches!(workload.phase, Phase::Succeeded | Phase::Failed);
        let standing = if finished || workload.host_network {
            // It owns no address, so nothing would ever be served.
            Standing::NoRole
        } else {
            let decision = {
                let mut memo = self.memo.lock().unwrap_or_else(PoisonError::into_inner);
                memo.decide(rules, workload, now)
            };
            match decision {
                Decision::Undecided => Standing::Undecided,
                Decision::NoRole => Standing::NoRole,
                Decision::Deny(denial) => Standing::Denied {
                    body: format!("{denial}\n").into(),
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
                    info: document::info(&key.role, now),
                    rules,
                    audited,
                    lease: self.lease(key, workload, before),
                }),
            }
        };
        Decided {
            generation: rules.generation,
            until: rules.reads_time().then(|| now + TIMELY),
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
