//! What the agents of a run were sent, checked as it comes: which node a pod is of and which role
//! it may have follows from its number.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rolegate_proto::v1::{self, resident::Standing};

use crate::stand_ins::{Roles, role_of};

const PAUSE: Duration = Duration::from_millis(2);
/// Things that are wrong, of which no more are told.
const TOLD: usize = 5;

/// All agents' pictures.
#[derive(Debug)]
pub(crate) struct Board {
    roles: Roles,
    nodes: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pictures: HashMap<u32, Picture>,
    /// When a pod's credentials came to its agent first.
    delivered: HashMap<u32, Instant>,
    wrong: Vec<String>,
}

/// What one agent knows.
#[derive(Debug, Default)]
struct Picture {
    sessions: HashMap<u64, Session>,
    /// Pods by UID: number and session.
    pods: HashMap<String, (u32, u64)>,
    /// When all there was at the beginning of its stream had come.
    complete: Option<Instant>,
}

#[derive(Debug, Default)]
struct Session {
    role: String,
    has_credentials: bool,
}

impl Board {
    /// Pod `n` is to be on node `n % nodes`.
    pub(crate) fn new(nodes: u32, roles: Roles) -> Self {
        Self {
            roles,
            nodes,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent begins with another stream, on which all comes anew.
    pub(crate) fn begun(&self, node: u32) {
        self.state().pictures.remove(&node);
    }

    /// Takes an update, which must be about this node's pods and their roles only.
    pub(crate) fn update(&self, node: u32, update: v1::Update) {
        let now = Instant::now();
        let mut wrong = Vec::new();
        let mut state = self.state();
        let picture = state.pictures.entry(node).or_default();
        let mut introduced = HashSet::new();
        let mut fetched = HashSet::new();
        for session in update.sessions {
            let known = picture.sessions.entry(session.number).or_default();
            if let Some(key) = session.key {
                known.role = key.role;
                introduced.insert(session.number);
            }
            if session.credentials.is_some() && !known.has_credentials {
                known.has_credentials = true;
                fetched.insert(session.number);
            }
        }
        let mut delivered = Vec::new();
        for resident in update.residents {
            let number = resident.name.strip_prefix("pod-").map(str::parse::<u32>);
            let Some(Ok(number)) =
                number.filter(|it| it.as_ref().is_ok_and(|n| n % self.nodes == node))
            else {
                wrong.push(format!("node {node} was sent pod {}", resident.name));
                continue;
            };
            let Some(Standing::Allowed(allowed)) = resident.standing else {
                wrong.push(format!(
                    "pod {number} may have nothing: {:?}",
                    resident.standing
                ));
                continue;
            };
            let expected = role_of(number, &self.roles);
            match picture.sessions.get(&allowed.session) {
                Some(session) if session.role.rsplit('/').next() == Some(&*expected) => {
                    if session.has_credentials {
                        delivered.push(number);
                    }
                }
                other => wrong.push(format!("pod {number} was given {other:?} for {expected}")),
            }
            introduced.remove(&allowed.session);
            picture.pods.insert(resident.uid, (number, allowed.session));
        }
        if !introduced.is_empty() {
            wrong.push(format!(
                "node {node} was sent sessions of no pod of its own"
            ));
        }
        if !fetched.is_empty() {
            let pods = picture.pods.values();
            let fetched = pods.filter(|(_, session)| fetched.contains(session));
            delivered.extend(fetched.map(|(number, _)| *number));
        }
        for uid in update.gone {
            picture.pods.remove(&uid);
        }
        for number in update.ended {
            picture.sessions.remove(&number);
        }
        if update.complete {
            picture.complete = Some(now);
        }
        for number in delivered {
            state.delivered.entry(number).or_insert(now);
        }
        state.wrong.extend(wrong);
    }

    /// Something that must not be.
    pub(crate) fn wrong(&self, what: String) {
        self.state().wrong.push(what);
    }

    /// Fails where anything was wrong until now.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let state = self.state();
        let told: Vec<_> = state.wrong.iter().take(TOLD).map(String::as_str).collect();
        ensure!(told.is_empty(), "{}", told.join("; "));
        Ok(())
    }

    /// When the pods' credentials came; waits until all have.
    pub(crate) fn delivered(
        &self,
        pods: impl IntoIterator<Item = u32>,
        patience: Duration,
    ) -> anyhow::Result<Vec<Instant>> {
        let begun = Instant::now();
        let mut times = Vec::new();
        for pod in pods {
            times.push(loop {
                let delivered = self.state().delivered.get(&pod).copied();
                if let Some(time) = delivered {
                    break time;
                }
                self.check()?;
                if begun.elapsed() > patience {
                    bail!(
                        "pod {pod} has no credentials after {patience:?}, {} have",
                        times.len()
                    );
                }
                std::thread::sleep(PAUSE);
            });
        }
        self.check()?;
        Ok(times)
    }

    /// When each agent's stream was complete; waits until all are.
    pub(crate) fn complete(
        &self,
        nodes: impl IntoIterator<Item = u32>,
        patience: Duration,
    ) -> anyhow::Result<Vec<Instant>> {
        let begun = Instant::now();
        let mut times = Vec::new();
        for node in nodes {
            times.push(loop {
                let complete = self.state().pictures.get(&node).and_then(|it| it.complete);
                if let Some(time) = complete {
                    break time;
                }
                self.check()?;
                ensure!(
                    begun.elapsed() < patience,
                    "node {node} knows not all after {patience:?}"
                );
                std::thread::sleep(PAUSE);
            });
        }
        Ok(times)
    }

    /// Waits until the agents know these pods, with credentials, and no others.
    pub(crate) fn exactly(&self, pods: &HashSet<u32>, patience: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let differs = (0..self.nodes).find_map(|node| self.differs(node, pods));
            self.check()?;
            let Some(differs) = differs else {
                return Ok(());
            };
            if begun.elapsed() > patience {
                bail!("{differs} after {patience:?}");
            }
            std::thread::sleep(50 * PAUSE);
        }
    }

    fn differs(&self, node: u32, pods: &HashSet<u32>) -> Option<String> {
        let state = self.state();
        let Some(picture) = state.pictures.get(&node) else {
            return Some(format!("node {node} knows nothing"));
        };
        let known: HashSet<u32> = picture.pods.values().map(|(pod, _)| *pod).collect();
        let expected = pods.iter().filter(|pod| **pod % self.nodes == node);
        let missing = expected.clone().find(|pod| !known.contains(pod));
        if let Some(missing) = missing {
            return Some(format!("pod {missing} was never sent to node {node}"));
        }
        if known.len() != expected.count() {
            return Some(format!("node {node} knows pods that are gone"));
        }
        let lacks = picture.pods.values().find(|(_, session)| {
            let session = picture.sessions.get(session);
            session.is_none_or(|session| !session.has_credentials)
        });
        lacks.map(|(pod, _)| format!("pod {pod} has no credentials"))
    }
}

/// How long each took.
pub(crate) fn since(begun: Instant, times: &[Instant]) -> anyhow::Result<Duration> {
    let last = times.iter().max().context("nothing was waited for")?;
    Ok(last.saturating_duration_since(begun))
}
