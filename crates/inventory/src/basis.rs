//! The rules behind an answer: those in force, their sources, and their unknown parts.

use std::fmt::{self, Display, Write};

use rolegate_core::config::Modes;
use rolegate_core::rule_set_builder::RuleSource;
use rolegate_core::text::plain;
use rolegate_report::text::{FAINT, TITLE, WARN};
use serde::{Serialize, Serializer};

/// The rules in force. As JSON it is the field `rules` of every answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Basis {
    /// The source of the rules' configuration.
    pub source: Source,
    /// Flags of the command that apply in addition to it or instead of it, by name.
    pub flags: Vec<String>,
    /// The base ARN that completes role names; `None` if unknown.
    pub base_role_arn: Option<String>,
    /// The modes of the layers.
    pub layers: LayerModes,
    /// A sentence for each unknown part of the rules.
    pub unknown: Vec<String>,
}

/// The modes of the layers. As JSON, an object of layers by name: `enforce`, `audit` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerModes(Modes);

impl Serialize for LayerModes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(layer, mode)| (layer, mode.as_str())))
    }
}

/// The source of the rules' configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind")]
pub enum Source {
    /// The `RolegateConfig`.
    RolegateConfig {
        /// Its generation, if it is from the cluster.
        generation: Option<i64>,
        /// Its file and line, if it is from a file.
        file: Option<String>,
    },
    /// The `RolegateConfig` is missing although it is required: everything is denied.
    Missing,
    /// The flags of the processes that decide: agents or brokers.
    Workloads {
        /// The workloads that run them.
        workloads: Vec<WorkloadRef>,
    },
    /// The flags of the command.
    Flags,
    /// No source: the layers that the files contain rules for are enforced.
    Assumed,
}

/// A workload whose flags were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// `DaemonSet` or `Deployment`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its generation.
    pub generation: Option<i64>,
}

impl Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, namespace, name) = (self.kind, plain(&self.namespace), plain(&self.name));
        write!(f, "{kind} {namespace}/{name}")?;
        match self.generation {
            Some(generation) => write!(f, ", generation {generation}"),
            None => Ok(()),
        }
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RolegateConfig { generation, file } => {
                write!(f, "{}", self.of_process())?;
                match (file, generation) {
                    (Some(file), _) => write!(f, " of {}", plain(file)),
                    (None, Some(generation)) => write!(f, ", generation {generation}"),
                    (None, None) => Ok(()),
                }
            }
            Self::Missing => write!(f, "{}", self.of_process()),
            Self::Workloads { workloads } => {
                write!(f, "{} of ", self.of_process())?;
                for (place, workload) in workloads.iter().enumerate() {
                    let between = if place > 0 { " and " } else { "" };
                    write!(f, "{between}{workload}")?;
                }
                Ok(())
            }
            Self::Flags => write!(f, "{} of this command", self.of_process()),
            Self::Assumed => f.write_str("assumed: layers with rules in the files are enforced"),
        }
    }
}

impl Source {
    /// Returns the source that a process of the cluster with the same rules reports.
    pub fn of_process(&self) -> RuleSource {
        match self {
            Self::RolegateConfig { generation, .. } => RuleSource::RolegateConfig {
                generation: *generation,
            },
            Self::Missing => RuleSource::Missing,
            Self::Workloads { .. } | Self::Flags | Self::Assumed => RuleSource::Flags,
        }
    }
}

impl From<Modes> for LayerModes {
    fn from(modes: Modes) -> Self {
        Self(modes)
    }
}

impl Display for LayerModes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (layer, mode)) in self.0.iter().enumerate() {
            let between = if place > 0 { " " } else { "" };
            write!(f, "{between}{layer}={}", mode.as_str())?;
        }
        Ok(())
    }
}

impl Basis {
    /// Returns the lines of the text output without colours, each with a name and a value.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("rules", self.source.to_string())];
        if !self.flags.is_empty() {
            rows.push((
                "",
                format!("with {} of this command", self.flags.join(", ")),
            ));
        }
        rows.push(("layers", self.layers.to_string()));
        let base = self.base_role_arn.as_deref();
        rows.push(("base ARN", base.map_or("unknown".into(), plain)));
        let unknown = self.unknown.iter();
        rows.extend(unknown.map(|unknown| ("unknown", plain(unknown))));
        rows
    }

    /// Formats the rules in force as text with ANSI colours, below `title`.
    pub fn text(&self, title: &str) -> String {
        let mut text = format!("\n{TITLE}{title}{TITLE:#}\n");
        for (name, value) in self.rows() {
            // Writing into a String cannot fail.
            let _ = match name {
                "unknown" => writeln!(text, "  {WARN}{name:11}{WARN:#} {value}"),
                _ => writeln!(text, "  {FAINT}{name:11}{FAINT:#} {value}"),
            };
        }
        text
    }

    /// Formats the rules in force as YAML comments.
    pub fn comments(&self) -> String {
        let rows = self.rows().into_iter();
        rows.map(|(name, value)| format!("# {name:9} {value}\n"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn basis(source: Source) -> Basis {
        Basis {
            source,
            flags: vec!["--reserved-role".into()],
            base_role_arn: None,
            layers: Modes::default().into(),
            unknown: vec!["agents discover\nit".into()],
        }
    }

    #[test]
    fn text_and_json_say_where_rules_come_from() {
        let workload = WorkloadRef {
            kind: "DaemonSet",
            namespace: "rolegate-system".into(),
            name: "rolegate-agent".into(),
            generation: Some(3),
        };
        let flags = basis(Source::Workloads {
            workloads: vec![workload],
        });
        let text = flags.comments();
        for part in [
            "# rules     flags of DaemonSet rolegate-system/rolegate-agent, generation 3\n",
            "with --reserved-role of this command\n",
            "# layers    namespace=enforce grants=off rego=off\n",
            "# base ARN  unknown\n",
            "# unknown   agents discover\\u{a}it\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let value = serde_json::to_value(&flags).unwrap();
        assert_eq!(
            value["source"],
            json!({"kind": "Workloads", "workloads": [{"kind": "DaemonSet",
                "namespace": "rolegate-system", "name": "rolegate-agent", "generation": 3}]})
        );
        assert_eq!(value["layers"]["namespace"], "enforce");
        let config = |generation, file: Option<&str>| Source::RolegateConfig {
            generation,
            file: file.map(str::to_owned),
        };
        assert_eq!(
            config(Some(2), None).to_string(),
            "RolegateConfig cluster, generation 2"
        );
        assert_eq!(
            config(None, Some("a.yaml:3")).to_string(),
            "RolegateConfig cluster of a.yaml:3"
        );
        // A process without the required configuration reports the same.
        assert_eq!(Source::Missing.to_string(), RuleSource::Missing.to_string());
        let value = serde_json::to_value(basis(Source::Missing)).unwrap();
        assert_eq!(value["source"], json!({"kind": "Missing"}));
    }
}
