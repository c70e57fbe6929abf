//! The results of the demo's steps, for the terminal and as JSON.

use serde::Serialize;

/// A request and its response, without secrets.
#[derive(Debug, Serialize)]
pub(super) struct Exchange {
    /// The pod that sent it, as NAMESPACE/NAME.
    pub(super) pod: String,
    /// The command to type in the pod.
    #[serde(skip)]
    pub(super) typed: String,
    /// The command to type on this machine.
    pub(super) command: String,
    /// The status; `None` without a response.
    pub(super) status: Option<u16>,
    /// The first line of the response.
    pub(super) answer: String,
}

/// A step and its result.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    /// Its name, for scripts.
    pub(super) name: &'static str,
    /// The displayed title.
    pub(super) title: &'static str,
    /// The reason why it matters.
    pub(super) why: &'static str,
    /// True if it succeeded.
    pub(super) ok: bool,
    /// The reason for a failure.
    pub(super) fault: Option<String>,
    /// The relevant requests, in order.
    pub(super) exchanges: Vec<Exchange>,
    /// Events other than the requests.
    pub(super) notes: Vec<String>,
}

/// A command to try while the demo keeps running.
#[derive(Debug, Serialize)]
pub(super) struct Suggestion {
    /// Its effect.
    pub(super) what: &'static str,
    /// The command.
    pub(super) command: String,
}

/// The complete report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The route of pods to the agent: `loopback` or `namespaces`.
    pub(super) network: &'static str,
    /// True if every step succeeded.
    pub(super) ok: bool,
    /// The steps, in order.
    pub(super) steps: Vec<Step>,
    /// Suggested commands; empty with `--once`.
    #[serde(rename = "try")]
    pub(super) suggestions: Vec<Suggestion>,
}
