//! Tests of the real program's log at the lowest levels.
#![cfg(test)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rolegate_devkit::{
    Imds, ImdsOptions, KubeApi, KubeApiOptions, NODE_ACCESS_KEY_ID, NODE_SECRET_MARKER, Namespace,
    Pod, Sts, StsOptions,
};

const PATH: &str = "/latest/meta-data/iam/security-credentials/";

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_06_no_secret_reaches_the_log_at_any_level() {
    let any = "127.0.0.1:0".parse().unwrap();
    let imds = Imds::start(any, ImdsOptions::default()).await.unwrap();
    let (id, key) = imds.node_key();
    let keys = StsOptions {
        keys: Some([(id, key)].into()),
        ..StsOptions::default()
    };
    let sts = Sts::start(any, keys).await.unwrap();
    let kube = KubeApi::start(any, KubeApiOptions::default())
        .await
        .unwrap();
    kube.put_namespace(Namespace::new("default"));
    // A pod at this test's own address.
    kube.put_pod(
        Pod::new("default", "app")
            .node("node-a")
            .ip("127.0.0.1")
            .annotation("iam.amazonaws.com/role", "reader"),
    );
    let filter = "trace,aws_smithy_runtime=trace,aws_sdk_sts=trace,aws_config=trace,hyper=trace,\
                  hyper_util=trace,kube_client=trace,rolegate=trace,rolegate_agent=trace";
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let url = |address: std::net::SocketAddr| format!("http://{address}");
    let child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .args([
            "agent",
            "--app-port=0",
            "--metrics-address=127.0.0.1:0",
            "--runtime-dir=",
        ])
        .args([
            "--node=node-a",
            "--log-level",
            filter,
            "--session-duration=2h",
        ])
        .arg(format!("--api-server={}", kube.url()))
        .arg(format!("--metadata-addr={}", imds.addr()))
        .env_clear()
        .env("ROLEGATE_API_TOKEN", "hidden-api-token")
        .env("AWS_ENDPOINT_URL", url(sts.addr()))
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", url(imds.addr()))
        .env("AWS_REGION", "eu-west-1")
        .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
        .spawn()
        .unwrap();
    let agent = Agent(child);
    let until = Instant::now() + Duration::from_secs(30);
    let answer = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        let port = text
            .split_once("pods=[::]:")
            .and_then(|(_, rest)| rest.split(' ').next()?.trim().parse().ok());
        let path = format!("{PATH}reader");
        if let Some(answer) = port.and_then(|port| ask(port, &path).ok())
            && answer.starts_with("HTTP/1.1 200")
        {
            break answer;
        }
        assert!(Instant::now() < until, "no credentials\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    drop(agent);
    let text = std::fs::read_to_string(&log).unwrap();
    let (_, document) = answer.split_once("\r\n\r\n").unwrap();
    let document: serde_json::Value = serde_json::from_str(document).unwrap();
    for secret in ["SecretAccessKey", "Token"] {
        let secret = document[secret].as_str().unwrap();
        assert!(!text.contains(secret), "the log has {secret}");
    }
    for secret in [NODE_SECRET_MARKER, NODE_ACCESS_KEY_ID, "hidden-api-token"] {
        assert!(!text.contains(secret), "the log has {secret}");
    }
    // The log says that sessions are shorter than the flag requests.
    let capped = "sessions are shorter than --session-duration requests longest=3600 asked=7200";
    assert!(text.contains(capped), "{text}");
    // The test would find it: the session's name is in the log.
    assert!(
        text.contains(document["AccessKeyId"].as_str().unwrap()),
        "{text}"
    );
}
