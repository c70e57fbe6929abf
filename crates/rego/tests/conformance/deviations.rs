//! The accepted deviations: the cases that differ, with the difference and its reason.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rolegate_rego::Syntax;

use crate::suite::Verdict;

/// A case that differs.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    /// The engine's message, or both answers.
    pub(crate) what: String,
}

/// Cases that differ for the same reason.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Group {
    reason: String,
    verdict: Verdict,
    cases: Vec<String>,
}

/// The deviations of one language version.
#[derive(Debug)]
pub(crate) struct Deviations(Vec<Group>);

fn path(version: Syntax) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!(
        "tests/conformance/deviations.{}.yaml",
        version.as_str()
    ))
}

impl Deviations {
    pub(crate) fn read(version: Syntax) -> Self {
        let Ok(text) = std::fs::read_to_string(path(version)) else {
            return Self(Vec::new());
        };
        let groups: Vec<Group> = serde_saphyr::from_str(&text).unwrap();
        Self(groups)
    }

    /// Lists mismatches: unlisted cases that differ, listed ones that differ in another way, and
    /// listed ones that don't differ.
    pub(crate) fn compare(&self, version: Syntax, found: &BTreeMap<String, Found>) -> Vec<String> {
        let version = version.as_str();
        let mut problems = Vec::new();
        let mut listed: BTreeMap<&str, &Group> = BTreeMap::new();
        for group in &self.0 {
            for case in &group.cases {
                if listed.insert(case, group).is_some() {
                    problems.push(format!("{version}: {case} is listed twice"));
                }
                if !found.contains_key(case) {
                    problems.push(format!("{version}: {case} is listed and has OPA's answer"));
                }
            }
            if group.verdict == Verdict::Silent {
                problems.push(format!(
                    "{version}: {}: a silent difference is never accepted",
                    group.reason
                ));
            }
        }
        for (case, Found { verdict, what }) in found {
            match listed.get(case.as_str()) {
                None => problems.push(format!("{version}: {case} is {verdict:?}: {what}")),
                Some(group) if group.verdict != *verdict => problems.push(format!(
                    "{version}: {case} is {verdict:?}, and listed as {:?}: {what}",
                    group.verdict
                )),
                Some(_) => {}
            }
        }
        problems
    }

    /// Returns the current deviations. Existing entries keep their reasons.
    pub(crate) fn renewed(&self, found: &BTreeMap<String, Found>) -> Self {
        let mut groups: BTreeMap<(Verdict, String), Vec<String>> = BTreeMap::new();
        for (case, Found { verdict, what }) in found {
            let known = self
                .0
                .iter()
                .find(|group| group.verdict == *verdict && group.cases.contains(case));
            let reason = match known {
                Some(group) => group.reason.clone(),
                None => without_place(what),
            };
            let group = groups.entry((verdict.clone(), reason)).or_default();
            group.push(case.clone());
        }
        let groups = groups.into_iter();
        Self(
            groups
                .map(|((verdict, reason), cases)| Group {
                    reason,
                    verdict,
                    cases,
                })
                .collect(),
        )
    }

    pub(crate) fn write(&self, version: Syntax) {
        let mut text = String::new();
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        for Group {
            reason,
            verdict,
            cases,
        } in &self.0
        {
            let verdict = format!("{verdict:?}").to_lowercase();
            text.push_str(&format!(
                "- reason: {}\n  verdict: {verdict}\n  cases:\n",
                quoted(reason)
            ));
            for case in cases {
                text.push_str(&format!("    - {}\n", quoted(case)));
            }
        }
        std::fs::write(path(version), text).unwrap();
    }
}

/// Strips the module and the line from a message.
fn without_place(what: &str) -> String {
    let position = what.find(", line ").and_then(|at| {
        let rest = what.get(at..)?;
        Some(at + rest.find(": ")? + 2)
    });
    position
        .and_then(|at| what.get(at..))
        .unwrap_or(what)
        .to_owned()
}
