//! The Helm chart on real nodes: installed, upgraded, rolled back and uninstalled.

use std::collections::BTreeSet;

use anyhow::ensure;
use rolegate_testkit::nodes::{ClientPod, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};

use crate::ask::{Asking, DEADLINE};
use crate::update::ask_until_stopped;

/// The namespace of the release.
const NAMESPACE: &str = "rolegate-system";
/// The taint with which nodes register.
const STARTUP_TAINT: &str = "rolegate.dev/agent-not-ready";
/// All parts: brokers with the nodes' role, and the webhook.
const ALL_PARTS: [&str; 8] = [
    "--set",
    "broker.enabled=true",
    "--set",
    "broker.hostNetwork=true",
    "--set",
    "admission.enabled=true",
    "--set",
    "config.baseRoleArn=arn:aws:iam::123456789012:role/",
];

/// Runs `helm ACTION rolegate CHART` with the image that the nodes have, and these further
/// arguments. Waits until everything is ready.
async fn release(cluster: &TestCluster, action: &str, more: &[&str]) -> anyhow::Result<String> {
    let chart = cluster.chart();
    let chart = [
        action,
        "rolegate",
        &*chart,
        "-n",
        NAMESPACE,
        "--create-namespace",
    ];
    let image = ["--set", "image.repository=ghcr.io/rolegate/rolegate"];
    let wait = ["--wait", "--timeout", "4m"];
    let chart = if action == "upgrade" {
        &chart[..5]
    } else {
        &chart[..]
    };
    cluster.helm(&[chart, &image, &wait, more].concat()).await
}

async fn reader<'a>(cluster: &'a TestCluster, node: &'a str) -> anyhow::Result<Asking<'a>> {
    let client = ClientPod {
        namespace: "default",
        name: node,
        role: Some("reader"),
        node: Some(node),
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    let asking = Asking {
        cluster,
        namespace: "default",
        pod: node,
    };
    asking.has_role("reader").await?;
    Ok(asking)
}

/// Returns the names of all objects in the cluster, but for those that the control plane creates
/// and deletes by itself.
async fn objects(cluster: &TestCluster) -> anyhow::Result<BTreeSet<String>> {
    let script = r#"kinds=$(kubectl api-resources --verbs=list -o name |
	grep -vE '^(events|leases\.coordination|endpoint|componentstatuses|apiservices|pods$|controllerrevisions)' |
	paste -sd,)
kubectl get "$kinds" -A --ignore-not-found \
	-o 'jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}'
kubectl get leases,endpointslices,controllerrevisions,pods -n rolegate-system --ignore-not-found \
	-o 'jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}'"#;
    let listed = cluster.shell()?.run(script).await?.ok()?;
    // Those of the namespace itself, which Helm does not delete.
    let own = |line: &str| {
        line.ends_with(&format!("/{NAMESPACE}"))
            || line == format!("ServiceAccount {NAMESPACE}/default")
            || line == format!("ConfigMap {NAMESPACE}/kube-root-ca.crt")
    };
    let lines = listed.lines().filter(|line| !own(line));
    Ok(lines.map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn chart_installs_and_serves() -> anyhow::Result<()> {
    let options = Options {
        cni: Cni::Ptp,
        startup_taint: Some(STARTUP_TAINT),
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    let taint = ["--set", "nodeTaint.enabled=true"];
    let notes = release(&cluster, "install", &taint).await?;
    ensure!(notes.contains("No central layer is enforced"), "{notes}");
    // The client tolerates no taint, so the controller has removed it.
    for node in ["node-1", "node-2"] {
        let asking = reader(&cluster, node).await?;
        let (status, body) = asking
            .get(&format!("{}node", crate::ask::CREDENTIALS))
            .await?;
        ensure!(status == 403 || status == 404, "{status} {body}");
    }

    let all = [&taint[..], &ALL_PARTS].concat();
    release(&cluster, "upgrade", &all).await?;
    let webhook = ["validatingwebhookconfiguration", "rolegate"];
    eventually(DEADLINE, async || cluster.get(&webhook).await).await?;
    for node in ["node-1", "node-2"] {
        let asking = Asking {
            cluster: &cluster,
            namespace: "default",
            pod: node,
        };
        asking.has_role("reader").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrade_and_rollback_lose_no_request() -> anyhow::Result<()> {
    let cluster = TestCluster::start(Options::default()).await?;
    release(&cluster, "install", &[]).await?;
    let first = reader(&cluster, "node-1").await?;
    let second = reader(&cluster, "node-2").await?;
    let agents = "daemonset/rolegate-agent";
    let changes = async {
        let changed = async {
            let next = [
                "--set-string",
                "agent.podAnnotations.example\\.com/version=2",
            ];
            release(&cluster, "upgrade", &next).await?;
            cluster.rolled_out(NAMESPACE, agents).await?;
            let back = ["rollback", "rolegate", "1", "-n", NAMESPACE, "--wait"];
            cluster.helm(&back).await?;
            cluster.rolled_out(NAMESPACE, agents).await
        };
        let changed = changed.await;
        for asking in [first, second] {
            asking.run(&["sh", "-c", ">/tmp/stop"]).await?;
        }
        changed
    };
    let [a, b] = [first, second].map(|asking| ask_until_stopped(asking, "reader"));
    let (a, b, changed) = tokio::join!(a, b, changes);
    changed?;
    for answers in [a?, b?] {
        crate::update::none_failed(&answers)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstall_leaves_nothing() -> anyhow::Result<()> {
    let cluster = TestCluster::start(Options::default()).await?;
    let before = objects(&cluster).await?;
    let kept = BTreeSet::from([
        "CustomResourceDefinition /rolegateconfigs.rolegate.dev".to_owned(),
        "CustomResourceDefinition /rolegrants.rolegate.dev".to_owned(),
        "CustomResourceDefinition /rolegranttables.rolegate.dev".to_owned(),
        "RoleGrant /kept".to_owned(),
    ]);
    for keep in [true, false] {
        let crds = format!("crds.keep={keep}");
        let crds = ["--set", &*crds];
        let take = ["--take-ownership"];
        release(
            &cluster,
            "install",
            &[&ALL_PARTS[..], &crds, &take].concat(),
        )
        .await?;
        let webhook = ["validatingwebhookconfiguration", "rolegate"];
        eventually(DEADLINE, async || cluster.get(&webhook).await).await?;
        if keep {
            let grant = "apiVersion: rolegate.dev/v1alpha1\nkind: RoleGrant\n\
                metadata: { name: kept }\nspec: { roles: [reader], subjects: [{ namespaces: [default] }] }\n";
            cluster.apply(grant).await?;
        }

        // Rules of the nodes stay without this step, so that pods don't get the nodes' role.
        let remove = ["--set", "agent.mode=remove"];
        release(
            &cluster,
            "upgrade",
            &[&ALL_PARTS[..], &crds, &remove].concat(),
        )
        .await?;
        cluster
            .rolled_out(NAMESPACE, "daemonset/rolegate-agent")
            .await?;
        eventually(DEADLINE, async || {
            for node in cluster.nodes() {
                let rules = node.shell("nft list ruleset; ip rule").await?.ok()?;
                ensure!(!rules.contains("169.254.169.254"), "{rules}");
                ensure!(!rules.contains("table inet rolegate"), "{rules}");
            }
            Ok(())
        })
        .await?;
        cluster
            .helm(&["uninstall", "rolegate", "-n", NAMESPACE, "--wait"])
            .await?;
        eventually(DEADLINE, async || {
            let left = objects(&cluster).await?;
            let left: BTreeSet<_> = left.difference(&before).cloned().collect();
            let expected = if keep { kept.clone() } else { BTreeSet::new() };
            ensure!(left == expected, "{left:#?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
