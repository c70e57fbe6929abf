//! `rolegate admission`: flags → options.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use rolegate_admission::app::{Admission, AdmissionOptions, AdmissionService, RuleSource};
use rolegate_core::names;
use rolegate_runtime::clock::Clock;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::certificate::CertificateFlags;
use crate::flags::duration;
use crate::flags::given::Given;
use crate::flags::injection::InjectionFlags;
use crate::flags::kubernetes::KubernetesFlags;
use crate::flags::log::LogFlags;
use crate::flags::rules::RuleFlags;
use crate::run::{Process, log_starting};

const PROCESS: &str = "Process";

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Validate and change objects at the API server, before a pod exists.\n\n\
Serves a validating webhook. Pods and objects that create pods (Deployments, Jobs, configured custom resources, \
...) may request an AWS role only if the rules allow it. Agents make the same decision \
for existing pods. The webhook also protects the rules: only principals that the RolegateConfig lists may change \
role annotations and granting labels of namespaces.\n\n\
With --inject, the process also serves a mutating webhook, which adds the variables and the token of AWS web identity \
or container credentials to pods.\n\n\
Every flag can also be set by an environment variable (shown next to it).";

/// Flags of `rolegate admission`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate admission --cluster-config=required
  With your own certificate, and rules set by flags:
    rolegate admission --certificate=files --tls-cert=/tls/tls.crt --tls-key=/tls/tls.key \\
      --cluster-config=off --base-role-arn=arn:aws:iam::123456789012:role/ --namespace-restrictions

Exit codes: 0 stopped, 1 failed, 64 invalid usage or configuration.")]
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

    #[command(flatten)]
    injection: InjectionFlags,

    /// Address to listen on for the API server
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_ADMISSION_ADDRESS", default_value = "[::]:8443", help_heading = PROCESS)]
    listen_address: SocketAddr,
    /// Address of metrics and health checks
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METRICS_ADDRESS", default_value = "[::]:9090", help_heading = PROCESS)]
    metrics_address: SocketAddr,
    #[command(flatten)]
    log: LogFlags,
    /// Maximum time to finish open requests at exit
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    drain_time: Duration,
}

impl Process for AdmissionFlags {
    type Service = AdmissionService;

    fn log(&self) -> &LogFlags {
        &self.log
    }

    fn drain_time(&self) -> Duration {
        self.drain_time
    }

    fn log_starting(&self) {
        log_starting!("admission", listen_address = %self.listen_address);
    }

    async fn options(self) -> anyhow::Result<AdmissionOptions> {
        options(self)
    }

    fn log_listening(running: &Admission) {
        let addresses = running.addresses();
        tracing::info!(webhook = %addresses.webhook, admin = %addresses.admin, "listening");
    }
}

fn options(flags: AdmissionFlags) -> anyhow::Result<AdmissionOptions> {
    let instance = std::env::var("HOSTNAME").unwrap_or_else(|_| names::ADMISSION.into());
    let injection = flags
        .injection
        .options(&flags.certificate.namespace, &instance);
    let (certificate, secret) = flags.certificate.source(names::ADMISSION_TLS)?;
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
        rule_source: RuleSource::Cluster,
        injection,
    })
}
