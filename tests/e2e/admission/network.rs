//! Objects with which the nodes' service proxies would divert pods' metadata requests, or give pods
//! another way to the metadata address: those that the API server itself rejects, those that the
//! webhook denies, and those that the kernel rules cover.

use anyhow::ensure;
use rolegate_testkit::request::{Answer, PatchKind};
use serde_json::{Value, json};

use super::harness::{WebhookHarness, refused, taken};

/// The addresses of metadata, container credentials and EKS Pod Identity. The API server rejects
/// link-local ones.
const LINK_LOCAL: [&str; 3] = ["169.254.169.254", "169.254.170.2", "169.254.170.23"];
const ROUTABLE: [&str; 2] = ["fd00:ec2::254", "fd00:ec2::23"];

/// Fails unless the API server's own validation rejected the object.
fn impossible(what: &str, answer: &Answer) -> anyhow::Result<()> {
    ensure!(
        answer.status == 422 && answer.message().contains("link-local"),
        "{what}: {} {}",
        answer.status,
        answer.message()
    );
    Ok(())
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "ports": [{ "port": 80 }] },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_21_no_service_is_at_a_metadata_address() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "diverted";
    harness.cluster.create_namespace(namespace, &[]).await?;
    let jane = harness.jane()?;
    let services = format!("/api/v1/namespaces/{namespace}/services");
    let plain = service("plain", json!({ "externalIPs": ["192.0.2.1"] }));
    taken("a Service", jane.post(&services, &plain).await?)?;
    let balanced = service("balanced", json!({ "type": "LoadBalancer" }));
    taken("a load balancer", jane.post(&services, &balanced).await?)?;
    let says = ["(layer guard, rule metadata address)"];
    for address in LINK_LOCAL {
        let spec = json!({ "externalIPs": [address] });
        let answer = jane.post(&services, &service("new", spec)).await?;
        impossible(&format!("external IP {address}"), &answer)?;
    }
    for address in LINK_LOCAL.into_iter().chain(ROUTABLE) {
        let spec = json!({ "type": "LoadBalancer", "loadBalancerIP": address });
        let answer = jane.post(&services, &service("new", spec)).await?;
        refused(&format!("load balancer {address}"), &answer, &says)?;
        let status = format!("{services}/balanced/status");
        let change = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": address }] } } });
        let answer = jane.patch(&status, PatchKind::Merge, &change).await?;
        refused(&format!("the status with {address}"), &answer, &says)?;
    }
    for address in ROUTABLE {
        let spec = json!({ "externalIPs": ["192.0.2.1", address] });
        let answer = jane.post(&services, &service("new", spec.clone())).await?;
        refused(&format!("external IP {address}"), &answer, &says)?;
        let change = json!({ "spec": spec });
        let path = format!("{services}/plain");
        let answer = jane.patch(&path, PatchKind::Merge, &change).await?;
        refused(&format!("a change to {address}"), &answer, &says)?;
    }
    Ok(())
}

/// A Service whose endpoint is the metadata address gives a pod nothing, since the kernel rejects
/// the packets that are forwarded to it (`threat_21_a_service_that_leads_to_the_metadata_address_…`
/// in the tests with network namespaces). So the webhook allows IPv6 endpoints; the API server
/// rejects those of IPv4 itself.
#[tokio::test(flavor = "multi_thread")]
async fn threat_21_endpoints_at_a_metadata_address_are_no_new_way() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "led";
    harness.cluster.create_namespace(namespace, &[]).await?;
    let jane = harness.jane()?;
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let endpoints = format!("/api/v1/namespaces/{namespace}/endpoints");
    for (address, family) in LINK_LOCAL
        .iter()
        .map(|address| (*address, "IPv4"))
        .chain(ROUTABLE.map(|address| (address, "IPv6")))
    {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "generateName": "led-", "labels": { "kubernetes.io/service-name": "led" } },
            "addressType": family, "ports": [{ "port": 80 }],
            "endpoints": [{ "addresses": [address] }],
        });
        let old = json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": { "generateName": "led-" },
            "subsets": [{ "addresses": [{ "ip": address }], "ports": [{ "port": 80 }] }],
        });
        for (path, object) in [(&slices, slice), (&endpoints, old)] {
            let answer = jane.post(path, &object).await?;
            let what = format!("{} with {address}", object["kind"]);
            match family {
                "IPv4" => impossible(&what, &answer)?,
                _ => drop(taken(&what, answer)?),
            }
        }
    }
    Ok(())
}
