//! Logs and metrics of kiam's agent and server.

use crate::common::{Component, service_monitor};
use crate::extra_args::Rendered;
use crate::old_values::OldValues;
use crate::output::Output;

/// The port of metrics in kiam's chart.
const DEFAULT_PORT: u16 = 9620;

/// Translates the log's settings.
pub(super) fn log(old: &mut OldValues, out: &mut Output, of: &Component) {
    // The chart's default.
    if old.take_switch(&of.from("log.jsonOutput")).unwrap_or(true) {
        out.arg(of.new, "--log-format=json");
    }
    let from = of.from("log.level");
    if let Some(level) = old.take_nonempty(&from) {
        log_level(out, of, &from, &level);
    }
}

/// Translates the flag of JSON lines.
pub(super) fn json_log(out: &mut Output, of: &Component, from: &str, value: &Rendered) {
    if value.switch() == Some(false) {
        return;
    }
    out.arg(of.new, "--log-format=json");
    if let Some(note) = value.inversion("json-log") {
        out.changed(from, &of.to("extraArgs"), note);
    }
}

/// Translates a log level.
fn log_level(out: &mut Output, of: &Component, from: &str, level: &str) {
    match level {
        "info" => {}
        "debug" | "warn" | "error" | "trace" => {
            out.arg(of.new, &format!("--log-level={level}"));
        }
        "warning" => out.arg(of.new, "--log-level=warn"),
        "fatal" | "panic" => out.arg(of.new, "--log-level=error"),
        _ => out.action(from, "it is not a log level"),
    }
}

/// Translates the settings about Prometheus. `is_reachable`: metrics can listen on other addresses
/// than loopback.
pub(super) fn metrics(old: &mut OldValues, out: &mut Output, of: &Component, is_reachable: bool) {
    let from = |name: &str| of.from(&format!("prometheus.{name}"));
    let scrape = old.take_switch(&from("scrape"));
    let port = old.take_nonempty(&from("port"));
    old.take(&from("syncInterval"));
    let monitor = old.take_switch(&from("servicemonitor.enabled")) == Some(true);
    let interval = old.take_nonempty(&from("servicemonitor.interval"));
    let labels = old
        .take_map(&from("servicemonitor.labels"))
        .unwrap_or_default();
    let path = old.take_nonempty(&from("servicemonitor.path"));
    if path.is_some_and(|path| path != "/metrics") {
        out.dropped(
            &from("servicemonitor.path"),
            "rolegate's metrics are at /metrics",
        );
    }
    if !monitor && scrape != Some(true) {
        return;
    }
    if !is_reachable {
        out.action(
            &from(if monitor { "servicemonitor.enabled" } else { "scrape" }),
            "on the host's network the metrics of brokers listen on loopback, where Prometheus cannot reach them: give \
             brokers credentials of their own (docs/how-to/install.md) and set broker.hostNetwork to false",
        );
        return;
    }
    let port = match port {
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port != 0 => port,
            _ => {
                out.action(&from("port"), "it is not a port");
                return;
            }
        },
        None => DEFAULT_PORT,
    };
    out.set(&of.to("metrics.port"), port);
    if of.new == "agent" {
        out.set("agent.metrics.public", true);
    }
    let names = "the metrics have other names (docs/from-kiam.md#metrics)";
    if monitor {
        service_monitor(out, interval, labels);
        out.changed(&from("servicemonitor.enabled"), "serviceMonitor", names);
        return;
    }
    let annotations = of.to("podAnnotations");
    out.insert(&annotations, "prometheus.io/scrape", "true");
    out.insert(&annotations, "prometheus.io/port", port.to_string());
    out.changed(
        &from("scrape"),
        &annotations,
        format!("{names}, and the annotations for Prometheus are on the pods"),
    );
}
