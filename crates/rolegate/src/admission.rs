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

use crate::annotation_flags::AnnotationFlags;
use crate::certificate_flags::CertificateFlags;
use crate::flags::{duration, invalid};
use crate::given_flags::Given;
use crate::kubernetes_flags::KubernetesFlags;
use crate::lifecycle::log_ready;
use crate::log_flags::LogFlags;
use crate::rule_flags::RuleFlags;

const PROCESS: &str = "Process";

/// What its help begins with.
pub(crate) const LONG_ABOUT: &str = "Judge objects at the API server, before a pod exists.\n\n\
Serves a validating webhook: whatever makes pods (Pods, Deployments, Jobs, custom resources that are \
configured, ...) may name an AWS role only if the rules give it that role. The same decision is made by the \
agents for the pods that exist. Guards the rules themselves: role annotations and granting labels of \
namespaces are for those whom the RolegateConfig lists.\n\n\
Every flag can also be set by an environment variable (shown beside it).";

/// Flags of `rolegate admission`.
#[derive(Debug, Args)]
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

    /// Address that the API server calls
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_ADMISSION_ADDRESS", default_value = "[::]:8443", help_heading = PROCESS)]
    listen_address: SocketAddr,
    /// Address of metrics and health
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METRICS_ADDRESS", default_value = "[::]:9090", help_heading = PROCESS)]
    metrics_address: SocketAddr,
    #[command(flatten)]
    log: LogFlags,
    /// How long open requests may take at the end
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    drain_time: Duration,
}

/// Runs the webhook until it is told to stop.
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
        .context("no threads can be started")?;
    runtime.block_on(async {
        let mut shutdown = signals::Shutdown::new().context("signals cannot be listened to")?;
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
            Some(task) => bail!("{task} ended, which is a fault of rolegate"),
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
