//! Flags that several of the policy commands share: where rules come from, and how they are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_policy::document::is_plain_name;

use crate::annotation_flags::AnnotationFlags;
use crate::flags::{SessionScopeFlag, duration, session_life};
use crate::kubernetes_flags::KubernetesFlags;
use crate::rule_flags::RuleFlags;

const SESSIONS: &str = "Sessions";

/// The rules' own flags, for where there is no RolegateConfig, and the cluster.
#[derive(Debug, Args)]
pub(super) struct ReadFlags {
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    rules: RuleFlags,
    /// Which pods share a session of a role, as agents are told
    #[arg(long, value_name = "SCOPE", env = "ROLEGATE_SESSION_SCOPE", default_value = "workload", help_heading = SESSIONS)]
    session_scope: SessionScopeFlag,
    /// Life asked of STS, as agents are told, where no grant says another
    #[arg(long, value_name = "TIME", env = "ROLEGATE_SESSION_DURATION", value_parser = duration, default_value = "1h", help_heading = SESSIONS)]
    session_duration: Duration,
    #[command(flatten)]
    annotations: AnnotationFlags,
}

/// The flags, validated.
#[derive(Debug)]
pub(super) struct Reading {
    /// What counts where there is no RolegateConfig.
    pub(super) flags: RuleConfig,
    /// Whether flags say which layers are on.
    pub(super) say_modes: bool,
    /// Whether a RolegateConfig counts.
    pub(super) cluster_config: ConfigUse,
    /// Which workloads share a session.
    pub(super) scope: SessionScope,
    /// The life asked of STS, seconds.
    pub(super) session_seconds: u32,
    /// The annotations' keys.
    pub(super) keys: AnnotationKeys,
}

impl ReadFlags {
    /// How the cluster is reached.
    pub(super) fn client(&self) -> ClientOptions {
        self.kubernetes.client()
    }

    /// Validates the flags.
    ///
    /// # Errors
    /// One that makes no sense, as wrong usage.
    pub(super) fn reading(&self) -> anyhow::Result<Reading> {
        Ok(Reading {
            flags: self.rules.config()?,
            say_modes: self.rules.say_modes(),
            cluster_config: self.rules.cluster_config.into(),
            scope: self.session_scope.into(),
            session_seconds: session_life("--session-duration", self.session_duration)?,
            keys: self.annotations.keys()?,
        })
    }
}

/// Where objects come from.
#[derive(Debug, Args)]
pub(super) struct RulesFrom {
    /// Rules (namespaces, grants, configuration, ConfigMaps of policies, modules of Rego) from this file or folder instead of the cluster; may be repeated
    #[arg(long, value_name = "PATH")]
    pub(super) rules: Vec<PathBuf>,
}

/// The name of a namespace.
///
/// # Errors
/// A text that is none, for clap.
pub(super) fn name(text: &str) -> Result<String, String> {
    is_plain_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| "write a name of lower-case letters, digits, - and .".into())
}
