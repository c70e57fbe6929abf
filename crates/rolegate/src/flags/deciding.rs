//! The flags of a process that affect its decisions.

use rolegate_authorizer::options::DecisionOptions;
use rolegate_core::engine::EngineOptions;
use rolegate_core::session_name::SessionScope;
use rolegate_inventory::in_force::Deciding;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::given::Given;
use crate::flags::given_fields::GivenFields;
use crate::flags::invalid;
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

    /// Returns the options of an agent or broker that decides by these flags.
    ///
    /// # Errors
    /// Returns a usage error for an invalid flag, and if a base ARN is both given and required to be
    /// discovered.
    pub(crate) fn options(
        &self,
        given: &Given,
        auto_discover_base_arn: bool,
        engine: EngineOptions,
    ) -> anyhow::Result<DecisionOptions> {
        let rules = self.rules.config()?;
        if auto_discover_base_arn && rules.base.is_some() {
            return Err(invalid(
                "--auto-discover-base-arn and --base-role-arn: give only one of them",
            ));
        }
        Ok(DecisionOptions {
            annotations: self.keys.keys()?,
            rules,
            given: given.rules().clone(),
            cluster_config: self.rules.cluster_config.into(),
            base_required: auto_discover_base_arn,
            scope: self.scope,
            session_seconds: self.session_seconds,
            engine,
            service_account_roles: false,
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
