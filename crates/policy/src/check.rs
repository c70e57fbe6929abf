//! Validates manifests as admission would.

mod defaults;
mod hints;
mod request;
mod values;

use std::collections::HashMap;

use jiff::Timestamp;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_report::findings::{Finding, Findings, Level, Location, Wording};
pub use rolegate_review::admission_review::Operation;
use rolegate_review::{
    Outcome, Review, Undecided, ValidationRules, Violation, ViolationSource, validate,
};
use serde_json::{Map, Value};

pub use hints::foreign;
use request::{Request, path_steps, review_of};
pub use request::{is_review, namespace_of};
use rolegate_api::manifest::Document;

/// The layer of findings about parts that are not validated or have no effect.
const CHECK: &str = "check";
/// The words of the findings. Their category is the source of a denial: a layer of the rules, or
/// `request`, `reserved-role`, `rules`, `guard`; [`CHECK`] for parts that are not validated or have
/// no effect.
const WORDING: Wording = Wording {
    category: "layer",
    remarks: CHECK,
    failed: "refused",
    would_fail: "would be denied",
    of_warnings: " in audit mode",
    describe,
};

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

/// The report of `rolegate policy check`.
#[derive(Debug, Clone)]
pub struct Report {
    /// The validated objects and all findings.
    pub findings: Findings,
    /// A sentence for each unusable rule in files.
    pub unusable: Vec<String>,
    /// A sentence for each note about the rules and the run as a whole.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns the fields of the report in JSON.
    pub fn json(&self) -> Map<String, Value> {
        let mut fields = self.findings.json();
        fields.insert("unusable".into(), self.unusable.clone().into());
        fields.insert("notes".into(), self.notes.clone().into());
        fields
    }

    /// Returns whether an object would be denied, or a rule in files is unusable.
    pub fn has_failed(&self) -> bool {
        self.findings.has_failed() || !self.unusable.is_empty()
    }
}

/// Describes a layer for SARIF.
fn describe(layer: &str) -> String {
    match layer {
        CHECK => "Not validated, or without effect".to_owned(),
        layer => format!("Denied by rolegate/{layer} of the rules about AWS roles"),
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
    pub fn get(&self, object: &Value, namespace: &str) -> Option<&'a Value> {
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
) -> Findings {
    let mut report = Findings::new("rolegate policy check", WORDING);
    for manifest in manifests {
        let request = request_of(manifest, creator, namespace);
        let found = check_one(rules, manifest, &request, now);
        let (file, line) = (manifest.file, manifest.document.line());
        report.add(file, line, request.object(), found);
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
            location: Location {
                file: file.to_owned(),
                line: document.line_of(prefix.chain(steps.iter().map(String::as_str))),
                template: document.source.clone(),
            },
            object: request.object(),
            path: fault.path.clone(),
            category: fault.denied_by.as_str().to_owned(),
            rule: fault.rule.clone(),
            message: fault.reason.clone(),
        }
    };
    let remark = |level, path: &str, rule: &str, message: &str| Finding {
        category: CHECK.to_owned(),
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
            if let Some(cause) = &outcome.undecided {
                let fault = undecided(cause);
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
    if document.has_duplicate_keys {
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

fn undecided(cause: &Undecided) -> Violation {
    let reason = match cause {
        Undecided::Namespace(name) => format!(
            "namespace {name} is in neither the rules nor the manifests, so there is no verdict: \
             add it to one of them"
        ),
        Undecided::Rules(part) => part.as_str().to_owned(),
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
