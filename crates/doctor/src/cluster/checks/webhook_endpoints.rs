//! The Service of the webhook has ready endpoints.

use super::super::facts::ClusterFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let Some(webhook) = facts.webhook.as_ref()? else {
        return Ok(Outcome::ok("no webhook is registered"));
    };
    let mut services = webhook.webhooks.iter();
    let Some(service) = services.find_map(|one| one.client_config.service.as_ref()) else {
        return Err(Unread::Depends("the webhook is called by a URL".into()));
    };
    let name = format!("{}/{}", service.namespace, service.name);
    if service.namespace != facts.namespace || service.name != rolegate_core::names::ADMISSION {
        return Err(Unread::OutOfReach {
            why: format!(
                "the webhook's Service is {name}, outside of namespace {}",
                facts.namespace
            ),
            instead: "name the namespace of rolegate with --agent-namespace".into(),
        });
    }
    let slices = facts.endpoints.as_ref()?.iter();
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    // As in Kubernetes, an unknown state counts as ready.
    let ready = endpoints
        .filter(|one| one.conditions.ready.unwrap_or(true))
        .count();
    if ready > 0 {
        return Ok(Outcome::ok(format!("{ready} ready endpoints")));
    }
    let closed = webhook
        .webhooks
        .iter()
        .filter(|one| one.failure_policy != "Ignore")
        .count();
    let effect = match closed {
        0 => "objects are not validated",
        _ => "the API server rejects objects with roles",
    };
    let message = format!("Service {name} has no ready endpoint: {effect}");
    let advice = "see the check admission; to recover: docs/how-to/install-webhook.md, section 6";
    Ok(Finding::problem(message).advice(advice).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::webhook::tests::registered;
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;
    use crate::objects::object;

    #[test]
    fn the_service_needs_a_ready_endpoint() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.webhook = Ok(Some(registered("Fail", "")));
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        let slice = |ready: bool| {
            Ok(vec![
                object(json!({"endpoints": null})),
                object(json!({"endpoints": [{"conditions": {"ready": ready}}]})),
            ])
        };
        facts.endpoints = slice(false);
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts.endpoints = slice(true);
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.namespace = "other".into();
        assert!(check(&facts).is_err());
    }
}
