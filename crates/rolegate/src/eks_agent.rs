//! The command lines of the EKS Pod Identity Agent, so that its manifest works with our image:
//! `/go-runner /eks-pod-identity-agent server` and `initialize`.
//!
//! `server` becomes `rolegate agent --container-credentials` without a redirect. The manifest grants
//! no access to the API server, which verifies tokens and knows pods; until it is extended, the
//! process names the missing lines, answers the probes, and is not ready.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use rolegate_agent::container_credentials::{CONTAINER_CREDENTIALS_V4, CONTAINER_CREDENTIALS_V6};
use rolegate_redirect::ensure_link;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::listen;
use rolegate_runtime::signals::Shutdown;

use crate::output;
use crate::run::block_on;

/// The program by which the EKS agent's image starts its program.
const RUNNER: &str = "go-runner";
const PROGRAM: &str = "eks-pod-identity-agent";
/// The token of a pod that may call the API server.
const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const NODE_NAME: &str = "NODE_NAME";

/// The result for a command line.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The command line of rolegate.
    Continue(Vec<OsString>),
    /// The command has finished.
    Done(anyhow::Result<ExitCode>),
}

/// Runs or translates a command line of the EKS agent; returns all others unchanged.
pub(crate) fn run(arguments: Vec<OsString>) -> Outcome {
    let Some(rest) = of_eks_agent(&arguments) else {
        return Outcome::Continue(arguments);
    };
    let parsed = EksAgent::try_parse_from(rest);
    match parsed.map(|parsed| parsed.command) {
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(1);
            // Ignored: no other output is available without a terminal.
            let _ = error.print();
            Outcome::Done(Ok(ExitCode::from(code)))
        }
        Ok(Action::Version) => Outcome::Continue(vec!["rolegate".into(), "--version".into()]),
        Ok(Action::Initialize { .. }) => Outcome::Done(block_on(initialize())),
        Ok(Action::Server(flags)) => {
            let missing = missing_lines(
                std::env::var_os(NODE_NAME).is_some_and(|name| !name.is_empty()),
                Path::new(API_TOKEN).exists(),
            );
            if missing.is_empty() {
                Outcome::Continue(flags.for_agent())
            } else {
                Outcome::Done(block_on(wait_unready(flags.probe_port, &missing)))
            }
        }
    }
}

/// Returns the arguments of the EKS agent, beginning with its name, if it is the program.
fn of_eks_agent(arguments: &[OsString]) -> Option<&[OsString]> {
    let is =
        |name: &OsString, wanted: &str| Path::new(name).file_name() == Some(OsStr::new(wanted));
    let (first, mut rest) = arguments.split_first()?;
    if is(first, PROGRAM) {
        return Some(arguments);
    }
    if !is(first, RUNNER) {
        return None;
    }
    // The runner's own flags redirect the log to a file.
    while let [flag, more @ ..] = rest
        && flag.as_encoded_bytes().starts_with(b"-")
    {
        rest = more;
    }
    rest.first()
        .is_some_and(|name| is(name, PROGRAM))
        .then_some(rest)
}

#[derive(Debug, Parser)]
#[command(name = PROGRAM)]
struct EksAgent {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve container credentials
    Server(Box<ServerFlags>),
    /// Create the link of the endpoint
    Initialize {
        /// Ignored
        #[arg(short, long)]
        verbosity: Option<String>,
    },
    /// Print the version
    Version,
}

/// The flags of `server`. Those without an equivalent are accepted and have no effect.
#[derive(Debug, clap::Args)]
struct ServerFlags {
    /// Ignored: roles come from ServiceAccounts
    #[arg(short, long)]
    cluster_name: Option<String>,
    /// Port of the endpoint
    #[arg(short, long, default_value = "80")]
    port: u16,
    /// Port of health checks and metrics on loopback
    #[arg(long, default_value = "2703")]
    probe_port: u16,
    /// Addresses of the endpoint
    #[arg(short, long, value_delimiter = ',')]
    bind_hosts: Vec<String>,
    /// Ignored: pods could reach it
    #[arg(long)]
    metrics_address: Option<String>,
    /// Ignored: metrics are on the probe port
    #[arg(long)]
    metrics_port: Option<String>,
    /// Ignored
    #[arg(long)]
    max_credential_retention_before_renewal: Option<String>,
    /// Ignored
    #[arg(long)]
    max_cache_size: Option<String>,
    /// Ignored
    #[arg(long)]
    max_service_qps: Option<String>,
    /// Ignored
    #[arg(long, num_args = 0..=1, require_equals = true)]
    rotate_credentials: Option<Option<String>>,
    /// Ignored
    #[arg(long)]
    endpoint: Option<String>,
    /// Ignored
    #[arg(short, long)]
    verbosity: Option<String>,
}

impl ServerFlags {
    /// Returns the command line of the agent.
    fn for_agent(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["rolegate", "agent", "--container-credentials"]
            .map(Into::into)
            .into();
        arguments.push("--redirect=none".into());
        arguments.push(format!("--container-credentials-port={}", self.port).into());
        for host in &self.bind_hosts {
            let host = host.trim_matches(['[', ']']);
            arguments.push(format!("--container-credentials-address={host}").into());
        }
        let probes = SocketAddr::from((Ipv4Addr::LOCALHOST, self.probe_port));
        arguments.push(format!("--metrics-address={probes}").into());
        arguments
    }
}

/// Returns the lines that the manifest lacks, at most three.
fn missing_lines(has_node: bool, has_token: bool) -> Vec<&'static str> {
    let mut lines = Vec::new();
    if !has_token {
        lines.push("automountServiceAccountToken: true");
    }
    if !has_node {
        lines.push("- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}");
    }
    lines
}

/// Creates the link, as the init container with its rights.
async fn initialize() -> anyhow::Result<ExitCode> {
    let addresses: [IpAddr; 2] = [
        CONTAINER_CREDENTIALS_V4.into(),
        CONTAINER_CREDENTIALS_V6.into(),
    ];
    let state = ensure_link(&addresses).await?;
    for (address, error) in &state.missing {
        if address.is_ipv4() {
            bail!("{error}");
        }
        output::raw(&format!("continuing without {address}: {error}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Names the missing lines, and answers probes until a signal: alive, and not ready.
async fn wait_unready(probe_port: u16, missing: &[&str]) -> anyhow::Result<ExitCode> {
    let text = format!(
        "not ready: this agent verifies tokens itself. Add to the DaemonSet of the EKS Pod Identity \
         Agent:\n  {}\nand let its ServiceAccount get, list and watch pods, namespaces and \
         serviceaccounts (docs/endpoints.md)\n",
        missing.join("\n  ")
    );
    output::raw(&text)?;
    let mut shutdown = Shutdown::new().context("cannot handle signals")?;
    let readiness = Readiness::new();
    let condition = readiness.condition("manifest");
    condition.fail(format!("lines are missing: {}", missing.join("; ")));
    let listener = listen((Ipv4Addr::LOCALHOST, probe_port).into())?;
    let admin = Admin::new(Arc::new(Metrics::new()), readiness);
    tokio::select! {
        () = admin.serve(listener, Drain::new()) => {}
        _ = shutdown.next() => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn only_command_lines_of_the_eks_agent_are_taken() {
        for line in [
            "/usr/local/bin/rolegate agent --node=a",
            "/kiam agent --iptables",
            "/go-runner /other server",
            "/go-runner",
        ] {
            assert!(of_eks_agent(&words(line)).is_none(), "{line}");
        }
        for line in [
            "/go-runner /eks-pod-identity-agent server",
            "/go-runner --log-file=/a --also-stdout=true /eks-pod-identity-agent server",
            "/eks-pod-identity-agent server",
        ] {
            assert!(of_eks_agent(&words(line)).is_some(), "{line}");
        }
    }

    #[test]
    fn flags_of_the_eks_chart_start_the_endpoint() {
        let line = "/eks-pod-identity-agent server --port 80 --cluster-name c --probe-port 2703 -b \
                    169.254.170.23,[fd00:ec2::23] --metrics-port 2705 -v trace --rotate-credentials=true \
                    --max-cache-size 10 --endpoint e";
        let Action::Server(flags) = EksAgent::parse_from(words(line)).command else {
            panic!("{line}");
        };
        let agent = [
            "rolegate",
            "agent",
            "--container-credentials",
            "--redirect=none",
            "--container-credentials-port=80",
            "--container-credentials-address=169.254.170.23",
            "--container-credentials-address=fd00:ec2::23",
            "--metrics-address=127.0.0.1:2703",
        ];
        assert_eq!(flags.for_agent(), agent);
        let line = "/eks-pod-identity-agent initialize -v trace";
        assert!(EksAgent::try_parse_from(words(line)).is_ok());
    }

    #[test]
    fn at_most_three_lines_are_missing() {
        assert_eq!(missing_lines(true, true), Vec::<&str>::new());
        let all = missing_lines(false, false);
        assert!(!all.is_empty() && all.len() <= 3);
    }
}
