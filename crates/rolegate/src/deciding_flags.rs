//! The flags of a process that shape its decisions.

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::cluster_config::ConfigUse;

use crate::annotation_flags::AnnotationFlags;
use crate::given_flags::Given;
use crate::rule_flags::RuleFlags;

/// The flags of an agent or a broker by which it decides.
#[derive(Debug, Clone)]
pub(crate) struct DecidingFlags {
    /// About roles and rules.
    pub(crate) rules: RuleFlags,
    /// The annotations' keys.
    pub(crate) keys: AnnotationFlags,
    /// Which workloads share a session.
    pub(crate) scope: SessionScope,
    /// The life asked of STS, seconds.
    pub(crate) session_seconds: u32,
}

/// The same, validated.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deciding {
    /// What counts where there is no RolegateConfig, and completes one.
    pub(crate) flags: RuleConfig,
    /// Whether a RolegateConfig counts.
    pub(crate) cluster_config: ConfigUse,
    /// Which workloads share a session.
    pub(crate) scope: SessionScope,
    /// The life asked of STS, seconds.
    pub(crate) session_seconds: u32,
    /// The annotations' keys.
    pub(crate) keys: AnnotationKeys,
}

impl DecidingFlags {
    /// Validates the flags.
    ///
    /// # Errors
    /// One that makes no sense, as wrong usage.
    pub(crate) fn validated(&self) -> anyhow::Result<Deciding> {
        Ok(Deciding {
            flags: self.rules.config()?,
            cluster_config: self.rules.cluster_config.into(),
            scope: self.scope,
            session_seconds: self.session_seconds,
            keys: self.keys.keys()?,
        })
    }

    /// These flags in the places where they were `given`, and `lower` in the others.
    pub(crate) fn over(self, lower: Self, given: &Given) -> Self {
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
