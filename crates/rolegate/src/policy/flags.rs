//! Flags that several of the policy commands share: where rules come from, and how they are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::agents::AgentsAt;
use crate::flags::annotations::AnnotationFlags;
use crate::flags::deciding::DecidingFlags;
use crate::flags::given::Given;
use crate::flags::kubernetes::ReadingFlags;
use crate::flags::rules::RuleFlags;
use crate::flags::{SessionScopeFlag, duration, name, session_duration_seconds};

const SESSIONS: &str = "Sessions";

/// The rules' own flags, which apply without a `RolegateConfig`, and those about the cluster.
#[derive(Debug, Args)]
pub(crate) struct ReadFlags {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    #[command(flatten)]
    pub(crate) agents: AgentsAt,
    #[command(flatten)]
    decided: DecidedFlags,
}

/// Flags that all policy commands share, except those about the connection.
#[derive(Debug, Args)]
pub(crate) struct SharedFlags {
    #[command(flatten)]
    _agents: AgentsAt,
    #[command(flatten)]
    _decided: DecidedFlags,
}

/// The same flags for a command that does not read a cluster.
#[derive(Debug, Args)]
pub(super) struct LocalFlags {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    decided: DecidedFlags,
}

/// The flags of agents that affect decisions.
#[derive(Debug, Clone, Args)]
struct DecidedFlags {
    #[command(flatten)]
    rules: RuleFlags,
    /// Set of pods that share a session of a role, as set for the agents
    #[arg(long, value_name = "SCOPE", env = "ROLEGATE_SESSION_SCOPE", default_value = "workload", help_heading = SESSIONS)]
    session_scope: SessionScopeFlag,
    /// Session duration requested from STS, as set for the agents, unless a grant sets another
    #[arg(long, value_name = "TIME", env = "ROLEGATE_SESSION_DURATION", value_parser = duration, default_value = "1h", help_heading = SESSIONS)]
    session_duration: Duration,
    #[command(flatten)]
    annotations: AnnotationFlags,
}

/// The flags of this command.
#[derive(Debug, Clone)]
pub(crate) struct OwnFlags {
    /// Their values.
    pub(super) flags: DecidingFlags,
    /// The flags that were given.
    pub(super) given: Given,
}

#[cfg(test)]
impl OwnFlags {
    /// Parses flags as a command does.
    pub(super) fn parse(flags: &[&str]) -> Self {
        #[derive(Debug, clap::Parser)]
        struct Command {
            #[command(flatten)]
            read: ReadFlags,
        }
        let arguments = std::iter::once("test").chain(flags.iter().copied());
        let command = <Command as clap::Parser>::try_parse_from(arguments).unwrap();
        command.read.own().unwrap()
    }
}

impl ReadFlags {
    /// Validates the flags.
    ///
    /// # Errors
    /// Returns a usage error for an invalid flag.
    pub(crate) fn own(&self) -> anyhow::Result<OwnFlags> {
        self.decided.own(&self.given)
    }
}

impl LocalFlags {
    /// Validates the flags.
    ///
    /// # Errors
    /// Returns a usage error for an invalid flag.
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
            session_seconds: session_duration_seconds("--session-duration", self.session_duration)?,
        };
        flags.validated()?;
        Ok(OwnFlags {
            flags,
            given: given.clone(),
        })
    }
}

/// The pods that a command covers. The default is the whole cluster: a namespace that was omitted
/// by mistake would seem to have no findings.
#[derive(Debug, Args)]
pub(super) struct ScopeFlags {
    /// Limit the command to this namespace [default: all]
    #[arg(short, long, value_name = "NAME", value_parser = name, conflicts_with = "all_namespaces")]
    pub(super) namespace: Option<String>,
    /// Cover all namespaces, which is the default
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

/// Objects that are overlaid on those of the cluster.
#[derive(Debug, Args)]
pub(super) struct RulesFrom {
    /// File or directory with rules (namespaces, grants, configuration, ConfigMaps of policies, Rego modules) to overlay on the cluster's. Objects with the same kind and name are replaced, others are added. May be repeated
    #[arg(long, value_name = "PATH")]
    pub(super) rules: Vec<PathBuf>,
    /// Do not connect to a cluster: the files of --rules contain all rules
    #[arg(long, requires = "rules")]
    pub(super) offline: bool,
}
