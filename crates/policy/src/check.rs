//! Validates manifests as admission would.

mod defaults;
mod hints;
mod render;
mod request;
mod values;

use std::collections::HashMap;

use jiff::Timestamp;
use rolegate_core::layer::{LayerId, Mode};
pub use rolegate_review::admission_review::Operation;
use rolegate_review::{
    NotSynced, Outcome, Review, ValidationRules, Violation, ViolationSource, validate,
};
use serde::Serialize;
use serde_json::Value;

use crate::manifest::Document;
pub use hints::foreign;
use request::{Request, path_steps, review_of};
pub use request::{is_review, namespace_of};

/// The layer of findings about parts that are not validated or have no effect.
const CHECK: &str = "check";

/// The requesting user, as the API server would report it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Creator {
    /// The user.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

/// An object and the operation on it.
#[derive(Debug, Clone, Copy)]
pub struct Manifest<'a> {
    /// The file, or `-` for standard input.
    pub file: &'a str,
    /// The object.
    pub document: &'a Document,
    /// The existing object, which makes a creation an update.
    pub old: Option<&'a Value>,
    /// The operation.
    pub operation: Operation,
    /// The reason why it would be unusable, if it is a rule.
    pub fault: Option<&'a str>,
}

/// The report. Its JSON is the output of `rolegate policy check -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The number of validated objects.
    pub checked: usize,
    /// The number of denied objects.
    pub refused: usize,
    /// The number of warnings.
    pub warnings: usize,
    /// All findings, in the order of the manifests.
    pub findings: Vec<Finding>,
    /// A sentence for each unusable rule in files.
    pub unusable: Vec<String>,
    /// A sentence for each note about the rules and the run as a whole.
    pub notes: Vec<String>,
    /// All validated objects.
    #[serde(skip)]
    pub objects: Vec<Checked>,
}

/// A validated object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The file.
    pub file: String,
    /// The line in the file, from 1.
    pub line: u64,
    /// The object by its kind, namespace and name.
    pub name: String,
    /// The range of findings about it.
    pub findings: std::ops::Range<usize>,
}

/// A finding about one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The file.
    pub file: String,
    /// The line in the file, from 1.
    pub line: u64,
    /// The template from which Helm rendered the object, if known.
    pub template: Option<String>,
    /// The object's kind.
    pub kind: String,
    /// The object's namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The path of the field in the object; empty for the whole object.
    pub path: String,
    /// The source of the denial: a layer of the rules, or `request`, `reserved-role`, `rules`,
    /// `guard`; `check` for parts that are not validated or have no effect.
    pub layer: String,
    /// The rule in that layer.
    pub rule: String,
    /// The denial, and what would be allowed.
    pub message: String,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The object would be denied.
    Error,
    /// A layer in audit mode would deny it, or part of it is not validated or has no effect.
    Warning,
    /// Information.
    Note,
}

impl Level {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Returns the AdmissionReview of the creation of `object`, in `namespace` if it names none.
pub fn creation_of(object: &Value, creator: &Creator, namespace: &str) -> Value {
    review_of(object, None, Operation::Create, creator, namespace).body
}

/// Returns an object as the API server would store it: in its namespace, with null in string maps
/// as an empty string, and with the most common defaults.
pub fn completed(object: &Value, namespace: &str) -> Value {
    let creator = Creator {
        user: String::new(),
        groups: Vec::new(),
    };
    let mut review = creation_of(object, &creator, namespace);
    let completed = review.pointer_mut("/request/object").map(Value::take);
    completed.unwrap_or_default()
}

/// Existing objects, indexed for updates.
#[derive(Debug, Default)]
pub struct Existing<'a>(HashMap<Key, &'a Value>);

/// Group, kind, namespace and name.
type Key = [String; 4];

impl<'a> Existing<'a> {
    /// Indexes objects. Those without a namespace are in `namespace`.
    pub fn of(objects: impl IntoIterator<Item = &'a Value>, namespace: &str) -> Self {
        let objects = objects.into_iter();
        Self(
            objects
                .map(|object| (key(object, namespace), object))
                .collect(),
        )
    }

    /// Returns the existing object with the identity of `object`.
    pub fn beside(&self, object: &Value, namespace: &str) -> Option<&'a Value> {
        self.0.get(&key(object, namespace)).copied()
    }
}

fn key(object: &Value, namespace: &str) -> Key {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let group = text("/apiVersion")
        .split_once('/')
        .map_or("", |(group, _)| group);
    [
        group,
        text("/kind"),
        namespace_of(object, namespace),
        text("/metadata/name"),
    ]
    .map(str::to_owned)
}

/// Validates the operation of `creator` on each object. Objects without a namespace are in
/// `namespace`.
pub fn check<'a>(
    rules: &ValidationRules<'_>,
    manifests: impl IntoIterator<Item = Manifest<'a>>,
    creator: &Creator,
    namespace: &str,
    now: Timestamp,
) -> Report {
    let mut report = Report::default();
    for manifest in manifests {
        report.checked += 1;
        let request = request_of(manifest, creator, namespace);
        let found = check_one(rules, manifest, &request, now);
        let is = |level| found.iter().filter(move |finding| finding.level == level);
        report.refused += usize::from(is(Level::Error).next().is_some());
        report.warnings += is(Level::Warning).count();
        let first = report.findings.len();
        report.objects.push(Checked {
            file: manifest.file.to_owned(),
            line: manifest.document.line(),
            name: render::object(&request.kind, &request.namespace, &request.name),
            findings: first..first + found.len(),
        });
        report.findings.extend(found);
    }
    report
}

fn request_of(manifest: Manifest<'_>, creator: &Creator, namespace: &str) -> Request {
    let object = &manifest.document.value;
    review_of(object, manifest.old, manifest.operation, creator, namespace)
}

/// Returns admission's verdict on an object.
///
/// # Errors
/// Returns an error if the object is not a valid request.
pub(crate) fn judged(
    rules: &ValidationRules<'_>,
    manifest: Manifest<'_>,
    creator: &Creator,
    namespace: &str,
    now: Timestamp,
) -> Result<Outcome, String> {
    judge_request(rules, &request_of(manifest, creator, namespace), now)
}

fn judge_request(
    rules: &ValidationRules<'_>,
    request: &Request,
    now: Timestamp,
) -> Result<Outcome, String> {
    let body = request.body.to_string();
    let review = Review::parse(body.as_bytes()).map_err(|error| error.to_string())?;
    Ok(validate(rules, &review, now))
}

fn check_one(
    rules: &ValidationRules<'_>,
    manifest: Manifest<'_>,
    request: &Request,
    now: Timestamp,
) -> Vec<Finding> {
    let Manifest { file, document, .. } = manifest;
    let finding = |level, fault: &Violation| {
        let steps = path_steps(&fault.path);
        let prefix = request.prefix.iter().copied();
        Finding {
            level,
            file: file.to_owned(),
            line: document.line_of(prefix.chain(steps.iter().map(String::as_str))),
            template: document.source.clone(),
            kind: request.kind.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            path: fault.path.clone(),
            layer: fault.denied_by.as_str().to_owned(),
            rule: fault.rule.clone(),
            message: fault.reason.clone(),
        }
    };
    let remark = |level, path: &str, rule: &str, message: &str| Finding {
        layer: CHECK.to_owned(),
        ..finding(
            level,
            &Violation::new(path, ViolationSource::REQUEST, rule, message),
        )
    };
    let mut found: Vec<Finding>;
    match judge_request(rules, request, now) {
        Err(why) => {
            let fault = Violation::new("", ViolationSource::REQUEST, "malformed object", &why);
            found = vec![finding(Level::Error, &fault)];
        }
        Ok(outcome) => {
            let faults = outcome.violations.iter();
            found = faults.map(|fault| finding(Level::Error, fault)).collect();
            if let Some(unseen) = &outcome.undecided {
                let fault = undecided(unseen);
                found.push(finding(Level::Error, &fault));
            }
            let warnings = outcome.warnings.iter();
            found.extend(warnings.map(|fault| finding(Level::Warning, fault)));
        }
    }
    let hints = if is_review(&document.value) {
        Vec::new()
    } else {
        hints::hints(
            &document.value,
            &request.namespace,
            rules.config,
            rules.keys,
        )
    };
    for hint in hints {
        let path = written(&hint.steps);
        found.push(remark(hint.level, &path, hint.rule, &hint.message));
    }
    if let Some(why) = manifest.fault {
        found.push(remark(Level::Error, "", "unusable rule", why));
    }
    if let Some(why) = not_asked(rules, request) {
        found.push(remark(Level::Note, "", "not validated", why));
    }
    if document.repeats_key {
        let message =
            "an object in this JSON has a duplicate key: the last one counts, as in kubectl";
        found.push(remark(Level::Warning, "", "repeated key", message));
    }
    found
}

/// Returns the reason why no policy is evaluated for a request, if policies are enabled.
fn not_asked(rules: &ValidationRules<'_>, request: &Request) -> Option<&'static str> {
    if rules.config.modes[LayerId::Rego] == Mode::Off {
        return None;
    }
    let text = |pointer| request.body.pointer(pointer).and_then(Value::as_str);
    match (text("/request/operation"), text("/request/subResource")) {
        (Some("DELETE" | "CONNECT"), _) => {
            Some("policies are not evaluated for deletions and CONNECT")
        }
        (_, None | Some("" | "ephemeralcontainers")) => None,
        _ => Some("policies are not evaluated for subresources other than ephemeralcontainers"),
    }
}

fn undecided(unseen: &NotSynced) -> Violation {
    let reason = match unseen {
        NotSynced::Namespace(name) => format!(
            "namespace {name} is in neither the rules nor the manifests, so there is no verdict: \
             add it to one of them"
        ),
        NotSynced::Rules(sentence) => (*sentence).to_owned(),
    };
    Violation::new(
        "metadata.namespace",
        ViolationSource::RULES,
        "unknown namespace",
        &reason,
    )
}

/// Formats steps as the path in messages: `spec.list[0].annotations[example.com/key]`.
fn written(steps: &[String]) -> String {
    let mut path = String::new();
    for step in steps {
        let is_plain = step.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let is_number = step.bytes().all(|b| b.is_ascii_digit());
        if is_number || !is_plain {
            path.push_str(&format!("[{step}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(step);
        }
    }
    path
}

#[cfg(test)]
mod tests;
