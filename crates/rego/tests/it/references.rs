//! Tests that references are found anywhere in a rule and in its dependencies.

use serde_json::json;

use crate::helpers::{
    ADMISSION, AGENT, data, error, evaluate, messages, pod_review, policy, store,
};

/// Returns an expression in each position of a rule: keys, values and arguments of heads, `else`,
/// indices, comprehensions, `every`, `with`.
fn places(offence: &str) -> Vec<String> {
    [
        "deny[X] { true }",
        "deny[msg] { value; msg := \"m\" }\nvalue = X { true }",
        "deny[msg] { value; msg := \"m\" }\nvalue = 1 { input.request.name == \"\" } else = X { true }",
        "deny[msg] { map.a; msg := \"m\" }\nmap[X] = 1 { true }",
        "deny[msg] { map.a; msg := \"m\" }\nmap.a[X] = 1 { true }",
        "deny[msg] { f(1); msg := \"m\" }\nf(x) = X { x }",
        "deny[msg] { f(1); msg := \"m\" }\nf(x) = [y | y := X] { x }",
        "deny[msg] { f({\"a\": 1}); msg := \"m\" }\nf({\"a\": y}) { y == X }",
        "deny[msg] { input.request.kind[X]; msg := \"m\" }",
        "deny[msg] { not input.request.kind[X]; msg := \"m\" }",
        "deny[msg] { not startswith(X, \"a\"); msg := \"m\" }",
        "deny[msg] { {X: 1}; msg := \"m\" }",
        "deny[msg] { {\"k\": [X]}; msg := \"m\" }",
        "deny[msg] { {x | x := X}; msg := \"m\" }",
        "deny[msg] { {X: x | x := 1}; msg := \"m\" }",
        "deny[msg] { some x in [X]; msg := x }",
        "deny[msg] { every x in [1] { x == X }; msg := \"m\" }",
        "deny[msg] { 1 in [X]; msg := \"m\" }",
        "deny[msg] { input with input as X; msg := \"m\" }",
        "deny[msg] { 1 + 2 * X == 3; msg := \"m\" }",
        "deny[msg] { {1} | {X}; msg := \"m\" }",
    ]
    .iter()
    .map(|rule| {
        format!(
            "package kubernetes.admission\nimport future.keywords.in\nimport future.keywords.every\n{}\n",
            rule.replace('X', offence)
        )
    })
    .collect()
}

#[test]
fn missing_built_ins_are_found_wherever_they_are_called() {
    for rego in places("http.send({})") {
        let why = error(&store([policy("p", ADMISSION, &rego)]), "p");
        assert!(why.contains("http.send is not supported"), "{rego}: {why}");
    }
}

#[test]
fn input_that_a_door_does_not_have_is_found_wherever_it_is_read() {
    for rego in places("input.request.userInfo.username") {
        let why = error(&store([policy("p", AGENT, &rego)]), "p");
        assert!(
            why.contains("reads input.request.userInfo.username"),
            "{rego}: {why}"
        );
    }
}

#[test]
fn rules_in_a_circle_are_found_wherever_they_are_read() {
    for rego in places("deny") {
        let why = error(&store([policy("p", ADMISSION, &rego)]), "p");
        assert!(why.contains("depends on itself"), "{rego}: {why}");
    }
}

#[test]
fn data_is_there_wherever_it_is_read() {
    for rule in [
        "deny[data.team.words.first] { true }",
        "deny[msg] { msg := word }\nword = data.team.words.first { true }",
        "deny[msg] { f(msg) }\nf(x) = true { x == data.team.words.first }\ndeny[msg] { map[msg] }\nmap[data.team.words.first] = 1 { true }",
    ] {
        let rego = format!(
            "package kubernetes.admission\n{}\n",
            rule.replace("deny[msg] { f(msg) }\n", "")
        );
        let mut store = store([
            policy("p", ADMISSION, &rego),
            data("team", "words", "first", "\"hello\""),
        ]);
        let findings = evaluate(&store.snapshot(), &pod_review(json!({}), json!({})));
        assert_eq!(messages(&findings), ["hello"], "{rule}");
    }
}

#[test]
fn names_that_a_rule_declares_are_not_the_rules_of_that_name() {
    // Each name is that of a rule that depends on `deny`. Mistaken for it, the rules would form a
    // cycle.
    let rego = "package kubernetes.admission\nimport future.keywords.in\nimport future.keywords.every\n\
        a { deny }\nb { deny }\nc { deny }\nd { deny }\ne { deny }\ng { deny }\nh { deny }\n\
        deny[msg] { some a; input.request.list[a]; b := 1; [c, {\"k\": d}] := [1, {\"k\": 2}]; f(b, [c, d]); every e in [1] { e }; some g in [1]; g == 1; x := {h | h := 1}; x[1]; msg := \"m\" }\n\
        f(a, [b, c]) { a; b; c }\ndefault k(a) = 1\nk(a) = 2 { a }\n";
    let store = store([policy("p", ADMISSION, rego)]);
    assert_eq!(store.never_loaded(), std::collections::BTreeMap::new());
}

#[test]
fn deep_values_of_all_kinds_are_rejected() {
    let nested = |open: &str, close: &str| format!("{}x{}", open.repeat(5), close.repeat(5));
    for made in [
        nested("[", "]"),
        nested("{", "}"),
        nested("{\"k\": ", "}"),
        nested("{", ": \"k\"}"),
        nested("[y | y := ", "]"),
        nested("{y | y := ", "}"),
        nested("{\"k\": y | y := ", "}"),
        nested("[1, ", "]"),
        nested("{\"a\": 1, \"k\": ", "}"),
    ] {
        let tower = |times: usize| {
            let calls =
                |name: &str| format!("{}x{}", format!("{name}(").repeat(times), ")".repeat(times));
            format!(
                "package kubernetes.admission\ndeny[msg] {{ f3(1); msg := \"m\" }}\nf3(x) = {}\nf2(x) = {}\nf1(x) = {made}\n",
                calls("f2"),
                calls("f1")
            )
        };
        let why = error(&store([policy("p", ADMISSION, &tower(15))]), "p");
        assert!(
            why.contains("nested more than 1024 levels deep"),
            "{made}: {why}"
        );
        let store = store([policy("p", ADMISSION, &tower(14))]);
        assert_eq!(
            store.never_loaded(),
            std::collections::BTreeMap::new(),
            "{made}"
        );
    }
}

/// Returns functions `f<from>` to `f<to>`, each of which calls the next.
fn chain(name: &str, to: usize, end: &str) -> String {
    let calls = (0..to).map(|n| format!("{name}{n}(x) {{ {name}{}(x) }}\n", n + 1));
    calls
        .chain([format!("{name}{to}(x) {{ {end} }}\n")])
        .collect()
}

#[test]
fn the_longest_chain_of_rules_is_32_however_it_is_joined() {
    let with = |first: &str, rest: &str| {
        let rego = format!(
            "package kubernetes.admission\ndeny[msg] {{ {first}(1); msg := \"m\" }}\n{rest}"
        );
        store([policy("p", ADMISSION, &rego)])
    };
    let fits = with("f0", &chain("f", 30, "x"));
    assert_eq!(fits.never_loaded(), std::collections::BTreeMap::new());
    for too_long in [
        with("f0", &chain("f", 31, "x")),
        // A chain visited first is already known when another one continues it.
        with(
            "g0",
            &format!("{}{}", chain("f", 16, "x"), chain("g", 16, "f0(x)")),
        ),
        with(
            "a0",
            &format!("{}{}", chain("f", 16, "x"), chain("a", 16, "f0(x)")),
        ),
        with(
            "g0",
            &format!("{}{}", chain("f", 29, "x"), chain("g", 1, "f0(x)")),
        ),
    ] {
        let why = error(&too_long, "p");
        assert!(
            why.contains("more than 32 rules depend on each other"),
            "{why}"
        );
    }
    let joined = with(
        "g0",
        &format!("{}{}", chain("f", 28, "x"), chain("g", 1, "f0(x)")),
    );
    assert_eq!(joined.never_loaded(), std::collections::BTreeMap::new());
}

#[test]
fn a_chain_that_goes_on_in_a_library_is_as_long_as_both() {
    // The library's rules are visited first, so their depth is known.
    let joined = |own: usize, library: usize| {
        let deny = format!(
            "package kubernetes.admission\ndeny[msg] {{ g0(1); msg := \"m\" }}\n{}",
            chain("g", own, "data.a.lib.f0(x)")
        );
        let library = format!("package a.lib\n{}", chain("f", library, "x"));
        store([
            policy("deny", ADMISSION, &deny),
            policy("library", ADMISSION, &library),
        ])
    };
    let fits = joined(14, 15);
    assert_eq!(fits.never_loaded(), std::collections::BTreeMap::new());
    for too_long in [joined(15, 15), joined(14, 16), joined(1, 29)] {
        let why = error(&too_long, "deny");
        assert!(
            why.contains("more than 32 rules depend on each other"),
            "{why}"
        );
    }
}

#[test]
fn what_a_library_with_a_long_name_reads_counts() {
    let user = "package kubernetes.admission\n\ndeny[msg] { data.lib.a.b.late; msg := data.lib.a.b.word }\n";
    let library =
        "package lib.a.b\n\nlate { time.now_ns() > 5 }\nword = data.team.words.first { true }\n";
    let mut store = store([
        policy("user", ADMISSION, user),
        policy("library", ADMISSION, library),
        data("team", "words", "first", "\"hello\""),
    ]);
    assert_eq!(store.statuses()["opa/user"].to_json()["readsTime"], true);
    let findings = evaluate(&store.snapshot(), &pod_review(json!({}), json!({})));
    assert_eq!(messages(&findings), ["hello"]);
    store.apply(data("team", "words", "first", "\"changed\""));
    let findings = evaluate(&store.snapshot(), &pod_review(json!({}), json!({})));
    assert_eq!(messages(&findings), ["changed"]);
}
