//! The values that both old charts have for their pods.

use serde_json::{Map, Value, json};

use crate::old_values::{OldValues, is_true, text};
use crate::output::Output;
use crate::secrets::is_secret;

/// The smallest memory limit that is carried over, in bytes. The peers' charts suggest limits for
/// programs of another size, and an agent that exceeds its limit leaves its node without
/// credentials.
const MIN_MEMORY_LIMIT: f64 = 64.0 * 1024.0 * 1024.0;

/// The reason why names of Secrets for images are not carried over.
pub(crate) const PULL_SECRETS: &str = "list the Secrets for rolegate's image in imagePullSecrets, as objects with a \
    name; they must exist in rolegate's namespace";

/// A component of an old chart, and the component of rolegate's chart that replaces it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Component {
    /// The prefix of its old values with a dot, or an empty text.
    pub(crate) old: &'static str,
    /// The component of rolegate's chart.
    pub(crate) new: &'static str,
    /// The name of the old program.
    pub(crate) program: &'static str,
}

impl Component {
    /// Returns the path of an old value.
    pub(crate) fn from(&self, name: &str) -> String {
        format!("{}{name}", self.old)
    }

    /// Returns the path of a new value.
    pub(crate) fn to(&self, name: &str) -> String {
        format!("{}.{name}", self.new)
    }
}

/// Translates the values about pods that have the same name in both charts.
pub(crate) fn pod_fields(old: &mut OldValues, out: &mut Output, of: &Component) {
    for name in ["nodeSelector", "podAnnotations", "podLabels"] {
        let map = old.take_map(&of.from(name)).unwrap_or_default();
        let texts: Map<_, _> = map
            .into_iter()
            .filter_map(|(key, value)| Some((key, Value::from(text(&value)?))))
            .collect();
        if !texts.is_empty() {
            out.set(&of.to(name), texts);
        }
    }
    if let Some(affinity) = old.take_map(&of.from("affinity"))
        && !affinity.is_empty()
    {
        out.set(&of.to("affinity"), affinity);
    }
    tolerations(old, out, of);
    if let Some(name) = old.take_nonempty(&of.from("priorityClassName")) {
        out.set(&of.to("priorityClassName"), name);
    }
    resources(old, out, of);
}

fn tolerations(old: &mut OldValues, out: &mut Output, of: &Component) {
    let from = of.from("tolerations");
    let Some(list) = old.take_list(&from) else {
        return;
    };
    if !list.is_empty() {
        out.set(&of.to("tolerations"), list);
    } else if of.new == "agent" {
        out.changed(
            &from,
            "agent.tolerations",
            "the list is empty, so nodes with taints had no agent, and their pods had the node's role; \
             rolegate's agents tolerate all taints",
        );
    }
}

fn resources(old: &mut OldValues, out: &mut Output, of: &Component) {
    let from = of.from("resources");
    let Some(mut resources) = old.take_map(&from).filter(|map| !map.is_empty()) else {
        return;
    };
    let to = of.to("resources");
    let limit = resources
        .get("limits")
        .and_then(|limits| limits.get("memory"))
        .and_then(text);
    if limit
        .as_deref()
        .and_then(bytes)
        .is_some_and(|limit| limit < MIN_MEMORY_LIMIT)
    {
        if let Some(Value::Object(limits)) = resources.get_mut("limits") {
            limits.remove("memory");
            if limits.is_empty() {
                resources.remove("limits");
            }
        }
        out.changed(
            &format!("{from}.limits.memory"),
            &format!("{to}.limits.memory"),
            format!(
                "{} is too little for rolegate; the chart's default applies",
                limit.unwrap_or_default()
            ),
        );
    }
    if !resources.is_empty() {
        out.changed(
            &from,
            &to,
            format!(
                "requests and limits were chosen for {}; compare them with the defaults of rolegate's chart",
                of.program
            ),
        );
        out.set(&to, resources);
    }
}

/// Returns the bytes of a quantity such as `64Mi`; `None` if it is malformed.
fn bytes(quantity: &str) -> Option<f64> {
    let digits = quantity.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = quantity.split_at(digits.unwrap_or(quantity.len()));
    let factor = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// Translates environment variables: a map of names and values, or a list as in pods.
pub(crate) fn extra_env(old: &mut OldValues, out: &mut Output, of: &Component) {
    let from = of.from("extraEnv");
    if let Some(map) = old.take_map(&from) {
        for (name, value) in map {
            match text(&value) {
                Some(value) => variable(out, of, &name, &value),
                None => out.action(&format!("{from}.{name}"), "the value is not a scalar"),
            }
        }
        return;
    }
    for entry in old.take_list(&from).unwrap_or_default() {
        let field = |name| entry.get(name).and_then(text);
        match (field("name"), entry.get("valueFrom")) {
            (Some(name), Some(source)) => out.push(
                &of.to("extraEnv"),
                json!({"name": name, "valueFrom": source}),
            ),
            (Some(name), None) => {
                let value = field("value").unwrap_or_default();
                variable(out, of, &name, &value);
            }
            (None, _) => out.action(&from, "an entry has no name"),
        }
    }
}

/// Adds one environment variable. The value of a secret is replaced by a reference.
fn variable(out: &mut Output, of: &Component, name: &str, value: &str) {
    if !is_secret(name, value) {
        out.push(&of.to("extraEnv"), json!({"name": name, "value": value}));
        return;
    }
    let secret = format!("rolegate-{}-env", of.new);
    out.push(&of.to("extraEnv"), secret_variable(name, &secret, name));
    out.action(
        &format!("{}.{name}", of.from("extraEnv")),
        format!(
            "the value may be a secret, so it is not repeated: create the Secret {secret} in rolegate's namespace \
             with the key {name}, which the variable now refers to"
        ),
    );
}

/// Returns an environment variable with the value of a Secret's key.
pub(crate) fn secret_variable(name: &str, secret: &str, key: &str) -> Value {
    json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
}

/// Translates the update strategy of the agents.
pub(crate) fn update_strategy(old: &mut OldValues, out: &mut Output, of: &Component) {
    let from = of.from("updateStrategy");
    if old.take_nonempty(&from).as_deref() == Some("OnDelete") {
        let to = of.to("updateStrategy.type");
        out.set(&to, "OnDelete");
        out.changed(
            &from,
            &to,
            "OnDelete is the default of the old chart; without it an update starts each new agent before the old one \
             leaves, without a gap",
        );
    }
}

/// Drops values that have no effect in rolegate, with one reason. Values that are off or empty get
/// no note.
pub(crate) fn drop_all(
    old: &mut OldValues,
    out: &mut Output,
    of: &Component,
    names: &[&str],
    why: &str,
) {
    for from in take_all(old, of, names) {
        out.dropped(&from, why);
    }
}

/// Reports values that need a decision, with one reason. Values that are off or empty get no note.
pub(crate) fn refuse_all(
    old: &mut OldValues,
    out: &mut Output,
    of: &Component,
    names: &[&str],
    why: &str,
) {
    for from in take_all(old, of, names) {
        out.action(&from, why);
    }
}

/// Takes these values of a component, and returns the paths of those that are neither off nor empty.
fn take_all(old: &mut OldValues, of: &Component, names: &[&str]) -> Vec<String> {
    let mut paths: Vec<_> = names.iter().map(|name| of.from(name)).collect();
    paths.retain(|from| old.take(from).is_some_and(|value| holds_something(&value)));
    paths
}

/// Sets the ServiceMonitor, with its interval and labels.
pub(crate) fn service_monitor(
    out: &mut Output,
    interval: Option<String>,
    labels: Map<String, Value>,
) {
    out.set("serviceMonitor.enabled", true);
    if let Some(interval) = interval {
        out.set("serviceMonitor.interval", interval);
    }
    if !labels.is_empty() {
        out.set("serviceMonitor.labels", labels);
    }
}

/// Returns whether a value or a part of it is neither off nor empty.
pub(crate) fn holds_something(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.values().any(holds_something),
        value => is_true(value),
    }
}

/// Reports the values that no translation read.
pub(crate) fn report_unread(old: &OldValues, out: &mut Output, chart: &str) {
    for path in old.unread() {
        out.action(
            &path,
            format!("no chart of {chart} that rolegate knows has this value: not carried over"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_compared_in_bytes() {
        for (quantity, expected) in [
            ("16Mi", Some(16.0 * 1024.0 * 1024.0)),
            ("64M", Some(64e6)),
            ("1024", Some(1024.0)),
            ("1.5Gi", Some(1.5 * 1024.0 * 1024.0 * 1024.0)),
            ("100m", None),
            ("x", None),
        ] {
            assert_eq!(bytes(quantity), expected, "{quantity}");
        }
    }
}
