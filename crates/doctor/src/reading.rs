//! A fact that was read, or the reason why it was not.

/// A fact, or the reason why it is unknown.
pub(crate) type Reading<T> = Result<T, Unread>;

/// The reason why a fact is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unread {
    /// The API server denies the request.
    #[error("not permitted to {verb} {what}")]
    Forbidden {
        /// The missing verb.
        verb: &'static str,
        /// The objects, with their group and namespace.
        what: String,
    },
    /// The API server does not have the kind.
    #[error("the API server does not have {0}")]
    NotInstalled(String),
    /// No response in time.
    #[error("no response in time for {0}")]
    TimedOut(String),
    /// The request failed.
    #[error("cannot read {what}: {why}")]
    Failed {
        /// The fact.
        what: String,
        /// The cause.
        why: String,
    },
    /// The fact cannot be read from here.
    #[error("{why}")]
    OutOfReach {
        /// The reason, as one sentence.
        why: String,
        /// Another way to read it.
        instead: String,
    },
    /// Another check covers the reason.
    #[error("{0}")]
    Depends(String),
}

impl Unread {
    /// Returns the way to read the fact.
    pub(crate) fn advice(&self) -> Option<String> {
        match self {
            Self::Forbidden { verb, what } => Some(format!(
                "run it as a user who may {verb} {what}, such as a cluster administrator (--as, --context)"
            )),
            Self::NotInstalled(_) => Some("kubectl apply -f deploy/crds.yaml".into()),
            Self::TimedOut(_) => Some("allow more time with --timeout".into()),
            Self::OutOfReach { instead, .. } => Some(instead.clone()),
            Self::Failed { .. } | Self::Depends(_) => None,
        }
    }
}

/// Lets checks end with `?` on a fact that they borrow.
impl From<&Unread> for Unread {
    fn from(unread: &Self) -> Self {
        unread.clone()
    }
}
