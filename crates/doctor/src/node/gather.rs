//! Reads the facts about a node. Nothing is changed.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http::header::{ACCEPT, HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_redirect::check::{pod_namespaces, probe};
use rolegate_redirect::rules::METADATA_V4;
use rolegate_redirect::{
    Backend, Detector, RedirectError, foreign_rules, ingress_interfaces, routing_state,
};
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::NodeOptions;
use super::facts::{AgentAnswer, InstanceIdentity, NodeFacts, PodNetwork};
use crate::reading::{Reading, Unread};
use crate::readyz::ReadyReport;

/// Number of pods that are tested at a time.
const CONCURRENCY: usize = 8;
/// Maximum number of pods that are tested.
const MAX_PODS: usize = 256;
/// Maximum size of the agent's `/readyz`, in bytes.
const MAX_READYZ_BYTES: usize = 256 * 1024;
/// Environment variables that take precedence over the role of the node.
const CREDENTIAL_VARIABLES: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_PROFILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
];

/// The time at which the examination ends.
struct Deadline<'a> {
    at: tokio::time::Instant,
    options: &'a NodeOptions,
}

impl Deadline<'_> {
    /// Runs a read until the timeout of requests, or the deadline.
    async fn read<T>(&self, what: &str, work: impl Future<Output = Reading<T>>) -> Reading<T> {
        let request = tokio::time::Instant::now() + self.options.limits.request;
        let read = timeout_at(self.at.min(request), work).await;
        read.unwrap_or_else(|_| Err(Unread::TimedOut(what.to_owned())))
    }
}

/// Reads everything.
pub(super) async fn gather(options: &NodeOptions) -> NodeFacts {
    let deadline = Deadline {
        at: (Instant::now() + options.limits.total).into(),
        options,
    };
    let detector = Detector {
        conf_dir: options.cni_conf_dir.clone(),
        netns_dir: options.netns_dir.clone(),
    };
    let detected = async {
        detector.detect().await.map_err(|error| Unread::Failed {
            what: "the interfaces of pods".into(),
            why: error.to_string(),
        })
    };
    let routing = async {
        routing_state()
            .await
            .map_err(|error| unread("routing rules", &error))
    };
    let foreign = async { Ok(foreign_rules().await) };
    let (agent, rules, routing, detected, pods, foreign, instance) = tokio::join!(
        deadline.read("the agent", agent(options)),
        deadline.read("the kernel's rules", rules()),
        deadline.read("routing rules", routing),
        deadline.read("the interfaces of pods", detected),
        pods(&deadline),
        deadline.read("rules of other programs", foreign),
        deadline.read("the metadata service", instance(&options.metadata_address)),
    );
    let (pods, more_pods) = match pods {
        Ok((pods, more)) => (Ok(pods), more),
        Err(unread) => (Err(unread), 0),
    };
    let (foreign, foreign_failed) = match foreign {
        Ok(found) => {
            let failed = found.failed.iter().map(ToString::to_string);
            (found.rules, failed.collect())
        }
        Err(unread) => (Vec::new(), vec![unread.to_string()]),
    };
    let names = CREDENTIAL_VARIABLES.into_iter();
    NodeFacts {
        host: host(),
        metrics_address: options.metrics_address,
        agent,
        rules,
        routing,
        detected,
        pods,
        more_pods,
        foreign,
        foreign_failed,
        is_metadata_local: UdpSocket::bind((METADATA_V4, 0)).is_ok(),
        instance,
        credential_variables: names
            .filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
            .map(str::to_owned)
            .collect(),
        cni_results: entries(&options.cni_results_dir),
        cni_results_dir: options.cni_results_dir.clone(),
    }
}

fn host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn entries(dir: &Path) -> Result<usize, String> {
    let entries = std::fs::read_dir(dir).map_err(|error| error.to_string())?;
    Ok(entries.filter_map(Result::ok).count())
}

fn unread(what: &str, error: &RedirectError) -> Unread {
    Unread::OutOfReach {
        why: format!("cannot read {what}: {error}"),
        instead:
            "run it as root on the node: `rolegate doctor node --help` shows how with kubectl debug"
                .into(),
    }
}

/// Requests `/readyz` of the agent.
async fn agent(options: &NodeOptions) -> Reading<AgentAnswer> {
    let address = options.metrics_address;
    let failed = |why: String| Unread::Failed {
        what: format!("http://{address}/readyz"),
        why,
    };
    let stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => return Ok(AgentAnswer::Nothing(error.to_string())),
    };
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| failed(error.to_string()))?;
    let request = Request::get("/readyz")
        .header(HOST, address.to_string())
        .header(ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    // A task, since the connection may close as soon as the response is read.
    let connection = tokio::spawn(connection);
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        let body = Limited::new(response.into_body(), MAX_READYZ_BYTES);
        ReadyReport::parse(&body.collect().await.ok()?.to_bytes())
    };
    let report = exchange.await;
    connection.abort();
    Ok(report.map_or(AgentAnswer::Other, AgentAnswer::Report))
}

/// Returns rolegate's rules of all backends. Each listing appears once: `iptables` is usually an
/// alias of another backend.
async fn rules() -> Reading<Vec<(String, String)>> {
    let mut listings: Vec<(String, String)> = Vec::new();
    let mut missing = 0;
    for backend in Backend::ALL {
        let rules = match backend.show().await {
            Ok(rules) => rules,
            Err(RedirectError::Missing { .. }) => {
                missing += 1;
                None
            }
            Err(error) => return Err(unread("the kernel's rules", &error)),
        };
        let Some(rules) = rules else { continue };
        let same = listings
            .iter_mut()
            .find(|(_, other)| lines(other).eq(lines(&rules)));
        match same {
            Some((names, _)) => names.push_str(&format!(", {backend}")),
            None => listings.push((backend.to_string(), rules)),
        }
    }
    if missing == Backend::ALL.len() {
        return Err(Unread::OutOfReach {
            why: "neither nft nor iptables is installed here".into(),
            instead:
                "use the image with tools: `rolegate doctor node --help` shows how with kubectl debug"
                    .into(),
        });
    }
    Ok(listings)
}

/// Returns the rules of a listing. Its other lines name the program.
fn lines(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter(|line| !line.starts_with('#'))
}

/// Tests the pods of this node, and returns the number of those that were left out.
async fn pods(deadline: &Deadline<'_>) -> Reading<(Vec<PodNetwork>, usize)> {
    let dir = &deadline.options.netns_dir;
    let all = pod_namespaces(dir).map_err(|error| Unread::Failed {
        what: "the network namespaces of pods".into(),
        why: error.to_string(),
    })?;
    let more = all.len().saturating_sub(MAX_PODS);
    let tested = all.into_iter().take(MAX_PODS).map(|path| async move {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let interfaces = async {
            let found = ingress_interfaces(&path).await;
            found.map_err(|error| unread("the interfaces of a pod", &error))
        };
        let probed = async {
            let result = probe(Some(&path)).await;
            result.map_err(|error| Unread::Failed {
                what: format!("the metadata address from {name}"),
                why: error.to_string(),
            })
        };
        let (interfaces, probe) = tokio::join!(
            deadline.read("the interfaces of a pod", interfaces),
            deadline.read("the metadata address from a pod", probed),
        );
        PodNetwork {
            interfaces,
            probe,
            name: name.clone(),
        }
    });
    let tested = futures::stream::iter(tested).buffered(CONCURRENCY);
    Ok((tested.collect().await, more))
}

/// Requests the instance's ID and role from the metadata service.
async fn instance(address: &str) -> Reading<InstanceIdentity> {
    let failed = |error: &ImdsError| Unread::Failed {
        what: format!("the metadata service at {address}"),
        why: rolegate_kube::chain(error),
    };
    let imds = Imds::new(address).map_err(|error| failed(&error))?;
    let id = imds.get_text("/latest/meta-data/instance-id").await;
    let id = id.map_err(|error| failed(&error))?;
    let role = match imds
        .get_text("/latest/meta-data/iam/security-credentials/")
        .await
    {
        Ok(role) => Some(role.lines().next().unwrap_or_default().trim().to_owned()),
        Err(ImdsError::Status(http::StatusCode::NOT_FOUND)) => None,
        Err(error) => return Err(failed(&error)),
    };
    Ok(InstanceIdentity {
        id: id.trim().to_owned(),
        role: role.filter(|role| !role.is_empty()),
    })
}
