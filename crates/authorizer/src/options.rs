//! The options of a process that decides for running pods: a standalone agent or a broker.

use rolegate_core::annotation::{AnnotationKeys, EKS_PREFIX};
use rolegate_core::config::RuleConfig;
use rolegate_core::engine::EngineOptions;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_rules::{FollowOptions, Purpose};

/// The options of decisions and of the sessions that result from them.
#[derive(Debug, Clone)]
pub struct DecisionOptions {
    /// The annotation keys.
    pub annotations: AnnotationKeys,
    /// The rules set by flags. They apply unless the cluster has a configuration.
    pub rules: RuleConfig,
    /// The names of the rule flags and variables that were given.
    pub given: GivenRuleFlags,
    /// The use of the cluster's configuration.
    pub cluster_config: ConfigMode,
    /// True if decisions wait until a base ARN is known.
    pub base_required: bool,
    /// The set of workloads that share a session.
    pub scope: SessionScope,
    /// The session duration requested from STS, in seconds.
    pub session_seconds: u32,
    /// Limits of the session engine.
    pub engine: EngineOptions,
    /// True if pods also get the roles of their service accounts, for container credentials.
    pub service_account_roles: bool,
}

impl Default for DecisionOptions {
    /// The defaults of the flags.
    fn default() -> Self {
        Self {
            annotations: AnnotationKeys::default(),
            rules: RuleConfig::default(),
            given: GivenRuleFlags::default(),
            cluster_config: ConfigMode::Auto,
            base_required: false,
            scope: SessionScope::Workload,
            session_seconds: 3600,
            engine: EngineOptions::default(),
            service_account_roles: false,
        }
    }
}

impl DecisionOptions {
    /// Returns the rules to follow.
    pub fn follow(&self) -> FollowOptions {
        FollowOptions {
            flags: self.rules.clone(),
            given: self.given.clone(),
            cluster_config: self.cluster_config,
            keys: self.annotations.clone(),
            purpose: Purpose::Credentials {
                scope: self.scope,
                session_seconds: self.session_seconds,
            },
            service_accounts: self.service_account_roles.then(|| EKS_PREFIX.to_owned()),
        }
    }
}
