//! The conditions of `/readyz` of each process are healthy.

use super::super::facts::ClusterFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let pods = facts.pods.as_ref()?;
    let live = pods.iter().filter(|pod| pod.is_live()).count();
    if live == 0 {
        return Err(Unread::Depends("no pod of rolegate runs".into()));
    }
    let mut findings = Vec::new();
    // Pods whose conditions cannot be read from here, and those whose conditions were not read.
    let (mut far, mut unread) = (Vec::new(), Vec::new());
    for one in &facts.readiness {
        match &one.report {
            Ok(report) => findings.extend(report.findings(&format!("pod {}", one.pod))),
            Err(why @ Unread::OutOfReach { .. }) => far.push(why),
            Err(why) => unread.push(why),
        }
    }
    let read = facts.readiness.len() - far.len() - unread.len();
    findings.extend([far, unread].iter().filter_map(|group| not_read(group)));
    Ok(Outcome::of(
        format!("the conditions of {read} of {live} pods were read"),
        findings,
    ))
}

/// Returns one finding for a group of pods: there may be very many.
fn not_read(unread: &[&Unread]) -> Option<Finding> {
    let first = *unread.first()?;
    let finding = Finding::from(first.clone());
    Some(match unread.len() {
        1 => finding,
        number => Finding {
            message: format!("{number} pods were not asked: {first}"),
            ..finding
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::PodReadiness;
    use crate::cluster::facts::tests::healthy;
    use crate::readyz::ReadyReport;

    fn facts(reports: Vec<Result<ReadyReport, Unread>>) -> ClusterFacts {
        let mut facts = healthy();
        let reports = reports.into_iter().map(|report| PodReadiness {
            pod: "a".into(),
            report,
        });
        facts.readiness = reports.collect();
        facts
    }

    #[test]
    fn failing_conditions_are_found() {
        let fine = || ReadyReport {
            ready: true,
            ..ReadyReport::default()
        };
        let outcome = check(&facts(vec![Ok(fine())])).unwrap();
        assert_eq!(outcome.status(), Status::Ok);
        let mut bad = fine();
        bad.failing
            .insert("certificate".into(), "it is missing".into());
        let outcome = check(&facts(vec![Ok(fine()), Ok(bad)])).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        assert_eq!(
            outcome.findings[0].message,
            "pod a: certificate: it is missing"
        );
    }

    #[test]
    fn pods_that_were_not_asked_are_one_finding() {
        let unread = || {
            Err(Unread::OutOfReach {
                why: "a serves /readyz on its node only".into(),
                instead: "kubectl exec".into(),
            })
        };
        let outcome = check(&facts(vec![unread(), unread()])).unwrap();
        assert_eq!(
            (outcome.status(), outcome.findings.len()),
            (Status::NotChecked, 1)
        );
        assert_eq!(outcome.findings[0].advice.as_deref(), Some("kubectl exec"));
        let mut none = healthy();
        none.pods = Ok(Vec::new());
        assert!(check(&none).is_err());
    }
}
