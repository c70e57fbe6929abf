//! What a policy, its data or a question may cost; and what happens beyond.

use std::collections::BTreeMap;
use std::time::Duration;

use rolegate_rego::{Kind, Limits, PolicyBook, PolicySource, Settings};
use serde_json::{Value, json};

use crate::stage::{GATE, book, data, error, judge, messages, pod_review, policy};

fn any_pod() -> Value {
    pod_review(json!({}), json!({"containers": []}))
}

/// One policy's error at load.
fn refused(rego: &str) -> String {
    error(&book([policy("p", GATE, rego)]), "p")
}

fn with(body: &str) -> String {
    format!("package kubernetes.admission\n\n{body}\n")
}

#[test]
fn a_policy_that_does_not_end_is_stopped_and_denies() {
    let endless = with(
        "deny[msg] { r := numbers.range(1, 2000); x := r[_]; y := r[_]; z := r[_]; x + y + z < 0; msg := 1 }",
    );
    let mut book = book([
        policy("endless", GATE, &endless),
        policy("other", GATE, &with("deny[\"other\"] { true }")),
    ]);
    let findings = judge(&book.snapshot(), &any_pod());
    assert_eq!(
        messages(&findings),
        ["policy opa/endless took longer than 50 ms", "other"]
    );
}

#[test]
fn a_time_out_is_of_the_moment_and_all_policies_together_have_an_end() {
    let endless = with(
        "deny[msg] { r := numbers.range(1, 2000); x := r[_]; y := r[_]; z := r[_]; x + y + z < 0; msg := 1 }",
    );
    let mut book = PolicyBook::new(Settings {
        limits: Limits {
            question_time: Duration::from_millis(60),
            ..Limits::default()
        },
        ..Settings::default()
    });
    book.apply(policy("a", GATE, &with("deny[\"a\"] { true }")));
    assert!(!judge(&book.snapshot(), &any_pod()).passing);
    book.apply(policy("b", GATE, &endless));
    book.apply(policy("c", GATE, &endless));
    book.apply(policy("d", GATE, &with("deny[\"d\"] { true }")));
    let findings = judge(&book.snapshot(), &any_pod());
    assert!(findings.passing);
    assert_eq!(findings.denials.len(), 4);
    assert_eq!(
        messages(&findings).last(),
        Some(&"policy opa/d was not asked, since those before it took longer than 60 ms")
    );
}

#[test]
fn time_spent_in_a_function_counts_though_the_interpreter_drops_its_error() {
    let rego = with(
        "deny[msg] { f(1) == 2; msg := \"x\" }\nf(x) = 1 { r := numbers.range(1, 3000); a := r[_]; b := r[_]; a + b < 0 }\nf(x) = 1 { x == 1 }",
    );
    let mut book = book([policy("endless", GATE, &rego)]);
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())),
        ["policy opa/endless took longer than 50 ms"]
    );
}

#[test]
fn results_without_a_bound_deny() {
    for body in [
        "deny[msg] { x := numbers.range(1, input.request.object.spec.many); count(x) < 0; msg := 1 }",
        "deny[msg] { x := sprintf(\"%0999999999d\", [1]); y := concat(x, [z | z := x; numbers.range(1, 60000)[_]]); y == 1; msg := 1 }",
        "deny[msg] { x := net.cidr_expand(\"10.0.0.0/8\"); count(x) < 0; msg := 1 }",
        "deny[msg] { x := bits.lsh(1, 1000000000); x < 0; msg := 1 }",
    ] {
        let mut book = book([policy("p", GATE, &with(body))]);
        let findings = judge(
            &book.snapshot(),
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
            "data.kubernetes.admission.f needs itself",
        ),
        (
            "deny[msg] { f(1); msg := 1 }\nf(x) { g(x) }\ng(x) { f(x) }",
            "needs itself",
        ),
        (
            "deny[msg] { msg := deny[_] }",
            "data.kubernetes.admission.deny needs itself",
        ),
        ("deny[msg] { msg := data.kubernetes[_] }", "needs itself"),
    ] {
        let told = refused(&with(body));
        assert!(
            told.contains(expected) && told.contains("line "),
            "{body}: {told}"
        );
    }
    let chain: String = (0..200)
        .map(|n| format!("f{n}(x) {{ f{}(x) }}\n", n + 1))
        .collect();
    let told = refused(&with(&format!(
        "deny[msg] {{ f0(1); msg := 1 }}\n{chain}f200(x) {{ x == 1 }}"
    )));
    assert!(
        told.contains("more than 32 rules that need each other in a row"),
        "{told}"
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
    let told = std::thread::Builder::new()
        .stack_size(2 * 1024 * 1024)
        .spawn(move || {
            let mut book = book([policy("p", GATE, &rego)]);
            messages(&judge(&book.snapshot(), &any_pod())).join("")
        })
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(told, "through");
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
            let told = refused(&with(&body));
            assert!(
                told.contains("brackets inside each other"),
                "{open}: {told}"
            );
        }
    }
    for chain in ["-\n", "1 +\n", "a.b\n.", "not\n", "a |\n"] {
        let told = refused(&with(&format!(
            "deny[msg] {{ msg = {}1 }}",
            chain.repeat(10_000)
        )));
        assert!(
            told.contains("operators in one expression")
                || told.contains("error")
                || told.contains("line"),
            "{told}"
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
    let mut book = book([policy("p", GATE, &rego), data("a", "b", "c", &deep)]);
    assert_eq!(book.statuses()["a/b"].to_json()["status"], "error");
    let question = json!({"request": {"text": deep}});
    assert!(!judge(&book.snapshot(), &question).is_allowed());
    book.delete(Kind::Data, "a", "b");
    let policies = book.snapshot();
    // OPA reads it, so it must not be undefined.
    assert!(
        judge(&policies, &question)
            .reason()
            .contains("json.unmarshal")
    );
    assert!(
        policies
            .judge_review_json(deep.as_bytes(), crate::stage::now())
            .is_err()
    );
    let nested = (0..200).fold(json!(1), |inside, _| json!([inside]));
    assert!(
        judge(&policies, &nested)
            .reason()
            .contains("nested too deep")
    );
}

#[test]
fn sizes_and_numbers_of_modules_are_bounded() {
    let mut book = PolicyBook::new(Settings {
        limits: Limits {
            module_bytes: 200,
            modules: 2,
            ..Limits::default()
        },
        ..Settings::default()
    });
    book.apply(policy(
        "long",
        GATE,
        &format!("package a\n# {}", "x".repeat(300)),
    ));
    assert!(error(&book, "long").contains("bytes, more than 200"));
    let entries: BTreeMap<String, String> = (0..3)
        .map(|n| (format!("m{n}"), format!("package m{n}\n")))
        .collect();
    book.apply(PolicySource {
        entries,
        ..policy("many", GATE, "")
    });
    assert!(
        error(&book, "many").contains("3 modules, more than 2"),
        "{}",
        error(&book, "many")
    );
}

#[test]
fn built_ins_that_reach_out_or_are_missing_are_refused_by_name() {
    for missing in rolegate_rego::missing_builtins() {
        let told = refused(&with(&format!(
            "deny[msg] {{ msg := {}(1) }}",
            missing.name
        )));
        assert!(
            told.contains(&format!("the built-in {} is not supported: ", missing.name)),
            "{told}"
        );
        assert!(told.contains("opa/p: main.rego, line 3"), "{told}");
    }
    assert!(
        refused(&with("deny[msg] { msg := upper(\"a\", 1, 2) }"))
            .contains("upper takes 1 arguments, not 3")
    );
}

#[test]
fn errors_of_built_ins_are_undefined_and_others_deny() {
    let said = |body: &str| {
        let mut book = book([policy("p", GATE, &with(body))]);
        judge(&book.snapshot(), &any_pod()).reason()
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
fn patterns_that_cannot_be_asked_deny_and_constants_are_refused_at_load() {
    let said = |body: &str, pattern: &str| {
        let mut book = PolicyBook::new(Settings {
            limits: Limits {
                eval_time: Duration::from_secs(600),
                question_time: Duration::from_secs(600),
                ..Limits::default()
            },
            ..Settings::default()
        });
        book.apply(policy("p", GATE, &with(body)));
        let question = json!({"request": {"pattern": pattern}});
        judge(&book.snapshot(), &question).reason()
    };
    let long = "a".repeat(70_000);
    let deep = format!("{}a{}", "(".repeat(65), ")".repeat(65));
    for (pattern, why) in [
        ("(", "a closing ) is missing"),
        ("a**", "a repetition of a repetition"),
        ("(?x)a", "what is behind (? is not known"),
        ("(\\p{L}{30}){30}", "is too large"),
        (long.as_str(), "is too long"),
        (deep.as_str(), "more than 64 groups"),
    ] {
        // Alone, in a negation, in a function another body of which holds, in a comprehension.
        for body in [
            "deny[msg] { regex.match(input.request.pattern, \"a\"); msg := \"x\" }",
            "deny[msg] { not regex.match(input.request.pattern, \"a\"); msg := \"x\" }",
            "f(x) { regex.match(x, \"a\") }\nf(x) { x != \"b\" }\ndeny[msg] { not f(input.request.pattern); msg := \"x\" }",
            "deny[msg] { count([1 | regex.match(input.request.pattern, \"a\")]) == 1; msg := \"x\" }",
        ] {
            let told = said(body, pattern);
            assert!(told.contains("policy opa/p failed"), "{body}: {told}");
            assert!(told.contains(why), "{body}: {told}");
        }
    }
    let much = "deny[msg] { regex.match(`(\\p{L}{10}){10}`, input.request.pattern); msg := \"x\" }";
    assert!(
        said(much, &long).contains("is not asked about"),
        "{}",
        said(much, &long)
    );
    assert_eq!(said(much, "a"), "");
    let glob = "f(x) { glob.match(x, [], \"a\") }\nf(x) { x != \"b\" }\ndeny[msg] { not f(input.request.pattern); msg := \"x\" }";
    assert!(said(glob, "[a-z0-9]").contains("a range stands alone"));
    for (call, why) in [
        (
            "regex.match(\"(\", x)",
            "line 3: the pattern \"(\" is not one",
        ),
        (
            "regex.replace(x, `(\\p{L}{30}){30}`, \"\") == \"\"",
            "is too large",
        ),
        ("glob.match(\"{a\", [], x)", "a closing } is missing"),
    ] {
        let told = refused(&with(&format!(
            "deny[msg] {{ x := input.a; {call}; msg := 1 }}"
        )));
        assert!(told.contains(why), "{told}");
    }
}

/// A book with no bound on time, which slow machines would meet before the others.
fn patient() -> PolicyBook {
    PolicyBook::new(Settings {
        limits: Limits {
            eval_time: Duration::from_secs(600),
            question_time: Duration::from_secs(600),
            eval_bytes: 4 * 1024 * 1024,
            ..Limits::default()
        },
        ..Settings::default()
    })
}

/// Bodies that would take all memory there is.
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
    let mut book = patient();
    for body in greedy() {
        book.apply(policy(
            "greedy",
            GATE,
            &with(&format!("deny[msg] {{ {body}; msg := \"x\" }}")),
        ));
        book.apply(policy("other", GATE, &with("deny[\"other\"] { true }")));
        let findings = judge(&book.snapshot(), &any_pod());
        let told = messages(&findings);
        let named = told.len() == 2
            && told[1] == "other"
            && [
                "took more than 4 MiB of memory",
                "more than 65536 elements",
                "more than 1048576 bytes",
            ]
            .iter()
            .any(|bound| told[0].contains(bound));
        assert!(named, "{body}: {told:?}");
    }
}

/// Bodies whose value is nested as deep as this.
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
        let told = std::thread::Builder::new()
            .stack_size(2 * 1024 * 1024)
            .spawn(move || {
                let mut book = patient();
                book.apply(policy("p", GATE, &tower(1000, end)));
                messages(&judge(&book.snapshot(), &any_pod())).join("")
            })
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(told, "end", "{end}");
    }
}

#[test]
fn values_nested_deeper_are_refused_at_load() {
    let told = refused(&tower(1100, "true"));
    assert!(told.contains("line 3: values of data.kubernetes.admission.deny may be nested more than 1024 levels deep"), "{told}");
    let calls = |times: usize| {
        let f = |name: &str| format!("{}x{}", format!("{name}(").repeat(times), ")".repeat(times));
        with(&format!(
            "deny[msg] {{ f3(1) != 1; msg := \"end\" }}\nf3(x) = {}\nf2(x) = {}\nf1(x) = [[[[[x]]]]]",
            f("f2"),
            f("f1")
        ))
    };
    assert!(refused(&calls(15)).contains("values of data.kubernetes.admission.deny may be"));
    let mut allowed = patient();
    allowed.apply(policy("p", GATE, &calls(14)));
    assert_eq!(messages(&judge(&allowed.snapshot(), &any_pod())), ["end"]);
    let constants: String = (0..2000)
        .map(|n| format!("\"ns-{n}\": {{\"a\", \"b\"}},\n"))
        .collect();
    let list =
        format!("deny[msg] {{ not roles[\"x\"]; msg := \"not listed\" }}\nroles = {{{constants}}}");
    let mut book = patient();
    book.apply(policy("p", GATE, &with(&list)));
    assert_eq!(
        messages(&judge(&book.snapshot(), &any_pod())),
        ["not listed"]
    );
}
