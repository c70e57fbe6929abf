//! The service accounts of rolegate's processes have the rights of the manifests.

use std::collections::BTreeMap;

use super::super::facts::ClusterFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let reviewed = facts.rights.as_ref()?;
    if reviewed.is_empty() {
        return Err(Unread::Depends(
            "no process of rolegate that needs rights is installed".into(),
        ));
    }
    let mut missing: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for one in reviewed.iter().filter(|one| !one.is_allowed) {
        let key = (&*one.account, one.right.otherwise);
        missing.entry(key).or_default().push(one.right.named());
    }
    let findings: Vec<_> = missing
        .into_iter()
        .map(|((account, effect), rights)| {
            let rights = rights.join(", ");
            let message = format!("ServiceAccount {account} may not {rights}: {effect}");
            Finding::problem(message)
                .advice("apply the roles and bindings of the process's manifest in deploy/ again")
        })
        .collect();
    let number = reviewed.len();
    Ok(Outcome::of(
        match findings.len() {
            0 => format!("all {number} needed rights are granted"),
            _ => "rights are missing".to_owned(),
        },
        findings,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::ReviewedRight;
    use crate::cluster::facts::tests::healthy;
    use crate::cluster::process::Process;
    use crate::cluster::rights::ProcessFlags;

    #[test]
    fn missing_verbs_are_named_with_their_effect() {
        let mut facts = healthy();
        assert!(check(&facts).is_err());
        let reviewed = |is_allowed| {
            let rights = Process::Agent.rights(ProcessFlags::default());
            let review = rights.map(|right| ReviewedRight {
                account: "rolegate-system/rolegate-agent".into(),
                right: right.clone(),
                is_allowed: is_allowed || right.resource != "pods",
            });
            Ok(review.collect())
        };
        facts.rights = reviewed(true);
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.rights = reviewed(false);
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.findings.len(), 1);
        let message = &outcome.findings[0].message;
        assert!(
            message.contains("may not list pods, watch pods: no pod is known"),
            "{message}"
        );
    }
}
