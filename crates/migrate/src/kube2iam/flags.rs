//! kube2iam's flags, in the order in which the chart's template prints them.

mod table;

use rolegate_core::text::plain;
use serde_json::Value;

use crate::default_role::pods_without_role;
use crate::extra_args::{Rendered, rendered};
use crate::old_values::OldValues;
use crate::output::Output;

use table::{Meaning, meaning};

/// The port of kube2iam's chart.
const DEFAULT_PORT: &str = "8181";
/// The value of `host.ip` in kube2iam's chart.
const DEFAULT_HOST_IP: &str = "$(HOST_IP)";
/// The annotation key of roles.
const ROLE_KEY: &str = "iam.amazonaws.com/role";

/// A flag as kube2iam received it.
#[derive(Debug, Clone)]
struct Flag {
    name: String,
    /// The path of its value.
    from: String,
    value: Rendered,
    /// False for a default of the chart.
    is_set: bool,
}

/// The flags, of which the last one of a name counted.
struct Flags {
    all: Vec<Flag>,
    /// True if the chart created something that scrapes metrics.
    is_scraped: bool,
}

/// Translates all values that become flags. Returns whether the pods of the default role matter.
pub(super) fn translate(
    old: &mut OldValues,
    out: &mut Output,
    is_scraped: bool,
    pods: Option<&[Value]>,
) -> bool {
    let mut flags = Flags {
        all: Vec::new(),
        is_scraped,
    };
    flags.read(old, out);
    flags.redirect(out);
    flags.ports(out);
    flags.layers(out);
    let uses_pods = flags.default_role(out, pods);
    for flag in std::mem::take(&mut flags.all) {
        others(&flag, out);
    }
    uses_pods
}

impl Flags {
    /// Reads the values in the template's order.
    fn read(&mut self, old: &mut OldValues, out: &mut Output) {
        let mut value = |flags: &mut Self, from: &str, name: &str, default: &str| {
            let given = old.take_nonempty(from);
            let is_set = given.is_some();
            let value = Rendered::Value(given.unwrap_or_else(|| default.to_owned()));
            flags.add(name, from, value, is_set, out);
        };
        value(self, "host.interface", "host-interface", "docker0");
        value(self, "host.ip", "host-ip", DEFAULT_HOST_IP);
        value(self, "host.iptables", "iptables", "false");
        let arguments = old.take_map("extraArgs").unwrap_or_default();
        for (name, value) in rendered(arguments) {
            self.add(&name, &format!("extraArgs.{name}"), value, true, out);
        }
        if old.take_switch("verbose") == Some(true) {
            self.add(
                "verbose",
                "verbose",
                Rendered::Alone(String::new()),
                true,
                out,
            );
        }
        let port = old.take_nonempty("host.port");
        let is_set = port.is_some();
        let port = port.unwrap_or_else(|| DEFAULT_PORT.to_owned());
        self.add("app-port", "host.port", Rendered::Value(port), is_set, out);
        if let Some(port) = old.take_nonempty("prometheus.metricsPort") {
            let from = "prometheus.metricsPort";
            self.add("metrics-port", from, Rendered::Value(port), true, out);
        }
    }

    /// Adds a flag, which replaces an earlier one.
    fn add(&mut self, name: &str, from: &str, value: Rendered, is_set: bool, out: &mut Output) {
        let place = self.all.iter().position(|flag| flag.name == name);
        if let Some(place) = place {
            let earlier = self.all.remove(place);
            if earlier.is_set && earlier.value != value {
                out.dropped(
                    &earlier.from,
                    format!(
                        "{from} came later on kube2iam's command line, so --{name} had that value"
                    ),
                );
            }
        }
        self.all.push(Flag {
            name: name.to_owned(),
            from: from.to_owned(),
            value,
            is_set,
        });
    }

    fn take(&mut self, name: &str) -> Option<Flag> {
        let place = self.all.iter().position(|flag| flag.name == name)?;
        Some(self.all.remove(place))
    }

    /// Takes a boolean flag. Reports a value that reads as false and meant true, and one that
    /// kube2iam rejected.
    fn take_switch(&mut self, name: &str, to: &str, out: &mut Output) -> Option<(Flag, bool)> {
        let flag = self.take(name)?;
        let Some(on) = flag.value.switch() else {
            out.action(
                &flag.from,
                format!("kube2iam did not accept this value of --{name}"),
            );
            return None;
        };
        note_inverted(&flag, to, out);
        Some((flag, on))
    }

    fn redirect(&mut self, out: &mut Output) {
        let iptables = self.take_switch("iptables", "agent.redirect", out);
        let redirects = iptables.as_ref().is_some_and(|(_, on)| *on);
        out.set("agent.redirect", "auto");
        if !redirects {
            let from = iptables.map_or_else(|| "host.iptables".to_owned(), |(flag, _)| flag.from);
            out.action(
                &from,
                "it is off, so the redirect came from elsewhere (kops, user data of the nodes), or pods had the node's \
                 role. agent.redirect=auto lets rolegate keep the redirect, next to other rules that lead to the same \
                 port; set none only if something else keeps it",
            );
        }
        if let Some(flag) = self.take("host-interface") {
            match &flag.value {
                Rendered::Value(interface) if redirects && flag.is_set => {
                    out.set("agent.hostInterface", interface.as_str());
                }
                _ if redirects => out.changed(
                    "host.interface",
                    "agent.hostInterface",
                    "it is unset, which meant docker0; rolegate finds the interfaces of pods (auto)",
                ),
                _ if flag.is_set => out.dropped(
                    &flag.from,
                    "it had no effect without host.iptables; rolegate finds the interfaces of pods (auto)",
                ),
                _ => {}
            }
        }
        if let Some(flag) = self.take("host-ip")
            && flag.is_set
            && flag.value != Rendered::Value(DEFAULT_HOST_IP.into())
            && redirects
        {
            out.action(
                &flag.from,
                "rolegate's chart redirects pods to the address of the node (status.hostIP) and has no value for another",
            );
        }
    }

    fn ports(&mut self, out: &mut Output) {
        let port = self
            .take("app-port")
            .and_then(|flag| number(&flag, out))
            .unwrap_or(8181);
        out.set("agent.appPort", port);
        let metrics = self.take("metrics-port");
        match metrics.as_ref().and_then(|flag| Some((flag, number(flag, out)?))) {
            Some((flag, metrics)) if metrics != port => {
                out.set("agent.metrics.port", metrics);
                out.set("agent.metrics.public", true);
                out.changed(
                    &flag.from,
                    "agent.metrics",
                    "pods can reach this port; set agent.metrics.public to false if nothing scrapes the nodes",
                );
            }
            _ if self.is_scraped => {
                out.set("agent.metrics.public", true);
                out.changed(
                    "prometheus.metricsPort",
                    "agent.metrics",
                    "metrics move from the port of pods to agent.metrics.port, 9090 unless you set another",
                );
            }
            Some((flag, _)) => out.dropped(
                &flag.from,
                "metrics are not on the port of pods but on 127.0.0.1:9090; agent.metrics.public opens the port",
            ),
            None => {}
        }
    }

    fn layers(&mut self, out: &mut Output) {
        let layer = "config.layers.namespace";
        let restricts = self.take_switch("namespace-restrictions", layer, out);
        let restricts = restricts.is_some_and(|(_, on)| on);
        if restricts {
            out.set(layer, "enforce");
            out.set("config.namespaceRestrictionsDefault", "deny");
        } else {
            out.set(layer, "off");
        }
        let Some(flag) = self.take("namespace-restriction-format") else {
            return;
        };
        let to = "config.namespaceRestrictionFormat";
        match &flag.value {
            Rendered::Value(format) if matches!(format.as_str(), "glob" | "regexp") => {
                out.set(to, format.as_str());
                if format == "regexp" {
                    out.changed(
                        &flag.from,
                        to,
                        "expressions match the whole ARN: add .* to those in allowed-roles that meant a part",
                    );
                }
            }
            _ => out.action(&flag.from, "the format is neither glob nor regexp"),
        }
    }

    /// Translates the default role. Returns whether the pods that had it matter.
    fn default_role(&mut self, out: &mut Output, pods: Option<&[Value]>) -> bool {
        let to = "config.defaultRole";
        let discovers = self.take_switch("auto-discover-default-role", to, out);
        let Some((flag, true)) = discovers else {
            return false;
        };
        // A role that is named takes precedence in kube2iam.
        let is_named = self
            .all
            .iter()
            .any(|flag| flag.name == "default-role" && matches!(flag.value, Rendered::Value(_)));
        if is_named {
            out.dropped(&flag.from, "--default-role names the role");
            return false;
        }
        let key = self.all.iter().find(|flag| flag.name == "iam-role-key");
        let key = match key.map(|flag| &flag.value) {
            Some(Rendered::Value(key)) => key.as_str(),
            _ => ROLE_KEY,
        };
        let found = pods.map(|pods| pods_without_role(pods, key));
        let advice = match found.as_deref() {
            None => {
                "`rolegate migrate values -f FILE --pods cluster` lists the pods that name no role"
                    .to_owned()
            }
            Some([]) => "no pod relies on it: each one names a role".to_owned(),
            Some(found) => format!(
                "{} name no role and lose it",
                match found.len() {
                    1 => "1 pod or template".to_owned(),
                    number => format!("{number} pods and templates"),
                }
            ),
        };
        let is_relied_on = found.as_ref().is_none_or(|found| !found.is_empty());
        let reason = "the role that kube2iam discovers is the node's, with all rights of the node, so rolegate never \
                      gives it to pods";
        if is_relied_on {
            out.action(
                &flag.from,
                format!(
                    "{reason}. Annotate those that use AWS with a role of their own, or name a role with few rights in \
                     config.defaultRole. {advice}"
                ),
            );
        } else {
            out.dropped(&flag.from, format!("{reason}; {advice}"));
        }
        if let (Some(note), Some(found)) = (out.notes.last_mut(), found) {
            note.pods = found;
        }
        true
    }
}

/// Translates a flag that stands for itself.
fn others(flag: &Flag, out: &mut Output) {
    let Some(meaning) = meaning(&flag.name) else {
        out.action(&flag.from, "kube2iam has no such flag: not carried over");
        return;
    };
    match (meaning, &flag.value) {
        (Meaning::Dropped(why), _) => out.dropped(&flag.from, why),
        (Meaning::Refused(why), _) => out.action(&flag.from, why),
        (Meaning::Switch(note), value) => match value.switch() {
            Some(true) => {
                note_inverted(flag, "agent.extraArgs", out);
                out.arg("agent", &format!("--{}", flag.name));
                if let Some(note) = note {
                    out.changed(&flag.from, "agent.extraArgs", note);
                }
            }
            Some(false) => {}
            None => out.action(
                &flag.from,
                format!("kube2iam did not accept this value of --{}", flag.name),
            ),
        },
        (_, Rendered::Alone(_)) => out.action(
            &flag.from,
            format!(
                "it is empty, so the template wrote --{} alone, and kube2iam took the next argument as its value: give it \
                 a value or remove it",
                flag.name
            ),
        ),
        (_, Rendered::Unusable) => out.action(&flag.from, "a flag cannot have a list or a map as its value"),
        (Meaning::Value(to, check), Rendered::Value(text)) => match check(text) {
            Ok(text) => out.set(to, text),
            Err(why) => out.action(&flag.from, format!("{}: {why}", plain(text))),
        },
        (Meaning::Argument(check, note), Rendered::Value(text)) => match check(text) {
            Ok(text) => {
                out.arg("agent", &format!("--{}={text}", flag.name));
                if let Some(note) = note {
                    out.changed(&flag.from, "agent.extraArgs", note);
                }
            }
            Err(why) => out.action(&flag.from, format!("{}: {why}", plain(text))),
        },
    }
}

/// Notes a value that reads as false and meant true.
fn note_inverted(flag: &Flag, to: &str, out: &mut Output) {
    // `verbose` is a value of the chart that only adds the flag if it is true.
    if let Some(note) = flag.value.inversion(&flag.name)
        && flag.from.starts_with("extraArgs.")
    {
        out.changed(&flag.from, to, note);
    }
}

/// Returns the port in a flag, or reports it.
fn number(flag: &Flag, out: &mut Output) -> Option<u16> {
    let port = match &flag.value {
        Rendered::Value(text) => text.parse().ok().filter(|port| *port != 0),
        _ => None,
    };
    if port.is_none() {
        out.action(&flag.from, "it is not a port");
    }
    port
}
