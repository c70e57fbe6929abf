//! An agent of the real binary on loopback: pods have addresses of 127.0.0.0/8, and the
//! surroundings are stand-ins. Used for tests with hundreds of connections, and with agents that
//! start and stop.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rolegate_devkit::{
    Imds, ImdsOptions, KubeApi, KubeApiOptions, Namespace, Pod, Sts, StsOptions,
};
use rolegate_testkit::Rolegate;
use rustix::net::{AddressFamily, SocketType};

use crate::fixture::DEADLINE;

const NODE: &str = "node-a";
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const ROLE: &str = "/latest/meta-data/iam/security-credentials/reader";
/// Timeout of a response on a busy machine.
const ANSWER: Duration = Duration::from_secs(20);

/// The surroundings of an agent, and the directory that outlives it.
pub(crate) struct Surroundings {
    pub(crate) imds: Imds,
    pub(crate) kube: KubeApi,
    sts: Sts,
    pub(crate) runtime: tempfile::TempDir,
}

/// An agent, and its addresses.
pub(crate) struct Agent {
    pub(crate) process: Rolegate,
    pods: u16,
    admin: u16,
}

impl Surroundings {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let imds = Imds::start(ANY, ImdsOptions::default()).await?;
        let sts = StsOptions {
            keys: Some([imds.node_key()].into()),
            ..StsOptions::default()
        };
        let kube = KubeApi::start(ANY, KubeApiOptions::default()).await?;
        kube.put_namespace(Namespace::new("default"));
        Ok(Self {
            imds,
            kube,
            sts: Sts::start(ANY, sts).await?,
            // In memory on every Linux, as /run is on a node.
            runtime: tempfile::tempdir_in("/dev/shm")?,
        })
    }

    /// Creates a pod with these addresses.
    pub(crate) fn pod(&self, name: &str, addresses: &[Ipv4Addr]) {
        let addresses: Vec<_> = addresses.iter().map(Ipv4Addr::to_string).collect();
        let pod = Pod::new("default", name)
            .node(NODE)
            .ips(addresses.iter().map(String::as_str))
            .annotation("iam.amazonaws.com/role", "reader");
        self.kube.put_pod(pod);
    }

    /// Starts an agent, whose soft limit of open files is `files`.
    pub(crate) async fn agent(&self, files: u32, flags: &[&str]) -> anyhow::Result<Agent> {
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile={files}:8192"))
            .arg(Rolegate::path()?)
            .args(["agent", "--app-port=0", "--metrics-address=127.0.0.1:0"])
            .arg(format!("--node={NODE}"))
            .arg(format!("--api-server={}", self.kube.url()))
            .arg(format!("--metadata-addr={}", self.imds.addr()))
            .arg(format!("--runtime-dir={}", self.runtime.path().display()))
            .args(flags)
            .env("AWS_ENDPOINT_URL", self.sts.url())
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.imds.url())
            .env("AWS_REGION", "eu-west-1");
        let mut process = Rolegate::spawn_command(&command)?;
        let line = process.wait_for_line("pods=", DEADLINE).await?;
        let port = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            let address = rest.split_whitespace().next()?;
            address.rsplit_once(':')?.1.parse().ok()
        };
        let (pods, admin) = port("pods=").zip(port("admin=")).context("no ports")?;
        Ok(Agent {
            process,
            pods,
            admin,
        })
    }
}

impl Agent {
    /// Opens a connection of a pod.
    pub(crate) fn connect(&self, from: Ipv4Addr) -> anyhow::Result<Client> {
        connect(from, self.pods)
    }

    /// Returns the address of pods' requests, for other threads.
    pub(crate) fn port(&self) -> u16 {
        self.pods
    }

    /// Sends a request to the operators' port.
    pub(crate) fn admin(&self, path: &str) -> anyhow::Result<Answer> {
        connect(Ipv4Addr::LOCALHOST, self.admin)?.request("GET", path, &[])
    }

    /// Waits until the agent is ready and serves a pod.
    pub(crate) async fn serves(&mut self, from: Ipv4Addr) -> anyhow::Result<()> {
        let (pods, admin) = (self.pods, self.admin);
        self.process
            .until(DEADLINE, async || {
                let ready = connect(Ipv4Addr::LOCALHOST, admin)?.request("GET", "/readyz", &[])?;
                ensure!(ready.status == 200, "{ready:?}");
                let answer = connect(from, pods)?.credentials()?;
                ensure!(answer.status == 200, "{answer:?}");
                Ok(())
            })
            .await
    }

    /// Returns the value of a metric with these labels.
    pub(crate) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.admin("/metrics")?.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.context("no such metric")?.trim().parse()?)
    }

    /// Returns the memory of the agent, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<f64> {
        self.metric("process_resident_memory_bytes ")
    }
}

/// An open connection.
pub(crate) struct Client(TcpStream);

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) closes: bool,
    pub(crate) body: String,
}

/// Connects from a loopback address.
pub(crate) fn connect(from: Ipv4Addr, port: u16) -> anyhow::Result<Client> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::from((from, 0)))?;
    rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(Client(stream))
}

impl Client {
    /// Requests the credentials of the pod's role.
    pub(crate) fn credentials(&mut self) -> anyhow::Result<Answer> {
        self.request("GET", ROLE, &[])
    }

    /// Sends a request and reads the response; fails if the connection is closed before.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.0.write_all(format!("{head}\r\n").as_bytes())?;
        let mut bytes = Vec::new();
        loop {
            let mut more = [0; 8192];
            let count = self.0.read(&mut more)?;
            ensure!(count > 0, "it was closed without an answer");
            bytes.extend_from_slice(&more[..count]);
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let head = head.to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.context("no length")?.parse()? {
                let status = head.split(' ').nth(1).context("no status")?;
                return Ok(Answer {
                    status: status.parse()?,
                    closes: head.contains("connection: close"),
                    body: body.to_owned(),
                });
            }
        }
    }

    /// Returns true if the agent has closed the connection gracefully, without losing data.
    pub(crate) fn is_closed(&self) -> anyhow::Result<bool> {
        self.0.set_nonblocking(true)?;
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false)?;
        match peeked {
            Ok(0) => Ok(true),
            Ok(_) => bail!("more than was asked for"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
