//! Tests of the limits on policies, data and evaluations.

use std::collections::BTreeMap;
use std::time::Duration;

use rolegate_rego::{Kind, Limits, PolicySource, PolicyStore, Settings};
use serde_json::{Value, json};

use crate::helpers::{ADMISSION, data, error, evaluate, messages, pod_review, policy, store};

fn any_pod() -> Value {
    pod_review(json!({}), json!({"containers": []}))
}

/// Returns the load error of a policy.
fn refused(rego: &str) -> String {
    error(&store([policy("p", ADMISSION, rego)]), "p")
}

fn with(body: &str) -> String {
    format!("package kubernetes.admission\n\n{body}\n")
}

/// Returns true if `message` is that of a policy that was stopped: by its CPU time, or on a busy
/// machine by its wall time.
fn is_stopped(message: &str) -> bool {
    message
        .strip_prefix("policy opa/endless took longer than ")
        .is_some_and(|limit| ["50 ms", "1000 ms of wall time"].contains(&limit))
}

#[test]
fn a_policy_that_does_not_end_is_stopped_and_denies() {
    let endless = with(
        "deny[msg] { r := numbers.range(1, 2000); x := r[_]; y := r[_]; z := r[_]; x + y + z < 0; msg := 1 }",
    );
    let mut store = PolicyStore::new(Settings {
        limits: Limits {
            // However long the machine takes, there is time for the second policy.
            question_time: Duration::from_secs(3600),
            ..Limits::default()
        },
        ..Settings::default()
    });
    store.apply(policy("endless", ADMISSION, &endless));
    store.apply(policy(
        "other",
        ADMISSION,
        &with("deny[\"other\"] { true }"),
    ));
    let findings = evaluate(&store.snapshot(), &any_pod());
    let [stopped, other] = messages(&findings)[..] else {
        panic!("{findings:?}");
    };
    assert!(is_stopped(stopped), "{stopped}");
    assert_eq!(other, "other");
}

#[test]
fn a_timeout_is_transient_and_the_total_time_bounded() {
    let endless = with(
        "deny[msg] { r := numbers.range(1, 2000); x := r[_]; y := r[_]; z := r[_]; x + y + z < 0; msg := 1 }",
    );
    let mut store = PolicyStore::new(Settings {
        limits: Limits {
            question_time: Duration::from_millis(60),
            ..Limits::default()
        },
        ..Settings::default()
    });
    store.apply(policy("a", ADMISSION, &with("deny[\"a\"] { true }")));
    assert!(!evaluate(&store.snapshot(), &any_pod()).transient);
    store.apply(policy("b", ADMISSION, &endless));
    store.apply(policy("c", ADMISSION, &endless));
    store.apply(policy("d", ADMISSION, &with("deny[\"d\"] { true }")));
    let findings = evaluate(&store.snapshot(), &any_pod());
    assert!(findings.transient);
    assert_eq!(findings.denials.len(), 4);
    assert_eq!(
        messages(&findings).last(),
        Some(
            &"policy opa/d was not evaluated, since the policies before it took longer than 60 ms"
        )
    );
}

#[test]
fn time_in_a_function_counts_despite_dropped_errors() {
    let rego = with(
        "deny[msg] { f(1) == 2; msg := \"x\" }\nf(x) = 1 { r := numbers.range(1, 3000); a := r[_]; b := r[_]; a + b < 0 }\nf(x) = 1 { x == 1 }",
    );
    let mut store = store([policy("endless", ADMISSION, &rego)]);
    let findings = evaluate(&store.snapshot(), &any_pod());
    let [stopped] = messages(&findings)[..] else {
        panic!("{findings:?}");
    };
    assert!(is_stopped(stopped), "{stopped}");
}

#[test]
fn results_without_a_bound_deny() {
    for body in [
        "deny[msg] { x := numbers.range(1, input.request.object.spec.many); count(x) < 0; msg := 1 }",
        "deny[msg] { x := sprintf(\"%0999999999d\", [1]); y := concat(x, [z | z := x; numbers.range(1, 60000)[_]]); y == 1; msg := 1 }",
        "deny[msg] { x := net.cidr_expand(\"10.0.0.0/8\"); count(x) < 0; msg := 1 }",
        "deny[msg] { x := bits.lsh(1, 1000000000); x < 0; msg := 1 }",
    ] {
        let mut store = store([policy("p", ADMISSION, &with(body))]);
        let findings = evaluate(
            &store.snapshot(),
            &pod_review(json!({}), json!({"many": 1_000_000_000})),
        );
        assert!(
            findings.reason().contains("policy opa/p "),
            "{body}: {findings:?}"
        );
    }
}

#[test]
fn what_recurses_is_refused_by_name() {
    for (body, expected) in [
        (
            "deny[msg] { f(1); msg := 1 }\nf(x) { f(x) }",
            "data.kubernetes.admission.f depends on itself",
        ),
        (
            "deny[msg] { f(1); msg := 1 }\nf(x) { g(x) }\ng(x) { f(x) }",
            "depends on itself",
        ),
        (
            "deny[msg] { msg := deny[_] }",
            "data.kubernetes.admission.deny depends on itself",
        ),
        (
            "deny[msg] { msg := data.kubernetes[_] }",
            "depends on itself",
        ),
    ] {
        let actual = refused(&with(body));
        assert!(
            actual.contains(expected) && actual.contains("line "),
            "{body}: {actual}"
        );
    }
    let chain: String = (0..200)
        .map(|n| format!("f{n}(x) {{ f{}(x) }}\n", n + 1))
        .collect();
    let actual = refused(&with(&format!(
        "deny[msg] {{ f0(1); msg := 1 }}\n{chain}f200(x) {{ x == 1 }}"
    )));
    assert!(
        actual.contains("more than 32 rules depend on each other in a chain"),
        "{actual}"
    );
}

#[test]
fn long_chains_of_rules_that_are_allowed_fit_a_small_stack() {
    let chain: String = (0..28)
        .map(|n| {
            format!(
                "f{n}(x) = y {{ y := {}f{}([x]){} }}\n",
                "[".repeat(8),
                n + 1,
                "]".repeat(8)
            )
        })
        .collect();
    let rego = with(&format!(
        "deny[msg] {{ f0(1); msg := \"through\" }}\n{chain}f28(x) = x"
    ));
    let actual = std::thread::Builder::new()
        .stack_size(2 * 1024 * 1024)
        .spawn(move || {
            let mut store = store([policy("p", ADMISSION, &rego)]);
            messages(&evaluate(&store.snapshot(), &any_pod())).join("")
        })
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(actual, "through");
}

#[test]
fn ten_thousand_brackets_are_refused_and_overflow_nothing() {
    for (open, close) in [
        ("[", "]"),
        ("{", "}"),
        ("(", ")"),
        ("{1: ", "}"),
        ("f(", ")"),
        ("a[", "]"),
        ("[x | x = ", "]"),
    ] {
        for body in [
            format!(
                "deny[msg] {{ msg = {}1{} }}",
                open.repeat(10_000),
                close.repeat(10_000)
            ),
            format!("deny[msg] {{ msg = {}", open.repeat(10_000)),
        ] {
            let body = body.replace(open, &format!("{open}\n"));
            let actual = refused(&with(&body));
            assert!(actual.contains("nested brackets"), "{open}: {actual}");
        }
    }
    for chain in ["-\n", "1 +\n", "a.b\n.", "not\n", "a |\n"] {
        let actual = refused(&with(&format!(
            "deny[msg] {{ msg = {}1 }}",
            chain.repeat(10_000)
        )));
        assert!(
            actual.contains("operators in one expression")
                || actual.contains("error")
                || actual.contains("line"),
            "{actual}"
        );
    }
    let many = format!("x = [{}]", "[[[[[[[[[[1]]]]]]]]]],\n".repeat(5_000));
    assert!(refused(&with(&many)).contains("nested literals"));
}

#[test]
fn data_and_questions_may_not_be_nested_without_end() {
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let rego = with(
        "deny[msg] { data.a.b.c == input.request.x; msg := 1 }\ndeny[msg] { json.unmarshal(input.request.text) == 1; msg := 1 }",
    );
    let mut store = store([policy("p", ADMISSION, &rego), data("a", "b", "c", &deep)]);
    assert_eq!(store.statuses()["a/b"].to_json()["status"], "error");
    let question = json!({"request": {"text": deep}});
    assert!(!evaluate(&store.snapshot(), &question).is_allowed());
    store.delete(Kind::Data, "a", "b");
    let policies = store.snapshot();
    // OPA accepts it, so it must not be undefined.
    assert!(
        evaluate(&policies, &question)
            .reason()
            .contains("json.unmarshal")
    );
    assert!(
        policies
            .evaluate_review_json(deep.as_bytes(), crate::helpers::now())
            .is_err()
    );
    let nested = (0..200).fold(json!(1), |inside, _| json!([inside]));
    assert!(
        evaluate(&policies, &nested)
            .reason()
            .contains("nested too deep")
    );
}

#[test]
fn sizes_and_numbers_of_modules_are_bounded() {
    let mut store = PolicyStore::new(Settings {
        limits: Limits {
            module_bytes: 200,
            modules: 2,
            ..Limits::default()
        },
        ..Settings::default()
    });
    store.apply(policy(
        "long",
        ADMISSION,
        &format!("package a\n# {}", "x".repeat(300)),
    ));
    assert!(error(&store, "long").contains("bytes, more than 200"));
    let entries: BTreeMap<String, String> = (0..3)
        .map(|n| (format!("m{n}"), format!("package m{n}\n")))
        .collect();
    store.apply(PolicySource {
        entries,
        ..policy("many", ADMISSION, "")
    });
    assert!(
        error(&store, "many").contains("3 modules, more than 2"),
        "{}",
        error(&store, "many")
    );
}

#[test]
fn built_ins_that_reach_out_or_are_missing_are_refused_by_name() {
    for missing in rolegate_rego::missing_builtins() {
        let actual = refused(&with(&format!(
            "deny[msg] {{ msg := {}(1) }}",
            missing.name
        )));
        assert!(
            actual.contains(&format!("the built-in {} is not supported: ", missing.name)),
            "{actual}"
        );
        assert!(actual.contains("opa/p: main.rego, line 3"), "{actual}");
    }
    assert!(
        refused(&with("deny[msg] { msg := upper(\"a\", 1, 2) }"))
            .contains("upper takes 1 arguments, not 3")
    );
}

#[test]
fn errors_of_built_ins_are_undefined_and_others_deny() {
    let said = |body: &str| {
        let mut store = store([policy("p", ADMISSION, &with(body))]);
        evaluate(&store.snapshot(), &any_pod()).reason()
    };
    assert_eq!(
        said("deny[msg] { to_number(\"x\") > 1; msg := \"never\" }"),
        ""
    );
    assert_eq!(
        said("deny[msg] { not to_number(\"x\"); msg := \"undefined\" }"),
        "undefined"
    );
    assert_eq!(said("deny[msg] { 1 + \"a\" > 1; msg := \"never\" }"), "");
    assert!(
        said("deny[msg] { numbers.range(1, 100000) == 1; msg := \"never\" }")
            .contains("policy opa/p failed: opa/p: main.rego, line 3")
    );
    assert!(
        said("a = 1 { true }\na = 2 { true }\ndeny[msg] { a == 1; msg := \"x\" }")
            .contains("policy opa/p failed")
    );
}

#[test]
fn invalid_patterns_deny_and_literals_fail_at_load() {
    let said = |body: &str, pattern: &str| {
        let mut store = PolicyStore::new(Settings {
            limits: Limits {
                eval_time: Duration::from_secs(600),
                question_time: Duration::from_secs(600),
                ..Limits::default()
            },
            ..Settings::default()
        });
        store.apply(policy("p", ADMISSION, &with(body)));
        let question = json!({"request": {"pattern": pattern}});
        evaluate(&store.snapshot(), &question).reason()
    };
    let long = "a".repeat(70_000);
    let deep = format!("{}a{}", "(".repeat(65), ")".repeat(65));
    for (pattern, why) in [
        ("(", "a closing ) is missing"),
        ("a**", "a repetition of a repetition"),
        ("(?x)a", "unknown syntax after (?"),
        ("(\\p{L}{30}){30}", "needs more than"),
        (long.as_str(), "bytes, more than"),
        (deep.as_str(), "more than 64 nested groups"),
    ] {
        // Alone, in a negation, in a function with another body that holds, and in a comprehension.
        for body in [
            "deny[msg] { regex.match(input.request.pattern, \"a\"); msg := \"x\" }",
            "deny[msg] { not regex.match(input.request.pattern, \"a\"); msg := \"x\" }",
            "f(x) { regex.match(x, \"a\") }\nf(x) { x != \"b\" }\ndeny[msg] { not f(input.request.pattern); msg := \"x\" }",
            "deny[msg] { count([1 | regex.match(input.request.pattern, \"a\")]) == 1; msg := \"x\" }",
        ] {
            let actual = said(body, pattern);
            assert!(actual.contains("policy opa/p failed"), "{body}: {actual}");
            assert!(actual.contains(why), "{body}: {actual}");
        }
    }
    let much = "deny[msg] { regex.match(`(\\p{L}{10}){10}`, input.request.pattern); msg := \"x\" }";
    assert!(
        said(much, &long).contains("is too expensive for"),
        "{}",
        said(much, &long)
    );
    assert_eq!(said(much, "a"), "");
    let glob = "f(x) { glob.match(x, [], \"a\") }\nf(x) { x != \"b\" }\ndeny[msg] { not f(input.request.pattern); msg := \"x\" }";
    assert!(said(glob, "[a-z0-9]").contains("a range must be the only content"));
    for (call, why) in [
        ("regex.match(\"(\", x)", "line 3: invalid pattern \"(\""),
        (
            "regex.replace(x, `(\\p{L}{30}){30}`, \"\") == \"\"",
            "needs more than",
        ),
        ("glob.match(\"{a\", [], x)", "a closing } is missing"),
    ] {
        let actual = refused(&with(&format!(
            "deny[msg] {{ x := input.a; {call}; msg := 1 }}"
        )));
        assert!(actual.contains(why), "{actual}");
    }
}

/// Returns a store without a time limit, which slow machines would reach before the others.
fn patient() -> PolicyStore {
    PolicyStore::new(Settings {
        limits: Limits {
            eval_time: Duration::from_secs(600),
            question_time: Duration::from_secs(600),
            eval_bytes: 4 * 1024 * 1024,
            ..Limits::default()
        },
        ..Settings::default()
    })
}

/// Bodies that would exhaust the memory.
fn greedy() -> Vec<String> {
    let numbers = "r := numbers.range(1, 60000)";
    let doubled = |first: &str, step: &dyn Fn(String) -> String| {
        let steps: String = (1..60)
            .map(|n| format!("x{n} := {}; ", step(format!("x{}", n - 1))))
            .collect();
        format!("x0 := {first}; {steps}")
    };
    let long = "s := concat(\"\", [c | c := \"x\"; numbers.range(1, 60000)[_]])";
    [
        format!("{numbers}; x := [y | a := r[_]; y := [z | b := r[_]; z := a + b]]; count(x) == 1"),
        format!("{numbers}; x := {{[a, b] | a := r[_]; b := r[_]}}; count(x) == 1"),
        format!("{numbers}; x := {{a: b | a := r[_]; b := numbers.range(a, 60000)}}; count(x) == 1"),
        format!("{numbers}; x := [sprintf(\"%065536d\", [a]) | a := r[_]]; count(x) == 1"),
        format!("{numbers}; {long}; x := [t | t := concat(s, [\"a\", sprintf(\"%d\", [r[_]])])]; count(x) == 1"),
        format!("{numbers}; x := [json.marshal([a, r]) | a := r[_]]; count(x) == 1"),
        format!("{numbers}; {long}; x := [split(t, \"\") | t := concat(s, [sprintf(\"%d\", [r[_]]), \"\"])]; count(x) == 1"),
        format!("{numbers}; t := json.marshal(r); x := [[a, json.unmarshal(t)] | a := r[_]]; count(x) == 1"),
        doubled("\"x\"", &|x| format!("concat(\"\", [{x}, {x}])")),
        doubled("\"x\"", &|x| format!("hex.encode({x})")),
        doubled("\"%\"", &|x| format!("urlquery.encode({x})")),
        doubled("\"x\"", &|x| format!("replace({x}, \"x\", \"xx\")")),
        doubled("[1]", &|x| format!("array.concat({x}, {x})")),
        format!("{}walk(x59, [p, v]); v == 2", doubled("[1]", &|x| format!("[{x}, {x}]"))),
        format!("{}json.marshal(x59) == \"\"", doubled("[1]", &|x| format!("[{x}, {x}]"))),
        format!(
            "{}json.marshal_with_options(x59, {{\"pretty\": true}}) == \"\"",
            doubled("[1]", &|x| format!("[{x}, {x}]"))
        ),
        format!("{}sprintf(\"%v\", [x59]) == \"\"", doubled("[1]", &|x| format!("[{x}, {x}]"))),
        "r := numbers.range(1, 40); g := {a: r | a := r[_]}; count(graph.reachable_paths(g, [1])) == 1".into(),
    ]
    .into()
}

#[test]
fn a_policy_that_takes_too_much_memory_is_stopped_and_denies() {
    let mut store = patient();
    for body in greedy() {
        store.apply(policy(
            "greedy",
            ADMISSION,
            &with(&format!("deny[msg] {{ {body}; msg := \"x\" }}")),
        ));
        store.apply(policy(
            "other",
            ADMISSION,
            &with("deny[\"other\"] { true }"),
        ));
        let findings = evaluate(&store.snapshot(), &any_pod());
        let actual = messages(&findings);
        let named = actual.len() == 2
            && actual[1] == "other"
            && [
                "took more than 4 MiB of memory",
                "more than 65536 elements",
                "more than 1048576 bytes",
            ]
            .iter()
            .any(|bound| actual[0].contains(bound));
        assert!(named, "{body}: {actual:?}");
    }
}

/// Returns bodies whose value is nested this deeply.
fn tower(levels: usize, end: &str) -> String {
    let steps: String = (0..levels)
        .map(|n| format!("x{} := [x{n}]\n", n + 1))
        .collect();
    with(&format!(
        "deny[msg] {{ x0 := 1\n{steps}x := x{levels}; {end}; msg := \"end\" }}"
    ))
}

#[test]
fn values_nested_as_deep_as_may_be_fit_a_small_stack() {
    for end in [
        "count(x) == 1",
        "not json.marshal(x) == 1",
        "x != [1]",
        "y := {x: x}; y[_] == x",
        "sprintf(\"%v\", [x]) != \"\"",
    ] {
        let actual = std::thread::Builder::new()
            .stack_size(2 * 1024 * 1024)
            .spawn(move || {
                let mut store = patient();
                store.apply(policy("p", ADMISSION, &tower(1000, end)));
                messages(&evaluate(&store.snapshot(), &any_pod())).join("")
            })
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(actual, "end", "{end}");
    }
}

#[test]
fn values_nested_deeper_are_refused_at_load() {
    let actual = refused(&tower(1100, "true"));
    assert!(actual.contains("line 3: values of data.kubernetes.admission.deny could be nested more than 1024 levels deep"), "{actual}");
    let calls = |times: usize| {
        let f = |name: &str| format!("{}x{}", format!("{name}(").repeat(times), ")".repeat(times));
        with(&format!(
            "deny[msg] {{ f3(1) != 1; msg := \"end\" }}\nf3(x) = {}\nf2(x) = {}\nf1(x) = [[[[[x]]]]]",
            f("f2"),
            f("f1")
        ))
    };
    assert!(refused(&calls(15)).contains("values of data.kubernetes.admission.deny could be"));
    let mut allowed = patient();
    allowed.apply(policy("p", ADMISSION, &calls(14)));
    assert_eq!(
        messages(&evaluate(&allowed.snapshot(), &any_pod())),
        ["end"]
    );
    let constants: String = (0..2000)
        .map(|n| format!("\"ns-{n}\": {{\"a\", \"b\"}},\n"))
        .collect();
    let list =
        format!("deny[msg] {{ not roles[\"x\"]; msg := \"not listed\" }}\nroles = {{{constants}}}");
    let mut store = patient();
    store.apply(policy("p", ADMISSION, &with(&list)));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &any_pod())),
        ["not listed"]
    );
}
