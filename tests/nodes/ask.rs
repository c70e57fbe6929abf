//! Requests of pods to the metadata service, and the responses that pods must not get.

use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_devkit::{NODE_ACCESS_KEY_ID, NODE_SECRET_MARKER};
use rolegate_testkit::{TestCluster, eventually};

/// Timeout for events on a machine that may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);
/// The address where pods request credentials.
pub(crate) const CREDENTIALS: &str =
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/";

/// A pod that sends requests.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) cluster: &'a TestCluster,
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
}

impl Asking<'_> {
    /// Runs a program in the pod until it exits, and returns its output.
    pub(crate) async fn run(&self, program: &[&str]) -> anyhow::Result<String> {
        let ran = self.cluster.exec(self.namespace, self.pod, program);
        ran.await?
            .ok()
            .with_context(|| format!("{program:?} in {}", self.pod))
    }

    /// Returns the pod's identity according to STS, requested with an unmodified boto3.
    pub(crate) async fn identity(&self) -> anyhow::Result<String> {
        let script =
            "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'], end='')";
        self.run(&["python3", "-c", script]).await
    }

    /// Sends a GET request with curl, and returns the status and the body.
    pub(crate) async fn get(&self, url: &str) -> anyhow::Result<(u16, String)> {
        let curl = ["curl", "-s", "-m", "20", "-w", "\n%{http_code}", url];
        let ran = self.cluster.exec(self.namespace, self.pod, &curl).await?;
        // A refused connection is a result as well: curl prints 000.
        let (body, status) = ran.stdout.rsplit_once('\n').context("curl says nothing")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// Waits until STS reports the pod as a session of the role.
    pub(crate) async fn has_role(&self, role: &str) -> anyhow::Result<()> {
        let session = format!("arn:aws:sts::123456789012:assumed-role/{role}/");
        eventually(DEADLINE, async || {
            let identity = self.identity().await?;
            ensure!(identity.starts_with(&session), "{identity}");
            Ok(())
        })
        .await
    }

    /// Fails if the pod gets credentials of the node or of the role that the pod names.
    pub(crate) async fn gets_nothing(&self, role: &str) -> anyhow::Result<()> {
        for name in ["", "node", role] {
            let (status, body) = self.get(&format!("{CREDENTIALS}{name}")).await?;
            ensure!(status != 200, "{name:?}: {body}");
            no_secrets(&body)?;
        }
        let ran = self.cluster.exec(
            self.namespace,
            self.pod,
            &["aws", "sts", "get-caller-identity"],
        );
        let ran = ran.await?;
        ensure!(!ran.status.success(), "it is {}", ran.stdout);
        ensure!(ran.stderr.contains("credentials"), "{}", ran.stderr);
        Ok(())
    }
}

/// Fails if a text contains one of the node's own secrets.
pub(crate) fn no_secrets(text: &str) -> anyhow::Result<()> {
    for secret in [NODE_SECRET_MARKER, NODE_ACCESS_KEY_ID] {
        ensure!(!text.contains(secret), "the node's secrets in {text}");
    }
    Ok(())
}
