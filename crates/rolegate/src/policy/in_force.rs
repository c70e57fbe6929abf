//! The configuration of the rules that is in force: a `RolegateConfig`, the flags of the processes
//! that decide, or those of this command; and the parts of it that are unknown.

use std::fmt::Write;

use anyhow::bail;
use rolegate_core::rule_set_builder::ClusterConfig;
use rolegate_kube::cluster_config::{ConfigMode, INSTALL_GRACE_PERIOD};
use rolegate_policy::basis::Source;
use serde_json::Value;

use super::agents::{AgentFlags, Agents};
use super::flags::OwnFlags;
use crate::deciding_flags::Deciding;
use crate::flags::invalid;

/// Flags that a `RolegateConfig` overrides.
pub(super) const OF_CONFIG: &[&str] = &[
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

/// The sources of the rules' configuration other than the objects.
#[derive(Debug, Clone)]
pub(super) struct FlagSources {
    /// This command.
    pub(super) own: OwnFlags,
    /// The processes that decide in the cluster; `None` if no cluster was read.
    pub(super) agents: Option<Agents>,
    /// True if layers that documents contain rules of are enforced when nothing sets their mode.
    pub(super) guesses: bool,
}

/// A `RolegateConfig`, with its file and line if it is from a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlacedConfig<'a> {
    pub(super) object: &'a Value,
    pub(super) place: Option<&'a str>,
}

/// The reason why a `RolegateConfig` is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ConfigNeed {
    /// It is optional: flags apply without one.
    #[default]
    None,
    /// Its kind is installed in the cluster.
    KindInstalled,
    /// It existed, and a change removes it.
    Removed,
}

impl ConfigNeed {
    /// Returns the need of a cluster, by whether the kind of a RolegateConfig is installed.
    pub(super) fn of_cluster(has_kind: bool) -> Self {
        if has_kind {
            Self::KindInstalled
        } else {
            Self::None
        }
    }
}

/// The configuration in force, apart from a `RolegateConfig` among the objects.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    /// The flags that apply.
    pub(super) deciding: Deciding,
    /// The effect of a missing `RolegateConfig`.
    pub(super) without_config: ClusterConfig,
    /// The source of the configuration.
    pub(super) source: Source,
    /// Flags of this command that apply in addition to it or instead of it.
    pub(super) flags: Vec<String>,
    /// Flags of this command without effect, with the reason.
    pub(super) idle: Vec<(String, &'static str)>,
    /// A sentence for each unknown part.
    pub(super) unknown: Vec<String>,
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
    /// Returns the flags of agents and of this command together, whether they apply or not.
    ///
    /// # Errors
    /// Returns a usage error for flags that contradict each other.
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

    /// Returns whether this command's flags set the layers' modes, or declare them complete.
    fn says_layers(&self) -> bool {
        let mut flags = ["layer", "namespace_restrictions", "cluster_config"].iter();
        flags.any(|flag| self.own.given.has(flag))
    }

    /// Returns the configuration in force in addition to the `config` among the objects.
    ///
    /// # Errors
    /// Returns an error if the configuration in force is unknown. The message names the flags that
    /// would set it.
    pub(super) fn in_force(
        &self,
        config: Option<PlacedConfig<'_>>,
        need: ConfigNeed,
    ) -> anyhow::Result<InForce> {
        let deciding = self.deciding()?;
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
            idle.extend(at.map(|flag| (dashed(flag), "no cluster is read")));
        }
        let is_alone = self.known().is_some_and(|agents| {
            let mut workloads = agents.workloads.iter();
            workloads.all(|workload| workload.kind == "DaemonSet")
        });
        if is_alone && self.own.given.has("broker_deployment") {
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

    /// Returns sentences about unknown flags that do not affect verdicts.
    fn unknown(&self, state: State<'_>) -> anyhow::Result<Vec<String>> {
        // A change that removes the `RolegateConfig` must also know how agents treat its absence.
        let counts = matches!(
            state,
            State::Counts(_) | State::Missing(ConfigNeed::Removed)
        );
        match &self.agents {
            None if counts || matches!(state, State::Missing(_)) => Ok(Vec::new()),
            None if self.says_layers() || self.guesses => Ok(Vec::new()),
            None => bail!(
                "the rules do not contain a RolegateConfig, so the enabled layers are unknown: \
                 add the RolegateConfig to --rules, or set the flags of the agents (--layer, \
                 --namespace-restrictions, --base-role-arn and the like)"
            ),
            Some(Agents::Unknown(why)) if counts => Ok(vec![format!(
                "flags of the agents that apply in addition to the RolegateConfig, such as --reserved-role, \
                 --iam-role-key and --cluster-config=off: {why}"
            )]),
            Some(Agents::Unknown(_)) if self.says_layers() => Ok(Vec::new()),
            Some(Agents::Unknown(why)) => bail!(
                "without a RolegateConfig the answer depends on the flags of the agents, which are \
                 unknown: {why}. Set the agents' flags here (--layer, --namespace-restrictions, \
                 --base-role-arn and the like; --layer=namespace=off if they have none), or create a \
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
            if state.overrides(id).is_some() || (self.own.given.has(id) && id != "reserved_role") {
                continue;
            }
            if is_of_sessions || id == "base_role_arn" {
                sentences.push(format!(
                    "{flag} of the agents, whose value comes from {from}"
                ));
            } else if is_of_rules {
                let mut names = String::new();
                for workload in &agents.workloads {
                    write!(names, "{workload}, ")?;
                }
                bail!(
                    "{names}{flag}: its value comes from {from}, which this command does not read. {}, or create a \
                     RolegateConfig",
                    match id {
                        "reserved_role" => "Write it into the pod template".to_owned(),
                        _ => format!("Give {flag} here"),
                    }
                );
            }
        }
        Ok(sentences)
    }
}

/// Returns a flag by the name of its field.
fn dashed(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}

/// Rejects flags without any effect: `idle` are those of each configuration in use.
///
/// # Errors
/// Returns the flags as a usage error.
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
            "{flag} has no effect here ({why}): omit it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use rolegate_core::layer::LayerId;
    use serde_json::json;

    use super::*;
    use crate::container_flags::UnknownFlag;

    fn known(flags: &[&str], unknown: &[&str]) -> Agents {
        Agents::Known(Box::new(AgentFlags {
            flags: OwnFlags::parse(flags).flags,
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
            own: OwnFlags::parse(own_flags),
            agents,
            guesses: false,
        }
    }

    const BASE: &str = "--base-role-arn=arn:aws:iam::123456789012:role/";

    #[test]
    fn agent_flags_apply_without_a_config() {
        let agents = known(
            &[BASE, "--namespace-restrictions", "--reserved-role=node"],
            &[],
        );
        let more = ["--reserved-role=other", "--layer=grants=audit"];
        let found = sources(&more, Some(agents.clone()))
            .in_force(None, ConfigNeed::None)
            .unwrap();
        let config = &found.deciding.flags;
        assert_eq!(config.modes[LayerId::Namespace].as_str(), "enforce");
        assert_eq!(config.modes[LayerId::Grants].as_str(), "audit");
        assert_eq!(
            (config.base.is_some(), config.reserved_roles.len()),
            (true, 2)
        );
        assert_eq!(found.flags, ["--layer", "--reserved-role"]);
        assert!(matches!(found.source, Source::Workloads { .. }));
        // If the kind is installed and the object is missing, agents deny everything,
        let found = sources(&[], Some(agents.clone()))
            .in_force(None, ConfigNeed::KindInstalled)
            .unwrap();
        assert_eq!(found.source, Source::Missing);
        assert!(found.unknown[0].contains("for up to 10 minutes"));
        // unless they ignore it.
        let off = known(&["--cluster-config=off", "--layer=rego=audit"], &[]);
        let object = json!({"spec": {}});
        let config = PlacedConfig {
            object: &object,
            place: None,
        };
        let found = sources(&[], Some(off))
            .in_force(Some(config), ConfigNeed::KindInstalled)
            .unwrap();
        assert_eq!(found.deciding.flags.modes[LayerId::Rego].as_str(), "audit");
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
        let in_sources = sources(&["--layer=namespace=off"], lost())
            .in_force(None, ConfigNeed::None)
            .unwrap();
        assert_eq!(in_sources.source, Source::Flags);
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
                .contains("add the RolegateConfig to --rules")
        );
        // A flag with an unknown value matters if it applies.
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
            ("reserved_role", Some(json!({"spec": {}})), false),
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
        let in_sources = sources(&["--default-role=x"], Some(known(&[], &["default_role"])));
        assert!(in_sources.in_force(None, ConfigNeed::None).is_ok());
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
            ("--reserved-role=x", true),
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
                // A flag that applies to one of both configurations has an effect.
                assert!(refuse_idle(&[&[], &beside.idle]).is_ok(), "{flag}");
                assert!(
                    refuse_idle(&[&beside.idle, &beside.idle]).is_err(),
                    "{flag}"
                );
            }
        }
    }
}
