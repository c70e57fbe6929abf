//! A cluster without rolegate's kinds, like one that migrates from kube2iam: the webhook, the agent
//! and the command line have only flags, and the same flags lead to the same decision.

use anyhow::{Context, ensure};
use k8s_openapi::ByteString;
use rolegate_testkit::admission::Certificate;
use rolegate_testkit::{Cluster, Rolegate, TestAdmission, eventually};
use serde_json::Value;

use super::harness::{DEADLINE, WebhookHarness, alone, pod};
use crate::ask::{self, CREDENTIALS};
use crate::fixture::{AgentFixture, Pod};

/// The pods: name, requested role, and address.
const PODS: [(&str, Option<&str>, &str); 4] = [
    ("reader", Some("reader"), "10.1.0.5"),
    ("admin", Some("admin"), "10.1.0.6"),
    ("own", Some("my-node"), "10.1.0.7"),
    ("plain", None, "10.1.0.8"),
];
/// The default role in one of the configurations.
const DEFAULT: &str = "basic";

/// Returns the webhook's verdicts for a pod like each of [`PODS`].
async fn at_admission(
    harness: &mut WebhookHarness,
    namespace: &str,
    flags: &[&str],
    certificate: Certificate,
) -> anyhow::Result<Vec<bool>> {
    let kubeconfig = harness.cluster.admin_kubeconfig()?;
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let export = ["policy", "export", "--format=webhook", &kubeconfig];
    let exported: Vec<_> = export.iter().chain(flags).copied().collect();
    let exported = Rolegate::output(&exported).await?;
    let mut registration: Value = serde_saphyr::from_slice(&exported.stdout)?;
    harness.test_admission =
        TestAdmission::with_flags(&harness.cluster, certificate, flags).await?;
    let authority = serde_json::to_value(ByteString(harness.cluster.ca_pem().into()))?;
    let registered =
        harness
            .test_admission
            .register(&harness.cluster, &mut registration, authority.as_str());
    registered.await?;
    harness.test_admission.ready().await?;
    harness
        .test_admission
        .until_called(&harness.cluster)
        .await?;
    let pods = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
    let jane = harness.jane()?;
    let mut allowed = Vec::new();
    for (name, role, _) in PODS {
        let answer = jane.post(&pods, &pod(&format!("new-{name}"), role)).await?;
        ensure!(
            answer.status.is_success() || answer.is_refused_by_webhook(),
            "{} {}",
            answer.status,
            answer.message()
        );
        allowed.push(answer.status.is_success());
    }
    Ok(allowed)
}

/// Returns the status that each of [`PODS`] gets from the agent.
async fn at_agent(
    fixture: &AgentFixture,
    pods: &[Pod],
    flags: &[&str],
) -> anyhow::Result<Vec<u16>> {
    let node = format!("--node={}", fixture.node);
    let agent = [
        "agent",
        "--redirect=nftables",
        "--host-interface=eni+",
        "--host-ip=10.0.0.1",
        "--host-ipv6=fd10::1",
        &node,
    ];
    let mut agent = fixture.spawn(agent.iter().chain(flags))?;
    fixture.ready(&mut agent).await?;
    let mut found = Vec::new();
    for ((_, role, _), pod) in PODS.iter().zip(pods) {
        let path = format!("{CREDENTIALS}{}", role.unwrap_or(DEFAULT));
        let reply = eventually(DEADLINE, async || {
            let reply = ask::get(pod, &path)?;
            ensure!(matches!(reply.status, 200 | 403 | 404), "{reply:?}");
            Ok(reply)
        });
        found.push(reply.await?.status);
    }
    agent.stop().await?;
    Ok(found)
}

/// Returns the decision about each of [`PODS`] that the command line prints.
async fn told(
    harness: &WebhookHarness,
    namespace: &str,
    flags: &[&str],
) -> anyhow::Result<Vec<String>> {
    let kubeconfig = harness.cluster.admin_kubeconfig()?;
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let mut found = Vec::new();
    for (name, ..) in PODS {
        let named = format!("pod/{name}");
        let explain = [
            "policy",
            "explain",
            &named,
            "-n",
            namespace,
            "-ojson",
            &kubeconfig,
        ];
        let explain: Vec<_> = explain.iter().chain(flags).copied().collect();
        let output = Rolegate::output(&explain).await?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let decision = answer["decision"].as_str().context("no decision")?;
        let code = output.status.code();
        ensure!(
            (code == Some(0)) == (decision == "allowed"),
            "{code:?} {answer}"
        );
        found.push(decision.to_owned());
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configuration_the_same_flags_are_the_same_decision_everywhere()
-> anyhow::Result<()> {
    let _alone = alone().await?;
    let cluster = Cluster::start().await?;
    cluster.install_admission_alone().await?;
    cluster.open_to(&["developers"]).await?;
    let fixture = AgentFixture::new("flags", &cluster).await?;
    let namespace = fixture.namespace("shop");
    let allowed = r#"["reader", "my-node"]"#;
    let annotation = [("iam.amazonaws.com/allowed-roles", allowed)];
    cluster.create_namespace(&namespace, &annotation).await?;
    let mut pods = Vec::new();
    for (name, role, address) in PODS {
        let pod = fixture.pod(address)?;
        let object = fixture.object("shop", name, &pod);
        let object = match role {
            Some(role) => object.role(role),
            None => object,
        };
        cluster.run_pod(&object).await?;
        pods.push(pod);
    }
    let (chain, key) = cluster.serving_pair("webhook", &["127.0.0.1"])?;
    let certificate = Certificate::Files(chain, key);
    let test_admission = TestAdmission::bare(&cluster, certificate.clone()).await?;
    let mut harness = WebhookHarness {
        cluster,
        test_admission,
    };

    let base = "--base-role-arn=arn:aws:iam::123456789012:role/";
    let default = format!("--default-role={DEFAULT}");
    for (flags, wanted) in [
        // As in kube2iam: every requested role is allowed.
        (&[base][..], ["allowed", "allowed", "allowed", "noRole"]),
        (
            &[
                base,
                "--namespace-restrictions",
                "--reserved-role=my-node",
                &default,
            ],
            ["allowed", "denied", "denied", "allowed"],
        ),
        (
            &[
                base,
                "--layer=namespace=enforce",
                "--namespace-key=example.com/roles",
                "--namespace-restrictions-default=allow",
                "--reserved-role=arn:aws:iam::123456789012:role/path/admin",
            ],
            ["allowed", "denied", "allowed", "noRole"],
        ),
    ] {
        let told = told(&harness, &namespace, flags).await?;
        assert_eq!(told, wanted, "rolegate policy explain {flags:?}");
        let statuses = wanted.map(|decision| match decision {
            "allowed" => 200,
            "denied" => 403,
            _ => 404,
        });
        let agents = at_agent(&fixture, &pods, flags).await?;
        assert_eq!(agents, statuses, "the agents with {flags:?}");
        let allowed = wanted.map(|decision| decision != "denied");
        let admitted = at_admission(&mut harness, &namespace, flags, certificate.clone()).await?;
        assert_eq!(admitted, allowed, "the webhook with {flags:?}");
    }
    Ok(())
}
