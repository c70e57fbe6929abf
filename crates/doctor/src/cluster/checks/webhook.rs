//! The webhook is registered, and fails closed if a layer is enforced.

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let name = rolegate_core::names::WEBHOOK;
    let is_installed = !facts.workloads(Process::Admission)?.is_empty();
    let Some(webhook) = facts.webhook.as_ref()? else {
        if !is_installed {
            return Ok(Outcome::ok("not installed"));
        }
        let message = format!(
            "ValidatingWebhookConfiguration {name} does not exist: objects are not validated"
        );
        let finding = Finding::problem(message);
        let advice = "the controller creates it: see the checks controller, leader and rights";
        return Ok(finding.advice(advice).into());
    };
    let remove = format!("kubectl delete validatingwebhookconfiguration {name}");
    if !is_installed {
        let message = format!(
            "ValidatingWebhookConfiguration {name} exists, and its webhook is not installed: the API server rejects objects"
        );
        return Ok(Finding::problem(message).advice(remove).into());
    }
    let number = webhook.webhooks.len();
    if number == 0 {
        let message = format!(
            "ValidatingWebhookConfiguration {name} has no webhook: objects are not validated"
        );
        return Ok(Finding::problem(message)
            .advice("see the checks controller and leader")
            .into());
    }
    let closed = webhook
        .webhooks
        .iter()
        .filter(|one| one.failure_policy != "Ignore")
        .count();
    let summary = format!("{number} webhooks registered, {closed} with failurePolicy Fail");
    let modes = facts.modes()?.unwrap_or_default();
    let is_enforced = modes.iter().any(|(_, mode)| mode == "enforce");
    if closed == 0 && is_enforced {
        let message = format!(
            "{summary}, although a layer is enforced: objects are not validated while the webhook is unavailable"
        );
        let advice = "the controller sets failurePolicy by the RolegateConfig: see the checks controller and leader";
        return Ok(Finding::warning(message).advice(advice).into());
    }
    Ok(Outcome::ok(summary))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;
    use crate::objects::{WebhookConfiguration, object};

    /// Returns a registration with this failure policy and CA bundle.
    pub(in super::super) fn registered(policy: &str, bundle: &str) -> WebhookConfiguration {
        object(
            json!({"webhooks": [{"name": "workloads.rolegate.dev", "failurePolicy": policy,
            "clientConfig": {"caBundle": bundle,
                "service": {"namespace": "rolegate-system", "name": "rolegate-admission"}}}]}),
        )
    }

    #[test]
    fn an_installed_webhook_is_registered_and_closed() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts.webhook = Ok(Some(registered("Fail", "")));
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.webhook = Ok(Some(registered("Ignore", "")));
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        facts.webhook = Ok(Some(WebhookConfiguration::default()));
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
    }

    #[test]
    fn a_registration_that_was_left_behind_is_found() {
        let mut facts = healthy();
        facts.webhook = Ok(Some(registered("Fail", "")));
        facts.deployments = Ok(Vec::new());
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        let advice = outcome.findings[0].advice.as_deref().unwrap();
        assert_eq!(
            advice,
            "kubectl delete validatingwebhookconfiguration rolegate"
        );
        facts.webhook = Ok(None);
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
    }
}
