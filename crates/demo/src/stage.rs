//! The demo's node: stand-ins for AWS and Kubernetes, and the real agent between them and the pods.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, bail};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use futures::future::BoxFuture;
use rolegate_agent::app::{Agent, AgentOptions, Mode};
use rolegate_aws::sts;
use rolegate_devkit::{Imds, ImdsOptions, KubeApi, KubeApiOptions, Sts, StsOptions};
use rolegate_redirect::rules::METADATA_V4;
use rolegate_runtime::supervisor::Ended;
use serde_json::Value;
use tokio::runtime::Handle;

use super::ask::{Ask, Reply, host};
use super::netns;
use super::network::{AGENT_PORT, Network, Node};
use super::pods::{self, Pod};
use super::processes::{ANY_PORT, DRAIN, READY};
use super::stolen::{self, StandIns, Stolen};
use super::webhook::{self, Webhook};

/// The settings of the agent that the demo determines.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// The URL of the Kubernetes stand-in, which needs no token.
    pub api_server: String,
    /// The node's name.
    pub node: &'static str,
    /// The address of the metadata stand-in.
    pub metadata: SocketAddr,
    /// The address of health and metrics.
    pub admin: SocketAddr,
    /// The redirect; without one the agent listens on any port.
    pub redirect: Option<RedirectSettings>,
}

/// The settings of the agent's redirect.
#[derive(Debug, Clone, Copy)]
pub struct RedirectSettings {
    /// The agent's port.
    pub port: u16,
    /// The node's address.
    pub host_ip: Ipv4Addr,
    /// The interfaces of pods.
    pub host_interface: &'static str,
}

/// Makes the options of a standalone agent with these settings.
pub type MakeOptions =
    Box<dyn FnOnce(AgentSettings) -> BoxFuture<'static, anyhow::Result<AgentOptions>> + Send>;

/// All running parts.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    handle: &'a Handle,
    /// The pods' route to the agent.
    pub(super) network: &'a Network,
    /// AWS STS.
    pub(super) sts: Sts,
    /// Kubernetes.
    pub(super) kube: KubeApi,
    imds: Imds,
    agent: Option<Agent>,
    webhook: Option<Webhook>,
}

impl<'a> Stage<'a> {
    /// Starts the stand-ins.
    ///
    /// # Errors
    /// Returns an error if an address is not available.
    pub(super) async fn open(node: &'a Node) -> anyhow::Result<Self> {
        let metadata = node.network.metadata();
        let started = node.runtime.spawn(async move {
            let options = ImdsOptions {
                node_role: Some(pods::NODE_ROLE.into()),
                ..ImdsOptions::default()
            };
            let imds = Imds::start(metadata, options).await?;
            let options = StsOptions {
                keys: Some(HashMap::from([imds.node_key()])),
                ..StsOptions::default()
            };
            let sts = Sts::start(ANY_PORT, options).await?;
            let kube = KubeApi::start(ANY_PORT, KubeApiOptions::default()).await?;
            std::io::Result::Ok((imds, sts, kube))
        });
        let (imds, sts, kube) = started.await?.context("cannot start a stand-in")?;
        let stage = Self {
            handle: node.runtime.handle(),
            network: &node.network,
            sts,
            kube,
            imds,
            agent: None,
            webhook: None,
        };
        for (path, object) in pods::rules() {
            stage.kube.put(path, object);
        }
        stage.kube.enable("apps/v1/deployments", "Deployment", true);
        stage
            .kube
            .put_namespace(pods::namespace("shop", pods::SHOP_ALLOWS));
        stage.kube.put_namespace(pods::namespace("web", "[]"));
        stage
            .kube
            .put_namespace(pods::namespace("tools", r#"["*"]"#));
        for pod in [
            &pods::CHECKOUT,
            &pods::RETURNS,
            &pods::FRONTEND,
            &pods::SHELL,
        ] {
            stage.put_pod(pod);
        }
        Ok(stage)
    }

    /// Creates a pod in Kubernetes.
    pub(super) fn put_pod(&self, pod: &Pod) {
        self.kube.put_pod(pod.object(self.network.address(pod)));
    }

    /// Starts the agent with its own flags, except those that the demo sets.
    ///
    /// # Errors
    /// Returns an error if it does not start or become ready.
    pub(super) async fn start_agent(&mut self, make: MakeOptions) -> anyhow::Result<()> {
        let loopback = matches!(self.network, Network::Loopback);
        let settings = AgentSettings {
            api_server: self.kube.url(),
            node: pods::NODE,
            metadata: self.imds.addr(),
            admin: ANY_PORT,
            // On loopback, this machine's own rules stay unchanged.
            redirect: (!loopback).then_some(RedirectSettings {
                port: AGENT_PORT,
                host_ip: netns::NODE_ADDRESS,
                host_interface: netns::POD_INTERFACES,
            }),
        };
        let to_sts = self.to_sts();
        let started = self.handle.spawn(async move {
            let mut options = make(settings).await?;
            options.runtime_dir = None;
            let Mode::Standalone(alone) = &mut options.mode else {
                bail!("the demo's agent is standalone");
            };
            alone.sts = sts::StsOptions {
                chain: std::mem::take(&mut alone.sts.chain),
                ..to_sts
            };
            if loopback {
                options.listen = ANY_PORT;
            }
            if let Some(redirect) = &mut options.redirect {
                // The machine may have other namespaces than the demo's.
                redirect.check_dir = None;
            }
            anyhow::Ok(Agent::start(options).await?)
        });
        let agent = self.agent.insert(started.await??);
        if tokio::time::timeout(READY, agent.readiness().ready())
            .await
            .is_err()
        {
            let report = agent.readiness().report().to_text(false);
            bail!(
                "the agent is not ready after {READY:?}: {}",
                report.trim_end()
            );
        }
        Ok(())
    }

    /// Returns the options of the STS stand-in, with the credentials of the node's role.
    fn to_sts(&self) -> sts::StsOptions {
        let (id, key) = self.imds.node_key();
        let credentials =
            Credentials::new(id, key.secret_access_key, key.session_token, None, "demo");
        sts::StsOptions {
            region: Some("eu-west-1".into()),
            endpoint_url: Some(self.sts.url()),
            credentials: Some(SharedCredentialsProvider::new(credentials)),
            ..sts::StsOptions::default()
        }
    }

    /// Simulates the theft of this node in a cluster with a broker, see [`stolen`].
    ///
    /// # Errors
    /// Returns an error if the broker does not start, or responds unexpectedly.
    pub(super) async fn steal(&self) -> anyhow::Result<Stolen> {
        self.kube.put_pod(pods::elsewhere());
        let stand_ins = StandIns {
            kube: self.kube.url(),
            metadata: self.imds.addr().to_string(),
            sts: self.to_sts(),
        };
        self.handle.spawn(stolen::steal(stand_ins)).await?
    }

    /// Starts the admission webhook and registers it with Kubernetes.
    ///
    /// # Errors
    /// Returns an error if it does not start or become ready.
    pub(super) async fn start_webhook(&mut self) -> anyhow::Result<()> {
        let opened = self.handle.spawn(Webhook::open(self.kube.url()));
        let (webhook, registration) = opened.await??;
        self.kube.put(webhook::WEBHOOKS, registration);
        self.webhook = Some(webhook);
        Ok(())
    }

    /// Returns the output of `kubectl create` for an object, and whether it was created.
    ///
    /// # Errors
    /// Returns an error if the API server does not respond.
    pub(super) async fn create(&self, object: Value) -> anyhow::Result<(bool, String)> {
        let address = self.kube.addr();
        self.handle.spawn(webhook::create(address, object)).await?
    }

    /// Returns the address at which pods' metadata requests arrive.
    fn door(&self) -> SocketAddr {
        match (self.network, &self.agent) {
            (Network::Namespaces(_), _) => (METADATA_V4, 80).into(),
            (Network::Loopback, Some(agent)) => agent.addresses().pods,
            (Network::Loopback, None) => self.imds.addr(),
        }
    }

    /// Returns the URL of the agent's health and metrics.
    pub(super) fn admin(&self) -> Option<String> {
        let agent = self.agent.as_ref()?;
        Some(format!("http://{}", host(agent.addresses().admin)))
    }

    /// Sends a request as a pod.
    pub(super) async fn ask(&self, pod: &Pod, ask: &Ask) -> Reply {
        ask.send(self.network.socket(pod), self.door()).await
    }

    /// Returns the command that sends the request from inside the pod.
    pub(super) fn typed(&self, pod: &Pod, ask: &Ask) -> String {
        self.network.curl(pod) + &ask.curl(self.door())
    }

    /// Returns the command that sends the request from this machine.
    pub(super) fn command(&self, pod: &Pod, ask: &Ask) -> String {
        self.network.pod_prefix(pod) + &self.typed(pod, ask)
    }

    /// Waits until the agent exits by itself.
    pub(super) async fn ended(&mut self) -> Ended {
        match &mut self.agent {
            Some(agent) => agent.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Stops everything gracefully.
    pub(super) async fn close(mut self) {
        if let Some(webhook) = self.webhook.take() {
            let _ = self.handle.spawn(webhook.close()).await;
        }
        if let Some(agent) = self.agent.take() {
            // This runs on the node, as the agent does.
            let _ = self.handle.spawn(agent.stop(DRAIN)).await;
        }
    }
}
