//! The manifests of `deploy/` for clusters with brokers: the broker has the rights that it needs
//! and no others, and the agents have none.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, PodSpec, Service};
use kube::{Api, ResourceExt};
use rolegate_testkit::{Cluster, Rolegate, repository};
use tokio::sync::OnceCell;

use crate::deploy::{has_flags, may_exactly};

const NAMESPACE: &str = "rolegate-system";

/// A cluster with only these manifests, since the manifest of standalone agents grants rights to
/// the same service account.
async fn installed() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    let start = async || {
        let cluster = Cluster::start().await.unwrap();
        cluster.install(&[]).await.unwrap();
        for (manifest, objects) in [("rolegate-broker", 10), ("rolegate-agent-broker", 2)] {
            let path = repository().join(format!("deploy/{manifest}.yaml"));
            assert_eq!(cluster.apply_file(&path).await.unwrap().len(), objects);
        }
        cluster
    };
    CLUSTER.get_or_init(start).await
}

async fn broker() -> PodSpec {
    let sets = Api::<Deployment>::namespaced(installed().await.admin().unwrap(), NAMESPACE);
    let set = sets.get("rolegate-broker").await.unwrap();
    set.spec.unwrap().template.spec.unwrap()
}

async fn agent() -> PodSpec {
    let sets = Api::<DaemonSet>::namespaced(installed().await.admin().unwrap(), NAMESPACE);
    let set = sets.get("rolegate-agent").await.unwrap();
    set.spec.unwrap().template.spec.unwrap()
}

fn argument(pod: &PodSpec, flag: &str) -> String {
    let args = pod.containers[0].args.as_deref().unwrap();
    let value = args.iter().find_map(|arg| arg.strip_prefix(flag));
    value.unwrap().to_owned()
}

#[tokio::test]
async fn an_agent_with_a_broker_has_no_right_at_all() {
    may_exactly(installed().await, "rolegate-agent", NAMESPACE, &[]).await;
    may_exactly(installed().await, "rolegate-agent", "default", &[]).await;
    let manifest = repository().join("deploy/rolegate-agent-broker.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    assert!(!manifest.contains("rbac.authorization.k8s.io"));
    assert_eq!(agent().await.automount_service_account_token, Some(false));
}

#[tokio::test]
async fn a_broker_may_exactly_this() {
    let everywhere = [
        "create authentication.k8s.io/tokenreviews",
        "create events.k8s.io/events",
        "get,list,watch /namespaces,pods",
        "get,list,watch rolegate.dev/rolegateconfigs,rolegrants",
    ];
    let cluster = installed().await;
    may_exactly(cluster, "rolegate-broker", "default", &everywhere).await;
    let mut at_home = everywhere.to_vec();
    at_home.push("get,list,watch /secrets rolegate-broker-tls");
    may_exactly(cluster, "rolegate-broker", NAMESPACE, &at_home).await;
}

#[tokio::test]
async fn the_controller_may_make_the_brokers_certificate_and_no_other() {
    let cluster = installed().await;
    cluster
        .create_service_account(NAMESPACE, "rolegate-controller")
        .await
        .unwrap();
    let at_home = [
        "create /configmaps,secrets",
        "get /services rolegate-broker",
        "get,list,patch,watch /configmaps rolegate-broker-ca",
        "get,list,update,watch /secrets rolegate-broker-tls",
    ];
    may_exactly(cluster, "rolegate-controller", NAMESPACE, &at_home).await;
    may_exactly(cluster, "rolegate-controller", "default", &[]).await;
}

#[tokio::test]
async fn broker_and_agent_fit_together() {
    let (broker, agent) = (broker().await, agent().await);
    has_flags("broker", &broker).await;
    has_flags("agent", &agent).await;

    // The agents resolve the brokers' Service by the name in their flags, each to all replicas.
    let services = Api::<Service>::namespaced(installed().await.admin().unwrap(), NAMESPACE);
    let service = services.get("rolegate-broker").await.unwrap();
    let name = format!("https://{}.{NAMESPACE}.svc", service.name_any());
    let spec = service.spec.unwrap();
    assert_eq!(spec.cluster_ip.as_deref(), Some("None"));
    let port = spec.ports.unwrap()[0].port;
    assert_eq!(argument(&agent, "--broker="), format!("{name}:{port}"));
    let ports = broker.containers[0].ports.clone().unwrap();
    assert_eq!(ports[0].container_port, port);
    assert_eq!(agent.dns_policy.as_deref(), Some("ClusterFirstWithHostNet"));

    // Agents run on all nodes, including those of brokers, whatever taints keep other pods away.
    let tolerations = agent.tolerations.clone().unwrap();
    let all = tolerations.iter().any(|it| {
        (
            it.key.as_deref(),
            it.effect.as_deref(),
            it.operator.as_deref(),
        ) == (None, None, Some("Exists"))
    });
    assert!(all, "{tolerations:?}");
    let selector = agent.node_selector.clone().unwrap();
    assert_eq!(selector.keys().collect::<Vec<_>>(), ["kubernetes.io/os"]);

    // Agent and broker can share a node and its network.
    assert_eq!(
        (broker.host_network, agent.host_network),
        (Some(true), Some(true))
    );
    let metrics = "--metrics-address=";
    assert_ne!(argument(&broker, metrics), argument(&agent, metrics));

    // The token and the authority are mounted at the paths that the agent reads.
    let volumes = agent.volumes.clone().unwrap();
    let volume = |name: &str| volumes.iter().find(|it| it.name == name).unwrap();
    let projected = volume("broker-token").projected.clone().unwrap();
    let token = projected.sources.unwrap()[0].service_account_token.clone();
    let token = token.unwrap();
    let help = Rolegate::output(&["broker", "--help"]).await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let audience = format!("[default: {}]", token.audience.unwrap());
    assert!(help.contains(&audience), "{audience}");
    let ca: ConfigMapVolumeSource = volume("broker-ca").config_map.clone().unwrap();
    // The agent must start without the ConfigMap, since it installs the redirect.
    assert_eq!((&*ca.name, ca.optional), ("rolegate-broker-ca", Some(true)));
    let help = Rolegate::output(&["agent", "--help"]).await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mounts = agent.containers[0].volume_mounts.clone().unwrap();
    for (volume, file) in [("broker-token", &*token.path), ("broker-ca", "ca.crt")] {
        let mount = mounts.iter().find(|it| it.name == volume).unwrap();
        let path = format!("{}/{file}", mount.mount_path);
        assert!(help.contains(&path), "{path}");
    }
}
