//! The configuration of the rules that is in force: a `RolegateConfig`, the flags of the processes
//! that decide, or those of this command; and the parts of it that are unknown.

use std::collections::BTreeSet;
use std::fmt::Write;

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::rule_set_builder::ClusterConfig;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::cluster_config::{ConfigMode, INSTALL_GRACE_PERIOD};
use serde_json::Value;

use crate::basis::{Source, WorkloadRef};

/// Flags that a `RolegateConfig` overrides.
pub const OF_CONFIG: &[&str] = &[
    "layer",
    "namespace_restrictions",
    "namespace_restriction_format",
    "namespace_restrictions_default",
    "policy_namespaces",
    "policy_label",
    "replicate",
];
/// Flags that complete a `RolegateConfig`, with its fields.
const COMPLETING: &[(&str, &str)] = &[
    ("base_role_arn", "/spec/baseRoleArn"),
    ("default_role", "/spec/defaultRole"),
];
/// Flags about rules that always apply.
const ALWAYS: &[&str] = &[
    "reserved_role",
    "cluster_config",
    "iam_role_key",
    "iam_external_id",
    "namespace_key",
];
/// Flags about sessions, which do not affect verdicts.
const OF_SESSIONS: &[&str] = &["session_scope", "session_duration"];
/// Flags about the location of agents.
const OF_AGENTS: &[&str] = &["agent_namespace", "agent_daemonset", "broker_deployment"];

/// The flags of a process that affect its decisions.
#[derive(Debug, Clone, PartialEq)]
pub struct Deciding {
    /// The rules that apply without a `RolegateConfig` and complete one that exists.
    pub flags: RuleConfig,
    /// The use of a `RolegateConfig`.
    pub cluster_config: ConfigMode,
    /// The set of workloads that share a session.
    pub scope: SessionScope,
    /// The session duration requested from STS, in seconds.
    pub session_seconds: u32,
    /// The annotation keys.
    pub keys: AnnotationKeys,
}

/// A flag whose value is from another object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnknownFlag {
    /// The name of its field.
    pub id: String,
    /// The flag, with its dashes.
    pub flag: String,
    /// The source of its value.
    pub from: String,
}

/// The processes that decide in a cluster, if their flags are known.
#[derive(Debug, Clone)]
pub enum Agents {
    /// The flags are known.
    Known(AgentFlags),
    /// The flags are unknown, for the given reason.
    Unknown(String),
}

/// The origin of the flags of the processes that decide, and what is unknown of them.
#[derive(Debug, Clone)]
pub struct AgentFlags {
    /// The flags whose values are from other objects.
    pub unknown: Vec<UnknownFlag>,
    /// The workloads with these flags.
    pub workloads: Vec<WorkloadRef>,
    /// Sentences about reasons to doubt the flags.
    pub doubts: Vec<String>,
}

/// The sources of the rules' configuration other than the objects.
#[derive(Debug, Clone)]
pub struct FlagSources {
    /// The flags of this command and, where it does not set them, of the processes that decide.
    pub deciding: Deciding,
    /// The flags that were given to this command, by the names of their fields.
    pub given: BTreeSet<String>,
    /// The processes that decide in the cluster; `None` if no cluster was read.
    pub agents: Option<Agents>,
    /// True if, when nothing sets the modes of layers, the layers that the read files contain rules
    /// for are assumed to be enforced. Otherwise this is [`InForceError::NoConfig`].
    pub guesses: bool,
}

/// The reason why the configuration in force is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InForceError {
    /// The configuration and the flags do not name the enabled layers.
    #[error("the rules do not contain a RolegateConfig, so the enabled layers are unknown")]
    NoConfig,
    /// The flags of the agents apply and are unknown.
    #[error(
        "without a RolegateConfig the answer depends on the flags of the agents, which are \
         unknown: {0}"
    )]
    UnknownAgents(String),
    /// The value of one flag of the agents applies and is unknown.
    #[error("{workloads}{}: its value comes from {}, which this command does not read", .flag.flag, .flag.from)]
    UnknownFlag {
        /// The workloads that set the flag, each followed by a comma and a blank.
        workloads: String,
        /// The flag.
        flag: UnknownFlag,
    },
}

/// A `RolegateConfig`, with its file and line if it is from a file.
#[derive(Debug, Clone, Copy)]
pub struct PlacedConfig<'a> {
    /// The object.
    pub object: &'a Value,
    /// The file and line.
    pub place: Option<&'a str>,
}

/// The reason why a `RolegateConfig` is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConfigNeed {
    /// It is optional: flags apply without one.
    #[default]
    None,
    /// Its kind is installed in the cluster.
    KindInstalled,
    /// It existed, and a change removes it.
    Removed,
}

/// The configuration in force, apart from a `RolegateConfig` among the objects.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The flags that apply.
    pub deciding: Deciding,
    /// The effect of a missing `RolegateConfig`.
    pub without_config: ClusterConfig,
    /// The source of the configuration.
    pub source: Source,
    /// Flags of this command that apply in addition to it or instead of it.
    pub flags: Vec<String>,
    /// Flags of this command without effect, with the reason.
    pub idle: Vec<(String, &'static str)>,
    /// A sentence for each unknown part.
    pub unknown: Vec<String>,
}

/// The state of the `RolegateConfig`.
#[derive(Debug, Clone, Copy)]
enum State<'a> {
    /// It exists and applies.
    Counts(PlacedConfig<'a>),
    /// It is required but missing: everything is denied.
    Missing(ConfigNeed),
    /// Flags apply.
    Flags,
}

impl State<'_> {
    /// Returns the reason why a flag has no effect, or `None` if it applies.
    fn overrides(self, flag: &str) -> Option<&'static str> {
        const SAID: &str = "the RolegateConfig sets it";
        let of_config = OF_CONFIG.contains(&flag);
        let completes = COMPLETING.iter().find(|(name, _)| *name == flag);
        match self {
            Self::Flags => None,
            Self::Missing(_) => {
                let of_rules = of_config || completes.is_some();
                of_rules.then_some("the RolegateConfig is missing, so everything is denied")
            }
            Self::Counts(_) if of_config => Some(SAID),
            Self::Counts(config) => {
                let field = completes.and_then(|(_, field)| config.object.pointer(field));
                field.is_some_and(|value| !value.is_null()).then_some(SAID)
            }
        }
    }
}

impl FlagSources {
    fn known(&self) -> Option<&AgentFlags> {
        match &self.agents {
            Some(Agents::Known(flags)) => Some(flags),
            Some(Agents::Unknown(_)) | None => None,
        }
    }

    /// Returns true if this command's flags determine the layers' modes: they set a mode, or set
    /// the use of the `RolegateConfig`.
    fn says_layers(&self) -> bool {
        let mut flags = ["layer", "namespace_restrictions", "cluster_config"].iter();
        flags.any(|flag| self.given.contains(*flag))
    }

    /// Returns the configuration in force in addition to the `config` among the objects.
    ///
    /// # Errors
    /// Returns an [`InForceError`] if the configuration in force is unknown.
    pub fn in_force(
        &self,
        config: Option<PlacedConfig<'_>>,
        need: ConfigNeed,
    ) -> Result<InForce, InForceError> {
        let deciding = self.deciding.clone();
        let state = match (deciding.cluster_config, config) {
            (ConfigMode::Auto | ConfigMode::Required, Some(config)) => State::Counts(config),
            (ConfigMode::Auto, None) if need == ConfigNeed::None => State::Flags,
            (ConfigMode::Auto | ConfigMode::Required, None) => State::Missing(need),
            (ConfigMode::Off, _) => State::Flags,
        };
        let mut unknown = self.unknown(state)?;
        let is_auto = deciding.cluster_config == ConfigMode::Auto;
        if is_auto && matches!(state, State::Missing(ConfigNeed::KindInstalled)) {
            unknown.push(format!(
                "agents that ran before the custom resource RolegateConfig was installed decide by their \
                 flags for up to {} minutes after it, until there is an object",
                INSTALL_GRACE_PERIOD.as_secs() / 60
            ));
        }
        let given = |flag: &&&str| self.given.contains(**flag);
        let completing = COMPLETING.iter().map(|(flag, _)| flag);
        let of_rules = OF_CONFIG
            .iter()
            .chain(ALWAYS)
            .chain(completing)
            .chain(OF_SESSIONS);
        let (mut flags, mut idle) = (Vec::new(), Vec::new());
        for flag in of_rules.filter(given) {
            match state.overrides(flag) {
                Some(why) => idle.push((dashed(flag), why)),
                None => flags.push(dashed(flag)),
            }
        }
        if self.agents.is_none() {
            let at = OF_AGENTS.iter().filter(given);
            idle.extend(at.map(|flag| (dashed(flag), "no cluster is read")));
        }
        let is_alone = self.known().is_some_and(|agents| {
            let mut workloads = agents.workloads.iter();
            workloads.all(|workload| workload.kind == "DaemonSet")
        });
        if is_alone && self.given.contains("broker_deployment") {
            idle.push((
                dashed("broker_deployment"),
                "the agents do not use a broker",
            ));
        }
        let source = self.source(state);
        if source == Source::Flags {
            flags.clear();
        }
        Ok(InForce {
            deciding,
            without_config: match state {
                State::Missing(_) => ClusterConfig::Missing,
                State::Counts(_) | State::Flags => ClusterConfig::Unused,
            },
            source,
            flags,
            idle,
            unknown,
        })
    }

    fn source(&self, state: State<'_>) -> Source {
        match (state, self.known()) {
            (State::Counts(config), _) => {
                let generation = config
                    .object
                    .pointer("/metadata/generation")
                    .and_then(Value::as_i64);
                Source::RolegateConfig {
                    generation: generation.filter(|_| config.place.is_none()),
                    file: config.place.map(str::to_owned),
                }
            }
            (State::Missing(_), _) => Source::Missing,
            (State::Flags, Some(agents)) => Source::Workloads {
                workloads: agents.workloads.clone(),
            },
            (State::Flags, None) if self.says_layers() => Source::Flags,
            (State::Flags, None) => Source::Assumed,
        }
    }

    /// Returns sentences about unknown flags that do not affect verdicts.
    fn unknown(&self, state: State<'_>) -> Result<Vec<String>, InForceError> {
        // A change that removes the `RolegateConfig` must also know how agents treat its absence.
        let counts = matches!(
            state,
            State::Counts(_) | State::Missing(ConfigNeed::Removed)
        );
        match &self.agents {
            None if counts || matches!(state, State::Missing(_)) => Ok(Vec::new()),
            None if self.says_layers() || self.guesses => Ok(Vec::new()),
            None => Err(InForceError::NoConfig),
            Some(Agents::Unknown(why)) if counts => Ok(vec![format!(
                "flags of the agents that apply in addition to the RolegateConfig, such as --reserved-role, \
                 --iam-role-key and --cluster-config=off: {why}"
            )]),
            Some(Agents::Unknown(_)) if self.says_layers() => Ok(Vec::new()),
            Some(Agents::Unknown(why)) => Err(InForceError::UnknownAgents(why.clone())),
            Some(Agents::Known(agents)) => self.unknown_of(agents, state),
        }
    }

    fn unknown_of(
        &self,
        agents: &AgentFlags,
        state: State<'_>,
    ) -> Result<Vec<String>, InForceError> {
        let mut sentences = agents.doubts.clone();
        for one in &agents.unknown {
            let (id, flag, from) = (one.id.as_str(), &one.flag, &one.from);
            let is_of_rules = OF_CONFIG.contains(&id)
                || ALWAYS.contains(&id)
                || COMPLETING.iter().any(|(name, _)| *name == id);
            let is_of_sessions = OF_SESSIONS.contains(&id) || id == "iam_role_session_ttl";
            if state.overrides(id).is_some() || (self.given.contains(id) && id != "reserved_role") {
                continue;
            }
            if is_of_sessions || id == "base_role_arn" {
                sentences.push(format!(
                    "{flag} of the agents, whose value comes from {from}"
                ));
            } else if is_of_rules {
                let mut workloads = String::new();
                for workload in &agents.workloads {
                    // Writing into a String cannot fail.
                    let _ = write!(workloads, "{workload}, ");
                }
                let flag = one.clone();
                return Err(InForceError::UnknownFlag { workloads, flag });
            }
        }
        Ok(sentences)
    }
}

/// Returns a flag by the name of its field.
fn dashed(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}
