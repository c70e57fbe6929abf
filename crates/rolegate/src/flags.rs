//! How flags' values are read: times as Go writes them, and what makes a value invalid.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use jiff::SignedDuration;
use rolegate_core::annotation::normalized;
use rolegate_core::arn::BaseArn;
use rolegate_core::pattern::PatternFormat;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::cluster_config::ConfigUse;

/// STS's limits of a session's life, seconds.
const LIFE: std::ops::RangeInclusive<u32> = 900..=43_200;

/// Flags that parse and make no sense, alone or together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(pub(crate) String);

/// Whether the cluster's `RolegateConfig` counts.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ClusterConfigUse {
    /// Where its custom resource is installed
    Auto,
    /// Always: without it everything is refused
    Required,
    /// Never
    Off,
}

impl From<ClusterConfigUse> for ConfigUse {
    fn from(given: ClusterConfigUse) -> Self {
        match given {
            ClusterConfigUse::Auto => Self::Auto,
            ClusterConfigUse::Required => Self::Required,
            ClusterConfigUse::Off => Self::Off,
        }
    }
}

/// How patterns of allowed roles are written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RestrictionFormat {
    /// `*` stands for any text
    Glob,
    /// Regular expressions, matched against the whole ARN
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

/// Which pods share a session.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SessionScopeFlag {
    /// Those of one service account: session NAMESPACE.SERVICEACCOUNT
    Workload,
    /// None: session NAMESPACE.POD
    Pod,
    /// Those of one role: session rolegate
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

/// The life asked of STS, as `flag` gives it, in seconds.
///
/// # Errors
/// A life that STS does not give, as wrong usage.
pub(crate) fn session_life(flag: &str, life: Duration) -> anyhow::Result<u32> {
    let seconds = u32::try_from(life.as_secs()).ok();
    let seconds = seconds.filter(|seconds| LIFE.contains(seconds));
    seconds.ok_or_else(|| {
        invalid(format!(
            "{flag}: STS gives sessions of 15m to 12h, not {life:?}"
        ))
    })
}

/// The base ARN of `--base-role-arn`.
///
/// # Errors
/// A text that is none, as wrong usage.
pub(crate) fn base_arn(given: Option<&str>) -> anyhow::Result<Option<BaseArn>> {
    let base = given.map(normalized).map(BaseArn::parse).transpose();
    base.map_err(|error| invalid(format!("--base-role-arn: {error}")))
}

/// A value that makes no sense, as the error that ends the process with the code for wrong usage.
pub(crate) fn invalid(message: impl Into<String>) -> anyhow::Error {
    Invalid(message.into()).into()
}

/// The least `--max-picture-age`: a shorter one ends service on a watch that works.
pub(crate) const MIN_PICTURE_AGE: Duration = Duration::from_secs(180);

/// Checks `--max-picture-age`.
///
/// # Errors
/// A time below [`MIN_PICTURE_AGE`], as wrong usage.
pub(crate) fn check_picture_age(age: Duration) -> anyhow::Result<()> {
    if age < MIN_PICTURE_AGE {
        return Err(invalid(
            "--max-picture-age: give 3m or more; a quiet watch is heard of each 150 s",
        ));
    }
    Ok(())
}

/// A duration as Go writes it: `15m`, `1h30m`, `2s`, `500ms`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "write a time such as 15m, 1h30m, 2s or 500ms".into())
}

/// A path, where empty means none.
pub(crate) fn path(text: &str) -> Result<PathBuf, Infallible> {
    Ok(text.into())
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
