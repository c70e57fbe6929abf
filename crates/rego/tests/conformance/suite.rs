//! OPA's cases, and the comparison of outcomes in the same way as OPA's own test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use regorus::Value;
use rolegate_rego::conformance::{self, Bindings, Outcome, Question};
use rolegate_rego::{Limits, Syntax};

/// A case in its file format.
#[derive(Debug, serde::Deserialize)]
struct Written {
    note: String,
    query: String,
    #[serde(default)]
    modules: Option<Vec<String>>,
    #[serde(default)]
    data: Option<Value>,
    #[serde(default)]
    input: Option<Value>,
    #[serde(default)]
    input_term: Option<String>,
    #[serde(default)]
    want_result: Option<Vec<BTreeMap<String, Value>>>,
    #[serde(default)]
    want_error: Option<String>,
    #[serde(default)]
    want_error_code: Option<String>,
    #[serde(default)]
    sort_bindings: bool,
    #[serde(default)]
    strict_error: bool,
}

#[derive(serde::Deserialize)]
struct File {
    cases: Vec<Written>,
}

/// OPA's result.
#[derive(Debug, Clone)]
enum Wanted {
    Error,
    Answers(BTreeSet<String>),
}

/// A case.
#[derive(Debug)]
pub(crate) struct Case {
    /// The note, numbered if several cases have it.
    pub(crate) key: String,
    pub(crate) folder: String,
    written: Written,
    wanted: Wanted,
}

/// The comparison of an outcome with OPA's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The same result.
    Same,
    /// Rejected at load.
    Refused,
    /// Denied with a reason, while OPA has a result or leaves it undefined.
    Denied,
    /// A different result without an error.
    Silent,
}

/// Returns the folder of OPA's cases.
fn folder() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/opa-cases");
    let output = Command::new(script).output().unwrap();
    assert!(
        output.status.success(),
        "hack/opa-cases: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[derive(serde::Deserialize)]
struct Unstrict {
    #[serde(default)]
    results: Vec<BTreeMap<String, Value>>,
    error: Option<String>,
}

/// Returns all cases of a language version, in the order of their files.
pub(crate) fn cases(version: Syntax) -> Vec<Case> {
    let unstrict: BTreeMap<String, Unstrict> =
        serde_json::from_str(include_str!("unstrict.json")).unwrap();
    let root = folder().join(version.as_str());
    let mut paths = Vec::new();
    files(&root, &mut paths);
    paths.sort();
    let (mut cases, mut seen) = (Vec::new(), BTreeMap::<String, usize>::new());
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let inner = path.strip_prefix(&root).unwrap();
        let folder = inner.iter().next().unwrap().to_string_lossy().into_owned();
        // OPA's parser reads `on` as a string.
        let options = serde_saphyr::options! { strict_booleans: true };
        let file: File = match serde_saphyr::from_str_with_options(&text, options) {
            Ok(file) => file,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        for written in file.cases {
            let count = seen.entry(written.note.clone()).or_default();
            *count += 1;
            let key = match *count {
                1 => written.note.clone(),
                count => format!("{} #{count}", written.note),
            };
            let wanted = wanted(version, &key, &written, &unstrict);
            cases.push(Case {
                key,
                folder: folder.clone(),
                written,
                wanted,
            });
        }
    }
    cases
}

/// Without `strict-builtin-errors`, as in the product, OPA leaves the expression undefined. A case
/// that expects such an error is compared with that result.
fn wanted(
    version: Syntax,
    key: &str,
    case: &Written,
    unstrict: &BTreeMap<String, Unstrict>,
) -> Wanted {
    let rows = |rows: &[BTreeMap<String, Value>]| {
        let rows = rows.iter().map(|row| canonical(row, case.sort_bindings));
        Wanted::Answers(rows.collect())
    };
    if case.strict_error {
        let answer = &unstrict[&format!("{}/{}", version.as_str(), key)];
        return match answer.error {
            Some(_) => Wanted::Error,
            None => rows(&answer.results),
        };
    }
    if case.want_error.is_some() || case.want_error_code.is_some() {
        return Wanted::Error;
    }
    rows(case.want_result.as_deref().unwrap())
}

/// Formats bindings as JSON in a fixed order: sets as arrays, and keys of objects as strings.
fn canonical(bindings: &Bindings, sort: bool) -> String {
    let mut text = String::new();
    for (name, value) in bindings {
        // Converted through JSON, as in OPA's test.
        let json = value.to_json_str().unwrap();
        let mut value: Value = Value::from_json_str(&json).unwrap();
        if sort && let Ok(array) = value.as_array() {
            let mut elements: Vec<Value> = array.iter().cloned().collect();
            elements.sort();
            value = Value::from(elements);
        }
        text.push_str(&format!("{name} = {}\n", value.to_json_str().unwrap()));
    }
    text
}

/// Parses a Rego term as a value.
fn term(text: &str) -> Value {
    let mut engine = regorus::Engine::new();
    let results = engine.eval_query(format!("x = {text}"), false).unwrap();
    let bindings = results.result[0].bindings.as_object().unwrap().clone();
    bindings.get(&Value::from("x")).unwrap().clone()
}

impl Case {
    /// Runs the case and compares the outcome. Returns the verdict and the difference.
    pub(crate) fn run(&self) -> (Verdict, String) {
        let modules = self.written.modules.as_deref().unwrap_or_default();
        let input = match &self.written.input_term {
            Some(text) => Some(term(text)),
            None => self.written.input.clone(),
        };
        let limits = Limits {
            eval_time: std::time::Duration::from_secs(20),
            eval_bytes: 1 << 30,
            ..Limits::default()
        };
        let outcome = conformance::ask(
            &Question {
                modules,
                data: self.written.data.as_ref(),
                input: input.as_ref(),
                query: &self.written.query,
                now: "2024-03-01T12:00:00Z".parse().unwrap(),
            },
            &limits,
        );
        match (outcome, &self.wanted) {
            (Outcome::Refused(why), _) => (Verdict::Refused, why),
            (Outcome::Failed(why), Wanted::Error) => (Verdict::Same, why),
            (Outcome::Failed(why), Wanted::Answers(_)) => (Verdict::Denied, why),
            (Outcome::Answers(answers), Wanted::Error) => {
                (Verdict::Silent, format!("no error, but {answers:?}"))
            }
            (Outcome::Answers(answers), Wanted::Answers(wanted)) => {
                let sort = self.written.sort_bindings;
                let got: BTreeSet<String> =
                    answers.iter().map(|row| canonical(row, sort)).collect();
                if got == *wanted {
                    (Verdict::Same, String::new())
                } else {
                    (Verdict::Silent, format!("{got:?}, and not {wanted:?}"))
                }
            }
        }
    }
}
