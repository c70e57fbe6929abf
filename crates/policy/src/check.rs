//! Manifests judged as the gate would judge them when they are created.

mod render;
mod request;

use jiff::Timestamp;
use rolegate_admission::{Fault, GateRules, Review, Unseen, judge};
use serde::Serialize;
use serde_json::Value;

use crate::manifest::Document;
use request::{path_steps, review_of};

/// Who creates the objects, as the API server would name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Creator {
    /// The user.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

/// What is judged, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Manifest<'a> {
    /// The file, or `-` for standard input.
    pub file: &'a str,
    /// The object.
    pub document: &'a Document,
}

/// What was found; as JSON it is what `rolegate policy check -o json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How many objects were judged.
    pub checked: usize,
    /// How many of them would be refused.
    pub refused: usize,
    /// Every fault, in the order of the manifests.
    pub findings: Vec<Finding>,
}

/// One fault of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Whether it refuses the object.
    pub level: Level,
    /// The file.
    pub file: String,
    /// The line in the file, from 1.
    pub line: u64,
    /// The template that Helm made the object from, where it says so.
    pub template: Option<String>,
    /// The object's kind.
    pub kind: String,
    /// The object's namespace; empty for objects of the cluster.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// Where in the object; empty for all of it.
    pub path: String,
    /// Who refuses: a layer of the rules, or `request`, `own-role`, `rules`, `guard`.
    pub layer: String,
    /// The rule in that layer.
    pub rule: String,
    /// What is refused, and what would be allowed.
    pub message: String,
}

/// How much a finding counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The object would be refused.
    Error,
    /// A layer in audit mode would refuse it.
    Warning,
}

impl Level {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// The AdmissionReview of the creation of `object`, in `namespace` where it names none.
pub fn creation_of(object: &Value, creator: &Creator, namespace: &str) -> Value {
    review_of(object, creator, namespace).body
}

/// Judges each object as if `creator` created it. Objects without a namespace go to `namespace`.
pub fn check<'a>(
    rules: &GateRules<'_>,
    manifests: impl IntoIterator<Item = Manifest<'a>>,
    creator: &Creator,
    namespace: &str,
    now: Timestamp,
) -> Report {
    let mut report = Report::default();
    for manifest in manifests {
        report.checked += 1;
        let found = check_one(rules, manifest, creator, namespace, now);
        if found.iter().any(|finding| finding.level == Level::Error) {
            report.refused += 1;
        }
        report.findings.extend(found);
    }
    report
}

fn check_one(
    rules: &GateRules<'_>,
    manifest: Manifest<'_>,
    creator: &Creator,
    namespace: &str,
    now: Timestamp,
) -> Vec<Finding> {
    let request = review_of(&manifest.document.value, creator, namespace);
    let finding = |level, fault: &Fault| Finding {
        level,
        file: manifest.file.to_owned(),
        line: manifest
            .document
            .line_of(path_steps(&fault.path).iter().map(String::as_str)),
        template: manifest.document.source.clone(),
        kind: request.kind.clone(),
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        path: fault.path.clone(),
        layer: fault.layer.to_owned(),
        rule: fault.rule.clone(),
        message: fault.reason.clone(),
    };
    let body = request.body.to_string();
    let review = match Review::parse(body.as_bytes()) {
        Ok(review) => review,
        Err(error) => {
            let fault = Fault::new("", "request", "malformed object", &error.to_string());
            return vec![finding(Level::Error, &fault)];
        }
    };
    let outcome = judge(rules, &review, now);
    let mut found: Vec<_> = outcome
        .faults
        .iter()
        .map(|fault| finding(Level::Error, fault))
        .collect();
    if let Some(unseen) = &outcome.undecided {
        let reason = match unseen {
            Unseen::Namespace(name) => format!(
                "namespace {name} is in neither the rules nor the manifests, so nothing can be said: \
                 add it to one of them"
            ),
            Unseen::Rules(sentence) => (*sentence).to_owned(),
        };
        let fault = Fault::new("metadata.namespace", "rules", "unknown namespace", &reason);
        found.push(finding(Level::Error, &fault));
    }
    let warnings = outcome.warnings.iter();
    found.extend(warnings.map(|fault| finding(Level::Warning, fault)));
    found
}

#[cfg(test)]
mod tests;
