//! `rolegate controller`: flags → options → run.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use rolegate_controller::app::{Controller, ControllerOptions};
use rolegate_controller::certificates::{SelfSigned, Trust};
use rolegate_controller::lease::LeaseTiming;
use rolegate_controller::rules::RuleOptions;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::signals;
use rolegate_runtime::version::Version;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::given::Given;
use crate::flags::kubernetes::KubernetesFlags;
use crate::flags::log::LogFlags;
use crate::flags::rules::RuleFlags;
use crate::flags::{duration, invalid};
use crate::lifecycle::log_ready;

const CERTIFICATE: &str = "Certificate";
const PROCESS: &str = "Process";

/// The issuer of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CertificateFrom {
    /// This controller
    Controller,
    /// cert-manager, whose injector writes the CA into the webhook configuration
    CertManager,
}

/// The management of the ValidatingWebhookConfiguration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WebhookRegistration {
    /// Create it when the webhook's Service has a ready endpoint, and update it
    Create,
    /// Update it if it exists, and never create it
    Update,
}

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Run the tasks that exactly one replica must run for the cluster.\n\n\
Replicas elect a leader with a Lease. The leader creates and renews the certificate of the admission webhook, \
registers the webhook with the API server when the webhook is ready, and updates the status of rules.\n\n\
Every flag can also be set by an environment variable (shown next to it).";

/// Flags of `rolegate controller`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate controller --cluster-config=required
  With certificates from cert-manager:
    rolegate controller --certificate=cert-manager --broker-certificate=cert-manager

Exit codes: 0 stopped, 1 failed, 64 wrong usage or configuration.")]
pub(crate) struct ControllerFlags {
    #[command(flatten)]
    pub(crate) given: Given,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,

    #[command(flatten)]
    keys: AnnotationFlags,

    #[command(flatten)]
    kubernetes: KubernetesFlags,

    /// Namespace of the Lease, the Secret and the webhook's Service
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "rolegate-system", help_heading = CERTIFICATE)]
    namespace: String,
    /// Issuer of the webhook's certificate
    #[arg(long, value_name = "SOURCE", env = "ROLEGATE_CERTIFICATE", default_value = "controller", help_heading = CERTIFICATE)]
    certificate: CertificateFrom,
    /// Name of the Secret that holds the webhook's certificate
    #[arg(long, value_name = "NAME", env = "ROLEGATE_TLS_SECRET", default_value = "rolegate-admission-tls", help_heading = CERTIFICATE)]
    tls_secret: String,
    /// Name of the webhook's Service
    #[arg(long, value_name = "NAME", env = "ROLEGATE_SERVICE", default_value = "rolegate-admission", help_heading = CERTIFICATE)]
    service: String,
    /// Name of the ValidatingWebhookConfiguration
    #[arg(long, value_name = "NAME", env = "ROLEGATE_WEBHOOK", default_value = "rolegate", help_heading = CERTIFICATE)]
    webhook: String,
    /// Management of the ValidatingWebhookConfiguration
    #[arg(long, value_name = "MODE", env = "ROLEGATE_WEBHOOK_REGISTRATION", default_value = "create", help_heading = CERTIFICATE)]
    webhook_registration: WebhookRegistration,
    /// Issuer of the brokers' certificate, if there is a Service rolegate-broker
    #[arg(long, value_name = "SOURCE", env = "ROLEGATE_BROKER_CERTIFICATE", default_value = "controller", help_heading = CERTIFICATE)]
    broker_certificate: CertificateFrom,
    /// Additional DNS names or addresses of the certificate
    #[arg(long, value_name = "NAME", env = "ROLEGATE_TLS_EXTRA_NAMES", value_delimiter = ',', help_heading = CERTIFICATE)]
    tls_extra_names: Vec<String>,

    /// Unique name of this replica [default: the host's name and a random number]
    #[arg(long, value_name = "NAME", env = "POD_NAME", help_heading = PROCESS)]
    identity: Option<String>,
    /// Address of metrics and health
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METRICS_ADDRESS", default_value = "[::]:9090", help_heading = PROCESS)]
    metrics_address: SocketAddr,
    #[command(flatten)]
    log: LogFlags,
    /// Maximum duration of the shutdown
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    drain_time: Duration,
}

/// Runs the controller until a signal stops it.
pub(crate) fn run(flags: ControllerFlags) -> anyhow::Result<ExitCode> {
    flags.log.start()?;
    tracing::info!(
        version = Version::CURRENT.version,
        revision = Version::CURRENT.revision,
        command = "controller",
        namespace = flags.namespace,
        "starting"
    );
    let drain_time = flags.drain_time;
    let options = options(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let mut shutdown = signals::Shutdown::new().context("cannot install signal handlers")?;
        let mut controller = Controller::start(options).await.map_err(|error| {
            if error.is_usage() {
                invalid(error.to_string())
            } else {
                error.into()
            }
        })?;
        tracing::info!(admin = %controller.addresses().admin, "listening");
        let _ready = log_ready(controller.readiness());
        let broken = tokio::select! {
            signal = shutdown.next() => {
                tracing::info!(signal, "stopping");
                None
            }
            broken = controller.ended() => Some(broken),
        };
        controller.stop(drain_time).await;
        match broken {
            Some(broken) => bail!(
                "internal error: task \"{}\" exited unexpectedly; please report this bug",
                broken.0
            ),
            None => Ok(ExitCode::SUCCESS),
        }
    })
}

fn options(flags: ControllerFlags) -> anyhow::Result<ControllerOptions> {
    // A restarted process is a new holder of the Lease, as in client-go.
    let name = flags.identity.or_else(|| std::env::var("HOSTNAME").ok());
    let identity = format!(
        "{}_{:08x}",
        name.as_deref().unwrap_or("rolegate-controller"),
        fastrand::u32(..)
    );
    let rules = RuleOptions {
        flags: flags.rules.config()?,
        given: flags.given.rules().clone(),
        cluster_config: flags.rules.cluster_config.into(),
        keys: flags.keys.keys()?,
        namespace: flags.namespace.clone(),
        webhook: flags.webhook.clone(),
        register: flags.webhook_registration == WebhookRegistration::Create,
        service: flags.service.clone(),
        secret: flags.tls_secret.clone(),
    };
    Ok(ControllerOptions {
        rules: Some(rules),
        client: flags.kubernetes.client(),
        identity,
        admin_listen: flags.metrics_address,
        lease: LeaseTiming::default(),
        certificates: match flags.certificate {
            CertificateFrom::Controller => CertificateSource::SelfSigned,
            CertificateFrom::CertManager => CertificateSource::CertManager,
        },
        self_signed: SelfSigned {
            service: flags.service,
            secret: flags.tls_secret,
            trust: Trust::Webhook(flags.webhook),
            extra_names: flags.tls_extra_names,
            ..SelfSigned::new(flags.namespace.clone())
        },
        broker: match flags.broker_certificate {
            CertificateFrom::Controller => Some(SelfSigned::of_broker(flags.namespace.clone())),
            CertificateFrom::CertManager => None,
        },
        namespace: flags.namespace,
        clock: Clock::system(),
    })
}
