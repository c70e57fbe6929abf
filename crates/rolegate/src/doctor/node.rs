//! `rolegate doctor node`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rolegate_agent::attachment::cni_results::CNI_RESULTS_DIR;
use rolegate_doctor::node::{NodeOptions, examine};
use rolegate_redirect::CNI_CONF_DIR;
use rolegate_redirect::check::NETNS_DIR;

use super::ReportFlags;

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Examine the node that it runs on, as root.\n\n\
Examines the agent's conditions, the redirect and its routing rules, the interfaces of pods, where the metadata \
address leads from inside each pod, rules of other programs such as kube2iam, the node's metadata service, and the \
records of the container runtime. It needs the capabilities NET_ADMIN and SYS_ADMIN; what it \
cannot read is not checked.";

/// Arguments of `rolegate doctor node`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl debug node/NODE -it --profile=sysadmin --image=REGISTRY/rolegate:0.1.0-tools -- rolegate doctor node \\
    --netns-dir=/host/run/netns --cni-conf-dir=/host/etc/cni/net.d --cni-results-dir=/host/var/lib/cni/results
  sudo rolegate doctor node -o json

Exit codes: 0 no problem, 1 failed, 3 a problem, 64 invalid usage.")]
pub(super) struct NodeArguments {
    /// Address of the agent's metrics and health
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ROLEGATE_METRICS_ADDRESS",
        default_value = "127.0.0.1:9090"
    )]
    metrics_address: SocketAddr,
    /// Address of the node's metadata service
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ROLEGATE_METADATA_ADDR",
        default_value = "169.254.169.254:80"
    )]
    metadata_addr: String,
    /// Directory of the network namespaces of pods
    #[arg(long, value_name = "DIR", default_value = NETNS_DIR)]
    netns_dir: PathBuf,
    /// Directory of the CNI configuration
    #[arg(long, value_name = "DIR", env = "ROLEGATE_CNI_CONF_DIR", default_value = CNI_CONF_DIR)]
    cni_conf_dir: PathBuf,
    /// Directory in which the container runtime (libcni) records the addresses of pods
    #[arg(long, value_name = "DIR", env = "ROLEGATE_CNI_RESULTS_DIR", default_value = CNI_RESULTS_DIR)]
    cni_results_dir: PathBuf,
    #[command(flatten)]
    report: ReportFlags,
}

/// Runs the command.
pub(super) async fn run(arguments: NodeArguments) -> anyhow::Result<ExitCode> {
    let options = NodeOptions {
        netns_dir: arguments.netns_dir,
        cni_conf_dir: arguments.cni_conf_dir,
        cni_results_dir: arguments.cni_results_dir,
        metrics_address: arguments.metrics_address,
        metadata_address: arguments.metadata_addr,
        limits: arguments.report.limits(None)?,
    };
    let report = examine(&options).await;
    arguments.report.print(report)
}
