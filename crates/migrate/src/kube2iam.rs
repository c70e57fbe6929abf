//! The values of kube2iam's chart.
//!
//! The chart's template turns values into flags, of which the last one counts. [`flags`] translates
//! those flags; this module translates the values that are not flags.

mod flags;

use serde_json::{Value, json};

use crate::common::{
    Component, PULL_SECRETS, drop_all, extra_env, pod_fields, refuse_all, secret_variable,
    service_monitor, update_strategy,
};
use crate::old_values::OldValues;
use crate::output::Output;

const AGENT: Component = Component {
    old: "",
    new: "agent",
    program: "kube2iam",
};

/// The Secret that replaces keys in the values.
const KEYS_SECRET: &str = "rolegate-aws";

/// Translates the values. Returns whether the pods of the default role matter.
pub(crate) fn translate(old: &mut OldValues, out: &mut Output, pods: Option<&[Value]>) -> bool {
    // Without a port for metrics, kube2iam serves them on the port for pods.
    let metrics = Metrics::take(old, out);
    let uses_pods = flags::translate(old, out, metrics.is_scraped, pods);
    aws(old, out);
    extra_env(old, out, &AGENT);
    pod_fields(old, out, &AGENT);
    update(old, out);
    dropped(old, out);
    uses_pods
}

/// The values about Prometheus.
struct Metrics {
    /// True if the chart created something that scrapes the agents.
    is_scraped: bool,
}

impl Metrics {
    fn take(old: &mut OldValues, out: &mut Output) -> Self {
        let service = old.take_switch("prometheus.service.enabled") == Some(true);
        let monitor = old.take_switch("prometheus.serviceMonitor.enabled") == Some(true);
        let annotations = old
            .take_map("prometheus.service.annotations")
            .unwrap_or_default();
        let interval = old.take_nonempty("prometheus.serviceMonitor.interval");
        let labels = old
            .take_map("prometheus.serviceMonitor.labels")
            .unwrap_or_default();
        let namespace = old.take_nonempty("prometheus.serviceMonitor.namespace");
        if service {
            out.set("metrics.services", true);
            if !annotations.is_empty() {
                out.action(
                    "prometheus.service.annotations",
                    "the Services of rolegate's chart have no annotations of yours: scrape them by a ServiceMonitor, \
                     or annotate the pods by agent.podAnnotations",
                );
            }
        }
        if monitor {
            service_monitor(out, interval, labels);
            if namespace.is_some() {
                out.action(
                    "prometheus.serviceMonitor.namespace",
                    "rolegate's chart creates ServiceMonitors in its own namespace: let Prometheus select them there",
                );
            }
        }
        let is_scraped = service || monitor;
        if is_scraped {
            out.arg("agent", "--kube2iam-metrics");
            let from = if monitor {
                "prometheus.serviceMonitor"
            } else {
                "prometheus.service"
            };
            out.changed(
                from,
                "agent.extraArgs",
                "--kube2iam-metrics keeps kube2iam's names of metrics next to rolegate's: remove it once dashboards \
                 and alerts use the new names",
            );
        }
        Self { is_scraped }
    }
}

/// Translates the credentials and the Region.
fn aws(old: &mut OldValues, out: &mut Output) {
    let region = old.take_nonempty("aws.region");
    let alias = old.take_nonempty("awsRegion");
    if alias.is_some() {
        let effect = match region {
            Some(_) => "aws.region counts",
            None => "carried over as aws.region",
        };
        out.changed(
            "awsRegion",
            "agent.extraEnv",
            format!("kube2iam's published charts do not read this value; {effect}"),
        );
    }
    if let Some(region) = region.or(alias) {
        out.push(
            "agent.extraEnv",
            json!({"name": "AWS_REGION", "value": region}),
        );
    }
    // The values of keys are only tested for being empty, and never repeated.
    let has_key = old.take_nonempty("aws.access_key").is_some();
    let has_secret = old.take_nonempty("aws.secret_key").is_some();
    let existing = old.take_nonempty("existingSecret");
    let (from, secret, advice) = match existing {
        Some(name) => {
            let advice = format!("the Secret {name} must exist in rolegate's namespace too");
            ("existingSecret", name, advice)
        }
        None if has_key && has_secret => (
            "aws.secret_key",
            KEYS_SECRET.to_owned(),
            format!(
                "the keys are not repeated: create the Secret {KEYS_SECRET} in rolegate's namespace with the keys \
                 aws_access_key_id and aws_secret_access_key (kubectl create secret generic {KEYS_SECRET} \
                 --from-file=FILE...), and remove them from the values"
            ),
        ),
        None if has_key || has_secret => {
            out.dropped(
                "aws",
                "one key alone had no effect: kube2iam used the role of its node",
            );
            return;
        }
        None => return,
    };
    for (name, key) in [
        ("AWS_ACCESS_KEY_ID", "aws_access_key_id"),
        ("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key"),
    ] {
        out.push("agent.extraEnv", secret_variable(name, &secret, key));
    }
    out.action(
        from,
        format!(
            "{advice}. The caller of STS is then an IAM user: roles of pods must trust the user's ARN and not the \
             nodes' role, and sessions may be longer than one hour. Without these variables in agent.extraEnv agents \
             use their node's role, which renews itself"
        ),
    );
}

fn update(old: &mut OldValues, out: &mut Output) {
    update_strategy(old, out, &AGENT);
    let unavailable = old.take_text("maxUnavailable");
    if unavailable.is_some_and(|text| text != "1") {
        out.dropped(
            "maxUnavailable",
            "an update starts the new agent before the old one leaves, so no node is without one; \
             agent.updateStrategy.maxSurge is the number of nodes at once",
        );
    }
}

/// Drops the values that rolegate has no use for.
fn dropped(old: &mut OldValues, out: &mut Output) {
    image(old, out);
    if old.take_map("lifecycle").is_some_and(|map| !map.is_empty()) {
        out.dropped(
            "lifecycle",
            "the preStop hook removes the redirect, so pods of the node had the node's role during every update; \
             rolegate keeps its rules and hands over to the next agent (agent.mode=remove takes them off)",
        );
    }
    if old.take_switch("podSecurityPolicy.enabled") == Some(true) {
        out.dropped(
            "podSecurityPolicy.enabled",
            "Kubernetes 1.25 removed PodSecurityPolicy; the agent needs a namespace with Pod Security level privileged",
        );
    }
    old.take_map("podSecurityPolicy.annotations");
    let creates_rbac = old.take_switch("rbac.create");
    let account = old.take_nonempty("rbac.serviceAccountName");
    if creates_rbac != Some(true)
        && let Some(account) = account.filter(|name| name != "default")
    {
        out.dropped(
            "rbac.serviceAccountName",
            format!(
                "rolegate's chart creates a service account with the rights that the agent needs; {account} is not used"
            ),
        );
    }
    let probes = ["probe", "livenessProbe", "readinessProbe"];
    for name in probes {
        if old
            .take(name)
            .is_some_and(|value| value != json!(true) && !is_default_probe(name, &value))
        {
            out.dropped(
                name,
                "the chart probes the port of metrics and health, with times of its own",
            );
        }
    }
    drop_all(
        old,
        out,
        &AGENT,
        &["nameOverride", "fullnameOverride"],
        "other names let both charts be installed at once, to move node by node",
    );
}

/// Returns whether a probe is that of the chart's defaults.
fn is_default_probe(name: &str, value: &Value) -> bool {
    let delay = if name == "readinessProbe" { 0 } else { 30 };
    *value
        == json!({"enabled": true, "initialDelaySeconds": delay, "periodSeconds": 5,
            "successThreshold": 1, "failureThreshold": 3, "timeoutSeconds": 1})
}

fn image(old: &mut OldValues, out: &mut Output) {
    refuse_all(old, out, &AGENT, &["image.pullSecrets"], PULL_SECRETS);
    let why = "it is kube2iam's; set image.repository to rolegate's";
    drop_all(old, out, &AGENT, &["image"], why);
}
