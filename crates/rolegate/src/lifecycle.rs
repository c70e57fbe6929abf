//! The report of the error that ends the process, in the format of its log.

use std::ffi::OsString;

use rolegate_runtime::logging::{self, LogFormat};

use crate::advice::begins_with_flag;
use crate::cli::PROCESSES;
use crate::output;

/// Reports the error that ends the process: as a log line if the log is JSON, so that its reader
/// can parse all lines, and as text otherwise.
pub(crate) fn report_fatal(error: &str, json: bool) {
    if json {
        // The log may have been started already. It has not if flags are invalid.
        let _ = logging::init(LogFormat::Json, "info");
        tracing::error!(target: "rolegate", error, "rolegate failed");
    } else {
        output::error(error);
    }
}

/// Returns whether the command line or the environment selects a JSON log. It is read before flags
/// are parsed, since parse errors are reported in this format too.
pub(crate) fn asks_for_json(arguments: &[OsString], variable: Option<&str>) -> bool {
    let is_process = |command: &OsString| PROCESSES.iter().any(|process| command == process);
    // Flags without a command belong to the agent.
    if !begins_with_flag(arguments) && !arguments.get(1).is_some_and(is_process) {
        return false;
    }
    let is_json = |value: &str| value.eq_ignore_ascii_case("json");
    let mut asked = None;
    let mut rest = arguments.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = rest.next() {
        match argument.split_once('=') {
            Some(("--log-format", value)) => asked = Some(is_json(value)),
            Some(("--json-log", value)) => asked = Some(value == "true"),
            None if argument == "--log-format" => {
                asked = rest.next().map(|value| is_json(&value));
            }
            None if argument == "--json-log" => asked = Some(true),
            None if argument == "--" => break,
            _ => {}
        }
    }
    asked.unwrap_or_else(|| variable.is_some_and(is_json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_errors_is_that_of_the_log() {
        let asks = |arguments: &[&str], variable| {
            let arguments = ["rolegate"].iter().chain(arguments);
            let arguments: Vec<_> = arguments.map(OsString::from).collect();
            asks_for_json(&arguments, variable)
        };
        assert!(asks(&["agent", "--log-format=json"], None));
        assert!(asks(
            &["agent", "--log-format", "JSON", "--x"],
            Some("text")
        ));
        assert!(asks(&["agent", "--json-log"], None));
        assert!(asks(&["agent"], Some("json")));
        assert!(asks(&["--no-flag"], Some("json")));
        assert!(!asks(&["agent", "--log-format=text"], Some("json")));
        assert!(!asks(&["agent", "--", "--log-format=json"], None));
        assert!(!asks(&["agent"], None));
        // This command has no log.
        assert!(!asks(&["ledger"], Some("json")));
    }
}
