//! The pod exists, runs, and has a network of its own.

use super::super::facts::PodFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::pod) fn check(facts: &PodFacts) -> Result<Outcome, Unread> {
    let Some(pod) = facts.pod.as_ref()? else {
        return Ok(missing(facts));
    };
    let node = &pod.spec.node_name;
    if pod.spec.host_network {
        let message = "the pod is on the host's network (hostNetwork): it is not redirected and gets the node's role";
        let advice = "set hostNetwork: false, or give its program credentials in another way";
        return Ok(Finding::problem(message).advice(advice).into());
    }
    if !pod.is_live() {
        let message = "the pod has finished or is terminating: it gets no credentials";
        return Ok(Finding::warning(message).into());
    }
    if node.is_empty() || pod.status.pod_ip.is_empty() {
        let message = format!("the pod has not started: {}", pod.trouble());
        let describe = format!("kubectl -n {} describe pod {}", facts.namespace, facts.name);
        return Ok(Finding::problem(message).advice(describe).into());
    }
    let address = &pod.status.pod_ip;
    Ok(Outcome::ok(format!("{address} on node {node}")))
}

/// Returns the finding about a pod that does not exist, with the webhook's refusals of pods whose
/// names begin like its own.
fn missing(facts: &PodFacts) -> Outcome {
    let message = format!(
        "pod {} does not exist in namespace {}",
        facts.name, facts.namespace
    );
    let refusals = facts.refusals.as_deref().unwrap_or_default().iter();
    let refused: Vec<_> = refusals
        .filter(|event| event.message.contains("rolegate.dev"))
        .map(|event| Finding::problem(format!("a pod was refused: {}", event.message)))
        .collect();
    let advice = format!(
        "a webhook may have refused it: kubectl -n {} get events --field-selector reason=FailedCreate; to evaluate a template: rolegate policy explain deployment/NAME -n {}",
        facts.namespace, facts.namespace
    );
    let first = Finding::problem(&*message).advice(advice);
    Outcome::of(message, [vec![first], refused].concat())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::facts::tests::{healthy, pod};
    use super::*;
    use crate::check::Status;
    use crate::objects::object;

    #[test]
    fn a_running_pod_with_its_own_network_passes() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap(), Outcome::ok("10.0.0.9 on node a"));
        for spec in [json!({"nodeName": "a", "hostNetwork": true}), json!({})] {
            facts.pod = Ok(Some(pod(spec)));
            assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        }
        let mut done = pod(json!({"nodeName": "a"}));
        done.status.phase = "Succeeded".into();
        facts.pod = Ok(Some(done));
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
    }

    #[test]
    fn a_missing_pod_may_have_been_refused() {
        let mut facts = healthy();
        facts.pod = Ok(None);
        facts.refusals = Ok(vec![
            object(json!({"message": "admission webhook \"workloads.rolegate.dev\" denied"})),
            object(json!({"message": "quota"})),
        ]);
        let outcome = check(&facts).unwrap();
        assert_eq!(
            (outcome.status(), outcome.findings.len()),
            (Status::Problem, 2)
        );
    }
}
