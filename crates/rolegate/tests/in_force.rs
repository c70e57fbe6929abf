//! Tests that each process with rules reports those in force: in its log, its metrics and its
//! readiness. The controller has rules while it is the leader, which requires a real API server
//! (`tests/apiserver`).
#![cfg(test)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rolegate_devkit::{Imds, ImdsOptions, KubeApi, KubeApiOptions, Namespace, Sts, StsOptions};
use serde_json::{Value, json};

const CONFIGS: &str = "rolegate.dev/v1alpha1/rolegateconfigs";
const DEADLINE: Duration = Duration::from_secs(60);

/// The stand-ins for the processes.
struct Fixture {
    kube: KubeApi,
    imds: Imds,
    sts: Sts,
    folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let imds = Imds::start(any, ImdsOptions::default()).await.unwrap();
        let keys = StsOptions {
            keys: Some([imds.node_key()].into()),
            ..StsOptions::default()
        };
        let sts = Sts::start(any, keys).await.unwrap();
        let kube = KubeApi::start(any, KubeApiOptions::default())
            .await
            .unwrap();
        kube.put_namespace(Namespace::new("default"));
        Self {
            kube,
            imds,
            sts,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Writes the configuration and returns its generation.
    fn set_config(&self, spec: &Value) -> i64 {
        self.kube.enable(CONFIGS, "RolegateConfig", false);
        let written = self.kube.put(
            CONFIGS,
            json!({
                "apiVersion": "rolegate.dev/v1alpha1",
                "kind": "RolegateConfig",
                "metadata": { "name": "cluster" },
                "spec": spec,
            }),
        );
        written["metadata"]["generation"].as_i64().unwrap()
    }

    fn start(&self, process: &str, flags: &[&str], variables: &[(&str, &str)]) -> Process {
        let own: &[&str] = match process {
            "agent" => &["--app-port=0", "--runtime-dir=", "--node=node-a"],
            "broker" => &[
                "--listen-address=127.0.0.1:0",
                "--ledger-address=127.0.0.1:0",
            ],
            "admission" => &["--listen-address=127.0.0.1:0"],
            _ => &[],
        };
        let log = self.folder.path().join(format!("{process}.log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
        command
            .arg(process)
            .args(own)
            .args(flags)
            .arg("--metrics-address=127.0.0.1:0")
            .arg("--log-format=json")
            .arg(format!("--api-server={}", self.kube.url()));
        if matches!(process, "agent" | "broker") {
            command.arg(format!("--metadata-addr={}", self.imds.addr()));
        }
        let child = command
            .env_clear()
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.sts.addr()))
            .env(
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                format!("http://{}", self.imds.addr()),
            )
            .env("AWS_REGION", "eu-west-1")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Process { child, log }
    }
}

/// A process that is killed at the end of the test.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        // The last line may be incomplete.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect()
    }

    /// Waits for a log event.
    async fn event(&self, matches: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            let events = self.events();
            if let Some(event) = events.iter().find(|event| matches(event)) {
                return event.clone();
            }
            assert!(Instant::now() < until, "{events:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn admin(&self, path: &str) -> String {
        let event = self.event(|event| event["message"] == "listening").await;
        let address = event["admin"].as_str().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until a page of the admin port contains all of these texts.
    async fn page(&self, path: &str, texts: &[&str]) {
        let until = Instant::now() + DEADLINE;
        loop {
            let page = self.admin(path).await;
            if texts.iter().all(|text| page.contains(text)) {
                return;
            }
            assert!(Instant::now() < until, "{texts:?} not in\n{page}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn in_force(event: &Value) -> bool {
    event["message"] == "rules in force"
}

fn metric(generation: i64) -> String {
    format!("rolegate_config_generation {generation}\n")
}

fn is_open(event: &Value) -> bool {
    let message = event["message"].as_str().unwrap_or_default();
    event["level"] == "WARN" && message.starts_with("no rule layer is enforced")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_agent_says_so() {
    let fixture = Fixture::new().await;
    let base = "--base-role-arn=arn:aws:iam::123456789012:role/";
    let agent = fixture.start("agent", &[base], &[]);
    let event = agent.event(in_force).await;
    assert_eq!(event["source"], "flags");
    assert_eq!(event["base"], "arn:aws:iam::123456789012:role/");
    assert_eq!(event["namespace_layer"], "off");
    agent.event(is_open).await;
    agent
        .page(
            "/readyz",
            &["200 OK", "[!] layers: no rule layer is enforced"],
        )
        .await;
    let info = "rolegate_rules_info{source=\"flags\",namespace_layer=\"off\",grants_layer=\"off\",rego_layer=\"off\"} 1";
    agent
        .page(
            "/metrics",
            &[info, "rolegate_rules_last_change_timestamp_seconds "],
        )
        .await;
    assert!(!agent.admin("/metrics").await.contains("config_generation"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_says_which_rules_are_in_force() {
    let fixture = Fixture::new().await;
    let base = "arn:aws:iam::123456789012:role/";
    let spec = |mode: &str| json!({ "baseRoleArn": base, "layers": { "namespace": mode } });
    for process in ["agent", "broker", "admission"] {
        let generation = fixture.set_config(&spec("enforce"));
        let process = fixture.start(
            process,
            &["--namespace-restrictions", "--cluster-config=required"],
            &[
                (
                    "ROLEGATE_BASE_ROLE_ARN",
                    "arn:aws:iam::123456789012:role/k8s/",
                ),
                ("ROLEGATE_RESERVED_ROLE", "node"),
            ],
        );
        let event = process.event(in_force).await;
        assert_eq!(event["source"], "RolegateConfig cluster");
        assert_eq!(event["generation"], generation);
        assert_eq!(event["base"], base);
        assert_eq!(event["namespace_layer"], "enforce");
        assert_eq!(event["grants"], 0);
        let ignored = process
            .event(|event| event["level"] == "WARN" && event["flags"].is_array())
            .await;
        assert_eq!(
            ignored["flags"],
            json!(["ROLEGATE_BASE_ROLE_ARN", "--namespace-restrictions"])
        );
        let info = "rolegate_rules_info{source=\"rolegateconfig\",namespace_layer=\"enforce\",";
        process.page("/metrics", &[info, &metric(generation)]).await;
        assert!(!process.events().iter().any(is_open));

        // A change adds one line.
        let generation = fixture.set_config(&spec("audit"));
        let event = process
            .event(|event| event["generation"] == generation)
            .await;
        assert_eq!(event["namespace_layer"], "audit");
        process.page("/metrics", &[&metric(generation)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_a_broker_says_that_the_broker_decides() {
    let fixture = Fixture::new().await;
    let log = fixture.folder.path().join("brokered.log");
    let child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .args(["agent", "--app-port=0", "--runtime-dir=", "--node=node-a"])
        .args(["--broker=https://127.0.0.1:9", "--namespace-restrictions"])
        .args(["--metrics-address=127.0.0.1:0", "--log-format=json"])
        .arg(format!("--metadata-addr={}", fixture.imds.addr()))
        .env_clear()
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let agent = Process { child, log };
    let event = agent.event(in_force).await;
    assert_eq!(event["source"], "broker");
    let ignored = agent.event(|event| event["flags"].is_array()).await;
    assert_eq!(ignored["flags"], json!(["--namespace-restrictions"]));
    agent
        .page("/metrics", &["rolegate_rules_info{source=\"broker\"} 1"])
        .await;
}
