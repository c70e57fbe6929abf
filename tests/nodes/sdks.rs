//! Unmodified SDKs in pods, by each endpoint, with only what a pod gets injected.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use rolegate_testkit::nodes::{Cni, ISSUER, Options, ProjectedToken, Sdk, SdkPod};
use rolegate_testkit::{TestCluster, eventually};
use serde_json::json;

use crate::ask::{DEADLINE, no_secrets};

/// The node with the pods.
const NODE: &str = "node-1";
/// The role of pods that are allowed.
const ROLE: &str = "arn:aws:iam::123456789012:role/sdks";
/// The directory of the token for STS, as the EKS webhook mounts it.
const STS_TOKEN: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount";
/// The number of SDKs that start at the same time: as many as the machines of tests have cores.
const AT_ONCE: usize = 2;
/// Validity of tokens whose renewal is tested, in seconds: the shortest that Kubernetes issues.
const SHORT_TOKEN: u32 = 600;

/// A way for pods to get credentials.
#[derive(Clone, Copy)]
struct Endpoint {
    name: &'static str,
    /// Annotations of a pod with a role.
    annotations: &'static [(&'static str, &'static str)],
    /// Variables that are injected into the pods.
    env: &'static [(&'static str, &'static str)],
    token: Option<ProjectedToken<'static>>,
    /// The words of each SDK for a denial.
    denial: fn(Sdk) -> &'static str,
}

const METADATA: Endpoint = Endpoint {
    name: "metadata",
    annotations: &[("iam.amazonaws.com/role", "sdks")],
    env: &[],
    token: None,
    // No SDK shows the response of the metadata endpoint by itself.
    denial: |sdk| match sdk {
        Sdk::Boto3 | Sdk::Cli => "Unable to locate credentials",
        Sdk::Rust => "redentials",
        Sdk::Go => "get identity: get credentials",
        Sdk::JavaScript => "Could not load credentials from any providers",
        Sdk::Java => "Unable to load credentials",
    },
};

const WEB_IDENTITY: Endpoint = Endpoint {
    name: "web-identity",
    annotations: &[],
    env: &[
        ("AWS_ROLE_ARN", ROLE),
        (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "/var/run/secrets/eks.amazonaws.com/serviceaccount/token",
        ),
    ],
    token: Some(ProjectedToken {
        audience: "sts.amazonaws.com",
        directory: STS_TOKEN,
        expiration_seconds: 3600,
    }),
    denial: |_| "Not authorized to perform sts:AssumeRoleWithWebIdentity",
};

/// All endpoints.
const ENDPOINTS: [Endpoint; 2] = [METADATA, WEB_IDENTITY];

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_serves_an_unmodified_sdk() -> anyhow::Result<()> {
    let cluster = TestCluster::shared(Cni::Bridge).await?;
    let namespace = "sdks";
    prepare(cluster, namespace).await?;
    let mut cases = Vec::new();
    for endpoint in &ENDPOINTS {
        for allowed in [true, false] {
            let name = pod_name(endpoint, allowed);
            let pod = SdkPod {
                namespace,
                name: &name,
                node: NODE,
                annotations: if allowed { endpoint.annotations } else { &[] },
                service_account: Some(if allowed { "reader" } else { "stranger" }),
                env: endpoint.env,
                token: endpoint.token,
            };
            cluster.run_sdk_pod(&pod).await?;
            cases.extend(Sdk::ALL.map(|sdk| (endpoint, allowed, sdk)));
        }
    }
    let checks = cases
        .into_iter()
        .map(|(endpoint, allowed, sdk)| async move {
            let pod = pod_name(endpoint, allowed);
            let checked = if allowed {
                gets_the_role(cluster, namespace, &pod, sdk).await
            } else {
                shows_the_denial(cluster, namespace, &pod, sdk, (endpoint.denial)(sdk)).await
            };
            // All faults are worth knowing, since a run takes minutes.
            checked
                .err()
                .map(|error| format!("{pod}, {sdk:?}: {error:#}"))
        });
    let failed: Vec<Option<String>> = stream::iter(checks).buffered(AT_ONCE).collect().await;
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn pod_name(endpoint: &Endpoint, allowed: bool) -> String {
    let suffix = if allowed { "allowed" } else { "denied" };
    format!("{}-{suffix}", endpoint.name)
}

/// Creates the namespace with the ServiceAccounts `reader` and `stranger`, and the role, which
/// trusts `reader`.
async fn prepare(cluster: &TestCluster, namespace: &str) -> anyhow::Result<()> {
    cluster.create_namespace(namespace).await?;
    for account in ["reader", "stranger"] {
        let create = ["create", "serviceaccount", account, "-n", namespace];
        cluster.kubectl(&create).await?;
    }
    cluster.load_sdks(NODE).await?;
    let provider = cluster.create_oidc_provider().await?;
    let issuer = ISSUER.trim_start_matches("https://");
    let web_identity = json!({
        "Effect": "Allow",
        "Principal": { "Federated": provider },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": { "StringEquals": {
            format!("{issuer}:aud"): "sts.amazonaws.com",
            format!("{issuer}:sub"): format!("system:serviceaccount:{namespace}:reader"),
        } },
    });
    // The agents assume the role with the credentials of their nodes.
    let agents = json!({
        "Effect": "Allow",
        "Principal": { "AWS": "123456789012" },
        "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
    });
    let policy = json!({ "Version": "2012-10-17", "Statement": [web_identity, agents] });
    Ok(cluster.sts().set_trust_policy(ROLE, &policy.to_string())?)
}

async fn gets_the_role(
    cluster: &TestCluster,
    namespace: &str,
    pod: &str,
    sdk: Sdk,
) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let ran = cluster.run_sdk(sdk, namespace, pod, Duration::ZERO).await?;
        let output = ran.ok()?;
        ensure!(output.contains(":assumed-role/sdks/"), "{output}");
        Ok(())
    })
    .await
}

async fn shows_the_denial(
    cluster: &TestCluster,
    namespace: &str,
    pod: &str,
    sdk: Sdk,
    words: &str,
) -> anyhow::Result<()> {
    let ran = cluster.run_sdk(sdk, namespace, pod, Duration::ZERO).await?;
    ensure!(!ran.status.success(), "it is {}", ran.stdout);
    no_secrets(&ran.stderr)?;
    ensure!(ran.stderr.contains(words), "it says: {}", ran.stderr);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits until the kubelet has renewed tokens twice, 20 minutes"]
async fn sdks_work_past_two_renewals_of_their_token() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let cluster = &TestCluster::start(options).await?;
    let namespace = "renewals";
    prepare(cluster, namespace).await?;
    // Sessions end before the second renewal, and STS accepts no expired token, so that an SDK that
    // keeps its first token fails.
    cluster.sts().set_lifetime(Some(Duration::from_secs(400)));
    cluster.sts().set_token_leeway(Duration::ZERO);
    let pod = SdkPod {
        namespace,
        name: "worker",
        node: NODE,
        service_account: Some("reader"),
        env: WEB_IDENTITY.env,
        token: WEB_IDENTITY.token.map(|token| ProjectedToken {
            expiration_seconds: SHORT_TOKEN,
            ..token
        }),
        ..SdkPod::default()
    };
    cluster.run_sdk_pod(&pod).await?;
    let renewals = 2;
    let time = Duration::from_secs(u64::from(SHORT_TOKEN) * renewals + 30);
    let read = [
        "cat",
        "/var/run/secrets/eks.amazonaws.com/serviceaccount/token",
    ];
    let first = cluster.exec(namespace, pod.name, &read).await?.ok()?;
    let all = Sdk::ALL.map(|sdk| async move {
        let ran = cluster.run_sdk(sdk, namespace, "worker", time).await?;
        let output = ran.ok().with_context(|| format!("{sdk:?}"))?;
        let mut keys: Vec<&str> = output.split_whitespace().skip(1).step_by(2).collect();
        keys.dedup();
        ensure!(sdk == Sdk::Cli || keys.len() > 2, "{sdk:?}: {output}");
        anyhow::Ok(())
    });
    stream::iter(all)
        .buffer_unordered(Sdk::ALL.len())
        .try_collect::<Vec<()>>()
        .await?;
    let last = cluster.exec(namespace, pod.name, &read).await?.ok()?;
    ensure!(first != last, "the kubelet has not renewed the token");
    Ok(())
}
