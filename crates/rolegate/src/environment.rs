//! rolegate's environment variables, and the detection of unknown ones.
//!
//! The kubelet sets variables for every Service in a pod's namespace (`{SERVICE}_SERVICE_HOST`,
//! `{SERVICE}_PORT` and others), so a Service named `rolegate-broker` creates variables that begin
//! with `ROLEGATE_`. Those are never a flag's value. Any other variable that begins with
//! `ROLEGATE_` and is not known to a command is an error, since ignoring it could leave a layer of
//! rules off.

use std::collections::BTreeSet;

use clap::error::ErrorKind;
use clap::{Arg, Command, Error};

use crate::config_file::innermost;

/// The prefix of rolegate's own variables.
const PREFIX: &str = "ROLEGATE_";
/// Minimum similarity (Jaro, 0 to 1) of a suggested name, as in clap.
const SIMILAR: f64 = 0.7;
/// Maximum length of a name in an error, in characters.
const MAX_NAME: usize = 100;

/// Returns the value of a variable, unless the kubelet set it for a Service.
pub(crate) fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    (!is_service_link(name, &value)).then_some(value)
}

/// Returns the definition with flags that ignore the variables of Services.
pub(crate) fn without_service_links(command: Command) -> Command {
    command
        .mut_args(|flag| {
            if reads_service_link(&flag) {
                flag.env(None::<&'static str>)
            } else {
                flag
            }
        })
        .mut_subcommands(without_service_links)
}

fn reads_service_link(flag: &Arg) -> bool {
    flag.get_env().is_some_and(|name| {
        let value = std::env::var_os(name).unwrap_or_default();
        is_service_link(&name.to_string_lossy(), &value.to_string_lossy())
    })
}

/// Checks that each variable named `ROLEGATE_*` is known, for commands that read any.
///
/// # Errors
/// Returns the unknown variables as a usage error, each with the most similar name.
pub(crate) fn check(
    definition: &mut Command,
    arguments: &[std::ffi::OsString],
    variables: impl Iterator<Item = (String, String)>,
) -> Result<(), Error> {
    let (command, _) = innermost(definition, arguments);
    if own_variables(&command).is_empty() {
        return Ok(());
    }
    let known = own_variables(definition);
    let unknown: BTreeSet<_> = variables
        .filter(|(name, value)| {
            name.starts_with(PREFIX) && !known.contains(name) && !is_service_link(name, value)
        })
        .map(|(name, _)| name)
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let sentences = unknown.iter().map(|name| sentence(name, &known));
    let message = sentences.collect::<Vec<_>>().join("\n");
    Err(definition.error(ErrorKind::UnknownArgument, message))
}

/// Collects rolegate's own variables that a command and its subcommands read.
fn own_variables(command: &Command) -> BTreeSet<String> {
    let flags = command.get_arguments().filter_map(Arg::get_env);
    let mut names: BTreeSet<_> = flags
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    names.extend(command.get_subcommands().flat_map(own_variables));
    names
}

fn sentence(name: &str, known: &BTreeSet<String>) -> String {
    let scored = known
        .iter()
        .map(|known| (strsim::jaro(name, known), known))
        .filter(|(score, _)| *score > SIMILAR);
    let advice = match scored.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((_, similar)) => format!("did you mean {similar}? Correct it or remove it"),
        None => "remove it".to_owned(),
    };
    let name: String = name.chars().take(MAX_NAME).collect();
    let name = name.escape_default();
    format!("the environment variable {name} is unknown: {advice}")
}

/// Returns whether the kubelet sets such a variable for a Service. Names that end in `_PORT` could
/// also belong to a flag, so their value decides: for a Service it is a URL such as
/// `tcp://10.0.0.1:80`.
fn is_service_link(name: &str, value: &str) -> bool {
    // Service names contain no underscore, which separates the parts.
    let words: Vec<_> = name.split('_').collect();
    match *words.as_slice() {
        [_, .., "SERVICE", "HOST"] => true,
        [_, .., "PORT"] if is_service_url(value) => true,
        _ => is_service_port(&words) || is_container_port(&words),
    }
}

/// Matches `{SERVICE}_SERVICE_PORT`, and the same with the port's name.
fn is_service_port(words: &[&str]) -> bool {
    let mut pairs = words.iter().skip(1).zip(words.iter().skip(2));
    pairs.any(|pair| pair == (&"SERVICE", &"PORT"))
}

/// Matches `{SERVICE}_PORT_80_TCP`, and the same with `_PROTO`, `_PORT` or `_ADDR`.
fn is_container_port(words: &[&str]) -> bool {
    let words = match words {
        [rest @ .., "PROTO" | "PORT" | "ADDR"] => rest,
        all => all,
    };
    match words {
        [_, .., "PORT", number, "TCP" | "UDP" | "SCTP"] => number.parse::<u16>().is_ok(),
        _ => false,
    }
}

fn is_service_url(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition;

    fn checked(command: &[&str], variables: &[(&str, &str)]) -> Result<(), String> {
        let arguments: Vec<_> = std::iter::once("rolegate")
            .chain(command.iter().copied())
            .map(Into::into)
            .collect();
        let pairs = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        check(&mut definition(), &arguments, pairs).map_err(|error| {
            assert!(error.use_stderr());
            error.to_string()
        })
    }

    #[test]
    fn unknown_variables_are_named_with_what_was_meant() {
        let error = checked(
            &["agent"],
            &[
                ("ROLEGATE_NAMESPACE_RESTRICTION", "true"),
                ("ROLEGATE_QQQQQQ\u{1b}[2J", ""),
                ("ROLEGATE_APP_PORT", "8181"),
                ("PATH", "/bin"),
            ],
        )
        .unwrap_err();
        assert!(
            error.contains("ROLEGATE_NAMESPACE_RESTRICTION is unknown: did you mean ROLEGATE_NAMESPACE_RESTRICTIONS?"),
            "{error}"
        );
        assert!(!error.contains('\u{1b}'), "{error:?}");
        assert!(!error.contains("PATH"), "{error}");
        // A misspelled port variable must not pass as a variable that Kubernetes sets for a
        // Service.
        for name in ["ROLEGATE_APPS_PORT", "ROLEGATE_METRIC_PORT"] {
            assert!(checked(&["agent"], &[(name, "8181")]).is_err(), "{name}");
        }
    }

    /// One environment is often shared by several processes, such as by `envFrom`.
    #[test]
    fn variables_of_other_commands_are_known() {
        let of_broker = ("ROLEGATE_LEDGER_ENTRIES", "5");
        assert_eq!(checked(&["agent"], &[of_broker]), Ok(()));
        // These read no variables.
        for command in [&["demo"][..], &["reference", "agent"]] {
            assert_eq!(checked(command, &[("ROLEGATE_X", "")]), Ok(()));
        }
        for command in [&["policy", "explain"][..], &["redirect", "apply"]] {
            assert!(checked(command, &[("ROLEGATE_X", "")]).is_err());
        }
    }

    #[test]
    fn variables_of_services_are_told_by_name_and_value() {
        for (name, value) in [
            ("ROLEGATE_SERVICE_HOST", "10.0.0.1"),
            ("ROLEGATE_SERVICE_PORT", "443"),
            ("ROLEGATE_SERVICE_PORT_HTTPS", "443"),
            ("ROLEGATE_PORT", "tcp://10.0.0.1:443"),
            ("ROLEGATE_PORT_443_TCP", "tcp://10.0.0.1:443"),
            ("ROLEGATE_BROKER_SERVICE_HOST", "10.0.0.1"),
            ("ROLEGATE_BROKER_SERVICE_PORT_GRPC_WEB", "9443"),
            ("ROLEGATE_BROKER_PORT", "tcp://10.0.0.1:9443"),
            ("ROLEGATE_BROKER_PORT_9443_TCP", "tcp://10.0.0.1:9443"),
            ("ROLEGATE_BROKER_PORT_9443_TCP_PROTO", "tcp"),
            ("ROLEGATE_BROKER_PORT_9443_TCP_PORT", "9443"),
            ("ROLEGATE_BROKER_PORT_9443_TCP_ADDR", "10.0.0.1"),
            ("ROLEGATE_DNS_PORT_53_UDP_ADDR", "10.0.0.1"),
            ("ROLEGATE_APP_PORT", "tcp://10.0.0.1:80"),
            ("ROLEGATE_METRICS_PORT", "udp://[fd00::1]:9090"),
        ] {
            assert!(is_service_link(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("ROLEGATE_APP_PORT", "8181"),
            ("ROLEGATE_SERVICE", "rolegate-admission"),
            ("ROLEGATE_BROKER", "tcp://10.0.0.1:9443"),
            ("ROLEGATE_PORT_X_TCP", "x"),
            ("ROLEGATE_BROKER_CERT", "tcp://10.0.0.1:1"),
        ] {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
    }

    /// Among the variables of flags only those that end in `_PORT` can be a Service's, and there
    /// the value decides.
    #[test]
    fn no_flag_has_a_variable_that_only_a_service_can_have() {
        let mut definition = definition();
        definition.build();
        for name in own_variables(&definition) {
            assert!(!is_service_link(&name, "8181"), "{name}");
        }
    }
}
