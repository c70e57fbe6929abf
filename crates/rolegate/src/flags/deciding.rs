//! The flags of a process that affect its decisions.

use rolegate_core::session_name::SessionScope;
use rolegate_inventory::in_force::Deciding;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::given_fields::GivenFields;
use crate::flags::rules::RuleFlags;

/// The flags of an agent or broker that affect its decisions.
#[derive(Debug, Clone)]
pub(crate) struct DecidingFlags {
    /// The flags about roles and rules.
    pub(crate) rules: RuleFlags,
    /// The annotation keys.
    pub(crate) keys: AnnotationFlags,
    /// The set of workloads that share a session.
    pub(crate) scope: SessionScope,
    /// The session duration requested from STS, in seconds.
    pub(crate) session_seconds: u32,
}

impl DecidingFlags {
    /// Validates the flags.
    ///
    /// # Errors
    /// Returns a usage error for an invalid flag.
    pub(crate) fn validated(&self) -> anyhow::Result<Deciding> {
        Ok(Deciding {
            flags: self.rules.config()?,
            cluster_config: self.rules.cluster_config.into(),
            scope: self.scope,
            session_seconds: self.session_seconds,
            keys: self.keys.keys()?,
        })
    }

    /// Merges two sources of flags. A flag that is `given` here overrides `lower`.
    pub(crate) fn over(self, lower: Self, given: &GivenFields) -> Self {
        Self {
            rules: self.rules.over(lower.rules, given),
            keys: self.keys.over(lower.keys, given),
            scope: given.pick("session_scope", self.scope, lower.scope),
            session_seconds: given.pick(
                "session_duration",
                self.session_seconds,
                lower.session_seconds,
            ),
        }
    }
}
