//! kiam's server, which becomes the broker.

use rolegate_core::arn::{BaseArn, resolve};
use rolegate_core::text::plain;
use serde_json::json;

use crate::common::{Component, drop_all, extra_env, pod_fields};
use crate::duration::seconds;
use crate::extra_args::{Rendered, rendered};
use crate::old_values::OldValues;
use crate::output::Output;

use super::{agent, both, logs, service_account};

const BROKER: Component = Component {
    old: "server.",
    new: "broker",
    program: "kiam's server",
};

/// The session duration of kiam's chart, in seconds.
const DEFAULT_SECONDS: u64 = 900;
/// The maximum for a session that a role's session requests, in seconds.
const MAX_CHAINED_SECONDS: u64 = 3600;
/// The number of servers in kiam's chart.
const DEFAULT_REPLICAS: u64 = 3;

/// Translates the values of the server.
pub(super) fn translate(old: &mut OldValues, out: &mut Output) {
    let base = old.take_nonempty("server.roleBaseArn");
    let base = base.and_then(|text| base_arn(out, "server.roleBaseArn", &text));
    if let Some(role) = old.take_nonempty("server.assumeRoleArn") {
        assume_role(out, "server.assumeRoleArn", &role, base.as_ref());
    }
    if let Some(duration) = old.take_nonempty("server.sessionDuration") {
        session_duration(out, "server.sessionDuration", &duration);
    }
    let disables = "server.disableStrictNamespaceRegexp";
    if old.take_switch(disables) == Some(true) {
        out.action(disables, STRICT);
    }
    replicas(old, out);
    let has_role = service_account(old, out, "server", &BROKER);
    let is_on_host = host_network(old, out, has_role);
    logs::log(old, out, &BROKER);
    pod_fields(old, out, &BROKER);
    logs::metrics(old, out, &BROKER, !is_on_host);
    extra_env(old, out, &BROKER);
    for (name, value) in rendered(old.take_map("server.extraArgs").unwrap_or_default()) {
        flag(
            out,
            &format!("server.extraArgs.{name}"),
            &name,
            &value,
            base.as_ref(),
        );
    }
    drop_all(old, out, &BROKER, &["cache"], "watches need no resync");
    let why = "rolegate's chart replaces one broker after the other, with a disruption budget";
    drop_all(old, out, &BROKER, &["updateStrategy"], why);
    both(old, out, &BROKER);
}

/// The reason why expressions are not matched in part.
const STRICT: &str = "rolegate matches the annotation iam.amazonaws.com/permitted from start to end: add .* to the \
    expressions that meant a part; `rolegate policy explain -A --denied --layer=namespace=enforce` lists the pods that \
    would be refused";

/// Translates the base ARN.
fn base_arn(out: &mut Output, from: &str, text: &str) -> Option<BaseArn> {
    let is_whole = text.ends_with('/') || text.ends_with(":role");
    match BaseArn::parse(text) {
        Ok(base) if is_whole => {
            out.set("config.baseRoleArn", base.as_str());
            Some(base)
        }
        Ok(_) => {
            out.action(
                from,
                format!(
                    "{} has no slash at the end, so kiam completed a part of the name: rolegate adds a slash. Annotate \
                     pods with whole names, and set config.baseRoleArn to the part up to the last slash",
                    plain(text)
                ),
            );
            None
        }
        Err(_) => {
            out.action(
                from,
                format!(
                    "{} is not a base ARN such as arn:aws:iam::123456789012:role/k8s/",
                    plain(text)
                ),
            );
            None
        }
    }
}

fn assume_role(out: &mut Output, from: &str, role: &str, base: Option<&BaseArn>) {
    match resolve(role, base) {
        Ok(role) => out.arg("broker", &format!("--assume-role={}", role.as_str())),
        Err(_) => out.action(
            from,
            format!(
                "{} is not the ARN of a role: add --assume-role with the whole ARN to broker.extraArgs",
                plain(role)
            ),
        ),
    }
}

fn session_duration(out: &mut Output, from: &str, text: &str) {
    match seconds(text) {
        Some(DEFAULT_SECONDS) => out.dropped(
            from,
            "15m is the default of kiam; rolegate requests one hour and renews before half of it. For 15 minutes add \
             --session-duration=15m to broker.extraArgs",
        ),
        Some(seconds) if (DEFAULT_SECONDS..=MAX_CHAINED_SECONDS).contains(&seconds) => {
            out.arg("broker", &format!("--session-duration={text}"));
        }
        Some(seconds) if seconds > MAX_CHAINED_SECONDS => out.action(
            from,
            "STS gives a session of a role, as brokers have, at most one hour for another role; rolegate requests one hour",
        ),
        _ => out.action(from, "it is not a duration of at least 15m"),
    }
}

fn replicas(old: &mut OldValues, out: &mut Output) {
    let is_deployment = old.take_switch("server.deployment.enabled") == Some(true);
    let replicas = old.take_text("server.deployment.replicas");
    if !is_deployment {
        out.changed(
            "server.deployment.enabled",
            "broker.replicas",
            "a DaemonSet of servers becomes a Deployment of two brokers on the nodes that broker.nodeSelector selects",
        );
        return;
    }
    let replicas = match replicas.map(|text| text.parse::<u64>()) {
        None => DEFAULT_REPLICAS,
        Some(Ok(replicas)) if replicas > 0 => replicas,
        Some(_) => {
            out.action(
                "server.deployment.replicas",
                "it is not a number of replicas",
            );
            return;
        }
    };
    out.set("broker.replicas", replicas);
}

/// Translates the network of the server. Returns whether brokers are on the host's network.
fn host_network(old: &mut OldValues, out: &mut Output, has_role: bool) -> bool {
    let from = "server.useHostNetwork";
    let was_on_host = old.take_switch(from) == Some(true);
    if has_role {
        if was_on_host {
            out.changed(
                from,
                "broker.hostNetwork",
                "brokers with web identity do not need the host's network, and Prometheus reaches their metrics without it",
            );
        }
        return false;
    }
    out.set("broker.hostNetwork", true);
    if !was_on_host {
        out.changed(
            from,
            "broker.hostNetwork",
            "brokers that use the role of their nodes must be on the host's network, where no agent redirects them; give \
             them web identity or EKS Pod Identity to avoid it",
        );
    }
    true
}

/// Translates a flag of `server.extraArgs`.
fn flag(out: &mut Output, from: &str, name: &str, value: &Rendered, base: Option<&BaseArn>) {
    match (name, value) {
        ("role-base-arn", Rendered::Value(text)) => {
            base_arn(out, from, text);
        }
        ("assume-role-arn", Rendered::Value(text)) => assume_role(out, from, text, base),
        ("region", Rendered::Value(region)) => {
            out.push("broker.extraEnv", json!({"name": "AWS_REGION", "value": region}));
            out.changed(
                from,
                "broker.extraEnv",
                "brokers read the Region as AWS SDKs do, and call STS at its endpoint in any case",
            );
        }
        ("kubeconfig", Rendered::Value(file)) => out.arg("broker", &format!("--kubeconfig={file}")),
        ("session-duration" | "sync" | "level", _) => out.action(from, agent::SET_BY_CHART),
        ("json-log", _) => logs::json_log(out, &BROKER, from, value),
        ("disable-strict-namespace-regexp", _) => match value.switch() {
            Some(false) => {}
            _ => {
                if let Some(note) = value.inversion(name) {
                    out.changed(from, "config.layers.namespace", note);
                }
                out.action(from, STRICT);
            }
        },
        ("session", _) => out.action(
            from,
            "sessions are named NAMESPACE.SERVICEACCOUNT, or by --session-scope: correct trust policies that test \
             sts:RoleSessionName",
        ),
        ("session-refresh", _) => {
            out.dropped(from, "sessions are renewed before half of their lifetime");
        }
        ("fetchers" | "prefetch-buffer-size", _) => out.dropped(
            from,
            "no announcement of a pod is dropped; --sts-calls-in-flight in broker.extraArgs bounds calls of STS",
        ),
        ("role-base-arn-autodetect", _) => out.dropped(from, "rolegate does this by itself"),
        ("bind" | "cert" | "key" | "ca", _) => out.dropped(
            from,
            "rolegate's chart sets the brokers' address and certificate. Agents of kiam need --kiam-address in \
             broker.extraArgs while nodes move (docs/from-kiam.md)",
        ),
        ("prometheus-listen-addr", _) => out.action(from, "set broker.metrics.port"),
        _ if agent::is_tuning(name) => out.dropped(from, "rolegate needs no such setting"),
        (
            "role-base-arn" | "assume-role-arn" | "region" | "kubeconfig",
            _,
        ) => out.action(from, "it has no value"),
        _ => out.action(from, "kiam's server has no such flag: not carried over"),
    }
}
