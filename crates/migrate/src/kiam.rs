//! The values of kiam's chart: its agent becomes rolegate's agent, and its server the broker.

mod agent;
mod logs;
mod server;

use serde_json::Value;

use crate::common::{Component, PULL_SECRETS, drop_all, holds_something, refuse_all};
use crate::old_values::{OldValues, text};
use crate::output::Output;

const TOP: Component = Component {
    old: "",
    new: "agent",
    program: "kiam",
};

/// The annotation of a service account with the role of web identity.
const ROLE_ANNOTATION: &str = "eks.amazonaws.com/role-arn";

/// Translates the values.
pub(crate) fn translate(old: &mut OldValues, out: &mut Output) {
    let has_agent = old.take_switch("agent.enabled").unwrap_or(true);
    let has_server = old.take_switch("server.enabled").unwrap_or(true);
    if !has_agent {
        out.set("agent.enabled", false);
    }
    if has_server {
        out.set("broker.enabled", true);
    } else {
        out.action(
            "server.enabled",
            "it is off, so agents used the server of another release: install rolegate's brokers there, and add \
             --broker=https://HOST:PORT to agent.extraArgs",
        );
    }
    out.set("config.layers.namespace", "enforce");
    out.set("config.namespaceRestrictionsDefault", "deny");
    out.changed(
        "server",
        "config.layers.namespace",
        "kiam requires the annotation iam.amazonaws.com/permitted of every namespace; enforce and deny keep that. It is \
         matched from start to end: add .* to expressions that meant a part",
    );
    agent::translate(old, out);
    server::translate(old, out);
    dropped(old, out);
}

/// Translates a service account. Returns whether it has a role of web identity.
fn service_account(old: &mut OldValues, out: &mut Output, name: &str, of: &Component) -> bool {
    let prefix = format!("serviceAccounts.{name}");
    let account = old.take_nonempty(&format!("{prefix}.name"));
    old.take_switch(&format!("{prefix}.create"));
    if account.is_some() {
        out.dropped(
            &format!("{prefix}.name"),
            "rolegate's chart names its service accounts, so that kiam's can stay until every node has moved",
        );
    }
    let from = format!("{prefix}.annotations");
    let annotations = old.take_map(&from).unwrap_or_default();
    let has_role = annotations.contains_key(ROLE_ANNOTATION);
    let texts: serde_json::Map<_, _> = annotations
        .into_iter()
        .filter_map(|(key, value)| Some((key, Value::from(text(&value)?))))
        .collect();
    if !texts.is_empty() {
        out.set(&of.to("serviceAccount.annotations"), texts);
    }
    if has_role {
        out.action(
            &from,
            "the role's trust policy names the service account of kiam: let its condition on :sub name that of \
             rolegate too, system:serviceaccount:NAMESPACE:rolegate-broker in a release named rolegate",
        );
    }
    has_role
}

/// Drops values about both components that rolegate has no use for.
fn dropped(old: &mut OldValues, out: &mut Output) {
    drop_all(
        old,
        out,
        &TOP,
        &["extraArgs"],
        "kiam's templates do not read it",
    );
    refuse_all(old, out, &TOP, &["imagePullSecrets"], PULL_SECRETS);
    if old.take_switch("rbac.create") == Some(false) {
        out.dropped(
            "rbac.create",
            "rolegate's chart always creates the rights that its processes need",
        );
    }
    let why = "Kubernetes 1.25 removed PodSecurityPolicy; agents need a namespace with Pod Security level privileged";
    drop_all(old, out, &TOP, &["psp"], why);
    let why = "other names let both charts be installed at once, to move node by node";
    drop_all(old, out, &TOP, &["nameOverride", "fullnameOverride"], why);
}

/// Drops and reports the values that kiam's agent and server have in common.
fn both(old: &mut OldValues, out: &mut Output, of: &Component) {
    drop_all(
        old,
        out,
        of,
        &[
            "tlsSecret",
            "tlsFiles",
            "tlsCerts",
            "useProvidedTlsSecret",
            "tlsSecretName",
        ],
        "rolegate's controller issues and renews the brokers' certificate, and agents authenticate with the token of \
         their service account",
    );
    let why = "it is kiam's; set image.repository to rolegate's";
    drop_all(old, out, of, &["image"], why);
    drop_all(
        old,
        out,
        of,
        &["gatewayTimeoutCreation", "keepaliveParams"],
        "rolegate's connections between agents and brokers have limits of their own",
    );
    drop_all(
        old,
        out,
        of,
        &[
            "livenessProbe",
            "readinessProbe",
            "deepLivenessProbe",
            "probes",
        ],
        "the chart probes the port of metrics and health, with times of its own",
    );
    drop_all(
        old,
        out,
        of,
        &[
            "serviceAnnotations",
            "serviceLabels",
            "annotations",
            "service",
        ],
        "the Services and workloads of rolegate's chart have its own names, ports, labels and annotations. Agents of \
         kiam need --kiam-address in broker.extraArgs while nodes move (docs/from-kiam.md)",
    );
    // The name of a container, which has no effect.
    old.take(&of.from("name"));
    let mounts = of.from("extraHostPathMounts");
    let is_certificates =
        |mount: &Value| mount.get("mountPath").and_then(Value::as_str) == Some("/etc/ssl/certs");
    let list = old.take_list(&mounts).unwrap_or_default();
    if list.iter().all(is_certificates) {
        if !list.is_empty() {
            out.dropped(
                &mounts,
                "rolegate's image contains the authorities of AWS's endpoints",
            );
        }
    } else {
        out.action(&mounts, "rolegate's chart has no value for further volumes");
    }
    let why = "rolegate's chart has no value for it";
    refuse_all(old, out, of, &["initContainers", "seLinuxOptions"], why);
    if let Some(left) = old.take(&of.from("sslCertHostPath"))
        && holds_something(&left)
    {
        out.dropped(
            &of.from("sslCertHostPath"),
            "rolegate's image contains the authorities of AWS's endpoints",
        );
    }
}
