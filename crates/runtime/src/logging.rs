//! Logs to standard error, as text or JSON lines, in UTC.
//!
//! Tenants choose the names of pods, annotations and request paths that end up in logs. Characters
//! that could forge a line, move a cursor or reorder text are escaped in fields and messages, so
//! each event is one line that shows what was sent.

mod json;

use std::fmt;
use std::io::{self, IsTerminal, Write};

use rolegate_core::text::{escape_json, is_unsafe};
use tracing::Subscriber;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt;

pub use json::{List, list};
pub use rolegate_core::text::escape;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people: one line of text, in colour on a terminal.
    #[default]
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// An error that prevents setting up logs.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is neither a level nor a list of `target=level`.
    #[error(
        "invalid log level {given:?}: use error, warn, info, debug, trace, or a list such as \
         info,rolegate_kube=debug"
    )]
    Filter {
        /// The given filter.
        given: String,
    },
    /// The process has a log subscriber already.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Sets up the logs of the process. A plain level in `filter` applies to rolegate. Libraries stay
/// quieter, because rolegate reports their errors itself, and because some log whole requests at
/// lower levels. A list of `target=level` is used unchanged.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LoggingError> {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let filter = parse_filter(filter)?;
    tracing::subscriber::set_global_default(subscriber(format, filter, colour, io::stderr))
        .map_err(|_| LoggingError::AlreadySet)
}

fn parse_filter(given: &str) -> Result<Targets, LoggingError> {
    let directives = match given.trim().to_ascii_lowercase().as_str() {
        "error" => "error,aws_config=off,kube_client=off,kube_runtime=off".into(),
        "warn" | "warning" => "warn,aws_config=off,kube_client=off,kube_runtime=off".into(),
        "info" => "warn,aws_config=off,kube_client=off,kube_runtime=off,rolegate=info".into(),
        "debug" => "info,rolegate=debug".into(),
        "trace" => "debug,aws_smithy_runtime=info,rolegate=trace".into(),
        list => list.to_owned(),
    };
    let mut targets = Targets::new();
    for directive in directives.split(',') {
        let (target, level) = directive.rsplit_once('=').unwrap_or(("", directive));
        let level = match level.trim() {
            "" => None,
            level => level.parse::<LevelFilter>().ok(),
        };
        let level = level.ok_or_else(|| LoggingError::Filter {
            given: given.into(),
        })?;
        targets = match target.trim() {
            "" => targets.with_default(level),
            target => targets.with_target(target, level),
        };
    }
    Ok(targets)
}

/// Returns the most verbose level allowed for a library, whatever the filter: below it the library
/// logs requests and responses with credentials.
fn most(target: &str) -> LevelFilter {
    const WIRE: [&str; 5] = ["aws_", "h2", "hyper", "rustls", "tower"];
    if WIRE.iter().any(|library| target.starts_with(library)) {
        LevelFilter::INFO
    } else if target.starts_with("kube_") {
        LevelFilter::DEBUG
    } else {
        LevelFilter::TRACE
    }
}

fn subscriber<W>(
    format: LogFormat,
    filter: Targets,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filtered = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(|metadata| {
            *metadata.level() <= most(metadata.target())
        }));
    match format {
        LogFormat::Text => Box::new(
            filtered.with(
                layer()
                    .with_ansi(colour)
                    .fmt_fields(debug_fn(write_field).delimited(" "))
                    .with_writer(writer),
            ),
        ),
        LogFormat::Json => Box::new(
            filtered.with(
                layer()
                    .event_format(json::JsonLines)
                    .with_writer(EscapedJson(writer)),
            ),
        ),
    }
}

fn write_field(
    writer: &mut Writer<'_>,
    field: &tracing::field::Field,
    value: &dyn fmt::Debug,
) -> fmt::Result {
    use fmt::Write;
    match field.name() {
        "message" => write!(Escaping(writer), "{value:?}"),
        name => write!(Escaping(writer), "{name}={value:?}"),
    }
}

struct Escaping<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for run in text.split_inclusive(is_unsafe) {
            match run.char_indices().next_back() {
                Some((at, last)) if is_unsafe(last) => {
                    self.0.write_str(run.get(..at).unwrap_or_default())?;
                    write!(self.0, "{}", last.escape_default())?;
                }
                _ => self.0.write_str(run)?,
            }
        }
        Ok(())
    }
}

/// Escapes the unsafe characters that JSON does not.
struct EscapedJson<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for EscapedJson<W> {
    type Writer = JsonLine<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        JsonLine(self.0.make_writer())
    }
}

struct JsonLine<W>(W);

impl<W: Write> Write for JsonLine<W> {
    // The formatter writes each event at once, so no character is split.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.0.write_all(escape_json(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::sync::Arc;

    use rolegate_core::text::UNSAFE_EXAMPLES;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, colour: bool, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let filter = parse_filter(filter).unwrap();
        let subscriber = subscriber(format, filter, colour, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// A new line, a carriage return, colours, a C1 control sequence, DEL, right-to-left override.
    const HOSTILE: &str = "app\n2024 INFO fake\r\x1b[31mred\u{9b}2J\x7f\u{202e}txt";

    fn log_hostile() {
        let span = tracing::info_span!(target: "rolegate", "request", path = %HOSTILE);
        let _guard = span.enter();
        tracing::info!(target: "rolegate", pod = %HOSTILE, role = HOSTILE, debug = ?HOSTILE, "denied {HOSTILE}");
    }

    #[test]
    fn tenants_strings_cannot_forge_lines_or_drive_the_terminal() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, "info", false, log_hostile);
            assert!(text.ends_with('\n'), "{text:?}");
            let line = text.trim_end_matches('\n');
            assert!(!line.chars().any(is_unsafe), "{format:?}: {line:?}");
            assert!(line.contains("fake") && line.contains("denied"), "{line}");
        }
    }

    #[test]
    fn no_unsafe_character_reaches_a_log() {
        for c in UNSAFE_EXAMPLES {
            let hostile = format!("a{c}b");
            let log = || {
                tracing::info!(target: "rolegate", pod = %hostile, role = hostile, debug = ?hostile, "denied {hostile}");
            };
            for format in [LogFormat::Text, LogFormat::Json] {
                let text = logged(format, "info", false, log);
                let line = text.trim_end_matches('\n');
                assert!(!line.contains(is_unsafe), "{c:?}: {line:?}");
            }
            let line = logged(LogFormat::Json, "info", false, log);
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(event["role"], hostile);
        }
    }

    #[test]
    fn json_keeps_the_value_whole() {
        let line = logged(LogFormat::Json, "info", false, log_hostile);
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["pod"], HOSTILE);
        assert_eq!(event["level"], "INFO");
        assert!(
            event["timestamp"].as_str().unwrap().ends_with('Z'),
            "{event}"
        );
    }

    #[test]
    fn values_keep_their_types_in_json() {
        let line = logged(LogFormat::Json, "info", false, || {
            let none: Option<&str> = None;
            tracing::info!(
                target: "rolegate",
                roles = list(["a\"b", "c"]),
                nothing = list([""; 0]),
                count = 3_u64,
                below = -1_i64,
                share = 0.5,
                no_number = f64::NAN,
                fine = true,
                none,
                fake = %"[1]",
                "lists"
            );
        });
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "timestamp": event["timestamp"], "level": "INFO", "target": "rolegate",
            "message": "lists", "roles": ["a\"b", "c"], "nothing": [], "count": 3, "below": -1,
            "share": 0.5, "no_number": null, "fine": true, "fake": "[1]",
        });
        assert_eq!(event, expected);
        let line = logged(LogFormat::Text, "info", false, || {
            tracing::info!(target: "rolegate", roles = list(["a\nb", "c"]), "lists");
        });
        assert!(line.contains("lists roles=[a\\nb, c]"), "{line}");
    }

    #[test]
    fn text_is_readable_and_coloured_on_request() {
        let log =
            || tracing::warn!(target: "rolegate", pod = "default/app", attempts = 3, "refused");
        let plain = logged(LogFormat::Text, "info", false, log);
        assert!(
            plain.contains("WARN rolegate: refused pod=\"default/app\" attempts=3"),
            "{plain}"
        );
        assert!(plain.ends_with("attempts=3\n"), "{plain:?}");
        assert!(plain.split(' ').next().unwrap().ends_with('Z'), "{plain}");
        assert!(logged(LogFormat::Text, "info", true, log).contains("\x1b["));
    }

    #[test]
    fn a_plain_level_is_ours_and_libraries_stay_quiet() {
        let log = || {
            tracing::info!(target: "rolegate_kube", "ours");
            tracing::info!(target: "hyper", "theirs");
            tracing::error!(target: "kube_client::client::builder", "each retry");
            tracing::debug!(target: "rolegate_kube", "detail");
        };
        let text = logged(LogFormat::Text, "INFO", false, log);
        assert!(text.contains("ours"), "{text}");
        for quiet in ["theirs", "each retry", "detail"] {
            assert!(!text.contains(quiet), "{text}");
        }
        let listed = logged(LogFormat::Text, "off,hyper=info", false, log);
        assert!(
            listed.contains("theirs") && !listed.contains("ours"),
            "{listed}"
        );
        assert!(logged(LogFormat::Text, "warning", false, log).is_empty());
    }

    #[test]
    fn an_invalid_level_is_an_error() {
        for wrong in ["", "loud", "loud=", "info,a=b", "info,"] {
            let message = parse_filter(wrong).unwrap_err().to_string();
            assert!(message.contains("use error, warn"), "{message}");
        }
    }
}
