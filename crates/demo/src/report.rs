//! The results of the demo's steps, for the terminal and as JSON.

use serde::Serialize;

/// A request and its response, without secrets.
#[derive(Debug, Serialize)]
pub struct Exchange {
    /// The pod that sent it, as NAMESPACE/NAME.
    pub pod: String,
    /// The command to type in the pod.
    #[serde(skip)]
    pub typed: String,
    /// The command to type on this machine.
    pub command: String,
    /// The status; `None` without a response.
    pub status: Option<u16>,
    /// The first line of the response.
    pub answer: String,
}

/// A step and its result.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Its name, for scripts.
    pub name: &'static str,
    /// The displayed title.
    pub title: &'static str,
    /// The reason why it matters.
    pub why: &'static str,
    /// True if it succeeded.
    pub ok: bool,
    /// The reason for a failure.
    pub fault: Option<String>,
    /// The relevant requests, in order.
    pub exchanges: Vec<Exchange>,
    /// Events other than the requests.
    pub notes: Vec<String>,
}

/// A command to try while the demo keeps running.
#[derive(Debug, Serialize)]
pub struct Suggestion {
    /// Its effect.
    pub what: &'static str,
    /// The command.
    pub command: String,
}

/// The complete report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The route of pods to the agent: `loopback` or `namespaces`.
    pub network: &'static str,
    /// True if every step succeeded.
    pub ok: bool,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Suggested commands; empty with `--once`.
    #[serde(rename = "try")]
    pub suggestions: Vec<Suggestion>,
}
