//! The answers that the pod got, as rolegate recorded them in Events.

use rolegate_kube::events::EventReason;
use rolegate_policy::explain::Outcome as Decision;

use super::super::facts::PodFacts;
use crate::check::{Finding, Outcome};
use crate::objects::Event;
use crate::reading::Unread;

pub(in crate::pod) fn check(facts: &PodFacts) -> Result<Outcome, Unread> {
    facts.existing()?;
    let is_allowed = matches!(&facts.explained, Ok(one) if one.decision == Decision::Allowed);
    let events = facts.events.as_ref()?.iter();
    let findings: Vec<_> = events
        .filter_map(|event| finding(event, is_allowed))
        .collect();
    Ok(Outcome::of(
        match findings.len() {
            0 => "rolegate has recorded no Event of the pod".to_owned(),
            1 => "1 Event of rolegate".to_owned(),
            number => format!("{number} Events of rolegate"),
        },
        findings,
    ))
}

fn finding(event: &Event, is_allowed: bool) -> Option<Finding> {
    let time = event.last_timestamp.as_ref().or(event.event_time.as_ref());
    let time = time.map_or(String::new(), |time| format!("{time}: "));
    let message = format!("{time}{}", event.message);
    if event.reason == EventReason::RoleForbidden.as_str() {
        return Some(if is_allowed {
            Finding::warning(message)
                .advice("the rules allow the role now: the Event is older than their last change")
        } else {
            Finding::problem(message).advice("see the check decision")
        });
    }
    if event.reason == EventReason::CredentialError.as_str() {
        return Some(Finding::problem(message).advice(
            "AWS refuses, or does not respond: docs/how-to/debug-a-denied-pod.md, \"STS refuses the role\"",
        ));
    }
    let is_ours = event.reporting_component.starts_with("rolegate");
    is_ours.then(|| Finding::warning(message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::facts::tests::{explained, healthy};
    use super::*;
    use crate::check::Status;
    use crate::objects::object;

    #[test]
    fn answers_that_were_recorded_are_shown() {
        let mut facts = healthy();
        let event = |reason: &str| {
            object(
                json!({"reason": reason, "message": "refused", "reportingComponent": "x",
                "eventTime": "2026-01-01T00:00:00.000000Z"}),
            )
        };
        facts.events = Ok(vec![event("Scheduled")]);
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.events = Ok(vec![event("CredentialError")]);
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts.events = Ok(vec![event("RoleForbidden")]);
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        facts.explained = Ok(explained(Decision::Denied));
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        let message = &outcome.findings[0].message;
        assert_eq!(message, "2026-01-01T00:00:00.000000Z: refused");
    }
}
