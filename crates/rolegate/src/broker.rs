//! `rolegate broker`: flags → options.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use rolegate_aws::sts::StsOptions;
use rolegate_broker::app::{Broker, BrokerOptions, BrokerService, KiamOptions};
use rolegate_broker::identity::AgentAccount;
use rolegate_core::engine::EngineOptions;
use rolegate_core::names;
use rolegate_runtime::clock::Clock;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::certificate::CertificateFlags;
use crate::flags::deciding::DecidingFlags;
use crate::flags::given::Given;
use crate::flags::kiam::KiamServerFlags;
use crate::flags::kubernetes::KubernetesFlags;
use crate::flags::log::LogFlags;
use crate::flags::rules::RuleFlags;
use crate::flags::sts::StsFlags;
use crate::flags::{
    SessionScopeFlag, check_max_staleness, duration, invalid, session_duration_seconds,
};
use crate::run::{Process, log_starting};

const AGENTS: &str = "Agents";
const ROLES: &str = "Roles and rules";
const SESSIONS: &str = "Sessions";
const AWS: &str = "AWS";
const PROCESS: &str = "Process";

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Decide and hold sessions on behalf of the agents of all nodes.\n\n\
Agents with --broker have no permissions of their own, neither in Kubernetes nor in AWS. \
Each authenticates its node with the token of its service account or with a client certificate, and gets only \
the credentials of its own node's pods. Run two or more replicas, on nodes whose role may assume \
pods' roles, or with web identity. Replicas share no state other than Kubernetes.\n\n\
Every flag can also be set by an environment variable (shown next to it).";

/// Flags of `rolegate broker`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate broker --base-role-arn=arn:aws:iam::123456789012:role/ --namespace-restrictions
  With support for kiam's agents, during a migration:
    rolegate broker --layer=namespace=enforce --kiam-address=[::]:9610 --kiam-client-ca=/kiam/ca.pem

Exit codes: 0 stopped, 1 failed, 64 invalid usage or configuration.")]
pub(crate) struct BrokerFlags {
    #[command(flatten)]
    pub(crate) given: Given,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,

    /// Namespace of the agents' service account
    #[arg(long, value_name = "NAMESPACE", env = "ROLEGATE_AGENT_NAMESPACE", default_value = names::NAMESPACE, help_heading = AGENTS)]
    agent_namespace: String,
    /// Name of the agents' service account
    #[arg(long, value_name = "NAME", env = "ROLEGATE_AGENT_SERVICE_ACCOUNT", default_value = names::AGENT, help_heading = AGENTS)]
    agent_service_account: String,
    /// Audience of agents' tokens
    #[arg(long, value_name = "AUDIENCE", env = "ROLEGATE_AUDIENCE", default_value = "rolegate", help_heading = AGENTS)]
    audience: String,
    /// Require that an agent connects from its pod's address. Disable it if a proxy or NAT rewrites addresses [default: true]
    #[arg(long, env = "ROLEGATE_CHECK_AGENT_ADDRESS", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_name = "BOOL", hide_possible_values = true, help_heading = AGENTS)]
    check_agent_address: Option<bool>,
    /// CA certificates (PEM) for agents' client certificates. The URI rolegate://node/NAME of a certificate names its node. Use a CA that issues no other certificates
    #[arg(long, value_name = "FILE", env = "ROLEGATE_CLIENT_CA", help_heading = AGENTS)]
    client_ca: Option<PathBuf>,
    /// Maximum number of connections from agents. Each agent needs two
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_AGENT_CONNECTIONS", default_value = "10000", help_heading = AGENTS)]
    max_agent_connections: NonZeroUsize,
    /// Maximum number of unauthenticated connections from one IPv4 address or IPv6 /64. Raise it if a proxy or NAT rewrites addresses
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_CONNECTIONS_PER_ADDRESS", default_value = "4", help_heading = AGENTS)]
    max_connections_per_address: NonZeroUsize,
    /// Address for kiam's agents during a migration. Disabled by default
    #[arg(long, alias = "bind", value_name = "ADDRESS", env = "ROLEGATE_KIAM_ADDRESS", requires = "kiam_client_ca", help_heading = AGENTS)]
    kiam_address: Option<SocketAddr>,
    /// CA certificates (PEM) for the certificates of kiam's agents
    #[arg(long, alias = "ca", value_name = "FILE", env = "ROLEGATE_KIAM_CLIENT_CA", requires = "kiam_address", help_heading = AGENTS)]
    kiam_client_ca: Option<PathBuf>,
    /// Stop serving kiam's agents when no update has arrived from the API server for this long
    #[arg(long, value_name = "TIME", env = "ROLEGATE_MAX_STALENESS", default_value = "1h", value_parser = duration, requires = "kiam_address", help_heading = AGENTS)]
    max_staleness: Duration,

    /// Make no decision until the base ARN has been discovered from the environment. Without this flag, a base ARN that can be discovered is used as well
    #[arg(long, alias = "role-base-arn-autodetect", env = "ROLEGATE_AUTO_DISCOVER_BASE_ARN", help_heading = ROLES)]
    auto_discover_base_arn: bool,
    #[command(flatten)]
    keys: AnnotationFlags,

    /// Set of pods that share a session of a role
    #[arg(long, value_name = "SCOPE", env = "ROLEGATE_SESSION_SCOPE", default_value = "workload", help_heading = SESSIONS)]
    session_scope: SessionScopeFlag,
    /// Session duration requested from STS, 15m to 12h. More than 1h requires that the role allows it and that the broker's credentials are not a role's session, since AWS limits chained roles to 1h
    #[arg(long, value_name = "TIME", env = "ROLEGATE_SESSION_DURATION", value_parser = duration, default_value = "1h", help_heading = SESSIONS)]
    session_duration: Duration,
    #[command(flatten)]
    sts: StsFlags,
    /// Address of the node's metadata service, used to discover this broker's role and Region
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METADATA_ADDR", default_value = "169.254.169.254:80", help_heading = AWS)]
    metadata_addr: String,
    /// Address of this pod, used to detect the host's network
    #[arg(long, value_name = "IP", env = "POD_IP", help_heading = AWS)]
    pod_ip: Option<IpAddr>,
    /// Address of this pod's host
    #[arg(long, value_name = "IP", env = "HOST_IP", help_heading = AWS)]
    host_ip: Option<IpAddr>,

    #[command(flatten)]
    kubernetes: KubernetesFlags,

    #[command(flatten)]
    certificate: CertificateFlags,

    /// Address to listen on for agents
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_BROKER_ADDRESS", default_value = "[::]:9443", help_heading = PROCESS)]
    listen_address: SocketAddr,
    /// Address of metrics and health checks
    #[arg(long, value_name = "ADDRESS", alias = "prometheus-listen-addr", env = "ROLEGATE_METRICS_ADDRESS", default_value = "[::]:9090", help_heading = PROCESS)]
    metrics_address: SocketAddr,
    /// Address of the ledger, for rolegate ledger. On loopback, it can be read only by users who may exec into the pod or forward its ports, and by processes on the host's network if the pod uses it
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_LEDGER_ADDRESS", default_value = "127.0.0.1:9091", help_heading = PROCESS)]
    ledger_address: SocketAddr,
    /// Maximum number of ledger entries
    #[arg(long, value_name = "N", env = "ROLEGATE_LEDGER_ENTRIES", default_value = "20000", help_heading = PROCESS)]
    ledger_entries: NonZeroUsize,
    /// Unique name of this replica [default: the host's name and a random number]
    #[arg(long, value_name = "NAME", env = "POD_NAME", help_heading = PROCESS)]
    name: Option<String>,
    #[command(flatten)]
    log: LogFlags,
    /// Maximum time to finish open streams at exit
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    drain_time: Duration,
    #[command(flatten)]
    kiam: KiamServerFlags,
}

impl BrokerFlags {
    /// Returns the flags that affect decisions.
    ///
    /// # Errors
    /// Returns a usage error for a session duration that STS does not support.
    pub(crate) fn deciding(&self) -> anyhow::Result<DecidingFlags> {
        Ok(DecidingFlags {
            rules: self.rules.clone(),
            keys: self.keys.clone(),
            scope: self.session_scope.into(),
            session_seconds: session_duration_seconds("--session-duration", self.session_duration)?,
        })
    }
}

impl Process for BrokerFlags {
    type Service = BrokerService;

    fn log(&self) -> &LogFlags {
        &self.log
    }

    fn drain_time(&self) -> Duration {
        self.drain_time
    }

    fn log_starting(&self) {
        log_starting!(
            "broker",
            listen_address = %self.listen_address,
            kiam = self.kiam_address.map(tracing::field::display)
        );
        for note in self.kiam.notes() {
            tracing::warn!("{note}");
        }
    }

    async fn options(self) -> anyhow::Result<BrokerOptions> {
        options(self)
    }

    fn log_listening(running: &Broker) {
        let addresses = running.addresses();
        tracing::info!(agents = %addresses.agents, admin = %addresses.admin, ledger = %addresses.ledger, "listening");
    }
}

pub(crate) fn options(flags: BrokerFlags) -> anyhow::Result<BrokerOptions> {
    let clock = Clock::system();
    check_credentials(flags.pod_ip, flags.host_ip)?;
    check_max_staleness(flags.max_staleness)?;
    let engine = flags.sts.engine(EngineOptions::for_cluster);
    let decisions =
        flags
            .deciding()?
            .options(&flags.given, flags.auto_discover_base_arn, engine)?;
    let (certificate, secret) = flags.certificate.source(names::BROKER_TLS)?;
    let host = || std::env::var("HOSTNAME").unwrap_or_else(|_| names::BROKER.into());
    let name = flags
        .name
        .unwrap_or_else(|| format!("{}_{:08x}", host(), fastrand::u32(..)));
    Ok(BrokerOptions {
        listen: flags.listen_address,
        admin_listen: flags.metrics_address,
        ledger_listen: flags.ledger_address,
        ledger_entries: flags.ledger_entries.get(),
        name,
        client: flags.kubernetes.client(),
        decisions,
        agents: AgentAccount {
            namespace: flags.agent_namespace.into(),
            name: flags.agent_service_account.into(),
            audience: flags.audience,
            check_address: flags.check_agent_address.unwrap_or(true),
        },
        certificate,
        secret,
        client_ca: flags.client_ca,
        metadata_addr: flags.metadata_addr,
        sts: StsOptions {
            region: flags.kiam.region,
            ..flags.sts.options(clock.clone())?
        },
        connections: flags.max_agent_connections.get(),
        connections_per_peer: flags.max_connections_per_address.get(),
        kiam: flags
            .kiam_address
            .zip(flags.kiam_client_ca)
            .map(|(listen, client_ca)| KiamOptions {
                listen,
                client_ca,
                max_staleness: flags.max_staleness,
            }),
        clock,
    })
}

/// Rejects a broker without credentials of its own that is redirected to an agent. It would request
/// its credentials from an agent that gets them from the broker.
fn check_credentials(pod_ip: Option<IpAddr>, host_ip: Option<IpAddr>) -> anyhow::Result<()> {
    let own = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_ACCESS_KEY_ID",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_PROFILE",
    ];
    // As in the SDK, a variable that is set to an empty value is unset.
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let has_own = own.into_iter().any(set);
    match (pod_ip, host_ip) {
        (Some(pod), Some(host)) if pod != host && !has_own => Err(invalid(
            "this broker is not on its host's network and has no credentials of its own: its calls to the \
             metadata service would be redirected to an agent, which has none without the broker; set hostNetwork: true, \
             or give it web identity (AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE)",
        )),
        _ => Ok(()),
    }
}
