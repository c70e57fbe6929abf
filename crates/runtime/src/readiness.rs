//! Readiness as a type. Startup work holds a [`Block`], a component that can fail later holds a
//! [`Condition`], and everything pending can be listed by name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

/// The readiness of the process. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    blocks: BTreeMap<u64, String>,
    conditions: BTreeMap<&'static str, Health>,
}

/// The health of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Healthy.
    Ok,
    /// Works, but needs attention.
    Noted(String),
    /// Does not work.
    Failing(String),
}

/// Keeps the process unready while it exists.
#[derive(Debug)]
#[must_use = "the process is ready as soon as this is dropped"]
pub struct Block {
    readiness: Readiness,
    id: u64,
}

/// A component that can fail and recover while the process runs.
#[derive(Debug, Clone)]
pub struct Condition {
    readiness: Readiness,
    name: &'static str,
}

/// A snapshot of [`Readiness`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `true` if nothing blocks and nothing fails.
    pub ready: bool,
    /// Startup work in progress.
    pub waiting: Vec<String>,
    /// Failing conditions, by name.
    pub failing: BTreeMap<&'static str, String>,
    /// Conditions that need attention, by name.
    pub noted: BTreeMap<&'static str, String>,
    /// Healthy conditions.
    pub ok: Vec<&'static str>,
}

impl State {
    fn is_ready(&self) -> bool {
        self.blocks.is_empty()
            && !self
                .conditions
                .values()
                .any(|health| matches!(health, Health::Failing(_)))
    }
}

impl Readiness {
    /// Creates a readiness that is ready until something blocks or fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// Blocks readiness for `reason`, as in "pods not loaded yet", until the guard is dropped.
    pub fn block(&self, reason: impl Into<String>) -> Block {
        let mut id = 0;
        self.0.send_modify(|state| {
            id = state.next;
            state.next += 1;
            state.blocks.insert(id, reason.into());
        });
        Block {
            readiness: self.clone(),
            id,
        }
    }

    /// Returns the condition of this name. A new one starts as failing, since it is unknown.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.0.send_modify(|state| {
            state
                .conditions
                .entry(name)
                .or_insert_with(|| Health::Failing("not known yet".into()));
        });
        Condition {
            readiness: self.clone(),
            name,
        }
    }

    /// Returns `true` if nothing blocks and nothing fails.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready()
    }

    /// Waits until the process is ready.
    pub async fn ready(&self) {
        // An error would mean that the sender is gone, but `self` holds it.
        let _ = self.0.subscribe().wait_for(State::is_ready).await;
    }

    /// Returns a snapshot.
    pub fn report(&self) -> Report {
        let state = self.0.borrow();
        let mut report = Report {
            ready: state.is_ready(),
            waiting: state.blocks.values().cloned().collect(),
            failing: BTreeMap::new(),
            noted: BTreeMap::new(),
            ok: Vec::new(),
        };
        for (&name, health) in &state.conditions {
            match health {
                Health::Ok => report.ok.push(name),
                Health::Noted(note) => drop(report.noted.insert(name, note.clone())),
                Health::Failing(why) => drop(report.failing.insert(name, why.clone())),
            }
        }
        report
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.readiness
            .0
            .send_modify(|state| drop(state.blocks.remove(&self.id)));
    }
}

impl Condition {
    /// Sets the condition's health. Returns whether it changed, so that a lasting fault can be logged
    /// once.
    pub fn set(&self, health: Health) -> bool {
        self.readiness.0.send_if_modified(|state| {
            if state.conditions.get(self.name) == Some(&health) {
                return false;
            }
            state.conditions.insert(self.name, health);
            true
        })
    }

    /// Marks the condition as healthy.
    pub fn ok(&self) {
        self.set(Health::Ok);
    }

    /// Marks the condition as working, with a note that needs attention.
    pub fn note(&self, note: impl Into<String>) {
        self.set(Health::Noted(note.into()));
    }

    /// Marks the condition as failing, which makes the process unready.
    pub fn fail(&self, why: impl Into<String>) {
        self.set(Health::Failing(why.into()));
    }
}

impl Report {
    /// Formats the report as text: the result, then a line for each item that is not healthy, and
    /// with `verbose` for each that is.
    pub fn to_text(&self, verbose: bool) -> String {
        let mut text = String::from(if self.ready { "ready\n" } else { "not ready\n" });
        let mut line = |sign: char, name: &str, detail: &str| {
            let colon = if detail.is_empty() { "" } else { ": " };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "[{sign}] {name}{colon}{detail}");
        };
        for reason in &self.waiting {
            line('-', "waiting", reason);
        }
        for (name, why) in &self.failing {
            line('-', name, why);
        }
        for (name, note) in &self.noted {
            line('!', name, note);
        }
        if verbose {
            for name in &self.ok {
                line('+', name, "");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn ready_when_the_last_block_is_gone() {
        let readiness = Readiness::new();
        let pods = readiness.block("pods not loaded");
        let rules = readiness.block("rules not loaded");
        let mut ready = Box::pin(readiness.ready());
        assert!(ready.as_mut().now_or_never().is_none());
        assert_eq!(
            readiness.report().waiting,
            ["pods not loaded", "rules not loaded"]
        );
        drop(pods);
        assert!(!readiness.is_ready());
        drop(rules);
        assert!(ready.now_or_never().is_some());
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_condition_fails_until_known_and_again_later() {
        let readiness = Readiness::new();
        let redirect = readiness.condition("redirect");
        assert!(!readiness.is_ready(), "not known yet");
        redirect.ok();
        assert!(readiness.is_ready());
        redirect.note("someone else's rule comes first");
        assert!(readiness.is_ready());
        redirect.fail("rules are gone");
        assert!(!readiness.is_ready());
        drop(redirect);
        assert!(
            !readiness.is_ready(),
            "a task that ended doesn't make it well"
        );
        assert_eq!(readiness.condition("redirect").name, "redirect");
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_report_names_everything() {
        let readiness = Readiness::new();
        let _pods = readiness.block("pods not loaded");
        readiness.condition("redirect").fail("rules are gone");
        readiness.condition("sts").note("slow");
        readiness.condition("watch").ok();
        let report = readiness.report();
        assert_eq!(
            report.to_text(true),
            "not ready\n[-] waiting: pods not loaded\n[-] redirect: rules are gone\n[!] sts: slow\n[+] watch\n"
        );
        assert!(!report.to_text(false).contains("watch"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["ready"], false);
        assert_eq!(json["failing"]["redirect"], "rules are gone");
    }
}
