//! kiam's agent.

use crate::common::{Component, extra_env, pod_fields, update_strategy};
use crate::extra_args::{Rendered, rendered};
use crate::old_values::OldValues;
use crate::output::Output;
use crate::route_regexp::{self, Route};

use super::{both, logs, service_account};

const AGENT: Component = Component {
    old: "agent.",
    new: "agent",
    program: "kiam's agent",
};

/// Translates the values of the agent.
pub(super) fn translate(old: &mut OldValues, out: &mut Output) {
    redirect(old, out);
    // The name before kiam 4, and that of the flag.
    for name in ["whiteListRouteRegexp", "allowRouteRegexp"] {
        let from = AGENT.from(name);
        if let Some(expression) = old.take_nonempty(&from) {
            route(out, &from, &expression);
        }
    }
    logs::log(old, out, &AGENT);
    pod_fields(old, out, &AGENT);
    logs::metrics(old, out, &AGENT, true);
    update_strategy(old, out, &AGENT);
    extra_env(old, out, &AGENT);
    service_account(old, out, "agent", &AGENT);
    let policy = old.take_nonempty("agent.dnsPolicy");
    if let Some(policy) = policy.filter(|policy| policy != "ClusterFirstWithHostNet") {
        out.set("agent.dnsPolicy", policy);
    }
    for (name, value) in rendered(old.take_map("agent.extraArgs").unwrap_or_default()) {
        flag(out, &format!("agent.extraArgs.{name}"), &name, &value);
    }
    both(old, out, &AGENT);
}

fn redirect(old: &mut OldValues, out: &mut Output) {
    let redirects = old.take_switch("agent.host.iptables") == Some(true);
    let removes = old.take_switch("agent.host.iptablesRemoveOnShutdown") == Some(true);
    let interface = old.take_nonempty("agent.host.interface");
    let host_ip = old.take_nonempty("agent.host.ip");
    out.set("agent.redirect", "auto");
    if redirects {
        match interface {
            Some(interface) => out.set("agent.hostInterface", interface),
            None => out.changed(
                "agent.host.interface",
                "agent.hostInterface",
                "it is unset, which meant cali+; rolegate finds the interfaces of pods (auto)",
            ),
        }
    } else {
        out.action(
            "agent.host.iptables",
            "it is off, so the redirect came from elsewhere (kops, user data of the nodes), or pods had the node's role. \
             agent.redirect=auto lets rolegate keep the redirect, next to other rules that lead to the same port; set \
             none only if something else keeps it",
        );
        if interface.is_some() {
            out.dropped(
                "agent.host.interface",
                "it had no effect without agent.host.iptables; rolegate finds the interfaces of pods (auto)",
            );
        }
    }
    if removes {
        out.dropped(
            "agent.host.iptablesRemoveOnShutdown",
            "pods of the node had the node's role whenever the agent restarted; rolegate keeps its rules and hands over \
             to the next agent (agent.mode=remove takes them off)",
        );
    }
    if host_ip.is_some_and(|ip| ip != "$(HOST_IP)") {
        out.action(
            "agent.host.ip",
            "rolegate's chart redirects pods to the address of the node (status.hostIP) and has no value for another",
        );
    }
    let from = "agent.host.port";
    match old.take_text(from).map(|text| text.parse::<u16>()) {
        None => out.set("agent.appPort", 8181),
        Some(Ok(port)) if port != 0 => out.set("agent.appPort", port),
        Some(_) => out.action(from, "it is not a port"),
    }
}

fn route(out: &mut Output, from: &str, expression: &str) {
    match route_regexp::translate(expression) {
        Route::Nothing => {}
        Route::Allow(path) => {
            out.arg("agent", &format!("--metadata-allow={path}"));
            out.changed(
                from,
                "agent.extraArgs",
                "kiam matches a part of the whole path, and rolegate the whole path below the version; compare it with \
                 the paths that rolegate allows anyway (docs/how-to/metadata-paths.md)",
            );
        }
        Route::Untranslatable(why) => out.action(from, why),
    }
}

/// The reason why a flag that the chart sets from another value is not carried over.
pub(super) const SET_BY_CHART: &str = "kiam's chart sets this flag from another value, and kiam accepts it only once: \
    set that value, and translate again";

/// Translates a flag of `agent.extraArgs`.
fn flag(out: &mut Output, from: &str, name: &str, value: &Rendered) {
    match name {
        "allow-route-regexp" | "whitelist-route-regexp" => match value {
            Rendered::Value(expression) => route(out, from, expression),
            _ => out.action(from, "it has no expression"),
        },
        "json-log" => logs::json_log(out, &AGENT, from, value),
        "iptables" | "no-iptables" | "iptables-remove" | "no-iptables-remove" | "host-interface"
        | "port" | "level" => out.action(from, SET_BY_CHART),
        "host" => out.action(
            from,
            "rolegate's chart redirects pods to the address of the node (status.hostIP) and has no value for another",
        ),
        "allow-ip-query" => out.dropped(from, "the peer's address identifies the pod"),
        "server-address" | "server-address-refresh" => {
            out.dropped(from, "rolegate's chart names the brokers' Service");
        }
        "cert" | "key" | "ca" => out.dropped(
            from,
            "agents authenticate with the token of their service account, and trust the authority that the controller \
             publishes",
        ),
        "prometheus-listen-addr" => {
            out.action(from, "set agent.metrics.port, and agent.metrics.public for Prometheus");
        }
        _ if is_tuning(name) => out.dropped(from, "rolegate needs no such setting"),
        _ => out.action(from, "kiam's agent has no such flag: not carried over"),
    }
}

/// Returns whether a flag of agent and server tunes something that rolegate does without.
pub(super) fn is_tuning(name: &str) -> bool {
    let prefixes = [
        "grpc-",
        "no-grpc-",
        "statsd",
        "pprof",
        "gateway-",
        "prometheus-sync",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}
