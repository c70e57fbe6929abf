//! Which configuration of the rules is in force: a `RolegateConfig`, the flags of the processes that
//! decide, or those of this command; and what of it can't be known.

use std::fmt::Write;

use anyhow::bail;
use rolegate_core::rulebook::ClusterConfig;
use rolegate_kube::cluster_config::{ConfigUse, INSTALLATION};
use rolegate_policy::basis::Source;
use serde_json::Value;

use super::agents::{AgentFlags, Agents};
use super::flags::OwnFlags;
use crate::deciding_flags::Deciding;
use crate::flags::invalid;

/// Flags that don't count beside a configuration.
pub(super) const OF_CONFIG: &[&str] = &[
    "layer",
    "namespace_restrictions",
    "namespace_restriction_format",
    "namespace_restrictions_default",
    "policy_namespaces",
    "policy_label",
    "replicate",
];
/// Flags that complete a configuration, with its fields.
const COMPLETING: &[(&str, &str)] = &[
    ("base_role_arn", "/spec/baseRoleArn"),
    ("default_role", "/spec/defaultRole"),
];
/// Flags about rules that count in any case.
const ALWAYS: &[&str] = &[
    "own_role",
    "cluster_config",
    "iam_role_key",
    "iam_external_id",
    "namespace_key",
];
/// Flags about sessions, on which no verdict depends.
const OF_SESSIONS: &[&str] = &["session_scope", "session_duration"];
/// Flags that say where agents are.
const OF_AGENTS: &[&str] = &["agent_namespace", "agent_daemonset", "broker_deployment"];

/// Where the configuration of the rules may come from, beside the objects.
#[derive(Debug, Clone)]
pub(super) struct FlagSources {
    /// This command.
    pub(super) own: OwnFlags,
    /// The processes that decide in the cluster; `None` where no cluster was asked.
    pub(super) agents: Option<Agents>,
    /// Whether the layers that documents hold rules of are enforced where nothing says which are on.
    pub(super) guesses: bool,
}

/// A `RolegateConfig`, and its file and line where it is from a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlacedConfig<'a> {
    pub(super) object: &'a Value,
    pub(super) place: Option<&'a str>,
}

/// Whether there has to be a `RolegateConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ConfigNeed {
    /// Flags count without one.
    #[default]
    None,
    /// Its kind is installed in the cluster.
    KindInstalled,
    /// It was there, and a change takes it away.
    Removed,
}

/// The configuration in force, beside a `RolegateConfig` among the objects.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    /// The flags that count.
    pub(super) deciding: Deciding,
    /// What it means that there is no `RolegateConfig`.
    pub(super) without_config: ClusterConfig,
    /// Where it comes from.
    pub(super) source: Source,
    /// Flags of this command that count beside or instead of it.
    pub(super) flags: Vec<String>,
    /// Flags of this command that don't count, with the reason.
    pub(super) idle: Vec<(String, &'static str)>,
    /// What is not known, a sentence each.
    pub(super) unknown: Vec<String>,
}

/// The state of the `RolegateConfig`.
#[derive(Debug, Clone, Copy)]
enum State<'a> {
    /// It counts.
    Counts(PlacedConfig<'a>),
    /// It is not there and must be: everything is refused.
    Missing(ConfigNeed),
    /// Flags count.
    Flags,
}

impl State<'_> {
    /// Why a flag does not count; `None` where it does.
    fn overrides(self, flag: &str) -> Option<&'static str> {
        const SAID: &str = "the RolegateConfig says it";
        let of_config = OF_CONFIG.contains(&flag);
        let completes = COMPLETING.iter().find(|(name, _)| *name == flag);
        match self {
            Self::Flags => None,
            Self::Missing(_) => {
                let of_rules = of_config || completes.is_some();
                of_rules.then_some("the RolegateConfig is missing, so everything is refused")
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
    /// The flags of agents and of this command together, whether they count or not.
    ///
    /// # Errors
    /// Flags that make no sense together.
    pub(super) fn deciding(&self) -> anyhow::Result<Deciding> {
        let own = self.own.flags.clone();
        match self.known() {
            Some(agents) => own.over(agents.flags.clone(), &self.own.given).validated(),
            None => own.validated(),
        }
    }

    fn known(&self) -> Option<&AgentFlags> {
        match &self.agents {
            Some(Agents::Known(flags)) => Some(flags),
            Some(Agents::Unknown(_)) | None => None,
        }
    }

    /// Whether this command's flags say which layers are on, or that they count as they are.
    fn says_layers(&self) -> bool {
        let mut flags = ["layer", "namespace_restrictions", "cluster_config"].iter();
        flags.any(|flag| self.own.given.has(flag))
    }

    /// What is in force beside the `config` of the objects.
    ///
    /// # Errors
    /// What is in force can't be known; the sentence says how to tell it.
    pub(super) fn in_force(
        &self,
        config: Option<PlacedConfig<'_>>,
        need: ConfigNeed,
    ) -> anyhow::Result<InForce> {
        let deciding = self.deciding()?;
        let state = match (deciding.cluster_config, config) {
            (ConfigUse::Auto | ConfigUse::Required, Some(config)) => State::Counts(config),
            (ConfigUse::Auto, None) if need == ConfigNeed::None => State::Flags,
            (ConfigUse::Auto | ConfigUse::Required, None) => State::Missing(need),
            (ConfigUse::Off, _) => State::Flags,
        };
        let mut unknown = self.unknown(state)?;
        let is_auto = deciding.cluster_config == ConfigUse::Auto;
        if is_auto && matches!(state, State::Missing(ConfigNeed::KindInstalled)) {
            unknown.push(format!(
                "agents that ran before the custom resource RolegateConfig was installed decide by their \
                 flags for up to {} minutes after it, until there is an object",
                INSTALLATION.as_secs() / 60
            ));
        }
        let given = |flag: &&&str| self.own.given.has(flag);
        let completing = COMPLETING.iter().map(|(flag, _)| flag);
        let of_rules = OF_CONFIG.iter().chain(ALWAYS).chain(completing);
        let of_rules = of_rules.chain(OF_SESSIONS);
        let (mut flags, mut idle) = (Vec::new(), Vec::new());
        for flag in of_rules.filter(given) {
            match state.overrides(flag) {
                Some(why) => idle.push((dashed(flag), why)),
                None => flags.push(dashed(flag)),
            }
        }
        if self.agents.is_none() {
            let at = OF_AGENTS.iter().filter(given);
            idle.extend(at.map(|flag| (dashed(flag), "no cluster is asked")));
        }
        let is_alone = self.known().is_some_and(|agents| {
            let mut workloads = agents.workloads.iter();
            workloads.all(|workload| workload.kind == "DaemonSet")
        });
        if is_alone && self.own.given.has("broker_deployment") {
            idle.push((dashed("broker_deployment"), "the agents have no broker"));
        }
        let source = self.source(state);
        if source == Source::Flags {
            flags.clear();
        }
        Ok(InForce {
            deciding,
            without_config: match state {
                State::Missing(_) => ClusterConfig::Missing,
                State::Counts(_) | State::Flags => ClusterConfig::NotUsed,
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
                let generation = config.object.pointer("/metadata/generation");
                let generation = generation.and_then(Value::as_i64);
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

    /// What is not known of the flags, where verdicts don't hang on it.
    fn unknown(&self, state: State<'_>) -> anyhow::Result<Vec<String>> {
        // Of a change that takes it away it is known as well how agents take the RolegateConfig.
        let counts = matches!(
            state,
            State::Counts(_) | State::Missing(ConfigNeed::Removed)
        );
        match &self.agents {
            None if counts || matches!(state, State::Missing(_)) => Ok(Vec::new()),
            None if self.says_layers() || self.guesses => Ok(Vec::new()),
            None => bail!(
                "there is no RolegateConfig among the rules, so it is not known which layers are on: \
                 give the RolegateConfig with --rules, or the flags of the agents (--layer, \
                 --namespace-restrictions, --base-role-arn and the like)"
            ),
            Some(Agents::Unknown(why)) if counts => Ok(vec![format!(
                "flags of the agents that count beside the RolegateConfig, such as --own-role, \
                 --iam-role-key and --cluster-config=off: {why}"
            )]),
            Some(Agents::Unknown(_)) if self.says_layers() => Ok(Vec::new()),
            Some(Agents::Unknown(why)) => bail!(
                "without a RolegateConfig the answer depends on the flags of the agents, which are not \
                 known: {why}. Give the agents' flags here (--layer, --namespace-restrictions, \
                 --base-role-arn and the like; --layer=namespace=off where they have none), or create a \
                 RolegateConfig (`rolegate policy adopt` writes one from flags)"
            ),
            Some(Agents::Known(agents)) => self.unknown_of(agents, state),
        }
    }

    fn unknown_of(&self, agents: &AgentFlags, state: State<'_>) -> anyhow::Result<Vec<String>> {
        let mut sentences = agents.doubts.clone();
        for one in &agents.unknown {
            let (id, flag, from) = (one.id.as_str(), &one.flag, &one.from);
            let is_of_rules = OF_CONFIG.contains(&id)
                || ALWAYS.contains(&id)
                || COMPLETING.iter().any(|(name, _)| *name == id);
            let is_of_sessions = OF_SESSIONS.contains(&id) || id == "iam_role_session_ttl";
            if state.overrides(id).is_some() || (self.own.given.has(id) && id != "own_role") {
                continue;
            }
            if is_of_sessions || id == "base_role_arn" {
                sentences.push(format!("{flag} of the agents, which comes from {from}"));
            } else if is_of_rules {
                let mut names = String::new();
                for workload in &agents.workloads {
                    write!(names, "{workload}, ")?;
                }
                bail!(
                    "{names}{flag}: its value comes from {from}, which is not read. {}, or create a \
                     RolegateConfig",
                    match id {
                        "own_role" => "Write it into the pod template".to_owned(),
                        _ => format!("Give {flag} here"),
                    }
                );
            }
        }
        Ok(sentences)
    }
}

/// A flag by the name of its field.
fn dashed(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}

/// Refuses flags that don't count anywhere: `idle` are those of each configuration that is judged by.
///
/// # Errors
/// The flags, as wrong usage.
pub(super) fn refuse_idle(idle: &[&[(String, &'static str)]]) -> anyhow::Result<()> {
    let Some((first, others)) = idle.split_first() else {
        return Ok(());
    };
    let mut everywhere = first.iter().filter(|(flag, _)| {
        let mut others = others.iter();
        others.all(|other| other.iter().any(|(name, _)| name == flag))
    });
    match everywhere.next() {
        None => Ok(()),
        Some((flag, why)) => Err(invalid(format!(
            "{flag} does not count here ({why}): leave it out"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::super::flags::ReadFlags;
    use super::*;
    use crate::container_flags::UnknownFlag;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        read: ReadFlags,
    }

    fn own(flags: &[&str]) -> OwnFlags {
        let arguments = std::iter::once("test").chain(flags.iter().copied());
        Flags::try_parse_from(arguments)
            .unwrap()
            .read
            .own()
            .unwrap()
    }

    fn known(flags: &[&str], unknown: &[&str]) -> Agents {
        Agents::Known(Box::new(AgentFlags {
            flags: own(flags).flags,
            unknown: unknown
                .iter()
                .map(|id| UnknownFlag {
                    id: (*id).to_owned(),
                    flag: dashed(id),
                    from: "Secret x".into(),
                })
                .collect(),
            workloads: Vec::new(),
            doubts: Vec::new(),
        }))
    }

    fn sources(own_flags: &[&str], agents: Option<Agents>) -> FlagSources {
        FlagSources {
            own: own(own_flags),
            agents,
            guesses: false,
        }
    }

    const BASE: &str = "--base-role-arn=arn:aws:iam::123456789012:role/";

    #[test]
    fn flags_of_the_agents_count_where_there_is_no_config() {
        let agents = known(&[BASE, "--namespace-restrictions", "--own-role=node"], &[]);
        let more = ["--own-role=other", "--layer=grants=audit"];
        let found = sources(&more, Some(agents.clone()))
            .in_force(None, ConfigNeed::None)
            .unwrap();
        let config = &found.deciding.flags;
        assert_eq!(config.modes.namespace.as_str(), "enforce");
        assert_eq!(config.modes.grants.as_str(), "audit");
        assert_eq!((config.base.is_some(), config.own_roles.len()), (true, 2));
        assert_eq!(found.flags, ["--layer", "--own-role"]);
        assert!(matches!(found.source, Source::Workloads { .. }));
        // Where the kind is installed and the object is not, agents refuse everything.
        let found = sources(&[], Some(agents.clone()))
            .in_force(None, ConfigNeed::KindInstalled)
            .unwrap();
        assert_eq!(found.source, Source::Missing);
        assert!(found.unknown[0].contains("for up to 10 minutes"));
        // Unless they pass over it.
        let off = known(&["--cluster-config=off", "--layer=rego=audit"], &[]);
        let object = json!({"spec": {}});
        let config = PlacedConfig {
            object: &object,
            place: None,
        };
        let found = sources(&[], Some(off))
            .in_force(Some(config), ConfigNeed::KindInstalled)
            .unwrap();
        assert_eq!(found.deciding.flags.modes.rego.as_str(), "audit");
        assert!(matches!(found.source, Source::Workloads { .. }));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let lost = || Some(Agents::Unknown("it is lost".into()));
        let error = sources(&[BASE], lost())
            .in_force(None, ConfigNeed::None)
            .unwrap_err();
        assert!(error.to_string().contains("it is lost"), "{error}");
        assert!(!error.is::<crate::flags::Invalid>());
        let told = sources(&["--layer=namespace=off"], lost())
            .in_force(None, ConfigNeed::None)
            .unwrap();
        assert_eq!(told.source, Source::Flags);
        let object = json!({"spec": {}, "metadata": {"generation": 4}});
        let config = PlacedConfig {
            object: &object,
            place: None,
        };
        let beside = sources(&[], lost())
            .in_force(Some(config), ConfigNeed::KindInstalled)
            .unwrap();
        assert!(beside.unknown[0].contains("it is lost"), "{beside:?}");
        assert!(beside.source.to_string().ends_with("generation 4"));
        let error = sources(&[BASE], None)
            .in_force(None, ConfigNeed::None)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("give the RolegateConfig with --rules")
        );
        // A flag whose value is elsewhere matters where it counts.
        for (id, config, is_fine) in [
            ("default_role", None, false),
            (
                "default_role",
                Some(json!({"spec": {"defaultRole": "x"}})),
                true,
            ),
            ("default_role", Some(json!({"spec": {}})), false),
            ("layer", None, false),
            ("layer", Some(json!({"spec": {}})), true),
            ("own_role", Some(json!({"spec": {}})), false),
            ("iam_role_key", Some(json!({"spec": {}})), false),
            ("base_role_arn", None, true),
            ("session_duration", None, true),
            ("host_ip", None, true),
        ] {
            let config = config.as_ref();
            let config = config.map(|object| PlacedConfig {
                object,
                place: None,
            });
            let found = sources(&[], Some(known(&[], &[id]))).in_force(config, ConfigNeed::None);
            assert_eq!(found.is_ok(), is_fine, "{id} {config:?}");
        }
        let told = sources(&["--default-role=x"], Some(known(&[], &["default_role"])));
        assert!(told.in_force(None, ConfigNeed::None).is_ok());
    }

    #[test]
    fn flags_that_do_not_count_are_wrong_usage() {
        let object = json!({"spec": {"baseRoleArn": "arn:aws:iam::123456789012:role/"}});
        let config = PlacedConfig {
            object: &object,
            place: Some("a.yaml:1"),
        };
        for (flag, is_fine) in [
            (BASE, false),
            ("--default-role=x", true),
            ("--layer=grants=audit", false),
            ("--namespace-restrictions", false),
            ("--namespace-restrictions-default=allow", false),
            ("--namespace-restriction-format=regexp", false),
            ("--policy-label=", false),
            ("--policy-namespaces=x", false),
            ("--replicate=v1/services", false),
            ("--own-role=x", true),
            ("--session-scope=pod", true),
            ("--agent-namespace=x", false),
        ] {
            let beside = sources(&[flag], None)
                .in_force(Some(config), ConfigNeed::KindInstalled)
                .unwrap();
            let error = refuse_idle(&[&beside.idle]);
            assert_eq!(error.is_ok(), is_fine, "{flag}");
            if let Err(error) = error {
                assert!(error.is::<crate::flags::Invalid>(), "{flag}");
                // What counts for one of both configurations counts.
                assert!(refuse_idle(&[&[], &beside.idle]).is_ok(), "{flag}");
                assert!(
                    refuse_idle(&[&beside.idle, &beside.idle]).is_err(),
                    "{flag}"
                );
            }
        }
    }
}
