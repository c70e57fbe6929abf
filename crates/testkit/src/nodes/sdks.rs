//! Unmodified SDKs of AWS in pods, with the programs of `tests/sdks`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::environment::STS_URL;
use super::image::{ImageBuilder, run};
use super::user::Ran;
use super::{TestCluster, images};
use crate::scratch::Scratch;
use crate::{hack, repository};

/// The image with all SDKs.
const IMAGE: &str = "localhost/sdks:1";
/// The directory of the programs in the image.
const PROGRAMS: &str = "/opt/sdks";
/// The user of the pods. The kubelet makes projected tokens readable for it.
const USER: u32 = 1000;
/// Time that a call may take, in addition to the time for which it is repeated: SDKs repeat failed
/// requests for seconds, on a machine that may be busy.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// An SDK, or a tool that contains one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sdk {
    /// boto3, the SDK for Python.
    Boto3,
    /// The AWS CLI, version 1.
    Cli,
    /// The SDK for Rust.
    Rust,
    /// The SDK for Go, version 2.
    Go,
    /// The SDK for JavaScript, version 3.
    JavaScript,
    /// The SDK for Java, version 2.
    Java,
}

impl Sdk {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Boto3,
        Self::Cli,
        Self::Rust,
        Self::Go,
        Self::JavaScript,
        Self::Java,
    ];

    /// Returns the command of its program in the image.
    fn command(self) -> &'static [&'static str] {
        match self {
            Self::Boto3 => &["python3", "/opt/sdks/main.py"],
            Self::Cli => &["/opt/sdks/main.sh"],
            Self::Rust => &["/opt/sdks/rust"],
            Self::Go => &["/opt/sdks/go"],
            Self::JavaScript => &["node", "/opt/sdks/js/main.js"],
            Self::Java => &[
                "/opt/sdks/java/jre/bin/java",
                "-XX:TieredStopAtLevel=1",
                "-classpath",
                "/opt/sdks/java:/opt/sdks/java/lib/*",
                "Main",
            ],
        }
    }
}

/// A token of the pod's ServiceAccount that the kubelet mounts and renews.
#[derive(Clone, Copy, Debug)]
pub struct ProjectedToken<'a> {
    /// The audience.
    pub audience: &'a str,
    /// The directory of the file `token`.
    pub directory: &'a str,
    /// The requested validity, in seconds, at least 600.
    pub expiration_seconds: u32,
}

/// A pod with all SDKs, which waits for calls of [`TestCluster::run_sdk`] as a user without
/// privileges.
#[derive(Clone, Copy, Debug, Default)]
pub struct SdkPod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The node to run on, which needs the image ([`TestCluster::load_sdks`]).
    pub node: &'a str,
    /// Its annotations.
    pub annotations: &'a [(&'a str, &'a str)],
    /// Its ServiceAccount instead of `default`.
    pub service_account: Option<&'a str>,
    /// Environment variables that a user or a webhook adds.
    pub env: &'a [(&'a str, &'a str)],
    /// A token that a user or a webhook adds.
    pub token: Option<ProjectedToken<'a>>,
}

impl SdkPod<'_> {
    fn object(&self) -> Value {
        let annotations: serde_json::Map<String, Value> = self
            .annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let env: Vec<Value> = self
            .env
            .iter()
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect();
        let volumes = self.token.map(|token| {
            let source = json!({
                "audience": token.audience,
                "expirationSeconds": token.expiration_seconds,
                "path": "token",
            });
            let sources = [json!({ "serviceAccountToken": source })];
            [json!({ "name": "aws-token", "projected": { "sources": sources } })]
        });
        let mounts = self.token.map(|token| {
            [json!({ "name": "aws-token", "mountPath": token.directory, "readOnly": true })]
        });
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": self.namespace, "name": self.name, "annotations": annotations,
            },
            "spec": {
                "nodeSelector": { "kubernetes.io/hostname": self.node },
                "serviceAccountName": self.service_account,
                "securityContext": { "runAsNonRoot": true, "runAsUser": USER },
                "containers": [{
                    "name": "sdks", "image": IMAGE, "env": env, "volumeMounts": mounts,
                }],
                "volumes": volumes,
            },
        })
    }
}

impl TestCluster {
    /// Loads the image of [`SdkPod`]s on a node. The first call of a process builds it.
    ///
    /// # Errors
    /// Returns an error if an SDK is missing, or the node is off.
    pub async fn load_sdks(&self, node: &str) -> anyhow::Result<()> {
        let archive = spawn_blocking(image).await??;
        let import = format!(
            "ctr --address /run/containerd/containerd.sock --namespace k8s.io images import '{}'",
            archive.display()
        );
        self.node(node)?.shell(&import).await?.ok().map(drop)
    }

    /// Creates a pod with the SDKs, and waits until it is ready.
    ///
    /// # Errors
    /// Returns an error if it is denied or does not become ready.
    pub async fn run_sdk_pod(&self, pod: &SdkPod<'_>) -> anyhow::Result<()> {
        self.apply(&pod.object().to_string()).await?;
        let what = format!("pod/{}", pod.name);
        self.wait(pod.namespace, &what, "condition=Ready").await
    }

    /// Runs the program of an SDK in a pod: it prints `ARN ACCESS_KEY_ID` according to STS, again
    /// every 5 seconds for this time. Its standard error has the SDK's words for a failure.
    ///
    /// # Errors
    /// Returns an error if kubectl cannot be run or the program does not end, but not if it fails.
    pub async fn run_sdk(
        &self,
        sdk: Sdk,
        namespace: &str,
        pod: &str,
        time: Duration,
    ) -> anyhow::Result<Ran> {
        let seconds = time.as_secs().to_string();
        let kubectl = ["kubectl", "exec", "-n", namespace, pod, "--"];
        let command = [&kubectl[..], sdk.command(), &[&seconds]].concat();
        let shell = self.shell()?.limit(time + CALL_TIMEOUT);
        shell.exec(&command).await
    }
}

/// Returns the archive of the image, built by the first caller.
fn image() -> anyhow::Result<PathBuf> {
    static MADE: Mutex<Option<(Scratch, PathBuf)>> = Mutex::new(None);
    let mut made = MADE.lock();
    if let Some((_, archive)) = &*made {
        return Ok(archive.clone());
    }
    let scratch = Scratch::new("rolegate-sdks-")?;
    let archive = scratch.path().join("sdks.tar");
    builder(scratch.path())?.build(IMAGE, &archive)?;
    *made = Some((scratch, archive.clone()));
    Ok(archive)
}

fn builder(folder: &Path) -> anyhow::Result<ImageBuilder> {
    let built = hack("sdk-clients", &[])?;
    let sources = repository().join("tests/sdks");
    let programs = Path::new(PROGRAMS);
    let rust = folder.join("rust");
    run(Command::new("strip")
        .arg("-o")
        .arg(&rust)
        .arg(example("sdk")?))
    .context("the program for Rust can't be stripped (binutils)")?;
    let image = images::client(folder)?
        .program("node")?
        .binary(&rust, &programs.join("rust"))?
        .libraries_of(&[built.join("java/jre/bin/java")])?
        .file(&built.join("go"), &programs.join("go"))?
        .file(&built.join("js"), &programs.join("js"))?
        .file(&built.join("java"), &programs.join("java"))?
        .file(&sources.join("python/main.py"), &programs.join("main.py"))?
        .file(&sources.join("cli/main.sh"), &programs.join("main.sh"))?;
    Ok(image
        // Some SDKs do not read AWS_DEFAULT_REGION.
        .env("AWS_REGION", "eu-west-1")
        // The SDK for Go calls STS for credentials without AWS_ENDPOINT_URL.
        .env("AWS_ENDPOINT_URL_STS", STS_URL))
}

/// Returns an example of this crate, which `make` builds before the tests.
fn example(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    // target/PROFILE/deps/NAME-HASH
    let profile = test.ancestors().nth(2).context("no target folder")?;
    let path = profile.join("examples").join(name);
    ensure!(
        path.exists(),
        "the example `{name}` is missing: run `make test-nodes`"
    );
    Ok(path)
}
