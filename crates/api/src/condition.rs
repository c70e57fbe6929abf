//! The `Ready` condition in an object's status, as `kubectl wait` and the printer columns read it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition type.
const TYPE: &str = "Ready";
/// The status of an object that is in effect.
pub const READY: &str = "True";
/// The status of an object that is not in effect.
pub const NOT_READY: &str = "False";
/// Maximum size of a message, in bytes, as the Kubernetes API conventions set it.
const MAX_MESSAGE_BYTES: usize = 4096;

/// A condition (`metav1.Condition`).
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The condition type, always `Ready`.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    /// The status, `True` or `False`.
    #[schemars(length(max = 16))]
    pub status: String,
    /// The reason for the status, one word in CamelCase.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// A sentence that explains the status and how to correct it.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// The time of the last change of `status`.
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The object's generation that the condition describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The state of an object, from which its condition is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// True if the object is in effect.
    pub ready: bool,
    /// The reason for the status, one word in CamelCase.
    pub reason: &'static str,
    /// A sentence that explains the status and how to correct it.
    pub message: String,
    /// The object's generation that the status describes; `None` if unknown.
    pub generation: Option<i64>,
}

impl Status {
    /// Builds the condition. The transition time of `before` is kept unless the status itself
    /// changed; `now` is in RFC 3339.
    pub fn condition(&self, before: &[Condition], now: &str) -> Condition {
        let status = if self.ready { READY } else { NOT_READY };
        let same = before
            .iter()
            .find(|known| known.kind == TYPE && known.status == status);
        let message = self
            .message
            .get(..self.message.floor_char_boundary(MAX_MESSAGE_BYTES))
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
