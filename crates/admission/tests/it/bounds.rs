//! Whatever is sent: an error that says what is wrong, or a verdict, bounded, and never a panic.

use rolegate_admission::review::MAX_REVIEW;
use rolegate_admission::{Review, ReviewError, judge};
use rolegate_core::config::presets;
use serde_json::{Map, Value, json};

use crate::world::{NOW, Rules};

fn review(request: Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

fn request(kind: &str, object: Value) -> Value {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("shop");
    json!({
        "uid": "u-1", "operation": "CREATE", "name": "app", "namespace": namespace,
        "kind": {"group": "", "version": "v1", "kind": kind}, "object": object,
        "userInfo": {"username": "jane", "groups": null},
    })
}

fn error(body: &str) -> ReviewError {
    Review::parse(body.as_bytes()).unwrap_err()
}

#[test]
fn what_is_no_review_is_told_so() {
    for body in ["", "{", "[]x", "\u{0}", "{\"a\":}", "null", "[]"] {
        assert!(matches!(error(body), ReviewError::NotJson(_)), "{body}");
    }
    assert!(matches!(
        Review::parse(&[0xff, 0xfe]),
        Err(ReviewError::NotJson(_))
    ));
    let mut other = review(request("Pod", json!({})));
    for (field, value) in [
        ("kind", "Pod"),
        ("apiVersion", "admission.k8s.io/v1beta1"),
        ("apiVersion", "v1"),
    ] {
        let before = other[field].take();
        other[field] = value.into();
        let error = error(&other.to_string());
        assert!(matches!(error, ReviewError::NotAReview(_)), "{error}");
        assert!(error.to_string().contains(value), "{error}");
        other[field] = before;
    }
    assert!(matches!(error("{}"), ReviewError::NotAReview(_)));
    let answer =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {}});
    assert_eq!(error(&answer.to_string()), ReviewError::NoRequest);
    for none in [json!(null), json!([]), json!("x")] {
        assert_eq!(error(&review(none).to_string()), ReviewError::NoRequest);
    }
}

#[test]
fn a_request_without_uid_cannot_be_answered() {
    for uid in [json!(null), json!(""), json!("x".repeat(1000)), json!(7)] {
        let mut request = request("Pod", json!({}));
        request["uid"] = uid;
        assert_eq!(error(&review(request).to_string()).uid(), None);
    }
}

#[test]
fn a_request_that_cannot_be_read_is_refused_by_its_uid() {
    for (field, value) in [
        ("operation", json!("PATCH")),
        ("operation", json!(null)),
        ("kind", json!("Pod")),
        ("kind", json!({"group": ""})),
        ("namespace", json!(7)),
        ("userInfo", json!("jane")),
        ("userInfo", json!({"groups": "system:masters"})),
        ("subResource", json!({})),
    ] {
        let mut request = request("Pod", json!({}));
        request[field] = value.clone();
        let error = error(&review(request).to_string());
        assert_eq!(error.uid(), Some("u-1"), "{field}: {value}");
    }
    let twice = review(request("Pod", json!({})))
        .to_string()
        .replace("\"uid\":", "\"namespace\":\"kube-system\",\"uid\":");
    assert_eq!(error(&twice).uid(), Some("u-1"));
}

#[test]
fn nesting_bombs_are_refused() {
    let rules = Rules::of("annotations");
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let bomb = open.repeat(100_000);
        assert!(Review::parse(bomb.as_bytes()).is_err());
        let whole = format!("{bomb}1{}", close.repeat(100_000));
        assert!(Review::parse(whole.as_bytes()).is_err());
        // Within an object, which is read later.
        let body = review(request("Pod", json!({"spec": "BOMB"}))).to_string();
        let body = body.replace("\"BOMB\"", &whole);
        let review = Review::parse(body.as_bytes()).unwrap();
        let outcome = judge(&rules.gate(None), &review, NOW);
        assert!(
            outcome.message().contains("128 levels"),
            "{}",
            outcome.message()
        );
        // Where nobody reads it, it hurts nobody.
        let body = body.replace("\"kind\":\"Pod\"", "\"kind\":\"Widget\"");
        let review = Review::parse(body.as_bytes()).unwrap();
        assert!(judge(&rules.gate(None), &review, NOW).is_allowed());
    }
}

#[test]
fn bodies_are_bounded() {
    let large = vec![b' '; MAX_REVIEW + 1];
    assert_eq!(
        Review::parse(&large).unwrap_err(),
        ReviewError::TooLarge(MAX_REVIEW + 1)
    );
    // 3 MiB of annotations are read, and what is said of them stays short.
    let rules = Rules::of("annotations");
    let object = json!({"metadata": {"namespace": "shop", "annotations": {
        "iam.amazonaws.com/role": "a\u{1b}".repeat(750_000), "other": "x".repeat(1_500_000)}}});
    let outcome = rules.judge(&review(request("Pod", object)));
    assert!(!outcome.is_allowed());
    assert!(outcome.message().len() <= 4096);
}

#[test]
fn many_faults_are_told_in_a_bounded_message() {
    let rules = Rules::of("grants");
    let variables: Vec<_> = (0..5000)
        .map(|n| json!({"name": "AWS_ROLE_ARN", "value": format!("arn:aws:iam::123456789012:role/r{n}")}))
        .collect();
    let object = json!({"metadata": {"namespace": "shop"},
        "spec": {"containers": [{"name": "app", "env": variables}]}});
    let outcome = rules.judge(&review(request("Pod", object)));
    assert_eq!(outcome.faults.len(), 64);
    assert!(outcome.message().len() <= 4096);
}

#[test]
fn wrong_kinds_in_every_place_are_faults_and_no_panics() {
    let rules = Rules::of("guarded");
    let kinds = [
        ("", "Pod"),
        ("", "Binding"),
        ("", "ServiceAccount"),
        ("", "Namespace"),
        ("", "Service"),
        ("", "ConfigMap"),
        ("", "PodTemplate"),
        ("apps", "Deployment"),
        ("batch", "CronJob"),
        ("zalando.org", "AWSIAMRole"),
        ("rolegate.dev", "RoleGrant"),
    ];
    let wrong = [
        json!(7),
        json!("x"),
        json!([]),
        json!([[]]),
        json!(true),
        json!({"a": []}),
    ];
    for (group, kind) in kinds {
        for value in &wrong {
            for object in [
                value.clone(),
                json!({"metadata": value, "spec": value, "status": value, "data": value,
                    "template": value, "target": value}),
                json!({"metadata": {"annotations": value, "labels": value, "name": value},
                    "spec": {"template": value, "containers": value, "externalIPs": value,
                        "jobTemplate": value, "roleReference": value, "volumes": value}}),
            ] {
                for operation in ["CREATE", "UPDATE", "DELETE", "CONNECT"] {
                    let mut request = request(kind, json!({}));
                    request["kind"]["group"] = group.into();
                    request["operation"] = operation.into();
                    request["namespace"] = "opa".into();
                    request["object"] = object.clone();
                    request["oldObject"] = object.clone();
                    let outcome = rules.judge(&review(request));
                    assert!(outcome.message().len() <= 4096);
                }
            }
        }
    }
}

#[test]
fn a_creation_without_object_is_refused() {
    let rules = Rules::of("annotations");
    for object in [json!(null), json!(7), json!([])] {
        let outcome = rules.judge(&review(request("Pod", object)));
        assert!(
            outcome.message().contains("an object"),
            "{}",
            outcome.message()
        );
    }
}

#[test]
fn an_update_without_the_old_object_is_judged_whole() {
    let rules = Rules::of("annotations");
    let object = json!({"metadata": {"namespace": "shop",
        "annotations": {"iam.amazonaws.com/role": "admin"}}});
    let mut update = request("Pod", object.clone());
    update["operation"] = "UPDATE".into();
    assert!(!rules.judge(&review(update.clone())).is_allowed());
    update["oldObject"] = json!({"metadata": 7});
    assert!(!rules.judge(&review(update.clone())).is_allowed());
    update["oldObject"] = object;
    assert!(rules.judge(&review(update)).is_allowed());
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let rules = Rules::of("annotations");
    let body = review(request(
        "Pod",
        json!({"metadata": {"annotations": {"iam.amazonaws.com/role": "shop-reader"}}}),
    ));
    let body = body.to_string().replace(
        "\"iam.amazonaws.com/role\":",
        "\"iam.amazonaws.com/role\":\"admin\",\"iam.amazonaws.com/role\":",
    );
    let review = Review::parse(body.as_bytes()).unwrap();
    let outcome = judge(&rules.gate(None), &review, NOW);
    assert!(
        outcome.message().contains("each key once"),
        "{}",
        outcome.message()
    );
}

/// Each of them may have a verdict of its own: a Pod of 3 MiB has room for 68,000.
#[test]
fn an_object_that_names_thousands_of_roles_is_refused_before_they_are_judged() {
    let rules = Rules::of("annotations");
    let pod = |roles: u32| {
        let variables = (0..roles).map(|n| {
            json!({"name": "AWS_ROLE_ARN",
                "value": format!("arn:aws:iam::123456789012:role/shop-{n}")})
        });
        let variables: Vec<_> = variables.collect();
        json!({"metadata": {"namespace": "shop"},
            "spec": {"containers": [{"name": "app", "env": variables}]}})
    };
    assert!(rules.judge(&review(request("Pod", pod(500)))).is_allowed());
    let outcome = rules.judge(&review(request("Pod", pod(20_000))));
    let message = outcome.message();
    assert!(message.contains("at most 512 roles"), "{message}");
    // The same over the templates of one object.
    let template = json!({"spec": {"containers": [
        {"env": [{"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::123456789012:role/shop-a"},
            {"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::123456789012:role/shop-b"}]}]}});
    let specs: Map<String, Value> = (0..250)
        .map(|n| (n.to_string(), json!({"template": template})))
        .collect();
    let mut job = request(
        "PyTorchJob",
        json!({"metadata": {"namespace": "shop"}, "spec": {"pytorchReplicaSpecs": specs}}),
    );
    job["kind"]["group"] = "kubeflow.org".into();
    let mut rules = rules;
    let mut config = (*rules.config).clone();
    config.templates = presets::preset("kubeflow").unwrap();
    rules.config = config.into();
    let message = rules.judge(&review(job)).message();
    assert!(message.contains("at most 512 roles"), "{message}");
}

/// Compared with each other they would take minutes.
#[test]
fn a_service_of_very_many_addresses_is_judged_once_for_each() {
    let rules = Rules::of("annotations");
    let service = |last: &str| {
        let mut all: Vec<_> = (0..150_000).map(|n| format!("10.{n}")).collect();
        all.push("169.254.169.254".into());
        all.push(last.into());
        json!({"metadata": {"namespace": "shop"}, "spec": {"externalIPs": all}})
    };
    let mut update = request("Service", service("169.254.170.2"));
    update["operation"] = "UPDATE".into();
    update["oldObject"] = service("10.0.0.1");
    let outcome = rules.judge(&review(update));
    assert_eq!(outcome.faults.len(), 1, "{}", outcome.message());
    assert_eq!(outcome.faults[0].path, "spec.externalIPs[150001]");
}
