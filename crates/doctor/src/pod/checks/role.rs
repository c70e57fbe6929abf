//! The pod requests a role.

use rolegate_core::annotation;
use rolegate_policy::explain::Outcome as Decision;

use super::super::facts::PodFacts;
use crate::check::{Finding, Outcome};
use crate::objects::Pod;
use crate::reading::Unread;

pub(in crate::pod) fn check(facts: &PodFacts) -> Result<Outcome, Unread> {
    let pod = facts.existing()?;
    let explained = facts.explained.as_ref()?;
    let requested = explained.workload.requested_role.as_deref();
    let token = explained
        .web_identity
        .iter()
        .find_map(|one| one.role.as_deref());
    Ok(match (&explained.role, requested, token) {
        (Some(role), Some(_), _) => Outcome::ok(format!("requests {role}")),
        (Some(role), None, _) => Outcome::ok(format!("requests none; the default is {role}")),
        (None, Some(requested), _) => Finding::problem(format!(
            "the annotation names {requested:?}, which is not a valid role"
        ))
        .advice("see the check decision")
        .into(),
        (None, None, Some(token)) => Outcome::ok(format!(
            "has a token for {token} (web identity), which agents do not serve"
        )),
        (None, None, None) if explained.decision == Decision::NoRole => {
            let message = "the pod requests no role, and there is no default";
            Finding::problem(message)
                .advice(annotate(facts, pod))
                .into()
        }
        (None, None, None) => Outcome::ok("requests no role"),
    })
}

/// Returns the command that annotates the pod, or the template that it comes from.
fn annotate(facts: &PodFacts, pod: &Pod) -> String {
    let namespace = &facts.namespace;
    let key = annotation::ROLE;
    let Some(owner) = pod.metadata.owner_references.first() else {
        let name = &facts.name;
        return format!("kubectl -n {namespace} annotate pod {name} {key}=ROLE");
    };
    let hash = pod.metadata.labels.get("pod-template-hash");
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(&format!("-{hash}")));
    let (kind, name) = match (&*owner.kind, deployment) {
        ("ReplicaSet", Some(name)) => ("deployment".to_owned(), name),
        (kind, _) => (kind.to_lowercase(), &*owner.name),
    };
    if !matches!(
        &*kind,
        "deployment" | "statefulset" | "daemonset" | "replicaset"
    ) {
        return format!("set the annotation {key}: ROLE in the pod template of {kind} {name}");
    }
    let patch = serde_json::json!({
        "spec": {"template": {"metadata": {"annotations": {(key): "ROLE"}}}}
    });
    format!("kubectl -n {namespace} patch {kind} {name} -p '{patch}'")
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::tests::{explained, healthy};
    use super::*;
    use crate::check::Status;
    use crate::objects::Owner;

    #[test]
    fn a_pod_without_a_role_gets_the_exact_command() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.explained = Ok(explained(Decision::NoRole));
        let advice = |facts: &PodFacts| check(facts).unwrap().findings[0].advice.clone().unwrap();
        assert_eq!(
            advice(&facts),
            "kubectl -n shop annotate pod api-0 iam.amazonaws.com/role=ROLE"
        );
        let owned = |facts: &mut PodFacts, kind: &str, name: &str| {
            let metadata = &mut facts.pod.as_mut().unwrap().as_mut().unwrap().metadata;
            metadata
                .labels
                .insert("pod-template-hash".into(), "5f7".into());
            metadata.owner_references = vec![Owner {
                kind: kind.into(),
                name: name.into(),
            }];
        };
        owned(&mut facts, "ReplicaSet", "api-5f7");
        assert!(advice(&facts).starts_with("kubectl -n shop patch deployment api -p '{\"spec\""));
        owned(&mut facts, "Job", "once");
        assert!(advice(&facts).ends_with("template of job once"));
    }

    #[test]
    fn a_malformed_role_is_found() {
        let mut facts = healthy();
        let mut denied = explained(Decision::Denied);
        denied.role = None;
        facts.explained = Ok(denied);
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts.pod = Ok(None);
        assert!(check(&facts).is_err());
    }
}
