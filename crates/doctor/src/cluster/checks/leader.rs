//! A replica of the controller holds its Lease.

use jiff::{SignedDuration, Timestamp};

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

/// Number of lease durations after which a Lease counts as abandoned. Clocks of this machine and
/// of the cluster differ.
const MAX_LATE_TERMS: i64 = 8;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    if facts.workloads(Process::Controller)?.is_empty() {
        return Ok(Outcome::ok("the controller is not installed"));
    }
    let name = rolegate_core::names::CONTROLLER;
    let advice = format!("kubectl -n {} logs deployment/{name}", facts.namespace);
    let problem = |message: String| -> Result<Outcome, Unread> {
        Ok(Finding::problem(message).advice(&*advice).into())
    };
    let Some(lease) = facts.lease.as_ref()? else {
        return problem(format!(
            "no replica of the controller has created Lease {name}"
        ));
    };
    let holder = lease.spec.holder_identity.as_deref().unwrap_or_default();
    if holder.is_empty() {
        return problem(format!("no replica of the controller holds Lease {name}"));
    }
    let renewed = lease.spec.renew_time.as_deref();
    let Some(renewed) = renewed.and_then(|time| time.parse::<Timestamp>().ok()) else {
        return problem(format!("Lease {name} of {holder} was never renewed"));
    };
    let term = lease.spec.lease_duration_seconds.unwrap_or(15).max(1);
    let age = facts.now.duration_since(renewed);
    if age > SignedDuration::from_secs(term.saturating_mul(MAX_LATE_TERMS)) {
        let seconds = age.as_secs();
        return problem(format!(
            "{holder} holds Lease {name} and has not renewed it for {seconds} s"
        ));
    }
    Ok(Outcome::ok(format!("{holder} leads")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;
    use crate::objects::object;

    #[test]
    fn a_lease_must_be_held_and_renewed() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        let lease = |spec: Value| Ok(Some(object(json!({"spec": spec}))));
        for (spec, expected) in [
            (
                json!({"holderIdentity": "c-0", "leaseDurationSeconds": 15,
                "renewTime": "2025-12-31T23:59:50.123456Z"}),
                Status::Ok,
            ),
            (
                json!({"holderIdentity": "c-0", "leaseDurationSeconds": 15,
                "renewTime": "2025-12-31T23:00:00.000000Z"}),
                Status::Problem,
            ),
            (json!({"holderIdentity": ""}), Status::Problem),
            (json!({"holderIdentity": "c-0"}), Status::Problem),
        ] {
            facts.lease = lease(spec.clone());
            assert_eq!(check(&facts).unwrap().status(), expected, "{spec}");
        }
        facts.deployments = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
    }
}
