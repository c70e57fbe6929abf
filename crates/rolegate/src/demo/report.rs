//! What happened in the demo's steps, for the screen and as JSON.

use serde::Serialize;

/// A request and its answer, without secrets.
#[derive(Debug, Serialize)]
pub(super) struct Exchange {
    /// Who asked, NAMESPACE/NAME.
    pub(super) pod: String,
    /// The command as it is typed in the pod.
    #[serde(skip)]
    pub(super) typed: String,
    /// The command as it is typed on this machine.
    pub(super) command: String,
    /// The status; nothing where there was no answer.
    pub(super) status: Option<u16>,
    /// The answer's first line.
    pub(super) answer: String,
}

/// A step and how it went.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    /// Its name, for scripts.
    pub(super) name: &'static str,
    /// What is shown.
    pub(super) title: &'static str,
    /// Why it matters.
    pub(super) why: &'static str,
    /// Whether it went as it should.
    pub(super) ok: bool,
    /// If not, what was wrong.
    pub(super) fault: Option<String>,
    /// The requests that matter, in their order.
    pub(super) exchanges: Vec<Exchange>,
    /// What happened beside them.
    pub(super) notes: Vec<String>,
}

/// A command to try while the demo stays up.
#[derive(Debug, Serialize)]
pub(super) struct Suggestion {
    /// What it shows.
    pub(super) what: &'static str,
    /// The command.
    pub(super) command: String,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// How pods reach the agent: `loopback` or `namespaces`.
    pub(super) network: &'static str,
    /// Whether every step went as it should.
    pub(super) ok: bool,
    /// The steps, in their order.
    pub(super) steps: Vec<Step>,
    /// What may be tried now; nothing with `--once`.
    #[serde(rename = "try")]
    pub(super) suggestions: Vec<Suggestion>,
}
