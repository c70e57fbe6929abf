//! The table of cases: the outcome of admission, its messages, and the agent's decision.

use std::collections::{BTreeMap, BTreeSet};

use rolegate_core::annotation::{EXTERNAL_ID, MIRROR, ROLE, SESSION_NAME};
use rolegate_core::decision::Decision;
use rolegate_core::test_util;
use rolegate_core::workload::{RoleRequest, Workload};
use rolegate_review::Outcome;
use rolegate_testkit::cases::{AgentResult, Case, Verdict, load_all};
use serde_json::Value;

use crate::world::{NOW, Rules};

fn rules(cases: &[Case]) -> BTreeMap<String, Rules> {
    let worlds: BTreeSet<_> = cases.iter().map(|case| case.world.name.clone()).collect();
    let worlds = worlds.into_iter();
    worlds
        .map(|name| (name.clone(), Rules::of(&name)))
        .collect()
}

/// Returns the differences between an outcome and its case.
fn violations(case: &Case, outcome: &Outcome) -> Vec<String> {
    let mut wrong = Vec::new();
    let message = outcome.message();
    if outcome.is_allowed() != (case.expect.admission == Verdict::Allow) {
        wrong.push(format!(
            "admission should {:?}: {message:?}",
            case.expect.admission
        ));
    }
    for text in &case.expect.says {
        if !message.contains(text) {
            wrong.push(format!("{text:?} is not said: {message}"));
        }
    }
    let warnings = outcome.warning_texts().join("\n");
    for text in &case.expect.warns {
        if !warnings.contains(text) {
            wrong.push(format!("{text:?} is not warned about: {warnings}"));
        }
    }
    if case.expect.warns.is_empty() && !warnings.is_empty() {
        wrong.push(format!("unexpected warnings: {warnings}"));
    }
    wrong
}

#[test]
fn admission_matches_the_table() {
    let cases = load_all().unwrap();
    assert!(cases.len() >= 90, "only {} cases", cases.len());
    let rules = rules(&cases);
    let mut wrong = Vec::new();
    for case in &cases {
        let outcome = rules[&case.world.name].validate(&case.review());
        for violation in violations(case, &outcome) {
            wrong.push(format!("{}: {}: {violation}", case.file, case.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The review of a creation has no name if the URL has none. The name is then in the object.
#[test]
fn a_creation_without_a_name_in_its_url_is_validated_alike() {
    let cases = load_all().unwrap();
    let rules = rules(&cases);
    let mut asked = 0;
    for case in &cases {
        if case.operation != "CREATE" || !case.subresource.is_empty() {
            continue;
        }
        asked += 1;
        let mut review = case.review();
        let fields = review["request"].as_object_mut().unwrap();
        fields.remove("name");
        let rules = &rules[&case.world.name];
        let (with, without) = (rules.validate(&case.review()), rules.validate(&review));
        assert_eq!(
            (with.is_allowed(), with.message()),
            (without.is_allowed(), without.message()),
            "{}: {}",
            case.file,
            case.name
        );
    }
    assert!(asked > 100, "only {asked} creations");
}

/// Returns the pod as an agent would know it, parsed independently of the validator.
fn workload(pod: &Value) -> Workload {
    let metadata = &pod["metadata"];
    let annotation = |key: &str| metadata["annotations"][key].as_str().map(str::trim);
    let given = |key: &str| {
        annotation(key)
            .filter(|text| !text.is_empty())
            .map(Into::into)
    };
    let labels = metadata["labels"].as_object().into_iter().flatten();
    Workload {
        namespace: metadata["namespace"].as_str().unwrap().into(),
        name: metadata["name"].as_str().unwrap_or("app-x7x7x").into(),
        service_account: pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or("default")
            .into(),
        mirror: annotation(MIRROR).is_some(),
        role_request: RoleRequest {
            role: annotation(ROLE).map(Into::into),
            external_id: given(EXTERNAL_ID),
            session_name: given(SESSION_NAME),
        },
        labels: labels
            .map(|(key, value)| (key, value.as_str().unwrap()))
            .collect(),
        annotations: [ROLE, EXTERNAL_ID]
            .into_iter()
            .filter_map(|key| Some((key, metadata["annotations"][key].as_str()?)))
            .collect(),
        ..test_util::pod(None)
    }
}

#[test]
fn agents_match_the_table() {
    let cases = load_all().unwrap();
    let rules = rules(&cases);
    let mut asked = 0;
    for case in &cases {
        let Some(agent) = case.expect.agent else {
            continue;
        };
        asked += 1;
        let decision = rules[&case.world.name]
            .agent
            .decide(&workload(case.subject()), NOW);
        let got = match &decision {
            Decision::Allow { .. } => AgentResult::Allow,
            Decision::Deny(_) => AgentResult::Deny,
            Decision::NoRole => AgentResult::None,
            Decision::Pending => panic!("{}: the world has no such namespace", case.name),
        };
        assert_eq!(got, agent, "{}: {}: {decision:?}", case.file, case.name);
    }
    assert!(asked >= 60, "only {asked} pods");
}

#[test]
fn every_answer_is_one_that_the_api_server_takes() {
    let cases = load_all().unwrap();
    let rules = rules(&cases);
    for case in &cases {
        let body = case.review().to_string();
        let review = rolegate_review::Review::parse(body.as_bytes()).unwrap();
        let rules = &rules[&case.world.name];
        let validation = rules.validation(Some(&*rules.policies));
        let answer = rolegate_review::validate(&validation, &review, NOW).answer(&review);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        let response = &answer["response"];
        assert_eq!(response["uid"], review.uid());
        let allowed = case.expect.admission == Verdict::Allow;
        assert_eq!(response["allowed"], allowed, "{}", case.name);
        if allowed {
            assert_eq!(response["status"], Value::Null);
        } else {
            assert_eq!(response["status"]["code"], 403);
            assert_eq!(response["status"]["reason"], "Forbidden");
            assert!(!response["status"]["message"].as_str().unwrap().is_empty());
        }
    }
}

#[test]
fn every_threat_to_admission_has_a_case() {
    let names: Vec<_> = load_all()
        .unwrap()
        .into_iter()
        .map(|case| case.name)
        .collect();
    for threat in [4, 6, 7, 10, 14, 21, 22, 25] {
        let start = format!("threat {threat},");
        assert!(names.iter().any(|name| name.starts_with(&start)), "{start}");
    }
}
