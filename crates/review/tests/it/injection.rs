//! The table of pods in `tests/cases/injection`: each file has a pod and the result of the injection,
//! applied as the API server applies patches.
//!
//! Set `INJECTION_CASES=write` to write the results anew; review the difference.

use std::path::PathBuf;

use json_patch::Patch;
use rolegate_core::decision::RuleSet;
use rolegate_core::service_account::ServiceAccountAnnotations;
use rolegate_review::mutation::config_map::PodIdentityConfig;
use rolegate_review::mutation::source::ContainerIdentities;
use rolegate_review::mutation::{InjectionSettings, InvalidArn, Pod, PodChange, Sources, inject};
use rolegate_testkit::repository;
use serde::{Deserialize, Serialize};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

const NAMESPACE: &str = "default";
const ACCOUNT: &str = "default";

/// A case. Absent parts are defaults.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    /// The promise of the case, and its origin.
    description: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    settings: Map<String, Value>,
    /// Annotations of the service account.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    service_account: Map<String, Value>,
    /// True if the service account is in the file of container credentials.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    container_credentials: bool,
    /// The value of the ConfigMap of EKS's webhook.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    config_map: Value,
    pod: Value,
    /// The resulting pod; absent if the pod does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expected: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

fn settings(case: &Case) -> InjectionSettings {
    let mut settings = InjectionSettings {
        // EKS's webhook has none, so the cases that describe it have none.
        session_name: false,
        ..InjectionSettings::default()
    };
    for (name, value) in &case.settings {
        let text = || value.as_str().unwrap().to_owned();
        match name.as_str() {
            "region" => settings.region = Some(text()),
            "regionalSts" => settings.regional_sts = value.as_bool().unwrap(),
            "sessionName" => settings.session_name = value.as_bool().unwrap(),
            "noProxy" => settings.no_proxy = value.as_bool().unwrap(),
            "mountPath" => settings.web_identity.mount_path = text(),
            "expiration" => {
                settings.expiration_seconds = u32::try_from(value.as_u64().unwrap()).unwrap();
            }
            "invalidArn" if value == "inject" => settings.invalid_arn = InvalidArn::Inject,
            "containerUri" => settings.full_uri = text(),
            "containerAudience" => settings.container_credentials.audience = text(),
            "containerMountPath" => settings.container_credentials.mount_path = text(),
            "containerVolumeName" => settings.container_credentials.volume = text(),
            "containerTokenPath" => settings.container_credentials.file = text(),
            other => panic!("unknown setting {other}"),
        }
    }
    settings
}

/// Returns the resulting pod and the warnings.
fn result(case: &Case) -> (Value, Vec<String>) {
    let pod = to_raw_value(&case.pod).unwrap();
    let pod = Pod::parse(&pod).unwrap();
    if pod.is_skipped() {
        return (case.pod.clone(), Vec::new());
    }
    let settings = settings(case);
    let annotations = ServiceAccountAnnotations::parse("eks.amazonaws.com", |key| {
        case.service_account.get(key)?.as_str()
    });
    let identities = if case.container_credentials {
        json!({"identities": [{"namespace": NAMESPACE, "serviceAccount": ACCOUNT}]}).to_string()
    } else {
        String::new()
    };
    let config_map = match &case.config_map {
        Value::Null => String::new(),
        entries => entries.to_string(),
    };
    let assignment = RuleSet::default().assigned_role(NAMESPACE, ACCOUNT, &annotations, None);
    let resolved = Sources {
        annotations: &annotations,
        assignment: &assignment,
        container_identities: &ContainerIdentities::parse(&identities).unwrap(),
        config_map: &PodIdentityConfig::parse(&config_map).unwrap(),
        base: None,
    }
    .resolve(NAMESPACE, ACCOUNT, &settings);
    let mut warnings: Vec<_> = resolved.warning.into_iter().collect();
    let Some(identity) = resolved.identity else {
        return (case.pod.clone(), warnings);
    };
    let change = PodChange {
        pod: &pod,
        old: None,
        namespace: NAMESPACE,
        jitter: 0,
    };
    let mutation = inject(&change, &identity, &settings).unwrap();
    let patch: Patch = serde_json::from_value(json!(mutation.patch)).unwrap();
    let mut result = case.pod.clone();
    json_patch::patch(&mut result, &patch).unwrap();
    warnings.extend(mutation.warnings);
    (result, warnings)
}

fn files() -> Vec<PathBuf> {
    let folder = repository().join("tests/cases/injection");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn every_pod_has_its_expected_result() {
    let writes = std::env::var("INJECTION_CASES").is_ok_and(|value| value == "write");
    let mut count = 0;
    for file in files() {
        let name = file.display();
        let text = std::fs::read_to_string(&file).unwrap();
        let case: Case =
            serde_saphyr::from_str(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        let (result, warnings) = result(&case);
        let expected = (result != case.pod).then_some(result);
        if writes {
            let case = Case {
                expected,
                warnings,
                ..case
            };
            std::fs::write(&file, serde_saphyr::to_string(&case).unwrap()).unwrap();
            continue;
        }
        assert_eq!(expected, case.expected, "{name}");
        assert_eq!(warnings, case.warnings, "{name}");
        count += 1;
    }
    assert!(writes || count >= 24, "{count} cases");
}
