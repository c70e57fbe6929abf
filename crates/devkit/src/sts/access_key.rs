//! An access key and its caller.

use std::fmt;

/// An access key that STS accepts.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The secret access key.
    pub secret_access_key: String,
    /// The session token, if the key is a temporary one.
    pub session_token: Option<String>,
    /// ARN of the caller with this key.
    pub caller_arn: String,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("caller_arn", &self.caller_arn)
            .finish_non_exhaustive()
    }
}
