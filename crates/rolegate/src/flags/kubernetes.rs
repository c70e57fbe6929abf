//! Flags about the API server, shared by every command that connects to it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rolegate_kube::client::{ClientOptions, Impersonate};

use crate::flags::duration;

pub(crate) const KUBERNETES: &str = "Kubernetes";

/// Flags about the connection to the API server.
#[derive(Debug, Args)]
pub(crate) struct KubernetesFlags {
    /// URL of the API server [default: the pod's own cluster, else the kubeconfig's]
    #[arg(long, value_name = "URL", env = "ROLEGATE_API_SERVER", help_heading = KUBERNETES)]
    pub(crate) api_server: Option<String>,
    // Every user of the machine can read command lines: see `refuse_token_argument`.
    /// Bearer token for the API server
    #[arg(long, value_name = "TOKEN", env = "ROLEGATE_API_TOKEN", hide_env_values = true, hide = true, conflicts_with = "api_token_file", help_heading = KUBERNETES)]
    pub(crate) api_token: Option<String>,
    /// File with the bearer token for --api-server, read at startup. Alternatively set the environment variable ROLEGATE_API_TOKEN
    #[arg(long, value_name = "FILE", env = "ROLEGATE_API_TOKEN_FILE", help_heading = KUBERNETES)]
    pub(crate) api_token_file: Option<PathBuf>,
    /// Do not verify the API server's certificate
    #[arg(long, env = "ROLEGATE_INSECURE", help_heading = KUBERNETES)]
    pub(crate) insecure: bool,
    /// Kubeconfig to use instead of the pod's service account
    #[arg(long, value_name = "FILE", env = "ROLEGATE_KUBECONFIG", help_heading = KUBERNETES)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current context]
    #[arg(long, value_name = "NAME", env = "ROLEGATE_CONTEXT", help_heading = KUBERNETES)]
    pub(crate) context: Option<String>,
}

impl KubernetesFlags {
    /// Returns the options of the Kubernetes client.
    pub(crate) fn client(&self) -> ClientOptions {
        ClientOptions {
            api_server: self.api_server.clone(),
            api_token: self.api_token.clone().map(Into::into),
            api_token_file: self.api_token_file.clone(),
            insecure: self.insecure,
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            impersonate: None,
        }
    }
}

/// Flags with kubectl's names for interactive commands that read a cluster.
#[derive(Debug, Args)]
pub(crate) struct ReadingFlags {
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    /// User to impersonate
    #[arg(long = "as", id = "as", value_name = "USER", help_heading = KUBERNETES)]
    as_user: Option<String>,
    /// Group to impersonate, together with --as. May be repeated
    #[arg(long, value_name = "GROUP", requires = "as", help_heading = KUBERNETES)]
    as_group: Vec<String>,
    /// Timeout of one request. 0: no limit
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration, help_heading = KUBERNETES)]
    request_timeout: Duration,
    /// Verbosity of reads on standard error. 1: object counts. 6: each request with its outcome and duration
    #[arg(short = 'v', long = "v", id = "v", value_name = "LEVEL", default_value = "0", hide_default_value = true, value_parser = clap::value_parser!(u8).range(..=10), help_heading = KUBERNETES)]
    verbosity: u8,
}

impl ReadingFlags {
    /// Returns the options of the Kubernetes client.
    pub(crate) fn client(&self) -> ClientOptions {
        let impersonate = self.impersonated().map(|user| Impersonate {
            user: user.to_owned(),
            groups: self.groups().to_vec(),
        });
        ClientOptions {
            impersonate,
            ..self.kubernetes.client()
        }
    }

    /// Returns the impersonated user.
    pub(crate) fn impersonated(&self) -> Option<&str> {
        self.as_user.as_deref()
    }

    /// Returns the impersonated groups.
    pub(crate) fn groups(&self) -> &[String] {
        &self.as_group
    }

    /// Returns the timeout of one request, if any.
    pub(crate) fn request_timeout(&self) -> Option<Duration> {
        Some(self.request_timeout).filter(|time| !time.is_zero())
    }

    /// Returns the verbosity of reads.
    pub(crate) fn verbosity(&self) -> u8 {
        self.verbosity
    }
}

/// Rejects a token on the command line, where every user of the machine can read it.
///
/// # Errors
/// Returns the alternatives.
pub(crate) fn refuse_token_argument(arguments: &[OsString]) -> Result<(), &'static str> {
    let mut flags = arguments
        .iter()
        .map(|argument| argument.as_encoded_bytes())
        .take_while(|argument| *argument != b"--");
    let is_token = |argument: &[u8]| {
        let rest = argument.strip_prefix(b"--api-token");
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="))
    };
    if flags.any(is_token) {
        Err(
            "--api-token exposes the token to every user of this machine: write it to a file and use \
             --api-token-file, or set the environment variable ROLEGATE_API_TOKEN",
        )
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_no_argument() {
        let refused = |arguments: &[&str]| {
            let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
            refuse_token_argument(&arguments).is_err()
        };
        assert!(refused(&["rolegate", "agent", "--api-token=x"]));
        assert!(refused(&["rolegate", "--api-token", "x"]));
        assert!(!refused(&["rolegate", "--api-token-file=x"]));
        assert!(!refused(&["rolegate", "policy", "--", "--api-token"]));
    }
}
