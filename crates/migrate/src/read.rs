//! Reads values files, merges them as Helm does, and recognises their chart.

use std::fmt;

use rolegate_api::manifest::{self, ManifestError};
use rolegate_core::text::plain;
use serde::Serialize;
use serde_json::{Map, Value};

/// An old chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Chart {
    /// kube2iam's chart, of its own repository or of helm/charts.
    Kube2iam,
    /// kiam's chart, of its own repository or of helm/charts.
    Kiam,
}

impl fmt::Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kube2iam => "kube2iam",
            Self::Kiam => "kiam",
        })
    }
}

/// A values file.
#[derive(Debug, Clone, Copy)]
pub struct ValuesFile<'a> {
    /// The name, for errors.
    pub name: &'a str,
    /// The content.
    pub content: &'a [u8],
}

/// The reason why values cannot be translated. No message contains a value.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A file cannot be parsed.
    #[error("{name}{}: {error}", line(.error))]
    Syntax {
        /// The file.
        name: String,
        /// The error.
        error: ManifestError,
    },
    /// A file is not UTF-8 text.
    #[error("{0}: not UTF-8 text")]
    NotText(String),
    /// A file does not hold one map.
    #[error(
        "{0}: not a values file: it must contain one YAML mapping, as `helm get values -o yaml` prints"
    )]
    NotValues(String),
    /// The values may be those of either chart or of another one.
    #[error("cannot recognise the chart of these values: they have {0}")]
    UnknownChart(&'static str),
    /// A file holds neither associations of EKS nor a file of the EKS webhook.
    #[error(
        "not associations: give the output of `aws eks describe-pod-identity-association`, the \
         ConfigMap pod-identity-webhook, or the webhook's file of container credentials"
    )]
    UnknownAssociations,
    /// The values are those of rolegate's chart.
    #[error("these are values of rolegate's chart already")]
    AlreadyTranslated,
}

fn line(error: &ManifestError) -> String {
    error
        .line()
        .map_or_else(String::new, |line| format!(":{line}"))
}

/// Values that kube2iam's chart has and kiam's has not.
const KUBE2IAM: [&str; 16] = [
    "host",
    "aws",
    "awsRegion",
    "existingSecret",
    "extraEnv",
    "image",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "maxUnavailable",
    "podSecurityPolicy",
    "probe",
    "prometheus",
    "updateStrategy",
    "verbose",
    "tolerations",
];
/// Values that kiam's chart has and kube2iam's has not.
const KIAM: [&str; 4] = ["agent", "server", "psp", "serviceAccounts"];
/// Values that only rolegate's chart has.
const ROLEGATE: [&str; 4] = ["broker", "crds", "admission", "config"];

/// Parses and merges values files: maps are merged, and any other value of a later file replaces
/// that of an earlier one.
///
/// # Errors
/// Returns a [`MigrateError`] for a file that is not one map of values.
pub(crate) fn merged(files: &[ValuesFile<'_>]) -> Result<Map<String, Value>, MigrateError> {
    let mut all = Map::new();
    for file in files {
        let name = || plain(file.name);
        let text = std::str::from_utf8(file.content).map_err(|_| MigrateError::NotText(name()))?;
        let value = manifest::value(text.strip_prefix('\u{feff}').unwrap_or(text));
        match value.map_err(|error| MigrateError::Syntax {
            name: name(),
            error,
        })? {
            Some(Value::Object(values)) => merge(&mut all, values),
            Some(Value::Null) => {}
            _ => return Err(MigrateError::NotValues(name())),
        }
    }
    Ok(all)
}

fn merge(lower: &mut Map<String, Value>, higher: Map<String, Value>) {
    for (key, value) in higher {
        match (lower.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => merge(below, above),
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

/// Recognises the chart of values.
///
/// # Errors
/// Returns a [`MigrateError`] if the values are those of both charts, neither, or rolegate's.
pub(crate) fn recognise(values: &Map<String, Value>) -> Result<Chart, MigrateError> {
    let has = |names: &[&str]| names.iter().any(|name| values.contains_key(*name));
    if has(&ROLEGATE) {
        return Err(MigrateError::AlreadyTranslated);
    }
    match (has(&KUBE2IAM), has(&KIAM)) {
        (true, false) => Ok(Chart::Kube2iam),
        (false, true) => Ok(Chart::Kiam),
        (true, true) => Err(MigrateError::UnknownChart("keys of both charts")),
        (false, false) => Err(MigrateError::UnknownChart("keys of neither chart alone")),
    }
}

/// Returns the values of a subchart, if a parent chart's file holds nothing of the chart itself.
pub(crate) fn of_subchart(values: &mut Map<String, Value>) -> Option<(Chart, Map<String, Value>)> {
    let is_own = |names: &[&str]| names.iter().any(|name| values.contains_key(*name));
    if is_own(&KUBE2IAM) || is_own(&KIAM) {
        return None;
    }
    let parts = [("kube2iam", Chart::Kube2iam), ("kiam", Chart::Kiam)];
    let mut found = parts
        .into_iter()
        .filter(|(name, _)| values.get(*name).is_some_and(Value::is_object));
    let (name, chart) = found.next()?;
    if found.next().is_some() {
        return None;
    }
    drop(found);
    match values.remove(name) {
        Some(Value::Object(part)) => Some((chart, part)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> ValuesFile<'_> {
        ValuesFile {
            name: "values.yaml",
            content: content.as_bytes(),
        }
    }

    #[test]
    fn files_are_merged_as_helm_does() {
        let all = merged(&[
            file("host: {iptables: true, port: 8181}\ntolerations: [{key: a}]\n"),
            file("host: {port: 8282}\ntolerations: []\n"),
            file(""),
        ]);
        let all = Value::Object(all.unwrap());
        assert_eq!(
            all,
            serde_json::json!({"host": {"iptables": true, "port": 8282}, "tolerations": []})
        );
    }

    #[test]
    fn errors_name_file_and_line_and_no_value() {
        for (content, expected) in [
            ("a: b\nc: [hidden\n", "values.yaml:"),
            ("- hidden\n", "values.yaml: not a values file"),
            ("a: 1\n---\nb: hidden\n", "values.yaml: not a values file"),
            ("a: hidden\na: hidden\n", "values.yaml:2: "),
        ] {
            let error = merged(&[file(content)]).unwrap_err().to_string();
            assert!(
                error.starts_with(expected) && !error.contains("hidden"),
                "{error}"
            );
        }
    }

    #[test]
    fn charts_are_recognised_by_their_keys() {
        let chart = |content: &str| recognise(&merged(&[file(content)]).unwrap());
        assert_eq!(chart("host: {}").unwrap(), Chart::Kube2iam);
        assert_eq!(chart("server: {}").unwrap(), Chart::Kiam);
        for ambiguous in ["extraArgs: {debug: true}", "", "host: {}\nagent: {}"] {
            assert!(
                matches!(chart(ambiguous), Err(MigrateError::UnknownChart(_))),
                "{ambiguous}"
            );
        }
        let ours = chart("agent: {}\nbroker: {enabled: true}");
        assert!(matches!(ours, Err(MigrateError::AlreadyTranslated)));
    }
}
