//! For any input: an error with its cause, or an outcome, bounded, and never a panic.

use rolegate_core::config::presets;
use rolegate_review::admission_review::{MAX_REVIEW_BYTES, ReviewVersion};
use rolegate_review::{Review, ReviewError, validate};
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
fn invalid_reviews_are_errors() {
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
        ("apiVersion", "admission.k8s.io/v1alpha1"),
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
        assert_eq!(
            error.uid(),
            Some((ReviewVersion::V1, "u-1")),
            "{field}: {value}"
        );
    }
    let twice = review(request("Pod", json!({})))
        .to_string()
        .replace("\"uid\":", "\"namespace\":\"kube-system\",\"uid\":");
    assert_eq!(error(&twice).uid(), Some((ReviewVersion::V1, "u-1")));
}

#[test]
fn nesting_bombs_are_refused() {
    let rules = Rules::of("annotations");
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let bomb = open.repeat(100_000);
        assert!(Review::parse(bomb.as_bytes()).is_err());
        let whole = format!("{bomb}1{}", close.repeat(100_000));
        assert!(Review::parse(whole.as_bytes()).is_err());
        // Within an object, which is parsed later.
        let body = review(request("Pod", json!({"spec": "BOMB"}))).to_string();
        let body = body.replace("\"BOMB\"", &whole);
        let review = Review::parse(body.as_bytes()).unwrap();
        let outcome = validate(&rules.validation(None), &review, NOW);
        assert!(
            outcome.message().contains("128 levels"),
            "{}",
            outcome.message()
        );
        // It does no harm if it is never parsed.
        let body = body.replace("\"kind\":\"Pod\"", "\"kind\":\"Widget\"");
        let review = Review::parse(body.as_bytes()).unwrap();
        assert!(validate(&rules.validation(None), &review, NOW).is_allowed());
    }
}

#[test]
fn bodies_are_bounded() {
    let large = vec![b' '; MAX_REVIEW_BYTES + 1];
    assert_eq!(
        Review::parse(&large).unwrap_err(),
        ReviewError::TooLarge(MAX_REVIEW_BYTES + 1)
    );
    // 3 MiB of annotations are read, and the messages about them stay short.
    let rules = Rules::of("annotations");
    let object = json!({"metadata": {"namespace": "shop", "annotations": {
        "iam.amazonaws.com/role": "a\u{1b}".repeat(750_000), "other": "x".repeat(1_500_000)}}});
    let outcome = rules.validate(&review(request("Pod", object)));
    assert!(!outcome.is_allowed());
    assert!(outcome.message().len() <= 4096);
}

#[test]
fn many_violations_fit_in_a_bounded_message() {
    let rules = Rules::of("grants");
    let variables: Vec<_> = (0..5000)
        .map(|n| json!({"name": "AWS_ROLE_ARN", "value": format!("arn:aws:iam::123456789012:role/r{n}")}))
        .collect();
    let object = json!({"metadata": {"namespace": "shop"},
        "spec": {"containers": [{"name": "app", "env": variables}]}});
    let outcome = rules.validate(&review(request("Pod", object)));
    assert_eq!(outcome.violations.len(), 64);
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
                    let outcome = rules.validate(&review(request));
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
        let outcome = rules.validate(&review(request("Pod", object)));
        assert!(
            outcome.message().contains("an object"),
            "{}",
            outcome.message()
        );
    }
}

#[test]
fn an_update_without_the_old_object_is_validated_whole() {
    let rules = Rules::of("annotations");
    let object = json!({"metadata": {"namespace": "shop",
        "annotations": {"iam.amazonaws.com/role": "admin"}}});
    let mut update = request("Pod", object.clone());
    update["operation"] = "UPDATE".into();
    assert!(!rules.validate(&review(update.clone())).is_allowed());
    update["oldObject"] = json!({"metadata": 7});
    assert!(!rules.validate(&review(update.clone())).is_allowed());
    update["oldObject"] = object;
    assert!(rules.validate(&review(update)).is_allowed());
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
    let outcome = validate(&rules.validation(None), &review, NOW);
    assert!(
        outcome.message().contains("without duplicate keys"),
        "{}",
        outcome.message()
    );
}

/// Each role name may need its own decision. A Pod of 3 MiB can name 68,000 roles.
#[test]
fn an_object_with_thousands_of_roles_is_denied_unevaluated() {
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
    assert!(
        rules
            .validate(&review(request("Pod", pod(500))))
            .is_allowed()
    );
    let outcome = rules.validate(&review(request("Pod", pod(20_000))));
    let message = outcome.message();
    assert!(message.contains("at most 512 roles"), "{message}");
    // The same across the templates of one object.
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
    let message = rules.validate(&review(job)).message();
    assert!(message.contains("at most 512 roles"), "{message}");
}

/// Comparing all pairs would take minutes.
#[test]
fn addresses_of_a_large_service_are_checked_once() {
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
    let outcome = rules.validate(&review(update));
    assert_eq!(outcome.violations.len(), 1, "{}", outcome.message());
    assert_eq!(outcome.violations[0].path, "spec.externalIPs[150001]");
}
