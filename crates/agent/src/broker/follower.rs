//! The follower: turns what the broker says into the picture that doors read.
//!
//! It is the picture's only writer. While brokers are away the last picture stays; the next stream
//! begins from the start, and what it doesn't show until it is complete is gone.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_aws::sessions::{Document, Fed, Lease, Session, Sessions};
use rolegate_core::decision::Denial;
use rolegate_core::engine::Cause;
use rolegate_core::key_values::KeyValues;
use rolegate_core::session::{Failure, SessionKey};
use rolegate_core::workload::{Phase, Wish, Workload};
use rolegate_proto::v1::{self, from_agent, notice, resident};
use rolegate_proto::wire::{self, MAX_NOTICES, Malformed};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::{Block, Condition, Readiness};
use rolegate_standing::resident::{Allowed, Decided, Resident, Standing};
use rolegate_standing::tell::{Notice, NoticeOutcome};
use tokio::sync::mpsc;
use tracing::error;

use super::BrokerOptions;
use super::age::BrokerAge;
use super::links::{Heard, Links};
use crate::picture::Picture;
use crate::roster::Roster;

/// The most pods, and sessions, of a node: far more than one has.
const MOST: usize = 16_384;

/// What a follower works with.
#[derive(Debug)]
pub(crate) struct FollowerParts {
    pub(crate) picture: Arc<Picture>,
    pub(crate) roster: Roster,
    pub(crate) sessions: Sessions,
    pub(crate) fed: Fed,
    pub(crate) notices: mpsc::Receiver<Notice>,
    pub(crate) age: BrokerAge,
    pub(crate) clock: Clock,
}

/// Writes the picture.
#[derive(Debug)]
pub(crate) struct Follower {
    picture: Arc<Picture>,
    roster: Roster,
    sessions: Sessions,
    age: BrokerAge,
    clock: Clock,
    node: Arc<str>,
    /// The sessions of this stream, by their numbers.
    table: HashMap<u64, Arc<Lease>>,
    /// Their numbers.
    numbers: HashMap<Arc<SessionKey>, u64>,
    /// UIDs that this stream showed, until it is complete.
    shown: Option<HashSet<Arc<str>>>,
    workloads: Option<Block>,
    condition: Condition,
}

impl Follower {
    /// Follows the broker until the process ends.
    pub(crate) async fn run(options: BrokerOptions, parts: FollowerParts, readiness: Readiness) {
        let FollowerParts {
            picture,
            roster,
            sessions,
            mut fed,
            mut notices,
            age,
            clock,
        } = parts;
        let mut follower = Self {
            picture,
            roster,
            sessions,
            age,
            clock,
            node: options.node.as_str().into(),
            table: HashMap::new(),
            numbers: HashMap::new(),
            shown: None,
            workloads: Some(readiness.block("the broker has not sent the node's pods yet")),
            condition: readiness.condition("broker"),
        };
        follower.condition.fail("no broker was reached yet");
        let mut links = Links::new(options);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                heard = links.next() => {
                    let mut heard = Some(heard);
                    while let Some(next) = heard.take() {
                        if let Err(malformed) = follower.take(next, &fed) {
                            error!(reason = %malformed, "a broker sent a malformed message");
                            heard = links.reject(malformed.to_string());
                        }
                    }
                }
                asked = fed.asked() => match asked {
                    Some(key) => {
                        if let Some(number) = follower.numbers.get(&key) {
                            links.send(from_agent::Body::Asked(v1::Asked { session: *number }));
                        }
                    }
                    None => return,
                },
                // Until then they wait in their channel: a broker knows the pods that it has sent.
                count = notices.recv_many(&mut batch, MAX_NOTICES),
                    if follower.shown.is_none() && links.has_room() =>
                {
                    if count == 0 {
                        return;
                    }
                    let notices = batch.drain(..).map(notice_message).collect();
                    links.send(from_agent::Body::Notices(v1::Notices { notices }));
                }
            }
        }
    }

    fn take(&mut self, heard: Heard, fed: &Fed) -> Result<(), Malformed> {
        match heard {
            Heard::Begun => {
                // Pods keep the sessions that they have, whatever their numbers were.
                self.table.clear();
                self.numbers.clear();
                self.shown = Some(HashSet::new());
                Ok(())
            }
            Heard::Update(update) => self.update(update, fed),
            Heard::Pulse(age) => {
                // Until a stream is complete, pods are served from the picture of the one before,
                // which grows older whatever this broker knows.
                if self.shown.is_none() {
                    self.age.heard(age);
                }
                Ok(())
            }
            Heard::Lost(why) => {
                // What there is is served on, which `picture` puts an end to.
                match self.workloads {
                    Some(_) => self.condition.fail(why),
                    None => self.condition.note(why),
                }
                Ok(())
            }
        }
    }

    fn update(&mut self, update: v1::Update, fed: &Fed) -> Result<(), Malformed> {
        let mut touched = HashSet::new();
        for uid in &update.gone {
            self.roster.remove(uid, &mut touched);
        }
        let news = self.news(update.sessions, update.residents, fed, &mut touched);
        if news.is_ok() && update.complete {
            if let Some(shown) = self.shown.take() {
                self.roster.keep(|uid| shown.contains(uid), &mut touched);
            }
            self.workloads = None;
            self.condition.ok();
        }
        // What came before the fault counts: it may be a right that was taken away.
        self.roster.publish(touched);
        news?;
        for number in update.ended {
            let Some(lease) = self.table.remove(&number) else {
                continue;
            };
            // The session may be in use again by now, under another number.
            if self.numbers.get(lease.cell().key()) == Some(&number) {
                self.numbers.remove(lease.cell().key());
            }
        }
        if self.workloads.is_none() {
            self.picture.settle(true);
        }
        Ok(())
    }

    fn news(
        &mut self,
        sessions: Vec<v1::Session>,
        residents: Vec<v1::Resident>,
        fed: &Fed,
        touched: &mut HashSet<IpAddr>,
    ) -> Result<(), Malformed> {
        for session in sessions {
            self.session(session, fed)?;
        }
        for resident in residents {
            self.resident(resident, touched)?;
        }
        Ok(())
    }

    fn session(&mut self, session: v1::Session, fed: &Fed) -> Result<(), Malformed> {
        if let Some(key) = session.key {
            if self.table.len() >= MOST {
                return Err(Malformed("more sessions than a node has"));
            }
            let key = SessionKey::try_from(key)?;
            // Charged to nobody: nothing is fetched here.
            let lease = self.sessions.lease(key, "".into(), Cause::New);
            let lease = Arc::new(lease);
            self.numbers
                .insert(lease.cell().shared_key(), session.number);
            self.table.insert(session.number, lease);
        }
        let lease = self.table.get(&session.number);
        let lease = lease.ok_or(Malformed("a session that was not introduced"))?;
        let failure = session.failure.map(Failure::try_from).transpose()?;
        let session = session.credentials.map(v1::Credentials::open).transpose()?;
        let session = session.map(|(access_key_id, document, life)| Session {
            access_key_id,
            life,
            document: Document::new(document),
        });
        if session.is_some() || failure.is_some() {
            fed.bring(lease.cell().key(), session, failure);
        } else {
            // The broker of another stream was told, if any.
            lease.ask_again();
        }
        Ok(())
    }

    fn resident(
        &mut self,
        resident: v1::Resident,
        touched: &mut HashSet<IpAddr>,
    ) -> Result<(), Malformed> {
        let uid: Arc<str> = wire::name(&resident.uid, "a pod's UID")?.into();
        let addresses = resident.addresses.iter().map(|bytes| wire::address(bytes));
        let workload = Workload {
            namespace: wire::name(&resident.namespace, "a namespace")?.into(),
            name: wire::name(&resident.name, "a pod's name")?.into(),
            uid: uid.clone(),
            node: Some(self.node.clone()),
            service_account: wire::name(&resident.service_account, "a service account")?.into(),
            addresses: addresses.collect::<Result<_, _>>()?,
            // Those that own no address come without one.
            phase: Phase::Running,
            host_network: false,
            mirror: false,
            wish: Wish::default(),
            labels: KeyValues::default(),
            annotations: KeyValues::default(),
        };
        let standing = resident
            .standing
            .ok_or(Malformed("a pod of which nothing is said"))?;
        let decided = Decided {
            generation: 0,
            until: None,
            standing: self.standing(standing)?,
        };
        let undecided = matches!(decided.standing, Standing::Undecided);
        if let Some(shown) = &mut self.shown {
            shown.insert(uid.clone());
            // A broker that has just started knows pods before it knows the rules. Until it does,
            // what the one before decided counts, and its sessions stay.
            let known = self.roster.get(&uid).map(|known| &known.workload);
            if undecided && known.is_some_and(|known| known.addresses == workload.addresses) {
                return Ok(());
            }
        }
        // A stream may show others than the one before it: those count until it is complete.
        let known = self.shown.as_ref().map_or(self.roster.len(), HashSet::len);
        if known > MOST {
            return Err(Malformed("more pods than a node has"));
        }
        let resident = Resident::new(Arc::new(workload), decided);
        self.roster.put(Arc::new(resident), touched);
        Ok(())
    }

    fn standing(&self, said: resident::Standing) -> Result<Standing, Malformed> {
        Ok(match said {
            resident::Standing::NoRole(_) => Standing::NoRole,
            resident::Standing::Undecided(_) => Standing::Undecided,
            resident::Standing::Denied(denial) => {
                let denial = Denial::from(denial);
                Standing::Denied {
                    body: format!("{denial}\n").into(),
                    denial,
                }
            }
            resident::Standing::Allowed(allowed) => {
                let lease = self.table.get(&allowed.session);
                let lease = lease.ok_or(Malformed("a session that was not introduced"))?;
                let role = lease.cell().key().role.clone();
                Standing::Allowed(Allowed {
                    since: self.clock.now(),
                    role,
                    listed: allowed.listed.into(),
                    rules: allowed.rules.into(),
                    audited: allowed.audited.into_iter().map(Denial::from).collect(),
                    lease: lease.clone(),
                })
            }
        })
    }
}

fn notice_message(notice: Notice) -> v1::Notice {
    let outcome = match notice.outcome {
        NoticeOutcome::Denied => notice::Outcome::Denied(v1::Nothing {}),
        NoticeOutcome::Audited => notice::Outcome::Audited(v1::Nothing {}),
        NoticeOutcome::Failing => notice::Outcome::Failing(v1::Nothing {}),
        NoticeOutcome::Served { access_key_id } => {
            notice::Outcome::Served(access_key_id.to_string())
        }
    };
    v1::Notice {
        pod_uid: notice.pod_uid.to_string(),
        outcome: Some(outcome),
    }
}

#[cfg(test)]
mod tests;
