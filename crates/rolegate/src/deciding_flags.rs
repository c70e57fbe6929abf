//! The flags of a process that shape its decisions, and which of a command's flags were given.

use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::cluster_config::ConfigUse;

use crate::annotation_flags::AnnotationFlags;
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

/// The flags of a command, by the name of their field, that the command line or the environment
/// gives, and not their default. As a field it must stand before the flags it is asked about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given(BTreeSet<String>);

impl Given {
    /// Whether a flag was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.0.contains(flag)
    }

    /// The flag's value where it was given, and otherwise the lower one.
    pub(crate) fn pick<T>(&self, flag: &str, value: T, lower: T) -> T {
        if self.has(flag) { value } else { lower }
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let ids = matches.ids().map(|id| id.as_str());
        let given = ids.filter(|id| {
            let source = matches.value_source(id);
            source.is_some_and(|source| source != ValueSource::DefaultValue)
        });
        Ok(Self(given.map(str::to_owned).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
