//! The director: turns what sources report into the picture that doors read.
//!
//! It is the only writer. A decision is made when a pod, its namespace or the rules change, and
//! the session it needs is leased at that moment, before the pod asks.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_aws::sessions::{Lease, Sessions};
use rolegate_core::arn::{BaseArn, RoleArn};
use rolegate_core::decision::{Decision, OwnRole, RuleSet};
use rolegate_core::document;
use rolegate_core::engine::Cause;
use rolegate_core::namespace::{Namespace, NamespaceRules};
use rolegate_core::pattern::PatternFormat;
use rolegate_core::session::SessionKey;
use rolegate_core::workload::{Change, Phase, Update, Workload};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::{Block, Readiness};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::guard::Guard;
use crate::metrics::AgentMetrics;
use crate::pace::Pace;
use crate::picture::{Allowed, Owner, Picture, Resident, Standing};

/// What was found out about where we run; decisions wait for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// What completes bare role names.
    pub base: Option<BaseArn>,
    /// The role of pods that name none.
    pub default_role: Option<RoleArn>,
    /// The node's and our own roles, refused to everyone.
    pub own_roles: Vec<OwnRole>,
}

/// What a director works with.
#[derive(Debug)]
pub struct DirectorParts {
    /// Where it writes.
    pub picture: Arc<Picture>,
    /// Where it leases sessions.
    pub sessions: Sessions,
    /// The time.
    pub clock: Clock,
    /// Counts pods.
    pub metrics: AgentMetrics,
    /// Told which pods are where.
    pub guard: Guard,
    /// What the configuration fixes; namespaces and [`Facts`] are filled in as they are learned.
    pub rules: RuleSet,
    /// How allowed roles are written.
    pub format: PatternFormat,
}

/// What keeps the process from being ready, and decisions from being final.
#[derive(Debug)]
struct Missing {
    workloads: Option<Block>,
    namespaces: Option<Block>,
    facts: Option<Block>,
}

/// Writes the picture.
#[derive(Debug)]
pub struct Director {
    picture: Arc<Picture>,
    sessions: Sessions,
    clock: Clock,
    metrics: AgentMetrics,
    guard: Guard,
    format: PatternFormat,
    rules: RuleSet,
    namespaces: HashMap<Arc<str>, Namespace>,
    /// By UID.
    pods: HashMap<Arc<str>, Arc<Resident>>,
    /// The live pods that claim an address, by UID.
    claims: HashMap<IpAddr, Vec<Arc<str>>>,
    disputed: HashSet<IpAddr>,
    missing: Missing,
}

impl Director {
    /// A director for an empty picture.
    pub fn new(parts: DirectorParts, readiness: &Readiness) -> Self {
        Self {
            picture: parts.picture,
            sessions: parts.sessions,
            clock: parts.clock,
            metrics: parts.metrics,
            guard: parts.guard,
            format: parts.format,
            rules: parts.rules,
            namespaces: HashMap::new(),
            pods: HashMap::new(),
            claims: HashMap::new(),
            disputed: HashSet::new(),
            missing: Missing {
                workloads: Some(readiness.block("workloads are not loaded")),
                namespaces: Some(readiness.block("namespaces are not loaded")),
                facts: Some(readiness.block("our own AWS identity is not known")),
            },
        }
    }

    /// Follows the sources until they end.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut facts: watch::Receiver<Option<Facts>>,
    ) {
        loop {
            tokio::select! {
                update = updates.recv() => match update {
                    Some(update) => self.update(update),
                    None => return,
                },
                Ok(()) = facts.changed() => {
                    let learned = facts.borrow_and_update().clone();
                    if let Some(learned) = learned {
                        self.learn(learned);
                    }
                }
            }
        }
    }

    /// Takes one report of a source.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Workloads(Change::Snapshot(all)) => {
                let kept: HashSet<_> = all.iter().map(|pod| pod.uid.clone()).collect();
                let gone: Vec<_> = self
                    .pods
                    .keys()
                    .filter(|uid| !kept.contains(*uid))
                    .cloned()
                    .collect();
                let mut touched = HashSet::new();
                for uid in gone {
                    self.remove(&uid, &mut touched);
                }
                for pod in all {
                    self.apply(pod, &mut touched);
                }
                self.publish(touched);
                self.missing.workloads = None;
            }
            Update::Workloads(Change::Apply(pod)) => {
                let mut touched = HashSet::new();
                self.apply(pod, &mut touched);
                self.publish(touched);
            }
            Update::Workloads(Change::Delete(pod)) => {
                let mut touched = HashSet::new();
                self.remove(&pod.uid, &mut touched);
                self.publish(touched);
            }
            Update::Namespaces(Change::Snapshot(all)) => {
                self.namespaces = all
                    .into_iter()
                    .map(|namespace| (namespace.name.clone(), namespace))
                    .collect();
                self.rules.namespaces.clear();
                self.missing.namespaces = None;
                self.decide_again(|_| true);
            }
            Update::Namespaces(Change::Apply(namespace)) => {
                if self.namespaces.get(&namespace.name) == Some(&namespace) {
                    return;
                }
                let name = namespace.name.clone();
                self.namespaces.insert(name.clone(), namespace);
                self.rules.namespaces.remove(&name);
                self.decide_again(|pod| pod.namespace == name);
            }
            Update::Namespaces(Change::Delete(namespace)) => {
                self.rules.namespaces.remove(&namespace.name);
                self.namespaces.remove(&namespace.name);
                self.decide_again(|pod| pod.namespace == namespace.name);
            }
        }
        self.settle();
    }

    /// Takes what was found out about where we run.
    pub fn learn(&mut self, facts: Facts) {
        info!(
            base = facts.base.as_ref().map(BaseArn::as_str),
            default_role = facts.default_role.as_ref().map(RoleArn::as_str),
            own_roles = ?facts.own_roles.iter().map(|own| &own.name).collect::<Vec<_>>(),
            "our AWS identity is known"
        );
        self.rules.base = facts.base;
        self.rules.default_role = facts.default_role;
        self.rules.own_roles = facts.own_roles;
        self.rules.namespaces.clear();
        self.missing.facts = None;
        self.decide_again(|_| true);
        self.settle();
    }

    fn settle(&mut self) {
        let Missing {
            workloads,
            namespaces,
            facts,
        } = &self.missing;
        self.picture
            .settle(workloads.is_none() && namespaces.is_none() && facts.is_none());
    }

    /// Compiles the rules of a namespace that has a pod here. Those of other namespaces, which
    /// their owners can make costly, are left alone.
    fn compile(&mut self, name: &Arc<str>) {
        if self.rules.namespaces.contains_key(name) {
            return;
        }
        if let Some(namespace) = self.namespaces.get(name) {
            let base = self.rules.base.as_ref();
            let compiled = NamespaceRules::compile(namespace, base, self.format);
            self.rules
                .namespaces
                .insert(name.clone(), Arc::new(compiled));
        }
    }

    fn apply(&mut self, pod: Workload, touched: &mut HashSet<IpAddr>) {
        let before = self.pods.get(&pod.uid).cloned();
        if before.as_ref().is_some_and(|known| *known.workload == pod) {
            return;
        }
        if let Some(before) = &before {
            self.unclaim(before, touched);
        }
        let resident = self.resident(Arc::new(pod), before.as_deref());
        let own = resident.workload.own_addresses();
        if before.is_none_or(|before| before.workload.own_addresses() != own) {
            self.guard.seen(&resident.workload.uid, own);
        }
        for address in own {
            let claims = self.claims.entry(*address).or_default();
            claims.push(resident.workload.uid.clone());
            touched.insert(*address);
        }
        self.pods.insert(resident.workload.uid.clone(), resident);
    }

    fn remove(&mut self, uid: &Arc<str>, touched: &mut HashSet<IpAddr>) {
        if let Some(resident) = self.pods.remove(uid) {
            self.guard.forget(uid);
            self.unclaim(&resident, touched);
        }
    }

    fn unclaim(&mut self, resident: &Resident, touched: &mut HashSet<IpAddr>) {
        for address in resident.workload.own_addresses() {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.retain(|uid| *uid != resident.workload.uid);
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
            touched.insert(*address);
        }
    }

    fn decide_again(&mut self, affected: impl Fn(&Workload) -> bool) {
        let residents: Vec<_> = self
            .pods
            .values()
            .filter(|resident| affected(&resident.workload))
            .cloned()
            .collect();
        let mut touched = HashSet::new();
        for before in residents {
            let resident = self.resident(before.workload.clone(), Some(&before));
            touched.extend(resident.workload.own_addresses());
            self.pods.insert(resident.workload.uid.clone(), resident);
        }
        self.publish(touched);
    }

    /// Decides for a pod. The lease of the resident before it lives on where the session stays
    /// the same, so that nothing is fetched twice.
    fn resident(&mut self, workload: Arc<Workload>, before: Option<&Resident>) -> Arc<Resident> {
        self.compile(&workload.namespace);
        let finished = matches!(workload.phase, Phase::Succeeded | Phase::Failed);
        let standing = if finished || workload.host_network {
            // It owns no address, so nothing would ever be served.
            Standing::NoRole
        } else {
            match self.rules.decide(&workload) {
                Decision::Undecided => Standing::Undecided,
                Decision::NoRole => Standing::NoRole,
                Decision::Deny(denial) => Standing::Denied {
                    body: format!("{denial}\n").into(),
                    denial,
                },
                Decision::Allow { key, listed, rules } => Standing::Allowed(Allowed {
                    role: key.role.clone(),
                    listed: listed.into(),
                    info: document::info(&key.role, self.clock.now()),
                    rules,
                    lease: self.lease(key, &workload, before),
                }),
            }
        };
        Arc::new(Resident {
            workload,
            standing,
            told: Pace::default(),
        })
    }

    fn lease(&self, key: SessionKey, workload: &Workload, before: Option<&Resident>) -> Arc<Lease> {
        let lease = match before.map(|before| &before.standing) {
            Some(Standing::Allowed(allowed)) if *allowed.lease.cell().key() == key => {
                allowed.lease.clone()
            }
            _ => {
                let cause = match before.map(|before| &before.standing) {
                    None | Some(Standing::Undecided) => Cause::New,
                    Some(_) => Cause::Change,
                };
                Arc::new(self.sessions.lease(key, workload.namespace.clone(), cause))
            }
        };
        // Something changed, which is why we decide: what STS refused is worth another try.
        lease.retry();
        lease
    }

    fn publish(&mut self, touched: HashSet<IpAddr>) {
        let mut changes = Vec::with_capacity(touched.len());
        for address in touched {
            let claims = self.claims.get(&address).map_or(&[][..], Vec::as_slice);
            let owner = match claims {
                [] => None,
                [uid] => self.pods.get(uid).cloned().map(Owner::Pod),
                _ => Some(Owner::Disputed),
            };
            if matches!(owner, Some(Owner::Disputed)) {
                if self.disputed.insert(address) {
                    let pods = claims.iter().filter_map(|uid| self.pods.get(uid));
                    let names: Vec<_> = pods
                        .map(|pod| format!("{}/{}", pod.workload.namespace, pod.workload.name))
                        .collect();
                    warn!(%address, pods = ?names, "several live pods have one address: none of them gets credentials");
                }
            } else {
                self.disputed.remove(&address);
            }
            changes.push((address, owner));
        }
        self.picture.publish(changes);
        self.metrics.set_pods(self.pods.len(), self.disputed.len());
    }
}

#[cfg(test)]
mod tests;
