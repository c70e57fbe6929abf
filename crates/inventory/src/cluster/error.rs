//! Errors of reads.

use std::time::Duration;

use rolegate_kube::client::ClientError;

use super::MAX_OBJECTS;

/// The reason why a cluster cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A request takes too long.
    #[error("cannot read {what}: no response within {} ms", .timeout.as_millis())]
    TimedOut {
        /// The kind of objects, their namespace and cluster.
        what: String,
        /// The timeout.
        timeout: Duration,
    },
    /// The account may not read the objects.
    #[error("not permitted to read {0}")]
    Forbidden(String),
    /// The kind is not installed.
    #[error("cannot read {what}: {why}")]
    NotInstalled {
        /// The kind of objects, their namespace and cluster.
        what: String,
        /// The response.
        why: String,
    },
    /// A request fails for another reason.
    #[error("cannot read {what}: {why}")]
    Failed {
        /// The kind of objects, their namespace and cluster.
        what: String,
        /// The error.
        why: String,
    },
    /// There are more than `MAX_OBJECTS` objects of a kind.
    #[error("the cluster has more than {MAX_OBJECTS} {0}")]
    TooMany(String),
    /// An object does not exist.
    #[error("cannot find {kind} {name} in {place}")]
    NotFound {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The namespace and cluster.
        place: String,
    },
    /// An object cannot be serialized.
    #[error("cannot serialize an object")]
    Serialize(#[source] serde_json::Error),
    /// An object is not a map.
    #[error("an object is not a JSON map")]
    NotAMap,
}

/// The reason why one request failed.
pub(super) enum ReadError {
    Api(kube::Error),
    TimedOut(Duration),
}

impl ClusterError {
    /// Returns the error of a request for `what`.
    pub(super) fn of(what: String, error: &ReadError) -> Self {
        let error = match error {
            ReadError::Api(error) => error,
            ReadError::TimedOut(timeout) => {
                let timeout = *timeout;
                return Self::TimedOut { what, timeout };
            }
        };
        let why = || rolegate_kube::chain(error);
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden(what),
            kube::Error::Api(status) if status.code == 404 => {
                let why = why();
                Self::NotInstalled { what, why }
            }
            _ => {
                let why = why();
                Self::Failed { what, why }
            }
        }
    }
}
