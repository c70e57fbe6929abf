use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_review::ValidationRules;

use super::*;
use crate::fixtures::{Fixture, NOW, rules};
use rolegate_api::manifest::documents;

const MANIFESTS: &str = "\
---
# Source: shop/templates/api.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: api
  namespace: shop
spec:
  template:
    metadata:
      annotations:
        iam.amazonaws.com/role: reader
    spec:
      containers: [{name: app, image: app}]
---
apiVersion: v1
kind: Pod
metadata:
  name: closed
  namespace: closed
  annotations:
    iam.amazonaws.com/role: reader
spec:
  containers: [{name: app, image: app}]
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
";

fn checked(fixture: &Fixture, text: &str) -> Findings {
    let config = RuleConfig::default();
    let keys = AnnotationKeys::default();
    let rules = ValidationRules {
        rules: &fixture.rules,
        config: &config,
        grants: &fixture.grants,
        keys: &keys,
        policies: None,
        accounts: None,
    };
    let creator = Creator {
        user: "ann".into(),
        groups: vec!["system:authenticated".into()],
    };
    let documents = documents(text).unwrap().documents;
    let manifests = documents.iter().map(|document| Manifest {
        file: "all.yaml",
        document,
        old: None,
        operation: Operation::Create,
        fault: None,
    });
    check(&rules, manifests, &creator, "shop", NOW)
}

fn summaries(report: &Findings) -> Vec<String> {
    let findings = report.findings.iter();
    findings
        .map(|one| {
            let level = one.level.as_str();
            format!(
                "{level} {}:{} {} {}",
                one.location.file, one.location.line, one.object.name, one.category
            )
        })
        .collect()
}

#[test]
fn faults_are_found_on_the_lines_of_their_annotations() {
    let report = checked(&rules(&[], Mode::Off), MANIFESTS);
    assert_eq!((report.objects.len(), report.failed()), (3, 1));
    assert_eq!(summaries(&report), ["error all.yaml:22 closed namespace"]);
    let report = checked(&rules(&[], Mode::Enforce), MANIFESTS);
    assert_eq!(report.failed(), 2);
    assert_eq!(summaries(&report)[0], "error all.yaml:12 api grants");
    assert_eq!(
        report.findings[0].location.template.as_deref(),
        Some("shop/templates/api.yaml")
    );
}

#[test]
fn what_is_on_trial_warns() {
    let report = checked(&rules(&[], Mode::Audit), MANIFESTS);
    assert_eq!(report.failed(), 1);
    assert_eq!(summaries(&report)[0], "warning all.yaml:12 api grants");
}

#[test]
fn a_namespace_that_nobody_knows_is_a_fault() {
    let text = MANIFESTS.replace("namespace: closed", "namespace: nowhere");
    let report = checked(&rules(&[], Mode::Off), &text);
    assert_eq!(summaries(&report), ["error all.yaml:20 closed rules"]);
}

#[test]
fn a_pod_that_is_malformed_is_refused_and_not_let_through() {
    let text =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop, annotations: [a]}\n";
    assert_eq!(checked(&rules(&[], Mode::Off), text).failed(), 1);
    let text = "apiVersion: v1\nkind: Pod\nmetadata: 1\n";
    assert_eq!(checked(&rules(&[], Mode::Off), text).failed(), 1);
}

#[test]
fn unvalidated_and_ineffective_parts_are_warnings_with_lines() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: api
  namespace: shop
  annotations:
    iam.amazonaws.com/role: reader
spec:
  template:
    spec:
      containers: [{name: app, image: app}]
---
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: ray, namespace: shop}
spec:
  headGroupSpec:
    template:
      spec:
        containers: [{name: app, image: app}]
---
apiVersion: v1
kind: pod
metadata: {name: p, namespace: shop}
";
    let mut report = checked(&rules(&[], Mode::Enforce), text);
    assert_eq!((report.failed(), report.warnings()), (0, 3));
    assert_eq!(
        summaries(&report),
        [
            "warning all.yaml:7 api check",
            "warning all.yaml:20 ray check",
            "warning all.yaml:23 p check",
        ]
    );
    assert_eq!(
        report.findings[0].path,
        "metadata.annotations[iam.amazonaws.com/role]"
    );
    assert_eq!(
        report.findings[1].path,
        "spec.headGroupSpec.template.spec.containers"
    );
    let suites = report.cases().suites;
    assert!(suites[0].cases.iter().all(|case| case.remarks.len() == 1));
    let failed = |suites: &[rolegate_report::cases::Suite]| {
        let passed = |case: &&rolegate_report::cases::Case| {
            case.result == rolegate_report::cases::CaseResult::Passed
        };
        suites[0].cases.iter().filter(|case| !passed(case)).count()
    };
    report.fails_on_warning = true;
    assert_eq!((failed(&suites), failed(&report.cases().suites)), (0, 3));
}

#[test]
fn null_and_empty_are_read_as_the_api_server_reads_them() {
    let text = "\
apiVersion: v1
kind: Pod
metadata:
  name: x
  namespace: ''
  annotations:
    iam.amazonaws.com/role:
spec:
  containers: [{name: app, image: app}]
";
    let report = checked(&rules(&[], Mode::Enforce), text);
    assert_eq!(report.findings, []);
    assert_eq!(report.objects[0].name.to_string(), "Pod shop/x");
}

#[test]
fn a_review_is_judged_with_lines_of_the_review() {
    let text = "\
apiVersion: admission.k8s.io/v1
kind: AdmissionReview
request:
  uid: u
  kind: {group: '', version: v1, kind: Pod}
  namespace: closed
  operation: CREATE
  object:
    metadata:
      name: x
      annotations:
        iam.amazonaws.com/role: reader
";
    let report = checked(&rules(&[], Mode::Off), text);
    assert_eq!(summaries(&report), ["error all.yaml:12 x namespace"]);
    let answer =
        "apiVersion: admission.k8s.io/v1\nkind: AdmissionReview\nresponse: {allowed: true}\n";
    let report = checked(&rules(&[], Mode::Off), answer);
    assert_eq!(report.failed(), 1);
}

#[test]
fn what_policies_are_not_asked_about_is_told() {
    let fixture = rules(&[], Mode::Off);
    let (mut config, keys) = (RuleConfig::default(), AnnotationKeys::default());
    let creator = Creator {
        user: "ann".into(),
        groups: Vec::new(),
    };
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop}\n";
    let documents = documents(text).unwrap().documents;
    let mut notes = |mode, operation| {
        config.modes[LayerId::Rego] = mode;
        let rules = ValidationRules {
            rules: &fixture.rules,
            config: &config,
            grants: &fixture.grants,
            keys: &keys,
            policies: None,
            accounts: None,
        };
        let manifest = Manifest {
            file: "all.yaml",
            document: &documents[0],
            old: None,
            operation,
            fault: None,
        };
        let report = check(&rules, [manifest], &creator, "shop", NOW);
        let findings = report.findings.into_iter();
        findings.map(|one| one.message).collect::<Vec<_>>()
    };
    let deleted = notes(Mode::Enforce, Operation::Delete);
    assert_eq!(
        deleted,
        ["policies are not evaluated for deletions and CONNECT"]
    );
    assert!(notes(Mode::Off, Operation::Delete).is_empty());
    assert!(notes(Mode::Enforce, Operation::Create).is_empty());
}
