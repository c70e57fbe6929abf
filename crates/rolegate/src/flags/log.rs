//! Flags about the log, shared by every long-running command.

use clap::{Args, ValueEnum};
use rolegate_runtime::logging;

use crate::flags::invalid;

const PROCESS: &str = "Process";

/// The format of log lines.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Text for people
    Text,
    /// One JSON object per line
    Json,
}

/// Flags about the log.
#[derive(Debug, Args)]
pub(crate) struct LogFlags {
    /// Format of log lines
    #[arg(long, value_name = "FORMAT", env = "ROLEGATE_LOG_FORMAT", default_value = "text", ignore_case = true, help_heading = PROCESS)]
    log_format: LogFormat,
    /// Log level (error, warn, info, debug or trace) or a filter such as info,rolegate_agent=debug
    #[arg(long, alias = "level", value_name = "LEVEL", env = "ROLEGATE_LOG_LEVEL", default_value = "info", help_heading = PROCESS)]
    log_level: String,
    /// The same as --log-level=debug
    #[arg(long, env = "ROLEGATE_VERBOSE", help_heading = PROCESS)]
    verbose: bool,
    /// kiam's form of --log-format=json
    #[arg(long, hide = true)]
    json_log: bool,
}

impl LogFlags {
    /// Starts the log. Call it before validating other flags.
    ///
    /// # Errors
    /// Returns a usage error for an invalid level.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let format = match self.log_format {
            _ if self.json_log => logging::LogFormat::Json,
            LogFormat::Text => logging::LogFormat::Text,
            LogFormat::Json => logging::LogFormat::Json,
        };
        // kube2iam's logger has level names that this one does not have.
        let level = match self.log_level.as_str() {
            "panic" | "fatal" => "error",
            "warning" => "warn",
            other => other,
        };
        let level = if self.verbose { "debug" } else { level };
        logging::init(format, level).map_err(|error| invalid(format!("--log-level: {error}")))
    }
}
