//! Policies have the same meaning as in OPA, including constructs that the interpreter reads
//! differently. The expected results are OPA's.

use rolegate_rego::PolicyStatus;
use serde_json::{Value, json};

use crate::helpers::{ADMISSION, error, evaluate, messages, policy, store};

fn review() -> Value {
    json!({"request": {
    "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
    "namespace": "team-a", "name": "p", "userInfo": {"username": "alice"}, "oldObject": null,
    "object": {"metadata": {"name": "p", "labels": {"app": "x"}}, "spec": {
        "containers": [
            {"name": "a", "image": "registry/a", "securityContext": {"privileged": true}},
            {"name": "b"},
        ]}}}})
}

/// Returns the combined messages of policies in the admission package.
fn messages_of(bodies: &[&str]) -> Vec<String> {
    let policies = bodies.iter().enumerate().map(|(number, body)| {
        let text = format!("package kubernetes.admission\n{body}\n");
        policy(&format!("p{number}"), ADMISSION, &text)
    });
    let mut store = store(policies);
    assert_eq!(store.never_loaded(), std::collections::BTreeMap::new());
    let findings = evaluate(&store.snapshot(), &review());
    messages(&findings).into_iter().map(str::to_owned).collect()
}

fn refused(body: &str) -> String {
    let text = format!("package kubernetes.admission\n{body}\n");
    error(&store([policy("p", ADMISSION, &text)]), "p")
}

const PRIVILEGED: &str = "deny[msg] { some i; input.request.object.spec.containers[i].securityContext.privileged; msg := \"privileged\" }";

#[test]
fn some_hides_a_rule_a_function_and_an_import_of_that_name() {
    for other in [
        "i = 7 { input.request.kind.kind == \"ConfigMap\" }",
        "i = 7",
        "i[1]",
        "i(x) = x",
    ] {
        assert_eq!(messages_of(&[PRIVILEGED, other]), ["privileged"], "{other}");
        assert_eq!(
            messages_of(&[&format!("{other}\n{PRIVILEGED}")]),
            ["privileged"],
            "{other}"
        );
    }
    assert_eq!(
        messages_of(&[&format!("import data.lib.i\n{PRIVILEGED}")]),
        ["privileged"]
    );
    let compared = "deny[msg] { names := [name | some name; input.request.object.spec.containers[_].name = name]; msg := concat(\",\", names) }";
    assert_eq!(messages_of(&[compared, "name = \"z\""]), ["a,b"]);
    let keyed = "import future.keywords.in\ndeny[msg] { some k, v in input.request.object.metadata.labels; msg := sprintf(\"%v=%v\", [k, v]) }";
    assert_eq!(messages_of(&[keyed, "k = 1", "v = 2"]), ["app=x"]);
    let nested = "import future.keywords.in\ndeny[msg] { some c in [[\"m\"]]; x := [c | some c in c]; msg := x[0] }";
    assert_eq!(messages_of(&[nested]), ["m"]);
}

#[test]
fn what_a_negated_call_reads_is_looked_up_before() {
    let absent = "input.request.object.metadata.annotations[\"acme.example/mode\"]";
    for silent in [
        format!("not contains({absent}, \"enforce\")"),
        format!("not startswith(concat(\"\", [{absent}]), \"a\")"),
        format!("not {absent} != \"a\""),
        format!("not {absent} in [\"a\"]"),
        format!("not \"a\" in {absent}"),
        format!("not count({absent}) > 1"),
        format!("not f({absent})"),
        format!("not [{absent}] == [\"a\"]"),
        format!("not f({{{absent}}})"),
        format!("not f({{\"k\": {absent}}})"),
        format!("not input.request.object[{absent}]"),
        format!("count([1 | not startswith({absent}, \"a\")]) == 1"),
        "not f(absent)".into(),
        "not f(elsewhere)".into(),
    ] {
        let text = format!(
            "import future.keywords.in\ndeny[msg] {{ {silent}; msg := \"denied\" }}\nf(x) {{ x == 9 }}\nabsent {{ input.absent }}"
        );
        let elsewhere = "elsewhere { input.absent }";
        assert!(messages_of(&[&text, elsewhere]).is_empty(), "{silent}");
        // With the import, the whole lookup is inside the negation.
        let body = text.replace("import future.keywords.in", "import future.keywords");
        assert_eq!(messages_of(&[&body, elsewhere]), ["denied"], "{silent}");
    }
    for denies in [
        format!("not {absent} == \"a\""),
        format!("not {absent}"),
        format!("not {absent} = \"a\""),
        "not absent".into(),
        "not input.request.object = walk(\"b\")".into(),
        "not x = input.request.name; x = \"q\"".into(),
        "not startswith(input.request.name, \"a\")".into(),
    ] {
        let text =
            format!("deny[msg] {{ {denies}; msg := \"denied\" }}\nabsent {{ input.absent }}");
        assert_eq!(messages_of(&[&text]), ["denied"], "{denies}");
    }
}

#[test]
fn a_negation_is_asked_after_what_binds_its_variables() {
    let body = "allowed = {\"a\"}\ndeny[msg] { not allowed[name]; name = input.request.object.spec.containers[_].name; msg := name }";
    assert_eq!(messages_of(&[body]), ["b"]);
    // The name may be that of a rule in another module: then the author must disambiguate it.
    let text = format!("package kubernetes.admission\n{body}\n");
    let mut store = store([
        policy("a", ADMISSION, &text),
        policy(
            "b",
            ADMISSION,
            "package kubernetes.admission\nname = \"b\"\n",
        ),
    ]);
    store.snapshot();
    assert!(error(&store, "b").contains("name could be a variable or the rule in opa/b: main.rego: write data.kubernetes.admission.name"), "{}", error(&store, "b"));
}

#[test]
fn walk_gives_each_node_however_it_is_written() {
    for written in [
        "[path, value] := walk(input.request.object); value == true; msg := concat(\"/\", [sprintf(\"%v\", [p]) | p := path[_]])",
        "[path, value] = walk(input.request.object); value == true; msg := concat(\"/\", [sprintf(\"%v\", [p]) | p := path[_]])",
        "node := walk(input.request.object); node[1] == true; msg := concat(\"/\", [sprintf(\"%v\", [p]) | p := node[0][_]])",
        "paths := [path | [path, true] := walk(input.request.object)]; msg := concat(\"/\", [sprintf(\"%v\", [p]) | p := paths[0][_]])",
        "walk(input.request.object)[1] == true; msg := \"spec/containers/0/securityContext/privileged\"",
    ] {
        let actual = messages_of(&[&format!("deny[msg] {{ {written} }}")]);
        assert_eq!(
            actual,
            ["spec/containers/0/securityContext/privileged"],
            "{written}"
        );
    }
}

#[test]
fn what_is_absent_or_no_collection_has_no_elements() {
    for body in [
        "volumes[input.request.object.spec.volumes[_]]\ndeny[msg] { volumes[_].hostPath; msg := \"host path\" }",
        "images[x] = input.request.object.spec.volumes[x].image\ndeny[msg] { images[_]; msg := \"image\" }",
        "import future.keywords.in\ndeny[msg] { some x in input.request.oldObject; msg := x }",
        "import future.keywords.in\ndeny[msg] { some x in input.request.name; msg := x }",
        "import future.keywords.in\ndeny[msg] { some x in 5; msg := x }",
        "import future.keywords.every\nimport future.keywords.in\ndeny[msg] { every x in input.absent { x }; msg := \"every\" }",
    ] {
        assert!(messages_of(&[body]).is_empty(), "{body}");
    }
}

#[test]
fn an_object_pattern_matches_objects_with_its_keys_alone() {
    for matches in [
        "some {\"name\": n} in containers",
        "{\"name\": n} = containers[_]",
        "containers[_] = {\"name\": n}",
        "c := containers[_]; c = {\"name\": n}",
        "{\"name\": n} := containers[_]",
        "n = f(containers[_])",
        "[{\"name\": n}, 1] = [containers[_], 1]",
    ] {
        let text = format!(
            "import future.keywords.in\ncontainers = input.request.object.spec.containers\ndeny[n] {{ {matches} }}\nf({{\"name\": n}}) = n"
        );
        assert_eq!(messages_of(&[&text]), ["b"], "{matches}");
    }
}

#[test]
fn rules_are_read_as_opa_reads_them() {
    for (body, expected) in [
        // Entries before a default.
        (
            "trusted[\"bob\"]\ntrusted[\"carol\"]\ndefault allow = false\ndeny[msg] { not trusted[input.request.userInfo.username]; not allow; msg := \"not trusted\" }",
            &["not trusted"][..],
        ),
        // A function without arguments is a rule.
        (
            "is_pod() { input.request.kind.kind == \"Pod\" }\nis_pod { input.absent }\ndeny[msg] { is_pod; msg := \"pod\" }",
            &["pod"],
        ),
        // Several bodies with their own names.
        (
            "deny[msg] { x := 1; msg := sprintf(\"%v\", [x]) } { x := 2; msg := sprintf(\"%v\", [x]) }",
            &["1", "2"],
        ),
        // A parenthesis at the start of a line.
        (
            "deny[msg] {\n  input.request.name\n  (1 + 2) * 2 >= 6\n  msg := \"sum\"\n}",
            &["sum"],
        ),
        // A comprehension's own variable.
        (
            "deny[msg] { x := [x | x = input.request.object.spec.containers[_].name]; msg := x[1] }",
            &["b"],
        ),
        (
            "deny[msg] { x := [x | x := input.request.object.spec.containers[_].name]; msg := x[1] }",
            &["b"],
        ),
        // Keywords as fields.
        (
            "deny[msg] { x := {\"default\": {\"if\": \"fields\"}}; msg := x.default.if }",
            &["fields"],
        ),
        // A set's element is its own key.
        (
            "import future.keywords.in\ndeny[msg] { \"a\", \"a\" in {\"a\"}; msg := \"member\" }",
            &["member"],
        ),
    ] {
        assert_eq!(messages_of(&[body]), expected, "{body}");
    }
}

#[test]
fn rules_whose_paths_meet_are_all_asked() {
    let open = "import future.keywords.contains\nimport future.keywords.if\np[x].q contains \"a\" if { x := \"b\" }";
    let told_both = messages_of(&[&format!(
        "{open}\np.b.q contains \"b\"\ndeny[msg] {{ p.b.q[msg] }}"
    )]);
    assert_eq!(told_both, ["a", "b"]);
    let empty = "p[x].q = 1 { x := input.absent }\ndeny[msg] { count(p) == 0; msg := \"empty\" }";
    assert_eq!(messages_of(&[empty]), ["empty"]);
    // In two modules they cannot be distinguished.
    let one = format!("package kubernetes.admission\n{open}\n");
    let other = "package kubernetes.admission\np.b.q = 1\n";
    let store = store([policy("a", ADMISSION, &one), policy("b", ADMISSION, other)]);
    let why = error(&store, "b");
    assert!(why.contains("data.kubernetes.admission.p has a variable as its key, and data.kubernetes.admission.p.b.q is also a rule (opa/a: main.rego)"), "{why}");
}

#[test]
fn an_import_is_found_in_every_module_of_a_package() {
    let module = |name: &str, text: &str| policy(name, ADMISSION, text);
    let mut store = store([
        module(
            "asks",
            "package kubernetes.admission\ndeny[msg] { data.lib[_][msg] }\n",
        ),
        module("first", "package lib\nfirst[\"a\"] { true }\n"),
        module(
            "second",
            "package lib\nimport data.words\nimport input.request as asked\nsecond[x] { words.list[x]; asked.name }\n",
        ),
        module("words", "package words\nlist[\"b\"] { true }\n"),
    ]);
    let findings = evaluate(&store.snapshot(), &review());
    assert_eq!(messages(&findings), ["a", "b"]);
}

#[test]
fn with_replaces_functions_however_they_are_named() {
    for replaced in [
        "f([1, 2]) with f as g",
        "f([1, 2]) with data.kubernetes.admission.f as g",
        "data.kubernetes.admission.f([1, 2]) with f as g",
        "h([1, 2]) with data.kubernetes.admission.f as g",
        "f([1, 2]) with f as count",
        "h([1, 2]) with f as count",
        "count([1]) with count as g",
        "h([1]) with data.kubernetes.admission.f as 2",
    ] {
        let text = format!(
            "deny[msg] {{ x := {replaced}; msg := sprintf(\"%v\", [x]) }}\nf(x) = 1\ng(x) = 2\nh(x) = f(x)"
        );
        assert_eq!(messages_of(&[&text]), ["2"], "{replaced}");
    }
    let undefined =
        "deny[msg] { count(input) == 0 with input as input.absent; msg := \"counted\" }";
    assert!(messages_of(&[undefined]).is_empty());
}

#[test]
fn a_missing_built_in_may_be_called_where_a_with_replaces_it() {
    let mocked = "reachable = http.send({\"url\": \"x\"}).ok\nmock(_) = {\"ok\": \"mocked\"}\ndeny[msg] { msg := reachable with http.send as mock }";
    assert_eq!(messages_of(&[mocked]), ["mocked"]);
    // Without one, the request is denied, even in a function with several bodies.
    for unmocked in [
        "deny[msg] { msg := reachable }",
        "f(x) = http.send({\"url\": x}).ok { x == 1 }\nf(x) = 2 { x == 2 }\ndeny[msg] { f(1); msg := \"m\" }",
    ] {
        let actual = messages_of(&[&format!("{mocked}\n{unmocked}")]);
        assert!(
            actual.len() == 1 && actual[0].contains("http.send is not supported"),
            "{unmocked}: {actual:?}"
        );
    }
    let hashed = "deny[msg] { msg := hash with crypto.sha256 as mock }\nmock(x) = x\nhash = crypto.sha256(\"text\")";
    assert_eq!(messages_of(&[hashed]), ["text"]);
    let one = "package kubernetes.admission\ndeny[msg] { data.lib.reachable with http.send as 1; msg := \"m\" }\n";
    let lib = "package lib\nreachable { http.send({}) }\n";
    let store = store([policy("p", ADMISSION, one), policy("lib", ADMISSION, lib)]);
    assert!(!store.never_loaded().is_empty());
}

#[test]
fn what_cannot_be_read_as_opa_reads_it_is_refused_with_its_line() {
    for (body, expected) in [
        (
            "deny[msg] {\n  __lowered1_x := 1\n  msg := \"x\" }",
            "line 3: names that begin with __lowered are reserved",
        ),
        (
            "deny[msg] {\n  x := 1\n  x := 2\n  msg := \"x\" }",
            "line 4: x is declared twice",
        ),
        (
            "deny[msg] {\n  y := x\n  x := 2\n  msg := \"x\" }",
            "line 4: x is used before its declaration",
        ),
        (
            "deny[msg] {\n  x := -input.a\n  msg := \"x\" }",
            "line 3: a minus sign is only allowed before a number",
        ),
        (
            "deny[msg] {\n  not x := 1\n  msg := \"x\" }",
            "line 3: not x := y declares",
        ),
        (
            "import future.keywords.and\ndeny[msg] { msg := \"x\" }",
            "line 2: the keyword and is not supported",
        ),
        (
            "p if { true }\ndeny[msg] { msg := \"x\" }\nq { true }",
            "line 3: `if` keyword is required",
        ),
        (
            "import future.keywords.in\np if { true }\ndeny[msg] { msg := \"x\" }",
            "line 4: `if` keyword is required",
        ),
        (
            "deny[msg] {\n  count(input) with input as 1 with input as 2\n  msg := \"x\" }",
            "line 3: with replaces the same path twice",
        ),
        (
            "f(input.x) = 1\ndeny[msg] { msg := \"x\" }",
            "line 2: an argument must be a name",
        ),
    ] {
        let why = refused(body);
        assert!(why.contains(expected), "{body}: {why}");
    }
}

#[test]
fn messages_of_the_interpreter_have_the_authors_names_and_lines() {
    let mut store = store([policy(
        "p",
        ADMISSION,
        "package kubernetes.admission\n\ndeny[msg] {\n  some x\n  msg := \"a\"\n\n  y := numbers.range(1, 1000000)\n}\n",
    )]);
    let findings = evaluate(&store.snapshot(), &review());
    let actual = messages(&findings);
    assert!(actual[0].contains("main.rego, line 7: "), "{actual:?}");
    assert!(!actual[0].contains("__lowered"), "{actual:?}");
}

#[test]
fn with_counts_for_each_part_of_an_equality_of_patterns() {
    let body = "deny[msg] { [{\"a\": x}, y] = [{\"a\": \"q\"}, input.request.namespace] with input.request.namespace as \"prod\"; y == \"prod\"; msg := x }";
    assert_eq!(messages_of(&[body]), ["q"]);
}

#[test]
fn a_negation_precedes_the_declaration_of_its_names() {
    for body in [
        "deny[\"m\"] { not x == 1; x := 2 }",
        "deny[\"m\"] { not startswith(x, \"a\"); x := \"b\" }",
        "deny[\"m\"] { not x; some x; x = input.request.uid }",
        "deny[\"m\"] { not [x, y] == [1, 2]; y = 1; [x] := [2] }",
        "import future.keywords.in\ndeny[\"m\"] { not x == 1; some x in [2] }",
    ] {
        let error = refused(body);
        assert!(
            error.contains("is used before its declaration"),
            "{body}: {error}"
        );
    }
    // An undeclared name may be bound after the negation.
    assert_eq!(messages_of(&["deny[\"m\"] { not x == 1; x = 2 }"]), ["m"]);
}

#[test]
fn only_what_is_written_out_is_a_constant() {
    for read in ["-input.absent", "-n", "[-n]"] {
        let error = refused(&format!("n := 2\ndeny[{read}] = true {{ true }}"));
        assert!(
            error.contains("a minus sign is only allowed before a number"),
            "{read}: {error}"
        );
    }
    assert_eq!(
        messages_of(&["p[-1] = 1 { true }\ndeny[\"m\"] { p[-1] == 1 }"]),
        ["m"]
    );
}

#[test]
fn a_negation_that_depends_on_the_version_of_opa_has_a_warning() {
    let warnings = |body: &str| {
        let text = format!("package kubernetes.admission\n{body}\n");
        let statuses = store([policy("p", ADMISSION, &text)]).statuses();
        match statuses.values().next() {
            Some(PolicyStatus::Ok { warnings, .. }) => warnings.clone(),
            other => panic!("{other:?}"),
        }
    };
    let all = "import future.keywords\n";
    for negation in [
        "not startswith(input.request.absent, \"a\")",
        "not count(input.request.absent) > 1",
        "not input.request.absent in [1]",
    ] {
        let found = warnings(&format!("{all}deny[\"m\"] {{ {negation} }}"));
        assert!(
            found[0].contains("main.rego, line 3: "),
            "{negation}: {found:?}"
        );
        let one = "import future.keywords.in\n";
        let found = warnings(&format!("{one}deny[\"m\"] {{ {negation} }}"));
        assert_eq!(found, Vec::<String>::new(), "{negation}");
    }
    for negation in [
        "not input.request.absent",
        "not input.request.absent == 1",
        "x := input.request.uid; not startswith(x, \"a\")",
    ] {
        let found = warnings(&format!("{all}deny[\"m\"] {{ {negation} }}"));
        assert_eq!(found, Vec::<String>::new(), "{negation}");
    }
}

#[test]
fn a_name_in_a_negated_reference_is_bound_elsewhere() {
    // Equations of two names may be read in either direction.
    let equations = "y = \"zz\"; x = y";
    let rules =
        "p[\"a\"] = {\"q\": 1} { true }\nl[[\"a\", 1]] { true }\nm[{\"k\": \"a\"}] { true }";
    for negation in [
        "not input.request.object.metadata[x]",
        "not input.request.uid[x]",
        "not input.request.object.metadata[x] == 1",
        "not input.request.object.metadata[x].app",
        "not p[x].q",
        "not l[[x, 1]]",
        "not m[{\"k\": x}]",
        "not data.kubernetes.admission.p[x]",
    ] {
        for body in [
            format!("{equations}; {negation}"),
            format!("{negation}; {equations}"),
            format!("y = \"zz\"; {negation}; x = y"),
        ] {
            let body = format!("deny[\"m\"] {{ {body} }}\n{rules}");
            assert_eq!(messages_of(&[&body]), ["m"], "{body}");
            let other = body.replace("zz", "a").replace(
                "input.request.object.metadata[x] == 1",
                "p[x] == {\"q\": 1}",
            );
            let silent = !negation.contains("input") || negation.contains("== 1");
            assert_eq!(messages_of(&[&other]).is_empty(), silent, "{other}");
        }
    }
}
