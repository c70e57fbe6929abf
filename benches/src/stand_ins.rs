//! The stand-ins for AWS and Kubernetes in their own process, so that the agent's resource usage is
//! its own.

use std::collections::HashSet;
use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rolegate_devkit::{
    Imds, ImdsOptions, KubeApi, KubeApiOptions, Namespace, Node, Pod, Sts, StsOptions,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::child::{Helper, write_line};

/// Latency of each call to STS.
pub(crate) const STS_LATENCY: Duration = Duration::from_millis(50);
/// The base ARN of the pods' bare role names.
pub(crate) const BASE_ROLE_ARN: &str = "arn:aws:iam::123456789012:role/";
pub(crate) const REGION: &str = "us-east-1";
/// The role of the node, which no pod may have.
pub(crate) const NODE_ROLE: &str = "node";
/// The measured node.
pub(crate) const NODE: &str = "node-0";

/// Returns the address of a pod by its number, from which its connections come.
pub(crate) fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + pod)
}

/// The roles in the pods' annotations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Roles {
    /// Each pod has its own: [`role`] by its number.
    OneEach,
    /// All pods have this one and one service account.
    Same(String),
    /// Each pod has one of this many, and a service account with the same name.
    Among(u32),
}

/// Returns the name of a pod's own role.
pub(crate) fn role(pod: u32) -> String {
    format!("role-{pod}")
}

/// Returns the name of the role in a pod's annotation.
pub(crate) fn role_of(pod: u32, roles: &Roles) -> String {
    match roles {
        Roles::OneEach => role(pod),
        Roles::Same(role) => role.clone(),
        Roles::Among(count) => role(pod % count),
    }
}

/// An order to the process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Creates pods with these numbers. Their namespace must exist.
    Pods {
        namespace: String,
        node: String,
        first: u32,
        count: u32,
        roles: Roles,
    },
    /// Creates pods with these numbers, number `n` on `node-` and `n % nodes`.
    Spread {
        namespace: String,
        nodes: u32,
        first: u32,
        count: u32,
        roles: Roles,
    },
    /// Deletes pods with these numbers.
    Gone {
        namespace: String,
        first: u32,
        count: u32,
    },
    /// Creates a namespace.
    Namespace(String),
    /// Creates or replaces objects of a resource, such as `v1/configmaps`.
    Put {
        resource: String,
        objects: Vec<Value>,
    },
    /// Deletes a cluster-scoped object.
    Delete { resource: String, name: String },
    /// Makes the role's trust policy deny all callers.
    Refuse(String),
    /// Only reports.
    Report,
}

/// The response to each order.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The number of calls of `AssumeRole` so far.
    pub(crate) calls: usize,
    /// The number of calls of all kinds so far. [`Report::calls`] counts only the last thousands.
    pub(crate) total: u64,
    /// The number of calls in flight.
    pub(crate) in_flight: usize,
    /// The number of different roles requested so far.
    pub(crate) roles: usize,
}

/// The addresses of the stand-ins.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) api: SocketAddr,
    pub(crate) sts: SocketAddr,
    pub(crate) imds: SocketAddr,
}

/// The running process.
#[derive(Debug)]
pub(crate) struct StandIns {
    helper: Helper,
    pub(crate) addresses: Addresses,
}

impl StandIns {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut helper = Helper::start(&["stand-ins"])?;
        let addresses = helper.hear()?;
        Ok(Self { helper, addresses })
    }

    /// Sends an order and waits until it has been executed.
    pub(crate) fn order(&mut self, order: &Order) -> anyhow::Result<Report> {
        self.helper.ask(order)
    }

    /// Sends an order. [`done`](Self::done) waits for it.
    pub(crate) fn begin(&mut self, order: &Order) -> anyhow::Result<()> {
        self.helper.tell(order)
    }

    pub(crate) fn done(&mut self) -> anyhow::Result<Report> {
        self.helper.hear()
    }

    /// Returns STS's statistics so far.
    pub(crate) fn report(&mut self) -> anyhow::Result<Report> {
        self.order(&Order::Report)
    }
}

/// Serves until standard input is closed.
pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let (api, sts, imds) = runtime.block_on(start())?;
    let addresses = Addresses {
        api: api.addr(),
        sts: sts.addr(),
        imds: imds.addr(),
    };
    let mut output = std::io::stdout();
    write_line(&mut output, &addresses)?;
    for line in std::io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Order::Pods {
                namespace,
                node,
                first,
                count,
                roles,
            } => {
                for number in first..first + count {
                    api.put_pod(pod(&namespace, &node, number, &roles));
                }
            }
            Order::Spread {
                namespace,
                nodes,
                first,
                count,
                roles,
            } => {
                for number in first..first + count {
                    let node = format!("node-{}", number % nodes);
                    api.put_pod(pod(&namespace, &node, number, &roles));
                }
            }
            Order::Gone {
                namespace,
                first,
                count,
            } => {
                for number in first..first + count {
                    api.delete_pod(&namespace, &format!("pod-{number}"));
                }
            }
            Order::Namespace(name) => drop(api.put_namespace(Namespace::new(&name))),
            Order::Put { resource, objects } => {
                for object in objects {
                    api.put(&resource, object);
                }
            }
            Order::Delete { resource, name } => {
                api.delete(&resource, None, &name);
            }
            Order::Refuse(role) => sts.deny_role(&format!("{BASE_ROLE_ARN}{role}")),
            Order::Report => {}
        }
        write_line(&mut output, &report(&sts))?;
    }
    Ok(())
}

async fn start() -> std::io::Result<(KubeApi, Sts, Imds)> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let api = KubeApi::start(any, KubeApiOptions::default()).await?;
    let node = Node::new(NODE).address("InternalIP", "127.0.0.1");
    api.put_node(node);
    let sts = StsOptions {
        latency: STS_LATENCY,
        ..StsOptions::default()
    };
    let imds = ImdsOptions {
        node_role: Some(NODE_ROLE.into()),
        region: REGION.into(),
        ..ImdsOptions::default()
    };
    Ok((
        api,
        Sts::start(any, sts).await?,
        Imds::start(any, imds).await?,
    ))
}

fn pod(namespace: &str, node: &str, number: u32, roles: &Roles) -> Pod {
    let name = format!("pod-{number}");
    let role = role_of(number, roles);
    let account = match roles {
        Roles::OneEach => name.clone(),
        Roles::Same(_) => "default".to_owned(),
        Roles::Among(_) => role.clone(),
    };
    Pod::new(namespace, &name)
        .node(node)
        .ip(&address(number).to_string())
        .service_account(&account)
        .annotation("iam.amazonaws.com/role", &role)
}

fn report(sts: &Sts) -> Report {
    let calls = sts.calls();
    let assumed = || calls.iter().filter(|call| call.action == "AssumeRole");
    Report {
        calls: assumed().count(),
        total: sts.count(),
        in_flight: sts.in_flight(),
        roles: assumed()
            .map(|call| call.role_arn.as_str())
            .collect::<HashSet<_>>()
            .len(),
    }
}
