//! Reads the facts about a cluster. All requests run at the same time, a bounded number of each
//! kind.

use std::collections::BTreeSet;

use futures::StreamExt;
use jiff::Timestamp;
use rolegate_api::GROUP;
use rolegate_core::names;
use serde::Deserialize;

use super::facts::{ClusterFacts, PodReadiness, ReviewedRight, process_flags};
use super::process::{LABEL, Process};
use crate::objects::{Definition, Pod, Rule, ServerVersion};
use crate::reader::{Reader, everywhere, within};
use crate::reading::{Reading, Unread};
use crate::readyz::ReadyReport;

/// Number of requests of one kind at a time.
const CONCURRENCY: usize = 8;
/// Maximum number of pods whose `/readyz` is requested.
const MAX_PAGES: usize = 64;
/// The default port of metrics and health of admission and controller.
const METRICS_PORT: u16 = 9090;
/// The group and version of rolegate's kinds.
const OURS: &str = "rolegate.dev/v1alpha1";
/// The definitions that processes read.
const DEFINITIONS: [&str; 2] = ["rolegrants", "rolegateconfigs"];

/// Reads everything.
pub(super) async fn gather(
    reader: &Reader,
    version: Reading<ServerVersion>,
    namespace: &str,
    now: Timestamp,
) -> ClusterFacts {
    let slices = format!(
        "labelSelector=kubernetes.io/service-name%3D{}",
        names::ADMISSION
    );
    let webhooks = everywhere(
        "admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
    );
    let leases = within("coordination.k8s.io/v1", "leases", namespace);
    let (
        definitions,
        nodes,
        daemonsets,
        deployments,
        pods,
        configs,
        grants,
        webhook,
        endpoints,
        lease,
    ) = tokio::join!(
        definitions(reader),
        reader.list(everywhere("v1", "nodes"), ""),
        reader.list(within("apps/v1", "daemonsets", namespace), ""),
        reader.list(within("apps/v1", "deployments", namespace), ""),
        pods(reader, namespace),
        reader.list::<Rule>(everywhere(OURS, "rolegateconfigs"), ""),
        reader.list::<Rule>(everywhere(OURS, "rolegrants"), ""),
        reader.get(webhooks, names::WEBHOOK),
        reader.list(
            within("discovery.k8s.io/v1", "endpointslices", namespace),
            &slices
        ),
        reader.get(leases, names::CONTROLLER),
    );
    let mut facts = ClusterFacts {
        now,
        namespace: namespace.to_owned(),
        version,
        definitions,
        nodes,
        daemonsets,
        deployments,
        pods,
        readiness: Vec::new(),
        rights: Ok(Vec::new()),
        configs,
        grants,
        webhook,
        endpoints,
        lease,
    };
    let (readiness, rights) = tokio::join!(readiness(reader, &facts), rights(reader, &facts));
    facts.readiness = readiness;
    facts.rights = rights;
    facts
}

async fn definitions(reader: &Reader) -> Reading<Vec<Definition>> {
    let kind = everywhere("apiextensions.k8s.io/v1", "customresourcedefinitions");
    let read = DEFINITIONS.map(|plural| async move {
        let name = format!("{plural}.{GROUP}");
        reader.get::<Definition>(kind, &name).await
    });
    let mut found = Vec::new();
    for definition in futures::future::join_all(read).await {
        found.extend(definition?);
    }
    Ok(found)
}

async fn pods(reader: &Reader, namespace: &str) -> Reading<Vec<Pod>> {
    let names = Process::ALL.map(Process::name).join("%2C");
    let key = LABEL.replace('/', "%2F");
    let selector = format!("labelSelector={key}%20in%20%28{names}%29");
    reader
        .list(within("v1", "pods", namespace), &selector)
        .await
}

/// Requests `/readyz` of each pod. Pods on the host's network serve it on the loopback interface of
/// their node, where the API server cannot reach it.
async fn readiness(reader: &Reader, facts: &ClusterFacts) -> Vec<PodReadiness> {
    let pods = facts.pods.as_deref().unwrap_or_default();
    let mut left = MAX_PAGES;
    let read = pods.iter().filter(|pod| pod.is_live()).map(|pod| {
        let is_asked = pod.spec.host_network || left > 0;
        if !pod.spec.host_network {
            left = left.saturating_sub(1);
        }
        async move {
            let report = if is_asked {
                report(reader, &facts.namespace, pod).await
            } else {
                let why = format!("more than {MAX_PAGES} pods serve /readyz");
                Err(Unread::Depends(why))
            };
            PodReadiness {
                pod: pod.metadata.name.clone(),
                report,
            }
        }
    });
    futures::stream::iter(read)
        .buffered(CONCURRENCY)
        .collect()
        .await
}

async fn report(reader: &Reader, namespace: &str, pod: &Pod) -> Reading<ReadyReport> {
    let name = &pod.metadata.name;
    if pod.spec.host_network {
        return Err(Unread::OutOfReach {
            why: format!("{name} serves /readyz on its node only"),
            instead: "`rolegate doctor node` on that node reads it".into(),
        });
    }
    if pod.status.pod_ip.is_empty() {
        return Err(Unread::Depends(format!("{name} has no address yet")));
    }
    let page = reader
        .page(namespace, name, METRICS_PORT, "/readyz")
        .await?;
    ReadyReport::parse(&page.body).ok_or_else(|| Unread::Failed {
        what: format!("/readyz of {name}"),
        why: format!("the response {} is not its report", page.status),
    })
}

/// Reviews the rights of the service accounts of the processes that are installed.
async fn rights(reader: &Reader, facts: &ClusterFacts) -> Reading<Vec<ReviewedRight>> {
    #[derive(Deserialize)]
    struct Review {
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        allowed: bool,
    }
    let namespace = &facts.namespace;
    let mut seen = BTreeSet::new();
    let mut reviews = Vec::new();
    for process in Process::ALL {
        for workload in facts.workloads(process)? {
            let account = &workload.spec.template.spec.service_account_name;
            let account: &str = if account.is_empty() {
                "default"
            } else {
                account
            };
            for right in process.rights(process_flags(workload)) {
                if seen.insert((account.to_owned(), right.named())) {
                    reviews.push((account.to_owned(), right.clone()));
                }
            }
        }
    }
    let kind = everywhere("authorization.k8s.io/v1", "subjectaccessreviews");
    let reviewed = reviews.into_iter().map(|(account, right)| async move {
        let review = right.review(namespace, &account);
        let review: Review = reader.review(kind, &review).await?;
        Ok::<_, Unread>(ReviewedRight {
            account: format!("{namespace}/{account}"),
            right,
            is_allowed: review.status.allowed,
        })
    });
    let mut reviewed = futures::stream::iter(reviewed).buffered(CONCURRENCY);
    let mut all = Vec::new();
    // The first error ends the reviews: without the right to review, none works.
    while let Some(one) = reviewed.next().await {
        all.push(one?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_that_of_the_types() {
        assert_eq!(OURS, format!("{GROUP}/{}", rolegate_api::VERSION));
    }
}
