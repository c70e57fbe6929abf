//! The files of policies, and messages about policies that are not in use.

use std::collections::BTreeMap;

use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::text::plain;
use rolegate_rego::PolicyStatus;
use rolegate_rules::snapshot::Snapshot;
use rolegate_rules::store::RuleStoreWriter;

use crate::offline::{Module, Offline, Origin};

/// The source of each policy, by the layer's name for it.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<String, Place>);

/// An unusable rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Its kind.
    pub kind: RuleKind,
    /// Its name; `namespace/name` for a policy.
    pub name: String,
    /// A sentence that describes the error.
    pub sentence: String,
    /// True if it is from a file.
    pub is_in_files: bool,
}

/// A kind of rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// A grant.
    RoleGrant,
    /// A Rego policy.
    Policy,
}

#[derive(Debug)]
enum Place {
    /// A ConfigMap, with its file and line if it is from a file.
    ConfigMap(Option<String>),
    /// A Rego file, and its name without directories.
    File(String, String),
}

impl Names {
    /// Returns the names of rules. `places` are those of documents.
    pub fn of(offline: &Offline, places: &[Option<String>], modules: &[Module]) -> Self {
        let named = offline.policies.iter().filter_map(|(name, origin)| {
            let place = match origin {
                Origin::Document(place) => Place::ConfigMap(places.get(*place).cloned().flatten()),
                Origin::Module(place) => {
                    let module = modules.get(*place)?;
                    Place::File(plain(&module.file), module.entry().to_owned())
                }
            };
            Some((name.clone(), place))
        });
        Self(named.collect())
    }

    /// Returns the displayed name of a policy: the path of a Rego file, the name of a ConfigMap.
    pub fn shown<'a>(&'a self, policy: &'a str) -> &'a str {
        match self.0.get(policy) {
            Some(Place::File(file, _)) => file,
            _ => policy,
        }
    }

    /// Returns the displayed name of a policy's module: its file, or its ConfigMap and entry.
    pub fn module(&self, policy: &str, entry: &str) -> String {
        match self.0.get(policy) {
            Some(Place::File(file, _)) => file.clone(),
            _ => format!("{policy}: {entry}"),
        }
    }

    /// Replaces the names of policies in a sentence with their displayed names.
    pub fn in_sentence(&self, sentence: &str) -> String {
        let files = self.0.iter().filter_map(|(name, place)| match place {
            Place::File(file, _) => Some((name, file)),
            Place::ConfigMap(_) => None,
        });
        files.fold(sentence.to_owned(), |sentence, (name, file)| {
            sentence.replace(name, file)
        })
    }

    /// Formats a message about a policy, with its file and line. `state` is the subject of the
    /// message, such as "cannot be used".
    fn about(&self, policy: &str, state: &str, message: &str) -> String {
        let what = message
            .strip_prefix(policy)
            .and_then(|rest| rest.strip_prefix(": "))
            .unwrap_or(message);
        match self.0.get(policy) {
            Some(Place::File(file, entry)) => {
                let rest = what.strip_prefix(&format!("{entry}, line "));
                match rest.and_then(|rest| rest.split_once(": ")) {
                    Some((line, what)) => {
                        format!("{file}:{line}: the policy {state}: {what}")
                    }
                    None => {
                        let what = self.in_sentence(what);
                        format!("{file}: the policy {state}: {what}")
                    }
                }
            }
            Some(Place::ConfigMap(Some(place))) => {
                format!("{place}: ConfigMap {policy} {state}: {what}")
            }
            Some(Place::ConfigMap(None)) | None => {
                format!("ConfigMap {policy} {state}: {what}")
            }
        }
    }

    /// Returns the unusable rules.
    pub fn unusable_rules(&self, writer: &RuleStoreWriter, snapshot: &Snapshot) -> Vec<Unusable> {
        let grants = snapshot.grants.invalid().iter();
        let grants = grants.map(|(name, error)| Unusable {
            kind: RuleKind::RoleGrant,
            name: name.to_string(),
            sentence: format!("RoleGrant {name} grants nothing: {error}"),
            is_in_files: false,
        });
        let mut found: Vec<_> = grants.collect();
        if snapshot.config.modes[LayerId::Rego] != Mode::Off {
            found.extend(self.unusable_policies(writer));
        }
        found
    }

    /// Returns warnings about policies that are in force, but not as their ConfigMaps intend: at
    /// other enforcement points, or incompletely.
    pub fn doubtful(&self, writer: &RuleStoreWriter, snapshot: &Snapshot) -> Vec<String> {
        if snapshot.config.modes[LayerId::Rego] == Mode::Off {
            return Vec::new();
        }
        let invalid_points = writer
            .invalid_points()
            .iter()
            .map(|((namespace, name), error)| {
                format!("ConfigMap {namespace}/{name} applies at all enforcement points: {error}")
            });
        let mut told: Vec<_> = invalid_points.collect();
        told.extend(writer.missing().map(|missing| missing.to_string()));
        told
    }

    /// Returns the unusable policies.
    fn unusable_policies(&self, writer: &RuleStoreWriter) -> Vec<Unusable> {
        let statuses = writer.policy_statuses();
        let errors = statuses.iter().filter_map(|(name, status)| match status {
            PolicyStatus::Error { error, .. } => Some((name, error)),
            _ => None,
        });
        errors
            .map(|(name, error)| Unusable {
                kind: RuleKind::Policy,
                name: name.to_string(),
                sentence: self.about(name, "cannot be used", &error.to_string()),
                is_in_files: matches!(
                    self.0.get(&**name),
                    Some(Place::File(..) | Place::ConfigMap(Some(_)))
                ),
            })
            .collect()
    }

    /// Returns sentences about unusable policies.
    pub fn unusable(&self, writer: &RuleStoreWriter) -> Vec<String> {
        let unusable = self.unusable_policies(writer).into_iter();
        unusable.map(|one| one.sentence).collect()
    }

    /// Returns warnings about policies that are in use.
    pub fn warnings(&self, writer: &RuleStoreWriter) -> Vec<String> {
        let mut sentences = Vec::new();
        for (name, status) in writer.policy_statuses() {
            if let PolicyStatus::Ok { warnings, .. } = status {
                let warnings = warnings.iter();
                sentences.extend(warnings.map(|text| self.about(&name, "has a warning", text)));
            }
        }
        sentences
    }

    /// Returns sentences about policies without effect.
    pub fn unused(&self, offline: &Offline) -> Vec<String> {
        let unused = offline.unused.iter();
        unused
            .map(|one| match self.0.get(&one.name) {
                Some(Place::ConfigMap(Some(place))) => {
                    format!("{place}: ConfigMap {}: {}", one.name, one.why)
                }
                Some(_) => format!("ConfigMap {}: {}", one.name, one.why),
                None => format!("{}: {}", plain(&one.name), one.why),
            })
            .collect()
    }
}
