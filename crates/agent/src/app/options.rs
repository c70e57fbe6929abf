//! What an agent is started with, validated.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rolegate_aws::sts::StsOptions;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::engine::EngineOptions;
use rolegate_core::redirect::Spec;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_runtime::clock::Clock;

use crate::attachment::AttachmentOptions;
use crate::broker::BrokerOptions;
use crate::door::DoorOptions;
use crate::redirect::Backend;

/// Everything that shapes an agent.
#[derive(Debug)]
pub struct AgentOptions {
    /// The pods' port.
    pub listen: SocketAddr,
    /// The operators' port.
    pub admin_listen: SocketAddr,
    /// Folder for handing over; `None`: no handing over.
    pub runtime_dir: Option<PathBuf>,
    /// This host's address.
    pub host_ip: Option<IpAddr>,
    /// Whether `/debug/*` is served.
    pub debug: bool,
    /// Whether metrics are also shown under kube2iam's names.
    pub kube2iam_metrics: bool,
    /// Who decides and holds the sessions.
    pub mind: MindOptions,
    /// The node's metadata service.
    pub metadata_addr: String,
    /// How the door behaves.
    pub door: DoorOptions,
    /// How pods are led here; `None`: somebody else does.
    pub redirect: Option<RedirectOptions>,
    /// The time.
    pub clock: Clock,
}

/// Who decides what pods may have, and holds the sessions.
#[derive(Debug)]
pub enum MindOptions {
    /// The agent, with rights in Kubernetes and AWS.
    Alone(Box<AloneOptions>),
    /// A broker: the agent has no rights.
    Brokered(BrokerOptions),
}

/// What an agent needs that decides by itself.
#[derive(Debug)]
pub struct AloneOptions {
    /// Where workloads come from.
    pub source: SourceOptions,
    /// The annotations' keys.
    pub annotations: AnnotationKeys,
    /// How STS is reached.
    pub sts: StsOptions,
    /// Whether decisions wait until a base ARN is found, or given.
    pub base_required: bool,
    /// The rules as far as flags fix them: they count where the cluster has no configuration.
    pub rules: RuleConfig,
    /// The flags and variables about rules that were given, by name.
    pub given: GivenRuleFlags,
    /// Whether the cluster's configuration is demanded.
    pub cluster_config: ConfigUse,
    /// Which workloads share a session.
    pub scope: SessionScope,
    /// The life asked of STS, seconds.
    pub session_seconds: u32,
    /// Limits of the session engine.
    pub engine: EngineOptions,
}

/// Where workloads come from.
#[derive(Debug)]
pub enum SourceOptions {
    /// The API server.
    Kubernetes {
        /// How it is reached.
        client: ClientOptions,
        /// This node's name; `None`: found by the host's address.
        node: Option<String>,
    },
    /// A YAML file.
    File(PathBuf),
}

/// How pods are led to the agent.
#[derive(Debug)]
pub struct RedirectOptions {
    /// With which program.
    pub backend: Backend,
    /// The rules.
    pub spec: Spec,
    /// How often they are looked at.
    pub interval: Duration,
    /// Whether they are taken away at the end.
    pub remove_at_exit: bool,
    /// Settings for locating pods' addresses.
    pub attachments: AttachmentOptions,
    /// Folder of pods' network namespaces, from which the redirect is tried.
    pub check_dir: Option<PathBuf>,
}
