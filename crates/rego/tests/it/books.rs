//! Tests of the policy store: valid and broken ConfigMaps, libraries, data, required policies.

use std::collections::BTreeMap;

use rolegate_rego::{
    EnforcementPoints, Kind, Limits, PolicySource, PolicyStatus, PolicyStore, Replicated, Required,
    Settings, Syntax,
};
use serde_json::json;

use crate::helpers::{
    ADMISSION, BOTH, data, denies_all, error, evaluate, messages, namespace, pod_review, policy,
    store,
};

fn any_pod() -> serde_json::Value {
    pod_review(json!({}), json!({"containers": []}))
}

#[test]
fn each_message_belongs_to_its_config_map() {
    let mut store = store([
        policy("one", ADMISSION, &denies_all("from one")),
        policy(
            "two",
            ADMISSION,
            "package kubernetes.admission\n\ndeny contains \"from two\" if true\n",
        ),
        policy(
            "three",
            ADMISSION,
            "package kubernetes.admission\n\ndeny[{\"msg\": \"from three\"}] { true }\n",
        ),
    ]);
    let findings = evaluate(&store.snapshot(), &any_pod());
    let actual: Vec<(&str, &str)> = findings
        .denials
        .iter()
        .map(|one| (&*one.policy, one.message.as_str()))
        .collect();
    assert_eq!(
        actual,
        [
            ("opa/one", "from one"),
            ("opa/three", "from three"),
            ("opa/two", "from two")
        ]
    );
    assert_eq!(findings.rule(), "opa/one, opa/three, opa/two");
    assert_eq!(findings.reason(), "from one; from three; from two");
    assert_eq!(findings.evaluated.len(), 3);
}

#[test]
fn helpers_of_one_config_map_are_there_for_another() {
    let mut store = store([
        policy(
            "rules",
            ADMISSION,
            "package kubernetes.admission\n\nimport data.lib.roles\n\ndeny[msg] { is_pod; not roles.known(\"admin\"); msg := \"unknown role\" }\n",
        ),
        policy(
            "helpers",
            ADMISSION,
            "package kubernetes.admission\n\nis_pod { input.request.kind.kind == \"Pod\" }\ndeny[\"helper's own\"] { false }\n",
        ),
        policy(
            "library",
            ADMISSION,
            "package lib.roles\n\nimport rego.v1\n\nknown(role) if role in {\"reader\"}\n",
        ),
    ]);
    assert_eq!(store.never_loaded(), BTreeMap::new());
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["unknown role"]
    );
}

#[test]
fn the_order_in_which_library_and_user_come_does_not_matter() {
    let user = policy(
        "a-user",
        ADMISSION,
        "package kubernetes.admission\n\ndeny[msg] { msg := data.lib.say(\"hello\") }\n",
    );
    let library = policy(
        "library",
        ADMISSION,
        "package lib\n\nsay(x) = y { y := upper(x) }\n",
    );
    let mut store = store([user]);
    assert!(
        error(&store, "a-user").contains("line 3: function data.lib.say is not defined"),
        "{}",
        error(&store, "a-user")
    );
    assert_eq!(messages(&evaluate(&store.snapshot(), &any_pod())).len(), 1);
    store.apply(library);
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["HELLO"]
    );
    store.delete(Kind::Policy, "opa", "library");
    assert!(store.never_loaded().contains_key("opa/a-user"));
    assert!(!evaluate(&store.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn a_broken_change_keeps_the_previous_version() {
    let mut store = store([
        policy("one", ADMISSION, &denies_all("good")),
        policy("two", ADMISSION, &denies_all("other")),
    ]);
    store.apply(policy(
        "one",
        ADMISSION,
        "package kubernetes.admission\n\ndeny[msg] { msg := \n",
    ));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["good", "other"]
    );
    let statuses = store.statuses();
    let status = &statuses["opa/one"];
    let PolicyStatus::Error {
        error,
        keeps_last_good,
    } = status
    else {
        panic!("{status:?}");
    };
    assert!(keeps_last_good);
    assert!(
        error.to_string().starts_with("opa/one: main.rego, line "),
        "{error}"
    );
    assert_eq!(status.to_json()["status"], "error");
    assert_eq!(status.to_json()["error"]["code"], "rego_parse_error");
    assert_eq!(statuses["opa/two"].to_json()["status"], "ok");
    assert!(store.never_loaded().is_empty());
    store.apply(policy("one", ADMISSION, &denies_all("mended")));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["mended", "other"]
    );
}

#[test]
fn who_comes_later_and_does_not_fit_is_to_blame() {
    let library = |name, text: &str| policy(name, ADMISSION, text);
    let mut store = store([
        policy(
            "user",
            ADMISSION,
            "package kubernetes.admission\n\ndeny[msg] { f(1); msg := \"runs\" }\nf(x) { x == 1 }\n",
        ),
        library(
            "other",
            "package kubernetes.admission\n\nf(x, y) { x == y }\n",
        ),
    ]);
    assert!(
        error(&store, "other").contains("has another kind in opa/user"),
        "{}",
        error(&store, "other")
    );
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())).first(),
        Some(
            &"policy opa/other is not in use, so every request is denied: opa/other: main.rego, line 3: data.kubernetes.admission.f has another kind in opa/user: main.rego: a name must be one set, value or function"
        )
    );
    assert!(messages(&evaluate(&store.snapshot(), &any_pod())).contains(&"runs"));
    store.delete(Kind::Policy, "opa", "other");
    assert_eq!(messages(&evaluate(&store.snapshot(), &any_pod())), ["runs"]);
}

#[test]
fn threat_10_a_policy_that_never_loaded_denies_what_it_would_be_asked() {
    let mut store = store([policy(
        "broken",
        ADMISSION,
        "package kubernetes.admission\n\ndeny[msg] {",
    )]);
    assert_eq!(store.never_loaded().len(), 1);
    let policies = store.snapshot();
    assert!(
        policies.has_admission_policies() && !policies.has_agent_policies() && !policies.is_empty()
    );
    let findings = evaluate(&policies, &any_pod());
    assert_eq!(findings.rule(), "opa/broken");
    assert!(
        findings
            .reason()
            .contains("is not in use, so every request is denied"),
        "{findings:?}"
    );
    store.apply(policy(
        "broken",
        BOTH,
        "package kubernetes.admission\n\ndeny[msg] {",
    ));
    assert!(store.snapshot().has_agent_policies());
}

#[test]
fn threat_10_a_required_policy_that_is_not_there_denies_everywhere() {
    let mut store = PolicyStore::new(Settings {
        required: vec![Required {
            namespace: "opa".into(),
            name: "roles".into(),
        }],
        ..Settings::default()
    });
    assert_eq!(
        store.missing().iter().map(|id| &**id).collect::<Vec<_>>(),
        ["opa/roles"]
    );
    let policies = store.snapshot();
    assert!(policies.has_admission_policies() && policies.has_agent_policies());
    assert!(
        evaluate(&policies, &any_pod())
            .reason()
            .contains("required policy opa/roles is missing")
    );
    store.apply(policy(
        "roles",
        ADMISSION,
        "package kubernetes.admission\n\ndeny[msg] { false; msg := 1 }\n",
    ));
    assert!(store.missing().is_empty());
    assert!(evaluate(&store.snapshot(), &any_pod()).is_allowed());
    store.replace_all(Kind::Policy, []);
    assert!(!evaluate(&store.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn a_snapshot_replaces_all_and_stays_as_it_was() {
    let mut store = store([policy("one", ADMISSION, &denies_all("one"))]);
    let before = store.snapshot();
    store.replace_all(
        Kind::Policy,
        [
            policy("two", ADMISSION, &denies_all("two")),
            policy("bad", ADMISSION, "x"),
            policy("three", ADMISSION, &denies_all("three")),
        ],
    );
    let after = store.snapshot();
    assert_eq!(messages(&evaluate(&before, &any_pod())), ["one"]);
    assert_eq!(
        messages(&evaluate(&after, &any_pod()))[1..],
        ["three", "two"]
    );
    store.replace_all(Kind::Policy, []);
    assert!(store.snapshot().is_empty());
}

#[test]
fn data_comes_as_json_or_yaml_and_goes() {
    let rego =
        "package kubernetes.admission\n\ndeny[msg] { msg := data.opa.lists.roles.allowed[_] }\n";
    let mut store = store([
        policy("one", ADMISSION, rego),
        data("opa", "lists", "roles", "{\"allowed\": [\"a\"]}"),
    ]);
    assert_eq!(messages(&evaluate(&store.snapshot(), &any_pod())), ["a"]);
    store.apply(data("opa", "lists", "roles", "allowed:\n- b\n- c\n"));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["b", "c"]
    );
    store.apply(data("opa", "lists", "roles", "{\"allowed\": ["));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["b", "c"]
    );
    assert!(error(&store, "lists").starts_with("opa/lists: roles: "));
    store.delete(Kind::Data, "opa", "lists");
    assert!(evaluate(&store.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn data_cannot_pass_for_replicated_objects() {
    let rego = "package kubernetes.admission\n\ndeny[msg] { msg := data.kubernetes.namespaces[\"x\"].trusted }\n";
    let mut store = store([
        policy("one", ADMISSION, rego),
        data("kubernetes", "namespaces", "x", "{\"trusted\": \"yes\"}"),
    ]);
    assert!(evaluate(&store.snapshot(), &any_pod()).is_allowed());
    assert_eq!(
        store.statuses()["kubernetes/namespaces"].to_json()["status"],
        "error"
    );
}

#[test]
fn replicated_objects_come_change_and_go() {
    let rego = "package kubernetes.admission\n\ndeny[msg] { msg := data.kubernetes.namespaces[input.request.namespace].metadata.annotations.owner }\n";
    let mut store = store([policy("one", ADMISSION, rego)]);
    let pod = any_pod();
    assert!(evaluate(&store.snapshot(), &pod).is_allowed());
    store.replicate(&namespace("team-a", json!({"owner": "ann"})));
    assert_eq!(messages(&evaluate(&store.snapshot(), &pod)), ["ann"]);
    store.replicate(&namespace("team-a", json!({"owner": "bob"})));
    assert_eq!(messages(&evaluate(&store.snapshot(), &pod)), ["bob"]);
    store.forget("namespaces", None, "team-a");
    assert!(evaluate(&store.snapshot(), &pod).is_allowed());
    store.replicate_all(
        "namespaces",
        &[namespace("team-a", json!({"owner": "eve"}))],
    );
    assert_eq!(messages(&evaluate(&store.snapshot(), &pod)), ["eve"]);
    store.replicate_all("namespaces", &[]);
    assert!(evaluate(&store.snapshot(), &pod).is_allowed());
}

#[test]
fn more_data_than_there_may_be_denies_what_reads_any() {
    let mut store = PolicyStore::new(Settings {
        limits: Limits {
            data_bytes: 1000,
            ..Limits::default()
        },
        ..Settings::default()
    });
    store.apply(policy(
        "one",
        ADMISSION,
        "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.namespaces.bad; msg := 1 }\n",
    ));
    store.apply(policy("other", ADMISSION, &denies_all("reads none")));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["reads none"]
    );
    store.replicate(&Replicated {
        object: json!("x".repeat(2000)).to_string().into(),
        ..namespace("big", json!({}))
    });
    let findings = evaluate(&store.snapshot(), &any_pod());
    let [first, second] = messages(&findings)[..] else {
        panic!("{findings:?}");
    };
    assert!(first.contains("replicate fewer resources"), "{first}");
    assert_eq!(second, "reads none");
    store.forget("namespaces", None, "big");
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["reads none"]
    );
}

#[test]
fn syntax_is_detected_for_each_module() {
    let entries = BTreeMap::from([
        ("a-v0".into(), "package a\n\np[x] { x := 1 }\n".into()),
        ("b-v1".into(), "package b\n\np contains 1 if true\n".into()),
        (
            "c-import".into(),
            "package c\n\nimport rego.v1\n\np := 1\n".into(),
        ),
        (
            "d-keywords".into(),
            "package d\n\nimport future.keywords.if\n\np { true }\nq if { true }\n".into(),
        ),
        (
            "e-if-in-text".into(),
            "package e\n\n# if it contains if\np[x] { x := \"if contains\" }\n".into(),
        ),
    ]);
    let store = store([PolicySource {
        entries,
        ..policy("mixed", ADMISSION, "")
    }]);
    let statuses = store.statuses();
    let PolicyStatus::Ok { syntax, .. } = &statuses["opa/mixed"] else {
        panic!("{statuses:?}");
    };
    let read: Vec<_> = syntax.values().copied().collect();
    assert_eq!(
        read,
        [Syntax::V0, Syntax::V1, Syntax::V1, Syntax::V0, Syntax::V0]
    );
}

#[test]
fn policies_report_that_they_read_the_time() {
    let rego = "package kubernetes.admission\n\ndeny[msg] { late; msg := \"late\" }\nlate { time.now_ns() > 5 }\n";
    let quiet = "package kubernetes.admission\n\ndeny[msg] { false; msg := \"x\" }\n";
    let mut store = store([
        policy("timed", BOTH, rego),
        policy("quiet", ADMISSION, quiet),
    ]);
    let json = |id: &str, store: &PolicyStore| store.statuses()[id].to_json()["readsTime"].clone();
    assert_eq!(json("opa/timed", &store), true);
    assert_eq!(json("opa/quiet", &store), false);
    assert!(store.snapshot().reads_time_at_agents());
    store.apply(policy(
        "timed",
        EnforcementPoints {
            admission: true,
            agent: false,
        },
        rego,
    ));
    assert!(!store.snapshot().reads_time_at_agents());
}

/// The interpreter runs all bodies of a function as if they were in the module of the first, with
/// wrong results.
#[test]
fn a_function_must_be_in_one_module() {
    let [one, other] = [("1", "one"), ("2", "two")].map(|(number, name)| {
        format!(
            "package lib\nnames[y] {{ input.request.number == {number}; y := \"{name}\" }}\n\
             name = y {{ input.request.number == {number}; y := \"{name}\" }}\n"
        )
    });
    let asks = "package kubernetes.admission\nimport data.lib\n\
                deny[msg] { lib.names[x]; msg := concat(\" \", [x, lib.name]) }\n";
    let mut store = store([
        policy("a", ADMISSION, &one),
        policy("b", ADMISSION, &other),
        policy("c", ADMISSION, asks),
    ]);
    for (number, said) in [(1, "one one"), (2, "two two")] {
        let findings = evaluate(&store.snapshot(), &json!({"request": {"number": number}}));
        assert_eq!(findings.reason(), said, "{findings:?}");
    }
    let function = |number| format!("package lib\nf(x) = y {{ x == {number}; y := x }}\n");
    store.apply(policy("d", ADMISSION, &function(1)));
    store.apply(policy("e", ADMISSION, &function(2)));
    assert!(matches!(
        store.statuses().get("opa/d"),
        Some(PolicyStatus::Ok { .. })
    ));
    let actual = error(&store, "e");
    assert!(
        actual.contains("one module") && actual.contains("data.lib.f"),
        "{actual}"
    );
}

#[test]
fn threat_10_data_that_never_could_be_read_deny_what_reads_them() {
    let reads = policy(
        "reads",
        ADMISSION,
        "package kubernetes.admission\n\nimport data.opa.roles\n\n\
         deny[msg] { roles.list.banned[_] == input.request.namespace; msg := \"banned\" }\n",
    );
    let mut store = store([reads, policy("other", ADMISSION, &denies_all("other"))]);
    // As after a restart, without a previous valid version.
    store.apply(data("opa", "roles", "list", "{\"banned\": [\"team"));
    let findings = evaluate(&store.snapshot(), &any_pod());
    let of = |name: &str| {
        let mut denials = findings.denials.iter();
        let found = denials.find(|finding| &*finding.policy == name);
        found.map(|finding| finding.message.clone()).unwrap()
    };
    assert!(
        of("opa/reads").contains("the data is invalid"),
        "{findings:?}"
    );
    assert_eq!(of("opa/other"), "other", "what does not read them goes on");
    store.apply(data("opa", "roles", "list", "{\"banned\": [\"team-b\"]}"));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["other"]
    );
    // The previous valid version is kept.
    store.apply(data("opa", "roles", "list", "{"));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["other"]
    );
}

#[test]
fn data_can_be_required_too() {
    let mut store = PolicyStore::new(Settings {
        required: vec![Required {
            namespace: "opa".into(),
            name: "roles".into(),
        }],
        ..Settings::default()
    });
    store.apply(data("opa", "roles", "list", "{"));
    assert_eq!(store.missing().len(), 1);
    store.apply(data("opa", "roles", "list", "{}"));
    assert!(store.missing().is_empty());
    assert!(evaluate(&store.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn rule_09_what_cannot_be_replicated_denies_what_reads_it_and_nothing_else() {
    let mut store = store([
        policy(
            "widgets",
            ADMISSION,
            "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.widgets[_][_].spec.bad; msg := \"bad\" }\n",
        ),
        policy(
            "namespaces",
            ADMISSION,
            "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.namespaces.closed; msg := \"closed\" }\n",
        ),
    ]);
    store.replicate(&namespace("closed", json!({})));
    store.replicate(&Replicated {
        resource: "widgets".into(),
        namespace: Some("tenant".into()),
        name: "deep".into(),
        object: format!("{}{}", "[".repeat(200), "]".repeat(200)).into(),
    });
    let findings = evaluate(&store.snapshot(), &any_pod());
    assert_eq!(
        messages(&findings),
        [
            "closed",
            "data.kubernetes.widgets.tenant.deep could not be replicated: nested too deeply"
        ]
    );
    store.forget("widgets", Some("tenant"), "deep");
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["closed"]
    );
}

#[test]
fn rule_09_objects_beyond_the_bound_are_left_out_until_there_is_room_for_all() {
    let mut store = PolicyStore::new(Settings {
        limits: Limits {
            data_bytes: 4096,
            ..Limits::default()
        },
        ..Settings::default()
    });
    store.apply(policy(
        "namespaces",
        ADMISSION,
        "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.namespaces[_].metadata.annotations.bad; msg := \"bad\" }\n",
    ));
    let large = |name: &str| namespace(name, json!({"x": "x".repeat(1500)}));
    for name in ["a", "b"] {
        store.replicate(&large(name));
    }
    assert!(evaluate(&store.snapshot(), &any_pod()).is_allowed());
    for n in 0..100 {
        store.replicate(&large(&format!("more-{n}")));
    }
    store.leave_out("namespaces", None, "unseen", 1 << 20);
    // It denies, whatever the omitted object contains.
    assert!(!evaluate(&store.snapshot(), &any_pod()).is_allowed());
    assert!(store.fit_again().is_empty());
    for n in 0..100 {
        store.forget("namespaces", None, &format!("more-{n}"));
    }
    assert!(!evaluate(&store.snapshot(), &any_pod()).is_allowed());
    assert!(store.fit_again().is_empty(), "one exceeds the limit");
    store.leave_out("namespaces", None, "unseen", 10);
    assert_eq!(store.fit_again(), ["namespaces".to_owned()].into());
    store.replicate_all("namespaces", [&large("a"), &large("b")]);
    assert!(store.fit_again().is_empty());
    assert!(evaluate(&store.snapshot(), &any_pod()).is_allowed());
}
