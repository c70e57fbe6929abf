//! The main function: unmodified SDKs in pods get the pods' own roles.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_testkit::{Cluster, python};
use serde_json::Value;

use crate::ask::{self, CREDENTIALS, METADATA, METADATA_6};
use crate::fixture::{AgentFixture, Pod, clean, no_secrets, served};
use crate::shim::Sts;

/// Prints the caller's identity according to STS, or that there are no credentials.
const WHO_AM_I: &str = "
import boto3, botocore.exceptions, json
session = boto3.Session()
try:
    identity = session.client('sts').get_caller_identity()
    print(json.dumps({'arn': identity['Arn'], 'by': session.get_credentials().method}))
except botocore.exceptions.NoCredentialsError:
    print(json.dumps({'arn': None}))
";

/// A process that runs until its first credentials have expired and it has seen a third key. Each
/// step loads credentials again, since botocore extends the lifetime of metadata credentials by at
/// least 12 minutes when they are about to expire.
const WORK_ON: &str = "
import boto3, botocore.exceptions, json, time
def work(session):
    return session.client('sts').get_caller_identity()['Arn']
first, keys, calls = None, [], 0
give_up = time.monotonic() + 120
while time.monotonic() < give_up:
    session = boto3.Session()
    key = session.get_credentials().get_frozen_credentials()
    first = first or boto3.Session(*key)
    arn = work(session)
    calls += 1
    if key.access_key not in keys:
        keys.append(key.access_key)
    try:
        work(first)
    except botocore.exceptions.ClientError as error:
        code = error.response['Error']['Code']
        if len(keys) >= 3:
            break
print(json.dumps({'keys': keys, 'calls': calls, 'arn': arn, 'first': code}))
";

mod nftables {
    #[tokio::test(flavor = "multi_thread")]
    async fn sdk_in_pod_gets_its_role() -> anyhow::Result<()> {
        super::sdk_in_pod_gets_its_role("nftables").await
    }
}

mod iptables {
    #[tokio::test(flavor = "multi_thread")]
    async fn sdk_in_pod_gets_its_role() -> anyhow::Result<()> {
        super::sdk_in_pod_gets_its_role("iptables").await
    }
}

/// Runs a program of the Python environment in a pod, in which only the STS endpoint is configured.
pub(crate) fn run(
    sts: &Sts,
    pod: &Pod,
    program: &str,
    arguments: &[&str],
) -> anyhow::Result<(bool, String)> {
    let home = tempfile::tempdir()?;
    let output = clean(pod, &python::program(program)?)
        .args(arguments)
        .env("HOME", home.path())
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = text(&output.stdout) + &text(&output.stderr);
    no_secrets(&all)?;
    Ok((output.status.success(), all))
}

/// Returns the identity of boto3 in the pod, or `None` without credentials.
pub(crate) fn boto3(sts: &Sts, pod: &Pod) -> anyhow::Result<Option<String>> {
    let (done, output) = run(sts, pod, "python", &["-c", WHO_AM_I])?;
    ensure!(done, "boto3: {output}");
    let answer: Value = serde_json::from_str(&output).context(output)?;
    let arn = answer["arn"].as_str().map(str::to_owned);
    ensure!(arn.is_none() || answer["by"] == "iam-role", "{answer}");
    Ok(arn)
}

async fn sdk_in_pod_gets_its_role(backend: &str) -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new(&format!("sdk-{backend}"), cluster).await?;
    for (namespace, allowed) in [("open", r#"["*"]"#), ("shut", r#"["other-*"]"#)] {
        let annotations = [("iam.amazonaws.com/allowed-roles", allowed)];
        cluster
            .create_namespace(&fixture.namespace(namespace), &annotations)
            .await?;
    }
    cluster
        .create_service_account(&fixture.namespace("open"), "api")
        .await?;
    let pods = ["10.1.0.5", "10.1.0.6", "10.1.0.7", "10.1.0.8", "10.1.0.9"];
    let pods = pods.map(|address| fixture.pod(address).unwrap());
    let [reader, external, denied, bare, greedy] = &pods;
    let objects = [
        fixture
            .object("open", "reader", reader)
            .role("reader")
            .service_account("api"),
        fixture
            .object("open", "external", external)
            .role("arn:aws:iam::123456789012:role/team/partner")
            .annotation("iam.amazonaws.com/external-id", "customer-a"),
        fixture.object("shut", "denied", denied).role("reader"),
        fixture.object("open", "bare", bare),
        // The node's own role.
        fixture.object("open", "greedy", greedy).role("node"),
    ];
    for object in &objects {
        cluster.run_pod(object).await?;
    }
    let redirect = format!("--redirect={backend}");
    let mut agent = fixture.agent(&[&redirect, "--namespace-restrictions"])?;
    fixture.ready(&mut agent).await?;

    let namespace = fixture.namespace("open");
    let session = |role: &str, account: &str| {
        format!("arn:aws:sts::123456789012:assumed-role/{role}/{namespace}.{account}")
    };
    served(&fixture, reader, "reader").await?;
    assert_eq!(boto3(&fixture.sts, reader)?, Some(session("reader", "api")));
    let (done, output) = run(
        &fixture.sts,
        reader,
        "aws",
        &["sts", "get-caller-identity", "--output", "json"],
    )?;
    assert!(
        done && output.contains(&session("reader", "api")),
        "{output}"
    );
    assert_eq!(
        boto3(&fixture.sts, external)?,
        Some(session("partner", "default"))
    );
    for pod in [denied, bare, greedy] {
        assert_eq!(boto3(&fixture.sts, pod)?, None);
    }
    let (done, output) = run(&fixture.sts, denied, "aws", &["sts", "get-caller-identity"])?;
    assert!(
        !done && output.contains("Unable to locate credentials"),
        "{output}"
    );

    // Each session is created for one pod, and none for pods without a role.
    for assumed in fixture.sts.assumed() {
        let asked = |key: &str| assumed.asked.get(key).map(String::as_str);
        let external_id = match asked("RoleArn") {
            Some("arn:aws:iam::123456789012:role/reader") => None,
            Some("arn:aws:iam::123456789012:role/team/partner") => Some("customer-a"),
            other => panic!("a session of {other:?} was asked for"),
        };
        assert_eq!(asked("ExternalId"), external_id);
    }
    for other in [
        "team/partner",
        "partner",
        "node",
        "arn:aws:iam::123456789012:role/team/partner",
    ] {
        let reply = ask::get(reader, &format!("{CREDENTIALS}{other}"))?;
        assert_eq!(reply.status, 403, "{reply:?}");
    }
    assert_eq!(ask::get(denied, CREDENTIALS)?.status, 403);
    assert_eq!(ask::get(bare, CREDENTIALS)?.status, 404);
    assert_eq!(
        ask::get(bare, "/latest/meta-data/placement/region")?.body,
        "eu-west-1"
    );

    the_node_keeps_its_secrets(&fixture, &pods)?;
    no_secrets(&agent.log())?;
    let metrics = fixture.admin("/metrics")?;
    assert_eq!(metrics.status, 200);
    no_secrets(&metrics.body)
}

/// Requests the node's secrets with many spellings, in each pod, at both addresses.
fn the_node_keeps_its_secrets(fixture: &AgentFixture, pods: &[Pod]) -> anyhow::Result<()> {
    const SPELLINGS: &[&str] = &[
        "/latest/meta-data/iam/security-credentials/node",
        "/latest/meta-data/iam/security-credentials//node",
        "/latest/meta-data/iam/security-credentials/%6eode",
        "/latest/meta-data/iam/security-credentials/reader/../node",
        "//latest/meta-data/iam/security-credentials/node",
        "/latest/meta-data/./iam/security-credentials/node/",
        "/latest/meta-data/placement/../iam/security-credentials/node",
        "/latest/meta-data/placement/%2e%2e/iam/security-credentials/node",
        "/2021-07-15/meta-data/iam/security-credentials/node",
        "/1.0/meta-data/%69am/security-credentials/node",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/node",
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "/latest/dynamic/instance-identity/signature",
        "/latest/user-data",
        "/latest/user-data/",
        "/2024-04-11/user-data",
        "/LATEST/User-Data",
    ];
    for pod in pods {
        for target in [METADATA, METADATA_6] {
            for path in SPELLINGS {
                for method in ["GET", "HEAD", "POST"] {
                    let reply = ask::request(pod, target, method, path, &[])?;
                    no_secrets(&format!("{method} {path}: {reply:?}"))?;
                    assert_ne!(reply.status, 200, "{method} {path}: {reply:?}");
                }
            }
        }
    }
    // The agent itself requests the role's name and its own credentials, and no other secret.
    for secret in [
        "user-data",
        "identity-credentials",
        "signature",
        "%",
        "..",
        "//",
    ] {
        assert!(
            !fixture.reached(secret),
            "{secret} was asked for at the metadata service"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sdk_refreshes_across_an_expiry() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("expiry", cluster).await?;
    fixture.sts.set_life(Duration::from_secs(12));
    cluster
        .create_namespace(&fixture.namespace("a"), &[])
        .await?;
    let pod = fixture.pod("10.1.0.5")?;
    cluster
        .run_pod(&fixture.object("a", "worker", &pod).role("worker"))
        .await?;
    let _agent = fixture.ready_agent(&[]).await?;
    served(&fixture, &pod, "worker").await?;

    let (done, output) = run(&fixture.sts, &pod, "python", &["-c", WORK_ON])?;
    ensure!(done, "boto3: {output}");
    let report: Value = serde_json::from_str(&output).context(output)?;
    assert_eq!(report["first"], "ExpiredToken", "{report}");
    let arn = format!(
        "arn:aws:sts::123456789012:assumed-role/worker/{}.default",
        fixture.namespace("a")
    );
    assert_eq!(report["arn"], arn, "{report}");
    let keys: BTreeSet<&str> = report["keys"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(keys.len() >= 3, "{report}");
    // The agent calls STS when a session needs a refresh, not when a pod requests credentials.
    let calls = report["calls"].as_u64().unwrap();
    let sessions = fixture.sts.assumed().len() as u64;
    assert!(
        sessions < calls,
        "{sessions} sessions for {calls} calls: {report}"
    );
    Ok(())
}
