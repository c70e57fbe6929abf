//! The replicas of a Deployment.

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use crate::check::{Finding, Outcome};
use crate::objects::Workload;
use crate::reading::Unread;

/// Returns the outcome about the Deployments of a process, or `none` without one.
pub(super) fn ready_if_installed(
    facts: &ClusterFacts,
    process: Process,
    none: &str,
) -> Result<Outcome, Unread> {
    let workloads = facts.workloads(process)?;
    if workloads.is_empty() {
        return Ok(Outcome::ok(none));
    }
    ready(facts, process, &workloads)
}

/// Returns the outcome about the Deployments of a process, which are installed.
pub(super) fn ready(
    facts: &ClusterFacts,
    process: Process,
    workloads: &[&Workload],
) -> Result<Outcome, Unread> {
    let mut findings = Vec::new();
    let mut summary = Vec::new();
    for workload in workloads {
        let name = workload.metadata.full_name();
        let wanted = workload.spec.replicas.unwrap_or(1);
        let ready = workload.status.ready_replicas;
        summary.push(format!("{ready} of {wanted} replicas ready"));
        if wanted == 0 {
            let message = format!("Deployment {name} is scaled to 0 replicas");
            findings.push(Finding::problem(message).advice(format!(
                "kubectl -n {} scale deployment {} --replicas=2",
                workload.metadata.namespace, workload.metadata.name
            )));
        } else if ready < wanted {
            let message = format!("Deployment {name}: {ready} of {wanted} replicas are ready");
            findings.push(if ready == 0 {
                Finding::problem(message)
            } else {
                Finding::warning(message)
            });
        }
        let failing = workload.status.conditions.iter();
        let failing = failing.filter(|one| one.kind == "ReplicaFailure" && one.status == "True");
        findings.extend(failing.map(|one| {
            let why = &one.message;
            Finding::problem(format!("Deployment {name} cannot create pods: {why}"))
        }));
    }
    if !findings.is_empty() {
        for pod in facts
            .pods(process)?
            .into_iter()
            .filter(|pod| !pod.is_ready())
        {
            let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
            let message = format!("pod {name} is not ready: {}", pod.trouble());
            let logs = format!("kubectl -n {namespace} logs {name}");
            findings.push(Finding::warning(message).advice(logs));
        }
    }
    Ok(Outcome::of(summary.join(", "), findings))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::{healthy, pod};

    /// Tests a check of a Deployment that may be missing.
    pub(in super::super) fn needs_ready_replicas(
        check: fn(&ClusterFacts) -> Result<Outcome, Unread>,
    ) {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        for workload in facts.deployments.as_mut().unwrap() {
            workload.status.ready_replicas = 0;
        }
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts.deployments = Ok(Vec::new());
        assert!(check(&facts).unwrap().summary.starts_with("not installed"));
    }

    #[test]
    fn missing_replicas_are_found_with_their_pods() {
        let mut facts = healthy();
        let outcome = |facts: &ClusterFacts| {
            let workloads = facts.workloads(Process::Admission).unwrap();
            ready(facts, Process::Admission, &workloads).unwrap()
        };
        assert_eq!(outcome(&facts).status(), Status::Ok);
        let set = |facts: &mut ClusterFacts, ready, wanted| {
            let workload = &mut facts.deployments.as_mut().unwrap()[0];
            workload.status.ready_replicas = ready;
            workload.spec.replicas = Some(wanted);
        };
        set(&mut facts, 1, 2);
        let mut broken = pod("rolegate-admission", "admission-1", "b");
        broken.status.conditions.clear();
        facts.pods.as_mut().unwrap().push(broken);
        let found = outcome(&facts);
        assert_eq!(found.status(), Status::Warning);
        assert!(
            found.findings[1]
                .message
                .contains("admission-1 is not ready"),
            "{found:?}"
        );
        for (ready, wanted) in [(0, 2), (0, 0)] {
            set(&mut facts, ready, wanted);
            assert_eq!(outcome(&facts).status(), Status::Problem);
        }
    }
}
