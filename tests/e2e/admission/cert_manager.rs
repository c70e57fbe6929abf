//! A certificate that cert-manager maintains. The test writes the Secret and the injector's changes
//! as cert-manager does. The controller creates no certificate and changes neither.

use anyhow::{Context, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rolegate_testkit::admission::{Certificate, HOME, REGISTRATION};
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, TestAdmission, eventually};
use serde_json::{Value, json};

use super::harness::{DEADLINE, GRANTS, WebhookHarness, alone, refused, taken};

const SECRET: &str = "rolegate-admission-tls";
const INJECT: &str = "cert-manager.io/inject-ca-from";

/// Writes the Secret as cert-manager does when it issues or renews; `authority` signed the chain.
async fn issue(harness: &WebhookHarness, pair: &Pair, authority: &str) -> anyhow::Result<()> {
    let data = |pem: &str| ByteString(pem.into());
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {
            "name": SECRET, "namespace": HOME,
            "labels": { "controller.cert-manager.io/fao": "true" },
            "annotations": {
                "cert-manager.io/alt-names": "rolegate-admission.rolegate-system.svc",
                "cert-manager.io/certificate-name": "rolegate-admission",
                "cert-manager.io/common-name": "",
                "cert-manager.io/ip-sans": "127.0.0.1",
                "cert-manager.io/issuer-group": "cert-manager.io",
                "cert-manager.io/issuer-kind": "Issuer",
                "cert-manager.io/issuer-name": "ours",
                "cert-manager.io/uri-sans": "",
            },
        },
        "data": {
            "ca.crt": data(authority), "tls.crt": data(&pair.chain), "tls.key": data(&pair.key),
        },
    });
    harness.cluster.apply_manifest(&secret.to_string()).await?;
    Ok(())
}

/// Acts as cert-manager's injector for a configuration with its annotation: copies the Secret's
/// `ca.crt` to the `caBundle` of each webhook.
async fn inject(harness: &WebhookHarness) -> anyhow::Result<()> {
    let admin = harness.cluster.requests()?;
    let mut registration = taken("the registration", admin.get(REGISTRATION).await?)?;
    let from = &registration["metadata"]["annotations"][INJECT];
    ensure!(*from == format!("{HOME}/rolegate-admission"), "{from}");
    let secrets = Api::<Secret>::namespaced(harness.cluster.admin()?, HOME);
    let mut data = secrets.get(SECRET).await?.data.context("no data")?;
    let authority = data.remove("ca.crt").context("no authority")?;
    let webhooks = registration["webhooks"].as_array_mut();
    for webhook in webhooks.context("no webhooks")? {
        webhook["clientConfig"]["caBundle"] = serde_json::to_value(&authority)?;
    }
    taken(
        "what the injector writes",
        admin.put(REGISTRATION, &registration).await?,
    )?;
    Ok(())
}

/// A chain and its key, as PEM.
struct Pair {
    chain: String,
    key: String,
}

impl Pair {
    /// Issues a new chain from the cluster's authority.
    fn by_authority(cluster: &Cluster) -> anyhow::Result<Self> {
        let (chain, key) = cluster.serving_pair("cert-manager", &["127.0.0.1"])?;
        Ok(Self {
            chain: std::fs::read_to_string(chain)?,
            key: std::fs::read_to_string(key)?,
        })
    }

    /// Issues a certificate that is its own authority, like an issuer of kind SelfSigned.
    fn self_signed() -> anyhow::Result<Self> {
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        Ok(Self {
            chain: pair.cert.pem(),
            key: pair.signing_key.serialize_pem(),
        })
    }
}

/// Returns the number of certificates that the webhook has loaded so far.
fn served(harness: &WebhookHarness) -> usize {
    let log = harness.test_admission.admission.log();
    log.matches("serving a new certificate").count()
}

async fn until_served(harness: &WebhookHarness, count: usize) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        ensure!(served(harness) == count, "{} are served", served(harness));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_cert_manager_is_served_and_its_renewal_loses_no_request()
-> anyhow::Result<()> {
    let _alone = alone().await?;
    let cluster = Cluster::start().await?;
    let mut registration = cluster.install_admission().await?;
    cluster.open_to(&["developers", "platform"]).await?;
    cluster.apply_manifest(GRANTS).await?;
    let mut test_admission = TestAdmission::bare(&cluster, Certificate::CertManager).await?;
    test_admission
        .restart_controller(&cluster, "localhost")
        .await?;
    let from = format!("{HOME}/rolegate-admission");
    registration["metadata"]["annotations"] = json!({ INJECT: from });
    test_admission
        .register(&cluster, &mut registration, None)
        .await?;
    let mut harness = WebhookHarness {
        cluster,
        test_admission,
    };

    // Without the Secret the webhook is not ready, and reports the missing Secret.
    eventually(DEADLINE, async || {
        let answer = harness.test_admission.operators("/readyz").await?;
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        ensure!(
            answer.contains(&format!("{SECRET} does not exist")),
            "{answer}"
        );
        Ok(())
    })
    .await?;
    let first = Pair::by_authority(&harness.cluster)?;
    let authority = harness.cluster.ca_pem();
    issue(&harness, &first, &authority).await?;
    inject(&harness).await?;
    harness.test_admission.ready().await?;
    harness
        .test_admission
        .until_called(&harness.cluster)
        .await?;
    let namespace = "shop";
    harness.shop(namespace).await?;
    until_served(&harness, 1).await?;

    // The same authority renews the certificate while requests arrive.
    let second = Pair::by_authority(&harness.cluster)?;
    let ask = async || {
        taken("a pod", harness.try_pod(namespace, "shop-reader").await?)?;
        let answer = harness.try_pod(namespace, "admin").await?;
        refused("a pod with another role", &answer, &["role/admin"])
    };
    ask().await?;
    issue(&harness, &second, &authority).await?;
    while served(&harness) < 2 {
        ask().await.context("while it is renewed")?;
    }
    ask().await?;

    // An incomplete Secret, or one whose key does not match, leaves the last valid certificate in
    // use.
    let broken = Pair {
        chain: second.chain.clone(),
        key: first.key.clone(),
    };
    issue(&harness, &broken, &authority).await?;
    eventually(DEADLINE, async || {
        let answer = harness.test_admission.operators("/readyz").await?;
        ensure!(answer.contains("[!] certificate:"), "{answer}");
        Ok(())
    })
    .await?;
    ask().await.context("with a Secret that cannot be served")?;

    // Another authority: the injector updates the configuration, without a restart of the webhook.
    let own = Pair::self_signed()?;
    issue(&harness, &own, &own.chain).await?;
    until_served(&harness, 3).await?;
    inject(&harness).await?;
    harness.until_allowed(namespace, "shop-reader").await?;
    harness.until_refused(namespace, "admin").await?;
    let metrics = harness.test_admission.operators("/metrics").await?;
    let left = "rolegate_certificate_expiration_timestamp_seconds{certificate=\"admission\"} ";
    ensure!(metrics.contains(left), "{metrics}");

    // The controller's updates of the configuration keep the injector's changes.
    let admin = harness.cluster.requests()?;
    let kinds = json!({ "spec": { "workloadKinds": [{ "preset": "argo-rollouts" }] } });
    let config = "/apis/rolegate.dev/v1alpha1/rolegateconfigs/cluster";
    taken(
        "another custom kind",
        admin.patch(config, PatchKind::Merge, &kinds).await?,
    )?;
    let bundle = serde_json::to_value(ByteString(own.chain.as_str().into()))?;
    eventually(DEADLINE, async || {
        let registration: Value = taken("the registration", admin.get(REGISTRATION).await?)?;
        ensure!(registration.to_string().contains("rollouts"), "not yet");
        let webhooks = registration["webhooks"].as_array().context("none")?;
        let kept = |webhook: &Value| webhook["clientConfig"]["caBundle"] == bundle;
        ensure!(webhooks.iter().all(kept), "{registration}");
        Ok(())
    })
    .await?;
    harness.until_allowed(namespace, "shop-reader").await?;
    let secrets = Api::<Secret>::namespaced(harness.cluster.admin()?, HOME);
    let data = secrets.get(SECRET).await?.data.unwrap_or_default();
    ensure!(
        data.get("tls.crt") == Some(&ByteString(own.chain.into())),
        "the controller wrote the Secret"
    );
    Ok(())
}
