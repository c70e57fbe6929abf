//! The format of test files: objects, the operation on them, and the expected verdict.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::check::Operation;
use rolegate_api::manifest::Document;

/// The API group of files for the command line only.
const GROUP: &str = "cli.rolegate.dev";
/// The supported version.
const API_VERSION: &str = "cli.rolegate.dev/v1alpha1";
/// The kind of test files.
const KIND: &str = "PolicyTest";

/// An error in a test file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct FormatError {
    /// The line, from 1.
    pub line: u64,
    /// A description of the error.
    pub why: String,
}

/// Tests that share their rules.
#[derive(Debug, Clone)]
pub struct PolicyTest {
    /// Its name.
    pub name: String,
    /// Files and directories with rules, relative to the file's directory; `None` if it names none.
    pub rules: Option<Vec<String>>,
    /// The cases, in order.
    pub cases: Vec<TestCase>,
}

/// One case.
#[derive(Debug, Clone)]
pub struct TestCase {
    /// Its name.
    pub name: String,
    /// Its first line, from 1.
    pub line: u64,
    /// The objects to validate.
    pub objects: Objects,
    /// The existing objects.
    pub old: Option<Objects>,
    /// The selection of objects to validate.
    pub select: Select,
    /// The operation to validate.
    pub operation: Operation,
    /// The namespace of objects that do not name one.
    pub namespace: String,
    /// The user.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// The expected result.
    pub expect: Expect,
}

/// Objects of a case.
#[derive(Debug, Clone)]
pub enum Objects {
    /// Objects in the test file.
    Here(Vec<Document>),
    /// A file, relative to the test file's directory.
    File(String),
}

/// Selects the objects of a file that meet all conditions.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Select {
    /// Their kind.
    pub kind: Option<String>,
    /// Their name.
    pub name: Option<String>,
    /// Their namespace.
    pub namespace: Option<String>,
}

/// The expected result for each object.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expect {
    /// The verdict.
    pub verdict: Verdict,
    /// Sources of denials or warnings, each of which must be among the actual ones.
    #[serde(default)]
    pub by: Vec<Refuser>,
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed without a warning.
    Allowed,
    /// Allowed with a warning of a layer in audit mode.
    Warned,
    /// Refused.
    Denied,
}

impl Verdict {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Warned => "warned",
            Self::Denied => "denied",
        }
    }
}

/// A source of a denial or warning. All given fields must match.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Refuser {
    /// The layer.
    pub layer: Option<String>,
    /// The rule in that layer. A policy in a file matches by the end of its path.
    pub rule: Option<String>,
    /// The path of the field in the object.
    pub path: Option<String>,
    /// A part of the message.
    pub message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFile {
    api_version: String,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    metadata: RawMetadata,
    spec: RawSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawMetadata {
    name: String,
    #[serde(default, rename = "labels")]
    _labels: IgnoredAny,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSpec {
    rules: Option<Vec<String>>,
    namespace: Option<String>,
    user: Option<String>,
    groups: Option<Vec<String>>,
    cases: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawCase {
    name: String,
    object: Option<Value>,
    file: Option<String>,
    #[serde(default)]
    select: Select,
    #[serde(default)]
    operation: RawOperation,
    old_object: Option<Value>,
    old_file: Option<String>,
    namespace: Option<String>,
    user: Option<String>,
    groups: Option<Vec<String>>,
    expect: Expect,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawOperation {
    #[default]
    Create,
    Update,
    Delete,
}

impl PolicyTest {
    /// Returns whether an object is a test file of any version.
    pub fn is_one(object: &Value) -> bool {
        let text = |field| {
            object
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        text("kind") == KIND && text("apiVersion").split('/').next() == Some(GROUP)
    }

    /// Reads a test file.
    ///
    /// # Errors
    /// Returns a [`FormatError`] with the line.
    pub fn read(document: &Document) -> Result<Self, FormatError> {
        let raw: RawFile = parse(&document.value, document.line())?;
        if raw.api_version != API_VERSION {
            return Err(FormatError {
                line: document.line_of(["apiVersion"]),
                why: format!("only {KIND} of {API_VERSION} is supported"),
            });
        }
        if raw.spec.cases.is_empty() {
            return Err(FormatError {
                line: document.line_of(["spec", "cases"]),
                why: "spec.cases is empty, so nothing is tested".into(),
            });
        }
        let mut cases: Vec<TestCase> = Vec::with_capacity(raw.spec.cases.len());
        for (place, case) in raw.spec.cases.iter().enumerate() {
            let place = place.to_string();
            let steps = ["spec", "cases", &place];
            let case = read_case(case, &raw.spec, document, steps)?;
            if cases.iter().any(|other| other.name == case.name) {
                let why = format!(
                    "duplicate case {:?}: give each case its own name",
                    case.name
                );
                return Err(FormatError {
                    line: case.line,
                    why,
                });
            }
            cases.push(case);
        }
        Ok(Self {
            name: raw.metadata.name,
            rules: raw.spec.rules,
            cases,
        })
    }
}

/// The default user and groups.
const USER: (&str, &str) = ("rolegate:test", "system:authenticated");

fn read_case(
    case: &Value,
    spec: &RawSpec,
    document: &Document,
    steps: [&str; 3],
) -> Result<TestCase, FormatError> {
    let line_of = |field: &str| document.line_of(steps.into_iter().chain([field]));
    let line = document.line_of(steps);
    let wrong = |field: &str, why: String| FormatError {
        line: line_of(field),
        why,
    };
    // Parts are read first, so that their errors are reported with their own lines.
    if let Some(expect) = case.get("expect") {
        parse::<Expect>(expect, line_of("expect"))?;
    }
    if let Some(select) = case.get("select") {
        parse::<Select>(select, line_of("select"))?;
    }
    let raw: RawCase = parse(case, line)?;
    let objects = |object: Option<Value>, file: Option<String>, fields: [&str; 2]| {
        let [inline, of_file] = fields;
        match (object, file) {
            (Some(_), Some(_)) => Err(wrong(
                of_file,
                format!("write {inline} or {of_file}, not both"),
            )),
            (None, None) => Ok(None),
            (None, Some(file)) => Ok(Some(Objects::File(file))),
            (Some(object), None) => document
                .part(object, steps.into_iter().chain([inline]))
                .map(|objects| Some(Objects::Here(objects)))
                .map_err(|error| wrong(inline, format!("{inline}: {error}"))),
        }
    };
    let old = objects(raw.old_object, raw.old_file, ["oldObject", "oldFile"])?;
    let objects =
        objects(raw.object, raw.file, ["object", "file"])?.ok_or_else(|| FormatError {
            line,
            why: "a case requires an object to validate: write object or file".into(),
        })?;
    match (raw.operation, &old) {
        (RawOperation::Update, None) => {
            let why = "operation: update requires the existing object: write oldObject or oldFile";
            return Err(wrong("operation", why.into()));
        }
        (RawOperation::Create | RawOperation::Delete, Some(_)) => {
            let why = "oldObject and oldFile require operation: update";
            return Err(wrong("operation", why.into()));
        }
        _ => {}
    }
    check_expect(&raw.expect).map_err(|why| wrong("expect", why))?;
    Ok(TestCase {
        name: raw.name,
        line,
        objects,
        old,
        select: raw.select,
        operation: match raw.operation {
            RawOperation::Create => Operation::Create,
            RawOperation::Update => Operation::Update,
            RawOperation::Delete => Operation::Delete,
        },
        namespace: raw
            .namespace
            .or_else(|| spec.namespace.clone())
            .unwrap_or_else(|| "default".into()),
        user: raw
            .user
            .or_else(|| spec.user.clone())
            .unwrap_or_else(|| USER.0.into()),
        groups: raw
            .groups
            .or_else(|| spec.groups.clone())
            .unwrap_or_else(|| vec![USER.1.into()]),
        expect: raw.expect,
    })
}

fn check_expect(expect: &Expect) -> Result<(), String> {
    if expect.verdict == Verdict::Allowed && !expect.by.is_empty() {
        return Err("an allowed object has no denial: omit by".into());
    }
    let says_nothing = |refuser: &Refuser| {
        let Refuser {
            layer,
            rule,
            path,
            message,
        } = refuser;
        [layer, rule, path, message]
            .iter()
            .all(|field| field.is_none())
    };
    if expect.by.iter().any(says_nothing) {
        return Err("each entry of by requires layer, rule, path or message".into());
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(value: &Value, line: u64) -> Result<T, FormatError> {
    T::deserialize(value).map_err(|error| FormatError {
        line,
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rolegate_api::manifest::documents;

    const FILE: &str = "\
apiVersion: cli.rolegate.dev/v1alpha1
kind: PolicyTest
metadata: {name: shop}
spec:
  rules: [../rules]
  namespace: shop
  cases:
  - name: the API may read
    object:
      apiVersion: v1
      kind: Pod
      metadata: {name: api}
    expect: {verdict: allowed}
  - name: no pod is admin
    file: pods.yaml
    select: {kind: Pod}
    operation: update
    oldFile: old.yaml
    user: ann
    expect:
      verdict: denied
      by: [{layer: grants}]
";

    fn read(text: &str) -> Result<PolicyTest, String> {
        let documents = documents(text).unwrap().documents;
        PolicyTest::read(&documents[0]).map_err(|error| format!("{}: {error}", error.line))
    }

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let test = read(FILE).unwrap();
        assert_eq!((&*test.name, test.rules.unwrap().len()), ("shop", 1));
        let [one, other] = test.cases.try_into().unwrap();
        assert_eq!((one.line, &*one.namespace, &*one.user), (8, "shop", USER.0));
        let Objects::Here(objects) = &one.objects else {
            panic!("{one:?}");
        };
        assert_eq!(objects[0].line_of(["metadata", "name"]), 12);
        assert_eq!((&*other.user, other.operation), ("ann", Operation::Update));
        assert!(matches!(other.old, Some(Objects::File(file)) if file == "old.yaml"));
    }

    #[test]
    fn errors_are_reported_with_their_line() {
        for (from, to, part) in [
            ("v1alpha1", "v1", "1: only PolicyTest of"),
            (
                "  namespace: shop\n",
                "  namespce: shop\n",
                "1: unknown field `namespce`",
            ),
            ("{name: shop}", "{}", "1: missing field `name`"),
            (
                "    user: ann\n",
                "    usr: ann\n",
                "14: unknown field `usr`",
            ),
            ("allowed}", "allow}", "13: unknown variant `allow`"),
            (
                "{layer: grants}",
                "{layr: grants}",
                "21: unknown field `layr`",
            ),
            ("{layer: grants}", "{}", "21: each entry of by requires"),
            (
                "denied\n",
                "allowed\n",
                "21: an allowed object has no denial",
            ),
            ("{kind: Pod}", "{kin: Pod}", "16: unknown field `kin`"),
            ("    file: pods.yaml\n", "", "14: a case requires an object"),
            (
                "    file: pods.yaml\n",
                "    file: a\n    object: {}\n",
                "15: write object or file",
            ),
            (
                "    oldFile: old.yaml\n",
                "",
                "17: operation: update requires",
            ),
            (
                "operation: update",
                "operation: delete",
                "17: oldObject and oldFile require",
            ),
            (
                "operation: update",
                "operation: patch",
                "14: unknown variant `patch`",
            ),
            ("no pod is admin", "the API may read", "14: duplicate case"),
            (
                "      apiVersion: v1\n",
                "",
                "10: object: the document is not a Kubernetes object",
            ),
        ] {
            assert!(FILE.contains(from), "{from}");
            let printed = read(&FILE.replace(from, to)).unwrap_err();
            assert!(printed.starts_with(part), "{to}: {printed}");
        }
        let (start, _) = FILE.split_once("  cases:\n").unwrap();
        let none = read(&format!("{start}  cases: []\n")).unwrap_err();
        assert!(none.starts_with("7: spec.cases is empty"), "{none}");
    }
}
