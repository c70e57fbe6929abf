//! What an object's status says of it: one condition `Ready`, in the form that `kubectl wait` and
//! the printer columns read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of the one condition.
const TYPE: &str = "Ready";
/// Its status when all is well.
pub const READY: &str = "True";
/// Its status when it is not.
pub const NOT_READY: &str = "False";
/// The most bytes of a message, by the API's convention.
const LONGEST: usize = 4096;

/// A condition (`metav1.Condition`).
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Ready`.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    /// `True` or `False`.
    #[schemars(length(max = 16))]
    pub status: String,
    /// One word in CamelCase that says why.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// A sentence that says what to do.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// When `status` last changed.
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// How an object fares, for its condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether it counts.
    pub ready: bool,
    /// One word in CamelCase that says why.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
    /// The generation that this is about; `None` where it isn't known.
    pub generation: Option<i64>,
}

impl Status {
    /// The condition that says this. The time of the last change is kept from `before` where
    /// nothing but the words changed; `now` is RFC 3339.
    pub fn condition(&self, before: &[Condition], now: &str) -> Condition {
        let status = if self.ready { READY } else { NOT_READY };
        let same = before
            .iter()
            .find(|known| known.kind == TYPE && known.status == status);
        let message = self
            .message
            .get(..self.message.floor_char_boundary(LONGEST))
            .unwrap_or(&self.message);
        Condition {
            kind: TYPE.into(),
            status: status.into(),
            reason: self.reason.into(),
            message: message.into(),
            last_transition_time: same
                .map_or(now, |known| known.last_transition_time.as_str())
                .into(),
            observed_generation: self.generation,
        }
    }
}
