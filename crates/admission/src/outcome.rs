//! What comes out of the gate, and the answer that the API server is given.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::review::{API_VERSION, KIND, Review};
use crate::text::{cut, shown};

/// Most faults that are kept of one review.
const MAX_FAULTS: usize = 64;
/// Most bytes of a denial's message.
const MAX_MESSAGE: usize = 4096;
/// Most characters of a path and of a rule.
const MAX_NAME: usize = 300;
/// Most characters of a reason.
const MAX_REASON: usize = 1200;
/// The API server cuts each warning here, and drops them all where they are longer than 4,096
/// bytes together.
const MAX_WARNING: usize = 256;
/// Most warnings in an answer.
const MAX_WARNINGS: usize = 15;

/// One thing that is refused, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where in the object, such as `spec.template.metadata.annotations[iam.amazonaws.com/role]`;
    /// empty for the object as a whole.
    pub path: String,
    /// Who refuses: a layer of the rules, `request` for what is malformed, `own-role`, `rules`, or
    /// `guard` for what the gate itself protects.
    pub layer: &'static str,
    /// The rule in that layer.
    pub rule: String,
    /// One sentence or two: what is refused, and what would be allowed or whom to ask.
    pub reason: String,
}

impl Fault {
    /// A fault with texts made fit for messages.
    pub fn new(path: &str, layer: &'static str, rule: &str, reason: &str) -> Self {
        Self {
            path: shown(path, MAX_NAME),
            layer,
            rule: shown(rule, MAX_NAME),
            reason: shown(reason, MAX_REASON),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(
            f,
            "{} (layer {}, rule {})",
            self.reason, self.layer, self.rule
        )
    }
}

/// What has not been seen yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unseen {
    /// A namespace.
    Namespace(Arc<str>),
    /// Rules, as a sentence says.
    Rules(&'static str),
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => {
                let name = shown(name, MAX_NAME);
                write!(f, "namespace {name} is not known to rolegate yet")
            }
            Self::Rules(sentence) => f.write_str(sentence),
        }
    }
}

/// What was made of a review.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// What is refused; nothing means that the request is let through.
    pub faults: Vec<Fault>,
    /// What layers in audit mode would have refused.
    pub warnings: Vec<Fault>,
    /// What has not been seen yet, without which there is no verdict: judge again when it is there.
    pub undecided: Option<Unseen>,
    /// How many policies were asked.
    pub asked: usize,
}

impl Outcome {
    /// Whether the request is let through.
    pub fn is_allowed(&self) -> bool {
        self.faults.is_empty() && self.undecided.is_none()
    }

    /// Whether as much is refused as is told: what else there is changes nothing.
    pub(crate) fn is_full(&self) -> bool {
        self.faults.len() == MAX_FAULTS
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        keep(&mut self.faults, fault);
    }

    pub(crate) fn warning(&mut self, fault: Fault) {
        keep(&mut self.warnings, fault);
    }

    /// What a denial says; empty where nothing is refused.
    pub fn message(&self) -> String {
        let faults: Vec<_> = self.faults.iter().map(ToString::to_string).collect();
        let mut message = match faults.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            many => {
                let numbered = many.iter().enumerate();
                let numbered = numbered.map(|(place, fault)| format!("({}) {fault}", place + 1));
                let numbered: Vec<_> = numbered.collect();
                format!("{} faults: {}", many.len(), numbered.join("; "))
            }
        };
        if let (true, Some(unseen)) = (faults.is_empty(), &self.undecided) {
            message = format!("{unseen}: try again in a moment");
        }
        cut(message, MAX_MESSAGE)
    }

    /// What the API server passes on to the user as warnings.
    pub fn warning_texts(&self) -> Vec<String> {
        let texts = self.warnings.iter().take(MAX_WARNINGS);
        texts
            .map(|warning| cut(format!("rolegate would refuse {warning}"), MAX_WARNING))
            .collect()
    }

    /// The answer: an AdmissionReview as JSON.
    pub fn answer(&self, review: &Review<'_>) -> Vec<u8> {
        let allowed = self.is_allowed();
        let status = (!allowed).then(|| {
            // Who has to wait may try again, who is refused need not.
            if self.faults.is_empty() {
                status(503, "ServiceUnavailable", self.message())
            } else {
                status(403, "Forbidden", self.message())
            }
        });
        answer(review.uid(), allowed, status, self.warning_texts())
    }
}

fn keep(all: &mut Vec<Fault>, fault: Fault) {
    if all.len() < MAX_FAULTS && !all.contains(&fault) {
        all.push(fault);
    }
}

/// A denial of the request `uid` by a sentence, for what could not be judged.
pub fn refusal(uid: &str, sentence: &str) -> Vec<u8> {
    let message = shown(sentence, MAX_REASON);
    let status = status(403, "Forbidden", message);
    answer(uid, false, Some(status), Vec::new())
}

fn status(code: u16, reason: &'static str, message: String) -> Status {
    Status {
        status: "Failure",
        code,
        reason,
        message,
    }
}

fn answer(uid: &str, allowed: bool, status: Option<Status>, warnings: Vec<String>) -> Vec<u8> {
    let answer = Answer {
        api_version: API_VERSION,
        kind: KIND,
        response: Response {
            uid,
            allowed,
            status,
            warnings,
        },
    };
    // Structures of texts and numbers can always be written.
    serde_json::to_vec(&answer).unwrap_or_default()
}

/// An AdmissionReview that answers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
}
