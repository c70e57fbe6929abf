//! `rolegate admission`: flags → options → run.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rolegate_admission::app::{Admission, AdmissionOptions, StartError};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::signals;
use rolegate_runtime::version::Version;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::certificate::CertificateFlags;
use crate::flags::given::Given;
use crate::flags::kubernetes::KubernetesFlags;
use crate::flags::log::LogFlags;
use crate::flags::rules::RuleFlags;
use crate::flags::{duration, invalid};
use crate::lifecycle::log_ready;

const PROCESS: &str = "Process";

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Validate objects at the API server, before a pod exists.\n\n\
Serves a validating webhook. Pods and objects that create pods (Deployments, Jobs, configured custom resources, \
...) may request an AWS role only if the rules allow it. Agents make the same decision \
for existing pods. The webhook also protects the rules: only principals that the RolegateConfig lists may change \
role annotations and granting labels of namespaces.\n\n\
Every flag can also be set by an environment variable (shown next to it).";

/// Flags of `rolegate admission`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate admission --cluster-config=required
  With a certificate of your own and rules by flags:
    rolegate admission --certificate=files --tls-cert=/tls/tls.crt --tls-key=/tls/tls.key \\
      --cluster-config=off --base-role-arn=arn:aws:iam::123456789012:role/ --namespace-restrictions

Exit codes: 0 stopped, 1 failed, 64 wrong usage or configuration.")]
pub(crate) struct AdmissionFlags {
    #[command(flatten)]
    pub(crate) given: Given,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,

    #[command(flatten)]
    keys: AnnotationFlags,

    #[command(flatten)]
    kubernetes: KubernetesFlags,

    #[command(flatten)]
    certificate: CertificateFlags,

    /// Address on which the API server connects
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_ADMISSION_ADDRESS", default_value = "[::]:8443", help_heading = PROCESS)]
    listen_address: SocketAddr,
    /// Address of metrics and health
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METRICS_ADDRESS", default_value = "[::]:9090", help_heading = PROCESS)]
    metrics_address: SocketAddr,
    #[command(flatten)]
    log: LogFlags,
    /// Maximum time to finish open requests at exit
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    drain_time: Duration,
}

/// Runs the webhook until a signal stops it.
pub(crate) fn run(flags: AdmissionFlags) -> anyhow::Result<ExitCode> {
    flags.log.start()?;
    tracing::info!(
        version = Version::CURRENT.version,
        revision = Version::CURRENT.revision,
        command = "admission",
        listen_address = %flags.listen_address,
        "starting"
    );
    let drain_time = flags.drain_time;
    let options = options(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let mut shutdown = signals::Shutdown::new().context("cannot install signal handlers")?;
        let mut admission = Admission::start(options)
            .await
            .map_err(|error| match error {
                StartError::Client(_) => invalid(error.to_string()),
                other => other.into(),
            })?;
        let addresses = admission.addresses();
        tracing::info!(webhook = %addresses.webhook, admin = %addresses.admin, "listening");
        let _ready = log_ready(admission.readiness());
        let broken = tokio::select! {
            signal = shutdown.next() => {
                tracing::info!(signal, "stopping");
                None
            }
            task = admission.ended() => Some(task),
        };
        admission.stop(drain_time).await;
        match broken {
            Some(task) => {
                bail!("internal error: task \"{task}\" exited unexpectedly; please report this bug")
            }
            None => Ok(ExitCode::SUCCESS),
        }
    })
}

fn options(flags: AdmissionFlags) -> anyhow::Result<AdmissionOptions> {
    let (certificate, secret) = flags.certificate.source("rolegate-admission-tls")?;
    Ok(AdmissionOptions {
        listen: flags.listen_address,
        admin_listen: flags.metrics_address,
        rules: flags.rules.config()?,
        given: flags.given.rules().clone(),
        cluster_config: flags.rules.cluster_config.into(),
        client: flags.kubernetes.client(),
        annotations: flags.keys.keys()?,
        certificate,
        secret,
        clock: Clock::system(),
    })
}
