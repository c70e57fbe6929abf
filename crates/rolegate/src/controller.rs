//! `rolegate controller`: flags → options.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rolegate_controller::app::{Controller, ControllerOptions, ControllerService};
use rolegate_controller::certificates::{SelfSigned, Trust};
use rolegate_controller::lease::LeaseTiming;
use rolegate_controller::rules::{InjectionRegistration, RuleOptions};
use rolegate_controller::startup_taint::StartupTaintOptions;
use rolegate_core::names;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_review::mutating_configuration::FailurePolicy;
use rolegate_runtime::clock::Clock;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::given::Given;
use crate::flags::injection::RequireInjection;
use crate::flags::kubernetes::KubernetesFlags;
use crate::flags::log::LogFlags;
use crate::flags::rules::RuleFlags;
use crate::flags::{duration, invalid};
use crate::run::{Process, log_starting};

const CERTIFICATE: &str = "Certificate";
const NODES: &str = "Nodes";
const PROCESS: &str = "Process";
/// The number of threads: its tasks wait most of the time.
const WORKER_THREADS: usize = 2;

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
Replicas elect a leader with a Lease. The leader issues and renews the certificates of the webhook and of the \
brokers, registers the webhook once it has a ready endpoint, writes the status of rules, and removes the startup \
taint of nodes whose agent is ready.\n\n\
Every flag can also be set by an environment variable (shown next to it).";

/// The treatment of pods while the mutating webhook is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InjectFailurePolicy {
    /// Deny them; their controllers create them again
    Fail,
    /// Create them without AWS credentials
    Ignore,
}

impl From<InjectFailurePolicy> for FailurePolicy {
    fn from(policy: InjectFailurePolicy) -> Self {
        match policy {
            InjectFailurePolicy::Fail => Self::Fail,
            InjectFailurePolicy::Ignore => Self::Ignore,
        }
    }
}

/// Flags of `rolegate controller`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate controller --cluster-config=required
  With certificates from cert-manager:
    rolegate controller --certificate=cert-manager --broker-certificate=cert-manager

Exit codes: 0 stopped, 1 failed, 64 invalid usage or configuration.")]
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
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = names::NAMESPACE, help_heading = CERTIFICATE)]
    namespace: String,
    /// Issuer of the webhook's certificate
    #[arg(long, value_name = "SOURCE", env = "ROLEGATE_CERTIFICATE", default_value = "controller", help_heading = CERTIFICATE)]
    certificate: CertificateFrom,
    /// Name of the Secret that holds the webhook's certificate
    #[arg(long, value_name = "NAME", env = "ROLEGATE_TLS_SECRET", default_value = names::ADMISSION_TLS, help_heading = CERTIFICATE)]
    tls_secret: String,
    /// Name of the webhook's Service
    #[arg(long, value_name = "NAME", env = "ROLEGATE_SERVICE", default_value = names::ADMISSION, help_heading = CERTIFICATE)]
    service: String,
    /// Name of the ValidatingWebhookConfiguration
    #[arg(long, value_name = "NAME", env = "ROLEGATE_WEBHOOK", default_value = names::WEBHOOK, help_heading = CERTIFICATE)]
    webhook: String,
    /// Management of the ValidatingWebhookConfiguration
    #[arg(long, value_name = "MODE", env = "ROLEGATE_WEBHOOK_REGISTRATION", default_value = "create", help_heading = CERTIFICATE)]
    webhook_registration: WebhookRegistration,
    /// Maintain the MutatingWebhookConfiguration too, which makes the API server send all new pods to the webhook, so that it adds AWS credentials
    #[arg(long, env = "ROLEGATE_INJECT", help_heading = CERTIFICATE)]
    inject: bool,
    /// Treatment of pods while the mutating webhook is unavailable. Pods of exempt namespaces are always created
    #[arg(long, value_name = "POLICY", env = "ROLEGATE_INJECT_FAILURE_POLICY", default_value = "fail", help_heading = CERTIFICATE)]
    inject_failure_policy: InjectFailurePolicy,
    /// Mode of the webhook's check that pods have the credentials of their service accounts, as in rolegate admission
    #[arg(long, value_name = "MODE", env = "ROLEGATE_REQUIRE_INJECTION", default_value = "off", help_heading = CERTIFICATE)]
    require_injection: RequireInjection,
    /// Issuer of the brokers' certificate, if the Service of --broker-service exists
    #[arg(long, value_name = "SOURCE", env = "ROLEGATE_BROKER_CERTIFICATE", default_value = "controller", help_heading = CERTIFICATE)]
    broker_certificate: CertificateFrom,
    /// Name of the brokers' Service [default: rolegate-broker]
    #[arg(long, value_name = "NAME", env = "ROLEGATE_BROKER_SERVICE", help_heading = CERTIFICATE)]
    broker_service: Option<String>,
    /// Name of the Secret that holds the brokers' certificate [default: rolegate-broker-tls]
    #[arg(long, value_name = "NAME", env = "ROLEGATE_BROKER_TLS_SECRET", help_heading = CERTIFICATE)]
    broker_tls_secret: Option<String>,
    /// Name of the ConfigMap that publishes the CA of the brokers' certificate [default: rolegate-broker-ca]
    #[arg(long, value_name = "NAME", env = "ROLEGATE_BROKER_CA_CONFIGMAP", help_heading = CERTIFICATE)]
    broker_ca_configmap: Option<String>,
    /// Additional DNS names or addresses of the certificate
    #[arg(long, value_name = "NAME", env = "ROLEGATE_TLS_EXTRA_NAMES", value_delimiter = ',', help_heading = CERTIFICATE)]
    tls_extra_names: Vec<String>,

    /// Key of the taint with which nodes register, and which the controller removes once a node's agent is ready, such as rolegate.dev/agent-not-ready. Without it the controller does not watch nodes
    #[arg(long, value_name = "KEY", env = "ROLEGATE_STARTUP_TAINT", help_heading = NODES)]
    startup_taint: Option<String>,
    /// Label selector of the agents' pods [default: app.kubernetes.io/name=rolegate-agent]
    #[arg(long, value_name = "SELECTOR", env = "ROLEGATE_AGENT_SELECTOR", requires = "startup_taint", help_heading = NODES)]
    agent_selector: Option<String>,

    /// Name of the Lease with which replicas elect a leader
    #[arg(long, value_name = "NAME", env = "ROLEGATE_LEASE", default_value = names::CONTROLLER, help_heading = PROCESS)]
    lease: String,
    /// Unique name of this replica [default: the host's name and a random number]
    #[arg(long, value_name = "NAME", env = "POD_NAME", help_heading = PROCESS)]
    identity: Option<String>,
    /// Address of metrics and health checks
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METRICS_ADDRESS", default_value = "[::]:9090", help_heading = PROCESS)]
    metrics_address: SocketAddr,
    #[command(flatten)]
    log: LogFlags,
    /// Maximum time to finish open work at exit
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    drain_time: Duration,
}

impl Process for ControllerFlags {
    type Service = ControllerService;

    fn log(&self) -> &LogFlags {
        &self.log
    }

    fn drain_time(&self) -> Duration {
        self.drain_time
    }

    fn worker_threads(&self) -> Option<usize> {
        Some(WORKER_THREADS)
    }

    fn log_starting(&self) {
        log_starting!("controller", namespace = self.namespace);
    }

    async fn options(self) -> anyhow::Result<ControllerOptions> {
        options(self)
    }

    fn log_listening(running: &Controller) {
        tracing::info!(admin = %running.addresses().admin, "listening");
    }
}

fn options(flags: ControllerFlags) -> anyhow::Result<ControllerOptions> {
    // A restarted process is a new holder of the Lease, as in client-go.
    let name = flags.identity.or_else(|| std::env::var("HOSTNAME").ok());
    let identity = format!(
        "{}_{:08x}",
        name.as_deref().unwrap_or(names::CONTROLLER),
        fastrand::u32(..)
    );
    let broker = broker_certificate(
        flags.broker_certificate,
        SelfSigned::of_broker(flags.namespace.clone()),
        flags.broker_service,
        flags.broker_tls_secret,
        flags.broker_ca_configmap,
    )?;
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
        injection: flags.inject.then(|| InjectionRegistration {
            on_failure: flags.inject_failure_policy.into(),
            require: flags.require_injection.into(),
        }),
    };
    let startup_taint = startup_taint(flags.startup_taint, flags.agent_selector, &flags.namespace)?;
    Ok(ControllerOptions {
        rules: Some(rules),
        startup_taint,
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
        broker,
        lease_name: flags.lease,
        namespace: flags.namespace,
        clock: Clock::system(),
    })
}

/// Returns the options of startup taints, if the controller removes them.
fn startup_taint(
    key: Option<String>,
    selector: Option<String>,
    namespace: &str,
) -> anyhow::Result<Option<StartupTaintOptions>> {
    let Some(key) = key else {
        return Ok(None);
    };
    let name = key.rsplit_once('/').map_or(&*key, |(_, name)| name);
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 63 || key.len() > 317 || !name.chars().all(valid) {
        return Err(invalid(format!(
            "--startup-taint: {key:?} is not the key of a taint; give one such as \
             rolegate.dev/agent-not-ready, without value and effect"
        )));
    }
    Ok(Some(StartupTaintOptions {
        key,
        namespace: namespace.to_owned(),
        selector: selector.unwrap_or_else(|| format!("app.kubernetes.io/name={}", names::AGENT)),
    }))
}

/// Returns the options of the brokers' certificate, or `None` if the controller does not issue it.
fn broker_certificate(
    from: CertificateFrom,
    defaults: SelfSigned,
    service: Option<String>,
    secret: Option<String>,
    ca: Option<String>,
) -> anyhow::Result<Option<SelfSigned>> {
    match from {
        CertificateFrom::Controller => Ok(Some(SelfSigned {
            service: service.unwrap_or_else(|| defaults.service.clone()),
            secret: secret.unwrap_or_else(|| defaults.secret.clone()),
            trust: ca.map_or_else(|| defaults.trust.clone(), Trust::ConfigMap),
            ..defaults
        })),
        CertificateFrom::CertManager if service.is_some() || secret.is_some() || ca.is_some() => {
            Err(invalid(
                "--broker-service, --broker-tls-secret and --broker-ca-configmap have no effect with \
                 --broker-certificate=cert-manager: remove them",
            ))
        }
        CertificateFrom::CertManager => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn startup_taint_is_a_key() {
        let parsed = |key: &str| startup_taint(Some(key.to_owned()), None, "ns");
        let options = parsed("rolegate.dev/agent-not-ready").unwrap().unwrap();
        assert_eq!(options.selector, "app.kubernetes.io/name=rolegate-agent");
        for key in ["", "a/", "a=b:NoSchedule", "a/b:NoExecute", &"x".repeat(64)] {
            assert!(parsed(key).is_err(), "{key}");
        }
        assert!(startup_taint(None, None, "ns").unwrap().is_none());
    }

    #[test]
    fn names_of_the_brokers_certificate_need_the_controller() {
        let defaults = || SelfSigned::of_broker("ns");
        let name = || Some("other".to_owned());
        let issued = CertificateFrom::Controller;
        let options = broker_certificate(issued, defaults(), name(), None, name()).unwrap();
        let options = options.unwrap();
        assert_eq!(
            (&*options.service, &*options.secret, options.trust),
            ("other", names::BROKER_TLS, Trust::ConfigMap("other".into()))
        );
        let given = CertificateFrom::CertManager;
        assert!(
            broker_certificate(given, defaults(), None, None, None)
                .unwrap()
                .is_none()
        );
        assert!(broker_certificate(given, defaults(), None, name(), None).is_err());
    }
}
