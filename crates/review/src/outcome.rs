//! The outcome of a review and the response to the API server.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rolegate_core::decision::{DenialSource, NotSynced};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::text::{bounded, cut};
use serde::{Serialize, Serializer};

use crate::admission_review::{KIND, Review, ReviewVersion};

/// Maximum number of violations kept of one review.
const MAX_VIOLATIONS: usize = 64;
/// Maximum size of a denial's message, in bytes.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Maximum number of characters of a path and of a rule.
const MAX_NAME_CHARS: usize = 300;
/// Maximum number of characters of a reason.
const MAX_REASON_CHARS: usize = 1200;
/// Maximum size of a warning, in bytes. The API server truncates each warning to this, and drops
/// all if they have more than 4,096 bytes together.
const MAX_WARNING_BYTES: usize = 256;
/// Maximum number of warnings in a response.
const MAX_WARNINGS: usize = 15;

/// The source of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ViolationSource {
    /// The decision about a requested role: a layer, or a check that precedes all layers.
    Decision(DenialSource),
    /// A check that protects objects and fields that decisions rely on, such as rules and statuses.
    ProtectedObject,
    /// The check that a pod has the credentials of its service account.
    Injection,
}

impl ViolationSource {
    /// A malformed object or request.
    pub const REQUEST: Self = Self::Decision(DenialSource::Request);
    /// Missing or invalid rules.
    pub const RULES: Self = Self::Decision(DenialSource::MissingRules);

    /// Returns the name of the source in messages and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decision(source) => source.as_str(),
            Self::ProtectedObject => "guard",
            Self::Injection => "injection",
        }
    }
}

impl From<DenialSource> for ViolationSource {
    fn from(source: DenialSource) -> Self {
        Self::Decision(source)
    }
}

impl From<LayerId> for ViolationSource {
    fn from(layer: LayerId) -> Self {
        Self::Decision(layer.into())
    }
}

impl Serialize for ViolationSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for ViolationSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A violation of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field path, such as `spec.template.metadata.annotations[iam.amazonaws.com/role]`. Empty
    /// for the object as a whole.
    pub path: String,
    /// The source of the denial.
    pub denied_by: ViolationSource,
    /// The rule within the source.
    pub rule: String,
    /// The reason in one or two sentences: the denied part, and what is allowed or who can help.
    pub reason: String,
}

impl Violation {
    /// Creates a violation with its texts escaped and bounded.
    pub fn new(
        path: &str,
        denied_by: impl Into<ViolationSource>,
        rule: &str,
        reason: &str,
    ) -> Self {
        Self {
            path: bounded(path, MAX_NAME_CHARS),
            denied_by: denied_by.into(),
            rule: bounded(rule, MAX_NAME_CHARS),
            reason: bounded(reason, MAX_REASON_CHARS),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(
            f,
            "{} (layer {}, rule {})",
            self.reason, self.denied_by, self.rule
        )
    }
}

/// The reason that a review cannot be decided yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undecided {
    /// The namespace has not synced.
    Namespace(Arc<str>),
    /// A part of the rules has not synced.
    Rules(NotSynced),
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => {
                let name = bounded(name, MAX_NAME_CHARS);
                write!(f, "namespace {name} is not known to rolegate yet")
            }
            Self::Rules(part) => f.write_str(part.as_str()),
        }
    }
}

/// The outcome of a review.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Violations of enforced rules. The request is allowed without violations.
    pub violations: Vec<Violation>,
    /// Violations of layers in audit mode.
    pub warnings: Vec<Violation>,
    /// The reason that the review cannot be decided yet. It must be evaluated again later.
    pub undecided: Option<Undecided>,
    /// The number of policies that were evaluated.
    pub asked: usize,
}

impl Outcome {
    /// Returns `true` if the request is allowed.
    pub fn is_allowed(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_none()
    }

    /// Returns `true` if the maximum number of violations is reached, so that more would change
    /// nothing.
    pub(crate) fn is_full(&self) -> bool {
        self.violations.len() == MAX_VIOLATIONS
    }

    pub(crate) fn violation(&mut self, violation: Violation) {
        keep(&mut self.violations, violation);
    }

    pub(crate) fn warning(&mut self, violation: Violation) {
        keep(&mut self.warnings, violation);
    }

    /// Adds a violation of a check outside of the layers: a denial or a warning, by its mode.
    pub fn add(&mut self, mode: Mode, violation: Violation) {
        match mode {
            Mode::Enforce => self.violation(violation),
            Mode::Audit => self.warning(violation),
            Mode::Off => {}
        }
    }

    /// Returns the message of a denial. Empty if the request is allowed.
    pub fn message(&self) -> String {
        let violations: Vec<_> = self.violations.iter().map(ToString::to_string).collect();
        let mut message = match violations.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            many => {
                let numbered: Vec<_> = many
                    .iter()
                    .enumerate()
                    .map(|(place, violation)| format!("({}) {violation}", place + 1))
                    .collect();
                format!("{} faults: {}", many.len(), numbered.join("; "))
            }
        };
        if let (true, Some(not_synced)) = (violations.is_empty(), &self.undecided) {
            message = format!("{not_synced}: try again in a moment");
        }
        cut(message, MAX_MESSAGE_BYTES)
    }

    /// Returns the warnings that the API server passes to the user.
    pub fn warning_texts(&self) -> Vec<String> {
        let texts = self.warnings.iter().take(MAX_WARNINGS);
        texts
            .map(|warning| cut(format!("rolegate would deny {warning}"), MAX_WARNING_BYTES))
            .collect()
    }

    /// Returns the response: an AdmissionReview as JSON.
    pub fn answer(&self, review: &Review<'_>) -> Vec<u8> {
        let allowed = self.is_allowed();
        let status = (!allowed).then(|| {
            // A client that has to wait should retry; a denied one need not.
            if self.violations.is_empty() {
                status(503, "ServiceUnavailable", self.message())
            } else {
                status(403, "Forbidden", self.message())
            }
        });
        let response = Response {
            status,
            warnings: self.warning_texts(),
            ..Response::new(review.uid(), allowed)
        };
        response.encode(review.version())
    }
}

fn keep(all: &mut Vec<Violation>, violation: Violation) {
    if all.len() < MAX_VIOLATIONS && !all.contains(&violation) {
        all.push(violation);
    }
}

/// Returns a denial of the request `uid` with a message, for a request that cannot be evaluated.
pub fn refusal((version, uid): (ReviewVersion, &str), sentence: &str) -> Vec<u8> {
    let message = bounded(sentence, MAX_REASON_CHARS);
    let response = Response {
        status: Some(status(403, "Forbidden", message)),
        ..Response::new(uid, false)
    };
    response.encode(version)
}

/// Returns a response that allows the request, with a JSON patch and warnings.
pub(crate) fn patched(review: &Review<'_>, patch: Option<&[u8]>, warnings: &[String]) -> Vec<u8> {
    let warnings = warnings.iter().take(MAX_WARNINGS);
    let response = Response {
        warnings: warnings
            .map(|warning| cut(format!("rolegate: {warning}"), MAX_WARNING_BYTES))
            .collect(),
        patch_type: patch.map(|_| "JSONPatch"),
        patch: patch.map(|patch| STANDARD.encode(patch)),
        ..Response::new(review.uid(), true)
    };
    response.encode(review.version())
}

fn status(code: u16, reason: &'static str, message: String) -> Status {
    Status {
        status: "Failure",
        code,
        reason,
        message,
    }
}

/// An AdmissionReview with a response.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
}

impl<'a> Response<'a> {
    fn new(uid: &'a str, allowed: bool) -> Self {
        Self {
            uid,
            allowed,
            status: None,
            warnings: Vec::new(),
            patch_type: None,
            patch: None,
        }
    }

    fn encode(self, version: ReviewVersion) -> Vec<u8> {
        let answer = Answer {
            api_version: version.as_str(),
            kind: KIND,
            response: self,
        };
        // Serialization of strings and numbers cannot fail.
        serde_json::to_vec(&answer).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
}

#[cfg(test)]
mod tests {
    use rolegate_core::text::{UNSAFE_EXAMPLES, is_unsafe};

    use super::*;

    #[test]
    fn threat_25_no_unsafe_character_reaches_the_user() {
        for c in UNSAFE_EXAMPLES {
            let hostile = format!("a{c}b");
            let violation = Violation::new(&hostile, LayerId::Grants, &hostile, &hostile);
            let outcome = Outcome {
                violations: vec![violation.clone()],
                warnings: vec![violation],
                ..Outcome::default()
            };
            let texts = outcome.warning_texts();
            for text in texts.iter().chain([&outcome.message()]) {
                assert!(!text.contains(is_unsafe), "{c:?}: {text:?}");
            }
            let not_synced = Undecided::Namespace(hostile.into()).to_string();
            assert!(!not_synced.contains(is_unsafe), "{c:?}: {not_synced:?}");
        }
    }

    #[test]
    fn a_fault_is_kept_once_and_only_so_many_are() {
        let fault = |number: usize| {
            Violation::new(&format!("at {number}"), LayerId::Grants, "rule", "reason")
        };
        let mut outcome = Outcome::default();
        for _ in 0..2 {
            outcome.violation(fault(0));
            outcome.warning(fault(0));
        }
        assert_eq!((outcome.violations.len(), outcome.warnings.len()), (1, 1));
        for number in 0..=MAX_VIOLATIONS {
            assert_eq!(outcome.is_full(), number == MAX_VIOLATIONS);
            outcome.violation(fault(number));
        }
        assert_eq!(outcome.violations.len(), MAX_VIOLATIONS);
    }
}
