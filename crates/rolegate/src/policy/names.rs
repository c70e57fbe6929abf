//! The files that policies are from, and what is said of policies that are not in use.

use std::collections::BTreeMap;

use rolegate_core::layer::Mode;
use rolegate_policy::text::plain;
use rolegate_rego::PolicyStatus;
use rolegate_rules::keeper::Keeper;
use rolegate_rules::offline::{Module, Offline, Origin};
use rolegate_rules::snapshot::Snapshot;

/// The place of each policy, by the name that the layer has for it.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, Place>);

#[derive(Debug)]
enum Place {
    /// A ConfigMap: file and line, where it is from a file.
    ConfigMap(Option<String>),
    /// A file of Rego, and its name without folders.
    File(String, String),
}

impl Names {
    /// Of rules. `places` are those of documents.
    pub(super) fn of(offline: &Offline, places: &[Option<String>], modules: &[Module]) -> Self {
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

    /// A policy as people know it: a file of Rego by its path, a ConfigMap by its name.
    pub(super) fn shown<'a>(&'a self, policy: &'a str) -> &'a str {
        match self.0.get(policy) {
            Some(Place::File(file, _)) => file,
            _ => policy,
        }
    }

    /// A module of a policy as people know it: its file, or its ConfigMap and entry.
    pub(super) fn module(&self, policy: &str, entry: &str) -> String {
        match self.0.get(policy) {
            Some(Place::File(file, _)) => file.clone(),
            _ => format!("{policy}: {entry}"),
        }
    }

    /// A sentence in which policies are named as people know them.
    pub(super) fn in_sentence(&self, sentence: &str) -> String {
        let files = self.0.iter().filter_map(|(name, place)| match place {
            Place::File(file, _) => Some((name, file)),
            Place::ConfigMap(_) => None,
        });
        files.fold(sentence.to_owned(), |sentence, (name, file)| {
            sentence.replace(name, file)
        })
    }

    /// A message about a policy, with the file and line that it came from. `state` is what the
    /// message explains, such as "cannot be used".
    fn about(&self, policy: &str, state: &str, message: &str) -> String {
        let what = message
            .strip_prefix(policy)
            .and_then(|rest| rest.strip_prefix(": "));
        let what = what.unwrap_or(message);
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

    /// Rules that count for nothing or not as they are written, in sentences.
    pub(super) fn broken(&self, keeper: &Keeper, snapshot: &Snapshot) -> Vec<String> {
        let grants = snapshot.grants.invalid().iter();
        let grants =
            grants.map(|(name, error)| format!("RoleGrant {name} grants nothing: {error}"));
        let mut told: Vec<_> = grants.collect();
        if snapshot.config.modes.rego == Mode::Off {
            return told;
        }
        told.extend(self.unusable(keeper));
        for ((namespace, name), error) in keeper.misplaced() {
            told.push(format!(
                "ConfigMap {namespace}/{name} is asked everywhere: {error}"
            ));
        }
        told.extend(keeper.missing().map(|missing| missing.to_string()));
        told
    }

    /// Policies that can't be used, in sentences.
    pub(super) fn unusable(&self, keeper: &Keeper) -> Vec<String> {
        let statuses = keeper.policy_statuses();
        let errors = statuses.iter().filter_map(|(name, status)| match status {
            PolicyStatus::Error { error, .. } => Some((name, error)),
            _ => None,
        });
        errors
            .map(|(name, error)| self.about(name, "cannot be used", &error.to_string()))
            .collect()
    }

    /// Warnings about policies that are in use, in sentences.
    pub(super) fn warnings(&self, keeper: &Keeper) -> Vec<String> {
        let mut sentences = Vec::new();
        for (name, status) in keeper.policy_statuses() {
            if let PolicyStatus::Ok { warnings, .. } = status {
                let warnings = warnings.iter();
                sentences.extend(warnings.map(|text| self.about(&name, "has a warning", text)));
            }
        }
        sentences
    }

    /// Policies of which nothing is asked, in sentences.
    pub(super) fn unused(&self, offline: &Offline) -> Vec<String> {
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
