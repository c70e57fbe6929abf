//! The state that the agents of a run received, checked on arrival: a pod's number determines its
//! node and role.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use parking_lot::{Mutex, MutexGuard};
use rolegate_proto::v1::{self, pod::Authorization};

use crate::stand_ins::{Roles, role_of};

const PAUSE: Duration = Duration::from_millis(2);
/// Maximum number of reported errors.
const MAX_REPORTED: usize = 5;

/// The state of all agents.
#[derive(Debug)]
pub(crate) struct Observed {
    roles: Roles,
    nodes: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pictures: HashMap<u32, PodTable>,
    /// The time when a pod's credentials first arrived at its agent.
    delivered: HashMap<u32, Instant>,
    wrong: Vec<String>,
}

/// The state of one agent.
#[derive(Debug, Default)]
struct PodTable {
    sessions: HashMap<u64, Session>,
    /// Pods by UID: number and session.
    pods: HashMap<String, (u32, u64)>,
    /// The time when the initial state of its stream was complete.
    complete: Option<Instant>,
}

#[derive(Debug, Default)]
struct Session {
    role: String,
    has_credentials: bool,
}

impl Observed {
    /// Pod `n` belongs on node `n % nodes`.
    pub(crate) fn new(nodes: u32, roles: Roles) -> Self {
        Self {
            roles,
            nodes,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Records that the agent switched to another stream, which sends the complete state again.
    pub(crate) fn switched(&self, node: u32) {
        self.state().pictures.remove(&node);
    }

    /// Applies an update, which must only contain this node's pods and their roles.
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
        for entry in update.pods {
            let number = entry.name.strip_prefix("pod-").map(str::parse::<u32>);
            let Some(Ok(number)) =
                number.filter(|it| it.as_ref().is_ok_and(|n| n % self.nodes == node))
            else {
                wrong.push(format!("node {node} received pod {}", entry.name));
                continue;
            };
            let Some(Authorization::Allowed(allowed)) = entry.authorization else {
                wrong.push(format!(
                    "pod {number} has no role: {:?}",
                    entry.authorization
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
            picture.pods.insert(entry.uid, (number, allowed.session));
        }
        if !introduced.is_empty() {
            wrong.push(format!(
                "node {node} received sessions of other nodes' pods"
            ));
        }
        if !fetched.is_empty() {
            let pods = picture.pods.values();
            let fetched = pods.filter(|(_, session)| fetched.contains(session));
            delivered.extend(fetched.map(|(number, _)| *number));
        }
        for uid in update.removed_pod_uids {
            picture.pods.remove(&uid);
        }
        for number in update.removed_sessions {
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

    /// Records an error.
    pub(crate) fn wrong(&self, what: String) {
        self.state().wrong.push(what);
    }

    /// Fails if there was any error so far.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let state = self.state();
        let told: Vec<_> = state
            .wrong
            .iter()
            .take(MAX_REPORTED)
            .map(String::as_str)
            .collect();
        ensure!(told.is_empty(), "{}", told.join("; "));
        Ok(())
    }

    /// Waits until all of the pods' credentials have arrived, and returns the times.
    pub(crate) fn delivered(
        &self,
        pods: impl IntoIterator<Item = u32>,
        timeout: Duration,
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
                if begun.elapsed() > timeout {
                    bail!(
                        "pod {pod} has no credentials after {timeout:?}, {} have",
                        times.len()
                    );
                }
                std::thread::sleep(PAUSE);
            });
        }
        self.check()?;
        Ok(times)
    }

    /// Waits until each agent's stream is complete, and returns the times.
    pub(crate) fn complete(
        &self,
        nodes: impl IntoIterator<Item = u32>,
        timeout: Duration,
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
                    begun.elapsed() < timeout,
                    "node {node} is incomplete after {timeout:?}"
                );
                std::thread::sleep(PAUSE);
            });
        }
        Ok(times)
    }

    /// Waits until the agents have these pods, with credentials, and no others.
    pub(crate) fn exactly(&self, pods: &HashSet<u32>, timeout: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let differs = (0..self.nodes).find_map(|node| self.differs(node, pods));
            self.check()?;
            let Some(differs) = differs else {
                return Ok(());
            };
            if begun.elapsed() > timeout {
                bail!("{differs} after {timeout:?}");
            }
            std::thread::sleep(50 * PAUSE);
        }
    }

    fn differs(&self, node: u32, pods: &HashSet<u32>) -> Option<String> {
        let state = self.state();
        let Some(picture) = state.pictures.get(&node) else {
            return Some(format!("node {node} has no state"));
        };
        let known: HashSet<u32> = picture.pods.values().map(|(pod, _)| *pod).collect();
        let expected = pods.iter().filter(|pod| **pod % self.nodes == node);
        let missing = expected.clone().find(|pod| !known.contains(pod));
        if let Some(missing) = missing {
            return Some(format!("pod {missing} never arrived at node {node}"));
        }
        if known.len() != expected.count() {
            return Some(format!("node {node} has deleted pods"));
        }
        let lacks = picture.pods.values().find(|(_, session)| {
            let session = picture.sessions.get(session);
            session.is_none_or(|session| !session.has_credentials)
        });
        lacks.map(|(pod, _)| format!("pod {pod} has no credentials"))
    }
}

/// Returns the durations since the start.
pub(crate) fn since(begun: Instant, times: &[Instant]) -> anyhow::Result<Duration> {
    let last = times.iter().max().context("nothing was waited for")?;
    Ok(last.saturating_duration_since(begun))
}
