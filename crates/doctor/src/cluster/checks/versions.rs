//! All processes run one version of the image.

use std::collections::{BTreeMap, BTreeSet};

use super::super::facts::ClusterFacts;
use super::super::process::{LABEL, Process};
use crate::check::{Finding, Outcome};
use crate::objects::Pod;
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let pods = facts.pods.as_ref()?.iter().filter(|pod| pod.is_live());
    let mut images: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut ids: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for pod in pods {
        let Some((image, id)) = image(pod) else {
            continue;
        };
        let label = pod.metadata.labels.get(LABEL).map_or("", String::as_str);
        *images
            .entry(image.to_owned())
            .or_default()
            .entry(label)
            .or_default() += 1;
        if !id.is_empty() {
            ids.entry(image.to_owned()).or_default().insert(id);
        }
    }
    let Some(first) = images.keys().next() else {
        return Err(Unread::Depends("no pod of rolegate runs".into()));
    };
    let mut findings = Vec::new();
    if images.len() > 1 {
        let parts = images.iter().map(|(image, processes)| {
            let processes = processes
                .iter()
                .map(|(name, number)| format!("{number} {name}"));
            format!("{image} ({})", processes.collect::<Vec<_>>().join(", "))
        });
        let message = format!(
            "pods run {} images: {}",
            images.len(),
            parts.collect::<Vec<_>>().join("; ")
        );
        findings.push(Finding::warning(message).advice(
            "finish the upgrade in the order of docs/how-to/upgrade.md: kinds, webhook and controller, brokers, agents",
        ));
    }
    for (image, ids) in ids.iter().filter(|(_, ids)| ids.len() > 1) {
        let message = format!(
            "image {image} is {} different images on the nodes",
            ids.len()
        );
        let advice = "use a tag that is never moved, or a digest; then restart the pods";
        findings.push(Finding::warning(message).advice(advice));
    }
    Ok(Outcome::of(
        match images.len() {
            1 => format!("all pods run {first}"),
            number => format!("pods run {number} images"),
        },
        findings,
    ))
}

/// Returns the image of the pod's process and the ID of what runs. The spec has the image as it
/// was written; a runtime may report another tag of the same image.
fn image(pod: &Pod) -> Option<(&str, &str)> {
    let label = pod.metadata.labels.get(LABEL)?;
    let process = Process::labelled(label)?.name();
    let short = process.strip_prefix("rolegate-").unwrap_or(process);
    let containers = &pod.spec.containers;
    let named = containers.iter().find(|one| one.name == short);
    let container = named.or_else(|| containers.first())?;
    let mut statuses = pod.status.container_statuses.iter();
    let status = statuses.find(|one| one.name == container.name);
    Some((&*container.image, status.map_or("", |one| &*one.image_id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;

    #[test]
    fn one_image_passes_and_two_are_found() {
        let mut facts = healthy();
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.summary, "all pods run r/rolegate:1");
        assert_eq!(outcome.status(), Status::Ok);
        let pods = facts.pods.as_mut().unwrap();
        pods[0].status.container_statuses[0].image_id = "sha256:2".into();
        let outcome = check(&facts).unwrap();
        assert!(
            outcome.findings[0].message.contains("2 different"),
            "{outcome:?}"
        );
        facts.pods.as_mut().unwrap()[0].spec.containers[0].image = "r/rolegate:2".into();
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.findings.len(), 1);
        let message = &outcome.findings[0].message;
        assert!(
            message.contains("r/rolegate:2 (1 rolegate-agent)"),
            "{message}"
        );
    }
}
