//! The metrics of every process follow Prometheus's conventions and are documented.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_devkit::{
    Imds, ImdsOptions, KubeApi, KubeApiOptions, Namespace, Pod, Sts, StsOptions,
};
use rolegate_service_account_token::Algorithm;
use rolegate_service_account_token::test_util::Signer;
use rolegate_testkit::promlint::promlint;
use rolegate_testkit::{Rolegate, eventually, repository};
use serde_json::json;

use crate::fixture::DEADLINE;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Prometheus's `Accept` header for the text format alone.
const TEXT: &str = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/reader";

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(LOOPBACK)?.local_addr()?.port())
}

fn get(port: u16, host: &str, path: &str, accept: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The processes, with a series that each of them has once it works.
const PROCESSES: [(&str, &[&str], &str); 5] = [
    (
        "agent",
        &[
            "--kube2iam-metrics",
            "--runtime-dir=",
            "--container-credentials",
            "--container-credentials-address=127.0.0.1",
            "--container-credentials-port=0",
        ],
        "rolegate_decisions_total{enforcement_point=\"agent\",layer=\"all\",mode=\"enforce\",result=\"allowed\"} 1",
    ),
    (
        "agent",
        &[
            "--broker=https://127.0.0.1:9",
            "--runtime-dir=",
            "--broker-ca=/nonexistent",
        ],
        "rolegate_rules_info{source=\"broker\"} 1",
    ),
    (
        "broker",
        &[
            "--listen-address=127.0.0.1:0",
            "--ledger-address=127.0.0.1:0",
        ],
        "rolegate_config_generation 1",
    ),
    (
        "admission",
        &["--listen-address=127.0.0.1:0", "--inject"],
        "rolegate_config_generation 1",
    ),
    ("controller", &[], "rolegate_leader_election_status 0"),
];

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_clean_and_documented() -> anyhow::Result<()> {
    let imds = Imds::start(LOOPBACK, ImdsOptions::default()).await?;
    let keys = StsOptions {
        keys: Some([imds.node_key()].into()),
        ..StsOptions::default()
    };
    let sts = Sts::start(LOOPBACK, keys).await?;
    let api = KubeApi::start(LOOPBACK, KubeApiOptions::default()).await?;
    let signer = Signer::generate("key", Algorithm::Es256);
    api.set_token_keys("https://issuer.example", &Signer::key_set(&[&signer]));
    api.put_namespace(Namespace::new("default"));
    let pod = Pod::new("default", "app").node("node-a").ip("127.0.0.1");
    api.put_pod(pod.annotation("iam.amazonaws.com/role", "reader"));
    let configs = "rolegate.dev/v1alpha1/rolegateconfigs";
    api.enable(configs, "RolegateConfig", false);
    api.enable("rolegate.dev/v1alpha1/rolegrants", "RoleGrant", false);
    let layers = json!({ "namespace": "off", "grants": "audit" });
    api.put(
        configs,
        json!({
            "apiVersion": "rolegate.dev/v1alpha1",
            "kind": "RolegateConfig",
            "metadata": { "name": "cluster" },
            "spec": { "baseRoleArn": "arn:aws:iam::123456789012:role/", "layers": layers },
        }),
    );
    let documented = std::fs::read_to_string(repository().join("docs/reference/metrics.md"))?;
    for (process, flags, series) in PROCESSES {
        let (admin, pods) = (free_port()?, free_port()?);
        let mut command = Rolegate::command()?;
        command
            .arg(process)
            .args(flags)
            .arg(format!("--metrics-address=127.0.0.1:{admin}"))
            .env("AWS_REGION", "eu-west-1")
            .env("AWS_ENDPOINT_URL", format!("http://{}", sts.addr()))
            .env(
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                format!("http://{}", imds.addr()),
            );
        let brokered = flags.iter().any(|flag| flag.starts_with("--broker="));
        if !brokered {
            command.arg(format!("--api-server={}", api.url()));
        }
        if matches!(process, "agent" | "broker") {
            command.arg(format!("--metadata-addr={}", imds.addr()));
        }
        if process == "agent" {
            command
                .arg("--node=node-a")
                .arg(format!("--app-port={pods}"));
        }
        let mut rolegate = Rolegate::spawn_command(&command)?;
        let text = rolegate
            .until(DEADLINE, async || {
                if process == "agent" && !brokered {
                    let text = get(admin, "x", "/metrics", TEXT)?;
                    // One request is enough, and a repeated one would be counted again.
                    if !text.contains("result=\"allowed\"} 1") {
                        get(pods, "169.254.169.254", CREDENTIALS, "*/*")?;
                    }
                }
                let text = get(admin, "x", "/metrics", TEXT)?;
                ensure!(text.contains(series), "no {series} in {text}");
                Ok(text)
            })
            .await?;
        let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.contains("text/plain; version=0.0.4"), "{head}");
        let problems = promlint(body)?;
        ensure!(problems.is_empty(), "{process} {flags:?}: {problems:#?}");
        let names = body.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names: BTreeSet<_> = names.filter_map(|line| line.split(' ').next()).collect();
        ensure!(names.len() > 5, "{names:?}");
        for name in names {
            let cell = format!("| `{name}` |");
            ensure!(documented.contains(&cell), "{name} is not documented");
        }
        eventually(DEADLINE, async || {
            let text = get(admin, "x", "/metrics", "*/*")?;
            ensure!(text.contains("application/openmetrics-text"), "{text}");
            ensure!(text.ends_with("# EOF\n"), "{text}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The linter finds faults that it must find.
#[test]
fn promlint_finds_problems() -> anyhow::Result<()> {
    let problems = promlint("# TYPE a counter\na 1\n")?;
    ensure!(
        problems.iter().any(|it| it.contains("help")),
        "{problems:?}"
    );
    ensure!(
        problems.iter().any(|it| it.contains("_total")),
        "{problems:?}"
    );
    Ok(())
}
