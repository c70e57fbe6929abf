//! The agent's flags. Those of kube2iam keep their names and meaning.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rolegate_agent::attachment::cni_results::CNI_RESULTS_DIR;

use crate::annotation_flags::AnnotationFlags;
use crate::flags::{SessionScopeFlag, duration, path};
use crate::given_flags::Given;
use crate::kiam_flags::KiamAgentFlags;
use crate::kubernetes_flags::KubernetesFlags;
use crate::log_flags::LogFlags;
use crate::rule_flags::RuleFlags;
use crate::sts_flags::StsFlags;

const KUBERNETES: &str = "Kubernetes";
const BROKER: &str = "Broker";
const ROLES: &str = "Roles and rules";
const SESSIONS: &str = "Sessions";
const DOOR: &str = "Metadata door";
const REDIRECT: &str = "Redirect";
const PROCESS: &str = "Process";
const NO_EFFECT: &str = "Flags of kube2iam without effect here";

/// Whether metadata tokens are demanded.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ImdsV2 {
    /// Requests without a token are answered
    Optional,
    /// Requests without a token are refused
    Required,
}

/// The treatment of addresses on shared networks that no record names.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum UnrecordedAddresses {
    /// They belong to no pod
    Refuse,
    /// They belong where their first packet comes from, which any neighbour on the bridge can send
    Learn,
}

/// What its help begins with.
pub(crate) const LONG_ABOUT: &str = "Answer the pods of this node on the metadata address.\n\n\
Runs on each node with the host's network. Pods that ask 169.254.169.254 for credentials get those \
of the role they are annotated with (iam.amazonaws.com/role), if the rules allow it, and never the \
node's own. The flags of kube2iam are understood, with their names and meaning.\n\n\
Every flag can also be set by an environment variable (shown beside it) or in a YAML file \
(--config) whose keys are the flags' names; the command line goes first, then the environment.";

/// Flags of `rolegate agent`.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(crate) struct AgentFlags {
    #[command(flatten)]
    pub(crate) given: Given,
    #[command(flatten)]
    pub(crate) rules: RuleFlags,
    /// Demand that the base ARN is found out from the node; without it, a found one is used all the same
    #[arg(long, env = "ROLEGATE_AUTO_DISCOVER_BASE_ARN", help_heading = ROLES)]
    pub(crate) auto_discover_base_arn: bool,
    #[command(flatten)]
    pub(crate) keys: AnnotationFlags,

    /// Interfaces that pods' packets come in by: a name, eni+ for all that start so, !eth0 for all but
    #[arg(long, value_name = "PATTERN", env = "ROLEGATE_HOST_INTERFACE", default_value = "docker0", help_heading = REDIRECT)]
    pub(crate) host_interface: String,
    /// Which pods share a session of a role
    #[arg(long, value_name = "SCOPE", env = "ROLEGATE_SESSION_SCOPE", default_value = "workload", help_heading = SESSIONS)]
    pub(crate) session_scope: SessionScopeFlag,
    /// Life asked of STS, 15m to 12h; more than 1h only for roles that allow it, and never from a node's role [default: 1h]
    #[arg(long, value_name = "TIME", env = "ROLEGATE_SESSION_DURATION", value_parser = duration, conflicts_with = "iam_role_session_ttl", help_heading = SESSIONS)]
    pub(crate) session_duration: Option<Duration>,
    /// kube2iam's way to say --session-duration: half of the life asked of STS
    #[arg(long, value_name = "TIME", env = "ROLEGATE_IAM_ROLE_SESSION_TTL", value_parser = duration, conflicts_with = "session_duration", help_heading = SESSIONS)]
    pub(crate) iam_role_session_ttl: Option<Duration>,
    /// Least time before STS is asked again for a role it refused; 30s at least
    #[arg(long, value_name = "TIME", env = "ROLEGATE_IAM_ROLE_ERROR_TTL", value_parser = duration, help_heading = SESSIONS)]
    pub(crate) iam_role_error_ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) sts: StsFlags,

    /// Port that pods are redirected to
    #[arg(long, value_name = "PORT", alias = "port", env = "ROLEGATE_APP_PORT", default_value = "8181", help_heading = DOOR)]
    pub(crate) app_port: u16,
    /// The node's real metadata service
    #[arg(long, value_name = "ADDRESS", env = "ROLEGATE_METADATA_ADDR", default_value = "169.254.169.254:80", help_heading = DOOR)]
    pub(crate) metadata_addr: String,
    /// Further metadata paths that pods may read: a regular expression on the path below the version, such as meta-data/ami-id; given in one place only, or the same in all
    #[arg(long, value_name = "REGEXP", env = "ROLEGATE_METADATA_ALLOW", help_heading = DOOR)]
    pub(crate) metadata_allow: Vec<String>,
    /// Whether metadata tokens (version 2) are demanded
    #[arg(long, value_name = "MODE", env = "ROLEGATE_IMDS_V2", default_value = "optional", help_heading = DOOR)]
    pub(crate) imds_v2: ImdsV2,
    /// How long a request waits for the watch or for STS; SDKs give up after a second
    #[arg(long, value_name = "TIME", env = "ROLEGATE_WAIT", default_value = "800ms", value_parser = duration, help_heading = DOOR)]
    pub(crate) wait: Duration,
    /// kube2iam's way to say --wait
    #[arg(long, value_name = "TIME", env = "ROLEGATE_BACKOFF_MAX_ELAPSED_TIME", value_parser = duration, conflicts_with = "wait", hide = true, help_heading = DOOR)]
    pub(crate) backoff_max_elapsed_time: Option<Duration>,
    /// Most connections of all pods; at the limit the longest idle one of the pod with the most is closed for a new one
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_CONNECTIONS", default_value = "2048", help_heading = DOOR)]
    pub(crate) max_connections: NonZeroUsize,
    /// Most connections of one pod; at the limit its longest idle one is closed for a new one
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_CONNECTIONS_PER_POD", default_value = "256", help_heading = DOOR)]
    pub(crate) max_connections_per_pod: u32,
    /// Most requests a second that one pod may have passed on to the node's metadata service
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_FORWARDS_PER_POD", default_value = "50", help_heading = DOOR)]
    pub(crate) max_forwards_per_pod: u32,
    /// The same for all pods together; each pod can have an equal share of them
    #[arg(long, value_name = "N", env = "ROLEGATE_MAX_FORWARDS", default_value = "200", help_heading = DOOR)]
    pub(crate) max_forwards: u32,

    /// Lead pods here with this program: auto, nftables, iptables, iptables-nft, iptables-legacy or none [default: none]
    #[arg(long, value_name = "BACKEND", env = "ROLEGATE_REDIRECT", help_heading = REDIRECT)]
    pub(crate) redirect: Option<String>,
    /// kube2iam's way to say --redirect=auto
    #[arg(long, env = "ROLEGATE_IPTABLES", help_heading = REDIRECT)]
    pub(crate) iptables: bool,
    /// This host's address, which pods are redirected to
    #[arg(long, alias = "host", value_name = "IP", env = "HOST_IP", help_heading = REDIRECT)]
    pub(crate) host_ip: Option<IpAddr>,
    /// This host's IPv6 address, if pods have one too; without it the IPv6 metadata address is closed
    #[arg(long, value_name = "IP", env = "HOST_IPV6", help_heading = REDIRECT)]
    pub(crate) host_ipv6: Option<Ipv6Addr>,
    /// Folder where the container runtime (libcni) records which pod it gave which address; on bridges nothing else tells pods apart. Empty: no records
    #[arg(long, value_name = "DIR", env = "ROLEGATE_CNI_RESULTS_DIR", default_value = CNI_RESULTS_DIR, value_parser = path, help_heading = REDIRECT)]
    pub(crate) cni_results_dir: PathBuf,
    /// What becomes of a pod's address on a bridge that the container runtime has not recorded
    #[arg(long, value_name = "CHOICE", env = "ROLEGATE_UNRECORDED_ADDRESSES", default_value = "refuse", help_heading = REDIRECT)]
    pub(crate) unrecorded_addresses: UnrecordedAddresses,
    /// How often the rules are looked at and put back
    #[arg(long, value_name = "TIME", env = "ROLEGATE_REDIRECT_INTERVAL", default_value = "5s", value_parser = duration, help_heading = REDIRECT)]
    pub(crate) redirect_interval: Duration,
    /// Take the rules away at the end; pods then reach the node's role
    #[arg(long, alias = "iptables-remove", env = "ROLEGATE_REDIRECT_REMOVE_AT_EXIT", help_heading = REDIRECT)]
    pub(crate) redirect_remove_at_exit: bool,
    /// Folder of pods' network namespaces: the redirect is tried from them now and again, and the runtime's records of pods on bridges are confirmed by them; empty: not tried, and confirmed by /run/netns
    #[arg(long, value_name = "DIR", env = "ROLEGATE_REDIRECT_CHECK_DIR", default_value = "/run/netns", value_parser = path, help_heading = REDIRECT)]
    pub(crate) redirect_check_dir: PathBuf,

    #[command(flatten)]
    pub(crate) kubernetes: KubernetesFlags,
    /// Name of this node; by default the Node that has this host's address
    #[arg(long, value_name = "NAME", env = "NODE_NAME", help_heading = KUBERNETES)]
    pub(crate) node: Option<String>,
    /// Have a broker decide and hold the sessions, at https://HOST:PORT: this agent then needs no rights, and flags about rules, sessions and STS have no effect
    #[arg(long, value_name = "URL", env = "ROLEGATE_BROKER", help_heading = BROKER,
        conflicts_with_all = ["api_server", "api_token", "api_token_file", "kubeconfig", "workloads"])]
    pub(crate) broker: Option<String>,
    /// Authorities (PEM) of the broker's certificate, read again for each connection
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_CA", default_value = "/run/secrets/rolegate-broker/ca.crt", help_heading = BROKER)]
    pub(crate) broker_ca: PathBuf,
    /// Token of this agent's service account for the broker, which the kubelet keeps new
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_TOKEN", default_value = "/run/secrets/rolegate-token/token", help_heading = BROKER)]
    pub(crate) broker_token: PathBuf,
    /// Client certificate (PEM) to show instead of a token; it names the node as the URI rolegate://node/NAME
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_CERT", requires = "broker_key", help_heading = BROKER)]
    pub(crate) broker_cert: Option<PathBuf>,
    /// Private key (PEM) of the client certificate
    #[arg(long, value_name = "FILE", env = "ROLEGATE_BROKER_KEY", requires = "broker_cert", help_heading = BROKER)]
    pub(crate) broker_key: Option<PathBuf>,

    /// Pods and namespaces from a YAML file instead of Kubernetes, read again when it changes
    #[arg(long, value_name = "FILE", env = "ROLEGATE_WORKLOADS", help_heading = KUBERNETES,
        conflicts_with_all = ["api_server", "api_token", "api_token_file", "kubeconfig"])]
    pub(crate) workloads: Option<PathBuf>,
    /// Stop serving when the cluster was not heard of for this long
    #[arg(long, value_name = "TIME", env = "ROLEGATE_MAX_PICTURE_AGE", default_value = "1h", value_parser = duration, help_heading = KUBERNETES)]
    pub(crate) max_picture_age: Duration,

    /// YAML file with flags
    #[arg(long, value_name = "FILE", env = "ROLEGATE_CONFIG", help_heading = PROCESS)]
    pub(crate) config: Option<PathBuf>,

    /// Port of metrics and health on all addresses; by default they are on 127.0.0.1:9090 only, since pods reach the host's other addresses
    #[arg(long, value_name = "PORT", env = "ROLEGATE_METRICS_PORT", conflicts_with = "metrics_address", help_heading = PROCESS)]
    pub(crate) metrics_port: Option<u16>,
    /// Address of metrics and health [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS", alias = "prometheus-listen-addr", env = "ROLEGATE_METRICS_ADDRESS", help_heading = PROCESS)]
    pub(crate) metrics_address: Option<SocketAddr>,
    /// Also show metrics under kube2iam's names
    #[arg(long, env = "ROLEGATE_KUBE2IAM_METRICS", help_heading = PROCESS)]
    pub(crate) kube2iam_metrics: bool,
    /// Serve /debug/* on the metrics port
    #[arg(long, env = "ROLEGATE_DEBUG", help_heading = PROCESS)]
    pub(crate) debug: bool,
    #[command(flatten)]
    pub(crate) log: LogFlags,
    /// Folder for handing over to the next agent and, where it is in memory, for the keys of metadata tokens; only root may enter it. Empty: neither
    #[arg(long, value_name = "DIR", env = "ROLEGATE_RUNTIME_DIR", default_value = "/run/rolegate", value_parser = path, help_heading = PROCESS)]
    pub(crate) runtime_dir: PathBuf,
    /// How long open requests may take at the end
    #[arg(long, value_name = "TIME", env = "ROLEGATE_DRAIN_TIME", default_value = "5s", value_parser = duration, help_heading = PROCESS)]
    pub(crate) drain_time: Duration,
    /// Threads that answer requests [default: as many as there are processors, 4 at most]
    #[arg(long, value_name = "N", env = "ROLEGATE_THREADS", help_heading = PROCESS)]
    threads: Option<NonZeroUsize>,

    /// Taken and not followed: it would give the node's role to every pod. Name a role with --default-role
    #[arg(long, env = "ROLEGATE_AUTO_DISCOVER_DEFAULT_ROLE", help_heading = NO_EFFECT)]
    pub(crate) auto_discover_default_role: bool,
    /// Nothing is polled
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = NO_EFFECT)]
    pub(crate) backoff_max_interval: Option<Duration>,
    /// Watches are followed without a resync
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = NO_EFFECT)]
    pub(crate) cache_resync_period: Option<Duration>,
    /// Pods are told apart by their UID, always
    #[arg(long, help_heading = NO_EFFECT)]
    pub(crate) resolve_duplicate_cache_ips: bool,
    #[command(flatten)]
    pub(crate) kiam: KiamAgentFlags,
}

impl AgentFlags {
    /// Threads that answer requests.
    pub(crate) fn worker_threads(&self) -> usize {
        let most = NonZeroUsize::MIN.saturating_add(3);
        let found = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.threads.unwrap_or_else(|| found().min(most)).get()
    }
}
