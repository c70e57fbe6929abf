//! Errors of API requests, as a message and as a kind that stays the same across retries.

use std::error::Error;
use std::time::Duration;

use kube::client::AuthError;
use kube::runtime::watcher;

/// The kinds of errors that are handled differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The connection failed or broke, or the response did not come from an API server.
    Unreachable,
    /// Authentication failed (401).
    Unauthorized,
    /// Authorization failed (403).
    Forbidden,
    /// The resource version is too old (410).
    Expired,
    /// The API server does not have the resource (404).
    NotFound,
    /// The API server does not support the request (400, 422).
    Unsupported,
    /// The response is not what was requested.
    Unreadable,
    /// Any other status.
    Refused(u16),
}

/// An error of a request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// `true` if events may have been lost, so that a new list is needed: a watch could not be
    /// resumed (the server may have been restored, or may reject that version for ever), or an
    /// event could not be parsed.
    pub(crate) gap: bool,
    detail: String,
}

impl Failure {
    pub(crate) fn of_watch(error: &watcher::Error) -> Self {
        use watcher::Error::{
            InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
        };
        // A malformed line surfaces as either error, after which the watch continues.
        let unreadable = matches!(
            error,
            WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_))
        );
        let gap = unreadable || matches!(error, WatchStartFailed(_) | NoResourceVersion);
        let (kind, detail) = match error {
            InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
                (Self::kind_of(error), chain(error))
            }
            WatchError(status) => (Self::kind_of_status(status.code), status.message.clone()),
            NoResourceVersion => (Kind::Unsupported, error.to_string()),
        };
        Self { kind, gap, detail }
    }

    pub(crate) fn of_call(error: &kube::Error) -> Self {
        Self {
            kind: Self::kind_of(error),
            gap: false,
            detail: chain(error),
        }
    }

    pub(crate) fn new(kind: Kind, detail: &str) -> Self {
        Self {
            kind,
            gap: false,
            detail: detail.into(),
        }
    }

    pub(crate) fn no_answer(within: Duration) -> Self {
        Self {
            kind: Kind::Unreachable,
            gap: false,
            detail: format!("no response within {within:?}"),
        }
    }

    fn kind_of(error: &kube::Error) -> Kind {
        match error {
            kube::Error::Api(status) => Self::kind_of_status(status.code),
            kube::Error::SerdeError(_) => Kind::Unreadable,
            _ => Kind::Unreachable,
        }
    }

    fn kind_of_status(code: u16) -> Kind {
        match code {
            401 => Kind::Unauthorized,
            403 => Kind::Forbidden,
            410 => Kind::Expired,
            404 => Kind::NotFound,
            400 | 422 => Kind::Unsupported,
            // The body was parsed as a status, but is not one.
            0 => Kind::Unreadable,
            code => Kind::Refused(code),
        }
    }

    /// Returns the error about `resource` with advice.
    pub(crate) fn sentence(&self, resource: &str) -> String {
        let detail = &self.detail;
        match self.kind {
            Kind::Unreachable => format!("the API server cannot be reached: {detail}"),
            Kind::Unauthorized => format!(
                "the API server rejects our token or certificate: {detail}; check the service \
                 account or the kubeconfig"
            ),
            Kind::Forbidden => format!(
                "the API server denies access to {resource}: {detail}; grant the ClusterRole of \
                 the manifest in deploy/"
            ),
            Kind::Expired => format!("the watch of {resource} is too old to resume: {detail}"),
            Kind::NotFound => format!("the API server has no {resource}: {detail}"),
            Kind::Unsupported => {
                format!("the API server does not support the request for {resource}: {detail}")
            }
            Kind::Unreadable => {
                format!("the API server's response for {resource} cannot be read: {detail}")
            }
            Kind::Refused(code) => format!("the API server responded {code}: {detail}"),
        }
    }
}

/// Returns the error with its chain of causes, each named once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let said = error.to_string();
        let plain = error.downcast_ref().and_then(plain);
        // The plain text includes its causes.
        next = if plain.is_some() {
            None
        } else {
            error.source()
        };
        let plain = plain.unwrap_or_else(|| said.clone());
        if text.is_empty() {
            text = plain;
        } else if text.contains(&said) {
            // The error's text includes its cause's, which is replaced by the plain text.
            text = text.replace(&said, &plain);
        } else if !text.contains(&plain) {
            text.push_str(": ");
            text.push_str(&plain);
        }
    }
    text
}

/// Returns a message for client errors whose `Display` prints Rust structures, or a program's whole
/// output, which may contain a token.
fn plain(error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) if status.message.is_empty() => {
            Some(format!("status {} {}", status.code, status.reason))
        }
        kube::Error::Api(status) => Some(status.message.clone()),
        kube::Error::Auth(AuthError::AuthExecStart(error)) => Some(format!(
            "the exec plugin of the kubeconfig cannot be run: {error}"
        )),
        kube::Error::Auth(AuthError::AuthExecRun { out, .. }) => Some(format!(
            "the exec plugin of the kubeconfig failed with {}",
            out.status
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use kube::core::Status;

    use super::*;

    #[test]
    fn api_errors_are_the_servers_message() {
        let status = Status {
            code: 403,
            message: "pods is forbidden".into(),
            reason: "Forbidden".into(),
            ..Status::default()
        };
        let error = kube::Error::Api(status.clone().boxed());
        assert_eq!(chain(&error), "pods is forbidden");
        let of_watch = watcher::Error::InitialListFailed(error);
        let text = chain(&of_watch);
        assert!(
            text.ends_with("pods is forbidden") && !text.contains("Status {"),
            "{text}"
        );
        let nameless = Status {
            message: String::new(),
            ..status
        };
        let error = kube::Error::Api(nameless.boxed());
        assert_eq!(chain(&error), "status 403 Forbidden");
    }

    #[test]
    fn causes_are_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read x: {0}")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::ErrorKind::NotFound.into());
        assert_eq!(chain(&error), "cannot read x: entity not found");
    }
}
