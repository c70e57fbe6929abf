use rolegate_core::layer::{LayerId, Mode};
use serde_json::json;

use super::*;

fn workload(container: Value) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [container]}}}})
}

fn agent(container: Value) -> (Box<crate::agent::AgentFlags>, BTreeSet<UnknownFlag>) {
    let started = started(&workload(container)).unwrap();
    match started.command {
        Command::Agent(flags) => (flags, started.unknown),
        other => panic!("{other:?}"),
    }
}

#[test]
fn arguments_and_environment_parse_as_in_the_agent() {
    let (flags, unknown) = agent(json!({
        "name": "agent", "image": "ghcr.io/rolegate/rolegate:0.1.0",
        "args": ["--host-interface=eni+", "--node=$(NODE_NAME)", "--host-ip", "$(HOST_IP)",
            "--base-role-arn=arn:aws:iam::$(ACCOUNT):role/$$(x)/", "--reserved-role=a", "--layer=grants=audit"],
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
            {"name": "ACCOUNT", "value": "123456789012"},
            {"name": "PREFIX", "value": "$(ACCOUNT)-$(LATER)"},
            {"name": "ROLEGATE_DEFAULT_ROLE", "value": "$(PREFIX)"},
            {"name": "ROLEGATE_NAMESPACE_RESTRICTIONS", "value": "true"},
            {"name": "ROLEGATE_RESERVED_ROLE", "value": "b"},
            {"name": "ROLEGATE_HOST_INTERFACE", "value": "cali+"},
        ],
    }));
    let config = flags.rules.config();
    // The kubelet expands the base ARN to a text that is not a role path.
    assert!(config.is_err());
    assert_eq!(flags.host_interface, "eni+");
    let named: Vec<_> = unknown.iter().map(|one| &*one.flag).collect();
    assert_eq!(named, ["--host-ip", "--node"]);

    let (flags, unknown) = agent(json!({
        "command": ["/usr/bin/rolegate", "agent"],
        "args": ["--base-role-arn=arn:aws:iam::$(ACCOUNT):role/", "--reserved-role=a", "--layer=grants=audit"],
        "env": [
            {"name": "ACCOUNT", "value": "123456789012"},
            {"name": "ROLEGATE_NAMESPACE_RESTRICTIONS", "value": "true"},
            {"name": "ROLEGATE_RESERVED_ROLE", "value": "b"},
            {"name": "ROLEGATE_SESSION_DURATION", "value": "2h"},
        ],
    }));
    assert!(unknown.is_empty(), "{unknown:?}");
    let deciding = flags.deciding().unwrap().validated().unwrap();
    assert_eq!(deciding.session_seconds, 7200);
    let config = deciding.flags;
    assert_eq!(
        config.base.unwrap().as_str(),
        "arn:aws:iam::123456789012:role/"
    );
    assert_eq!(config.modes[LayerId::Namespace], Mode::Enforce);
    assert_eq!(config.modes[LayerId::Grants], Mode::Audit);
    let own: Vec<_> = config.reserved_roles.iter().map(|own| &*own.name).collect();
    assert_eq!(own, ["b", "a"]);
}

#[test]
fn references_are_expanded_as_the_kubelet_does() {
    let container: Container = serde_json::from_value(json!({"env": [
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)"}, {"name": "C", "value": "3"},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}},
        {"name": "T", "value": "x$(S)y"},
    ]}))
    .unwrap();
    let environment = Environment::of(&container);
    for (text, expected) in [
        ("", ""),
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)", "1$(C)"),
        ("$(NONE)", "$(NONE)"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("a$", "a$"),
        ("$()", "$()"),
    ] {
        assert_eq!(
            environment.expanded(text),
            Text::Known(expected.into()),
            "{text}"
        );
    }
    for (text, head) in [("--x=$(S)", "--x="), ("a$(T)b", "ax")] {
        let found = environment.expanded(text);
        let expected = Text::Unknown {
            head: head.into(),
            from: "Secret keys".into(),
        };
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn values_of_other_objects_are_not_known() {
    let (_, unknown) = agent(json!({
        "args": ["agent", "--layer=grants=enforce", "--default-role=$(ROLE)", "--namespace-key=x"],
        "env": [{"name": "ROLE", "valueFrom": {"configMapKeyRef": {"name": "flags", "key": "role"}}}],
        "envFrom": [{"prefix": "ROLEGATE_L", "secretRef": {"name": "more"}},
            {"prefix": "ROLEGATE_NAMESPACE_K", "configMapRef": {"name": "less"}}],
    }));
    let printed: Vec<_> = unknown
        .iter()
        .map(|one| format!("{} {}", one.flag, one.from))
        .collect();
    assert_eq!(
        printed,
        [
            "--default-role ConfigMap flags",
            // Layers of several sources add up; a key on the command line takes precedence.
            "--layer Secret more",
            "--log-format Secret more",
            "--log-level Secret more",
        ]
    );
}

#[test]
fn other_programs_and_unreadable_flags_are_unknown() {
    let printed = |container| started(&workload(container)).unwrap_err().to_string();
    let shell = json!({"name": "a", "command": ["/bin/sh", "-c", "rolegate agent"]});
    assert!(printed(shell).contains("/bin/sh"));
    let file = json!({"name": "a", "args": ["agent", "--config=/etc/rolegate.yaml"]});
    assert!(printed(file).contains("--config"));
    let file = json!({"name": "a", "args": ["agent"],
        "env": [{"name": "ROLEGATE_CONFIG", "value": "/etc/x"}]});
    assert!(printed(file).contains("--config"));
    let whole = json!({"name": "a", "args": ["agent", "$(MORE)"], "envFrom": [
        {"configMapRef": {"name": "more"}}]});
    assert!(printed(whole).contains("ConfigMap more"));
    let wrong = json!({"name": "a", "args": ["agent", "--layer=grants"]});
    assert!(printed(wrong).contains("refused"));
    let opened = json!({"name": "a", "args": ["agent", "--layer=grants=off"],
        "env": [{"name": "ROLEGATE_LAYER", "value": "grants=enforce"}]});
    assert!(printed(opened).contains("less strict"));
    let both = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "a", "image": "rolegate:1"}, {"name": "b", "image": "x/rolegate@sha256:1"}]}}}});
    assert_eq!(started(&both).unwrap_err(), FlagsError::Containers(2));
    let sidecar = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "a", "image": "envoy:1"}, {"name": "b", "image": "localhost:5000/rolegate:1",
            "args": ["broker"]}]}}}});
    assert!(matches!(
        started(&sidecar).unwrap().command,
        Command::Broker(_)
    ));
}

#[test]
fn variables_that_grow_without_bound_are_unknown() {
    let doubling = (1..64).map(|n| {
        let value = format!("$(A{0})$(A{0})", n - 1);
        json!({"name": format!("A{n}"), "value": value})
    });
    let first = json!({"name": "A0", "value": "aaaaaaaa"});
    let mut env: Vec<_> = std::iter::once(first).chain(doubling).collect();
    env.push(json!({"name": "ROLEGATE_DEFAULT_ROLE", "value": "$(A63)"}));
    let (_, unknown) = agent(json!({"args": ["agent"], "env": env}));
    let unknown: Vec<_> = unknown.iter().map(|one| (&*one.flag, &*one.from)).collect();
    let from = "variables that are too long for a process";
    assert_eq!(unknown, [("--default-role", from)]);
    // Each is short enough, but not all of them together.
    let long = json!({"name": "B0", "value": "b".repeat(MAX_TEXT)});
    let copies = (1..100).map(|n| json!({"name": format!("B{n}"), "value": "$(B0)"}));
    let container = json!({"env": std::iter::once(long).chain(copies).collect::<Vec<_>>()});
    let container = Container::deserialize(container).unwrap();
    let variables = Environment::of(&container).variables;
    let length: usize = variables.values().map(Text::len).sum();
    assert!(length <= MAX_VARIABLES, "{length}");
}

#[test]
fn template_names_are_printed_on_one_line() {
    let reference = json!({"secretKeyRef": {"name": "a\u{1b}[2J\nb", "key": "k"}});
    let (_, unknown) = agent(json!({
        "args": ["agent"],
        "env": [{"name": "ROLEGATE_DEFAULT_ROLE", "valueFrom": reference}],
    }));
    let from: Vec<_> = unknown.iter().map(|one| &*one.from).collect();
    assert_eq!(from, ["Secret a\\u{1b}[2J\\u{a}b"]);
}
