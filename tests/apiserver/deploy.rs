//! The manifests of `deploy/`: the API server accepts them, and they grant the rights that the
//! agent needs and no others.

use std::collections::BTreeSet;
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, ResourceRule, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
    SelfSubjectRulesReview, SelfSubjectRulesReviewSpec,
};
use k8s_openapi::api::core::v1::PodSpec;
use kube::api::PostParams;
use kube::{Api, Client};
use rolegate_testkit::{Cluster, Rolegate, eventually, repository};

const NAMESPACE: &str = "rolegate-system";
const ACCOUNT: &str = "rolegate-agent";
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// The cluster with the manifest applied.
async fn installed() -> &'static Cluster {
    let cluster = Cluster::shared().await.unwrap();
    cluster.install(&[]).await.unwrap();
    let applied = cluster.apply_file(&manifest()).await.unwrap();
    assert_eq!(applied.len(), 4);
    cluster
}

fn manifest() -> PathBuf {
    repository().join("deploy/rolegate-agent.yaml")
}

async fn agent(cluster: &Cluster) -> Client {
    let token = cluster.service_account_token(NAMESPACE, ACCOUNT).await;
    cluster.client_as_token(&token.unwrap()).unwrap()
}

async fn daemon_set(cluster: &Cluster) -> DaemonSet {
    let sets = Api::namespaced(cluster.admin().unwrap(), NAMESPACE);
    sets.get("rolegate-agent").await.unwrap()
}

#[tokio::test]
async fn manifest_is_accepted_and_can_surge() {
    let spec = daemon_set(installed().await).await.spec.unwrap();
    let update = spec.update_strategy.unwrap().rolling_update.unwrap();
    assert_eq!(format!("{:?}", update.max_surge.unwrap()), "Int(1)");
    assert_eq!(format!("{:?}", update.max_unavailable.unwrap()), "Int(0)");
    let pod = spec.template.spec.unwrap();
    // A declared port becomes a host port in the node's network, and forbids the surge.
    for container in pod.containers {
        assert_eq!(container.ports, None, "{}", container.name);
    }
    assert_eq!(pod.host_network, Some(true));
}

#[tokio::test]
async fn manifest_uses_flags_the_binary_has() {
    let pod = daemon_set(installed().await).await.spec.unwrap().template;
    has_flags("agent", &pod.spec.unwrap()).await;
}

/// Fails if the pod's container has arguments that the command does not know.
pub(crate) async fn has_flags(command: &str, pod: &PodSpec) {
    let help = Rolegate::output(&[command, "--help"]).await.unwrap();
    let shared = Rolegate::output(&["options"]).await.unwrap();
    let help = String::from_utf8([help.stdout, shared.stdout].concat()).unwrap();
    let known: BTreeSet<&str> = help
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .collect();
    let args = pod.containers[0].args.as_ref().unwrap();
    assert_eq!(args[0], command);
    for flag in &args[1..] {
        let name = flag.split('=').next().unwrap();
        assert!(known.contains(name), "rolegate {command} has no {name}");
    }
}

#[tokio::test]
async fn agent_may_do_this_and_not_that() {
    let client = agent(installed().await).await;
    let table = [
        ("list", "", "pods", true),
        ("watch", "", "pods", true),
        ("watch", "", "namespaces", true),
        ("get", "", "namespaces", true),
        ("get", "", "nodes", false),
        ("list", "", "nodes", false),
        ("create", "events.k8s.io", "events", true),
        ("patch", "events.k8s.io", "events", false),
        ("watch", "", "nodes", false),
        ("patch", "", "pods", false),
        ("create", "", "pods/exec", false),
        ("patch", "", "namespaces", false),
        ("get", "", "secrets", false),
        ("list", "", "configmaps", false),
        ("create", "", "serviceaccounts/token", false),
        ("impersonate", "", "serviceaccounts", false),
        ("list", "events.k8s.io", "events", false),
        ("delete", "events.k8s.io", "events", false),
    ];
    for (verb, group, resource, allowed) in table {
        // Bindings take effect a moment after their creation.
        eventually(DEADLINE, async || {
            let is = may(&client, verb, group, resource).await?;
            anyhow::ensure!(is == allowed, "{verb} {group}/{resource}: {is}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

async fn may(client: &Client, verb: &str, group: &str, resource: &str) -> anyhow::Result<bool> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[tokio::test]
async fn agent_may_nothing_beyond_that() {
    let cluster = installed().await;
    let expected = [
        "create events.k8s.io/events",
        "get,list,watch /namespaces,pods",
        "get,list,watch rolegate.dev/rolegateconfigs,rolegrants",
    ];
    may_exactly(cluster, ACCOUNT, "default", &expected).await;
}

/// Fails if the service account has a right in a namespace that ordinary users do not have.
pub(crate) async fn may_exactly(
    cluster: &Cluster,
    account: &str,
    namespace: &str,
    expected: &[&str],
) {
    cluster
        .create_service_account(NAMESPACE, "bystander")
        .await
        .unwrap();
    let client = async |account: &str| {
        let token = cluster.service_account_token(NAMESPACE, account).await;
        cluster.client_as_token(&token.unwrap()).unwrap()
    };
    let everyone = rights(&client("bystander").await, namespace).await;
    let client = client(account).await;
    let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
    // Bindings take effect a moment after their creation.
    eventually(DEADLINE, async || {
        let all = rights(&client, namespace).await;
        let own: BTreeSet<_> = all.difference(&everyone).cloned().collect();
        anyhow::ensure!(own == expected, "{account}: {own:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Returns every rule that applies to this client in a namespace, as text in a stable order.
async fn rights(client: &Client, namespace: &str) -> BTreeSet<String> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.to_owned()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let reviews = Api::<SelfSubjectRulesReview>::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let status = answer.unwrap().status.unwrap();
    assert!(!status.incomplete);
    status.resource_rules.iter().map(one_line).collect()
}

fn one_line(rule: &ResourceRule) -> String {
    let sorted = |list: &[String]| {
        let set: BTreeSet<&str> = list.iter().map(String::as_str).collect();
        Vec::from_iter(set).join(",")
    };
    let groups = sorted(rule.api_groups.as_deref().unwrap_or_default());
    let resources = sorted(rule.resources.as_deref().unwrap_or_default());
    let names = match rule.resource_names.as_deref().unwrap_or_default() {
        [] => String::new(),
        names => format!(" {}", sorted(names)),
    };
    format!("{} {groups}/{resources}{names}", sorted(&rule.verbs))
}
