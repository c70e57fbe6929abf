//! The agent's flags. Flags of kube2iam keep their names and meaning.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rolegate_agent::attachment::cni_results::CNI_RESULTS_DIR;

use crate::flags::annotations::AnnotationFlags;
use crate::flags::given::Given;
use crate::flags::kiam::KiamAgentFlags;
use crate::flags::kubernetes::KubernetesFlags;
use crate::flags::log::LogFlags;
use crate::flags::rules::RuleFlags;
use crate::flags::sts::StsFlags;
use crate::flags::{SessionScopeFlag, duration, path};

const KUBERNETES: &str = "Kubernetes";
const BROKER: &str = "Broker";
const ROLES: &str = "Roles and rules";
const SESSIONS: &str = "Sessions";
const METADATA: &str = "Metadata endpoint";
const CONTAINER: &str = "Container credentials endpoint";
const REDIRECT: &str = "Redirect";
const PROCESS: &str = "Process";
const NO_EFFECT: &str = "kube2iam flags without effect";

/// The use of metadata tokens.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ImdsV2 {
    /// Answer requests without a token
    Optional,
    /// Refuse requests without a token
    Required,
}

/// The treatment of addresses on shared networks that the container runtime has not recorded.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum UnrecordedAddresses {
    /// Assign them to no pod
    Refuse,
    /// Learn them from the first packet, which any neighbor on the bridge can send
    Learn,
}

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Serve AWS credentials to the pods of this node on the metadata address.\n\n\
Runs on each node, on the host's network. A pod that requests credentials from 169.254.169.254 gets those \
of the role in its annotation iam.amazonaws.com/role, if the rules allow it, and never the \
node's own. Flags of kube2iam keep their names and meaning.\n\n\
Every flag can also be set by an environment variable (shown next to it) or in a YAML file \
(--config) whose keys are the flags' names. The command line takes precedence, then the environment.";

/// Flags of `rolegate agent`.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
#[command(after_help = "\
Examples:
  In a DaemonSet on the AWS VPC CNI, with the roles that namespaces allow:
    rolegate agent --base-role-arn=arn:aws:iam::123456789012:role/ --namespace-restrictions \\
      --redirect=auto --host-interface=eni+ --host-ip=$HOST_IP --node=$NODE_NAME
  With a broker, so that the agent needs no permissions:
    rolegate agent --broker=https://rolegate-broker.rolegate-system.svc:9443 \\
      --redirect=auto --host-interface=eni+ --host-ip=$HOST_IP --node=$NODE_NAME

Exit codes: 0 stopped, 1 failed, 64 invalid usage or configuration.")]
pub(crate) struct AgentFlags {
    #[command(flatten)]
    pub(crate) given: Given,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,
    /// Make no decision until the base ARN has been discovered from the node. Without this flag, a base ARN that can be discovered is used as well
    #[arg(long, env = "ROLEGATE_AUTO_DISCOVER_BASE_ARN", help_heading = ROLES)]
    pub(crate) auto_discover_base_arn: bool,
    #[command(flatten)]
    pub(crate) keys: AnnotationFlags,

    /// Interfaces on which packets from pods arrive: a name, eni+ for a prefix, !eth0 for all but one, auto to find them
    #[arg(long, value_name = "PATTERN", env = "ROLEGATE_HOST_INTERFACE", default_value = "docker0", help_heading = REDIRECT)]
    pub(crate) host_interface: String,
    /// Set of pods that share a session of a role
    #[arg(long, value_name = "SCOPE", env = "ROLEGATE_SESSION_SCOPE", default_value = "workload", help_heading = SESSIONS)]
    pub(crate) session_scope: SessionScopeFlag,
    /// Session duration requested from STS, 15m to 12h. More than 1h requires that the role allows it and that the agent does not use a node's role, since AWS limits chained roles to 1h [default: 1h]
    #[arg(long, value_name = "TIME", env = "ROLEGATE_SESSION_DURATION", value_parser = duration, conflicts_with = "iam_role_session_ttl", help_heading = SESSIONS)]
    pub(crate) session_duration: Option<Duration>,
    /// kube2iam's form of --session-duration: half of the duration requested from STS
    #[arg(long, value_name = "TIME", env = "ROLEGATE_IAM_ROLE_SESSION_TTL", value_parser = duration, conflicts_with = "session_duration", help_heading = SESSIONS)]
    pub(crate) iam_role_session_ttl: Option<Duration>,
    /// Minimum time before retrying a role that STS refused, at least 30s
    #[arg(long, value_name = "TIME", env = "ROLEGATE_IAM_ROLE_ERROR_TTL", value_parser = duration, help_heading = SESSIONS)]
    pub(crate) iam_role_error_ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) sts: StsFlags,

    /// Port to which pods are redirected
    #[arg(long, value_name = "PORT", alias = "port", env = "ROLEGATE_APP_PORT", default_value = "8181", help_heading = METADATA)]
    pub(crate) app_port: u16,
    /// Address of the node's metadata service
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METADATA_ADDR", default_value = "169.254.169.254:80", help_heading = METADATA)]
    pub(crate) metadata_addr: String,
    /// Additional metadata paths that pods may read, as a regular expression on the path below the version, such as meta-data/ami-id. Give it in one source only, or the same in all
    #[arg(long, value_name = "REGEXP", env = "ROLEGATE_METADATA_ALLOW", help_heading = METADATA)]
    pub(crate) metadata_allow: Vec<String>,
    /// Use of metadata tokens (IMDSv2)
    #[arg(long, value_name = "MODE", env = "ROLEGATE_IMDS_V2", default_value = "optional", help_heading = METADATA)]
    pub(crate) imds_v2: ImdsV2,
    /// Maximum time that a request waits for a watch event or for STS. SDKs time out after one second
    #[arg(long, value_name = "TIME", env = "ROLEGATE_WAIT", default_value = "800ms", value_parser = duration, help_heading = METADATA)]
    pub(crate) wait: Duration,
    /// kube2iam's form of --wait
    #[arg(long, value_name = "TIME", env = "ROLEGATE_BACKOFF_MAX_ELAPSED_TIME", value_parser = duration, conflicts_with = "wait", hide = true, help_heading = METADATA)]
    pub(crate) backoff_max_elapsed_time: Option<Duration>,
    /// Maximum number of connections of all pods. At the limit, a new connection replaces the longest idle connection of the pod with the most connections
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_CONNECTIONS", default_value = "2048", help_heading = METADATA)]
    pub(crate) max_connections: NonZeroUsize,
    /// Maximum number of connections of one pod. At the limit, a new connection replaces the pod's longest idle connection
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_CONNECTIONS_PER_POD", default_value = "256", help_heading = METADATA)]
    pub(crate) max_connections_per_pod: u32,
    /// Maximum number of requests per second that are forwarded to the node's metadata service for one pod
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_FORWARDS_PER_POD", default_value = "50", help_heading = METADATA)]
    pub(crate) max_forwards_per_pod: u32,
    /// Maximum number of requests per second that are forwarded for all pods together. Each pod gets an equal share
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_FORWARDS", default_value = "200", help_heading = METADATA)]
    pub(crate) max_forwards: u32,

    /// Serve container credentials (EKS Pod Identity) to pods that present a ServiceAccount token. Requires --node or NODE_NAME, and an API server
    #[arg(long, env = "ROLEGATE_CONTAINER_CREDENTIALS", help_heading = CONTAINER,
        conflicts_with_all = ["broker", "workloads"])]
    pub(crate) container_credentials: bool,
    /// Address of the endpoint, up to four. The agent adds each address, except loopback, to a link of its own. SDKs accept only 169.254.170.23, fd00:ec2::23, 169.254.170.2 and loopback [default: 169.254.170.23 and fd00:ec2::23]
    #[arg(long, value_name = "IP", env = "ROLEGATE_CONTAINER_CREDENTIALS_ADDRESS", value_delimiter = ',', requires = "container_credentials", help_heading = CONTAINER)]
    pub(crate) container_credentials_address: Vec<IpAddr>,
    /// Port of the endpoint [default: 80]
    #[arg(long, value_name = "PORT", env = "ROLEGATE_CONTAINER_CREDENTIALS_PORT", requires = "container_credentials", help_heading = CONTAINER)]
    pub(crate) container_credentials_port: Option<u16>,
    /// Audience of the tokens [default: pods.eks.amazonaws.com]
    #[arg(long, value_name = "AUDIENCE", env = "ROLEGATE_CONTAINER_CREDENTIALS_AUDIENCE", requires = "container_credentials", help_heading = CONTAINER)]
    pub(crate) container_credentials_audience: Option<String>,

    /// Redirect pods to the agent with this program: auto, nftables, iptables, iptables-nft, iptables-legacy or none [default: none]
    #[arg(long, value_name = "BACKEND", env = "ROLEGATE_REDIRECT", help_heading = REDIRECT)]
    pub(crate) redirect: Option<String>,
    /// kube2iam's form of --redirect=auto
    #[arg(long, env = "ROLEGATE_IPTABLES", help_heading = REDIRECT)]
    pub(crate) iptables: bool,
    /// Address of this host to which pods are redirected
    #[arg(long, alias = "host", value_name = "IP", env = "HOST_IP", help_heading = REDIRECT)]
    pub(crate) host_ip: Option<IpAddr>,
    /// IPv6 address of this host, if pods have IPv6 addresses. Without it the IPv6 metadata address is blocked
    #[arg(long, value_name = "IP", env = "HOST_IPV6", help_heading = REDIRECT)]
    pub(crate) host_ipv6: Option<Ipv6Addr>,
    /// Directory in which the container runtime (libcni) records the addresses of pods. On bridges, only these records identify pods. Empty: no records
    #[arg(long, value_name = "DIR", env = "ROLEGATE_CNI_RESULTS_DIR", default_value = CNI_RESULTS_DIR, value_parser = path, help_heading = REDIRECT)]
    pub(crate) cni_results_dir: PathBuf,
    /// Directory of the CNI configuration, from which --host-interface=auto finds the interfaces of pods [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR", env = "ROLEGATE_CNI_CONF_DIR", help_heading = REDIRECT)]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Treatment of pod addresses on a bridge that the container runtime has not recorded
    #[arg(long, value_name = "CHOICE", env = "ROLEGATE_UNRECORDED_ADDRESSES", default_value = "refuse", help_heading = REDIRECT)]
    pub(crate) unrecorded_addresses: UnrecordedAddresses,
    /// Interval at which the redirect rules are checked and restored
    #[arg(long, value_name = "TIME", env = "ROLEGATE_REDIRECT_INTERVAL", default_value = "5s", value_parser = duration, help_heading = REDIRECT)]
    pub(crate) redirect_interval: Duration,
    /// Remove the redirect rules at exit. Pods then reach the node's role
    #[arg(long, alias = "iptables-remove", env = "ROLEGATE_REDIRECT_REMOVE_AT_EXIT", help_heading = REDIRECT)]
    pub(crate) redirect_remove_at_exit: bool,
    /// Directory of pods' network namespaces. The agent periodically tests the redirect from these namespaces, and uses them to confirm the container runtime's records of pods on bridges. Empty: no tests; records are confirmed with /run/netns
    #[arg(long, value_name = "DIR", env = "ROLEGATE_REDIRECT_CHECK_DIR", default_value = "/run/netns", value_parser = path, help_heading = REDIRECT)]
    pub(crate) redirect_check_dir: PathBuf,

    #[command(flatten)]
    pub(crate) kubernetes: KubernetesFlags,
    /// Name of this node [default: the Node object with this host's address]
    #[arg(long, value_name = "NAME", env = "NODE_NAME", help_heading = KUBERNETES)]
    pub(crate) node: Option<String>,
    /// Let the broker at https://HOST:PORT decide and hold the sessions. The agent then needs no permissions, and flags about rules, sessions and STS have no effect
    #[arg(long, value_name = "URL", env = "ROLEGATE_BROKER", help_heading = BROKER,
        conflicts_with_all = ["api_server", "api_token", "api_token_file", "kubeconfig", "workloads"])]
    pub(crate) broker: Option<String>,
    /// CA certificates (PEM) for the broker's certificate, reloaded for each connection
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_CA", default_value = "/run/secrets/rolegate-broker/ca.crt", help_heading = BROKER)]
    pub(crate) broker_ca: PathBuf,
    /// Token of this agent's service account for the broker, renewed by the kubelet
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_TOKEN", default_value = "/run/secrets/rolegate-token/token", help_heading = BROKER)]
    pub(crate) broker_token: PathBuf,
    /// Client certificate (PEM) to use instead of a token. Its URI rolegate://node/NAME names the node
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_CERT", requires = "broker_key", help_heading = BROKER)]
    pub(crate) broker_cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_KEY", requires = "broker_cert", help_heading = BROKER)]
    pub(crate) broker_key: Option<PathBuf>,

    /// YAML file with pods and namespaces to use instead of Kubernetes, reloaded when it changes
    #[arg(long, value_name = "FILE", env = "ROLEGATE_WORKLOADS", help_heading = KUBERNETES,
        conflicts_with_all = ["api_server", "api_token", "api_token_file", "kubeconfig"])]
    pub(crate) workloads: Option<PathBuf>,
    /// Stop serving credentials when no update has arrived from the API server or broker for this long
    #[arg(long, value_name = "TIME", env = "ROLEGATE_MAX_STALENESS", default_value = "1h", value_parser = duration, help_heading = KUBERNETES)]
    pub(crate) max_staleness: Duration,

    /// YAML file with flags
    #[arg(long, value_name = "FILE", env = "ROLEGATE_CONFIG", help_heading = PROCESS)]
    pub(crate) config: Option<PathBuf>,

    /// Port of metrics and health checks on all addresses. By default they listen on 127.0.0.1:9090 only, since pods can reach the host's other addresses
    #[arg(long, value_name = "PORT", env = "ROLEGATE_METRICS_PORT", conflicts_with = "metrics_address", help_heading = PROCESS)]
    pub(crate) metrics_port: Option<u16>,
    /// Address of metrics and health checks [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS", alias = "prometheus-listen-addr", env = "ROLEGATE_METRICS_ADDRESS", help_heading = PROCESS)]
    pub(crate) metrics_address: Option<SocketAddr>,
    /// Also export metrics under kube2iam's names
    #[arg(long, env = "ROLEGATE_KUBE2IAM_METRICS", help_heading = PROCESS)]
    pub(crate) kube2iam_metrics: bool,
    /// Serve /debug/* on the metrics port
    #[arg(long, env = "ROLEGATE_DEBUG", help_heading = PROCESS)]
    pub(crate) debug: bool,
    #[command(flatten)]
    pub(crate) log: LogFlags,
    /// Directory for the handover to the next agent and, if it is in memory, for the keys of metadata tokens. Only root may access it. Empty: neither
    #[arg(long, value_name = "DIR", env = "ROLEGATE_RUNTIME_DIR", default_value = "/run/rolegate", value_parser = path, help_heading = PROCESS)]
    pub(crate) runtime_dir: PathBuf,
    /// Maximum time to finish open requests at exit
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    pub(crate) drain_time: Duration,
    /// Number of threads that serve requests [default: the number of processors, at most 4]
    #[arg(long, value_name = "N", env = "ROLEGATE_THREADS", help_heading = PROCESS)]
    threads: Option<NonZeroUsize>,

    /// Accepted for kube2iam compatibility but ignored: it would give every pod the node's role. Use --default-role
    #[arg(long, env = "ROLEGATE_AUTO_DISCOVER_DEFAULT_ROLE", help_heading = NO_EFFECT)]
    pub(crate) auto_discover_default_role: bool,
    /// Ignored: the agent does not poll
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = NO_EFFECT)]
    pub(crate) backoff_max_interval: Option<Duration>,
    /// Ignored: watches need no resync
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = NO_EFFECT)]
    pub(crate) cache_resync_period: Option<Duration>,
    /// Always on: pods are identified by their UID
    #[arg(long, help_heading = NO_EFFECT)]
    pub(crate) resolve_duplicate_cache_ips: bool,
    #[command(flatten)]
    pub(crate) kiam: KiamAgentFlags,
}

impl AgentFlags {
    /// Returns the number of threads that serve requests.
    pub(super) fn serving_threads(&self) -> usize {
        let most = NonZeroUsize::MIN.saturating_add(3);
        let found = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.threads.unwrap_or_else(|| found().min(most)).get()
    }
}
