//! Text that tenants write into pods that never run uses no memory of agents and brokers. The real
//! binary runs against a fake API server that can expire a watch.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rcgen::{CertificateParams, KeyPair};
use rolegate_devkit::{Imds, ImdsOptions, KubeApi, KubeApiOptions, Pod};
use rolegate_testkit::{Rolegate, eventually};

use crate::fixture::DEADLINE;

const MIB: u64 = 1024 * 1024;
const NODE: &str = "node-a";
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The process whose memory is measured.
#[derive(Debug, Clone, Copy)]
enum Process {
    Agent,
    Broker,
}

/// The process's memory in bytes: after a list that followed a gap, and the maximum.
#[derive(Debug, Clone, Copy)]
struct Memory {
    now: u64,
    peak: u64,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(LOOPBACK)?.local_addr()?.port())
}

fn page(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim().strip_suffix("kB"));
        let number: u64 = number.context("no number")?.trim().parse()?;
        anyhow::Ok(number * 1024)
    };
    Ok(Memory {
        now: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

/// A pod with 64 KiB of labels and annotations that rules may read.
fn large(name: &str) -> Pod {
    let value = "x".repeat(2040);
    (0..16).fold(Pod::new("default", name), |pod, n| {
        pod.label(&format!("rt.example/{n}"), &value)
            .annotation(&format!("rolegate.dev/{n}"), &value)
    })
}

fn command(
    process: Process,
    api: &KubeApi,
    imds: &Imds,
    folder: &Path,
) -> anyhow::Result<(Command, u16)> {
    let admin = free_port()?;
    let mut command = Rolegate::command()?;
    match process {
        Process::Agent => {
            command
                .args(["agent", "--host-ip=127.0.0.1", "--redirect=none"])
                .arg(format!("--node={NODE}"))
                .arg(format!("--app-port={}", free_port()?))
                .arg("--runtime-dir")
                .arg(folder);
        }
        Process::Broker => {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new(["localhost".to_owned()])?;
            std::fs::write(folder.join("tls.crt"), params.self_signed(&key)?.pem())?;
            std::fs::write(folder.join("tls.key"), key.serialize_pem())?;
            command
                .args(["broker", "--certificate=files", "--name=broker"])
                .arg("--tls-cert")
                .arg(folder.join("tls.crt"))
                .arg("--tls-key")
                .arg(folder.join("tls.key"))
                .arg("--listen-address=127.0.0.1:0")
                .arg("--ledger-address=127.0.0.1:0")
                .envs([("POD_IP", "10.0.0.1"), ("HOST_IP", "10.0.0.1")]);
        }
    }
    command
        .arg(format!("--api-server={}", api.url()))
        .env("ROLEGATE_API_TOKEN", "x")
        .args(["--insecure", "--cluster-config=off"])
        .arg("--base-role-arn=arn:aws:iam::123456789012:role/")
        .arg(format!("--metrics-address=127.0.0.1:{admin}"))
        .arg(format!("--metadata-addr={}", imds.addr()))
        .env("AWS_REGION", "eu-west-1")
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        .env(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            format!("http://{}", imds.addr()),
        );
    Ok((command, admin))
}

/// Returns the memory of a process with these pods, after its watch expired.
async fn measure(process: Process, pods: Vec<Pod>, streaming: bool) -> anyhow::Result<Memory> {
    let options = KubeApiOptions {
        streaming_lists: streaming,
        ..KubeApiOptions::default()
    };
    let api = KubeApi::start(LOOPBACK, options).await?;
    let imds = Imds::start(LOOPBACK, ImdsOptions::default()).await?;
    api.put_namespace(rolegate_devkit::Namespace::new("default"));
    for pod in pods {
        api.put_pod(pod);
    }
    for n in 0..10 {
        let pod = Pod::new("default", &format!("runs-{n}")).node(NODE);
        api.put_pod(pod.ip(&format!("127.1.0.{n}")));
    }
    let folder = tempfile::tempdir()?;
    let (command, admin) = command(process, &api, &imds, folder.path())?;
    let mut rolegate = Rolegate::spawn_command(&command)?;
    let series = match process {
        Process::Agent => "rolegate_pods",
        Process::Broker => "rolegate_pods",
    };
    let has = |name: &str, number: u32| {
        let line = format!("{name} {number}");
        let metrics = page(admin, "/metrics")?;
        ensure!(
            metrics.lines().any(|it| it == line),
            "not {line}: {metrics}"
        );
        Ok(())
    };
    rolegate.until(DEADLINE, async || has(series, 10)).await?;
    eventually(DEADLINE, async || {
        ensure!(api.watches() > 0, "nothing is watched");
        Ok(())
    })
    .await?;
    // The last pod arrives only with the list after the gap, not as an event.
    api.delay_events(DEADLINE);
    api.put_pod(Pod::new("default", "zzz").node(NODE).ip("127.1.0.99"));
    api.expire_watches();
    api.delay_events(Duration::ZERO);
    rolegate
        .until(DEADLINE, async || {
            has(r#"rolegate_kube_watch_restarts_total{resource="pods"}"#, 1)?;
            has(series, 11)
        })
        .await?;
    memory(rolegate.pid())
}

/// Compares a process's memory with and without large pods, and checks the difference.
async fn costs(process: Process, pods: impl Fn() -> Vec<Pod>, most: u64) -> anyhow::Result<()> {
    for streaming in [true, false] {
        let without = measure(process, Vec::new(), streaming).await?;
        let with = measure(process, pods(), streaming).await?;
        let more = with.now.saturating_sub(without.now);
        let peak = with.peak.saturating_sub(without.peak);
        println!(
            "{process:?}, streamed lists {streaming}: {} MiB more, {} MiB peak; {} MiB without",
            more / MIB,
            peak / MIB,
            without.now / MIB
        );
        ensure!(more <= most, "{} MiB more", more / MIB);
        ensure!(peak <= 2 * most, "{} MiB more at the peak", peak / MIB);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_28_pods_that_are_finished_take_no_memory_of_their_nodes_agent() -> anyhow::Result<()>
{
    let failed = || {
        let pod = |n| large(&format!("failed-{n:04}")).node(NODE).phase("Failed");
        (0..1000).map(pod).collect()
    };
    costs(Process::Agent, failed, 8 * MIB).await
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_28_pods_without_a_node_take_no_memory_of_brokers() -> anyhow::Result<()> {
    let pending = || {
        let pod = |n| large(&format!("pending-{n:04}")).phase("Pending");
        (0..4200).map(pod).collect()
    };
    costs(Process::Broker, pending, 16 * MIB).await
}
