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

use super::stage::{DEADLINE, GRANTS, Stage, alone, refused, taken};

const SECRET: &str = "rolegate-admission-tls";
const INJECT: &str = "cert-manager.io/inject-ca-from";

/// Writes the Secret as cert-manager does when it issues or renews; `authority` signed the chain.
async fn issue(stage: &Stage, pair: &Pair, authority: &str) -> anyhow::Result<()> {
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
    stage.cluster.apply_manifest(&secret.to_string()).await?;
    Ok(())
}

/// Acts as cert-manager's injector for a configuration with its annotation: copies the Secret's
/// `ca.crt` to the `caBundle` of each webhook.
async fn inject(stage: &Stage) -> anyhow::Result<()> {
    let admin = stage.cluster.requests()?;
    let mut registration = taken("the registration", admin.get(REGISTRATION).await?)?;
    let from = &registration["metadata"]["annotations"][INJECT];
    ensure!(*from == format!("{HOME}/rolegate-admission"), "{from}");
    let secrets = Api::<Secret>::namespaced(stage.cluster.admin()?, HOME);
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
fn served(stage: &Stage) -> usize {
    let log = stage.gate.admission.log();
    log.matches("serving a new certificate").count()
}

async fn until_served(stage: &Stage, count: usize) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        ensure!(served(stage) == count, "{} are served", served(stage));
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
    let mut gate = TestAdmission::bare(&cluster, Certificate::CertManager).await?;
    gate.restart_controller(&cluster, "localhost").await?;
    let from = format!("{HOME}/rolegate-admission");
    registration["metadata"]["annotations"] = json!({ INJECT: from });
    gate.register(&cluster, &mut registration, None).await?;
    let mut stage = Stage { cluster, gate };

    // Without the Secret the webhook is not ready, and reports the missing Secret.
    eventually(DEADLINE, async || {
        let answer = stage.gate.operators("/readyz").await?;
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        ensure!(
            answer.contains(&format!("{SECRET} does not exist")),
            "{answer}"
        );
        Ok(())
    })
    .await?;
    let first = Pair::by_authority(&stage.cluster)?;
    let authority = stage.cluster.ca_pem();
    issue(&stage, &first, &authority).await?;
    inject(&stage).await?;
    stage.gate.ready().await?;
    stage.gate.until_called(&stage.cluster).await?;
    let namespace = "shop";
    stage.shop(namespace).await?;
    until_served(&stage, 1).await?;

    // The same authority renews the certificate while requests arrive.
    let second = Pair::by_authority(&stage.cluster)?;
    let ask = async || {
        taken("a pod", stage.try_pod(namespace, "shop-reader").await?)?;
        let answer = stage.try_pod(namespace, "admin").await?;
        refused("a pod with another role", &answer, &["role/admin"])
    };
    ask().await?;
    issue(&stage, &second, &authority).await?;
    while served(&stage) < 2 {
        ask().await.context("while it is renewed")?;
    }
    ask().await?;

    // An incomplete Secret, or one whose key does not match, leaves the last valid certificate in
    // use.
    let broken = Pair {
        chain: second.chain.clone(),
        key: first.key.clone(),
    };
    issue(&stage, &broken, &authority).await?;
    eventually(DEADLINE, async || {
        let answer = stage.gate.operators("/readyz").await?;
        ensure!(answer.contains("[!] certificate:"), "{answer}");
        Ok(())
    })
    .await?;
    ask().await.context("with a Secret that cannot be served")?;

    // Another authority: the injector updates the configuration, without a restart of the webhook.
    let own = Pair::self_signed()?;
    issue(&stage, &own, &own.chain).await?;
    until_served(&stage, 3).await?;
    inject(&stage).await?;
    stage.until_allowed(namespace, "shop-reader").await?;
    stage.until_refused(namespace, "admin").await?;
    let metrics = stage.gate.operators("/metrics").await?;
    let left = "rolegate_certificate_expiration_timestamp_seconds{certificate=\"admission\"} ";
    ensure!(metrics.contains(left), "{metrics}");

    // The controller's updates of the configuration keep the injector's changes.
    let admin = stage.cluster.requests()?;
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
    stage.until_allowed(namespace, "shop-reader").await?;
    let secrets = Api::<Secret>::namespaced(stage.cluster.admin()?, HOME);
    let data = secrets.get(SECRET).await?.data.unwrap_or_default();
    ensure!(
        data.get("tls.crt") == Some(&ByteString(own.chain.into())),
        "the controller wrote the Secret"
    );
    Ok(())
}
