//! CEL match conditions, by which the API server itself recognizes objects that need no validation.
//!
//! They use no functions of newer API servers, and no field accesses that fail if a field is absent
//! or null: an error would deny the request. `[X].exists(v, …)` binds X to a name.

use std::collections::BTreeSet;

use rolegate_core::config::Audience;

use crate::audience;
use crate::pod_template::ROLE_VARIABLE;
use crate::validate::STARTUP_TAINTS;

/// Returns a string literal. CEL accepts JSON's.
pub(super) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Returns a list of string literals.
pub(super) fn texts<'a>(all: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<_> = all.into_iter().map(text).collect();
    format!("[{}]", all.join(", "))
}

/// Holds for a creation, or if `changed` holds.
pub(super) fn unless_created(changed: &str) -> String {
    format!("oldObject == null || {changed}")
}

/// Holds if the value of one of `keys` in the metadata's map `field` differs between the objects.
pub(super) fn differs(field: &str, keys: &[&str]) -> String {
    let of = |object: &str| {
        format!(
            "(has({object}.metadata.{field}) && k in {object}.metadata.{field} ? \
             [{object}.metadata.{field}[k]] : [])"
        )
    };
    format!(
        "{}.exists(k, {} != {})",
        texts(keys.iter().copied()),
        of("object"),
        of("oldObject")
    )
}

/// Holds if the metadata's map `field` differs between the objects.
pub(super) fn all_differ(field: &str) -> String {
    let of = |object: &str| {
        format!("(has({object}.metadata.{field}) ? {object}.metadata.{field} : {{}})")
    };
    format!("{} != {}", of("object"), of("oldObject"))
}

/// Holds if a field differs between the objects, or is in only one of them. `*` stands for any
/// field.
pub(super) fn field_differs(field: &str) -> String {
    if field == "*" {
        return "object != oldObject".into();
    }
    let field = text(field);
    let of = |object: &str| format!("({field} in {object} ? [{object}[{field}]] : [])");
    format!("{} != {}", of("object"), of("oldObject"))
}

/// Holds if the metadata's map `field` of `object` has keys other than `known`.
pub(super) fn has_others(object: &str, field: &str, known: &str) -> String {
    format!(
        "(has({object}.metadata.{field}) && {object}.metadata.{field}.exists(k, k != {}))",
        text(known)
    )
}

/// Holds if the metadata's map `field` of `object` has one of `keys`.
pub(super) fn has_any(object: &str, field: &str, keys: &[&str]) -> String {
    format!(
        "(has({object}.metadata) && {})",
        holds_any(&format!("{object}.metadata"), field, keys)
    )
}

/// Holds if the map `field` of `metadata` has one of `keys`.
pub(super) fn holds_any(metadata: &str, field: &str, keys: &[&str]) -> String {
    format!(
        "({} && {}.exists(k, k in {metadata}.{field}))",
        given(metadata, field),
        texts(keys.iter().copied())
    )
}

/// Holds if `at` has a field that is not null.
fn given(at: &str, field: &str) -> String {
    format!("has({at}.{field}) && {at}.{field} != null")
}

/// Holds if `leaf` holds for a value that `path` selects from `start`. `*` stands for every entry.
pub(super) fn any<'a>(
    start: &str,
    path: impl IntoIterator<Item = &'a str>,
    leaf: impl FnOnce(&str) -> String,
) -> String {
    let (mut opened, mut here, mut depth) = (String::new(), start.to_owned(), 0);
    for name in path {
        let next = format!("v{depth}");
        if name == "*" {
            opened.push_str(&format!(
                "(type({here}) == map ? {here}.map(k, {here}[k]) : {here}).exists({next}, {next} != null && "
            ));
        } else {
            let name = text(name);
            opened.push_str(&format!(
                "{name} in {here} && {here}[{name}] != null && [{here}[{name}]].exists({next}, "
            ));
        }
        here = next;
        depth += 1;
    }
    format!("{opened}{}{}", leaf(&here), ")".repeat(depth))
}

/// Holds if a pod or template names a role, by its annotation, a variable or a token for AWS: one
/// for `audiences` or for a known audience.
pub(super) fn names_role(object: &str, key: &str, audiences: &BTreeSet<Audience>) -> String {
    let annotated = has_any(object, "annotations", &[key]);
    let containers: Vec<_> = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .map(|all| {
            format!(
                "{} && s.{all}.exists(c, {} && c.env.exists(e, has(e.name) && e.name == {}))",
                given("s", all),
                given("c", "env"),
                text(ROLE_VARIABLE)
            )
        })
        .collect();
    let audience = format!("({} ? t.audience : \"\")", given("t", "audience"));
    let token = format!(
        "{} && s.volumes.exists(v, has(v.projected) && {} && v.projected.sources.exists(p, {} && \
         [p.serviceAccountToken].exists(t, {})))",
        given("s", "volumes"),
        given("v.projected", "sources"),
        given("p", "serviceAccountToken"),
        audience::cel(&audience, audiences)
    );
    format!(
        "{annotated} || {} && [{object}.spec].exists(s, {} || {token})",
        given(object, "spec"),
        containers.join(" || ")
    )
}

/// Holds if a pod or template selects its node, or tolerates every taint or nodes that are not
/// ready.
pub(super) fn chooses_node(object: &str) -> String {
    let affinity = "a.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let picks = format!(
        "has(s.affinity) && [s.affinity].exists(a, has(a.nodeAffinity) && \
         has({affinity}) && {} && {affinity}.nodeSelectorTerms.exists(n, {} && \
         n.matchFields.exists(f, has(f.operator) && f.operator == \"In\")))",
        given(affinity, "nodeSelectorTerms"),
        given("n", "matchFields"),
    );
    format!(
        "{} && [{object}.spec].exists(s, has(s.nodeName) && s.nodeName != \"\" || {} && \
         s.tolerations.exists(t, has(t.operator) && t.operator == \"Exists\" && (!has(t.key) || t.key == \
         null || t.key == \"\") || has(t.key) && t.key in {} && (!has(t.effect) || t.effect == null || \
         t.effect in [\"\", \"NoSchedule\"])) || {picks})",
        given(object, "spec"),
        given("s", "tolerations"),
        texts(STARTUP_TAINTS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted() {
        assert_eq!(text("a\"b\\\n"), r#""a\"b\\\n""#);
        assert_eq!(texts(["a", "b"]), r#"["a", "b"]"#);
    }

    #[test]
    fn paths_are_opened_step_by_step() {
        let cel = any("object", ["spec", "*", "t"], |t| format!("{t} == 1"));
        assert_eq!(
            cel,
            "\"spec\" in object && object[\"spec\"] != null && [object[\"spec\"]].exists(v0, (type(v0) == \
             map ? v0.map(k, v0[k]) : v0).exists(v1, v1 != null && \"t\" in v1 && v1[\"t\"] != null && \
             [v1[\"t\"]].exists(v2, v2 == 1)))"
        );
        assert_eq!(any("object", [], str::to_owned), "object");
    }

    #[test]
    fn keys_are_looked_for_in_a_map_that_may_be_absent_or_null() {
        let map = "has(m.labels) && m.labels != null";
        assert_eq!(
            holds_any("m", "labels", &["a", "b"]),
            format!(r#"({map} && ["a", "b"].exists(k, k in m.labels))"#)
        );
        assert_eq!(
            has_any("object", "labels", &["a"]),
            format!(
                "(has(object.metadata) && {})",
                holds_any("object.metadata", "labels", &["a"])
            )
        );
    }
}
