//! `rolegate doctor`: examines a cluster, a node or a pod, and names what is wrong.

mod node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use rolegate_doctor::report::Report;
use rolegate_doctor::{Limits, cluster, pod};
use rolegate_report::EXIT_FINDINGS;

use crate::flags::{duration, invalid, name};
use crate::output::{self, Format, ReportFormat, case_format};
use crate::policy::{ReadFlags, explain_pod};
use crate::run::block_on;

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Examine the installation, and name what is wrong.\n\n\
Without a command or --pod, it examines the cluster of the kubeconfig: the kinds and their version, \
the rights of rolegate's service accounts, an agent on each node, brokers, webhook and controller with \
their conditions, the rules, and the webhook's registration. --pod examines one pod: the role that it requests, \
the decision, and the Events. `rolegate doctor node` examines the node that it runs on. It changes nothing.\n\n\
Each line is one check: ok, warning, problem, or not checked. What may not be read, or does not respond in \
time, is not checked; the line names the missing right.";

/// Arguments of `rolegate doctor`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  What is wrong with the installation?
    rolegate doctor
  Why does a pod get no credentials?
    rolegate doctor --pod shop/api-0
  What is wrong on a node?
    sudo rolegate doctor node

Exit codes: 0 no problem, 1 failed, such as an API server that does not respond, 3 a problem, 64 invalid usage."
)]
pub(crate) struct DoctorArguments {
    #[command(subcommand)]
    subject: Option<Subject>,
    /// Examine this pod instead of the cluster
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pod: Option<String>,
    /// Namespace of the pod [default: that of the kubeconfig's context]
    #[arg(short, long, value_name = "NAME", value_parser = name, requires = "pod")]
    namespace: Option<String>,
    #[command(flatten)]
    report: ReportFlags,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Examine the node that it runs on, as root
    #[command(long_about = node::LONG_ABOUT)]
    Node(node::NodeArguments),
}

/// Flags about the limits and the report.
#[derive(Debug, Args)]
struct ReportFlags {
    /// Time for all reads together. What is not read by then is not checked
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Exit with 3 for warnings too
    #[arg(long)]
    fail_on_warning: bool,
    /// Format of the report
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_parser = case_format())]
    output: ReportFormat,
}

impl ReportFlags {
    /// Returns the limits, with the timeout of one request.
    fn limits(&self, request: Option<Duration>) -> anyhow::Result<Limits> {
        if self.timeout.is_zero() {
            return Err(invalid("--timeout: 0 leaves no time to read anything"));
        }
        Ok(Limits {
            request: request.unwrap_or(self.timeout),
            total: self.timeout,
        })
    }

    /// Prints the report.
    fn print(&self, mut report: Report) -> anyhow::Result<ExitCode> {
        report.fails_on_warning = self.fail_on_warning;
        match self.output {
            ReportFormat::Data(Format::Text | Format::Wide) => output::text(&report.text())?,
            ReportFormat::Data(Format::Name) => output::names(&report.failed_names())?,
            ReportFormat::Data(format) => output::value(format, &report.json())?,
            ReportFormat::Exchange(format) => {
                let text = format.cases(&report.cases());
                output::raw(&text.context("this format does not support checks")?)?;
            }
        }
        Ok(if report.has_failed() {
            ExitCode::from(EXIT_FINDINGS)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Runs the command.
pub(crate) fn run(arguments: DoctorArguments) -> anyhow::Result<ExitCode> {
    block_on(async {
        match arguments.subject {
            Some(Subject::Node(arguments)) => Box::pin(node::run(arguments)).await,
            None => Box::pin(remote(arguments)).await,
        }
    })
}

/// Examines the cluster, or a pod of it.
async fn remote(arguments: DoctorArguments) -> anyhow::Result<ExitCode> {
    let DoctorArguments {
        pod,
        namespace,
        report,
        read,
        ..
    } = arguments;
    read.own()?;
    let client = read.reading.client();
    let limits = report.limits(read.reading.request_timeout())?;
    let agent_namespace = read.agents.namespace().to_owned();
    let Some(asked) = pod else {
        let examined = cluster::examine(&client, &agent_namespace, limits, Timestamp::now());
        return report.print(Box::pin(examined).await?);
    };
    let (namespace, name) = named(&asked, namespace)?;
    let options = pod::PodOptions {
        namespace,
        name,
        agent_namespace,
        limits,
    };
    let examined = pod::examine(&client, &options, |namespace, name| async move {
        let explained = explain_pod(read, namespace, &name).await;
        explained.map_err(|error| rolegate_kube::chain(error.as_ref()))
    });
    report.print(Box::pin(examined).await?)
}

/// Parses the value of `--pod`, with the namespace of `-n`.
///
/// # Errors
/// Returns a usage error for a malformed name, or two namespaces.
fn named(pod: &str, namespace: Option<String>) -> anyhow::Result<(Option<String>, String)> {
    let valid = |text: &str| name(text).map_err(|error| invalid(format!("--pod: {error}")));
    match (pod.split_once('/'), namespace) {
        (None, namespace) => Ok((namespace, valid(pod)?)),
        (Some((inner, _)), Some(given)) if inner != given => Err(invalid(format!(
            "--pod names namespace {inner}, and -n {given}: omit one of them"
        ))),
        (Some((inner, pod)), _) => Ok((Some(valid(inner)?), valid(pod)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_with_or_without_its_namespace() {
        let of = |pod: &str, namespace: Option<&str>| {
            named(pod, namespace.map(str::to_owned)).map_err(|error| error.to_string())
        };
        let both = Ok((Some("shop".to_owned()), "api-0".to_owned()));
        assert_eq!(of("shop/api-0", None), both);
        assert_eq!(of("api-0", Some("shop")), both);
        assert_eq!(of("shop/api-0", Some("shop")), both);
        assert_eq!(of("api-0", None), Ok((None, "api-0".to_owned())));
        for (pod, namespace) in [
            ("shop/api-0", Some("web")),
            ("shop/api/0", None),
            ("shop/", None),
            ("", None),
        ] {
            assert!(of(pod, namespace).is_err(), "{pod}");
        }
    }
}
