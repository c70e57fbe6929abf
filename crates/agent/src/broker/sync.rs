//! The broker sync: applies the broker's messages to the pod table.
//!
//! It is the pod table's only writer. While brokers are unavailable, the last pod table stays. A
//! new stream sends the complete state, and pods that are missing when it is complete are removed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rolegate_authorizer::pod::AssignedRoles;
use rolegate_authorizer::pod::{Allowed, Authorization, DecisionRecord, PodEntry, RoleOf};
use rolegate_authorizer::recorder::{OutcomeReport, RequestOutcome};
use rolegate_core::decision::Denial;
use rolegate_core::engine::Cause;
use rolegate_core::labels::Labels;
use rolegate_core::session::{Credentials, Failure, SessionKey};
use rolegate_core::workload::{Phase, RoleRequest, Workload};
use rolegate_proto::v1::{self, from_agent, outcome, pod};
use rolegate_proto::wire::{self, MAX_ASSIGNED_ROLES, MAX_SENT_OUTCOMES, Malformed};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::{Block, Condition, Readiness};
use rolegate_runtime::staleness::Staleness;
use rolegate_sessions::{Lease, RemoteSessions, Sessions};
use tokio::sync::mpsc;
use tracing::error;

use super::BrokerOptions;
use super::stream_pair::{PairEvent, StreamPair};
use crate::pod_table::PodTable;
use crate::pod_table::writer::PodTableWriter;

/// Maximum number of pods, and of sessions, of a node, far above real nodes.
const MAX_ENTRIES: usize = 16_384;

/// The parts that a broker sync uses.
#[derive(Debug)]
pub(crate) struct BrokerSyncParts {
    pub(crate) pod_table: Arc<PodTable>,
    pub(crate) writer: PodTableWriter,
    pub(crate) sessions: Sessions,
    pub(crate) fed: RemoteSessions,
    pub(crate) outcomes: mpsc::Receiver<OutcomeReport>,
    pub(crate) staleness: Arc<Staleness>,
    pub(crate) clock: Clock,
}

/// The writer of the pod table.
#[derive(Debug)]
pub(crate) struct BrokerSync {
    pod_table: Arc<PodTable>,
    writer: PodTableWriter,
    sessions: Sessions,
    staleness: Arc<Staleness>,
    clock: Clock,
    node: Arc<str>,
    /// The sessions of this stream by number.
    table: HashMap<u64, Arc<Lease>>,
    /// The numbers of sessions.
    numbers: HashMap<Arc<SessionKey>, u64>,
    /// UIDs that this stream sent, until it is complete.
    shown: Option<HashSet<Arc<str>>>,
    workloads: Option<Block>,
    condition: Condition,
}

impl BrokerSync {
    /// Follows the broker until the process exits.
    pub(crate) async fn run(options: BrokerOptions, parts: BrokerSyncParts, readiness: Readiness) {
        let BrokerSyncParts {
            pod_table,
            writer,
            sessions,
            mut fed,
            mut outcomes,
            staleness,
            clock,
        } = parts;
        let mut sync = Self {
            pod_table,
            writer,
            sessions,
            staleness,
            clock,
            node: options.node.as_str().into(),
            table: HashMap::new(),
            numbers: HashMap::new(),
            shown: None,
            workloads: Some(readiness.block("the broker has not sent the node's pods yet")),
            condition: readiness.condition("broker"),
        };
        sync.condition.fail("not connected to a broker yet");
        let mut streams = StreamPair::new(options);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                event = streams.next() => {
                    let mut event = Some(event);
                    while let Some(next) = event.take() {
                        if let Err(malformed) = sync.take(next, &fed) {
                            error!(reason = %malformed, "a broker sent a malformed message");
                            event = streams.reject(malformed.to_string());
                        }
                    }
                }
                asked = fed.next_requested() => match asked {
                    Some(key) => {
                        if let Some(number) = sync.numbers.get(&key) {
                            streams.send(from_agent::Body::PrioritizeSession(v1::PrioritizeSession { session: *number }));
                        }
                    }
                    None => return,
                },
                // Until then they wait in their channel: a broker knows the pods that it has sent.
                count = outcomes.recv_many(&mut batch, MAX_SENT_OUTCOMES),
                    if sync.shown.is_none() && streams.has_room() =>
                {
                    if count == 0 {
                        return;
                    }
                    let outcomes = batch.drain(..).map(outcome_message).collect();
                    streams.send(from_agent::Body::Outcomes(v1::Outcomes { outcomes }));
                }
            }
        }
    }

    fn take(&mut self, event: PairEvent, fed: &RemoteSessions) -> Result<(), Malformed> {
        match event {
            PairEvent::Activated => {
                // Pods keep their sessions, whatever their previous numbers.
                self.table.clear();
                self.numbers.clear();
                self.shown = Some(HashSet::new());
                Ok(())
            }
            PairEvent::Update(update) => self.update(update, fed),
            PairEvent::Heartbeat(age) => {
                // Until a stream is complete, the previous stream's pod table is served. Its
                // staleness keeps growing, whatever this broker knows.
                if self.shown.is_none() {
                    self.staleness.update(Duration::from_millis(age));
                }
                Ok(())
            }
            PairEvent::Lost(why) => {
                // The existing state is served until `pod_table` is too stale.
                match self.workloads {
                    Some(_) => self.condition.fail(why),
                    None => self.condition.note(why),
                }
                Ok(())
            }
        }
    }

    fn update(&mut self, update: v1::Update, fed: &RemoteSessions) -> Result<(), Malformed> {
        for uid in &update.removed_pod_uids {
            self.writer.remove(uid);
        }
        let news = self.news(update.sessions, update.pods, fed);
        if news.is_ok() && update.complete {
            if let Some(shown) = self.shown.take() {
                self.writer.keep(|uid| shown.contains(uid));
            }
            self.workloads = None;
            self.condition.ok();
        }
        // Changes before the error apply, since one may revoke a role.
        self.writer.publish();
        news?;
        for number in update.removed_sessions {
            let Some(lease) = self.table.remove(&number) else {
                continue;
            };
            // The session may be in use again under another number.
            if self.numbers.get(lease.cell().key()) == Some(&number) {
                self.numbers.remove(lease.cell().key());
            }
        }
        if self.workloads.is_none() {
            self.pod_table.set_synced(true);
        }
        Ok(())
    }

    fn news(
        &mut self,
        sessions: Vec<v1::Session>,
        pods: Vec<v1::Pod>,
        fed: &RemoteSessions,
    ) -> Result<(), Malformed> {
        for session in sessions {
            self.session(session, fed)?;
        }
        for entry in pods {
            self.entry(entry)?;
        }
        Ok(())
    }

    fn session(&mut self, session: v1::Session, fed: &RemoteSessions) -> Result<(), Malformed> {
        if let Some(key) = session.key {
            if self.table.len() >= MAX_ENTRIES {
                return Err(Malformed("too many sessions for one node"));
            }
            let key = SessionKey::try_from(key)?;
            // Charged to no namespace, since nothing is fetched here.
            let lease = self.sessions.lease(key, "".into(), Cause::New);
            let lease = Arc::new(lease);
            self.numbers
                .insert(lease.cell().shared_key(), session.number);
            self.table.insert(session.number, lease);
        }
        let lease = self
            .table
            .get(&session.number)
            .ok_or(Malformed("an unknown session"))?;
        let failure = session.failure.map(Failure::try_from).transpose()?;
        let credentials = session
            .credentials
            .as_ref()
            .map(Credentials::try_from)
            .transpose()?;
        if credentials.is_some() || failure.is_some() {
            fed.store(lease.cell().key(), credentials, failure);
        } else {
            // An earlier request was sent on another stream, to another broker.
            lease.reprioritize();
        }
        Ok(())
    }

    fn entry(&mut self, entry: v1::Pod) -> Result<(), Malformed> {
        let uid: Arc<str> = wire::name(&entry.uid, "a pod's UID")?.into();
        let addresses = entry.addresses.iter().map(|bytes| wire::address(bytes));
        let workload = Workload {
            namespace: wire::name(&entry.namespace, "a namespace")?.into(),
            name: wire::name(&entry.name, "a pod's name")?.into(),
            uid: uid.clone(),
            node: Some(self.node.clone()),
            service_account: wire::name(&entry.service_account, "a service account")?.into(),
            addresses: addresses.collect::<Result<_, _>>()?,
            // Pods without an address of their own arrive without one.
            phase: Phase::Running,
            host_network: false,
            mirror: false,
            role_request: RoleRequest::default(),
            labels: Labels::default(),
            annotations: Labels::default(),
        };
        let authorization = entry
            .authorization
            .ok_or(Malformed("a pod without an authorization"))?;
        let decided = DecisionRecord {
            generation: 0,
            expires_at: None,
            authorization: self.authorization(authorization)?,
        };
        let pending = matches!(decided.authorization, Authorization::Pending);
        if let Some(shown) = &mut self.shown {
            shown.insert(uid.clone());
            // A broker that has just started knows pods before it knows the rules. Until then the
            // previous broker's decisions apply, and its sessions stay.
            let known = self.writer.get(&uid).map(|known| &known.workload);
            if pending && known.is_some_and(|known| known.addresses == workload.addresses) {
                return Ok(());
            }
        }
        // A stream may send other pods than the previous one. The old ones stay until it is
        // complete.
        let known = self.shown.as_ref().map_or(self.writer.len(), HashSet::len);
        if known > MAX_ENTRIES {
            return Err(Malformed("too many pods for one node"));
        }
        let workload = Arc::new(workload);
        let known = self.writer.get(&uid).filter(|_| self.shown.is_some());
        let known = known.and_then(|known| known.assigned.load_full());
        let assigned = if entry.unknown_service_account {
            // As above: until the broker knows the service account, what was known applies.
            known.unwrap_or_else(|| Arc::new(AssignedRoles::received(None)))
        } else {
            let roles = self.assigned_roles(&workload, entry.assigned_roles)?;
            Arc::new(AssignedRoles::received(Some(roles)))
        };
        let entry = PodEntry::new(workload, decided);
        entry.assigned.store(Some(assigned));
        self.writer.put(Arc::new(entry));
        Ok(())
    }

    fn assigned_roles(
        &self,
        pod: &Arc<Workload>,
        roles: Vec<v1::AssignedRole>,
    ) -> Result<Vec<Arc<PodEntry>>, Malformed> {
        use v1::assigned_role::Authorization as Said;
        if roles.len() > MAX_ASSIGNED_ROLES {
            return Err(Malformed("too many roles of a service account"));
        }
        let entry = |role: v1::AssignedRole| {
            let audience = role.audience.as_deref();
            let audience = audience
                .map(|it| wire::name(it, "an audience"))
                .transpose()?;
            // A kind that a later version adds allows nothing here.
            let said = match role.authorization {
                Some(Said::Allowed(allowed)) => pod::Authorization::Allowed(allowed),
                Some(Said::Denied(denial)) => pod::Authorization::Denied(denial),
                Some(Said::Pending(_)) | None => pod::Authorization::Pending(v1::Empty {}),
            };
            let decided = DecisionRecord {
                generation: 0,
                expires_at: None,
                authorization: self.authorization(said)?,
            };
            let entry = PodEntry::new(pod.clone(), decided);
            Ok(Arc::new(
                entry.for_service_account(audience.map(Into::into)),
            ))
        };
        roles.into_iter().map(entry).collect()
    }

    fn authorization(&self, said: pod::Authorization) -> Result<Authorization, Malformed> {
        Ok(match said {
            pod::Authorization::NoRole(_) => Authorization::NoRole,
            pod::Authorization::Pending(_) => Authorization::Pending,
            pod::Authorization::Denied(denial) => {
                let denial = Denial::from(denial);
                Authorization::Denied {
                    body: format!("{denial}\n").into(),
                    denial,
                }
            }
            pod::Authorization::Allowed(allowed) => {
                let lease = self
                    .table
                    .get(&allowed.session)
                    .ok_or(Malformed("an unknown session"))?;
                let role = lease.cell().key().last_role().clone();
                Authorization::Allowed(Allowed {
                    since: self.clock.now(),
                    role,
                    role_name: allowed.role_name.into(),
                    rules: allowed.rules.into(),
                    audited: allowed.audited.into_iter().map(Denial::from).collect(),
                    lease: lease.clone(),
                })
            }
        })
    }
}

fn outcome_message(report: OutcomeReport) -> v1::Outcome {
    let result = match report.outcome {
        RequestOutcome::Denied => outcome::Result::Denied(v1::Empty {}),
        RequestOutcome::Audited => outcome::Result::Audited(v1::Empty {}),
        RequestOutcome::Failing => outcome::Result::Failing(v1::Empty {}),
        RequestOutcome::Served { access_key_id } => {
            outcome::Result::Served(access_key_id.to_string())
        }
    };
    v1::Outcome {
        pod_uid: report.pod_uid.to_string(),
        result: Some(result),
        service_account: match report.role_of {
            RoleOf::Pod => None,
            RoleOf::ServiceAccount { audience } => Some(v1::ServiceAccountRole {
                audience: audience.map(|audience| audience.to_string()),
            }),
        },
    }
}

#[cfg(test)]
mod tests;
