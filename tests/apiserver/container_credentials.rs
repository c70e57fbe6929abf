//! Container credentials with tokens that a real API server issues. The agent runs in this process
//! with the rights of the shipped manifest, and with stand-ins for AWS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::BoundObjectReference;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use rolegate_agent::app::{Agent, AgentOptions, Mode, SourceOptions, StandaloneOptions};
use rolegate_agent::container_credentials::ContainerCredentialsOptions;
use rolegate_agent::limits::LimitOptions;
use rolegate_agent::metadata::{ImdsV2, MetadataOptions};
use rolegate_authorizer::options::DecisionOptions;
use rolegate_aws::sts::StsOptions;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::metadata::AllowList;
use rolegate_core::service_account::CONTAINER_CREDENTIALS_AUDIENCE;
use rolegate_devkit::{Imds, ImdsOptions, Sts};
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_runtime::clock::Clock;
use rolegate_service_account_token::Algorithm;
use rolegate_service_account_token::test_util::Signer;
use rolegate_testkit::{Cluster, TestPod, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NAMESPACE: &str = "container-credentials";
const NODE: &str = "cc-node";
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const DEADLINE: Duration = Duration::from_secs(60);

/// The rights that the chart adds for the endpoint. Discovery is open to every ServiceAccount by default.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: rolegate-agent-endpoint }
rules:
- { apiGroups: [""], resources: [serviceaccounts], verbs: [get, list, watch] }
- { nonResourceURLs: [/.well-known/openid-configuration, /openid/v1/jwks], verbs: [get] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: rolegate-agent-endpoint }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: rolegate-agent-endpoint }
subjects: [{ kind: ServiceAccount, name: rolegate-agent, namespace: rolegate-system }]
"#;

struct Fixture {
    cluster: Cluster,
    sts: Sts,
    agent: Agent,
}

impl Fixture {
    /// Starts a cluster with two nodes, and the agent of the first with the rights of its manifest.
    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        let roles = ("iam.amazonaws.com/allowed-roles", r#"["*"]"#);
        cluster.create_namespace(NAMESPACE, &[roles]).await?;
        for (name, last) in [(NODE, 1), ("cc-other", 2)] {
            cluster.create_node(name, [192, 0, 2, last].into()).await?;
        }
        cluster.install(&["rolegate-agent"]).await?;
        cluster.apply_manifest(RIGHTS).await?;
        let token = cluster.service_account_token("rolegate-system", "rolegate-agent");
        let kubeconfig = cluster.kubeconfig_for_token("agent", &token.await?)?;
        let imds = Imds::start(LOOPBACK, ImdsOptions::default()).await?;
        let (id, key) = imds.node_key();
        let sts_options = rolegate_devkit::StsOptions {
            keys: Some([(id.clone(), key.clone())].into()),
            ..rolegate_devkit::StsOptions::default()
        };
        let sts = Sts::start(LOOPBACK, sts_options).await?;
        let secret = key.secret_access_key;
        let credentials = Credentials::new(id, secret, key.session_token, None, "devkit");
        let credentials = SharedCredentialsProvider::new(credentials);
        let sts_options = StsOptions {
            region: Some("eu-west-1".into()),
            endpoint_url: Some(sts.url()),
            credentials: Some(credentials),
            ..StsOptions::default()
        };
        let options = options(kubeconfig, &imds, sts_options)?;
        let agent = Agent::start(options).await?;
        let ready = tokio::time::timeout(DEADLINE, agent.readiness().ready()).await;
        ready.with_context(|| agent.readiness().report().to_text(true))?;
        Ok(Self {
            cluster,
            sts,
            agent,
        })
    }

    /// Runs a pod whose ServiceAccount, of the same name, has the role of that name.
    async fn run(&self, name: &str, node: &str, last: u8) -> anyhow::Result<Pod> {
        self.create_account(name).await?;
        let pod = TestPod::new(NAMESPACE, name, node)
            .service_account(name)
            .address(Ipv4Addr::new(127, 9, 0, last));
        self.cluster.run_pod(&pod).await
    }

    async fn create_account(&self, name: &str) -> anyhow::Result<()> {
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "namespace": NAMESPACE, "name": name,
                "annotations": {"eks.amazonaws.com/role-arn":
                    format!("arn:aws:iam::123456789012:role/{name}")},
            },
        });
        self.cluster.apply_manifest(&account.to_string()).await?;
        Ok(())
    }

    async fn token(&self, pod: &Pod) -> anyhow::Result<String> {
        self.cluster
            .pod_token(pod, CONTAINER_CREDENTIALS_AUDIENCE)
            .await
    }

    /// Presents a token, and returns the status and the body.
    async fn present(&self, token: &str) -> anyhow::Result<(u16, Value)> {
        let to = self.agent.addresses().container_credentials[0].context("no endpoint")?;
        let mut stream = TcpStream::connect(to).await?;
        let request = format!(
            "GET /v1/credentials HTTP/1.1\r\nHost: {to}\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.get(9..12).context("no answer")?.parse()?;
        let body = answer.split_once("\r\n\r\n").context("no body")?.1;
        Ok((status, serde_json::from_str(body).unwrap_or_default()))
    }

    /// Presents a token that must be refused for good, and returns the message.
    async fn refused(&self, token: &str) -> anyhow::Result<String> {
        let (status, body) = self.present(token).await?;
        ensure!((400..500).contains(&status), "{status} {body}");
        ensure!(body["AccessKeyId"].is_null(), "{body}");
        Ok(body["message"].as_str().context("no message")?.to_owned())
    }
}

fn options(kubeconfig: PathBuf, imds: &Imds, sts: StsOptions) -> anyhow::Result<AgentOptions> {
    let alone = StandaloneOptions {
        source: SourceOptions::Kubernetes {
            client: ClientOptions {
                kubeconfig: Some(kubeconfig),
                ..ClientOptions::default()
            },
            node: Some(NODE.into()),
        },
        decisions: DecisionOptions {
            rules: RuleConfig {
                base: Some(BaseArn::parse("arn:aws:iam::123456789012:role/")?),
                ..RuleConfig::default()
            },
            cluster_config: ConfigMode::Off,
            ..DecisionOptions::default()
        },
        sts,
    };
    Ok(AgentOptions {
        listen: LOOPBACK,
        admin_listen: LOOPBACK,
        runtime_dir: None,
        host_ip: Some(Ipv4Addr::LOCALHOST.into()),
        debug: false,
        kube2iam_metrics: false,
        mode: Mode::Standalone(Box::new(alone)),
        metadata_addr: imds.addr().to_string(),
        metadata: MetadataOptions {
            imds_v2: ImdsV2::Optional,
            allow: AllowList::new(&[])?,
            limits: LimitOptions::default(),
            header_time: Duration::from_secs(10),
        },
        container_credentials: Some(ContainerCredentialsOptions {
            listen: vec![LOOPBACK],
            audience: CONTAINER_CREDENTIALS_AUDIENCE.into(),
            node: NODE.into(),
            limits: LimitOptions::default(),
            header_time: Duration::from_secs(10),
        }),
        max_staleness: Duration::from_secs(3600),
        wait: Duration::from_secs(2),
        redirect: None,
        clock: Clock::system(),
    })
}

/// Splits a token into its decoded header and claims, and the signature.
fn parts(token: &str) -> anyhow::Result<(Value, Value, String)> {
    let mut parts = token.split('.');
    let mut json = || -> anyhow::Result<Value> {
        let part = parts.next().context("no part")?;
        Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
    };
    let (header, claims) = (json()?, json()?);
    Ok((header, claims, parts.next().context("no signature")?.into()))
}

fn signed(header: &Value, claims: &Value) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    format!("{header}.{claims}")
}

#[tokio::test]
async fn forged_tokens_are_refused() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let reader = fixture.run("reader", NODE, 1).await?;
    let writer = fixture.run("writer", NODE, 2).await?;
    let token = fixture.token(&reader).await?;
    let (status, document) = fixture.present(&token).await?;
    ensure!(status == 200, "{status} {document}");
    ensure!(document["AccountId"] == "123456789012", "{document}");
    ensure!(document["Expiration"].is_string(), "{document}");
    let (status, other) = fixture.present(&fixture.token(&writer).await?).await?;
    ensure!(status == 200, "{status} {other}");
    ensure!(
        document["AccessKeyId"] != other["AccessKeyId"],
        "one session for both"
    );

    let (header, claims, signature) = parts(&token)?;
    ensure!(header["alg"] == "RS256" && claims["kubernetes.io"]["node"]["name"] == NODE);
    // Changed claims with the signature of the good ones: the identity of the other pod.
    let mut writers = claims.clone();
    writers["kubernetes.io"]["pod"]["uid"] = json!(writer.uid());
    let stolen = format!("{}.{signature}", signed(&header, &writers));
    ensure!(fixture.refused(&stolen).await?.contains("signature"));
    // Without a signature.
    let none = json!({"alg": "none", "kid": header["kid"]});
    let unsigned = format!("{}.", signed(&none, &claims));
    ensure!(fixture.refused(&unsigned).await?.contains("algorithm"));
    // HMAC with the text of the published key as secret.
    let admin = fixture.cluster.admin()?;
    let request = http::Request::get("/openid/v1/jwks").body(Vec::new())?;
    let published = admin.request_text(request).await?;
    let symmetric = json!({"alg": "HS256", "kid": header["kid"]});
    let text = signed(&symmetric, &claims);
    let key = hmac::Key::new(hmac::HMAC_SHA256, published.as_bytes());
    let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes()));
    ensure!(
        fixture
            .refused(&format!("{text}.{tag}"))
            .await?
            .contains("algorithm")
    );
    // Another cluster's key, with this cluster's kid and with its own.
    let kid = header["kid"].as_str().context("no kid")?;
    let foreign = Signer::generate(kid, Algorithm::Rs256);
    ensure!(
        fixture
            .refused(&foreign.sign(&claims))
            .await?
            .contains("signature")
    );
    let foreign = Signer::generate("foreign", Algorithm::Rs256);
    ensure!(
        fixture
            .refused(&foreign.sign(&claims))
            .await?
            .contains("kid")
    );
    // Another audience, as tokens for the API server and for STS have.
    for audience in ["sts.amazonaws.com", fixture.cluster.url().as_str()] {
        let token = fixture.cluster.pod_token(&reader, audience).await?;
        ensure!(fixture.refused(&token).await?.contains("audience"));
    }
    // Huge, and not a token.
    let huge = "a".repeat(10_000);
    ensure!(fixture.refused(&huge).await?.contains("bytes"));
    ensure!(
        fixture
            .refused(&format!("Bearer {token}"))
            .await?
            .contains("cannot be parsed")
    );
    ensure!(
        fixture
            .sts
            .calls()
            .iter()
            .filter(|call| call.action == "AssumeRole")
            .count()
            == 2
    );
    Ok(())
}

#[tokio::test]
async fn threat_08_tokens_of_other_places_are_refused() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    // A pod of another node, whose token is replayed here.
    let elsewhere = fixture.run("elsewhere", "cc-other", 3).await?;
    let token = fixture.token(&elsewhere).await?;
    ensure!(
        fixture
            .refused(&token)
            .await?
            .contains("does not exist on this node")
    );
    // A token that a user with the right to create serviceaccounts/token requests without a pod, and
    // one that is bound to the node.
    let request = |bound| {
        fixture
            .cluster
            .request_token(NAMESPACE, "default", CONTAINER_CREDENTIALS_AUDIENCE, bound)
    };
    ensure!(
        fixture
            .refused(&request(None).await?)
            .await?
            .contains("not bound to a pod")
    );
    let node = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(NODE.into()),
        uid: None,
    };
    ensure!(
        fixture
            .refused(&request(Some(node)).await?)
            .await?
            .contains("not bound to a pod")
    );
    // A pod that is deleted: its token and its cached verification end at once.
    let reader = fixture.run("reader", NODE, 1).await?;
    let token = fixture.token(&reader).await?;
    ensure!(fixture.present(&token).await?.0 == 200);
    fixture.cluster.delete_pod(NAMESPACE, "reader").await?;
    eventually(DEADLINE, async || {
        ensure!(fixture.refused(&token).await?.contains("does not exist"));
        Ok(())
    })
    .await?;
    // A pod of the same name is another one.
    let again = fixture.run("reader", NODE, 1).await?;
    ensure!(fixture.present(&fixture.token(&again).await?).await?.0 == 200);
    ensure!(fixture.refused(&token).await?.contains("does not exist"));
    // A pod that is still pending, for which a CSI driver asks.
    fixture.create_account("pending").await?;
    let pending = TestPod::new(NAMESPACE, "pending", NODE).service_account("pending");
    let pending = fixture.cluster.create_pod(&pending).await?;
    ensure!(fixture.present(&fixture.token(&pending).await?).await?.0 == 200);
    Ok(())
}

#[tokio::test]
async fn keys_rotate_under_load_without_a_refusal() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let reader = fixture.run("reader", NODE, 1).await?;
    let old = fixture.token(&reader).await?;
    ensure!(fixture.present(&old).await?.0 == 200);
    let served = AtomicUsize::new(0);
    let rotated = async {
        fixture.cluster.rotate_service_account_key().await?;
        let new = fixture.token(&reader).await?;
        ensure!(
            parts(&new)?.0["kid"] != parts(&old)?.0["kid"],
            "the key is the same"
        );
        // The first request with the new key, and more with both.
        let before = served.load(Ordering::Relaxed);
        for token in [&new, &old].into_iter().cycle().take(50) {
            let (status, body) = fixture.present(token).await?;
            ensure!(status == 200, "{status} {body}");
        }
        while served.load(Ordering::Relaxed) < before + 50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    let load = async {
        loop {
            let (status, body) = fixture.present(&old).await?;
            ensure!(status == 200, "{status} {body}");
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::select! {
        done = rotated => done,
        failed = load => failed,
    }
}
