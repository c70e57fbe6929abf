//! What comes and goes: good and broken ConfigMaps, libraries, data, required policies.

use std::collections::BTreeMap;

use rolegate_rego::{
    Kind, Limits, Points, PolicyBook, PolicySource, PolicyStatus, Replicated, Required, Settings,
    Syntax,
};
use serde_json::json;

use crate::stage::{
    BOTH, GATE, book, data, denies_all, error, judge, messages, namespace, pod_review, policy,
};

fn any_pod() -> serde_json::Value {
    pod_review(json!({}), json!({"containers": []}))
}

#[test]
fn each_message_is_of_the_config_map_that_says_it() {
    let mut book = book([
        policy("one", GATE, &denies_all("from one")),
        policy(
            "two",
            GATE,
            "package kubernetes.admission\n\ndeny contains \"from two\" if true\n",
        ),
        policy(
            "three",
            GATE,
            "package kubernetes.admission\n\ndeny[{\"msg\": \"from three\"}] { true }\n",
        ),
    ]);
    let findings = judge(&book.snapshot(), &any_pod());
    let told: Vec<(&str, &str)> = findings
        .denials
        .iter()
        .map(|one| (&*one.policy, one.message.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("opa/one", "from one"),
            ("opa/three", "from three"),
            ("opa/two", "from two")
        ]
    );
    assert_eq!(findings.rule(), "opa/one, opa/three, opa/two");
    assert_eq!(findings.reason(), "from one; from three; from two");
    assert_eq!(findings.asked.len(), 3);
}

#[test]
fn helpers_of_one_config_map_are_there_for_another() {
    let mut book = book([
        policy(
            "rules",
            GATE,
            "package kubernetes.admission\n\nimport data.lib.roles\n\ndeny[msg] { is_pod; not roles.known(\"admin\"); msg := \"unknown role\" }\n",
        ),
        policy(
            "helpers",
            GATE,
            "package kubernetes.admission\n\nis_pod { input.request.kind.kind == \"Pod\" }\ndeny[\"helper's own\"] { false }\n",
        ),
        policy(
            "library",
            GATE,
            "package lib.roles\n\nimport rego.v1\n\nknown(role) if role in {\"reader\"}\n",
        ),
    ]);
    assert_eq!(book.never_loaded(), BTreeMap::new());
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())),
        ["unknown role"]
    );
}

#[test]
fn the_order_in_which_library_and_user_come_does_not_matter() {
    let user = policy(
        "a-user",
        GATE,
        "package kubernetes.admission\n\ndeny[msg] { msg := data.lib.say(\"hello\") }\n",
    );
    let library = policy(
        "library",
        GATE,
        "package lib\n\nsay(x) = y { y := upper(x) }\n",
    );
    let mut book = book([user]);
    assert!(
        error(&book, "a-user").contains("line 3: there is no function data.lib.say"),
        "{}",
        error(&book, "a-user")
    );
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())).len(), 1);
    book.apply(library);
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["HELLO"]);
    book.delete(Kind::Policy, "opa", "library");
    assert!(book.never_loaded().contains_key("opa/a-user"));
    assert!(!judge(&book.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn a_broken_change_keeps_the_version_before_and_blocks_nothing_else() {
    let mut book = book([
        policy("one", GATE, &denies_all("good")),
        policy("two", GATE, &denies_all("other")),
    ]);
    book.apply(policy(
        "one",
        GATE,
        "package kubernetes.admission\n\ndeny[msg] { msg := \n",
    ));
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())),
        ["good", "other"]
    );
    let statuses = book.statuses();
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
    assert!(book.never_loaded().is_empty());
    book.apply(policy("one", GATE, &denies_all("mended")));
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())),
        ["mended", "other"]
    );
}

#[test]
fn who_comes_later_and_does_not_fit_is_to_blame() {
    let library = |name, text: &str| policy(name, GATE, text);
    let mut book = book([
        policy(
            "user",
            GATE,
            "package kubernetes.admission\n\ndeny[msg] { f(1); msg := \"runs\" }\nf(x) { x == 1 }\n",
        ),
        library(
            "other",
            "package kubernetes.admission\n\nf(x, y) { x == y }\n",
        ),
    ]);
    assert!(
        error(&book, "other").contains("something else in opa/user"),
        "{}",
        error(&book, "other")
    );
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())).first(),
        Some(
            &"policy opa/other is not in use, so nothing is allowed: opa/other: main.rego, line 3: data.kubernetes.admission.f is something else in opa/user: main.rego: one name is one set, value or function"
        )
    );
    assert!(messages(&judge(&book.snapshot(), &any_pod())).contains(&"runs"));
    book.delete(Kind::Policy, "opa", "other");
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["runs"]);
}

#[test]
fn threat_10_a_policy_that_never_loaded_denies_what_it_would_be_asked() {
    let mut book = book([policy(
        "broken",
        GATE,
        "package kubernetes.admission\n\ndeny[msg] {",
    )]);
    assert_eq!(book.never_loaded().len(), 1);
    let policies = book.snapshot();
    assert!(policies.asks_at_gate() && !policies.asks_at_door() && !policies.is_empty());
    let findings = judge(&policies, &any_pod());
    assert_eq!(findings.rule(), "opa/broken");
    assert!(
        findings
            .reason()
            .contains("is not in use, so nothing is allowed"),
        "{findings:?}"
    );
    book.apply(policy(
        "broken",
        BOTH,
        "package kubernetes.admission\n\ndeny[msg] {",
    ));
    assert!(book.snapshot().asks_at_door());
}

#[test]
fn threat_10_a_required_policy_that_is_not_there_denies_everywhere() {
    let mut book = PolicyBook::new(Settings {
        required: vec![Required {
            namespace: "opa".into(),
            name: "roles".into(),
        }],
        ..Settings::default()
    });
    assert_eq!(
        book.missing().iter().map(|id| &**id).collect::<Vec<_>>(),
        ["opa/roles"]
    );
    let policies = book.snapshot();
    assert!(policies.asks_at_gate() && policies.asks_at_door());
    assert!(
        judge(&policies, &any_pod())
            .reason()
            .contains("required policy opa/roles is not there")
    );
    book.apply(policy(
        "roles",
        GATE,
        "package kubernetes.admission\n\ndeny[msg] { false; msg := 1 }\n",
    ));
    assert!(book.missing().is_empty());
    assert!(judge(&book.snapshot(), &any_pod()).is_allowed());
    book.replace_all(Kind::Policy, []);
    assert!(!judge(&book.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn a_snapshot_replaces_all_and_stays_as_it_was() {
    let mut book = book([policy("one", GATE, &denies_all("one"))]);
    let before = book.snapshot();
    book.replace_all(
        Kind::Policy,
        [
            policy("two", GATE, &denies_all("two")),
            policy("bad", GATE, "x"),
            policy("three", GATE, &denies_all("three")),
        ],
    );
    let after = book.snapshot();
    assert_eq!(messages(&judge(&before, &any_pod())), ["one"]);
    assert_eq!(messages(&judge(&after, &any_pod()))[1..], ["three", "two"]);
    book.replace_all(Kind::Policy, []);
    assert!(book.snapshot().is_empty());
}

#[test]
fn data_comes_as_json_or_yaml_and_goes() {
    let rego =
        "package kubernetes.admission\n\ndeny[msg] { msg := data.opa.lists.roles.allowed[_] }\n";
    let mut book = book([
        policy("one", GATE, rego),
        data("opa", "lists", "roles", "{\"allowed\": [\"a\"]}"),
    ]);
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["a"]);
    book.apply(data("opa", "lists", "roles", "allowed:\n- b\n- c\n"));
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["b", "c"]);
    book.apply(data("opa", "lists", "roles", "{\"allowed\": ["));
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["b", "c"]);
    assert!(error(&book, "lists").starts_with("opa/lists: roles: "));
    book.delete(Kind::Data, "opa", "lists");
    assert!(judge(&book.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn data_cannot_pass_for_replicated_objects() {
    let rego = "package kubernetes.admission\n\ndeny[msg] { msg := data.kubernetes.namespaces[\"x\"].trusted }\n";
    let mut book = book([
        policy("one", GATE, rego),
        data("kubernetes", "namespaces", "x", "{\"trusted\": \"yes\"}"),
    ]);
    assert!(judge(&book.snapshot(), &any_pod()).is_allowed());
    assert_eq!(
        book.statuses()["kubernetes/namespaces"].to_json()["status"],
        "error"
    );
}

#[test]
fn replicated_objects_come_change_and_go() {
    let rego = "package kubernetes.admission\n\ndeny[msg] { msg := data.kubernetes.namespaces[input.request.namespace].metadata.annotations.owner }\n";
    let mut book = book([policy("one", GATE, rego)]);
    let pod = any_pod();
    assert!(judge(&book.snapshot(), &pod).is_allowed());
    book.replicate(&namespace("team-a", json!({"owner": "ann"})));
    assert_eq!(messages(&judge(&book.snapshot(), &pod)), ["ann"]);
    book.replicate(&namespace("team-a", json!({"owner": "bob"})));
    assert_eq!(messages(&judge(&book.snapshot(), &pod)), ["bob"]);
    book.forget("namespaces", None, "team-a");
    assert!(judge(&book.snapshot(), &pod).is_allowed());
    book.replicate_all(
        "namespaces",
        &[namespace("team-a", json!({"owner": "eve"}))],
    );
    assert_eq!(messages(&judge(&book.snapshot(), &pod)), ["eve"]);
    book.replicate_all("namespaces", &[]);
    assert!(judge(&book.snapshot(), &pod).is_allowed());
}

#[test]
fn more_data_than_there_may_be_denies_what_reads_any() {
    let mut book = PolicyBook::new(Settings {
        limits: Limits {
            data_bytes: 1000,
            ..Limits::default()
        },
        ..Settings::default()
    });
    book.apply(policy(
        "one",
        GATE,
        "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.namespaces.bad; msg := 1 }\n",
    ));
    book.apply(policy("other", GATE, &denies_all("reads none")));
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())),
        ["reads none"]
    );
    book.replicate(&Replicated {
        object: json!("x".repeat(2000)).to_string().into(),
        ..namespace("big", json!({}))
    });
    let findings = judge(&book.snapshot(), &any_pod());
    let [first, second] = messages(&findings)[..] else {
        panic!("{findings:?}");
    };
    assert!(first.contains("replicate fewer resources"), "{first}");
    assert_eq!(second, "reads none");
    book.forget("namespaces", None, "big");
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())),
        ["reads none"]
    );
}

#[test]
fn syntax_is_chosen_for_each_module_and_told() {
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
    let book = book([PolicySource {
        entries,
        ..policy("mixed", GATE, "")
    }]);
    let statuses = book.statuses();
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
fn policies_that_read_the_time_say_so() {
    let rego = "package kubernetes.admission\n\ndeny[msg] { late; msg := \"late\" }\nlate { time.now_ns() > 5 }\n";
    let quiet = "package kubernetes.admission\n\ndeny[msg] { false; msg := \"x\" }\n";
    let mut book = book([policy("timed", BOTH, rego), policy("quiet", GATE, quiet)]);
    let json = |id: &str, book: &PolicyBook| book.statuses()[id].to_json()["readsTime"].clone();
    assert_eq!(json("opa/timed", &book), true);
    assert_eq!(json("opa/quiet", &book), false);
    assert!(book.snapshot().reads_time_at_door());
    book.apply(policy(
        "timed",
        Points {
            gate: true,
            door: false,
        },
        rego,
    ));
    assert!(!book.snapshot().reads_time_at_door());
}

/// The interpreter runs all bodies of a function as if they were in the module of the first, with
/// wrong results.
#[test]
fn a_function_is_in_one_module_and_other_rules_may_be_in_several() {
    let [one, other] = [("1", "one"), ("2", "two")].map(|(number, name)| {
        format!(
            "package lib\nnames[y] {{ input.request.number == {number}; y := \"{name}\" }}\n\
             name = y {{ input.request.number == {number}; y := \"{name}\" }}\n"
        )
    });
    let asks = "package kubernetes.admission\nimport data.lib\n\
                deny[msg] { lib.names[x]; msg := concat(\" \", [x, lib.name]) }\n";
    let mut book = book([
        policy("a", GATE, &one),
        policy("b", GATE, &other),
        policy("c", GATE, asks),
    ]);
    for (number, said) in [(1, "one one"), (2, "two two")] {
        let findings = judge(&book.snapshot(), &json!({"request": {"number": number}}));
        assert_eq!(findings.reason(), said, "{findings:?}");
    }
    let function = |number| format!("package lib\nf(x) = y {{ x == {number}; y := x }}\n");
    book.apply(policy("d", GATE, &function(1)));
    book.apply(policy("e", GATE, &function(2)));
    assert!(matches!(
        book.statuses().get("opa/d"),
        Some(PolicyStatus::Ok { .. })
    ));
    let told = error(&book, "e");
    assert!(
        told.contains("one module") && told.contains("data.lib.f"),
        "{told}"
    );
}

#[test]
fn threat_10_data_that_never_could_be_read_deny_what_reads_them() {
    let reads = policy(
        "reads",
        GATE,
        "package kubernetes.admission\n\nimport data.opa.roles\n\n\
         deny[msg] { roles.list.banned[_] == input.request.namespace; msg := \"banned\" }\n",
    );
    let mut book = book([reads, policy("other", GATE, &denies_all("other"))]);
    // As after a restart: there is no good version from before.
    book.apply(data("opa", "roles", "list", "{\"banned\": [\"team"));
    let findings = judge(&book.snapshot(), &any_pod());
    let of = |name: &str| {
        let mut denials = findings.denials.iter();
        let found = denials.find(|finding| &*finding.policy == name);
        found.map(|finding| finding.message.clone()).unwrap()
    };
    assert!(
        of("opa/reads").contains("its data cannot be read"),
        "{findings:?}"
    );
    assert_eq!(of("opa/other"), "other", "what does not read them goes on");
    book.apply(data("opa", "roles", "list", "{\"banned\": [\"team-b\"]}"));
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["other"]);
    // A good version from before is kept.
    book.apply(data("opa", "roles", "list", "{"));
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["other"]);
}

#[test]
fn data_can_be_required_too() {
    let mut book = PolicyBook::new(Settings {
        required: vec![Required {
            namespace: "opa".into(),
            name: "roles".into(),
        }],
        ..Settings::default()
    });
    book.apply(data("opa", "roles", "list", "{"));
    assert_eq!(book.missing().len(), 1);
    book.apply(data("opa", "roles", "list", "{}"));
    assert!(book.missing().is_empty());
    assert!(judge(&book.snapshot(), &any_pod()).is_allowed());
}

#[test]
fn rule_09_what_cannot_be_replicated_denies_what_reads_it_and_nothing_else() {
    let mut book = book([
        policy(
            "widgets",
            GATE,
            "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.widgets[_][_].spec.bad; msg := \"bad\" }\n",
        ),
        policy(
            "namespaces",
            GATE,
            "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.namespaces.closed; msg := \"closed\" }\n",
        ),
    ]);
    book.replicate(&namespace("closed", json!({})));
    book.replicate(&Replicated {
        resource: "widgets".into(),
        namespace: Some("tenant".into()),
        name: "deep".into(),
        object: format!("{}{}", "[".repeat(200), "]".repeat(200)).into(),
    });
    let findings = judge(&book.snapshot(), &any_pod());
    assert_eq!(
        messages(&findings),
        [
            "closed",
            "data.kubernetes.widgets.tenant.deep could not be replicated: nested too deep"
        ]
    );
    book.forget("widgets", Some("tenant"), "deep");
    assert_eq!(messages(&judge(&book.snapshot(), &any_pod())), ["closed"]);
}

#[test]
fn rule_09_objects_beyond_the_bound_are_left_out_until_there_is_room_for_all() {
    let mut book = PolicyBook::new(Settings {
        limits: Limits {
            data_bytes: 4096,
            ..Limits::default()
        },
        ..Settings::default()
    });
    book.apply(policy(
        "namespaces",
        GATE,
        "package kubernetes.admission\n\ndeny[msg] { data.kubernetes.namespaces[_].metadata.annotations.bad; msg := \"bad\" }\n",
    ));
    let large = |name: &str| namespace(name, json!({"x": "x".repeat(1500)}));
    for name in ["a", "b"] {
        book.replicate(&large(name));
    }
    assert!(judge(&book.snapshot(), &any_pod()).is_allowed());
    for n in 0..100 {
        book.replicate(&large(&format!("more-{n}")));
    }
    book.leave_out("namespaces", None, "unseen", 1 << 20);
    // It denies, whatever the one that was left out says.
    assert!(!judge(&book.snapshot(), &any_pod()).is_allowed());
    assert!(book.fit_again().is_empty());
    for n in 0..100 {
        book.forget("namespaces", None, &format!("more-{n}"));
    }
    assert!(!judge(&book.snapshot(), &any_pod()).is_allowed());
    assert!(
        book.fit_again().is_empty(),
        "one takes more than there may be"
    );
    book.leave_out("namespaces", None, "unseen", 10);
    assert_eq!(book.fit_again(), ["namespaces".to_owned()].into());
    book.replicate_all("namespaces", [&large("a"), &large("b")]);
    assert!(book.fit_again().is_empty());
    assert!(judge(&book.snapshot(), &any_pod()).is_allowed());
}
