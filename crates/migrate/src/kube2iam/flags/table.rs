//! The flags of kube2iam that no other value affects, with their meaning in rolegate.

use std::ops::RangeInclusive;

use rolegate_core::arn::BaseArn;

use crate::duration::seconds;

/// The values of `--iam-role-session-ttl` that rolegate accepts, in seconds. Sessions last twice as
/// long, and STS allows 15 minutes to 12 hours.
const SESSION_TTL: RangeInclusive<u64> = 450..=21_600;

/// Returns a value in rolegate's form, or the reason why it has no such form.
type Check = fn(&str) -> Result<String, &'static str>;

/// The meaning of a flag.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meaning {
    /// The value of rolegate's chart at this path.
    Value(&'static str, Check),
    /// The agent's flag of the same name, with a value. The note says what differs.
    Argument(Check, Option<&'static str>),
    /// The agent's boolean flag of the same name. The note says what differs.
    Switch(Option<&'static str>),
    /// rolegate does without it, for this reason.
    Dropped(&'static str),
    /// It is not carried over, for this reason, and needs a decision.
    Refused(&'static str),
}

/// Returns the meaning of a flag; `None` if kube2iam has no such flag.
pub(super) fn meaning(name: &str) -> Option<Meaning> {
    use Meaning::{Argument, Dropped, Refused, Switch, Value};
    Some(match name {
        "base-role-arn" => Value("config.baseRoleArn", base_arn),
        "default-role" => Value("config.defaultRole", any),
        "iam-role-key" => Value("config.annotationKeys.role", any),
        "iam-external-id" => Value("config.annotationKeys.externalId", any),
        "namespace-key" => Value("config.annotationKeys.namespace", any),
        "api-server" | "kubeconfig" | "metadata-addr" => Argument(any, None),
        "log-level" => Argument(log_level, None),
        "log-format" => Argument(log_format, None),
        "iam-role-session-ttl" => Argument(
            session_ttl,
            Some(
                "sessions last twice as long, as in kube2iam; with a node's role at most one hour, so 30m here",
            ),
        ),
        "iam-role-error-ttl" => Argument(
            error_ttl,
            Some("the first wait after STS refused a role is at least 30s"),
        ),
        "debug" => Switch(Some(
            "/debug/store moves to the port of metrics, and shows decisions too",
        )),
        "insecure" | "verbose" => Switch(None),
        "auto-discover-base-arn" => {
            Dropped("rolegate's chart does this unless config.baseRoleArn is set")
        }
        "resolve-duplicate-cache-ips" => Dropped(
            "rolegate identifies pods by UID; if two live pods have one address, neither gets credentials",
        ),
        "use-regional-sts-endpoint" => {
            Dropped("rolegate calls the regional endpoint of STS unless told otherwise")
        }
        "backoff-max-elapsed-time" => Dropped(
            "a request waits for at most 800 ms (--wait), since SDKs give up after one second, and a denial does not wait",
        ),
        "backoff-max-interval" => Dropped("the agent waits for events and does not poll"),
        "cache-resync-period" => Dropped("watches need no resync"),
        "node" => Dropped("rolegate's chart sets it"),
        "version" | "help" => Dropped("it prints and exits"),
        "api-token" => Refused(
            "the token is not repeated. Agents use the token of their service account; for another one, mount a file \
             with it and add --api-token-file to agent.extraArgs",
        ),
        _ => return None,
    })
}

fn any(text: &str) -> Result<String, &'static str> {
    Ok(text.to_owned())
}

fn base_arn(text: &str) -> Result<String, &'static str> {
    match BaseArn::parse(text) {
        Ok(base) => Ok(base.as_str().to_owned()),
        Err(_) => Err("it is not a base ARN such as arn:aws:iam::123456789012:role/k8s/"),
    }
}

fn log_level(text: &str) -> Result<String, &'static str> {
    match text {
        "trace" | "debug" | "info" | "error" => Ok(text.to_owned()),
        "warn" | "warning" => Ok("warn".to_owned()),
        "fatal" | "panic" => Ok("error".to_owned()),
        _ => Err("it is not a log level"),
    }
}

fn log_format(text: &str) -> Result<String, &'static str> {
    match text {
        "text" | "json" => Ok(text.to_owned()),
        _ => Err("the format is neither text nor json"),
    }
}

fn session_ttl(text: &str) -> Result<String, &'static str> {
    match seconds(text) {
        Some(ttl) if SESSION_TTL.contains(&ttl) => Ok(text.to_owned()),
        Some(_) => Err("rolegate accepts 7m30s to 6h, since STS allows sessions of 15m to 12h"),
        None => Err("it is not a duration such as 15m"),
    }
}

fn error_ttl(text: &str) -> Result<String, &'static str> {
    match seconds(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("it is not a duration such as 30s"),
    }
}
