//! `rolegate broker`: flags → options → run.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use rolegate_aws::sts::StsOptions;
use rolegate_broker::app::{Broker, BrokerOptions, KiamOptions, StartError};
use rolegate_broker::identity::AgentAccount;
use rolegate_core::engine::EngineOptions;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::signals;
use rolegate_runtime::version::Version;

use crate::annotation_flags::AnnotationFlags;
use crate::certificate_flags::CertificateFlags;
use crate::deciding_flags::DecidingFlags;
use crate::flags::{SessionScopeFlag, check_picture_age, duration, invalid, session_life};
use crate::given_flags::Given;
use crate::kiam_flags::KiamServerFlags;
use crate::kubernetes_flags::KubernetesFlags;
use crate::lifecycle::log_ready;
use crate::log_flags::LogFlags;
use crate::rule_flags::RuleFlags;
use crate::sts_flags::StsFlags;

const AGENTS: &str = "Agents";
const ROLES: &str = "Roles and rules";
const SESSIONS: &str = "Sessions";
const AWS: &str = "AWS";
const PROCESS: &str = "Process";

/// What its help begins with.
pub(crate) const LONG_ABOUT: &str = "Decide and hold sessions for the agents of all nodes.\n\n\
Agents that are started with --broker have no rights of their own, neither in Kubernetes nor in AWS. \
Each proves which node it is on, by the token of its service account or by a client certificate, and gets \
the credentials of its own node's pods and nothing else. Run two or more, on nodes whose role may assume \
pods' roles or with web identity; nothing is shared between them but Kubernetes.\n\n\
Every flag can also be set by an environment variable (shown beside it).";

/// Flags of `rolegate broker`.
#[derive(Debug, Args)]
pub(crate) struct BrokerFlags {
    #[command(flatten)]
    pub(crate) given: Given,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,

    /// Namespace of the agents' service account
    #[arg(long, value_name = "NAMESPACE", env = "ROLEGATE_AGENT_NAMESPACE", default_value = "rolegate-system", help_heading = AGENTS)]
    agent_namespace: String,
    /// Name of the agents' service account
    #[arg(long, value_name = "NAME", env = "ROLEGATE_AGENT_SERVICE_ACCOUNT", default_value = "rolegate-agent", help_heading = AGENTS)]
    agent_service_account: String,
    /// Audience that agents' tokens must be for
    #[arg(long, value_name = "AUDIENCE", env = "ROLEGATE_AUDIENCE", default_value = "rolegate", help_heading = AGENTS)]
    audience: String,
    /// Demand that an agent's connection comes from the address of its pod; switch it off where something between rewrites addresses [default: true]
    #[arg(long, env = "ROLEGATE_CHECK_AGENT_ADDRESS", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_name = "BOOL", hide_possible_values = true, help_heading = AGENTS)]
    check_agent_address: Option<bool>,
    /// Authorities (PEM) of agents' client certificates, each of which names its node as the URI rolegate://node/NAME; an authority of their own, used for nothing else
    #[arg(long, value_name = "FILE", env = "ROLEGATE_CLIENT_CA", help_heading = AGENTS)]
    client_ca: Option<PathBuf>,
    /// Most connections of agents, two for each
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_AGENT_CONNECTIONS", default_value = "10000", help_heading = AGENTS)]
    max_agent_connections: NonZeroUsize,
    /// Most connections of one IPv4 address or IPv6 /64 that have not authenticated yet; more where something between rewrites addresses
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_CONNECTIONS_PER_ADDRESS", default_value = "4", help_heading = AGENTS)]
    max_connections_per_address: NonZeroUsize,
    /// Address for agents of kiam, while a cluster moves over; off unless given
    #[arg(long, alias = "bind", value_name = "ADDRESS", env = "ROLEGATE_KIAM_ADDRESS", requires = "kiam_client_ca", help_heading = AGENTS)]
    kiam_address: Option<SocketAddr>,
    /// Authorities (PEM) of the certificates of kiam's agents
    #[arg(long, alias = "ca", value_name = "FILE", env = "ROLEGATE_KIAM_CLIENT_CA", requires = "kiam_address", help_heading = AGENTS)]
    kiam_client_ca: Option<PathBuf>,
    /// Stop serving kiam's agents when the API server has sent nothing for this long
    #[arg(long, value_name = "TIME", env = "ROLEGATE_MAX_PICTURE_AGE", default_value = "1h", value_parser = duration, requires = "kiam_address", help_heading = AGENTS)]
    max_picture_age: Duration,

    /// Demand that the base ARN is found out from where this runs; without it, a found one is used all the same
    #[arg(long, alias = "role-base-arn-autodetect", env = "ROLEGATE_AUTO_DISCOVER_BASE_ARN", help_heading = ROLES)]
    auto_discover_base_arn: bool,
    #[command(flatten)]
    keys: AnnotationFlags,

    /// Which pods share a session of a role
    #[arg(long, value_name = "SCOPE", env = "ROLEGATE_SESSION_SCOPE", default_value = "workload", help_heading = SESSIONS)]
    session_scope: SessionScopeFlag,
    /// Life asked of STS, 15m to 12h; more than 1h only for roles that allow it, and never from a role's session
    #[arg(long, value_name = "TIME", env = "ROLEGATE_SESSION_DURATION", value_parser = duration, default_value = "1h", help_heading = SESSIONS)]
    session_duration: Duration,
    #[command(flatten)]
    sts: StsFlags,
    /// The node's real metadata service, asked for the role and Region of where this runs
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METADATA_ADDR", default_value = "169.254.169.254:80", help_heading = AWS)]
    metadata_addr: String,
    /// Address of this pod, to tell whether it is on its host's network
    #[arg(long, value_name = "IP", env = "POD_IP", help_heading = AWS)]
    pod_ip: Option<IpAddr>,
    /// Address of this pod's host
    #[arg(long, value_name = "IP", env = "HOST_IP", help_heading = AWS)]
    host_ip: Option<IpAddr>,

    #[command(flatten)]
    kubernetes: KubernetesFlags,

    #[command(flatten)]
    certificate: CertificateFlags,

    /// Address that agents call
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_BROKER_ADDRESS", default_value = "[::]:9443", help_heading = PROCESS)]
    listen_address: SocketAddr,
    /// Address of metrics and health
    #[arg(long, value_name = "ADDRESS", alias = "prometheus-listen-addr", env = "ROLEGATE_METRICS_ADDRESS", default_value = "[::]:9090", help_heading = PROCESS)]
    metrics_address: SocketAddr,
    /// Address of the ledger, for `rolegate ledger`: on loopback, so that who may exec or forward a port may read it, and what else is on the host's network
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_LEDGER_ADDRESS", default_value = "127.0.0.1:9091", help_heading = PROCESS)]
    ledger_address: SocketAddr,
    /// Entries that the ledger keeps
    #[arg(long, value_name = "N", env = "ROLEGATE_LEDGER_ENTRIES", default_value = "20000", help_heading = PROCESS)]
    ledger_entries: NonZeroUsize,
    /// Name of this replica, different for each [default: the host's name and a random number]
    #[arg(long, value_name = "NAME", env = "POD_NAME", help_heading = PROCESS)]
    name: Option<String>,
    #[command(flatten)]
    log: LogFlags,
    /// How long open streams may take at the end
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    drain_time: Duration,
    #[command(flatten)]
    kiam: KiamServerFlags,
}

impl BrokerFlags {
    /// The flags by which it decides.
    ///
    /// # Errors
    /// A session's life that STS does not give, as wrong usage.
    pub(crate) fn deciding(&self) -> anyhow::Result<DecidingFlags> {
        Ok(DecidingFlags {
            rules: self.rules.clone(),
            keys: self.keys.clone(),
            scope: self.session_scope.into(),
            session_seconds: session_life("--session-duration", self.session_duration)?,
        })
    }
}

/// Runs the broker until it is told to stop.
pub(crate) fn run(flags: BrokerFlags) -> anyhow::Result<ExitCode> {
    flags.log.start()?;
    tracing::info!(
        version = Version::CURRENT.version,
        revision = Version::CURRENT.revision,
        command = "broker",
        listen_address = %flags.listen_address,
        kiam = flags.kiam_address.map(tracing::field::display),
        "starting"
    );
    for note in flags.kiam.notes() {
        tracing::warn!("{note}");
    }
    let drain_time = flags.drain_time;
    let options = options(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no threads can be started")?;
    runtime.block_on(async {
        let mut shutdown = signals::Shutdown::new().context("signals cannot be listened to")?;
        let mut broker = Broker::start(options).await.map_err(|error| match error {
            StartError::Client(_) | StartError::Imds(_) => invalid(error.to_string()),
            other => other.into(),
        })?;
        let addresses = broker.addresses();
        tracing::info!(agents = %addresses.agents, admin = %addresses.admin, ledger = %addresses.ledger, "listening");
        let _ready = log_ready(broker.readiness());
        let broken = tokio::select! {
            signal = shutdown.next() => {
                tracing::info!(signal, "stopping");
                None
            }
            task = broker.ended() => Some(task),
        };
        broker.stop(drain_time).await;
        match broken {
            Some(task) => bail!("{task} ended, which is a fault of rolegate"),
            None => Ok(ExitCode::SUCCESS),
        }
    })
}

pub(crate) fn options(flags: BrokerFlags) -> anyhow::Result<BrokerOptions> {
    let clock = Clock::system();
    check_credentials(flags.pod_ip, flags.host_ip)?;
    check_picture_age(flags.max_picture_age)?;
    let rules = flags.rules.config()?;
    if flags.auto_discover_base_arn && rules.base.is_some() {
        return Err(invalid(
            "--auto-discover-base-arn and --base-role-arn: give one of both",
        ));
    }
    let (certificate, secret) = flags.certificate.source("rolegate-broker-tls")?;
    let host = || std::env::var("HOSTNAME").unwrap_or_else(|_| "rolegate-broker".into());
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
        annotations: flags.keys.keys()?,
        cluster_config: flags.rules.cluster_config.into(),
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
        base_required: flags.auto_discover_base_arn,
        rules,
        given: flags.given.rules().clone(),
        scope: flags.session_scope.into(),
        session_seconds: session_life("--session-duration", flags.session_duration)?,
        engine: flags.sts.engine(EngineOptions::of_cluster),
        connections: flags.max_agent_connections.get(),
        connections_per_peer: flags.max_connections_per_address.get(),
        kiam: flags
            .kiam_address
            .zip(flags.kiam_client_ca)
            .map(|(listen, client_ca)| KiamOptions {
                listen,
                client_ca,
                max_picture_age: flags.max_picture_age,
            }),
        clock,
    })
}

/// A broker that is itself led to an agent would ask that agent for its own credentials, which it
/// is to fetch.
fn check_credentials(pod_ip: Option<IpAddr>, host_ip: Option<IpAddr>) -> anyhow::Result<()> {
    let own = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_ACCESS_KEY_ID",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_PROFILE",
    ];
    // As the SDK has it: what is set to nothing is not set.
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let has_own = own.into_iter().any(set);
    match (pod_ip, host_ip) {
        (Some(pod), Some(host)) if pod != host && !has_own => Err(invalid(
            "this broker is not on its host's network and has no credentials of its own: its calls to the \
             metadata service would be led to an agent, which has none without the broker; set hostNetwork: true, \
             or give it web identity (AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE)",
        )),
        _ => Ok(()),
    }
}
