//! Flags that several of the policy commands share: where rules come from, and how they are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rolegate_policy::document::is_plain_name;

use super::agents::AgentsAt;
use crate::annotation_flags::AnnotationFlags;
use crate::deciding_flags::DecidingFlags;
use crate::flags::{SessionScopeFlag, duration, session_life};
use crate::given_flags::Given;
use crate::kubernetes_flags::ReadingFlags;
use crate::rule_flags::RuleFlags;

const SESSIONS: &str = "Sessions";

/// The rules' own flags, for where there is no RolegateConfig, and the cluster.
#[derive(Debug, Args)]
pub(super) struct ReadFlags {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    pub(super) reading: ReadingFlags,
    #[command(flatten)]
    pub(super) agents: AgentsAt,
    #[command(flatten)]
    decided: DecidedFlags,
}

/// Flags that all policy commands share beside those about the connection.
#[derive(Debug, Args)]
pub(crate) struct SharedFlags {
    #[command(flatten)]
    _agents: AgentsAt,
    #[command(flatten)]
    _decided: DecidedFlags,
}

/// The same for a command that reads no cluster.
#[derive(Debug, Args)]
pub(super) struct LocalFlags {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    decided: DecidedFlags,
}

/// Flags by which agents decide.
#[derive(Debug, Clone, Args)]
struct DecidedFlags {
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

/// The flags of this command.
#[derive(Debug, Clone)]
pub(super) struct OwnFlags {
    /// Their values.
    pub(super) flags: DecidingFlags,
    /// Which of them were given.
    pub(super) given: Given,
}

impl ReadFlags {
    /// Validates the flags.
    ///
    /// # Errors
    /// One that makes no sense, as wrong usage.
    pub(super) fn own(&self) -> anyhow::Result<OwnFlags> {
        self.decided.own(&self.given)
    }
}

impl LocalFlags {
    /// Validates the flags.
    ///
    /// # Errors
    /// One that makes no sense, as wrong usage.
    pub(super) fn own(&self) -> anyhow::Result<OwnFlags> {
        self.decided.own(&self.given)
    }
}

impl DecidedFlags {
    fn own(&self, given: &Given) -> anyhow::Result<OwnFlags> {
        let flags = DecidingFlags {
            rules: self.rules.clone(),
            keys: self.annotations.clone(),
            scope: self.session_scope.into(),
            session_seconds: session_life("--session-duration", self.session_duration)?,
        };
        flags.validated()?;
        Ok(OwnFlags {
            flags,
            given: given.clone(),
        })
    }
}

/// The pods that a command is about, where it is about the whole cluster by default: a part that was
/// left out by chance would look as if nothing were wrong with it.
#[derive(Debug, Args)]
pub(super) struct ScopeFlags {
    /// Look at this namespace alone [default: all]
    #[arg(short, long, value_name = "NAME", value_parser = name, conflicts_with = "all_namespaces")]
    pub(super) namespace: Option<String>,
    /// Look at all namespaces, which is the default
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// Objects that are laid over those of the cluster.
#[derive(Debug, Args)]
pub(super) struct RulesFrom {
    /// Rules (namespaces, grants, configuration, ConfigMaps of policies, modules of Rego) from this file or folder, laid over the cluster's: an object of the same kind and name is replaced, others are added; may be repeated
    #[arg(long, value_name = "PATH")]
    pub(super) rules: Vec<PathBuf>,
    /// Read nothing from a cluster: the files of --rules hold all rules
    #[arg(long, requires = "rules")]
    pub(super) offline: bool,
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
