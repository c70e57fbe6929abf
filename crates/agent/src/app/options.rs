//! The agent's validated options.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rolegate_authorizer::options::DecisionOptions;
use rolegate_aws::sts::StsOptions;
use rolegate_kube::client::ClientOptions;
use rolegate_redirect::rules::Spec;
use rolegate_runtime::clock::Clock;

use super::Addresses;
use crate::attachment::AttachmentOptions;
use crate::broker::BrokerOptions;
use crate::container_credentials::{ContainerCredentialsOptions, MAX_ADDRESSES};
use crate::metadata::MetadataOptions;
use rolegate_redirect::Backend;

/// The options of an agent.
#[derive(Debug)]
pub struct AgentOptions {
    /// The pods' port.
    pub listen: SocketAddr,
    /// The operators' port.
    pub admin_listen: SocketAddr,
    /// Directory of the handover socket; `None` disables the handover.
    pub runtime_dir: Option<PathBuf>,
    /// This host's address.
    pub host_ip: Option<IpAddr>,
    /// True if `/debug/*` is served.
    pub debug: bool,
    /// True to export metrics under kube2iam's names too.
    pub kube2iam_metrics: bool,
    /// The source of decisions and sessions.
    pub mode: Mode,
    /// The node's metadata service.
    pub metadata_addr: String,
    /// The options of the metadata server.
    pub metadata: MetadataOptions,
    /// The container credentials endpoint, if it is enabled. It requires a standalone agent with an
    /// API server, whose keys verify tokens.
    pub container_credentials: Option<ContainerCredentialsOptions>,
    /// Maximum time that a request for credentials waits for the watch or for STS.
    pub wait: Duration,
    /// Maximum staleness of the pod table. Without a newer update no credentials are served.
    pub max_staleness: Duration,
    /// The redirect of pods; `None` if another program manages it.
    pub redirect: Option<RedirectOptions>,
    /// The clock.
    pub clock: Clock,
}

/// The source of decisions and sessions.
#[derive(Debug)]
pub enum Mode {
    /// Standalone: the agent has permissions in Kubernetes and AWS.
    Standalone(Box<StandaloneOptions>),
    /// Brokered: the agent has no permissions.
    Brokered(BrokerOptions),
}

/// The options of a standalone agent.
#[derive(Debug)]
pub struct StandaloneOptions {
    /// The source of workloads.
    pub source: SourceOptions,
    /// The options of decisions.
    pub decisions: DecisionOptions,
    /// The options of the STS client.
    pub sts: StsOptions,
}

/// The source of workloads.
#[derive(Debug)]
pub enum SourceOptions {
    /// The API server.
    Kubernetes {
        /// The options of the client.
        client: ClientOptions,
        /// The node's name; `None`: found by the host's address.
        node: Option<String>,
    },
    /// A YAML file.
    File(PathBuf),
}

/// The options of the redirect.
#[derive(Debug)]
pub struct RedirectOptions {
    /// The backend.
    pub backend: Backend,
    /// The rules.
    pub spec: Spec,
    /// The interval of checks.
    pub interval: Duration,
    /// True to remove the rules at exit.
    pub remove_at_exit: bool,
    /// The options for the attachment of pods' addresses.
    pub attachments: AttachmentOptions,
    /// Directory of pods' network namespaces, from which the redirect is tested.
    pub check_dir: Option<PathBuf>,
}

impl AgentOptions {
    /// Returns the addresses to listen on.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            pods: self.listen,
            admin: self.admin_listen,
            container_credentials: [None; MAX_ADDRESSES],
        }
    }
}
