//! Groups of flags that several commands share, parsers of flag values, such as durations in Go's
//! format, and the error for invalid values.

pub(crate) mod annotations;
pub(crate) mod certificate;
pub(crate) mod container;
pub(crate) mod deciding;
pub(crate) mod given;
pub(crate) mod given_fields;
pub(crate) mod injection;
pub(crate) mod kiam;
pub(crate) mod kubernetes;
pub(crate) mod log;
pub(crate) mod rules;
pub(crate) mod sts;

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use jiff::SignedDuration;
use rolegate_core::annotation::normalized;
use rolegate_core::arn::BaseArn;
use rolegate_core::pattern::PatternFormat;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_policy::document::is_plain_name;

/// STS's limits for the duration of a session, in seconds.
const SESSION_SECONDS: std::ops::RangeInclusive<u32> = 900..=43_200;

/// A usage error: flags that parse but are invalid, alone or together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(pub(crate) String);

/// The use of the cluster's `RolegateConfig`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ClusterConfigUse {
    /// Use it if its custom resource is installed
    Auto,
    /// Always use it, and deny every role without it
    Required,
    /// Never use it
    Off,
}

impl From<ClusterConfigUse> for ConfigMode {
    fn from(given: ClusterConfigUse) -> Self {
        match given {
            ClusterConfigUse::Auto => Self::Auto,
            ClusterConfigUse::Required => Self::Required,
            ClusterConfigUse::Off => Self::Off,
        }
    }
}

/// The format of patterns of allowed roles.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RestrictionFormat {
    /// * matches any text
    Glob,
    /// Regular expressions that match the whole ARN
    Regexp,
}

impl From<RestrictionFormat> for PatternFormat {
    fn from(given: RestrictionFormat) -> Self {
        match given {
            RestrictionFormat::Glob => Self::Glob,
            RestrictionFormat::Regexp => Self::Regexp,
        }
    }
}

/// The set of pods that share a session.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SessionScopeFlag {
    /// Pods of one service account. Session name: NAMESPACE.SERVICEACCOUNT
    Workload,
    /// No other pod. Session name: NAMESPACE.POD
    Pod,
    /// All pods of one role. Session name: rolegate
    Role,
}

impl From<SessionScopeFlag> for SessionScope {
    fn from(given: SessionScopeFlag) -> Self {
        match given {
            SessionScopeFlag::Workload => Self::Workload,
            SessionScopeFlag::Pod => Self::Pod,
            SessionScopeFlag::Role => Self::Role,
        }
    }
}

/// Returns the session duration that `flag` requests from STS, in seconds.
///
/// # Errors
/// Returns a usage error for a duration that STS does not support.
pub(crate) fn session_duration_seconds(flag: &str, lifetime: Duration) -> anyhow::Result<u32> {
    let seconds = u32::try_from(lifetime.as_secs()).ok();
    let seconds = seconds.filter(|seconds| SESSION_SECONDS.contains(seconds));
    seconds.ok_or_else(|| {
        invalid(format!(
            "{flag}: {lifetime:?} is out of range; STS supports 15m to 12h"
        ))
    })
}

/// Parses the value of `--base-role-arn`.
///
/// # Errors
/// Returns a usage error for an invalid ARN.
pub(crate) fn base_arn(given: Option<&str>) -> anyhow::Result<Option<BaseArn>> {
    let base = given.map(normalized).map(BaseArn::parse).transpose();
    base.map_err(|error| invalid(format!("--base-role-arn: {error}")))
}

/// Returns a usage error, which ends the process with the exit code for invalid usage.
pub(crate) fn invalid(message: impl Into<String>) -> anyhow::Error {
    Invalid(message.into()).into()
}

/// Minimum value of `--max-staleness`. A shorter one would stop service while the watch works.
pub(crate) const MIN_STALENESS: Duration = Duration::from_secs(180);

/// Checks `--max-staleness`.
///
/// # Errors
/// Returns a usage error for a value below [`MIN_STALENESS`].
pub(crate) fn check_max_staleness(age: Duration) -> anyhow::Result<()> {
    if age < MIN_STALENESS {
        return Err(invalid(
            "--max-staleness: must be at least 3m, since an idle watch is updated only every 150 s",
        ));
    }
    Ok(())
}

/// Parses a duration in Go's format: `15m`, `1h30m`, `2s`, `500ms`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "write a duration such as 15m, 1h30m, 2s or 500ms".into())
}

/// Parses a path. An empty path means none.
pub(crate) fn path(text: &str) -> Result<PathBuf, Infallible> {
    Ok(text.into())
}

/// Parses the name of a namespace, for clap.
///
/// # Errors
/// Returns an error for an invalid name.
pub(crate) fn name(text: &str) -> Result<String, String> {
    is_plain_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| "use a name of lower-case letters, digits, - and .".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, millis) in [
            ("15m", 900_000),
            ("1h30m", 5_400_000),
            ("1h0m0s", 3_600_000),
            ("2s", 2_000),
            ("500ms", 500),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "15", "-1s", "fast", "1x"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
