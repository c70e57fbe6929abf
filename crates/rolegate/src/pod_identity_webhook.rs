//! `rolegate pod-identity-webhook`: the flags of amazon-eks-pod-identity-webhook → options.
//!
//! The manifests of that webhook and of kOps start `/webhook` with these flags. They work with only
//! the image changed, and with their narrow rights: service accounts and, if it is watched, the
//! ConfigMap. Grants and the configuration are not read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rolegate_admission::app::{
    Admission, AdmissionOptions, AdmissionService, InjectionOptions, RuleSource,
};
use rolegate_core::annotation::{AnnotationKeys, EKS_PREFIX};
use rolegate_core::config::RuleConfig;
use rolegate_core::layer::Mode;
use rolegate_core::service_account::{CONTAINER_CREDENTIALS_AUDIENCE, WEB_IDENTITY_AUDIENCE};
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_review::mutation::settings::{
    CONTAINER_CREDENTIALS_MOUNT_PATH, CONTAINER_CREDENTIALS_VOLUME, DEFAULT_FULL_URI,
    WEB_IDENTITY_MOUNT_PATH,
};
use rolegate_review::mutation::{AssignedMethod, InjectionSettings, InvalidArn, TokenSettings};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::TlsFiles;

use crate::flags::injection::MAX_WAIT;
use crate::flags::log::LogFlags;
use crate::flags::{base_arn, duration, invalid, path};
use crate::run::{Process, log_starting};

/// Names of the program in manifests of the EKS webhook.
pub(crate) const PROGRAM_NAMES: [&str; 3] = [
    "webhook",
    "amazon-eks-pod-identity-webhook",
    "pod-identity-webhook",
];

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Add AWS credentials to pods with the flags of amazon-eks-pod-identity-webhook.\n\n\
Manifests of that webhook and of kOps work with only the image changed: they start /webhook, which is this command. \
It needs no rights but theirs (service accounts and, with --watch-config-map, ConfigMaps), and reads neither grants nor \
the configuration of rolegate. `rolegate admission --inject` does the same under rolegate's rules.";

/// The flags, with the names and defaults of the EKS webhook.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  rolegate pod-identity-webhook --in-cluster=false --namespace=kube-system --watch-config-map \\
    --token-audience=amazonaws.com --aws-default-region=eu-west-1 --sts-regional-endpoint

Exit codes: 0 stopped, 1 failed, 64 invalid usage.")]
pub(crate) struct PodIdentityWebhookFlags {
    /// Port of the webhook on all addresses
    #[arg(long, value_name = "PORT", default_value = "443")]
    port: u16,
    /// Port of metrics and health checks on all addresses, plain HTTP
    #[arg(long, value_name = "PORT", default_value = "9999")]
    metrics_port: u16,
    /// Kubeconfig to use instead of the pod's service account
    #[arg(long, value_name = "FILE", value_parser = path)]
    kubeconfig: Option<PathBuf>,
    /// URL of the API server
    #[arg(long, value_name = "URL")]
    kube_api: Option<String>,
    /// Certificate chain (PEM), reloaded when it changes
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/webhook/certs/tls.crt"
    )]
    tls_cert: PathBuf,
    /// Private key of the certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/webhook/certs/tls.key"
    )]
    tls_key: PathBuf,
    /// Accepted and ignored: TLS 1.2 and 1.3 are served
    #[arg(long, value_name = "VERSION")]
    tls_min_version: Option<String>,
    /// Accepted and ignored: only cipher suites without known weaknesses are served
    #[arg(long, value_name = "NAMES")]
    tls_cipher_suites: Option<String>,
    /// Must be false: the signer of such certificates no longer exists in Kubernetes. Without it the certificate is read from --tls-cert and --tls-key all the same
    #[arg(long)]
    in_cluster: bool,
    /// Accepted and ignored, as it concerns --in-cluster only
    #[arg(long, value_name = "NAME", default_value = "pod-identity-webhook")]
    service_name: String,
    /// Namespace of the ConfigMap pod-identity-webhook
    #[arg(long, value_name = "NAMESPACE", default_value = "eks")]
    namespace: String,
    /// Accepted and ignored, as it concerns --in-cluster only
    #[arg(long, value_name = "NAME", default_value = "pod-identity-webhook")]
    tls_secret: String,
    /// Prefix of the annotations of service accounts and pods
    #[arg(long, value_name = "PREFIX", default_value = EKS_PREFIX)]
    annotation_prefix: String,
    /// Audience of web identity tokens
    #[arg(long, value_name = "AUDIENCE", default_value = WEB_IDENTITY_AUDIENCE)]
    token_audience: String,
    /// Path at which web identity tokens are mounted
    #[arg(
        long,
        value_name = "PATH",
        default_value = WEB_IDENTITY_MOUNT_PATH
    )]
    token_mount_path: String,
    /// Expiration of tokens in seconds. Raised to 600 and lowered to 86400
    #[arg(long, value_name = "SECONDS", default_value = "86400")]
    token_expiration: u32,
    /// Region for AWS_REGION and AWS_DEFAULT_REGION. Empty: not added
    #[arg(long, value_name = "REGION", default_value = "")]
    aws_default_region: String,
    /// Add AWS_STS_REGIONAL_ENDPOINTS=regional
    #[arg(long)]
    sts_regional_endpoint: bool,
    /// Read roles from ConfigMap pod-identity-webhook
    #[arg(long)]
    watch_config_map: bool,
    /// Complete role names by --base-role-arn. The EKS webhook asks the instance metadata service for the account instead
    #[arg(long)]
    compose_role_arn: bool,
    /// ARN that completes role names, such as arn:aws:iam::123456789012:role/. rolegate's own flag
    #[arg(long, value_name = "ARN")]
    base_role_arn: Option<String>,
    /// File with service accounts that have container credentials
    #[arg(long, value_name = "FILE", default_value = "")]
    watch_container_credentials_config: String,
    /// Audience of tokens for container credentials
    #[arg(
        long,
        value_name = "AUDIENCE",
        default_value = CONTAINER_CREDENTIALS_AUDIENCE
    )]
    container_credentials_audience: String,
    /// Path at which tokens for container credentials are mounted
    #[arg(
        long,
        value_name = "PATH",
        default_value = CONTAINER_CREDENTIALS_MOUNT_PATH
    )]
    container_credentials_token_mount_path: String,
    /// Name of the volume of tokens for container credentials
    #[arg(long, value_name = "NAME", default_value = CONTAINER_CREDENTIALS_VOLUME)]
    container_credentials_token_volume_name: String,
    /// Name of the file of tokens for container credentials
    #[arg(long, value_name = "NAME", default_value = CONTAINER_CREDENTIALS_VOLUME)]
    container_credentials_token_path: String,
    /// URI of the container credentials endpoint
    #[arg(
        long,
        value_name = "URI",
        default_value = DEFAULT_FULL_URI
    )]
    container_credentials_full_uri: String,
    /// Time for which a pod waits for a new service account. At most 4s; unlike in the EKS webhook, 0 means the default of 2s
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    service_account_lookup_grace_period: Duration,
    /// Accepted and ignored: watches need no resynchronization
    #[arg(long, value_name = "TIME")]
    resync_period: Option<String>,
    /// Accepted and ignored: there are no such handlers
    #[arg(long)]
    enable_debugging_handlers: bool,
    #[command(flatten)]
    klog: KlogFlags,
    #[command(flatten)]
    log: LogFlags,
}

/// Flags of klog, accepted so that command lines work unchanged.
#[derive(Debug, Args)]
struct KlogFlags {
    #[arg(
        short = 'v',
        long = "v",
        id = "klog_v",
        value_name = "LEVEL",
        hide = true
    )]
    level: Option<String>,
    #[arg(long = "vmodule", id = "klog_vmodule", hide = true)]
    vmodule: Option<String>,
    #[arg(long = "stderrthreshold", id = "klog_stderrthreshold", hide = true)]
    stderrthreshold: Option<String>,
    #[arg(
        long = "alsologtostderrthreshold",
        id = "klog_alsologtostderrthreshold",
        hide = true
    )]
    alsologtostderrthreshold: Option<String>,
    #[arg(long = "log_dir", alias = "log-dir", id = "klog_log_dir", hide = true)]
    log_dir: Option<String>,
    #[arg(
        long = "log_file",
        alias = "log-file",
        id = "klog_log_file",
        hide = true
    )]
    log_file: Option<String>,
    #[arg(
        long = "log_file_max_size",
        alias = "log-file-max-size",
        id = "klog_log_file_max_size",
        hide = true
    )]
    log_file_max_size: Option<String>,
    #[arg(
        long = "log_backtrace_at",
        alias = "log-backtrace-at",
        id = "klog_log_backtrace_at",
        hide = true
    )]
    log_backtrace_at: Option<String>,
    #[arg(long = "alsologtostderr", id = "klog_alsologtostderr", hide = true)]
    alsologtostderr: bool,
    #[arg(long = "logtostderr", id = "klog_logtostderr", hide = true)]
    logtostderr: bool,
    #[arg(
        long = "add_dir_header",
        alias = "add-dir-header",
        id = "klog_add_dir_header",
        hide = true
    )]
    add_dir_header: bool,
    #[arg(
        long = "one_output",
        alias = "one-output",
        id = "klog_one_output",
        hide = true
    )]
    one_output: bool,
    #[arg(
        long = "skip_headers",
        alias = "skip-headers",
        id = "klog_skip_headers",
        hide = true
    )]
    skip_headers: bool,
    #[arg(
        long = "skip_log_headers",
        alias = "skip-log-headers",
        id = "klog_skip_log_headers",
        hide = true
    )]
    skip_log_headers: bool,
    #[arg(
        long = "legacy_stderr_threshold_behavior",
        alias = "legacy-stderr-threshold-behavior",
        id = "klog_legacy_stderr_threshold_behavior",
        hide = true
    )]
    legacy_stderr_threshold_behavior: bool,
}

impl Process for PodIdentityWebhookFlags {
    type Service = AdmissionService;

    fn log(&self) -> &LogFlags {
        &self.log
    }

    fn drain_time(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn log_starting(&self) {
        log_starting!("pod identity webhook", port = self.port);
    }

    async fn options(self) -> anyhow::Result<AdmissionOptions> {
        for note in self.notes() {
            tracing::warn!(note, "a flag has another effect than in the EKS webhook");
        }
        tracing::info!(
            "roles come from annotations of service accounts and the ConfigMap only; grants, \
             associations and Events need `rolegate admission --inject` with the rights of \
             rolegate's chart"
        );
        options(self)
    }

    fn log_listening(running: &Admission) {
        let addresses = running.addresses();
        tracing::info!(webhook = %addresses.webhook, admin = %addresses.admin, "listening");
    }
}

/// Time for which a pod waits, if the flag does not set another one.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);

impl PodIdentityWebhookFlags {
    /// Returns notes about flags with another effect than in the EKS webhook.
    fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.in_cluster {
            notes.push("--in-cluster: the certificate is read from --tls-cert and --tls-key");
        }
        if self.tls_min_version.is_some() || self.tls_cipher_suites.is_some() {
            notes.push("--tls-min-version and --tls-cipher-suites: TLS 1.2 and 1.3 are served");
        }
        if self.enable_debugging_handlers {
            notes.push("--enable-debugging-handlers: no such handlers exist");
        }
        notes
    }

    fn settings(&self) -> InjectionSettings {
        InjectionSettings {
            annotation_prefix: self.annotation_prefix.clone(),
            web_identity: TokenSettings {
                audience: self.token_audience.clone(),
                mount_path: self.token_mount_path.clone(),
                ..InjectionSettings::default().web_identity
            },
            container_credentials: TokenSettings {
                audience: self.container_credentials_audience.clone(),
                mount_path: self.container_credentials_token_mount_path.clone(),
                volume: self.container_credentials_token_volume_name.clone(),
                file: self.container_credentials_token_path.clone(),
            },
            full_uri: self.container_credentials_full_uri.clone(),
            expiration_seconds: self.token_expiration,
            region: Some(self.aws_default_region.clone()).filter(|region| !region.is_empty()),
            regional_sts: self.sts_regional_endpoint,
            session_name: true,
            no_proxy: false,
            invalid_arn: InvalidArn::Skip,
            assigned: AssignedMethod::WebIdentity,
        }
    }
}

fn options(flags: PodIdentityWebhookFlags) -> anyhow::Result<AdmissionOptions> {
    if flags.compose_role_arn && flags.base_role_arn.is_none() {
        return Err(invalid(
            "--compose-role-arn: requires --base-role-arn=arn:PARTITION:iam::ACCOUNT:role/, because this program does \
             not read the node's metadata service",
        ));
    }
    let anywhere = |port| SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let wait = match flags.service_account_lookup_grace_period {
        Duration::ZERO => DEFAULT_WAIT,
        wait => wait.min(MAX_WAIT),
    };
    let identities = Some(&flags.watch_container_credentials_config);
    let identities = identities.filter(|path| !path.is_empty());
    let namespace = &flags.namespace;
    Ok(AdmissionOptions {
        listen: anywhere(flags.port),
        admin_listen: anywhere(flags.metrics_port),
        client: ClientOptions {
            api_server: flags.kube_api.clone().filter(|url| !url.is_empty()),
            api_token: None,
            api_token_file: None,
            insecure: false,
            kubeconfig: flags
                .kubeconfig
                .clone()
                .filter(|path| !path.as_os_str().is_empty()),
            context: None,
            impersonate: None,
        },
        annotations: AnnotationKeys::default(),
        rules: RuleConfig {
            base: base_arn(flags.base_role_arn.as_deref())?,
            ..RuleConfig::default()
        },
        given: Default::default(),
        cluster_config: ConfigMode::Off,
        certificate: CertificateSource::Files(TlsFiles {
            certificate: flags.tls_cert.clone(),
            key: flags.tls_key.clone(),
        }),
        secret: (namespace.clone(), flags.tls_secret.clone()),
        clock: Clock::system(),
        rule_source: RuleSource::Flags,
        injection: Some(InjectionOptions {
            settings: flags.settings(),
            wait,
            config_map_namespace: flags.watch_config_map.then(|| namespace.clone()),
            identities: identities.map(PathBuf::from),
            require: Mode::Off,
            events_as: None,
            is_compatible: true,
        }),
    })
}
